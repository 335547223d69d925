"""One process that has imported everything, alone with its mounts, and forks each command: they start at once.

    python tests/warm_commands.py        orders as lines of JSON on stdin, an answer to each on stdout

A child is the real command, `python -m train` or `python -m infer`, from the door on. Knows commands, signals, limits
and tmpfs; nothing of what a command does. The parent computes nothing, so that it has one thread and may be forked.
The other end is `WarmCommands`.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import glob
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
NEWNS, NEWUSER = 0x00020000, 0x10000000  # sched.h
DETACH = 2  # umount2's
READ_ONLY, REMOUNT, PRIVATE_ALL = 1, 32, (1 << 14) | (1 << 18)  # sys/mount.h
SAID_BYTES = 2**20  # what a command under a limit may say; with more it would wait for a reader
LONGEST_S = 300.0  # of a command, on a busy machine
TOUCHES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir")  # of sys.audit's events
HEARD: dict[int, tuple[int, str]] = {}  # process id -> where it speaks, and the file for that
WARM = (
    "datasets", "evaluate", "hydra", "matplotlib.pyplot", "peft", "pyarrow.parquet", "safetensors.torch",
    "scipy.optimize", "skops.io", "sklearn.ensemble", "sklearn.neural_network", "sklearn.pipeline", "torch",
    "torch._dynamo", "transformers.trainer", "transformers.models.bert", "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama", "transformers.tokenization_utils_tokenizers", "train.cli", "train.run",
    "train.attempts", "train.loop", "train.finished", "train.metrics", "train.encoder_learner", "train.adapter_learner",
    "train.text_encoder_learner", "infer.cli", "infer.run", "infer.arena.passes", "infer.text_run", "infer.encoder",
    "infer.readers.by_method", "infer.report",
)  # fmt: skip


class WarmCommands:
    """The process, as a test holds it. can_mount: it may mount file systems, which nobody else sees."""

    def __init__(self) -> None:
        quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "MKL_CBWR": "AUTO,STRICT"}
        places = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | quiet | places,
        )  # fmt: skip
        self.can_mount: bool = self._read()["can_mount"]

    def ask(self, do: str, **order: Any) -> Any:
        assert self.process.stdin is not None
        print(json.dumps({"do": do, **order}), file=self.process.stdin, flush=True)
        return self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def start(
        self, verb: str, arguments: list[str], log: Path, *, file_bytes: int | None = None,
        halt: Path | str | None = None, environment: dict[str, str] | None = None,
    ) -> int:  # fmt: skip
        """The process id of `python -m verb arguments`; it is nobody else's before `wait`. log: takes what it says.

        file_bytes: no file may be larger; what is said then comes when the command has ended.
        halt: it stops itself (SIGSTOP) at the first file it touches once a path `halt` (a glob) is there.
        environment: what it has beside this process's.
        """
        how = {"file_bytes": file_bytes, "halt": None if halt is None else str(halt), "environment": environment or {}}
        return int(self.ask("start", verb=verb, arguments=arguments, log=str(log), how=how))

    def halted(self, pid: int) -> None:
        """Until a command that was started with `halt` stands still; `resume` lets it go on."""
        assert self.ask("halted", pid=pid), "it ended before it came to where it was to halt"

    def resume(self, pid: int, number: int = signal.SIGCONT) -> None:
        """Send a command that stands still a signal, which it receives where it stands, and let it go on."""
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)

    def wait(self, pid: int) -> int:
        """Its exit code, minus the signal where it died of one."""
        return int(self.ask("wait", pid=pid))

    def run(
        self, verb: str, *arguments: str, log: Path, number: int | None = None, after_s: float = 0.0,
        until: str | None = None,
    ) -> tuple[int, float]:  # fmt: skip
        """(exit code; seconds) of a command, whose words are added to the log.

        number: a signal that is sent after_s seconds after the start, or where the command stands when a path `until`
        (a glob) is there.
        """
        begun = time.monotonic()
        pid = self.start(verb, list(arguments), log, halt=until)
        if until is not None:
            self.halted(pid)
            self.resume(pid, number or signal.SIGCONT)
        elif number is not None:
            ends = time.monotonic() + after_s
            while time.monotonic() < ends and not self.ask("ended", pid=pid):
                time.sleep(0.002)
            os.kill(pid, number)  # one that has ended stays to be waited for
        return self.wait(pid), time.monotonic() - begun

    def ranks(self, verb: str, *arguments: str, log: Path, count: int = 2) -> str:
        """What `count` processes of one run say, with the environment that launchers give them; all end with 0."""
        from conftest import free_port

        shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
        shared["MASTER_PORT"] = str(free_port())
        log.unlink(missing_ok=True)
        own = [{"RANK": str(rank), "LOCAL_RANK": str(rank), **shared} for rank in range(count)]
        started = [self.start(verb, list(arguments), log, environment=one) for one in own]
        codes, said = [self.wait(pid) for pid in started], log.read_text()
        assert codes == [0] * count, said[-3000:]
        return said

    def tell(self, verb: str, arguments: list[str], said: Path, *, file_bytes: int | None = None) -> tuple[int, str]:
        """(exit code, what it said), and the file `said` holds that alone."""
        said.unlink(missing_ok=True)
        code = self.wait(self.start(verb, arguments, said, file_bytes=file_bytes))
        return code, said.read_text(encoding="utf-8", errors="replace")

    def seen(self, path: Path) -> Path:
        """The path as a test can open it: what is mounted there is the process's alone."""
        return Path(f"/proc/{self.process.pid}/root{path}")

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:  # a child of a test that failed holds the other end
            self.process.kill()
            self.process.wait()


