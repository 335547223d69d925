"""A sample of a table's predicted labels for a judge: so many rows of each label, drawn by a seed, in random order.

Knows rows, labels and two files: sample.csv, which the judge sees, and key.json, which holds what was predicted. The
judge is not shown the prediction unless asked for: who sees a label tends to agree with it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from infer.files import UTF8_MARK, csv_bytes, for_spreadsheet, read_json, write_json
from infer.predictions import OTHER_COLUMN
from models.tasks.cells import join_surrogates
from models.tasks.files import write_atomically
from models.tasks.tables import offer_closest, read_head, require_names, stream_table

SAMPLE_FILE, KEY_FILE = "sample.csv", "key.json"
LABEL_COLUMNS = ("predicted", "label")  # the first there: in tables with the true label, `label` is that one
TEXT_COLUMNS = ("skill", "text")
ID_COLUMN = "id"
CHUNK_ROWS = 4096
ROWS_PER_LABEL = 50
USUAL = ("Hard", "Soft")  # where a table has both, these are drawn: Unknown says that nothing was found out


@dataclass(frozen=True)
class LabelledTable:
    """N rows with what was predicted of them, as read from `path`; unpredicted: rows left out, without a label."""

    path: Path
    labels: tuple[str, ...]
    ids: Sequence[str]
    texts: Sequence[str]
    predicted: Sequence[str]
    unpredicted: int = 0


@dataclass(frozen=True)
class DrawnRow:
    """One row for the judge; number: from 1, in the order in which the judge sees them."""

    number: int
    id: str
    text: str
    predicted: str


@dataclass(frozen=True)
class Sample:
    """What was drawn, and from what. population: label -> rows of the table that were predicted as it."""

    table: str
    labels: tuple[str, ...]
    population: Mapping[str, int]
    seed: int
    shows_predicted: bool
    rows: tuple[DrawnRow, ...]

    @property
    def mark(self) -> str:
        """16 hexadecimal digits that change with whatever the judge is shown."""
        shown = [f"{row.number}\t{row.text}" for row in self.rows]
        return hashlib.sha256("\n".join([*self.labels, *shown]).encode()).hexdigest()[:16]


def read_labelled_table(
    path: Path,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    labels: Sequence[str] | None = None,
) -> LabelledTable:
    """The rows of a table of labels or predictions (CSV, JSON lines, Parquet).

    text_column: None takes skill or text. label_column: None takes predicted, else label. labels: None takes those of
    the columns p_<label>, or those that occur. Refuses a label that is not among them, and a row without text.
    """
    columns = [str(name) for name in read_head(path).columns]
    text = text_column or _only_known(path, columns, TEXT_COLUMNS, "the texts", "--text-column")
    label = label_column or _only_known(path, columns, LABEL_COLUMNS, "the predicted labels", "--label-column")
    require_names(path, columns, [text, label])
    named = [name[2:] for name in columns if name.startswith("p_") and name != OTHER_COLUMN]
    known = list(labels or named)
    ids, texts, predicted, unpredicted = [], [], [], 0
    for place, row_id, row_text, found in _rows(path, columns, text, label):
        if not found:
            unpredicted += 1
            continue
        if known and found not in known:
            raise ValueError(
                f"{place}: column '{label}' holds {found!r}{offer_closest(found, known)}, expected one of "
                f"{', '.join(known)}. Name all labels with --labels, or the right column with --label-column."
            )
        if not row_text:
            raise ValueError(f"{place}: column '{text}' is empty, so there is nothing to judge. Take the row out.")
        ids.append(row_id)
        texts.append(row_text)
        predicted.append(found)
    if not predicted:
        raise ValueError(f"{path} has no row with a label in column '{label}', expected one at least.")
    return LabelledTable(path, tuple(known or sorted(set(predicted))), ids, texts, predicted, unpredicted)


def usual_counts(labels: Sequence[str]) -> dict[str, int]:
    """How many rows of which label are drawn where nothing else is said: 50 Hard and 50 Soft, else 50 of each label."""
    return dict.fromkeys(USUAL if set(USUAL) <= set(labels) else labels, ROWS_PER_LABEL)


def draw_sample(
    table: LabelledTable, counts: Mapping[str, int], *, seed: int = 42, shows_predicted: bool = False
) -> Sample:
    """So many rows of each label, or all it has; the same for the same seed, and part of every larger draw's rows."""
    for label, count in counts.items():
        if label not in table.labels or count < 1:
            raise ValueError(
                f"{count} rows of label {label!r}{offer_closest(label, table.labels)} are wanted, expected 1 or more "
                f"of {', '.join(table.labels)}."
            )
    predicted = np.asarray(table.predicted, dtype=object)
    chosen = [
        # A label's own random numbers: its rows do not move when another label's count does.
        np.random.default_rng([seed, zlib.crc32(label.encode())]).permutation(np.flatnonzero(predicted == label))[
            :count
        ]
        for label, count in counts.items()
    ]
    order = np.random.default_rng(seed).permutation(np.concatenate([np.zeros(0, dtype=np.int64), *chosen]))
    rows = [DrawnRow(number, table.ids[at], table.texts[at], table.predicted[at]) for number, at in enumerate(order, 1)]
    if not rows:
        raise ValueError(f"{table.path} has no row predicted as {' or '.join(counts)}. Name other labels with --draw.")
    population = Counter(table.predicted)
    shares = {label: population[label] for label in table.labels}
    return Sample(table.path.name, table.labels, shares, seed, shows_predicted, tuple(rows))


