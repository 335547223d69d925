"""`python -m infer.report RUN`: report.html of a finished training run, or of a table that python -m infer wrote.

python -m infer.report runs/arena_quickstart/seed42
python -m infer.report out.parquet --texts my.csv --text-column text
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """0 once the page is written, 2 for what a person has to mend."""
    parser = argparse.ArgumentParser(prog="python -m infer.report", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("run", type=Path, help="a run folder with heldout.csv, or a table with p_<label> columns")
    parser.add_argument("--out", type=Path, help="the page; default: report.html in the folder, or beside the table")
    parser.add_argument("--texts", type=Path, help="the table of the rows' texts; default: as the run's settings say")
    parser.add_argument("--text-column", help="its column of texts; default: as the run's settings say, else text")
    given = parser.parse_args(arguments)
    from infer.outputs import refuse_replaced
    from infer.report import write_report
    from infer.report.run_folder import from_run, from_table

    try:
        if given.out:
            read = {"PATH": given.run / "heldout.csv" if given.run.is_dir() else given.run, "--texts": given.texts}
            refuse_replaced({name: path for name, path in read.items() if path}, given.out)
        if given.run.is_dir():
            content, beside = (
                from_run(given.run, texts=given.texts, text_column=given.text_column),
                given.run / "report.html",
            )
        else:
            content = from_table(given.run, texts=given.texts, text_column=given.text_column)
            beside = given.run.with_name(f"{given.run.name}.report.html")
        path = write_report(given.out or beside, content)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {len(content.predictions)} rows")
    return 0


if __name__ == "__main__":
    sys.exit(main())
