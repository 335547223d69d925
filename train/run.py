"""`python -m train`: rows -> folds -> checkpoints -> held-out table -> score.

Every step leaves a file and is skipped where its file is there, so the same command goes on after a kill.
Knows the order of the work; each step stands in its own module.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from infer.calibration.temperature import FEWEST_ROWS, apply_temperature, settle_temperature, write_calibration
from infer.files import write_json
from infer.locks import hold
from infer.logs import open_log
from infer.metrics import baseline_lines, score
from infer.outputs import inputs_of, refuse_inputs_among
from infer.predictions import Predictions, join
from infer.ranks import from_main, is_main, true_for_all, wait_for_all, world_size
from infer.stopping import time_left_s
from infer.thresholds import settle_decision, write_decision
from models.precision import device_and_precision, own_capability
from models.settings import Settings
from train.baselines import score_baselines
from train.card import write_cards
from train.finished import settle_finished
from train.fold import DISAGREEMENT, DONE, HELDOUT, FoldData, train_fold
from train.folds import make_folds, read_folds, write_folds
from train.learners import TRAINED, prepare
from train.levers import check_levers
from train.pace import TimeIsUp
from train.record import (
    REPLACED,
    check_run,
    open_run,
    settle_processes,
    told_if_vanished,
    write_environment,
)
from train.rows import LabelledRows, read_training_rows, tell_rows
from train.sharding import allow_pascal, check_sharding


def run(settings: Settings) -> dict | None:
    """Train every wanted fold and score those that are done; the metrics, in the main process.

    Raises ValueError, and Stopped where a signal came: what is done is in its place.
    """
    check_levers(settings)
    check_sharding(settings)
    folder = Path(settings.run_dir)
    refuse_inputs_among(inputs_of(settings), [(folder, pattern) for pattern in REPLACED], "run_dir=...")
    with _held(folder) if is_main() else contextlib.nullcontext():
        return _run(settings)


def _run(settings: Settings) -> dict | None:
    main = is_main()
    folder = Path(settings.run_dir)
    if main:
        check_run(settings)
    rows = read_training_rows(settings)  # nothing is written before they are known to be what was meant
    if main:
        open_run(settings)
    wait_for_all()
    if not true_for_all((folder / "config.yaml").is_file()):
        raise ValueError(
            f"run_dir={folder} is not the same folder on every machine: the first has written config.yaml there, and "
            "another does not see it. Put it on a disk that all share, under the same path."
        )
    with told_if_vanished(folder):
        return _train(settings, rows, folder, main)


def _train(settings: Settings, rows: LabelledRows, folder: Path, main: bool) -> dict | None:
    log = open_log(folder / "train.log", main=main)
    _, precision, device_line = device_and_precision(settings.trainer.precision)
    log.info(f"{settings.name}, seed {settings.seed}, in {folder}: {device_line}, {world_size()} process(es)")
    pascal = allow_pascal(settings.trainer, precision, own_capability())
    if pascal is not None:
        log.info(pascal)
    tell_rows(rows, folder, main)
    folds = settle_folds(settings, folder, rows, main)
    data = FoldData(rows, folds)
    numbers = sorted(int(fold) for fold in np.unique(folds) if fold >= 0)
    wanted = numbers if settings.folds.only is None else settings.folds.only
    unknown = sorted(set(wanted) - set(numbers))
    if unknown:
        raise ValueError(f"folds.only names {unknown}, but {folder / 'folds.csv'} has the folds {numbers}.")
    finished = from_main(settle_finished(folder, numbers) if main else {})
    if main:
        write_environment(folder, device_line, world_size())
        for fold in set(wanted) & set(finished):
            log.info(f"fold {fold}: " + ("cut short before, trained on" if finished[fold] else "done before, kept"))
    waiting = [fold for fold in wanted if finished.get(fold, True)]
    if waiting and settings.method.name in TRAINED:
        data.processes = _settle_processes(settings, folder, main)
    if waiting:
        prepare(settings, data, folder, main)
    done = train_folds(settings, data, waiting, set(finished), folder)
    if done != numbers:
        log.info(f"folds {sorted(set(numbers) - set(done))} are not trained yet: the score is that of folds {done}")
    metrics = finish(settings, data, done, folder) if main else None
    wait_for_all()
    return metrics


def _settle_processes(settings: Settings, folder: Path, main: bool) -> int:
    """How many processes the steps are made for, in every process; what becomes of them with others is said."""
    from infer.logs import log

    begun, now = from_main(settle_processes(folder, world_size()) if main else 0), world_size()
    if begun != now:
        rows = settings.trainer.batch_rows * settings.trainer.accumulation * begun
        log.info(
            f"{begun} process(es) began this run with {rows} rows a step, and {now} go(es) on with the same steps: "
            f"about {rows / now:.3g} rows of each for a process. For other steps begin another run: run_dir=..."
        )
    return begun


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """The run folder's lock is held; where nothing else came into the folder, it is left as it was found.

    Raises ValueError where another run has it.
    """
    made = [one for one in (folder / "lock", folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    lock = hold(
        folder / "lock",
        f"{folder} is being trained in by another process. Wait for it or stop it, or choose another folder: "
        "run_dir=...",
    )
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # it may be gone, or read-only by now: the first error is the one to tell
            if made and not (folder / "config.yaml").exists():
                (folder / "lock").unlink()
                for one in made[1:]:
                    one.rmdir()
        lock.close()


def train_folds(settings: Settings, data: FoldData, waiting: list[int], done: set[int], folder: Path) -> list[int]:
    """Train these folds, as far as the time budget goes; all that are done then, in order. done: the folds before.

    While no other fold is done, the one that the budget ends in is cut short, so that there is a network at all; else
    it is left to the next launch.
    """
    from infer.logs import log

    needed_s, cut_short = 0.0, False
    for fold in waiting:
        others = done - {fold}
        # After a fold that was cut short there is the time to finish, and no more.
        if from_main(bool(others) and (cut_short or time_left_s() < needed_s)):
            log.info(f"the time budget is up: fold {fold} is not begun. The same command goes on with it")
            break
        try:
            cut_short, least_s = train_fold(settings, data, fold, folder / f"fold{fold}", deliver=not others)
        except TimeIsUp:
            break
        done = done | {fold}
        needed_s = max(needed_s, least_s)
    return sorted(done)


def settle_folds(settings: Settings, folder: Path, rows: LabelledRows, main: bool) -> np.ndarray:
    """(N,) the fold of each row: as this run wrote it before, as a given file says, or made now."""
    path = folder / "folds.csv"
    source = path if path.is_file() else settings.folds.file
    wait_for_all()  # nobody writes while another still looks
    if source is not None:
        folds = read_folds(source, rows)
        given = settings.folds.file
        if given is not None and not np.array_equal(folds, read_folds(given, rows)):
            raise ValueError(f"{path} has other folds than folds.file={given}. Choose a new folder: run_dir=...")
    else:
        folds = make_folds(rows, count=settings.folds.count, seed=settings.seed, holdout=settings.folds.holdout)
    if main and not path.is_file():
        write_folds(path, rows, folds)
    wait_for_all()
    return folds


def finish(settings: Settings, data: FoldData, folds: list[int], folder: Path) -> dict:
    """Join the folds, fit the temperature, score, and set the score beside the baselines; all of it in files."""
    from infer.logs import log

    heldout = join([Predictions.read(folder / f"fold{fold}" / HELDOUT) for fold in folds])
    heldout.write(folder / HELDOUT)
    temperature, calibrated = settle_temperature(heldout)
    write_calibration(folder / "calibration.json", temperature, heldout)
    done = [json.loads((folder / f"fold{fold}" / DONE).read_text()) for fold in folds]
    disagreement = np.concatenate([np.load(folder / f"fold{fold}" / DISAGREEMENT) for fold in folds])
    groups = dict(zip(data.rows.ids, data.rows.groups.tolist(), strict=True))
    late = time_left_s() < 0
    if late:
        log.info("the time budget is up: baselines and report are left out. The same command makes them")
    baselines = {} if late else score_baselines(data, folds, seed=settings.seed, folder=folder)
    by_fold = [entry["log_loss"] for entry in done]
    metrics = {
        **score(heldout, groups=groups),
        "swap_disagreement": None if np.isnan(disagreement).any() else float(disagreement.mean()),
        "folds": folds,
        "fold_log_loss": by_fold,
        "fold_log_loss_deviation": float(np.std(by_fold)),
        "temperature": temperature,
        "log_loss_calibrated": calibrated if temperature != 1 else heldout.log_loss(),
        "baselines": baselines,
        "seconds": float(sum(entry["seconds"] for entry in done)),
        "collapsed_folds": [entry["fold"] for entry in done if entry.get("collapsed")],
        "cut_short_folds": [entry["fold"] for entry in done if entry.get("cut_short")],
        "skipped_steps": sum(entry.get("skipped_steps", 0) for entry in done),
    }
    if data.rows.swap is None:
        metrics["decision"] = settle_labels(heldout, temperature, folder)
    write_json(folder / "metrics.json", metrics)
    write_cards(settings, metrics, folds, folder)
    log.info(temperature_line(heldout, temperature, calibrated))
    log.info(baseline_lines(metrics, baselines))
    beside = ", ".join(f"{name} {loss:.4f}" for name, loss in baselines.items())
    log.info(f"held-out log loss {metrics['log_loss']:.4f} ({beside}), recorded in {folder / 'metrics.json'}")
    if settings.report and not late:
        write_page(data, folder)
    return metrics


def temperature_line(heldout: Predictions, temperature: float, calibrated: float) -> str:
    """What the temperature does to rows that it was not fitted on, or why there is none."""
    change = f"log loss {heldout.log_loss():.4f} before, {calibrated:.4f} after (cross-fitted)"
    if len(heldout) < FEWEST_ROWS:
        return f"no temperature: {len(heldout)} held-out rows, and fewer than {FEWEST_ROWS} cannot say how sure to be"
    if temperature == 1:
        return f"no temperature, it would not help: {change}"
    rows = f", no surer than {len(heldout)} rows can show" if temperature < 1 else ""
    return f"temperature {temperature:.3f}{rows}: {change}"


def write_page(data: FoldData, folder: Path) -> None:
    """report.html of the finished folds, with the texts as this run has read them."""
    from infer.logs import log
    from infer.report import write_report
    from infer.report.run_folder import from_run

    texts = None  # arena rows are found by the run's settings
    if data.rows.swap is None:
        shown = ("\n\n".join(row.fields.values()) for row in data.rows.rows)
        texts = dict(zip(data.rows.ids, shown, strict=True))
    log.info(f"{write_report(folder, from_run(folder, texts=texts))}: curves, thresholds and rows to look at")


def settle_labels(heldout: Predictions, temperature: float, folder: Path) -> dict[str, Any]:
    """Fit the decision weights into decision.json; what they are and, across folds, what they gain."""
    from infer.logs import log

    decision = settle_decision(apply_temperature(heldout, temperature))
    write_decision(folder / "decision.json", decision)
    weights = dict(zip(decision.labels, decision.weights.tolist(), strict=True))
    shown = ", ".join(f"{label} {weight:.2f}" for label, weight in weights.items())
    log.info(
        f"macro-F1 {decision.plain:.4f} by the largest probability, {decision.decided:.4f} (cross-fitted) by weighted "
        f"ones: {shown}, in {folder / 'decision.json'}"
    )
    return {"metric": decision.metric, "plain": decision.plain, "decided": decision.decided, "weights": weights}
