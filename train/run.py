"""`python -m train`: rows -> folds -> checkpoints -> held-out table -> score.

Every step leaves a file and is skipped where its file is there, so the same command goes on after a kill.
Knows the order of the work; each step stands in its own module.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from infer.calibration import settle_temperature, write_calibration
from infer.files import write_json
from infer.logs import open_log
from infer.metrics import baseline_lines, score
from infer.predictions import Predictions, join
from infer.ranks import is_main, wait_for_all, world_size
from models.precision import device_and_precision
from models.settings import Settings
from models.tasks.arena import ArenaTable, read_rows, write_bad_rows
from models.tasks.groups import prompt_groups
from train.baselines import score_baselines
from train.card import write_cards
from train.fold import FoldData, train_fold
from train.folds import make_folds, read_folds, write_folds
from train.record import open_run, write_environment


def run(settings: Settings) -> dict | None:
    """Train every wanted fold and score those that are done; the metrics, in the main process. Raises ValueError."""
    main = is_main()
    folder = Path(settings.run_dir)
    if main:
        open_run(settings)
    wait_for_all()
    log = open_log(folder / "train.log", main=main)
    device_line = device_and_precision(settings.trainer.precision)[2]
    log.info(f"{settings.name}, seed {settings.seed}, in {folder}: {device_line}, {world_size()} process(es)")
    table = read_training_rows(settings, folder, main)
    folds = settle_folds(settings, folder, table, main)
    data = FoldData(table.rows, folds)
    numbers = sorted(int(fold) for fold in np.unique(folds) if fold >= 0)
    wanted = numbers if settings.folds.only is None else settings.folds.only
    unknown = sorted(set(wanted) - set(numbers))
    if unknown:
        raise ValueError(f"folds.only names {unknown}, but {folder / 'folds.csv'} has the folds {numbers}.")
    waiting = [fold for fold in wanted if not (folder / f"fold{fold}" / "done.json").is_file()]
    if main:
        write_environment(folder, device_line, world_size())
        for fold in set(wanted) - set(waiting):
            log.info(f"fold {fold}: done before, kept")
    if waiting and settings.method.name == "encoder":
        prepare_encoder(settings, data, folder, main)
    for fold in waiting:
        train_fold(settings, data, fold, folder / f"fold{fold}")
    done = [fold for fold in numbers if (folder / f"fold{fold}" / "done.json").is_file()]
    if done != numbers:
        log.info(f"folds {sorted(set(numbers) - set(done))} are not trained yet: the score is that of folds {done}")
    metrics = finish(settings, data, done, folder) if main else None
    wait_for_all()
    return metrics


def read_training_rows(settings: Settings, folder: Path, main: bool) -> ArenaTable:
    """The labelled rows; what was repaired or dropped is said once and, where dropped, listed in bad_rows.csv."""
    from infer.logs import log

    task = settings.arena
    table = read_rows(task.train_csv, labelled=True, on_bad_row=task.on_bad_row, votes_path=task.votes_csv)
    log.info(f"{len(table.rows)} rows from {task.train_csv}")
    if table.repairs.counts:
        log.info(table.repairs.report())
    if table.bad_rows and main:
        write_bad_rows(folder / "bad_rows.csv", table.bad_rows)
        log.info(f"{len(table.bad_rows)} bad rows dropped, listed in {folder / 'bad_rows.csv'}")
    return table


def settle_folds(settings: Settings, folder: Path, table: ArenaTable, main: bool) -> np.ndarray:
    """(N,) the fold of each row: as this run wrote it before, as a given file says, or made now."""
    path = folder / "folds.csv"
    source = path if path.is_file() else settings.folds.file
    wait_for_all()  # nobody writes while another still looks
    if source is not None:
        folds = read_folds(source, table.rows)
        given = settings.folds.file
        if given is not None and not np.array_equal(folds, read_folds(given, table.rows)):
            raise ValueError(f"{path} has other folds than folds.file={given}. Choose a new folder: run_dir=...")
    else:
        folds = make_folds(table.rows, count=settings.folds.count, seed=settings.seed, holdout=settings.folds.holdout)
    if main and not path.is_file():
        write_folds(path, table.rows, folds)
    wait_for_all()
    return folds


def prepare_encoder(settings: Settings, data: FoldData, folder: Path, main: bool) -> None:
    """Tokenise every field once for all folds; compute the pair features where the head reads them."""
    from models.names import resolve_model
    from models.reader import load_tokenizer
    from models.tasks.arena_features import features
    from models.tasks.tokens import cached_fields

    data.tokenizer = load_tokenizer(resolve_model(settings.model.name))
    if main:
        cached_fields(data.rows, data.tokenizer, folder)
    wait_for_all()
    data.fields = cached_fields(data.rows, data.tokenizer, folder)
    if settings.encoder.pair_features:
        data.matrix = features(data.rows)


def finish(settings: Settings, data: FoldData, folds: list[int], folder: Path) -> dict:
    """Join the folds, fit the temperature, score, and set the score beside the baselines; all of it in files."""
    from infer.logs import log

    heldout = join([Predictions.read(folder / f"fold{fold}" / "heldout.csv") for fold in folds])
    heldout.write(folder / "heldout.csv")
    temperature, calibrated = settle_temperature(heldout)
    write_calibration(folder / "calibration.json", temperature, heldout)
    done = [json.loads((folder / f"fold{fold}" / "done.json").read_text()) for fold in folds]
    disagreement = np.concatenate([np.load(folder / f"fold{fold}" / "disagreement.npy") for fold in folds])
    group_of_row = prompt_groups(data.rows)
    groups = {row.id: int(group) for row, group in zip(data.rows, group_of_row, strict=True)}
    baselines = score_baselines(data, folds, seed=settings.seed, folder=folder)
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
    }
    write_json(folder / "metrics.json", metrics)
    write_cards(settings, metrics, folds, folder)
    change = f"log loss {heldout.log_loss():.4f} before, {calibrated:.4f} after (cross-fitted)"
    log.info(
        f"temperature {temperature:.3f}: {change}" if temperature != 1 else f"no temperature, it would harm: {change}"
    )
    log.info(baseline_lines(metrics, baselines))
    beside = ", ".join(f"{name} {loss:.4f}" for name, loss in baselines.items())
    log.info(f"held-out log loss {metrics['log_loss']:.4f} ({beside}), recorded in {folder / 'metrics.json'}")
    return metrics
