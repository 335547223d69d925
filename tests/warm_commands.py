"""`python -m train` and `python -m infer` in children of a process that has imported everything: they start at once.

The children are forked, run the real commands from the door on, and may be sent a signal at a given moment. Reads a
JSON object a line, {"argv": ["train", ...], "log": PATH, "signal": 9, "after_s": 1.5}, and answers each with one:
{"code": ..., "seconds": ...}. The parent computes nothing, so that it has a single thread and children may be forked.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
WARM = (
    "datasets", "evaluate", "hydra", "matplotlib.pyplot", "peft", "scipy.optimize", "sklearn.ensemble",
    "sklearn.neural_network", "sklearn.pipeline", "torch", "transformers.trainer", "transformers.models.bert",
    "transformers.models.bert.modeling_bert", "transformers.models.llama.modeling_llama", "torch._dynamo",
    "train.run", "train.attempts", "train.loop", "train.finished", "train.encoder_learner", "train.adapter_learner",
    "train.text_encoder_learner", "train.cli", "infer.cli", "infer.run", "infer.text_run", "infer.report",
)  # fmt: skip


class WarmCommands:
    """The process, as a test holds it."""

    def __init__(self) -> None:
        quiet = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "MKL_CBWR": "AUTO,STRICT"}
        places = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]), "CUDA_VISIBLE_DEVICES": ""}
        self.process = subprocess.Popen(
            [sys.executable, __file__], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | quiet | places,
        )  # fmt: skip

    def run(
        self, *argv: str, log: Path, number: int | None = None, after_s: float = 0.0, until: str | None = None
    ) -> tuple[int, float]:
        """(exit code, minus the signal where it died of one; seconds) of a command. log: takes what it says.

        number: a signal that is sent after_s seconds after the start, or as soon as a path `until` (a glob) is there.
        """
        asked = {"argv": argv, "log": str(log), "signal": number, "after_s": after_s, "until": until}
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(asked), file=self.process.stdin, flush=True)
        answer = json.loads(self.process.stdout.readline())
        return answer["code"], answer["seconds"]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an import says is no answer
    for name in WARM:
        importlib.import_module(name)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), file=answers, flush=True)


def _answer(asked: dict[str, Any]) -> dict[str, Any]:
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _be(asked["argv"], asked["log"])
    if asked["signal"] is not None and _wait_for_moment(asked, child):
        os.kill(child, asked["signal"])
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"code": code, "seconds": time.monotonic() - started}


def _wait_for_moment(asked: dict[str, Any], child: int) -> bool:
    """True at the moment of the signal, False where the child ended before; it stays to be waited for."""
    ends = time.monotonic() + (asked["after_s"] if asked["until"] is None else 120.0)
    while time.monotonic() < ends:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        if asked["until"] is not None and any(Path("/").glob(asked["until"].lstrip("/"))):
            return True
        time.sleep(0.002)
    return True


def _be(argv: list[str], log: str) -> None:
    """Become the command; never returns."""
    code = 1
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(out, 2)
        from infer.stopping import forget

        forget()
        sys.argv = [f"{argv[0]}/__main__.py", *argv[1:]]
        importlib.import_module(f"{argv[0]}.cli").main()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
