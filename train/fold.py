"""One fold: train on the other folds' rows, save the checkpoint, predict the held-out rows from what was saved.

Knows rows and settings; the loop itself is train.loop.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.files import write_json
from infer.predictions import Predictions
from models.settings import Settings
from models.tasks.arena import LABELS, SWAP, ArenaRow

log = logging.getLogger("tiebreak")

RESTART_RATE = 0.5  # of the collapsed attempt's: instability is the rule for DeBERTa-large, finetuning trap 16


@dataclass
class FoldData:
    """What all folds of a run share.

    rows: N labelled rows. folds: (N,) the fold that holds each row out, -1 for never.
    fields: their token ids; None for methods that read text. matrix: (N, F) structural features, where asked for.
    """

    rows: Sequence[ArenaRow]
    folds: np.ndarray
    fields: Any = None
    tokenizer: Any = None
    matrix: np.ndarray | None = None

    def training(self, fold: int) -> np.ndarray:
        return np.flatnonzero(self.folds != fold)

    def heldout(self, fold: int) -> np.ndarray:
        return np.flatnonzero(self.folds == fold)

    def targets(self) -> np.ndarray:
        """(N, 3) float32 soft labels."""
        return np.array([row.target for row in self.rows], dtype=np.float32)

    def predictions(self, rows: np.ndarray, probs: np.ndarray, fold: int | None = None) -> Predictions:
        """The table of some rows; their true labels beside the probabilities."""
        return Predictions(
            ids=np.array([self.rows[row].id for row in rows], dtype=object),
            labels=LABELS,
            probs=probs,
            other=np.zeros(len(rows), dtype=np.float32),
            truth=np.array([self.rows[row].label for row in rows], dtype=object),
            fold=None if fold is None else np.full(len(rows), fold),
        )


def prior_log_loss(data: FoldData, fold: int) -> float:
    """What the training rows' class shares score on the held-out rows: a network above this has learned nothing."""
    shares = data.targets()[data.training(fold)].mean(axis=0)
    held = data.heldout(fold)
    return data.predictions(held, np.tile(shares, (len(held), 1))).log_loss()


def train_fold(settings: Settings, data: FoldData, fold: int, folder: Path) -> None:
    """Leave checkpoint/, heldout.csv and, last of all, done.json in `folder`; resumes what it finds there."""
    from infer.classifiers import load_classifier, make_classifier, save_classifier
    from infer.ranks import is_main, wait_for_all

    started = time.monotonic()
    story: dict[str, Any] = {}
    if settings.method.name == "encoder":
        story = _fit_encoder(settings, data, fold, folder)
    elif is_main():
        classifier = make_classifier(settings.method, seed=settings.seed)
        classifier.fit([data.rows[row] for row in data.training(fold)])
        save_classifier(classifier, folder / "checkpoint", method=settings.method.name)
    wait_for_all()
    held = data.heldout(fold)
    classifier = load_classifier(folder / "checkpoint")
    probs, disagreement = predict_heldout(settings, classifier, data, held)
    if is_main():
        table = data.predictions(held, probs, fold)
        table.write(folder / "heldout.csv")
        np.save(folder / "disagreement.npy", disagreement)
        done = {"fold": fold, "log_loss": table.log_loss(), "rows": len(held), "seconds": time.monotonic() - started}
        write_json(folder / "done.json", done | story)
        shutil.rmtree(folder / "attempts", ignore_errors=True)
        log.info(f"fold {fold}: held-out log loss {table.log_loss():.4f} on {len(held)} rows")
    wait_for_all()


