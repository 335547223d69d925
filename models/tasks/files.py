"""Puts a finished file in its place in one step, so that a crash leaves the older file or none; reads small records.

A record is a JSON object, perhaps damaged, or from someone else: what its values raise is told with the file's name.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from models.tasks.disk import told_by_disk

# What values of another type or size than expected raise, wherever they are used first.
_MISFITS = (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError)
SHOWN = 600  # characters of an error
# What a file system answers that cannot flush a folder, or may not open it to do so.
_UNFLUSHED = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES, errno.EPERM)


@contextmanager
def write_atomically(path: str | Path, *, make_folder: bool = True) -> Iterator[Path]:
    """Yields a temporary path beside `path`; what is written there takes its place when the block ends without error.

    The temporary name ends as `path` does (.csv.gz stays .csv.gz). Missing folders are made; make_folder=False: not
    for a file that means nothing without what its folder held. When the block raises, the temporary file is removed
    and whatever stood at `path` is untouched. What the disk refuses is a DiskError.
    """
    path = Path(path)
    if os.path.isdir(path):  # not Path.is_dir, which raises for a name that is too long
        raise ValueError(f"{path} is a folder, expected the name of a file to write. Give a file name inside it.")
    # Not mkstemp: its files are readable by their owner only, and the finished file would stay so.
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}-{path.name}")
    with told_by_disk(path):
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            flush(temporary)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):  # its folder may be gone, or read-only by now: the first error is the one to tell
                temporary.unlink()
            raise
        flush_folder(path.parent)


def remove_half_written(folder: Path, name: str) -> None:
    """Removes what killed processes left of write_atomically in the folder, for files of this name (* is any text)."""
    for leftover in folder.glob(f".tmp-{'?' * 32}-{name}"):
        leftover.unlink(missing_ok=True)


@contextmanager
def write_folder_atomically(path: str | Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; it takes the place of `path` when the block ends without error.

    When the block raises, the temporary folder is removed and whatever stood at `path` is untouched. A kill between
    the two renames of a replacement leaves the older folder under its temporary name: make it again.
    """
    path = Path(path)
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex}-{path.name}")
    older = path.with_name(f".tmp-{uuid.uuid4().hex}-{path.name}")
    with told_by_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        try:
            yield temporary
            for inside in [*temporary.rglob("*"), temporary]:
                (flush if inside.is_file() else flush_folder)(inside)
            if path.exists():
                os.replace(path, older)
            os.replace(temporary, path)
        finally:
            if older.exists() and not path.exists():  # the second rename failed: the older folder is put back
                os.replace(older, path)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(older, ignore_errors=True)
        flush_folder(path.parent)


def flush_folder(path: Path) -> None:
    """Return when a folder's names are on the disk: a rename is only then.

    Windows cannot open a folder, some file systems (of FUSE, SMB, 9p) flush none, and one without the right to read is
    not opened: there the names are as safe as they can be.
    """
    if os.name != "posix":
        return
    try:
        flush(path)
    except OSError as error:
        if error.errno not in _UNFLUSHED:
            raise


def flush(path: Path) -> None:
    """Return when a file's bytes are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_record(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file. Raises ValueError naming the file where it is damaged or no object."""
    path = Path(path)
    with told_of(path, "is damaged"):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"{type(content).__name__}, expected a JSON object")
        return content


@contextmanager
def told_of(path: str | Path, what: str) -> Iterator[None]:
    """Turns what a file's values raise in the block into a ValueError: "PATH what (the error, in short)."."""
    try:
        yield
    except _MISFITS as error:
        said = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        said = said if len(said) <= SHOWN else said[:SHOWN] + "..."
        raise ValueError(f"{path} {what} ({said}). Copy it again, or make it again.") from error
