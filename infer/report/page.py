"""report.html: figures, threshold and rows in one file that opens anywhere and asks the network for nothing.

Knows HTML and the parts beside it (page.html, page.css, *.js); the numbers are made in figures.py.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from infer.report.content import ExtraTable, ReportInput
from infer.report.figures import figures
from infer.report.pictures import write_pictures
from models.tasks.files import write_atomically

SCRIPTS = (
    "start.js",
    "charts.js",
    "mass_and_folds.js",
    "arena.js",
    "cutoff.js",
    "cutoff_search.js",
    "rows.js",
    "finish.js",
)
LABELS_BESIDE = 4  # a larger confusion matrix takes the whole width
TILES = (
    ("log_loss", "log loss", "nats, lower is better"),
    ("accuracy", "accuracy", "likeliest label is right"),
    ("auc", "AUC", "one against the rest"),
    ("macro_f1", "macro F1", "mean over labels"),
    ("calibration_error", "calibration error", "of the likeliest label"),
)


def write_report(path: str | Path, report: ReportInput, *, pictures: bool = True) -> Path:
    """Write report.html, and its main figures beside it as report_<figure>.png; the path of the page.

    path: the file, or a folder for report.html in it. Both are replaced whole where they are there.
    """
    path = Path(path)
    path = path / "report.html" if path.is_dir() or not path.suffix else path
    numbers = figures(report)
    with write_atomically(path) as temporary:
        # A text may hold half of a surrogate pair, which no UTF-8 file takes.
        temporary.write_bytes(html(report, numbers).encode("utf-8", "replace"))
    if pictures:
        write_pictures(path, report, numbers)
    return path


def html(report: ReportInput, numbers: Mapping[str, Any]) -> str:
    """The page. Whatever comes from data stands in it escaped, or as JSON that a script reads as text."""
    shown = {
        "curves": numbers["curves"] is not None,
        "calibration": numbers["reliability"] is not None,
        "mass": numbers["mass"] is not None,
        "arena": numbers["arena"] is not None,
        "folds": numbers["folds"] is not None or numbers["training"] is not None,
        "baselines": bool(numbers["score"]) and bool(report.baselines),
        "tables": bool(report.tables),
    }
    score = numbers["score"]
    page = {
        "title": escape(report.title),
        "many": "many" if len(report.predictions.labels) > LABELS_BESIDE else "",
        "summary": summary(report, score),
        "tiles": tiles(score) if score else "",
        "about": about(report),
        "comparison": comparison(report.comparison),
        "tables": "".join(map(extra_table, report.tables)),
        "confusion": matrix(report.predictions.labels, numbers["confusion"]) if numbers["confusion"] else "",
        "per_class": per_class(score["per_class"]) if score else "",
        "decision_use": decision_use(report),
        "css": part("page.css"),
        "plotly": plotly_packed(),
        "data": embedded({**numbers, "baselines": beside_baselines(report, score)}),
        "script": "\n".join(part(name) for name in SCRIPTS),
    }
    return fill(part("page.html"), page, shown)


def decision_use(report: ReportInput) -> str:
    """The command that a saved decision is for: the arena's answer is probabilities, to which none is applied."""
    if report.arena is not None:
        return "python -m infer.cutoffs TABLE --decision decision.yaml"
    return "python -m infer … decision=decision.yaml"


def fill(template: str, values: Mapping[str, str], shown: Mapping[str, bool]) -> str:
    """The template with `{{name}}` filled in, without the parts `<!--if name-->...<!--end name-->` that are not shown.

    Split, not searched anew after each filling: a title of {{data}} is only a title.
    """
    for name, keep in shown.items():
        head, found, rest = template.partition(f"<!--if {name}-->")
        while found:
            inside, _, rest = rest.partition(f"<!--end {name}-->")
            head += inside if keep else ""
            more, found, rest = rest.partition(f"<!--if {name}-->")
            head += more
        template = head
    pieces = template.split("{{")
    filled = [pieces[0]]
    for piece in pieces[1:]:
        name, _, rest = piece.partition("}}")
        filled += [values[name], rest]
    return "".join(filled)


