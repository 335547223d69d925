"""Files and replies that are broken in any way: read right, or refused by an error of ours that names the file.

Each reader is given whole content that was then cut, patched and mixed with what breaks parsers. A few examples here,
twenty thousand and more under -m nightly.
"""

from __future__ import annotations

import gzip
import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infer.calibration.calibrator import load_calibrator
from infer.calibration.temperature import read_calibration
from infer.cutoffs import read_cutoff
from infer.endpoint.completions import Completion, read_completion
from infer.fitted_files import read_settings
from infer.predictions import Predictions
from infer.thresholds import read_decision
from models.checkpoint import read_identity
from models.engine_settings import QuestionSettings
from models.tasks.arena import read_rows
from models.tasks.cells import read_turns
from models.tasks.text import open_rows

FEW, MANY = 40, 1500  # examples of each of 16 readers: 640 and 24,000
LABELS = ("positive", "negative")
# Bytes that parsers stumble over: quotes, line ends, NUL, half a character, a byte order mark, deep brackets, YAML's
# tags and anchors, numbers that are none.
SNIPPETS = [
    b'"', b"'", b"\n", b"\r", b"\r\n", b"\0", b"\xff", b"\xc3", b"\xef\xbb\xbf", b"\xed\xa0\xbd", b",", b";", b"\t",
    b"[" * 3000, b"{" * 3000, b"{'a':" * 500, b"&a [*a]", b"!!python/object/apply:os.system [exit]", b"NaN",
    b"-Infinity", b"1e999", b"9" * 400, b"null", b"true", b"\xe2\x80\xae", b"=1+1", b"</script>", b"{{", b"}}", b"- ",
    b": ", b"#", b"%",
]  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6)
    | st.sampled_from([10**400, -(10**400), "", "NaN", "1e999", "__class__", "../../x"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@st.composite
def broken(draw: st.DrawFn, whole: bytes) -> bytes:
    """The content with one to three stretches cut out, replaced or filled in."""
    content = whole
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + draw(st.sampled_from([0, 1, 8, 10_000])))))
        between = draw(st.sampled_from(SNIPPETS) | st.binary(max_size=5) | st.just(b""))
        content = content[:start] + between + content[end:]
    return content


@st.composite
def mangled(draw: st.DrawFn, whole: Any) -> Any:
    """The JSON value with a few of its parts in another type or size, doubled, or gone."""
    changed = json.loads(json.dumps(whole))
    for _ in range(draw(st.integers(1, 3))):
        place = changed
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(list(place) if isinstance(place, dict) else list(range(len(place)))))
            if not isinstance(place[key], dict | list) or not place[key] or draw(st.booleans()):
                kind = draw(st.sampled_from(["other", "gone", "more"]))
                if kind == "gone":
                    del place[key]
                elif kind == "more" and isinstance(place, list):
                    place.append(draw(VALUES))
                else:
                    place[key] = draw(VALUES)
                break
            place = place[key]
    return draw(VALUES) if draw(st.integers(0, 20)) == 0 else changed


def as_json(value: Any) -> bytes:
    return json.dumps(value).encode("utf-8", "surrogatepass")


def as_yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "surrogatepass")


CUTOFF = {"rule": "cutoff", "labels": list(LABELS), "label": "positive", "at_least": 0.7, "below": 0.4, "rows": 90}
DECISION = {"format": 1, "labels": list(LABELS), "weights": [1.0, 0.5], "metric": "macro_f1", "rows": 9, "plain": 0.1,
            "decided": 0.2}  # fmt: skip
CALIBRATOR = {"format": 1, "method": "temperature", "labels": list(LABELS), "identity": {"name": "m"}, "rows": 90,
              "parameters": {"weight": [0.5, 0.5], "bias": [0.0, 0.0]}, "log_loss_before": 1.0,
              "log_loss_after": 0.9}  # fmt: skip
