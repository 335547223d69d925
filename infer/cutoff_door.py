"""`python -m infer.cutoffs TABLE`: the cutoff that a target or prices ask for, kept in a file; and how one does.

python -m infer.cutoffs out.parquet --label positive --precision 0.95 -o decision.yaml --judge others.parquet
python -m infer.cutoffs runs/skills_quickstart/seed42 --accuracy 0.9 -o decision.yaml
python -m infer.cutoffs out.parquet --label positive --false-alarm 1 --miss 5 --person 0.5 -o decision.yaml
python -m infer.cutoffs others.parquet --decision decision.yaml
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from infer.cutoffs import Cutoff
    from infer.predictions import Predictions

TARGETS = ("precision", "recall", "accuracy")
USE, USE_ARENA = "python -m infer ... decision=", "python -m infer.cutoffs TABLE --decision "  # what applies the file


def main(arguments: list[str] | None = None) -> int:
    """0 once the cutoff is found (and written) or judged, 2 for what a person has to mend."""
    given = _parser().parse_args(arguments)
    from infer.cutoffs import holds_cutoff, read_cutoff, write_cutoff
    from infer.outputs import refuse_replaced
    from models.tasks.arena import LABELS

    try:
        _refuse(given)
        if given.out:
            read = {"TABLE": given.table, "--judge": given.judge} if given.table.is_file() else {"--judge": given.judge}
            refuse_replaced({name: path for name, path in read.items() if path}, given.out)
            if given.out.exists() and not holds_cutoff(given.out):
                raise ValueError(f"{given.out} is there already and holds no cutoff. Move it, or give another -o.")
        predictions = read_labelled(given.table)
        cutoff = read_cutoff(given.decision, predictions.labels) if given.decision else _fitted(given, predictions)
        others = read_labelled(given.judge) if given.judge else None
        chosen = "" if given.decision else " (those it was chosen on)"
        lines = [said(cutoff), judged(cutoff, predictions, f"{given.table}{chosen}")]
        if others is not None:
            lines.append(judged(cutoff, others, str(given.judge)))
        if given.out:
            write_cutoff(given.out, cutoff, len(predictions))
            lines.append(f"{given.out}: {USE_ARENA if predictions.labels == LABELS else USE}{given.out}")
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def read_labelled(path: Path) -> Predictions:
    """The answered rows whose label is known, of a table of python -m infer or of a run's folder (calibrated)."""
    from infer.report.content import labelled
    from infer.report.run_folder import from_run, from_table
    from models.tasks.files import read_record

    fitted = path.parent / "calibration.json"
    if path.is_file() and path.name == "heldout.csv" and fitted.is_file() and read_record(fitted)["temperature"] != 1:
        raise ValueError(
            f"{path} holds the numbers before the run's temperature, and infer applies a cutoff to those after. Give "
            f"the folder: {path.parent}"
        )
    content = from_run(path, texts={}) if path.is_dir() else from_table(path, texts={})
    rows = labelled(content.decided())
    if rows is None:
        raise ValueError(f"{path} has no row with a true label (column 'label'), expected some. Give labelled rows.")
    return rows


def said(cutoff: Cutoff) -> str:
    """What the cutoff does with a row, in a line."""
    if cutoff.label is None:
        return f"the likeliest label where its probability is {cutoff.at_least} or more, a person otherwise"
    below = f"the likeliest other label below {cutoff.below}"
    between = ", a person between" if cutoff.below < cutoff.at_least else ""
    return f"{cutoff.label} where its probability is {cutoff.at_least} or more, {below}{between}"


def judged(cutoff: Cutoff, predictions: Predictions, rows: str) -> str:
    """How it does on these rows, in a line; a dash for what is undefined. rows: what they are called."""
    from infer.cutoffs import judge

    found = judge(cutoff, predictions)
    figures = [f"{name} {_number(found[name])}" for name in ("accuracy", "precision", "recall", "f1")]
    sure = "accuracy" if cutoff.label is None else f"precision of {cutoff.label}"
    low = "" if found["low"] is None else f"; {sure} at least {_number(found['low'])} with 95 % confidence"
    return f"{rows}: {found['rows']} rows, {found['answered']:.1%} answered, {', '.join(figures)}{low}"


def _fitted(given: argparse.Namespace, predictions: Predictions) -> Cutoff:
    from infer.cutoff_fits import cheapest, for_accuracy, for_precision, for_recall

    if given.precision is not None:
        return for_precision(predictions, given.label, given.precision, confidence=given.confidence)
    if given.recall is not None:
        return for_recall(predictions, given.label, given.recall, confidence=given.confidence)
    if given.accuracy is not None:
        return for_accuracy(predictions, given.accuracy, confidence=given.confidence)
    return cheapest(predictions, given.label, false_alarm=given.false_alarm, miss=given.miss, person=given.person)


def _refuse(given: argparse.Namespace) -> None:
    """Arguments that ask for nothing, or for two things."""
    prices = given.false_alarm is not None or given.miss is not None or given.person is not None
    asked = [f"--{name}" for name in (*TARGETS, "decision") if getattr(given, name) is not None]
    if len(asked) + prices != 1:
        raise ValueError(
            f"{' and '.join(asked + ['prices'] * prices) or 'Nothing'} asked for, expected one of --precision, "
            "--recall, --accuracy, --false-alarm with --miss, or --decision."
        )
    if prices and (given.false_alarm is None or given.miss is None):
        raise ValueError("Prices are --false-alarm and --miss, and --person where rows may be left to one. Give both.")
    labelled = prices or given.precision is not None or given.recall is not None
    if labelled != (given.label is not None):
        wanted = "a label: --label NAME" if labelled else "no --label"
        raise ValueError(f"{asked[0] if asked else 'Prices'} takes {wanted}.")
    if given.decision is not None and given.out:
        raise ValueError("--decision is there already, expected no --out.")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _parser() -> argparse.ArgumentParser:
    about, _, commands = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="python -m infer.cutoffs", description=about, epilog=commands,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("table", type=Path, help="a table with p_<label> and label columns, or a run's folder")
    parser.add_argument("--label", help="the label that the threshold is for; none with --accuracy")
    parser.add_argument("--precision", type=float, help="of the label, at least: the lowest threshold with it")
    parser.add_argument("--recall", type=float, help="of the label, at least: the highest threshold with it")
    parser.add_argument("--accuracy", type=float, help="of the answered rows, at least; the others are a person's")
    parser.add_argument("--confidence", type=float, default=0.95, help="that it holds, 0.5: as seen; default: 0.95")
    parser.add_argument("--false-alarm", type=float, help="price of a row given the label wrongly")
    parser.add_argument("--miss", type=float, help="price of a row of the label given another")
    parser.add_argument("--person", type=float, help="price of a person's look; default: no row is left to one")
    parser.add_argument("--decision", type=Path, help="a cutoff that is there already, to be judged on the table")
    parser.add_argument("--judge", type=Path, help="another labelled table that the cutoff is judged on")
    parser.add_argument("-o", "--out", type=Path, help="the file to write, as in decision.yaml; default: none")
    return parser
