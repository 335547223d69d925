"""`python -m infer` for task=text and task=skills: a table in, the same rows with a probability per label out.

    python -m infer +experiment=reviews_soft task.input_csv=my.csv output=out.parquet
    accelerate launch --num_processes 2 -m infer +experiment=reviews_soft ...

Whatever reads the rows (infer.readers.by_method), the columns are the same.

Streams: a chunk of rows is in memory at a time (beside 8 bytes a row of ids, and for labelled rows the columns of the
score). What can be refused is refused before the model is loaded. Knows the order of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from infer.calibration.answers import FEWEST_ROWS
from infer.calibration.calibrator import Calibrator, load_calibrator
from infer.calibration.run import fit_from_output, refuse_foreign_calibrator
from infer.chunked import P, fill_parts, open_parts, probability_columns
from infer.cutoffs import Cutoff, holds_cutoff, read_cutoff
from infer.files import read_json
from infer.identity import input_identity
from infer.logs import log, open_log
from infer.outputs import beside_table, output_of
from infer.parts import Parts, finished
from infer.ranks import from_main, is_main, wait_for_all
from infer.readers.answer_notes import report_answers
from infer.readers.by_method import Reader, asked_fields, identify, reader_kind, rotates
from infer.readers.reasoning_notes import report_reasoning
from infer.table_summary import report, summarise, summary_columns
from infer.text_files import (
    BAD_ROWS_FILE,
    LABELS_FILE,
    beside,
    notes_file,
    table_chunks,
    write_labels,
    write_notes,
)
from infer.text_reading import TextReading
from infer.thresholds import Decision, read_decision
from models.engine_settings import LEARNT_CALIBRATORS
from models.kind_settings import SkillsTask
from models.settings import Settings
from models.tasks.bad_rows import write_bad_rows
from models.tasks.damaged_rows import BadRow
from models.tasks.skills import open_task_rows
from models.tasks.text import RowSource, Survey

if TYPE_CHECKING:
    import pandas as pd

RESERVE_S = 2.0  # of the time budget: to end whole
PAGE_ROWS = 100_000  # of a table that gets a page by itself: ten seconds


def run_texts(settings: Settings, *, watch: Callable[[Reader], Reader] | None = None) -> Path:
    """Read every row of task.input_csv; the path of the table written.

    watch: takes the reader once it is loaded, gives what reads in its place.
    """
    open_log(None, main=is_main())
    source = open_source(settings)
    calibrator = load_calibrator(settings.calibration.use) if settings.calibration.use else None
    decision = read_rule(settings.decision, source.labels) if settings.decision else None
    output, identity = output_of(settings), run_identity(settings, source)
    if settings.calibration.fit:
        refuse_foreign_calibrator(output)
    seen = trained_on(settings)
    if seen and settings.calibration.fit in LEARNT_CALIBRATORS:
        raise ValueError(
            f"calibration.fit={settings.calibration.fit} would learn from the rows that {settings.run_dir} was trained "
            "on, where it is surer than on new ones. Give other labelled rows: the run has its own temperature."
        )
    check_calibrator(calibrator, settings, source.labels, identity)
    if from_main(is_main() and finished(output, identity)):
        log.info(f"{output} is finished already")
        if is_main() and isinstance(settings.task, SkillsTask) and not beside(output, LABELS_FILE).exists():
            _write_labels(settings, source, output, table_chunks(output, source))
    else:
        _read_all(TextReading(settings, source, calibrator, decision, watch), output, identity)
    if is_main():
        if seen:
            log.info(
                f"warning: {settings.run_dir} was trained on these rows, so their score below flatters it; the score "
                f"on rows held out is in {Path(settings.run_dir) / 'metrics.json'}"
            )
        report(output, source.labels)
        if settings.calibration.fit:
            fit_from_output(settings, output, source.labels)
        if settings.report:
            _write_page(output, source)
    wait_for_all()
    return output


def check_calibrator(
    calibrator: Calibrator | None, settings: Settings, labels: Sequence[str], identity: Mapping[str, Any]
) -> None:
    """Refuse, before the model is loaded, a calibrator that was fitted with another one."""
    if calibrator is not None and reader_kind(settings) == "label":
        # the prompt's mark needs the tokenizer: TextReading checks it again, whole
        prompt = {key: value for key, value in calibrator.identity.items() if key == "prompt_sha256"}
        calibrator.check(labels=labels, identity={**identity["model"], **prompt})


def trained_on(settings: Settings) -> bool:
    """Were the rows to be read those that the run's checkpoints learnt from, as far as its config.yaml tells?"""
    import yaml

    config = Path(settings.run_dir) / "config.yaml"
    if reader_kind(settings) not in ("adapter", "fitted", "trained") or not config.is_file():
        return False
    task = yaml.safe_load(config.read_text(encoding="utf-8")).get("task", {})
    learnt = Path(task.get("train_csv") or task.get("input_csv") or "")
    given = Path(settings.text.input_csv)
    same_size = learnt.is_file() and learnt.stat().st_size == given.stat().st_size
    return same_size and learnt.read_bytes() == given.read_bytes()


