"""The README's tables from the JSON files that scripts/bench writes: figures, command, hardware, commit.

    python scripts/results_table.py deberta.json batches.json > tables.md
    python scripts/results_table.py deberta.json --columns lengths,rows,tier,step_x,predict_x,peak_x

A file holds `lines`, a list of flat records, beside `bench`, `hardware`, `torch` and `commit`, and where it has one the
`command`; without it the options that were set stand in its place. A column without any figure is left out.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path
from typing import Any

UNSET = ("None", "False", "")


def read_bench(path: Path) -> dict[str, Any]:
    """A benchmark's record. Raises ValueError for a file that is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON ({error}): give what a benchmark wrote with --json.") from None
    missing = [key for key in ("bench", "hardware", "torch", "commit", "lines") if key not in found] if found else []
    if not isinstance(found, dict) or missing or not found["lines"]:
        raise ValueError(f"{path} has no lines of a benchmark ({', '.join(missing) or 'it is empty'} missing).")
    return found


def table(found: dict[str, Any], columns: list[str] | None = None) -> list[str]:
    """GitHub Markdown: what ran where, then a row for each line. Raises ValueError for a column that is not there."""
    lines = found["lines"]
    known = list(dict.fromkeys(key for line in lines for key in line))
    unknown = sorted(set(columns or []) - set(known))
    if unknown:
        raise ValueError(f"--columns {','.join(unknown)}: {found['bench']} has {', '.join(known)}.")
    wanted = [key for key in columns or known if any(line.get(key) is not None for line in lines)]
    rows = [[cell(line.get(key)) for key in wanted] for line in lines]
    head = [key.replace("_", " ") for key in wanted]
    where = f"{found['hardware']}, torch {found['torch']}, commit {found['commit']}."
    return [
        f"`{command(found)}`: {where}", "",
        *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)),
    ]  # fmt: skip


def command(found: dict[str, Any]) -> str:
    if "command" in found:
        return str(found["command"])
    options = {key: value for key, value in found.get("options", {}).items() if str(value) not in UNSET}
    given = [word for key, value in options.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    return shlex.join(["python", f"scripts/bench/{found['bench']}.py", *given])


def cell(value: Any) -> str:
    """A figure to three digits that count; nothing where there is none."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value).replace("|", "\\|")
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1e}" if value and abs(value) < 0.001 else f"{value:.3g}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="what benchmarks wrote with --json")
    parser.add_argument("--columns", help="only these, joined by commas, in this order")
    options = parser.parse_args(arguments)
    try:
        columns = options.columns.split(",") if options.columns else None
        print("\n\n".join("\n".join(table(read_bench(path), columns)) for path in options.files))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
