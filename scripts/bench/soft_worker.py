"""One measurement in a process of its own: python soft_worker.py FOLDER facts|oracle|METHOD count|time.

FOLDER holds what the benchmark wrote: setup.json, job.json and, for a made model, a tokenizer. The result is one line
of JSON, the last one on stdout; log-probabilities go to a file in FOLDER. Imports nothing of this project unless the
method is ours, so that a peer can run under an interpreter of its own. Resident memory is read from Linux's /proc.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from cards import cap_allocator
from soft_job import Job, job_size, least_flops, weights
from soft_methods import INSTALL, METHODS, MODULES, CannotDo, oracle, package_of
from soft_model import SHAPES, build_model, load_model, load_tokenizer, torch_dtype

FACTS = "facts"
ORACLE = "oracle"
WARM_UP_PROMPTS = 2


@dataclass
class Setup:
    """The model of a run and where it stands. model: a folder, or None for the made `shape`."""

    shape: str
    model: str | None
    device: str
    precision: str
    threads: int
    memory_gib: float | None
    oracle_prompts: int


@dataclass
class Measured:
    """One run of a method. Work in FLOPs of plain matmuls; attention apart; passes: forward passes of the body."""

    method: str
    cpu_s: float = 0.0
    wall_s: float = 0.0
    peak_mib: float = 0.0
    flops: float = 0.0
    attention_flops: float = 0.0
    passes: int = 0
    cannot: str | None = None  # why there is no figure


def load(setup: Setup, folder: Path) -> tuple[Any, Any]:
    """(model, tokenizer)."""
    if setup.model is not None:
        model = load_model(setup.model, device=setup.device, precision=setup.precision)
        return model, load_tokenizer(setup.model)
    model = build_model(SHAPES[setup.shape], device=setup.device, precision=setup.precision)
    return model, load_tokenizer(str(folder))


def timed(method: str, model: Any, tokenizer: Any, job: Job) -> tuple[Measured, np.ndarray]:
    """CPU and wall seconds of the whole job, and the peak memory over what was in use before it."""
    run = METHODS[method]
    memory = Peak(str(model.device))
    cpu, wall = time.process_time(), time.perf_counter()
    log_probs = run(model, tokenizer, job)
    synchronise(str(model.device))
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return Measured(method, cpu_s=cpu, wall_s=wall, peak_mib=memory.over_start() / 2**20), log_probs


def counted(method: str, model: Any, tokenizer: Any, job: Job) -> tuple[Measured, np.ndarray]:
    """The matmul FLOPs of the whole job.

    Layers and head are mm and addmm; attention is a fused kernel or, where there is none, bmm, and is counted apart.
    """
    from torch.utils.flop_counter import FlopCounterMode

    result = Measured(method)
    layer = next(module for module in model.modules() if type(module).__name__.endswith("DecoderLayer"))
    hook = layer.register_forward_pre_hook(lambda *_: setattr(result, "passes", result.passes + 1))
    with FlopCounterMode(display=False) as counter:
        log_probs = METHODS[method](model, tokenizer, job)
    hook.remove()
    for operation, flops in counter.get_flop_counts()["Global"].items():
        if str(operation) in ("aten.mm", "aten.addmm"):
            result.flops += flops
        else:
            result.attention_flops += flops
    return result, log_probs


class Peak:
    """The most memory in use since it was made, over what was in use then; bytes. A GPU's allocator, else RSS."""

    def __init__(self, device: str) -> None:
        self.on_gpu = device.startswith("cuda")
        gc.collect()
        if self.on_gpu:
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        else:
            give_back_freed()
            Path("/proc/self/clear_refs").write_text("5")  # 5: the resident set's high-water mark starts anew
            self.start = status_bytes("VmRSS")

    def over_start(self) -> int:
        import torch

        most = torch.cuda.max_memory_allocated() if self.on_gpu else status_bytes("VmHWM")
        return most - self.start


def give_back_freed() -> None:
    """What the warm-up freed goes back to the system; else it would hide as much of the job's own memory."""
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