IDENTITY = {"format": 1, "task": "text", "method": "tfidf", "labels": list(LABELS)}
TOKEN = {
    "token": "a",
    "logprob": -0.5,
    "top_logprobs": [{"token": "a", "logprob": -0.5}, {"token": "b", "logprob": -2}],
}
REPLY = {"id": "1", "model": "m", "choices": [{"index": 0, "finish_reason": "stop", "logprobs": {"content": [TOKEN]},
         "message": {"role": "assistant", "content": "hi"}}]}  # fmt: skip
TEMPERATURE = {"method": "temperature", "temperature": 1.5, "labels": list(LABELS)}
FITTED = {"kind": "tfidf", "settings": {}, "parts": ["a", "b"]}
ARENA = (
    b"id,prompt,response_a,response_b,winner_model_a,winner_model_b,winner_tie\n"
    b'1,"[""Hi"", null]","[""A \\u00e9"", ""B""]","[""C"", ""D, E""]",1,0,0\n2,"[""Q""]","[""X""]","[""Y""]",0,0,1\n'
)
TEXTS = b'id,text,label\n1,"good, fine",positive\n2,bad,negative\n3,"two\nlines",\n'
LINES = b'{"id": "1", "text": "good", "label": "positive"}\n{"id": "2", "text": "bad", "label": null}\n'
TABLE = b"id,fold,label,p_positive,p_negative,p_other\na,0,positive,0.75,0.25,0.1\nb,1,,0.5,0.5,0\n"


def packed(name: str) -> bytes:
    """TEXTS, as a file of this name holds it."""
    if name.endswith(".gz"):
        return gzip.compress(TEXTS, mtime=0)
    stream = io.BytesIO()
    if name.endswith(".zip"):
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr(zipfile.ZipInfo("in.csv"), TEXTS)
    else:
        pd.read_csv(io.BytesIO(TEXTS), dtype=str).to_parquet(stream)
    return stream.getvalue()


def read_texts(path: Path) -> None:
    source = open_rows(
        path, fields=["text"], text_column="text", id_column="id", label_column="label", labels=LABELS, chunk_rows=2
    )
    rows = [row for _, chunk in source.chunks() for row in chunk]
    assert rows and all(row.label in (*LABELS, None) and isinstance(row.fields["text"], str) for row in rows)
    assert len({row.id for row in rows}) == len(rows)


def read_arena(path: Path) -> None:
    for row in read_rows(path, labelled=True).rows:
        assert sum(row.target) == pytest.approx(1) and row.prompt and row.response_a and row.response_b


def read_predictions(path: Path) -> None:
    table = Predictions.read(path)
    assert table.probs.min(initial=0) >= 0 and len(set(table.ids)) == len(table)


def read_json_checkpoint(path: Path) -> None:
    assert isinstance(read_identity(path.parent, task="text", labels=LABELS), dict)


def read_fitted(path: Path) -> None:
    content = read_settings(path.parent)
    assert isinstance(content["kind"], str) and all("/" not in name for name in content["parts"])


# name -> (the file's name, its content, what reads it)
FILES: dict[str, tuple[str, st.SearchStrategy[bytes], Callable[[Path], Any]]] = {
    "arena rows": ("train.csv", broken(ARENA), read_arena),
    "texts": ("in.csv", broken(TEXTS), read_texts),
    "JSON lines": ("in.jsonl", broken(LINES), read_texts),
    "gzip": ("in.csv.gz", broken(packed("in.csv.gz")), read_texts),
    "zip": ("in.zip", broken(packed("in.zip")), read_texts),
    "Parquet": ("in.parquet", broken(packed("in.parquet")), read_texts),
    "predictions": ("table.csv", broken(TABLE), read_predictions),
    "cutoff": ("cutoff.yaml", broken(as_yaml(CUTOFF)) | mangled(CUTOFF).map(as_yaml), lambda p: read_cutoff(p, LABELS)),
    "decision": ("decision.json", broken(as_json(DECISION)) | mangled(DECISION).map(as_json),
                 lambda path: read_decision(path, LABELS)),
    "calibrator": ("calibrator.json", broken(as_json(CALIBRATOR)) | mangled(CALIBRATOR).map(as_json), load_calibrator),
    "temperature": ("calibration.json", broken(as_json(TEMPERATURE)) | mangled(TEMPERATURE).map(as_json),
                    lambda path: read_calibration(path, LABELS)),
    "checkpoint": ("tiebreak.json", broken(as_json(IDENTITY)) | mangled(IDENTITY).map(as_json), read_json_checkpoint),
    "classifier": ("settings.json", mangled(FITTED).map(as_json) | broken(as_json(FITTED)), read_fitted),
}  # fmt: skip


