"""`python -m train +experiment=... explore=true`: what the labelled rows look like, before anything is trained.

Leaves explore.html and its figures as PNGs in the run folder. Knows the order of the work; the figures of two answers
and of texts stand in train.explore_arena and train.explore_texts.
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from infer.logs import open_log
from infer.ranks import is_main
from infer.report.figure_page import FigurePage, write_figure_page
from models.settings import Settings
from models.tasks.arena import read_rows
from train.rows import read_training_rows, tell_rows

PAGE = "explore.html"


def explore(settings: Settings) -> Path | None:
    """Write the page and say what matters most; its path, None in other processes than the main one."""
    main = is_main()
    log = open_log(None, main=main)
    if not main:
        return None
    page = replace(explored(settings), facts=_facts(settings))
    path = Path(settings.out_dir or settings.run_dir) / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures = write_figure_page(path, page)[1:]
    log.info(page.summary)
    for name, value, note in page.tiles:
        log.info(f"  {name:<22} {value:>10}  {note}")
    log.info(f"{path}: {len(page.figures)} figures, {len(page.tables)} tables; {len(pictures)} PNGs beside it")
    return path


def _facts(settings: Settings) -> dict[str, str]:
    source = settings.arena.train_csv if settings.task.name == "arena" else settings.text.labelled_csv
    command = shlex.join(["python", "-m", "train", *sys.argv[1:]])
    return {"task": settings.task.name, "data": source, "date": f"{datetime.now():%Y-%m-%d %H:%M}", "command": command}


def explored(settings: Settings) -> FigurePage:
    """The page of a run's labelled rows. Raises what reading them raises."""
    if settings.task.name == "arena":
        from train.explore_arena import arena_page

        task = settings.arena
        table = read_rows(task.train_csv, labelled=True, on_bad_row=task.on_bad_row, votes_path=task.votes_csv)
        return arena_page(settings.name, task.train_csv, table)
    from train.explore_texts import texts_page

    rows = read_training_rows(settings)
    tell_rows(rows, Path(settings.run_dir), main=True)
    return texts_page(settings.name, settings.text.labelled_csv, rows)
