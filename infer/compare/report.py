"""A comparison as people read it: the table in the log, and the page with curves of every way.

Knows figures and tables; never how they were made.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infer.compare.figures import best_answering, calibrated, most_accurate
from infer.compare.rows import CompareRows
from infer.compare.table import WayTable
from infer.report import ExtraTable, ReportInput, write_report
from models.settings import Settings

DASH = "\N{EN DASH}"
FEWEST_SHOWN = 1e-4  # a smaller p-value is said to be below it
CALIBRATION_NOTE = (
    "As read, and by calibrators that never saw the row they are judged on (five parts). contextual, pmi and batch "
    "need no labels: they take out what the prompt, or the rows' mean, favours, which helps a prompt that leans and "
    "harms one that its examples have balanced. temperature and vector are fitted on labelled rows."
)
HARD_NOTE = (
    "The likeliest label of each row beside one label sampled from its probabilities, as a model asked at temperature "
    "1 answers. Expected: exact, by the probabilities. Drawn: one draw of these rows."
)
COLUMNS_NOTE = (
    "p: McNemar's exact test of the accuracy against the best one's; p loss: paired bootstrap of the log loss; each "
    "pair by itself. cal.: after a temperature fitted on the labels of the other test rows, whatever the column labels "
    "says. open: rows without an answer, wrong in accuracy and macro-F1, left out of the rest: a figure with * is of "
    "the answered rows alone, perhaps the easy ones. rows/s: of reading, loading aside. MiB: of the process, at its "
    "most. labels: labelled rows that it learns from or shows as examples."
)
DIFFER_NOTE = "The share of rows to which two ways give different labels; a row left open differs from any label."


def printed(entries: Sequence[Mapping[str, Any]]) -> str:
    """The comparison as lines of a fixed width, a way each; a failed one says so."""
    rows = [shown(entry) for entry in entries]
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names, *([row.get(name, "") for name in names] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(names))]
    lines = [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]
    failed = [f"{entry['way']} failed: {entry['trouble']}" for entry in entries if entry["trouble"]]
    return "\n".join(
        [*lines, *failed, "p: that the way is as good as the best one in this column; each pair by itself, uncorrected"]
    )


def shown(entry: Mapping[str, Any]) -> dict[str, str]:
    """One way's row as it is printed and shown: what has no meaning is a dash."""
    if entry["trouble"]:
        return {"way": entry["way"]}
    partly = bool(entry["unanswered"])
    interval = f" ({entry['accuracy_low']:.2f} to {entry['accuracy_high']:.2f})"
    return {
        "way": entry["way"],
        "accuracy (95 %)": _figure(entry["accuracy"]) + interval,
        "p": "best" if entry["best_accuracy"] == entry["way"] else _chance(entry["p_accuracy"]),
        "macro-F1": _figure(entry["macro_f1"]),
        "log loss": _figure(entry["log_loss"], partly),
        "p loss": "best" if entry["best_log_loss"] == entry["way"] else _chance(entry["p_log_loss"]),
        "loss, cal.": _figure(entry["log_loss_calibrated"], partly),
        "AUC": _figure(entry["auc"], partly),
        "avg prec": _figure(entry["average_precision"], partly),
        "cal. error": _figure(entry["calibration_error"], partly),
        "error, cal.": _figure(entry["calibration_error_calibrated"], partly),
        "open": str(entry["unanswered"]),
        "rows/s": DASH if entry["rows_per_s"] is None else _rate(entry["rows_per_s"]),
        "fit s": DASH if entry["fit_seconds"] is None else f"{entry['fit_seconds']:.1f}",
        "MiB": DASH if entry["peak_mib"] is None else f"{entry['peak_mib']:.0f}",
        "labels": str(entry["labelled_rows"]),
    }


