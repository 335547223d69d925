"""From a GGUF file to an ordinary checkpoint folder: de-quantised once per machine, kept, and read in a moment after.

The folder holds the weights in the precision they are used in, bit for bit what a direct load gives. Storing them in
less would be seen: on 40 reviews the log-probabilities of SmolLM2's two answers moved by up to 0.005 nats through
float16 and by 0.024 through bfloat16. Knows files, opens no network.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from models.fingerprint import fingerprint
from models.manifest import damage, write_manifest
from models.tasks.disk import told_by_disk

MAGIC = b"GGUF"
LEFT_BEHIND_S = 24 * 3600  # an unfinished folder this old was left by a process that was killed

log = logging.getLogger("tiebreak")


def cache_root() -> Path:
    """Where de-quantised models are kept: TIEBREAK_CACHE, or ~/.cache/tiebreak. Safe to delete at any time."""
    return Path(os.environ.get("TIEBREAK_CACHE") or "~/.cache/tiebreak").expanduser()


def dequantised(file: Path, precision: str, write: Callable[[Path], None]) -> Path | None:
    """The checkpoint folder that says what a GGUF file says; None, and a log line, where none can be kept.

    precision: fp32, fp16 or bf16, of the weights in it. write: fills an empty folder with the checkpoint.
    Several processes may ask at once. Every byte of a kept copy is read and compared with its manifest at each start,
    by each process: 16 GB take 10 s to a minute.
    Raises ValueError for a file that is no GGUF, ImportError without the library.
    """
    import transformers

    check_gguf(file)
    # The version of transformers counts: a bug of its conversion, once mended, must not live on here.
    folder = cache_root() / f"{file.stem}-{precision}-{transformers.__version__}-{fingerprint([file])}"
    try:
        while folder.is_dir():
            seen = _mark(folder)
            damaged = damage(folder, required=True)
            if damaged is None:
                return folder
            log.warning("%s is converted again: the copy in %s is not whole, %s", file.name, folder, damaged)
            check_library(file)
            _remove_damaged(folder, seen)
        check_library(file)
        with new_folder(folder) as unfinished:
            log.info("converting %s to %s, once: it is kept in %s", file.name, precision, folder)
            with told_by_disk(unfinished):
                write(unfinished)
                write_manifest(unfinished)
    except OSError as error:
        log.warning(
            "%s is converted anew at every start: it cannot be kept in %s (%s). Set TIEBREAK_CACHE to another folder.",
            file.name, cache_root(), error,
        )  # fmt: skip
        return None
    return folder


def _mark(folder: Path) -> tuple[int, int]:
    """What tells this folder from another that takes its name; renaming it changes nothing of that."""
    found = folder.stat()
    return found.st_ino, found.st_mtime_ns


def _remove_damaged(folder: Path, seen: tuple[int, int]) -> None:
    """Remove the folder that was seen to be damaged, never the whole one that a faster process has put in its place.

    Looking takes each process another time, and the faster one may be loading what it made. Raises OSError.
    """
    aside = _unfinished(folder)
    with suppress(FileNotFoundError):  # the other process has just taken it away
        if _mark(folder) != seen:
            return
        folder.rename(aside)
        if _mark(aside) != seen:  # put there between the two lines above: it goes back at once
            aside.rename(folder)
        shutil.rmtree(aside)


def check_gguf(file: Path) -> None:
    """Refuse a file that is no GGUF, such as a page that says "not found" or a pointer of Git LFS."""
    with file.open("rb") as stream:
        start = stream.read(16)
    if not start.startswith(MAGIC):
        raise ValueError(f"{file} begins with {start!r}, not with {MAGIC!r}: it is no GGUF file. Download it again.")


def check_library(file: Path) -> None:
    """Refuse to convert without the gguf library."""
    if importlib.util.find_spec("gguf") is None:
        raise ImportError(f"{file.name} is a GGUF file, and the library that reads it is absent: pip install gguf")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty folder that takes the name `folder` in one step when the block ends without error.

    When another process was faster its folder stays. Nothing unfinished is left behind, unless the process is killed;
    what was left a day ago is removed.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(folder.parent)
    unfinished = _unfinished(folder)
    unfinished.mkdir()
    try:
        yield unfinished
        for file in unfinished.iterdir():
            file.chmod(0o644)  # safetensors writes files that their owner alone can read
        try:
            unfinished.rename(folder)
        except OSError:  # a folder that is not empty stands there: the other process's, whole like ours
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _unfinished(folder: Path) -> Path:
    """A name of its own beside the folder; what bears it is removed a day later."""
    return folder.with_name(f".unfinished-{uuid.uuid4().hex}-{folder.name}")


def _remove_left_behind(root: Path) -> None:
    for left in root.glob(".unfinished-*"):
        with suppress(OSError):  # another process may be removing it too
            if time.time() - left.stat().st_mtime > LEFT_BEHIND_S:
                shutil.rmtree(left)
