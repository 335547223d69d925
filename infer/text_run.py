"""`python -m infer` for task=text: a table of texts in, the same rows with a probability per label out.

    python -m infer +experiment=reviews_soft task.input_csv=my.csv output=out.parquet
    accelerate launch --num_processes 2 -m infer +experiment=reviews_soft ...

Streams: a chunk of rows is in memory at a time (beside 8 bytes a row of ids, and for labelled rows the columns of the
score). What can be refused is refused before the model is loaded. Knows the order of the work.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from infer.chunked import LOG_P, P, fill_parts, part_schema, probability_columns, probability_frame
from infer.files import read_json
from infer.identity import input_identity
from infer.logs import log, open_log
from infer.metrics import metric_lines, score
from infer.parts import Parts, finished
from infer.predictions import Predictions
from infer.ranks import is_main, wait_for_all
from models.settings import FREE_KEYS, Settings, flatten
from models.tasks.text import LABEL_COLUMN, RowSource, TextRow, open_rows, template_fields

if TYPE_CHECKING:
    from infer.label_reader import LabelReader

LOW_MASS = 0.5  # median mass on the label set below which the numbers say more about the prompt than about the rows
TOKENS_NAMED = 5


def run_texts(settings: Settings) -> Path:
    """Read every row of task.input_csv; the path of the table written."""
    log_to_screen = open_log(None, main=is_main())
    source = open_source(settings)
    survey = source.survey()
    log_to_screen.info(
        f"{survey.rows} rows from {source.path}"
        + (f", {survey.rows - survey.unlabelled} labelled" if source.label_column else "")
        + (f", {survey.empty} empty" if survey.empty else "")
        + (f"; halves of surrogate pairs mended in {survey.mended}" if survey.mended else "")
    )
    output, labels = Path(str(settings.output)), source.labels
    identity = run_identity(settings, source)
    if is_main() and finished(output, identity):
        log.info(f"{output} is finished already")
    else:
        _read_all(settings, source, output, identity, survey.rows)
    wait_for_all()
    if is_main():
        report(output, labels)
        if settings.calibration.fit:
            from infer.calibrator_run import fit_from_output

            fit_from_output(settings, output, labels)
    wait_for_all()
    return output


def open_source(settings: Settings) -> RowSource:
    """The rows, once everything that their head can tell has been checked."""
    from models.tasks.tables import read_head

    task = settings.text.with_columns([str(name) for name in read_head(Path(settings.text.input_csv)).columns])
    question = settings.question
    labels = list(question.labels)
    return open_rows(
        task.input_csv,
        fields=[name for name in template_fields(question.prompt or "") if name != "options"],
        text_column=task.text_column,
        id_column=task.id_column,
        label_column=task.label_column,
        keep_columns=task.keep_columns,
        labels=labels,
        written_columns=probability_columns(labels, spread=_rotates(settings)),
        chunk_rows=settings.engine.chunk_rows,
    )


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


def _read_all(settings: Settings, source: RowSource, output: Path, identity: Mapping[str, Any], rows: int) -> None:
    from infer.calibrator import load_calibrator

    labels = source.labels
    calibrator = load_calibrator(settings.calibration.use) if settings.calibration.use else None
    strings = ["id", *([LABEL_COLUMN] if source.label_column else []), *source.keep_columns]
    schema = part_schema(strings, probability_columns(labels, spread=_rotates(settings)))

    def reader() -> LabelReader:
        found = load_reader(settings)
        if calibrator is not None:
            calibrator.check(labels=labels, identity=found.identity)
        return found

    def read(reader: LabelReader, chunk: Sequence[TextRow]) -> tuple[pd.DataFrame, dict[str, Any]]:
        reading = reader.read([row.fields for row in chunk], names=[row.place for row in chunk])
        finite = np.isfinite(reading.log_probs).all(axis=1)
        probs = reading.probs()
        if calibrator is not None:
            probs[finite] = calibrator.apply(reading.log_probs[finite])
        named: dict[str, Any] = {"id": [row.id for row in chunk]}
        if source.label_column:
            named[LABEL_COLUMN] = [row.label for row in chunk]
        named |= {column: [row.kept[column] for row in chunk] for column in source.keep_columns}
        frame = pd.DataFrame(named, dtype=object)
        extras: dict[str, Any] = {"strays": {text: round(prob, 6) for text, prob in reading.strays.items()}}
        if source_starts_with(chunk):
            extras |= {
                "identity": reader.identity,
                "content_free": reader.read_content_free().tolist(),
                "premise": reader.read_premise().tolist(),
            }
        return pd.concat([frame, probability_frame(reading, labels, probs)], axis=1), extras

    first = next(iter(source.chunks()))[1][0].place

    def source_starts_with(chunk: Sequence[TextRow]) -> bool:
        return chunk[0].place == first

    main = is_main()
    parts = Parts(output, identity, schema) if main else None
    wait_for_all()
    with parts if parts is not None else Parts(output, identity, schema, main=False) as parts:
        count = fill_parts(parts, source.chunks(), reader, read, rows=rows)
        if main:
            extras = parts.extras(count)
            wanted = columns_of_score(labels, labelled=source.label_column is not None)
            record = {
                **{key: value for key, value in extras[0].items() if key != "strays"} | {"labels": list(labels)},
            }
            record["reader"] = record.pop("identity")
            record |= summary(parts.frames(count, wanted), labels, [one["strays"] for one in extras])
            parts.merge(count, record)


def columns_of_score(labels: Sequence[str], *, labelled: bool) -> list[str]:
    """The columns that a summary reads."""
    scored = ["id", LABEL_COLUMN, *(P + label for label in labels)] if labelled else []
    return [*scored, "p_other", "cut_share"]


def summary(
    frames: Iterable[pd.DataFrame], labels: Sequence[str], strays: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    """What is said about a finished table: rows, mass on the labels, what took the rest, cuts, and the score."""
    table = pd.concat(list(frames), ignore_index=True)
    mass = 1 - table["p_other"].to_numpy(dtype=np.float64)
    finite = np.isfinite(mass)
    taken: dict[str, float] = {}
    for part in strays:
        for text, prob in part.items():
            taken[text] = taken.get(text, 0.0) + prob
    heaviest = sorted(taken.items(), key=lambda item: -item[1])[:TOKENS_NAMED]
    result: dict[str, Any] = {
        "rows": len(table),
        "not_finite": int((~finite).sum()),
        "median_label_mass": float(np.median(mass[finite])) if finite.any() else None,
        "strays": [[text, prob / len(table)] for text, prob in heaviest],
        "cut_rows": int((table["cut_share"] > 0).sum()),
    }
    if LABEL_COLUMN in table:
        known = finite & table[LABEL_COLUMN].notna().to_numpy()
        if known.any():
            result["score"] = score(_predictions(table[known], labels))
    return result


def _predictions(table: pd.DataFrame, labels: Sequence[str]) -> Predictions:
    return Predictions(
        ids=table["id"].to_numpy(dtype=object),
        labels=tuple(labels),
        probs=table[[P + label for label in labels]].to_numpy(dtype=np.float32),
        other=table["p_other"].to_numpy(dtype=np.float32),
        truth=table[LABEL_COLUMN].to_numpy(dtype=object),
    )


def report(output: Path, labels: Sequence[str]) -> None:
    """Say what a person should know about a finished table, and where it is."""
    record = read_json(Path(f"{output}.json"))
    if record["not_finite"]:
        log.info(
            f"{record['not_finite']} of {record['rows']} rows have no finite numbers and stand empty in the table. "
            "Use engine.precision=fp32."
        )
    if record["cut_rows"]:
        log.info(f"{record['cut_rows']} texts were too long and lost their middle (column cut_share)")
    mass = record["median_label_mass"]
    if mass is not None:
        log.info(f"median mass on the labels: {mass:.3f}")
        if mass < LOW_MASS:
            named = ", ".join(f"{text!r} {share:.3f}" for text, share in record["strays"])
            log.info(
                "warning: most of the probability is not on the labels, so the prompt does not ask for them as they "
                f"are spelt. The tokens that took it, with their mean share of all rows: {named}"
            )
    if "score" in record:
        log.info(metric_lines(record["score"]))
    log.info(f"{output}: {record['rows']} rows, columns p_{', p_'.join(labels)}, p_other ({output}.json says how)")


def _rotates(settings: Settings) -> bool:
    return settings.question.answers != "text" and settings.question.permutations == "cyclic"


def raw_log_probs(output: Path, labels: Sequence[str]) -> pd.DataFrame:
    """id, label where there is one, and the raw logp_ columns of a finished table, rows without numbers left out."""
    from infer.files import read_frame

    table = read_frame(output, text=("id", LABEL_COLUMN))
    columns = [LOG_P + label for label in labels]
    table[columns] = table[columns].apply(pd.to_numeric, errors="coerce")
    return table.dropna(subset=columns)
