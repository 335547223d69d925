"""One run at a time in a folder: a lock that the kernel lets go of however the process ends. Knows files only."""

from __future__ import annotations

import errno
import os
import sys
import weakref
from pathlib import Path
from typing import IO

from models.tasks.disk import told_by_disk

# Network file systems without locks: better unguarded than not at all.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}

_held: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def hold(path: Path, taken: str) -> IO[str]:
    """Holds the lock file until what is returned is closed or the process ends, however it ends. None on Windows.

    A forked process (a loader's worker) shares no lock: it may live on for seconds after this one was killed.

    taken: the sentence of the ValueError where another process holds it.
    """
    with told_by_disk(path):
        stream = path.open("a")
    if sys.platform == "win32":
        return stream
    import fcntl

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Between open and flock the other run may have finished and removed what is now locked.
        if not os.path.samestat(os.fstat(stream.fileno()), path.stat()):
            raise FileNotFoundError(path)
    except (BlockingIOError, FileNotFoundError):
        stream.close()
        raise ValueError(taken) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            stream.close()
            raise
    _held.add(stream)
    return stream


def _leave_to_parent() -> None:
    """In a forked process: the lock is the open file's, so all who have it open must close it before it is free."""
    for stream in list(_held):
        stream.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)
