"""Runs `python -m infer` again and again without starting Python anew: one warm process that forks.

A line of its input is JSON: {"arguments": [...], "log": "file"}; it answers {"pid": ...} once the run has begun. The
next line is empty; it answers {"code": ...} once the run has ended. One thread; nothing is read or written before the
fork.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import ROOT


class Forks:
    """The warm process, from the test's side."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
        self.process = subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        assert self.answer() == {"ready": True}

    def start(self, arguments: list[str], log: Path) -> int:
        """The number of the process that runs the command now. Its words are appended to the log."""
        assert self.process.stdin is not None
        print(json.dumps({"arguments": arguments, "log": str(log)}), file=self.process.stdin, flush=True)
        return int(self.answer()["pid"])

    def end(self) -> int:
        """The exit code of the run that was started last, negative for a signal, once it has ended."""
        assert self.process.stdin is not None
        print("", file=self.process.stdin, flush=True)
        return int(self.answer()["code"])

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def _run(arguments: list[str], log: str) -> int:
    """The command, in this process; its exit code."""
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = ["infer", *arguments]
    from infer.cli import main
    from infer.stopping import forget

    forget()  # its clock starts now
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    import transformers  # noqa: F401
    from accelerate import PartialState  # noqa: F401
    from transformers import BertForSequenceClassification, LlamaForCausalLM, PreTrainedTokenizerFast  # noqa: F401

    import infer.arena_passes
    import infer.cli
    import infer.encoder
    import infer.run
    import infer.text_run  # noqa: F401

    answer(ready=True)
    while line := sys.stdin.readline():
        job = json.loads(line)
        pid = os.fork()
        if not pid:
            code = 1
            try:
                code = _run(job["arguments"], job["log"])
            finally:
                os._exit(code)
        answer(pid=pid)
        sys.stdin.readline()  # until it is asked for, a run that has ended keeps its number
        status = os.waitpid(pid, 0)[1]
        answer(code=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    _serve()