def write_comparison_page(
    path: Path, settings: Settings, rows: CompareRows, tables: Mapping[str, WayTable],
    entries: Sequence[Mapping[str, Any]], extra: Mapping[str, Sequence[Mapping[str, Any]]],
) -> Path:  # fmt: skip
    """The page of a comparison: thresholds and rows are those of best_answering, or of the most accurate way.

    Curves are of the ways that answer one of its rows or more. Needs a way that has answered a row.
    """
    scores = {entry["way"]: entry for entry in entries if not entry["trouble"] and entry["unanswered"] < entry["rows"]}
    least = best_answering(scores)
    best = least or most_accurate(scores)
    drawn = {drawn_name(name, tables[name]): tables[name] for name in tables
             if (tables[name].answered & tables[best].answered).any()}  # fmt: skip
    tempered = {name: calibrated(table, "temperature") for name, table in drawn.items()}
    own = drawn_name(best, tables[best])
    failed = [{"way": entry["way"], "failed": entry["trouble"]} for entry in entries if entry["trouble"]]
    report = ReportInput(
        title=settings.name,
        predictions=tables[best].predictions(),
        name=own,
        methods={name: table.predictions() for name, table in drawn.items() if name != own},
        calibrated_methods={name: table for name, table in tempered.items() if table is not None},
        comparison=[shown(entry) for entry in entries if not entry["trouble"]],
        tables=[
            *([ExtraTable("These ways failed", "Their error; log.txt in their folder has all they said.", failed)]
              if failed else []),
            ExtraTable("Log loss by calibration", CALIBRATION_NOTE, beside(extra["calibration"], "log loss")),
            ExtraTable("Accuracy by calibration", "The same calibrators.", beside(extra["calibration"], "accuracy")),
            ExtraTable("Hard against soft", HARD_NOTE, extra["hard_and_soft"]),
            ExtraTable("Where they differ", DIFFER_NOTE, extra["differences"]),
        ],
        texts=rows.texts,
        strays=[(text, share) for text, share in tables[best].record.get("strays", [])],
        unanswered=int((~tables[best].answered).sum()),
        about={
            "task": settings.task.name,
            "data": settings.text.input_csv,
            "rows": f"{rows.fit_rows} to learn from, {len(rows.ids)} to be judged by, no text in both",
            "columns": COLUMNS_NOTE,
            "shown": f"{best}, {chosen_for(least, scores[best])}",
            "seed": str(settings.seed),
            "command": "python -m infer " + shlex.join(sys.argv[1:]),
        },
    )  # fmt: skip
    return write_report(path, report)


def drawn_name(name: str, table: WayTable) -> str:
    """The way's name beside its curves, which are of the rows that it has answered."""
    answered = int(table.answered.sum())
    return name if answered == len(table.ids) else f"{name} ({answered} of {len(table.ids)} rows)"


def chosen_for(least: str | None, entry: Mapping[str, Any]) -> str:
    """Why the page shows this way, in words."""
    if least is None:
        return "the most accurate way: none gives probabilities"
    if not entry["unanswered"]:
        return "the way of least log loss that answers every row"
    return f"of the ways that leave fewest rows open ({entry['unanswered']}) the one of least log loss"


def beside(lines: Sequence[Mapping[str, Any]], figure: str) -> list[dict[str, Any]]:
    """Calibration's lines as one row for each way, a column for each calibrator."""
    columns = list(dict.fromkeys(line["calibration"] for line in lines))
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        row = found.setdefault(line["way"], {"way": line["way"], **dict.fromkeys(columns)})
        row[line["calibration"]] = line[figure]
    return list(found.values())


def _figure(value: float | None, partly: bool = False) -> str:
    """partly: it is of some of the rows."""
    if value is None or np.isnan(value):
        return DASH
    return ("∞" if np.isinf(value) else f"{value:.3f}") + ("*" if partly else "")


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 10 else f"{value:.1f}"


def _chance(value: float | None) -> str:
    if value is None:
        return DASH
    return f"<{FEWEST_SHOWN:.4f}" if value < FEWEST_SHOWN else f"{value:.2g}" if value < 0.01 else f"{value:.3f}"
