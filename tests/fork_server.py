"""One process that has imported everything, alone with its mounts, and forks each command from there: faults are many.

    python tests/fork_server.py        orders as lines of JSON on stdin, an answer to each on stdout

Knows commands, signals, limits and tmpfs; nothing of what a command does. The other end is `Server`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NEWNS, NEWUSER = 0x00020000, 0x10000000  # sched.h
DETACH = 2  # umount2's
READ_ONLY, REMOUNT, PRIVATE_ALL = 1, 32, (1 << 14) | (1 << 18)  # sys/mount.h
SAID_BYTES = 2**20  # a command that says more would wait for a reader
HEARD: dict[int, tuple[int, Path]] = {}  # process id -> where it speaks, and the file for that
WARM = ("torch", "transformers", "safetensors.torch", "sklearn", "skops.io", "evaluate", "datasets", "pyarrow.parquet",
        "train.cli", "train.run", "train.loop", "train.metrics", "infer.cli", "infer.run", "infer.text_run",
        "infer.encoder", "infer.readers", "infer.report", "hydra")  # fmt: skip


class Server:
    """A fork server as its tests see it. can_mount: it may mount file systems, which nobody else sees."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.can_mount: bool = self._read()["can_mount"]

    def ask(self, do: str, **order: Any) -> Any:
        assert self.process.stdin is not None
        print(json.dumps({"do": do, **order}), file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def start(self, verb: str, arguments: list[str], said: Path, **options: Any) -> int:
        """The process id of `python -m verb arguments`, whose stdout and stderr go to the file `said`."""
        return int(self.ask("start", verb=verb, arguments=arguments, said=str(said), **options))

    def wait(self, pid: int) -> int:
        """Its exit code, negative for a signal."""
        return int(self.ask("wait", pid=pid))

    def run(self, verb: str, arguments: list[str], said: Path, **options: Any) -> tuple[int, str]:
        """(exit code, what it said)."""
        code = self.wait(self.start(verb, arguments, said, **options))
        return code, said.read_text(encoding="utf-8", errors="replace")

    def seen(self, path: Path) -> Path:
        """The path as this process can open it: what is mounted there is the server's alone."""
        return Path(f"/proc/{self.process.pid}/root{path}")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints while it is imported is no answer
    can_mount = alone()
    sys.path[:0] = [str(ROOT)]
    import importlib

    for name in WARM:
        importlib.import_module(name)
    print(json.dumps({"can_mount": can_mount}), file=answers, flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        answer = {"start": _start, "wait": _wait, "mount": mount, "unmount": unmount}[order.pop("do")](**order)
        print(json.dumps(answer), file=answers, flush=True)
    os._exit(0)  # taking all of it down takes six seconds


def alone() -> bool:
    """A mount namespace of its own, if the system gives one: what is mounted is gone when the process ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    if libc.unshare(NEWNS) != 0:
        if libc.unshare(NEWNS | NEWUSER) != 0:
            return False
        with contextlib.suppress(OSError):
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"0 {user} 1")
            Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    return bool(libc.mount(b"none", b"/", None, PRIVATE_ALL, None) == 0)


def mount(folder: str, size: str, read_only: bool = False, again: bool = False) -> bool:
    """A tmpfs on the folder; again: its size or its right to be written is changed."""
    flags = (READ_ONLY if read_only else 0) | (REMOUNT if again else 0)
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", flags, f"size={size}".encode()) == 0)


def unmount(folder: str) -> bool:
    return bool(ctypes.CDLL(None, use_errno=True).umount2(folder.encode(), DETACH) == 0)


def _start(
    verb: str, arguments: list[str], said: str, file_bytes: int | None = None, environment: dict[str, str] | None = None
) -> int:
    """file_bytes: no file may be larger."""
    reader, writer = os.pipe()  # not the file itself: a limit on files, or a full disk, is not for what is said
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, SAID_BYTES)
    pid = os.fork()
    if pid:
        os.close(writer)
        HEARD[pid] = reader, Path(said)
        return pid
    code = 1
    try:
        for descriptor in (1, 2):
            os.dup2(writer, descriptor)
        os.environ |= environment or {}
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))
        code = _command(verb, arguments)
    finally:
        os._exit(code)


def _command(verb: str, arguments: list[str]) -> int:
    import traceback

    from infer.stopping import forget

    forget()
    sys.argv = [f"python -m {verb}", *arguments]
    try:
        if verb == "train":
            from train.cli import main
        else:
            from infer.cli import main
        main()
        return 0
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()


def _wait(pid: int, seconds: float = 120) -> int:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            reader, said = HEARD.pop(pid)
            with os.fdopen(reader, "rb") as stream:
                said.write_bytes(stream.read())
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return -9


if __name__ == "__main__":
    serve()
