"""`python -m infer` for task=text: a table of texts in, the same rows with a probability per label out.

    python -m infer +experiment=reviews_soft task.input_csv=my.csv output=out.parquet
    accelerate launch --num_processes 2 -m infer +experiment=reviews_soft ...

Streams: a chunk of rows is in memory at a time (beside 8 bytes a row of ids, and for labelled rows the columns of the
score). What can be refused is refused before the model is loaded. Knows the order of the work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from infer.answer_calibration import FEWEST_ROWS
from infer.calibrator import Calibrator, load_calibrator
from infer.chunked import P, fill_parts, kept_strays, open_parts, part_schema, probability_columns, probability_frame
from infer.identity import input_identity
from infer.logs import log, open_log
from infer.parts import finished
from infer.ranks import from_main, is_main, wait_for_all
from infer.table_summary import report, summarise, summary_columns
from models.engine_settings import LEARNT_CALIBRATORS, row_fields
from models.settings import FREE_KEYS, Settings, flatten
from models.tasks.text import LABEL_COLUMN, RowSource, Survey, TextRow, open_rows

if TYPE_CHECKING:
    from infer.label_reader import LabelReader


def run_texts(settings: Settings) -> Path:
    """Read every row of task.input_csv; the path of the table written."""
    open_log(None, main=is_main())
    source = open_source(settings)
    calibrator = load_calibrator(settings.calibration.use) if settings.calibration.use else None
    output, identity = Path(str(settings.output)), run_identity(settings, source)
    if calibrator is not None:  # the prompt's mark needs the tokenizer: _Reading checks it again, whole
        prompt = {key: value for key, value in calibrator.identity.items() if key == "prompt_sha256"}
        calibrator.check(labels=source.labels, identity={**identity["model"], **prompt})
    if from_main(is_main() and finished(output, identity)):
        log.info(f"{output} is finished already")
    else:
        _read_all(settings, source, output, identity, calibrator)
    if is_main():
        report(output, source.labels)
        if settings.calibration.fit:
            from infer.calibrator_run import fit_from_output

            fit_from_output(settings, output, source.labels)
    wait_for_all()
    return output


def open_source(settings: Settings) -> RowSource:
    """The rows, once everything that their head can tell has been checked."""
    from models.tasks.tables import read_head

    task = settings.text.with_columns([str(name) for name in read_head(Path(settings.text.input_csv)).columns])
    labels = list(settings.question.labels)
    source = open_rows(
        task.input_csv,
        fields=row_fields(settings.question.prompt or ""),
        text_column=task.text_column,
        id_column=task.id_column,
        label_column=task.label_column,
        keep_columns=task.keep_columns,
        labels=labels,
        written_columns=probability_columns(labels, spread=rotates(settings)),
        chunk_rows=settings.engine.chunk_rows,
    )
    _refuse_told_labels(source)
    return source


def run_identity(settings: Settings, source: RowSource) -> dict[str, Any]:
    """What every part depends on: the settings that say what is computed, the model's files, the input's bytes."""
    identity = {**question_identity(settings), "input": input_identity(source.path)}
    if settings.calibration.use:
        identity["calibrator"] = input_identity(settings.calibration.use)
    return identity


def question_identity(settings: Settings) -> dict[str, Any]:
    """The model's files and every setting of the task, the question and the engine that is not free to change."""
    from models.causal import identify_language_model

    groups = ("task.", "question.", "engine.")
    unimportant = {*FREE_KEYS, "task.input_csv"}  # the input's bytes count, not its place
    kept = {key: value for key, value in flatten(settings).items() if key.startswith(groups) and key not in unimportant}
    model = settings.language_model
    identified = identify_language_model(
        model.name, precision=settings.engine.precision, quantization=model.quantization
    )
    return {**kept, "model": identified}


def load_reader(settings: Settings) -> LabelReader:
    """The model of a run, asked its question; whatever the tokenizer can tell is checked."""
    from infer.label_reader import LabelReader
    from models.causal import load_language_model

    model, engine = settings.language_model, settings.engine
    loaded = load_language_model(model.name, precision=engine.precision, quantization=model.quantization)
    log.info(loaded.line)
    reader = LabelReader(loaded, settings.question, budget_tokens=engine.budget_tokens, max_tokens=engine.max_tokens)
    reader.check()
    return reader


def rotates(settings: Settings) -> bool:
    """Is the question asked in every rotation of its options? Then there is a column `spread`."""
    return settings.question.answers != "text" and settings.question.permutations == "cyclic"


@dataclass(frozen=True)
class _Reading:
    """What is done with a chunk of rows, and with the model before the first."""

    settings: Settings
    source: RowSource
    calibrator: Calibrator | None

    def load(self) -> LabelReader:
        reader = load_reader(self.settings)
        if self.calibrator is not None:
            self.calibrator.check(labels=self.source.labels, identity=reader.identity)
        return reader

    def read(self, reader: LabelReader, number: int, chunk: Sequence[TextRow]) -> tuple[pd.DataFrame, dict[str, Any]]:
        labels = self.source.labels
        reading = reader.read([row.fields for row in chunk], names=[row.place for row in chunk])
        probs = reading.probs()
        if self.calibrator is not None:
            answered = np.isfinite(probs).all(axis=1)
            probs[answered] = self.calibrator.apply(reading.log_probs[answered])
        frame = pd.concat([self._named(chunk), probability_frame(reading, labels, probs)], axis=1)
        first = _of_the_reader(reader) if number == 0 else {}
        return frame, {"strays": kept_strays(reading), **first}

    def schema(self) -> Any:
        strings = ["id", *([LABEL_COLUMN] if self.source.label_column else []), *self.source.keep_columns]
        return part_schema(strings, probability_columns(self.source.labels, spread=rotates(self.settings)))

    def _named(self, chunk: Sequence[TextRow]) -> pd.DataFrame:
        columns: dict[str, Any] = {"id": [row.id for row in chunk]}
        if self.source.label_column:
            columns[LABEL_COLUMN] = [row.label for row in chunk]
        columns |= {column: [row.kept[column] for row in chunk] for column in self.source.keep_columns}
        return pd.DataFrame(columns, dtype=object)


def _read_all(
    settings: Settings, source: RowSource, output: Path, identity: Mapping[str, Any], calibrator: Calibrator | None
) -> None:
    reading = _Reading(settings, source, calibrator)
    with open_parts(output, identity, reading.schema()) as parts:
        survey = _surveyed(settings, source)
        count = fill_parts(parts, source.chunks(), reading.load, reading.read, rows=survey.rows)
        if is_main():
            extras = parts.extras(count)
            frames = parts.frames(count, summary_columns(source.labels, labelled=source.label_column is not None))
            figures = summarise(frames, source.labels, [one["strays"] for one in extras])
            of_the_reader = {key: value for key, value in extras[0].items() if key != "strays"}
            parts.merge(count, {"labels": list(source.labels), **of_the_reader, **figures})
    wait_for_all()


def _surveyed(settings: Settings, source: RowSource) -> Survey:
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


def _of_the_reader(reader: LabelReader) -> dict[str, Any]:
    """What calibrators need to know of the model and the prompt; None for answers that are not finite."""
    asked = {"content_free": reader.read_content_free(), "premise": reader.read_premise()}
    answers = {name: found.tolist() if np.isfinite(found).all() else None for name, found in asked.items()}
    return {"reader": reader.identity, **answers}
