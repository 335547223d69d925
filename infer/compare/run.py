"""`python -m infer` with compare.ways: several ways of answering, on the same rows, side by side.

    python -m infer +experiment=reviews_compare
    python -m infer +experiment=reviews_compare task.input_csv=my.csv 'compare.only=[tfidf,few_shot]'

Leaves in out_dir or run_dir: fit.csv, test.csv, ways/NAME/predictions.parquet, calibration.csv, hard_and_soft.csv,
differences.csv and report.html; and the table where `output` says. Knows the order of the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from infer.compare.figures import calibration_rows, cost_of, differ_rows, hard_rows, ordered, p_values, score_way
from infer.compare.report import printed, write_comparison_page
from infer.compare.rows import FIT_FILE, TEST_FILE, CompareRows, draw_rows
from infer.compare.table import WayTable, read_way_table
from infer.compare.ways import Done, Way, run_ways
from infer.files import write_frame
from infer.identity import identity_in, refuse_foreign, write_record
from infer.logs import log, open_log
from infer.outputs import files_written, inputs_of, output_of, refuse_inputs_among
from infer.ranks import world_size
from infer.roads import refuse_ignored
from models.settings import Settings

PAGE, RECORD = "report.html", "compare.json"
OWN_FILES = (FIT_FILE, TEST_FILE, "calibration.csv", "hard_and_soft.csv", "differences.csv", PAGE)
COLUMNS = (
    "way", "method", "accuracy", "accuracy_low", "accuracy_high", "macro_f1", "log_loss", "log_loss_calibrated", "auc",
    "average_precision", "calibration_error", "calibration_error_calibrated", "rows", "unanswered", "rows_per_s",
    "fit_seconds", "peak_mib", "gpu_peak_mib", "labelled_rows", "p_accuracy", "best_accuracy", "p_log_loss",
    "best_log_loss", "trouble",
)  # fmt: skip


def compare(settings: Settings, ways: Sequence[Way]) -> Path:
    """Make every way's table, set them side by side; the path of the comparison's table.

    Raises ValueError before any work for what cannot be compared, and after all of it where a way failed.
    """
    if world_size() > 1:
        raise ValueError(
            f"compare.ways under {world_size()} processes: each way is a process of its own. Start it without launcher."
        )
    refuse_ignored(settings)
    refuse_inputs_among(inputs_of(settings), files_written(settings), "output=... and out_dir=...")
    folder, output = comparison_folder(settings), output_of(settings)
    _claim(folder, output)
    open_log(folder / "compare.log", main=True)
    rows = draw_rows(settings, folder)
    done = run_ways(ways, rows, settings.compare.only)
    tables = {
        one.way.name: read_way_table(one.way.table, rows, hard=one.way.hard) for one in done if one.trouble is None
    }
    failed = {one.way.name: one.trouble for one in done if one.trouble is not None}
    entries = rows_of(done, tables, rows, seed=settings.seed)
    write_frame(pd.DataFrame(entries, columns=list(COLUMNS)), output)
    (folder / PAGE).unlink(missing_ok=True)  # of an earlier table
    tables = {entry["way"]: tables[entry["way"]] for entry in entries if entry["trouble"] is None}  # the best first
    extra = {
        "calibration": calibration_rows(tables),
        "hard_and_soft": hard_rows(tables, seed=settings.seed),
        "differences": differ_rows(tables),
    }
    for name, lines in extra.items():
        write_frame(pd.DataFrame(lines), folder / f"{name}.csv")
    log.info(printed(entries))
    if settings.report and not any(table.answered.any() for table in tables.values()):
        log.info("no page: no way has answered a row")
    elif settings.report:
        page = write_comparison_page(folder / PAGE, settings, rows, tables, entries, extra)
        log.info(f"{page}: the table, curves, thresholds and rows to look at")
    log.info(f"{output}: {len(tables)} ways, {len(rows.ids)} rows")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(done)} ways failed: {'; '.join(f'{name}: {why}' for name, why in failed.items())}. "
            "The same command tries them again, and keeps the others."
        )
    return output


def _claim(folder: Path, output: Path) -> None:
    """The record that this folder, and the table where `output` says, are a comparison's. Refuses what is not."""
    record = folder / RECORD
    made = identity_in(record) or {"outputs": []}
    if not any(folder.glob("ways/*/started.json")):  # of a comparison from before there was a record
        refuse_foreign([folder / name for name in OWN_FILES], [record])
        refuse_foreign([output], [record] if str(output.resolve()) in made["outputs"] else [])
    write_record(record, {"outputs": sorted({*made["outputs"], str(output.resolve())})}, {})


def comparison_folder(settings: Settings) -> Path:
    """Where everything of a comparison stands."""
    return Path(settings.out_dir or settings.run_dir)


def rows_of(done: Sequence[Done], tables: dict[str, WayTable], rows: CompareRows, *, seed: int) -> list[dict[str, Any]]:
    """The comparison's rows, the most accurate way first, those that failed last."""
    ways = {one.way.name: one for one in done}
    scores = {name: score_way(table) for name, table in tables.items()}
    chances = p_values(tables, scores, seed=seed) if scores else {}
    entries: list[dict[str, Any]] = []
    for name in [*ordered(scores), *(name for name in ways if name not in scores)]:
        one = ways[name]
        entry: dict[str, Any] = {"way": name, "method": one.way.settings.method.name, "trouble": one.trouble}
        entry["labelled_rows"] = one.way.labelled_rows(rows.fit_rows)
        if name in scores:
            figures = scores[name]
            low, high = figures["accuracy_interval"]
            entry |= {**figures, "accuracy_low": low, "accuracy_high": high, **cost_of(one.cost), **chances[name]}
        entries.append({column: entry.get(column) for column in COLUMNS})
    return entries