def _write_page(output: Path, source: RowSource) -> None:
    """The page beside a table, with the rows' texts; a large table gets the command that makes one."""
    from infer.report import write_report
    from infer.report.run_folder import from_table

    record = read_json(Path(f"{output}.json"))
    rows = int(record["rows"])
    if record["not_finite"] == rows:
        log.info("no page: no row has an answer")
        return
    if rows > PAGE_ROWS:
        log.info(f"no page for {rows} rows: python -m infer.report {output} makes one")
        return
    texts = {row.id: "\n\n".join(row.fields.values()) for _, chunk in source.chunks() for row in chunk}
    page = write_report(Path(f"{output}.report.html"), from_table(output, texts=texts))
    log.info(f"{page}: the rows, curves and thresholds to look at")


def read_rule(path: str, labels: Sequence[str]) -> Decision | Cutoff:
    """The decision weights of a run's decision.json, or the cutoff that a report's button saved."""
    return read_cutoff(path, labels) if Path(path).is_file() and holds_cutoff(path) else read_decision(path, labels)


def open_source(settings: Settings) -> RowSource:
    """The rows, once everything that their head can tell has been checked."""
    labels = list(settings.question.labels)
    source = open_task_rows(
        settings.text,
        settings.text.input_csv,
        fields=asked_fields(settings),
        labels=labels,
        written_columns=probability_columns(labels, spread=rotates(settings)),
        chunk_rows=settings.engine.chunk_rows,
        on_bad_row=settings.text.on_bad_row,
    )
    _refuse_told_labels(source)
    fit = settings.calibration.fit
    if fit in ("contextual", "pmi") and reader_kind(settings) not in ("label", "adapter"):
        raise ValueError(
            f"calibration.fit={fit} asks the model about texts without content, and method.name="
            f"{settings.method.name} is no question to a model. Use batch, or with labelled rows temperature."
        )
    return source


def run_identity(settings: Settings, source: RowSource) -> dict[str, Any]:
    """What every part depends on: the settings that say what is computed, the model's files, the input's bytes."""
    for_people = {"spreadsheet": True} if settings.spreadsheet else {}
    return {**reading_identity(settings), "input": input_identity(source.path), **for_people}


def reading_identity(settings: Settings) -> dict[str, Any]:
    """run_identity without the input: what every row's numbers and the bounds of the chunks depend on."""
    identity = {**identify(settings), "engine.chunk_rows": settings.engine.chunk_rows}
    if settings.calibration.use:
        identity["calibrator"] = input_identity(settings.calibration.use)
    if settings.decision:
        identity["decision"] = input_identity(settings.decision)
    return identity


def _read_all(reading: TextReading, output: Path, identity: Mapping[str, Any]) -> None:
    source = reading.source
    others = beside_table(reading.settings, output)
    with open_parts(output, identity, reading.schema(), others=others) as parts:
        survey = _surveyed(reading.settings, source, output)
        count = fill_parts(
            parts,
            source.chunks(),
            lambda _: reading.load(),
            reading.read,
            rows=survey.rows,
            cost=reading.cost,
            reserve_s=RESERVE_S,
        )
        if is_main():
            _finish(reading, parts, count, len(survey.bad_rows))
    wait_for_all()


