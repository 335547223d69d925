"""The main figures as PNGs, for papers and issues: the page's own numbers, drawn by matplotlib.

Knows the numbers of figures.py; never a table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infer.report.content import ReportInput
from models.tasks.files import write_atomically

COLOURS = ("#2f6bb3", "#d87f22", "#2e9277", "#a85aa0", "#8b7d3a", "#c2503f", "#6a63bd", "#6b7686")  # those of page.css
SOFT, INK = "#9aa4b2", "#1b2330"
DPI = 150
STYLE: Any = {
    "font.size": 9,
    "axes.edgecolor": SOFT,
    "axes.grid": True,
    "grid.color": "#e3e7ec",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.color": INK,
}


def write_pictures(page: Path, report: ReportInput, numbers: Mapping[str, Any]) -> list[Path]:
    """<page's name>_curves.png, _calibration.png, _confusion.png, _arena.png, _training.png: those that have data."""
    drawers: dict[str, tuple[Any, Callable[[Any, Any], None], tuple[float, float]]] = {
        "curves": (numbers["curves"], _curves, (9, 4.3)),
        "calibration": (numbers["reliability"] and numbers, _calibration, (9, 4)),
        "confusion": (numbers["confusion"] and numbers, _confusion, (4.6, 4)),
        "arena": (numbers["arena"], _arena, (9, 3.6)),
        "training": (numbers["training"], _training, (6.4, 3.8)),
    }
    return [
        picture(page.with_name(f"{page.stem}_{name}.png"), size, draw, content)
        for name, (content, draw, size) in drawers.items()
        if content
    ]