def embedded(content: Any) -> str:
    """JSON that may stand in a script element: no `<` in it, so that no text can end the element."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


@cache
def plotly_packed() -> str:
    """plotly.js, gzipped, in base64: 2 MB of the page in place of 4.8; every browser since 2023 unpacks it."""
    source = files("plotly") / "package_data" / "plotly.min.js"
    return base64.b64encode(gzip.compress(source.read_bytes(), mtime=0)).decode()


@cache
def part(name: str) -> str:
    """The text of a file that stands beside this module."""
    return (files("infer.report") / name).read_text(encoding="utf-8")


def summary(report: ReportInput, score: Mapping[str, Any] | None) -> str:
    """One sentence: rows, labels, and the score beside the best baseline."""
    table = report.predictions
    labels = ", ".join(escape(label) for label in table.labels)
    rows = f"{len(table):,} rows, {len(table.labels)} labels ({labels})"
    if report.unanswered:
        rows += f", {report.unanswered:,} more without an answer"
    if score is None:
        return f"{rows}. No true labels are known, so nothing here is scored."
    loss = score["log_loss"]
    if report.methods:
        ways = f"{len(report.methods) + 1} ways of answering. The figures, threshold and rows below are those of"
        return f"{rows}, {ways} {escape(report.name)}."
    if not report.baselines:
        return f"{rows}. Log loss {loss:.4f}."
    name = min(report.baselines, key=lambda one: report.baselines[one])
    best = report.baselines[name]
    words = f"{1 - loss / best:.1%} below" if loss < best else "not better than"
    return f"{rows}. Log loss {loss:.4f}: {words} the best baseline, {escape(name)} ({best:.4f})."


def tiles(score: Mapping[str, Any]) -> str:
    """The score's figures with their 95 % intervals."""
    parts = []
    for key, name, note in TILES:
        if score.get(key) is None:
            continue
        interval = score.get(f"{key}_interval")
        spread = f"{interval[0]:.4f} to {interval[1]:.4f}" if interval else note
        hint = f' title="{note}; 95 % interval over rows drawn again"' if interval else ""
        parts.append(f'<div class="tile"{hint}><span>{name}</span><b>{score[key]:.4f}</b><small>{spread}</small></div>')
    return "".join(parts)


def about(report: ReportInput) -> str:
    """What the run was: the given facts, then the date."""
    facts = {**report.about}
    facts.setdefault("date", datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"))
    return described(facts)


def described(facts: Mapping[str, str]) -> str:
    """Facts by name, line by line; a command as code."""
    lines = []
    for name, value in facts.items():
        text = escape(str(value))
        shown = f"<code>{text}</code>" if name == "command" else text
        lines.append(f"<div><dt>{escape(name)}</dt><dd>{shown}</dd></div>")
    return "".join(lines)


def extra_table(table: ExtraTable) -> str:
    """A card with a title, a note and a table; nothing for a table without rows."""
    if not table.rows:
        return ""
    head = f"<h3>{escape(table.title)}</h3><p class=note>{escape(table.note)}</p>"
    return f'<div class="card">{head}{comparison(table.rows)}</div>'


def comparison(entries: Sequence[Mapping[str, Any]]) -> str:
    """The table of a comparison, a method a row."""
    if not entries:
        return ""
    columns = list(dict.fromkeys(name for entry in entries for name in entry))
    head = "".join(f"<th>{escape(str(name))}</th>" for name in columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(_shown(entry.get(name)))}</td>" for name in columns) + "</tr>"
        for entry in entries
    )
    return f'<div class="wide"><table class="figures"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _shown(value: Any) -> str:
    if value is None:
        return "\N{EN DASH}"
    if isinstance(value, float):
        return f"{value:.4f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def matrix(labels: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A confusion matrix; a cell is shaded by its share of the true label's rows."""
    head = "".join(f"<th scope=col>{escape(label)}</th>" for label in labels)
    body = ""
    for label, row in zip(labels, counts, strict=True):
        total = max(1, sum(row))
        cells = "".join(
            f'<td style="--share:{count / total:.3f}"><b>{count:,}</b><small>{count / total:.0%}</small></td>'
            for count in row
        )
        body += f"<tr><th scope=row>{escape(label)}</th>{cells}</tr>"
    head = f"<th class=corner>true ↓ predicted →</th>{head}"
    style = f"--columns:{len(labels)}"
    return (
        f'<div class="wide"><table class="matrix" style="{style}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def per_class(figures_of: Mapping[str, Mapping[str, Any]]) -> str:
    """Per label its rows, precision, recall, F1, AUC and average precision."""
    columns = {"count": "rows", "precision": "precision", "recall": "recall", "f1": "F1", "auc": "AUC"}
    columns["average_precision"] = "average precision"
    return comparison(
        [{"label": label, **{columns[key]: row.get(key) for key in columns}} for label, row in figures_of.items()]
    )


def beside_baselines(report: ReportInput, score: Mapping[str, Any] | None) -> list[list[Any]]:
    """[[name, log loss, low or None, high or None, is it the run], ...], best first."""
    if score is None:
        return []
    low, high = score.get("log_loss_interval") or (None, None)
    lines: list[list[Any]] = [[report.name, score["log_loss"], low, high, True]]
    after = report.before_after()[1]
    if after is not None and after is not report.predictions:
        lines.append([f"{report.name}, calibrated", after.log_loss(), None, None, True])
    lines += [[name, loss, None, None, False] for name, loss in report.baselines.items()]
    return sorted(lines, key=lambda line: line[1])