@dataclass(frozen=True)
class Facts:
    """What every method of a run is held against: the job's least work, the model's size, the machine's speed."""

    hardware: str
    parameters: int
    body: int
    last: int
    head: int
    weight_bytes: int
    texts: int
    shared_tokens: int
    own_tokens: int
    inside: int
    least_flops: float
    flops_per_s: float
    bytes_per_s: float


def find_facts(setup: Setup, folder: Path) -> Facts:
    """Speeds are of this machine in this precision: a large matmul and a large copy, the better of ten each."""
    import torch

    model, tokenizer = load(setup, folder)
    body, last, head = weights(model)
    size = job_size(Job.load(folder / "job.json"), tokenizer)
    side, cells = (8_192, 2**29) if setup.device.startswith("cuda") else (1_024, 2**26)
    left = torch.randn(side, side, device=setup.device, dtype=torch_dtype(setup.precision))
    source = torch.empty(cells, device=setup.device, dtype=torch.uint8)
    target = torch.empty_like(source)
    return Facts(
        hardware=hardware(setup.device, setup.threads),
        parameters=sum(weight.numel() for weight in model.parameters()), body=body, last=last, head=head,
        weight_bytes=(body + last + head) * model.dtype.itemsize, texts=size.texts, shared_tokens=size.shared,
        own_tokens=size.own_total, inside=size.inside, least_flops=least_flops(size, body, last, head),
        flops_per_s=2.0 * side**3 / best_seconds(lambda: left @ left, setup.device),
        bytes_per_s=2.0 * cells / best_seconds(lambda: target.copy_(source), setup.device),
    )  # fmt: skip


def hardware(device: str, threads: int) -> str:
    import torch

    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{threads} threads of {names[0] if names else 'a CPU'}"


def best_seconds(work: Callable[[], Any], device: str, tries: int = 10) -> float:
    seconds = []
    for _ in range(tries):
        synchronise(device)
        started = time.perf_counter()
        work()
        synchronise(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def measure(setup: Setup, folder: Path, method: str, mode: str) -> tuple[Measured, np.ndarray]:
    """The figures of a method and its (N, L) log-probabilities; of the oracle, the first rows.

    The oracle computes in float32 with the weights as the precision rounded them, so that what is left is arithmetic.
    """
    import torch

    torch.set_num_threads(setup.threads)
    job = Job.load(folder / "job.json")
    if method == ORACLE:
        model, tokenizer = load(setup, folder)
        return Measured(method), oracle(model.float(), tokenizer, job.first(setup.oracle_prompts))
    cap_allocator(setup.memory_gib)
    if (package := package_of(method)) is not None:
        importlib.import_module(MODULES[package])  # a peer that is not there is known before the model is made
    model, tokenizer = load(setup, folder)
    METHODS[method](model, tokenizer, job.first(WARM_UP_PROMPTS))  # imports, kernels, checks of the model: once each
    return (counted if mode == "count" else timed)(method, model, tokenizer, job)


def log_probs_file(folder: Path, method: str) -> Path:
    return folder / f"{''.join(sign if sign.isalnum() else '-' for sign in method)}.npy"


def main() -> None:
    folder, method = Path(sys.argv[1]), sys.argv[2]
    setup = Setup(**json.loads((folder / "setup.json").read_text()))
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if method == FACTS:
        result: Any = find_facts(setup, folder)
    else:
        result = attempt(setup, folder, method, sys.argv[3])
    print("\n" + json.dumps(asdict(result)))


def attempt(setup: Setup, folder: Path, method: str, mode: str) -> Measured:
    """The figures, or why there are none; log-probabilities are saved beside the job."""
    try:
        result, log_probs = measure(setup, folder, method, mode)
    except CannotDo as error:
        return Measured(method, cannot=str(error))
    except ModuleNotFoundError as error:
        install = INSTALL.get(package_of(method) or "", "")
        name = str(error.name).partition(".")[0]
        return Measured(method, cannot=f"{name} is not installed: {install}".removesuffix(": "))
    except Exception as error:  # a peer's defect is a line of the table, and its traceback goes to the terminal
        traceback.print_exc()
        return Measured(method, cannot=f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]}")
    np.save(log_probs_file(folder, method), log_probs)
    return result


if __name__ == "__main__":
    main()