def fuzz_file(name: str, examples: int) -> None:
    """Raises for a content whose reader does anything but read it or refuse it, naming the file."""
    file, content, read = FILES[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / file

        @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(content)
        def check(found: bytes) -> None:
            path.write_bytes(found)
            try:
                read(path)
            except (ValueError, FileNotFoundError) as error:
                assert str(path.parent) in str(error), f"names no file: {error!r}"
                assert len(str(error)) < 20_000, "an error as long as the file"

        check()


def fuzz_values(strategy: st.SearchStrategy[Any], read: Callable[[Any], None], examples: int) -> None:
    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def check(found: Any) -> None:
        read(found)

    check()


def read_reply(body: str) -> None:
    try:
        found = read_completion(body)
    except ValueError:
        return  # asked again, then a failed row
    assert isinstance(found, Completion) and isinstance(found.text, str)
    assert all(one.log_prob == one.log_prob for one in found.tokens)


def read_cell(cell: Any) -> None:
    try:
        turns, kinds = read_turns(cell)
    except ValueError:
        return  # the row's place and column are its caller's to name: see "arena rows"
    assert all(isinstance(turn, str) for turn in turns) and all(isinstance(kind, str) for kind in kinds)
    "".join(turns).encode()  # no half of a surrogate pair is left


def read_question(given_values: Any) -> None:
    labels, examples = given_values
    try:
        question = QuestionSettings(
            prompt="Review: {text}\nSentiment:", system=None, examples=examples, labels=labels, answers="text",
            permutations="cyclic", answers_end="none", chat="auto",
        )  # fmt: skip
    except ValueError as error:
        assert "question." in str(error), error
        return
    if question.labels is not None:
        assert all(
            isinstance(label, str) and all(map(str.strip, answers)) for label, answers in question.labels.items()
        )


REPLIES = (broken(as_json(REPLY)) | mangled(REPLY).map(as_json)).map(lambda body: body.decode("utf-8", "replace"))
CELLS = broken(b'["Hi \\u00e9", null, "a"]').map(lambda cell: cell.decode("utf-8", "surrogateescape")) | VALUES.filter(
    lambda value: value is None or isinstance(value, str | list)
)
QUESTIONS = st.tuples(
    mangled({"positive": [" positive", " good"], "negative": " negative"}) | VALUES,
    st.just([]) | mangled([{"text": "dull", "label": "negative"}]),
)
GIVEN = {"replies": (REPLIES, read_reply), "cells": (CELLS, read_cell), "questions": (QUESTIONS, read_question)}


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_read_right_or_refused_by_its_name(name: str) -> None:
    fuzz_file(name, FEW)


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_given_in_any_shape_is_read_or_refused(name: str) -> None:
    fuzz_values(*GIVEN[name], FEW)


@pytest.mark.nightly
@pytest.mark.parametrize("name", FILES)
def test_broken_files_by_the_thousand(name: str) -> None:
    fuzz_file(name, MANY)


@pytest.mark.nightly
@pytest.mark.parametrize("name", GIVEN)
def test_what_is_given_by_the_thousand(name: str) -> None:
    fuzz_values(*GIVEN[name], MANY)


def test_half_a_character_in_a_columns_name_is_refused(tmp_path: Path) -> None:
    """What 1,500 broken arena files found."""
    (tmp_path / "train.csv").write_bytes(b"\xed\xa0\xbd" + ARENA)
    with pytest.raises(ValueError, match=r"train\.csv: the column name '\\ud83did' holds half a character"):
        read_arena(tmp_path / "train.csv")