def _finish(reading: TextReading, parts: Parts, count: int, bad_rows: int) -> None:
    """The files beside the table, its record, and last the table: the record says that all of them are there."""
    source, settings, output = reading.source, reading.settings, parts.output
    extras = parts.extras(count)
    if isinstance(settings.task, SkillsTask):
        _write_labels(settings, source, output, parts.frames(count))
    said: dict[str, Any] = {}
    if "notes" in extras[0]:
        write_notes(beside(output, notes_file(extras[0]["notes"])), [one["notes"] for one in extras])
        notes = [note for one in extras for note in one["notes"]]
        said = report_reasoning(notes) if reader_kind(settings) == "reasoning" else report_answers(notes)
    frames = parts.frames(count, summary_columns(source.labels, labelled=source.label_column is not None))
    figures = summarise(frames, source.labels, [one["strays"] for one in extras])
    of_the_reader = {key: value for key, value in extras[0].items() if key not in ("strays", "notes")}
    left_out = {"bad_rows": bad_rows} if bad_rows else {}
    parts.merge(count, {"labels": list(source.labels), **of_the_reader, **said, **figures, **left_out})


def _write_labels(settings: Settings, source: RowSource, output: Path, frames: Iterable[pd.DataFrame]) -> None:
    path, column = beside(output, LABELS_FILE), settings.text.text_column
    write_labels(path, source, frames, column, spreadsheet=settings.spreadsheet)


def _surveyed(settings: Settings, source: RowSource, output: Path) -> Survey:
    """Every row looked at once, by the main process, before any loads the model; refused where nothing can be fitted"""
    if not is_main():
        wait_for_all()
        return Survey(0, 0, 0, 0)
    survey = source.survey()
    log.info(
        f"{survey.rows} rows from {source.path}"
        + (f", {survey.rows - survey.unlabelled} labelled" if source.label_column else "")
        + (f", {survey.empty} empty" if survey.empty else "")
        + (f"; halves of surrogate pairs mended in {survey.mended}" if survey.mended else "")
    )
    if survey.bad_rows:
        list_bad_rows(beside(output, BAD_ROWS_FILE), survey.bad_rows)
    for reason, count in survey.left_out.items():
        log.info(f"{count} rows left out: {reason}")
    fit = settings.calibration.fit
    usable = survey.rows - survey.unlabelled if fit in LEARNT_CALIBRATORS else survey.rows
    if fit not in (None, "contextual", "pmi") and usable < FEWEST_ROWS:
        kind = "labelled rows" if fit in LEARNT_CALIBRATORS else "rows"
        raise ValueError(
            f"calibration.fit={fit} needs {FEWEST_ROWS} {kind} or more, and {source.path} has {usable}. Give more, or "
            "use contextual or pmi, which need none."
        )
    wait_for_all()
    return survey


def list_bad_rows(listed: Path, bad_rows: Sequence[BadRow]) -> None:
    """Write them down, and say so with the first."""
    first = bad_rows[0]
    write_bad_rows(listed, bad_rows)
    line = "" if first.line is None else f" (line {first.line})"
    log.warning(
        f"warning: {len(bad_rows)} bad rows are left out and listed in {listed}; the first is row "
        f"{first.row}{line}: {first.reason}"
    )


def _refuse_told_labels(source: RowSource) -> None:
    """Refuses a prompt that shows the true label, and kept columns that would be read as a label's probability."""
    told = [name for name, column in source.field_columns.items() if column == source.label_column]
    if told:
        raise ValueError(
            f"question.prompt shows {{{told[0]}}}, which is the column '{source.label_column}' of the true labels. "
            "Take it out, or set task.label_column to another column or null."
        )
    taken = [name for name in source.keep_columns if name.startswith(P)]
    if taken:
        raise ValueError(
            f"task.keep_columns names '{taken[0]}': a column that begins with {P} is a label's probability in the "
            "output. Rename it, or leave it out."
        )
