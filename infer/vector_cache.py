"""Sentence vectors kept on disk by the content of their texts, one small database for each model; safe to delete.

Knows digests and vectors; no network. Whatever the disk refuses costs time, never a result.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np

from models.gguf_cache import cache_root

log = logging.getLogger("tiebreak")

Found = TypeVar("Found")
WAIT_S = 20.0  # for another process that writes
MARK = 8  # bytes
AT_ONCE = 500  # digests in one query; SQLite takes 999 at least


class VectorCache:
    """float32 vectors by text. mark: of the model and the way it is read, the database's name."""

    def __init__(self, mark: str, root: Path | None = None) -> None:
        own = os.environ.get("TIEBREAK_VECTORS")  # a comparison that measures speed must not find old vectors
        self.path = (Path(own or cache_root()) if root is None else root) / "vectors" / f"{mark}.sqlite"

    def read(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """The vectors that are there, by text; a damaged database has none and makes room for a new one."""
        if not self.path.is_file():
            return {}
        by_digest = {_digest(text): text for text in texts}
        digests = list(by_digest)

        def look(database: sqlite3.Connection) -> dict[str, np.ndarray]:
            found: dict[str, np.ndarray] = {}
            for start in range(0, len(digests), AT_ONCE):
                part = digests[start : start + AT_ONCE]
                places = ",".join("?" * len(part))
                rows = database.execute(f"SELECT digest, vector FROM vectors WHERE digest IN ({places})", part)
                whole = ((digest, vector[:-MARK]) for digest, vector in rows if vector[-MARK:] == _mark(digest, vector))
                found |= {by_digest[digest]: np.frombuffer(vector, dtype="<f4").copy() for digest, vector in whole}
            return found

        return self._with(look) or {}

    def write(self, vectors: Mapping[str, np.ndarray]) -> None:
        """Keeps these too."""
        plain = [(_digest(text), np.asarray(vector, dtype="<f4").tobytes()) for text, vector in vectors.items()]
        rows = [(digest, vector + _mark(digest, vector + bytes(MARK))) for digest, vector in plain]

        def keep(database: sqlite3.Connection) -> None:
            database.execute("CREATE TABLE IF NOT EXISTS vectors (digest BLOB PRIMARY KEY, vector BLOB NOT NULL)")
            database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)

        if rows:
            self._with(keep)

    def _with(self, work: Callable[[sqlite3.Connection], Found]) -> Found | None:
        """What work(database) gives, committed; None where the disk does not let it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=WAIT_S)) as database, database:
                return work(database)
        except sqlite3.OperationalError as error:  # locked, read-only, full, no such table
            log.debug("sentence vectors are not kept in %s: %s", self.path, error)
        except sqlite3.DatabaseError as error:  # not a database any more
            log.warning("%s is damaged and begins anew: %s", self.path, error)
            self.path.unlink(missing_ok=True)
        except OSError as error:
            log.debug("sentence vectors are not kept in %s: %s", self.path, error)
        return None


def _mark(digest: bytes, kept: bytes) -> bytes:
    """What ends a kept vector: a changed bit of it, or of its text's digest, shows. SQLite looks at none."""
    return hashlib.blake2b(digest + kept[:-MARK], digest_size=MARK).digest()


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
