"""report.html of a table of predictions: one file to look at, search and decide with; its figures as PNGs beside it.

    python -m infer.report runs/arena_quickstart/seed42        the report of a finished run
    python -m infer.report out.parquet --texts my.csv          the report of a table that python -m infer wrote

One road: ReportInput (content.py) -> numbers (curves, cutoff_counts, figures, arena, rows) -> page.py and pictures.py.
Knows predictions and what is said about them; never a model.
"""

from infer.report.content import ArenaFacts, ExtraTable, ReportInput
from infer.report.page import write_report

__all__ = ["ArenaFacts", "ExtraTable", "ReportInput", "write_report"]
