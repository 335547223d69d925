"""Has a sample of predicted labels judged, by a person or an endpoint, and says how often the labels are right.

    python scripts/judge_sample.py draw labels.csv --out judge                 # 50 predicted Hard, 50 predicted Soft
    # a person: fill the column `verdict` of judge/sample.csv (a label, or unsure), at any pace; then
    python scripts/judge_sample.py report judge
    # or any OpenAI-compatible endpoint; the key stands in the environment, never on the command line or in a file
    python scripts/judge_sample.py ask judge --url http://localhost:8000/v1 --model NAME --key-variable MY_KEY

`ask` ends with the report of its verdicts (judge/endpoint.jsonl) and goes on where it was broken off. The judge does
not see what was predicted (judge/key.json holds it), unless drawn with --show-predicted: then `right` and `wrong` are
verdicts too. Any table with a text and a label per row will do, such as what `python -m infer` writes.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infer.audit.report import judge_report, report_text
from infer.audit.sample import (
    SAMPLE_FILE,
    Sample,
    draw_sample,
    read_labelled_table,
    read_sample,
    usual_counts,
    write_sample,
)
from infer.audit.verdicts import Verdicts, ask_endpoint, meanings_of, read_verdicts, verdict_words
from infer.endpoint.client import Endpoint, EndpointClient, EndpointRefused
from infer.files import write_json

ENDPOINT_FILE = "endpoint.jsonl"
FAILURES_SHOWN = 5


def draw(args: argparse.Namespace) -> int:
    """Draws the sample and writes it for the judge."""
    labels = args.labels.split(",") if args.labels else None
    table = read_labelled_table(args.table, text_column=args.text_column, label_column=args.label_column, labels=labels)
    counts = {name: _count(text) for name, text in args.draw} if args.draw else usual_counts(table.labels)
    sample = draw_sample(table, counts, seed=args.seed, shows_predicted=args.show_predicted)
    written = write_sample(args.out, sample)
    if table.unpredicted:
        print(f"{table.unpredicted} rows of {table.path} have no label and were left out")
    for label, count in counts.items():
        drawn = sum(row.predicted == label for row in sample.rows)
        short = f" (all there are; {count} were wanted)" if drawn < count else ""
        print(f"{label}: {drawn} of {sample.population[label]} rows{short}")
    print(f"{args.out / SAMPLE_FILE}: {'written' if written else 'there already, left as it is'}")
    for label, meaning in meanings_of(sample.labels).items():
        print(f"  {label}: {meaning}")
    words = ", ".join(dict.fromkeys(verdict_words(sample).values()))
    print(f"Next: fill its column verdict ({words}), then: python scripts/judge_sample.py report {args.out}")
    return 0


def ask(args: argparse.Namespace) -> int:
    """Asks an endpoint for every verdict that is missing, then reports."""
    sample = read_sample(args.folder)
    meanings = meanings_of(sample.labels) | dict(args.meaning)
    unknown = sorted(set(meanings) - set(sample.labels))
    if unknown:
        raise ValueError(f"--meaning {unknown[0]}=... is of no label, expected one of {', '.join(sample.labels)}.")
    endpoint = Endpoint(args.url, args.model, args.key_variable, args.timeout_s, args.attempts)
    options = {"temperature": 0, "max_tokens": 200} | {name: _value(text) for name, text in args.option}
    path = args.verdicts or args.folder / ENDPOINT_FILE
    client = EndpointClient(endpoint)
    try:
        verdicts = ask_endpoint(client, sample, path, meanings=meanings, workers=args.workers, **options)
    except EndpointRefused as refusal:
        answered = len(read_verdicts(path, sample).given)
        kept = f"{path} holds {answered} of {len(sample.rows)} verdicts; the same command asks for the others."
        raise ValueError(f"{refusal}\n{kept}") from refusal
    for number, reason in list(verdicts.failed.items())[:FAILURES_SHOWN]:
        print(f"row {number}: {reason}", file=sys.stderr)
    if len(verdicts.failed) > FAILURES_SHOWN:
        print(f"... and {len(verdicts.failed) - FAILURES_SHOWN} more", file=sys.stderr)
    _say(path, sample, verdicts)
    if verdicts.blank:
        print(f"{verdicts.blank} rows have no verdict: run the same command again to ask for them.", file=sys.stderr)
    return 1 if verdicts.blank else 0


def report(args: argparse.Namespace) -> int:
    """Reads the verdicts and says what they mean."""
    sample = read_sample(args.folder)
    path = args.verdicts or args.folder / SAMPLE_FILE
    _say(path, sample, read_verdicts(path, sample))
    return 0


def _say(path: Path, sample: Sample, verdicts: Verdicts) -> None:
    figures = judge_report(sample, verdicts.given)
    text = report_text(figures, sample)
    written = path.with_name(f"{path.name.split('.')[0]}_report.json")
    write_json(written, asdict(figures) | {"verdicts": path.name, "text": text.splitlines()})
    print(text)
    print(written)


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name or not value:
        raise argparse.ArgumentTypeError(f"{text!r}: expected NAME=VALUE")
    return name, value


def _count(text: str) -> int:
    if not text.isdecimal():
        raise ValueError(f"--draw ...={text}: expected a whole number of rows, as in --draw Hard=50 Soft=50.")
    return int(text)


def _value(text: str) -> Any:
    """JSON where it is JSON (0.2, null, true, {...}), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    verbs = parser.add_subparsers(required=True, metavar="draw | ask | report")
    one = verbs.add_parser("draw", help="draw a sample of a table of labels", allow_abbrev=False)
    one.add_argument("table", type=Path, help="CSV, JSON lines or Parquet with a text and a predicted label per row")
    one.add_argument("--out", type=Path, required=True, help="a folder for sample.csv and key.json")
    one.add_argument("--draw", type=_pair, nargs="+", metavar="LABEL=ROWS", help="Hard=50 Soft=50; else 50 per label")
    one.add_argument("--labels", help="all labels a judge may give, with commas; else the table's")
    one.add_argument("--text-column", help="else skill or text")
    one.add_argument("--label-column", help="of the predicted label; else predicted or label")
    one.add_argument("--seed", type=int, default=42)
    one.add_argument(
        "--show-predicted", action="store_true", help="the judge sees the prediction and may say right, wrong"
    )
    one.set_defaults(run=draw)
    one = verbs.add_parser("ask", help="ask an OpenAI-compatible endpoint for the verdicts", allow_abbrev=False)
    one.add_argument("folder", type=Path, help="what draw wrote")
    one.add_argument("--url", required=True, help="such as http://localhost:8000/v1 or https://api.openai.com/v1")
    one.add_argument("--model", required=True, help="its name there")
    one.add_argument("--key-variable", help="the environment variable that holds the key; none for a server without")
    one.add_argument("--verdicts", type=Path, help="where they go; else endpoint.jsonl in the folder")
    one.add_argument("--meaning", type=_pair, nargs="+", default=[], metavar="LABEL=TEXT", help="what a label means")
    one.add_argument(
        "--option", type=_pair, nargs="+", default=[], metavar="NAME=JSON", help="of the request; null: none"
    )
    one.add_argument("--workers", type=int, default=4, help="requests under way at a time")
    one.add_argument("--timeout-s", type=float, default=60.0, help="for one attempt")
    one.add_argument("--attempts", type=int, default=6)
    one.set_defaults(run=ask)
    one = verbs.add_parser("report", help="read the verdicts and say what they mean", allow_abbrev=False)
    one.add_argument("folder", type=Path, help="what draw wrote")
    one.add_argument("--verdicts", type=Path, help="the judge's table; else sample.csv in the folder")
    one.set_defaults(run=report)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 when all is said, 1 with the reason where something is refused or verdicts are missing."""
    args = make_parser().parse_args(argv)
    try:
        return args.run(args)
    except (ValueError, FileNotFoundError) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped. What was answered is kept: the same command goes on.", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
