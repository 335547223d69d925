"""A ReportInput from what a finished run left on disk: a training run's folder, or a table with its record beside it.

Knows the files' names and keys; never a model. A file that is not there leaves its figures out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from infer.calibration.methods import log_shares
from infer.calibration.temperature import crossfit_temperature
from infer.chunked import LOG_P, P
from infer.files import read_frame, read_json
from infer.predictions import OTHER_COLUMN, Predictions
from infer.report.content import ArenaFacts, ReportInput
from models.kind_settings import AUTO
from models.method_settings import ASKED_METHODS, EMBEDDING_METHODS, NETWORK_METHODS
from models.tasks.tables import stream_table, table_columns

ARENA_TEXTS = {"prompt": "prompt", "response_a": "answer a", "response_b": "answer b"}
CHUNK_ROWS = 4096
Texts = str | Mapping[str, str]


def from_run(
    folder: str | Path, *, texts: str | Path | Mapping[str, str] | None = None, text_column: str | None = None
) -> ReportInput:
    """The report of a training run: its held-out table, scored and set beside its baselines.

    texts: the table of labelled rows, or id -> text; None looks where the run's own settings say. text_column: of that
    table; None: as the run's settings have it. Refuses a folder without the held-out table.
    """
    folder = Path(folder)
    if not (folder / "heldout.csv").is_file():
        raise ValueError(f"{folder} has no heldout.csv, so it is no finished run. Give the folder that holds it.")
    heldout = Predictions.read(folder / "heldout.csv")
    metrics = _json(folder / "metrics.json")
    config = _yaml(folder / "config.yaml")
    environment = _json(folder / "environment.json")
    task = config.get("task", {})
    elsewhere = texts if isinstance(texts, str | Path) else None
    source = Path(elsewhere or task.get("train_csv") or task.get("input_csv") or "")
    done = {path.parent.name: read_json(path) for path in sorted(folder.glob("fold*/done.json"))}
    arena: ArenaFacts | None = None
    row_texts: Mapping[str, Texts] = {}
    if task.get("name", "arena") == "arena":
        arena, row_texts = arena_facts(source, heldout, folder)
    elif isinstance(texts, Mapping):
        row_texts = texts
    elif source.is_file():
        column = text_column or task.get("text_column", "text")
        row_texts = column_texts(source, heldout.ids, column, task.get("id_column", AUTO))
    temperature = metrics.get("temperature", 1)
    return ReportInput(
        title=str(config.get("name") or folder.name),
        predictions=heldout,
        calibrated=crossfit_temperature(heldout) if temperature != 1 else None,
        name=str(config.get("name") or "this run"),
        score=metrics or None,
        baselines=metrics.get("baselines", {}),
        texts=row_texts,
        about={
            "task": str(task.get("name", "")),
            **_network(config),
            "method": str(config.get("method", {}).get("name", "")),
            "data": str(source),
            "folds": f"{len(done)}, seed {config.get('seed')}",
            "device": str(environment.get("device", "")),
            "date": _date(folder / "metrics.json"),
            "command": str(environment.get("command", "")),
        },
        training_log={_fold_words(name): entry.get("log", []) for name, entry in done.items()},
        arena=arena,
    )


def from_table(
    path: str | Path, *, texts: str | Path | Mapping[str, str] | None = None, text_column: str | None = None
) -> ReportInput:
    """The report of a table that `python -m infer` wrote; rows without an answer are counted and left out.

    Where logp_ columns show that the probabilities are calibrated ones, the raw ones stand beside them. texts: the
    table that was read, or id -> text; None takes the column `text_column` of this one, where it was kept. text_column:
    None: as the run had it.
    """
    path = Path(path)
    frame = read_frame(path, text=("id", "label", "predicted"))
    record = _json(Path(f"{path}.json"))
    named = [str(name) for name in frame.columns if str(name).startswith(P) and name != OTHER_COLUMN]
    if "id" not in frame or len(named) < 2:
        raise ValueError(f"{path} has columns {list(frame.columns)}, expected id and one p_<label> per label.")
    probs = frame[named].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    answered = np.isfinite(probs).all(axis=1)
    if not answered.any():
        raise ValueError(f"{path} has no row with an answer, so there is nothing to show. Ask again, or another way.")
    kept = frame[answered].drop(columns="fold", errors="ignore")  # a column of the user's own, carried over
    predictions = Predictions.from_frame(kept, [name.removeprefix(P) for name in named])
    settings = record.get("identity", {})
    text_column = text_column or str(settings.get("task.text_column", "text"))
    row_texts: Mapping[str, str]
    if isinstance(texts, Mapping):
        row_texts = texts
    elif texts is not None:
        row_texts = column_texts(Path(texts), predictions.ids, text_column, settings.get("task.id_column", AUTO))
    else:
        kept = frame.loc[answered, text_column] if text_column in frame else []
        row_texts = {row_id: str(text) for row_id, text in zip(predictions.ids, kept, strict=False)}
    model = settings.get("model", {})
    return ReportInput(
        title=path.name,
        predictions=predictions,
        raw=_raw(frame[answered], named, predictions),
        unanswered=int((~answered).sum()),
        score=record.get("score"),
        strays=[(text, share) for text, share in record.get("strays", [])],
        texts=row_texts,
        about={
            "task": str(settings.get("task.name", "text")),
            "model": str(model.get("name") or model.get("path") or ""),
            "question": str(settings.get("question.prompt", "")),
            "date": _date(path),
        },
    )


def arena_facts(source: Path, table: Predictions, folder: Path) -> tuple[ArenaFacts, Mapping[str, Texts]]:
    """(lengths and disagreement by id, texts by id) of a run's arena rows; empty where the data is not there now."""
    from models.tasks.arena import read_rows

    disagreement: dict[str, float] = {}
    for fold in sorted(folder.glob("fold*")):
        if (fold / "disagreement.npy").is_file() and (fold / "heldout.csv").is_file():
            ids = read_frame(fold / "heldout.csv", text=("id",))["id"].astype(str)
            disagreement |= dict(zip(ids, np.load(fold / "disagreement.npy").tolist(), strict=True))
    if not source.is_file():
        return ArenaFacts(disagreement=disagreement), {}
    wanted = set(table.ids)
    rows = [row for row in read_rows(source, labelled=True, on_bad_row="skip").rows if row.id in wanted]
    lengths = {row.id: (len("".join(row.response_a)), len("".join(row.response_b))) for row in rows}
    texts = {row.id: {name: "\n\n".join(getattr(row, key)) for key, name in ARENA_TEXTS.items()} for row in rows}
    return ArenaFacts(lengths, disagreement), texts


