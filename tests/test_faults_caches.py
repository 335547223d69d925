"""Caches are never believed: one whose bytes are not those that were written is made again."""

from __future__ import annotations

import io
import logging
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from conftest import pair_rows

from infer.vector_cache import VectorCache
from models.gguf_cache import dequantised
from models.manifest import damage
from models.tasks.tokens import TokenCache, _is_whole, cached_fields

DAMAGES = ["flip", "cut", "empty"]


def damaged(content: bytes, how: str) -> bytes:
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    return {"flip": bytes(flipped), "cut": content[:-5], "empty": b""}[how]


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_tokens_are_made_again(how: str, tmp_path: Path, tiny_tokenizer) -> None:
    rows = pair_rows(6)
    good = cached_fields(rows, tiny_tokenizer, tmp_path)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.unlink()  # what is mapped stays readable
    file.write_bytes(damaged(whole, how))
    with pytest.raises(ValueError, match="is damaged"):
        TokenCache.load(file)
    again = cached_fields(rows, tiny_tokenizer, tmp_path)
    assert (again.ids == good.ids).all() and file.read_bytes() == whole


def test_a_flipped_bit_of_a_kept_vector_is_seen_and_the_others_are_read(tmp_path: Path) -> None:
    """SQLite itself looks at no page's bytes."""
    cache = VectorCache("m", tmp_path)
    vectors = {name: np.arange(4, dtype=np.float32) + at for at, name in enumerate(("first", "second"))}
    cache.write(vectors)
    with sqlite3.connect(cache.path) as database:
        digest, kept = database.execute("SELECT digest, vector FROM vectors LIMIT 1").fetchone()
        database.execute("UPDATE vectors SET vector = ? WHERE digest = ?", (damaged(kept, "flip"), digest))
    database.close()
    found = cache.read(list(vectors))
    assert len(found) == 1 and all((found[name] == vectors[name]).all() for name in found)
    cache.write(vectors)
    assert len(cache.read(list(vectors))) == 2


@pytest.mark.parametrize("how", [*DAMAGES, "no manifest"])
def test_a_damaged_copy_of_a_gguf_file_is_converted_again(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TIEBREAK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(logging.getLogger("tiebreak"), "propagate", True)
    monkeypatch.setattr("models.gguf_cache.check_library", lambda file: None)
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF and so on")
    folder = dequantised(file, "fp32", lambda place: (place / "weights").write_bytes(b"all of them") and None)
    assert folder is not None
    if how == "no manifest":
        (folder / "manifest.json").unlink()
    else:
        (folder / "weights").write_bytes(damaged(b"all of them", how))
    again = dequantised(file, "fp32", lambda place: (place / "weights").write_bytes(b"all of them") and None)
    assert again == folder and (folder / "weights").read_bytes() == b"all of them"
    assert "is converted again" in caplog.text
    monkeypatch.setattr("models.gguf_cache.check_library", lambda file: pytest.fail("converted a whole copy"))
    assert dequantised(file, "fp32", lambda place: None) == folder


def test_the_slower_of_two_processes_keeps_the_copy_that_the_faster_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find the same damaged copy; the faster has converted it, and loads, when the slower has looked at it."""
    monkeypatch.setenv("TIEBREAK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("models.gguf_cache.check_library", lambda file: None)
    file = tmp_path / "tiny.gguf"
    file.write_bytes(b"GGUF and so on")

    def write(place: Path) -> None:
        (place / "weights").write_bytes(b"all of them")

    folder = dequantised(file, "fp32", write)
    assert folder is not None
    (folder / "manifest.json").unlink()  # as every copy was that an older version made
    made: list[int] = []

    def looked(found: Path, *, required: bool) -> str | None:
        said = damage(found, required=required)
        if not made:  # only now the faster one is at work
            made.append(0)
            assert dequantised(file, "fp32", write) == folder
            made[0] = (folder / "weights").stat().st_ino
        return said

    monkeypatch.setattr("models.gguf_cache.damage", looked)
    assert dequantised(file, "fp32", lambda place: pytest.fail("converted a third time")) == folder
    assert (folder / "weights").stat().st_ino == made[0]
    assert [one.name for one in (tmp_path / "cache").iterdir()] == [folder.name]


def test_tokens_that_cannot_be_kept_are_used_all_the_same(tmp_path: Path, tiny_tokenizer, caplog, monkeypatch) -> None:
    monkeypatch.setattr(logging.getLogger("tiebreak"), "propagate", True)
    rows = pair_rows(3)
    (tmp_path / "file").write_text("in the way")
    found = cached_fields(rows, tiny_tokenizer, tmp_path / "file")
    np.testing.assert_array_equal(found.ids, cached_fields(rows, tiny_tokenizer, tmp_path).ids)
    assert "Going on without it" in caplog.text


class _Shrinking(io.BytesIO):
    """A file that is cut once its size was asked for."""

    def read(self, size: int | None = -1) -> bytes:
        self.truncate(100)
        return super().read(size)


def test_a_file_of_tokens_that_is_cut_while_it_is_read_is_damaged() -> None:
    assert not _is_whole(_Shrinking(bytes(4096)))
