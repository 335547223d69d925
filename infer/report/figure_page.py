"""A page of plain figures and tables, offline like report.html, and the figures as PNGs beside it.

Knows what a figure is drawn from; never where the numbers come from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from infer.report.content import ExtraTable
from infer.report.page import described, embedded, extra_table, fill, part, plotly_packed
from infer.report.pictures import COLOURS, picture
from models.tasks.files import write_atomically

SCRIPTS = ("start.js", "figure_page.js", "finish.js")
BAR_ROOM = 0.8  # of the place of a group of bars or boxes


@dataclass(frozen=True)
class Figure:
    """Named series over one axis.

    key: of its PNG. kind: bars (categories x), lines (numbers x), or boxes (categories x; five quantiles each: 5, 25,
    50, 75 and 95 %). series: name -> a value per x. stacked: bars stand on each other. share: values are shares of 1.
    log: the x axis of lines. rows: how many stand behind each x, shown where one points.
    """

    key: str
    title: str
    note: str
    kind: str
    x: Sequence[Any]
    series: Mapping[str, Sequence[Any]]
    x_title: str = ""
    y_title: str = ""
    stacked: bool = False
    share: bool = False
    log: bool = False
    rows: Sequence[int] | None = None

    def __post_init__(self) -> None:
        for name, values in self.series.items():
            assert len(values) == len(self.x), (self.key, name, len(values), len(self.x))


@dataclass(frozen=True)
class FigurePage:
    """What a page shows, in this order. tiles: (name, value, note). facts: name -> what stands under the title."""

    title: str
    summary: str
    figures: Sequence[Figure]
    tables: Sequence[ExtraTable] = ()
    tiles: Sequence[tuple[str, str, str]] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def write_figure_page(path: Path, page: FigurePage) -> list[Path]:
    """Write the page and each figure as <page's name>_<key>.png; the paths of them all, the page first."""
    with write_atomically(path) as temporary:
        temporary.write_bytes(figure_html(page).encode("utf-8", "replace"))  # half a surrogate pair is no UTF-8
    return [
        path,
        *(picture(path.with_name(f"{path.stem}_{one.key}.png"), (6.4, 4), _draw, one) for one in page.figures),
    ]


def figure_html(page: FigurePage) -> str:
    """The page. Whatever comes from data stands in it escaped, or as JSON that a script reads as text."""
    tiles = "".join(
        f'<div class="tile"><span>{escape(name)}</span><b>{escape(value)}</b><small>{escape(note)}</small></div>'
        for name, value, note in page.tiles
    )
    cards = "".join(
        f'<figure class="card"><figcaption><h3>{escape(one.title)}</h3><p>{escape(one.note)}</p></figcaption>'
        f'<div id="figure-{at}" class="chart"></div></figure>'
        for at, one in enumerate(page.figures)
    )
    values = {
        "title": escape(page.title), "summary": escape(page.summary), "about": described(page.facts), "tiles": tiles,
        "figures": cards, "tables": "".join(map(extra_table, page.tables)), "css": part("page.css"),
        "plotly": plotly_packed(), "data": embedded({"figures": [asdict(one) for one in page.figures]}),
        "script": "\n".join(map(part, SCRIPTS)),
    }  # fmt: skip
    return fill(part("figure_page.html"), values, {"tables": bool(page.tables)})


def _draw(canvas: Any, figure: Figure) -> None:
    axes = canvas.subplots()
    {"bars": _bars, "lines": _lines, "boxes": _boxes}[figure.kind](axes, figure)
    axes.set(title=figure.title, xlabel=figure.x_title, ylabel=figure.y_title)
    axes.set_ylim(bottom=0)
    if figure.share:
        from matplotlib.ticker import PercentFormatter

        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if len(figure.series) > 1:
        axes.set_ylim(top=axes.get_ylim()[1] * 1.18)  # room for the legend
        axes.legend(ncols=2)


def _bars(axes: Any, figure: Figure) -> None:
    places = range(len(figure.x))
    width = BAR_ROOM if figure.stacked else BAR_ROOM / len(figure.series)
    under = [0.0] * len(figure.x)
    for at, (name, values) in enumerate(figure.series.items()):
        moved = 0 if figure.stacked else (at - (len(figure.series) - 1) / 2) * width
        colour = COLOURS[at % len(COLOURS)]
        axes.bar([p + moved for p in places], values, width * 0.94, under, color=colour, label=name)
        if figure.stacked:
            under = [low + value for low, value in zip(under, values, strict=True)]
    _categories(axes, figure)


def _lines(axes: Any, figure: Figure) -> None:
    for at, (name, values) in enumerate(figure.series.items()):
        axes.plot(figure.x, values, "o-", color=COLOURS[at % len(COLOURS)], label=name, markersize=3)
    if figure.log:
        axes.set_xscale("log")


def _boxes(axes: Any, figure: Figure) -> None:
    width = BAR_ROOM / len(figure.series)
    for at, (name, boxes) in enumerate(figure.series.items()):
        colour, moved = COLOURS[at % len(COLOURS)], (at - (len(figure.series) - 1) / 2) * width
        for place, (low, q1, median, q3, high) in enumerate(boxes):
            x = place + moved
            axes.plot([x, x], [low, high], color=colour, linewidth=1)
            axes.bar(x, q3 - q1, width * 0.8, q1, color=colour, alpha=0.45, label=None if place else name)
            axes.plot([x - width * 0.4, x + width * 0.4], [median, median], color=colour, linewidth=2)
    _categories(axes, figure)


def _categories(axes: Any, figure: Figure) -> None:
    many = len(figure.x) > 4 or max(len(str(name)) for name in figure.x) > 12
    axes.set_xticks(
        range(len(figure.x)), map(str, figure.x), rotation=30 if many else 0, ha="right" if many else "center"
    )