def column_texts(source: Path, ids: np.ndarray, text_column: str, id_column: str | None) -> dict[str, str]:
    """id -> text of a table's rows, whatever kind of file the task can read.

    id_column as the text task has it: auto is `id` where there is one, None no column; rows are numbered from 0 then.
    Refuses columns that are not there, and ids of which the table has none.
    """
    columns = table_columns(source)
    if id_column == AUTO:
        id_column = "id" if "id" in columns else None
    for name in (text_column, id_column):
        if name is not None and name not in columns:
            raise ValueError(f"{source} has columns {list(columns)}, not '{name}'. Name it: --text-column.")
    wanted, found = set(ids), dict[str, str]()
    for table in stream_table(
        source, CHUNK_ROWS, list(dict.fromkeys(filter(None, (text_column, id_column)))), mark_damage=True
    ):
        texts = table.frame[text_column].tolist()
        names = table.numbers.tolist() if id_column is None else table.frame[id_column].tolist()
        pairs = ((str(name), text) for name, text in zip(names, texts, strict=True))
        found |= {name: str(text or "") for name, text in pairs if name in wanted}
    if not found:
        raise ValueError(
            f"{source} has none of the ids, the first of which is {ids[0]!r}. Give the table of these rows."
        )
    return found


def _raw(frame: pd.DataFrame, named: list[str], predictions: Predictions) -> Predictions | None:
    """The table of the raw log-probabilities, None where it is the table itself."""
    columns = [LOG_P + name.removeprefix(P) for name in named]
    if not set(columns) <= set(map(str, frame.columns)):
        return None
    log_probs = frame[columns].apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    probs = np.exp(log_shares(log_probs))
    if np.abs(probs - predictions.probs64()).max() < 1e-3:
        return None
    return replace(predictions, probs=probs)


def _network(config: Mapping[str, Any]) -> dict[str, str]:
    """The network that the run's method reads with; none where it has none, whatever the settings name."""
    method = config.get("method", {}).get("name")
    group = "embedding" if method in EMBEDDING_METHODS else "model"
    if method not in (*NETWORK_METHODS, *ASKED_METHODS, *EMBEDDING_METHODS):
        return {}
    return {"model": str(config.get(group, {}).get("name", ""))}


def _fold_words(name: str) -> str:
    return f"fold {name.removeprefix('fold')}"


def _date(path: Path) -> str:
    if not path.is_file():
        return ""
    return datetime.fromtimestamp(path.stat().st_mtime).astimezone().strftime("%Y-%m-%d %H:%M %Z")


def _json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _yaml(path: Path) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
