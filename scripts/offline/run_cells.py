"""Runs the code cells of a notebook as they stand, one after the other, in one namespace; says how long each took.

    python run_cells.py NOTEBOOK TIMES

Stands in for the notebook server in a rehearsal; in a network namespace of its own it switches the loopback on.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

SET_FLAGS, UP = 0x8914, 0x1  # SIOCSIFFLAGS, IFF_UP


def main() -> None:
    with contextlib.suppress(OSError), socket.socket() as one:  # refused where the network is the machine's own
        fcntl.ioctl(one, SET_FLAGS, struct.pack("16sh14x", b"lo", UP))
    notebook, times = Path(sys.argv[1]), Path(sys.argv[2])
    told: dict[str, Any] = {"network": reachable()}
    names: dict[str, Any] = {"__name__": "__main__"}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        print(f"--- {cell['id']}", flush=True)
        started = time.monotonic()
        exec(compile("".join(cell["source"]), f"cell {cell['id']}", "exec"), names)
        told[cell["id"]] = time.monotonic() - started
    told["packages"] = str(names["PACKAGES"])
    with contextlib.suppress(OSError):
        (names["KAGGLE"] / "input" / "written").touch()
        told["input_writable"] = True
    times.write_text(json.dumps(told), encoding="utf-8")


def reachable() -> bool:
    """Does any route lead out of this machine?"""
    return any(line.split()[0] != "lo" for line in Path("/proc/net/route").read_text().splitlines()[1:])


if __name__ == "__main__":
    main()