def predict_heldout(
    settings: Settings, classifier: Any, data: FoldData, held: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """((N, 3) probabilities, (N,) disagreement of the two orders) of the rows `held`, by the code of the submission."""
    trainer = settings.trainer
    if settings.method.name != "encoder":
        return classifier.predict_proba([data.rows[row] for row in held]), np.zeros(len(held), dtype=np.float32)
    given = None if classifier.scale is None or data.matrix is None else classifier.scale.apply(data.matrix[held])
    fields = [data.fields[int(row)] for row in held]
    return classifier.probs_of(fields, given, batch_rows=trainer.predict_batch_rows, precision=trainer.precision)


def _fit_encoder(settings: Settings, data: FoldData, fold: int, folder: Path) -> dict[str, Any]:
    """Train until an attempt does not collapse, save its best network; what happened, for done.json."""
    from infer.ranks import is_main, wait_for_all

    restarts = settings.trainer.restarts
    for attempt in range(restarts + 1):
        work = folder / "attempts" / str(attempt)
        if (work / "collapsed.json").is_file():
            continue  # judged in an earlier launch
        seed = settings.seed + 1000 * attempt + fold
        rate = settings.trainer.learning_rate * RESTART_RATE**attempt
        classifier, story = _attempt(settings, data, fold, work, seed=seed, rate=rate, last=attempt == restarts)
        if not story["collapsed"] or attempt == restarts:
            if is_main():
                if story["collapsed"]:
                    log.warning(f"fold {fold}: still at the class prior after {attempt + 1} attempts; kept, and no use")
                classifier.save(folder / "checkpoint")
            wait_for_all()
            return story | {"attempts": attempt + 1}
        if is_main():
            log.warning(
                f"fold {fold}: the loss sits at the class prior after warm-up (seed {seed}, rate {rate:.1e}); "
                f"starting again with seed {seed + 1000} and rate {rate * RESTART_RATE:.1e}"
            )
            write_json(work / "collapsed.json", story)
        wait_for_all()
        del classifier
        gc.collect()
    raise AssertionError("the last attempt always returns")


def build_network(settings: Settings, tokenizer: Any, scale: Any) -> Any:
    """The PairClassifier that a fold of this run starts from. scale: a FeatureScale, or None to read text only.

    Raises FileNotFoundError for a model that is not there, ValueError for a budget past its positions.
    """
    from infer.encoder import build_model
    from models.encoder import check_budget, freeze_lowest, load_encoder
    from models.names import resolve_model

    wanted = settings.encoder
    encoder: Any = load_encoder(resolve_model(wanted.name), dropout=wanted.dropout, vocab_size=len(tokenizer))
    check_budget(encoder, settings.arena.budget_tokens, wanted.name)
    freeze_lowest(encoder, wanted.frozen_layers)
    if settings.trainer.activation_checkpointing:
        # The older name is deprecated from transformers 5.2x on, the newer one missing before.
        enable = getattr(encoder, "activation_checkpointing_enable", None) or encoder.gradient_checkpointing_enable
        enable()
    return build_model(encoder, wanted.head, scale)


def _attempt(
    settings: Settings, data: FoldData, fold: int, work: Path, *, seed: int, rate: float, last: bool
) -> tuple[Any, dict[str, Any]]:
    """One training from `seed` at `rate`: (the best network as a classifier, its story)."""
    import torch
    from transformers import set_seed

    from infer.encoder import EncoderClassifier
    from infer.ranks import is_main, wait_for_all, world_size
    from models.precision import device_and_precision
    from models.reader import FeatureScale, make_reader
    from train import callbacks
    from train.batches import PairSampler
    from train.loop import PairTrainer, last_whole_checkpoint, training_arguments
    from train.metrics import log_loss_metric

    set_seed(seed)  # the new head's weights, then dropout
    trainer, task = settings.trainer, settings.arena
    precision = device_and_precision(trainer.precision)[1]
    training, held = data.training(fold), data.heldout(fold)
    scale = None if data.matrix is None else FeatureScale.fit(data.matrix[training])
    given = None if scale is None or data.matrix is None else scale.apply(data.matrix)
    reader = make_reader(
        data.tokenizer, head=settings.encoder.head, budget_tokens=task.budget_tokens, prompt_share=task.prompt_share
    )
    model = build_network(settings, data.tokenizer, scale)
    classifier = EncoderClassifier(model, data.tokenizer, reader, scale, tta=trainer.tta, base=settings.model.name)
    targets = data.targets()

    def collate(items: list[int]) -> dict[str, torch.Tensor]:
        rows = training[np.asarray(items) // 2]
        swapped = np.asarray(items) % 2
        batch = reader.batch(data.fields, (2 * rows + swapped).tolist(), given)
        target = targets[rows]
        target[swapped == 1] = target[swapped == 1][:, SWAP]
        return batch | {"targets": torch.from_numpy(target)}

    log_loss = log_loss_metric()

    def evaluate_heldout(network: Any) -> dict[str, float]:
        probs, disagreement = predict_heldout(settings, classifier, data, held)
        truth = data.predictions(held, probs).label_index()
        hits = probs.argmax(axis=1) == truth
        return {
            **log_loss.compute(predictions=probs, references=truth),
            "accuracy": float(hits.mean()),
            **({} if np.isnan(disagreement).any() else {"swap_disagreement": float(disagreement.mean())}),
        }

    if trainer.workers:  # all tokens are made by now; a forked worker must not find the tokenizer's threads (trap 38)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    quiet = not sys.stderr.isatty()
    arguments = training_arguments(
        settings, work, rows=len(training), seed=seed, rate=rate, precision=precision,
        report_to=_report_to(settings, fold, work), quiet=quiet, world_size=world_size(),
    )  # fmt: skip
    sampler = PairSampler(
        data.fields.row_tokens()[training], swap=trainer.swap, batch_items=trainer.batch_rows, seed=seed
    )
    guard = callbacks.CollapseGuard(prior_log_loss(data, fold), stop=not last)
    loop = PairTrainer(
        model,
        arguments,
        sampler=sampler,
        collate=collate,
        evaluate_heldout=evaluate_heldout,
        label_smoothing=trainer.label_smoothing,
        layer_decay=trainer.layer_decay,
        head_rate=trainer.head_rate,
        callbacks=callbacks.watchers(trainer, arguments, sampler, guard, f"fold {fold}"),
    )
    if is_main():
        last_whole_checkpoint(work)
    wait_for_all()
    checkpoint = last_whole_checkpoint(work, delete=False)
    if checkpoint is not None:
        log.info(f"fold {fold}: going on from {checkpoint}")
    loop.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _finish_tracking()
    state = loop.state
    story = {
        "collapsed": guard.judge(state, arguments),
        "seed": seed,
        "learning_rate": rate,
        "steps": state.global_step,
        "best_step": state.best_global_step,
        "log": [entry for entry in state.log_history if "eval_log_loss" in entry or "loss" in entry],
    }
    return classifier, story


def _report_to(settings: Settings, fold: int, work: Path) -> list[str]:
    """["wandb"] where it is wanted and installed; its files stay in the run folder."""
    import importlib.util

    mode = os.environ.get("WANDB_MODE", settings.track.wandb)
    if mode == "disabled" or importlib.util.find_spec("wandb") is None:
        return []
    work.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "WANDB_MODE": mode,
        "WANDB_DIR": settings.run_dir,
        "WANDB_PROJECT": settings.track.project,
        "WANDB_RUN_GROUP": f"{settings.name}-seed{settings.seed}",
        "WANDB_NAME": f"{settings.name}-seed{settings.seed}-fold{fold}",
    }
    return ["wandb"]


def _finish_tracking() -> None:
    """Close this fold's tracking run, if there is one: the next fold is another."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()