def picture(path: Path, size: tuple[float, float], draw: Callable[[Any, Any], None], content: Any) -> Path:
    """A PNG of what `draw` makes of the content on a matplotlib figure of this size in inches; its path."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure, content)
        with write_atomically(path) as temporary:
            figure.savefig(temporary, dpi=DPI, format="png")
    return path


def _curves(figure: Any, curves: list[dict[str, Any]]) -> None:
    methods = list(dict.fromkeys(curve["method"] for curve in curves))
    if len(methods) > 1:  # one label is enough to compare: the last, which of two is the one asked for
        curves = [curve for curve in curves if curve["label"] == curves[-1]["label"]]
    roc, pr = figure.subplots(1, 2)
    roc.plot([0, 1], [0, 1], ":", color=SOFT, linewidth=1)
    for at, curve in enumerate(curves):
        name, colour = curve["method"] if len(methods) > 1 else curve["label"], COLOURS[at % len(COLOURS)]
        if "point" in curve:  # labels and no more
            roc.plot(*curve["point"], "D", color=colour, label=f"{name} (labels only)")
            if curve["pr_point"][1] is not None:
                pr.plot(*curve["pr_point"], "D", color=colour, label=f"{name} (labels only)")
            continue
        style = "-" if at < len(COLOURS) else "--"
        roc.plot(*curve["roc"], style, color=colour, label=f"{name} ({curve['auc']:.3f})")
        precision = f"{name} ({curve['average_precision']:.3f})"
        pr.plot(*curve["pr"], style, color=colour, drawstyle="steps-pre", label=precision)
        if at == 0 or len(methods) == 1:
            pr.axhline(curve["share"], color=colour if len(methods) == 1 else SOFT, linestyle=":", linewidth=1)
    of = f" of {curves[0]['label']}" if len(methods) > 1 else ""
    roc.set(xlabel="false positive rate", ylabel="true positive rate", title=f"ROC{of} (area)", aspect="equal")
    pr.set(xlabel="recall", ylabel="precision", title=f"Precision and recall{of} (average precision)", ylim=(0, 1.02))
    for axes in (roc, pr):
        axes.legend(loc="lower right" if axes is roc else "best")


def _calibration(figure: Any, numbers: Mapping[str, Any]) -> None:
    left, right = figure.subplots(1, 2)
    left.plot([0, 1], [0, 1], ":", color=SOFT, linewidth=1)
    tables = [one for one in numbers["reliability"] if one["method"] == numbers["reliability"][0]["method"]]
    colours = [COLOURS[0]] if len(tables) == 1 else [SOFT, COLOURS[0]]
    for table, colour in zip(tables, colours, strict=True):
        label = f"{table['name']} (error {table['error']:.3f})"
        x, y = ([one[key] for one in table["bins"]] for key in ("confidence", "accuracy"))
        left.plot(x, y, color=colour, label=label)
        rows = [one["rows"] for one in table["bins"]]
        left.scatter(x, y, color=colour, s=[12 + 120 * count / max(rows) for count in rows])  # the area says how many
    left.set(xlabel="probability of the likeliest label", ylabel="share that is right", title="Reliability")
    left.set(xlim=(0.9 / len(numbers["labels"]), 1.02), ylim=(0, 1.02))
    left.legend(loc="upper left")
    shown = numbers["confidence"]
    width = shown["edges"][1] - shown["edges"][0]
    under = [0] * len(shown["right"])
    for name, colour in (("right", COLOURS[2]), ("wrong", COLOURS[5]), ("unknown", SOFT)):
        if not any(shown[name]):
            continue
        right.bar(shown["edges"][:-1], shown[name], width * 0.94, under, align="edge", color=colour, label=name)
        under = [a + b for a, b in zip(under, shown[name], strict=True)]
    right.set(xlabel="probability of the likeliest label", ylabel="rows", title="Winning probability")
    right.legend()


def _confusion(figure: Any, numbers: Mapping[str, Any]) -> None:
    counts, labels = numbers["confusion"], numbers["labels"]
    shares = [[count / max(1, sum(row)) for count in row] for row in counts]
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1.15)
    axes.grid(False)
    for true, row in enumerate(counts):
        for given, count in enumerate(row):
            dark = shares[true][given] > 0.6
            words = f"{count:,}\n{shares[true][given]:.0%}"
            axes.text(given, true, words, ha="center", va="center", color="white" if dark else INK, fontsize=8)
    axes.set(xlabel="likeliest label", ylabel="true label", title="Confusion")
    axes.set_xticks(range(len(labels)), labels, rotation=30 if len(labels) > 4 else 0)
    axes.set_yticks(range(len(labels)), labels)


def _arena(figure: Any, arena: Mapping[str, Any]) -> None:
    panels = ["winners", *(name for name in ("lengths", "difference") if arena[name])]
    for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        {"winners": _winners, "lengths": _lengths, "difference": _difference}[name](axes, arena[name])


def _winners(axes: Any, winners: Mapping[str, Any]) -> None:
    places = range(len(winners["labels"]))
    if winners["true"]:
        axes.bar([at - 0.2 for at in places], winners["true"], 0.38, color=SOFT, label="true share")
    axes.bar([at + 0.2 for at in places], winners["predicted"], 0.38, color=COLOURS[0], label="mean probability")
    axes.set_xticks(list(places), winners["labels"])
    axes.set(title="Who wins", ylabel="share of rows")
    axes.margins(y=0.25)  # room for the legend
    axes.legend()


def _lengths(axes: Any, lengths: Mapping[str, Any]) -> None:
    for at, side in enumerate("ab"):
        for place, box in enumerate(lengths["boxes"]):
            low, q1, median, q3, high = box[side]
            x, colour = place + 0.38 * at - 0.19, COLOURS[at]
            axes.plot([x, x], [low, high], color=colour, linewidth=1)
            axes.bar(x, q3 - q1, 0.3, q1, color=colour, alpha=0.45, label=f"answer {side}" if place == 0 else None)
            axes.plot([x - 0.15, x + 0.15], [median, median], color=colour, linewidth=2)
    axes.set_xticks(range(len(lengths["boxes"])), [box["winner"] for box in lengths["boxes"]])
    axes.set(title=f"Answer lengths by {lengths['by']}", ylabel="characters")
    axes.margins(y=0.25)
    axes.legend()


def _difference(axes: Any, difference: Mapping[str, Any]) -> None:
    axes.axhline(0, color=SOFT, linewidth=1)
    if difference["true"]:
        axes.plot(difference["ratio"], difference["true"], "o-", color=SOFT, label="true", markersize=4)
    axes.plot(difference["ratio"], difference["predicted"], "o-", color=COLOURS[0], label="predicted", markersize=4)
    axes.set(title="Longer, hence better?", xlabel="log2(length a / length b)", ylabel="P(a wins) - P(b wins)")
    axes.legend()


def _training(figure: Any, training: Mapping[str, Any]) -> None:
    axes = figure.subplots()
    for at, (fold, lines) in enumerate(training.items()):
        colour = COLOURS[at % len(COLOURS)]
        if lines["train"]:
            axes.plot(*zip(*lines["train"], strict=True), color=colour, linewidth=0.8, alpha=0.55)
        if lines["heldout"]:
            axes.plot(*zip(*lines["heldout"], strict=True), "o-", color=colour, label=f"{fold}, held out")
    axes.set(xlabel="step", ylabel="log loss", title="Loss while training")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