def serve() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints while it is imported is no answer
    can_mount = alone()
    for name in WARM:
        importlib.import_module(name)
    print(json.dumps({"can_mount": can_mount}), file=answers, flush=True)
    orders = {
        "start": _start, "wait": _wait, "ended": _ended, "halted": _halted, "mount": mount, "unmount": unmount
    }  # fmt: skip
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(orders[order.pop("do")](**order)), file=answers, flush=True)  # type: ignore[operator]
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


def _start(verb: str, arguments: list[str], log: str, how: dict[str, Any]) -> int:
    reader, out = -1, -1
    if how["file_bytes"] is None:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    else:  # the limit is on files, and not on what is said
        reader, out = os.pipe()
        fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, SAID_BYTES)
    pid = os.fork()
    if pid == 0:
        _be(verb, arguments, out, **how)
    os.close(out)
    if reader >= 0:
        HEARD[pid] = reader, log
    return pid


def _be(
    verb: str, arguments: list[str], out: int, file_bytes: int | None, halt: str | None, environment: dict[str, str]
) -> None:  # fmt: skip
    """Become the command; never returns."""
    code = 1
    try:
        os.environ.update(environment)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))
        from infer.stopping import forget

        forget()  # its clock starts now
        if halt is not None:
            _halt_at(halt)
        sys.argv = [f"{verb}/__main__.py", *arguments]
        importlib.import_module(f"{verb}.cli").main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


def _halt_at(pattern: str) -> None:
    """Stand still, once, at the next file after a path of this pattern is there: decided by the run, by no clock."""
    waits, own = True, os.getpid()

    def look(event: str, _: object) -> None:
        nonlocal waits
        if not waits or not event.startswith(TOUCHES) or os.getpid() != own:
            return
        waits = False  # looking touches files too
        if glob.glob(pattern):
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # this thread goes no instruction further
        else:
            waits = True

    sys.addaudithook(look)


def _halted(pid: int) -> bool:
    """Whether it stands still; False where it has ended."""
    end = time.monotonic() + LONGEST_S
    while (found := os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT)) is None:
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return found.si_code == os.CLD_STOPPED


def _ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _wait(pid: int) -> int:
    end = time.monotonic() + LONGEST_S
    while not _ended(pid):
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    if pid in HEARD:
        reader, log = HEARD.pop(pid)
        with os.fdopen(reader, "rb") as stream, open(log, "ab") as said:
            said.write(stream.read())
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    serve()