def write_sample(folder: Path, sample: Sample) -> bool:
    """Writes sample.csv and key.json; False where this very sample is there already, with its verdicts kept.

    Refuses a folder that holds another sample: verdicts may have been written into it.
    """
    if (folder / KEY_FILE).exists() and (folder / SAMPLE_FILE).exists():
        if read_sample(folder) == sample:
            return False
        raise ValueError(f"{folder} holds another sample, maybe with verdicts. Give another --out, or delete it.")
    if (folder / SAMPLE_FILE).exists():
        raise ValueError(
            f"{folder / SAMPLE_FILE} is there without its {KEY_FILE}. Give another --out, or move it away."
        )
    frame = pd.DataFrame([asdict(row) for row in sample.rows], dtype=object)
    frame["verdict"] = frame["note"] = ""
    shown = ["number", "text", *(["predicted"] if sample.shows_predicted else []), "verdict", "note"]
    write_json(folder / KEY_FILE, asdict(sample))
    with write_atomically(folder / SAMPLE_FILE) as temporary:
        temporary.write_bytes(UTF8_MARK + csv_bytes(for_spreadsheet(frame[shown])))
    return True


def read_sample(folder: Path) -> Sample:
    """The sample that write_sample wrote."""
    path = folder / KEY_FILE
    if not path.exists():
        raise ValueError(
            f"{path} does not exist. Draw a sample first: scripts/judge_sample.py draw TABLE --out {folder}"
        )
    content = read_json(path)
    try:
        rows = tuple(DrawnRow(**row) for row in content.pop("rows"))
        return Sample(**(content | {"labels": tuple(content["labels"]), "rows": rows}))
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no key of a sample ({error}). Draw the sample again.") from error


def _rows(path: Path, columns: Sequence[str], text: str, label: str) -> Iterator[tuple[str, str, str, str]]:
    """(place, id, text, label) of every row; the id is the row's number where the file has none."""
    wanted = list(dict.fromkeys([*([ID_COLUMN] if ID_COLUMN in columns else []), text, label]))
    for chunk in stream_table(path, CHUNK_ROWS, wanted):
        for at, cells in enumerate(chunk.frame.to_dict("records")):
            found = {name: "" if cell is None else str(cell) for name, cell in cells.items()}
            row_id = found[ID_COLUMN] if ID_COLUMN in columns else str(int(chunk.numbers[at]) + 1)
            yield chunk.place(at), row_id, join_surrogates(found[text]).strip(), found[label].strip()


def _only_known(path: Path, columns: Sequence[str], known: Sequence[str], what: str, option: str) -> str:
    by_lower = {name.casefold(): name for name in reversed(columns)}
    found = next((by_lower[name] for name in known if name in by_lower), None)
    if found is None:
        raise ValueError(
            f"{path} has no column {' or '.join(known)} that would hold {what}. It has: {', '.join(columns)}. "
            f"Name it with {option}."
        )
    return found
