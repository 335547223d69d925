"""What a disk refuses, as a sentence: it is full, read-only, gone, or a name is too long. Knows files and errors only.

Libraries tell it each in its own way (pyarrow by an OSError, safetensors and tokenizers by a text, torch.save by an
assertion of its zip writer), so it is read where the file is written, and nowhere else.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from socket import gaierror

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NUMBER = re.compile(r"\((?:os error|errno) (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)  # of Rust, of pyarrow
# What torch.save and numpy say of a file that took fewer bytes than they gave, without saying why.
_CUT_SHORT = re.compile(r"inline_container|iostream error|PytorchStreamWriter|requested and \d+ written|disk is full")
# An OSError of these, if it names no file, is of a server or of a process; a disk behind a network names the file.
_NOT_OF_A_DISK = (ConnectionError, TimeoutError, ChildProcessError, ProcessLookupError, InterruptedError, gaierror)
_LITTLE_BYTES = 2**20  # less than this free after a write was cut short: the disk was full
_MB = 1e6


class DiskError(OSError):
    """A file cannot be written; str() is a sentence: which, why, what to do. errno: the system's number."""

    def __init__(self, number: int, sentence: str) -> None:
        super().__init__(number, sentence)

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def told_by_disk(path: str | Path) -> Iterator[None]:
    """Turns what the disk refuses in the block, which writes `path`, into a DiskError; other errors pass as they are.

    path: a file or a folder; what is refused of another file is no refusal of this one.
    """
    path = Path(path)
    try:
        yield
    except DiskError:
        raise
    except Exception as error:
        number = _refused(error, path)
        if number is None:
            raise
        raise DiskError(number, _sentence(number, path, error)) from error


def _refused(error: Exception, path: Path) -> int | None:
    """The system's number of what was refused; None for an error that is none of the disk's."""
    named = getattr(error, "filename", None)
    if named is None and isinstance(error, _NOT_OF_A_DISK):
        return None
    if isinstance(error, OSError) and error.errno is not None and _is_of(named, path):
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        return None if missing and os.path.isdir(path.parent) else error.errno
    one: BaseException | None = error
    while one is not None:  # zipfile and tarfile put an error of their own above the disk's
        told = _NUMBER.search(str(one))
        number = one.errno if isinstance(one, OSError) else int(told[1] or told[2]) if told else None
        if number in FULL:
            return number
        if _CUT_SHORT.search(str(one)):
            return _why_cut_short(path)
        one = one.__cause__ or one.__context__
    return None


def _is_of(named: object, path: Path) -> bool:
    """Is the file that an error names the one to be written, its temporary one, or a folder that holds it?"""
    if named is None:
        return True
    file = Path(str(named))
    inside = file.relative_to(path.parent).parts[:1] if file.is_relative_to(path.parent) else ()
    temporary = bool(inside) and inside[0].startswith(".tmp-") and inside[0].endswith(path.name)
    return temporary or file.is_relative_to(path) or path.is_relative_to(file)


def _why_cut_short(path: Path) -> int:
    limit = _size_limit()
    return errno.EFBIG if limit is not None and _free(path)[0] > _LITTLE_BYTES else errno.ENOSPC


def _sentence(number: int, path: Path, error: Exception) -> str:
    return f"{path} cannot be written: {_reason(number, path, error)} What is finished stays; the same command goes on."


def _reason(number: int, path: Path, error: Exception) -> str:
    free, size = _free(path)
    limit = _size_limit()
    if number == errno.ENOSPC:
        return f"the disk is full ({free / _MB:.1f} of {size / _MB:.1f} MB free). Make room, or name another folder."
    if number == errno.EDQUOT:
        return "the quota of this user on the disk is used up. Make room, or name another folder."
    if number == errno.EFBIG:
        allowed = "" if limit is None else f" (ulimit -f: {limit / _MB:.1f} MB)"
        return f"it would be larger than a file may be here{allowed}. Raise the limit, or name another folder."
    if number == errno.EROFS:
        return "the disk is mounted read-only. Name another folder, or mount it for writing."
    if number in (errno.EACCES, errno.EPERM):
        return f"there is no right to write in {path.parent}. Get it, or name another folder."
    if number == errno.ENAMETOOLONG:
        name, whole = len(path.name.encode()), len(str(path).encode())
        return (
            f"its name has {name} bytes and its path {whole}, and a disk takes some 200 (50 more stand in the name of "
            "what is not finished yet) and 4,000. Name a shorter one."
        )
    if number == errno.ENOENT:
        return f"the folder {path.parent} has vanished. Put it back, or start over with another one."
    if number in (errno.ENOTDIR, errno.EEXIST):
        return "a file stands where its folder is to be. Move it, or name another folder."
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{said[:1].lower()}{said[1:].rstrip('.')}. Look after the disk, or name another folder."


def _free(path: Path) -> tuple[int, int]:
    """(free bytes, all bytes) of the disk that holds the file; (0, 0) where it cannot be asked."""
    for folder in path.parents:
        try:
            usage = shutil.disk_usage(folder)
        except OSError:
            continue
        return usage.free, usage.total
    return 0, 0


def _size_limit() -> int | None:
    """Bytes that this process may put in one file; None for no limit, and on Windows."""
    if sys.platform == "win32":
        return None
    import resource

    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if limit == resource.RLIM_INFINITY else limit
