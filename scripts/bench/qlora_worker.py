"""One road of the QLoRA benchmark in a process of its own: python qlora_worker.py SETUP.json ROAD '[[T, B], ...]'.

Prints a line of JSON for the model as it stands, then one for each cell as soon as it is measured: a process that is
killed leaves what it had. A cell that runs out of memory says so, and the next one is tried. ROAD `label` measures
labelling instead of training.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cards import cap_allocator
from qlora_model import build, stored_bytes
from soft_model import Shape
from soft_worker import Peak, synchronise

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # this project, where it is not installed
GIB = 2**30
LABEL = "label"


@dataclass
class Setup:
    """The model of a run, where it stands, and how it is trained and asked."""

    shape: Shape
    device: str
    precision: str
    quantization: str
    rank: int
    steps: int
    memory_gib: float | None
    threads: int
    label_rows: int
    new_tokens: int

    @classmethod
    def load(cls, path: Path) -> Setup:
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(**content | {"shape": Shape(**content["shape"])})


@dataclass
class Cell:
    """A training step of one road at one size. peak_gib: the most in use, the model included (a GPU's allocator; on a
    CPU the resident set, without what stood there before the model). reserved_gib: by the allocator. outside_gib: of
    the GPU beside it, whoever has it: CUDA's contexts above all, and state that an optimizer pages.
    """

    road: str
    length: int
    rows: int
    peak_gib: float | None = None
    reserved_gib: float | None = None
    outside_gib: float | None = None
    step_s: float | None = None
    rows_per_s: float | None = None
    loss: float | None = None
    skipped_steps: int = 0
    cannot: str | None = None  # why there is no figure


@dataclass
class Standing:
    """What a road's model takes before the first step. layer_bytes: of the frozen layers, with the scales of 4-bit
    ones; other_bytes: of embedding and head as the road prepared them.
    """

    road: str
    layer_bytes: int
    other_bytes: int
    trained_weights: int
    build_peak_gib: float
    memory_is: str


def start(setup: Setup) -> Any:
    """Cap and settle this process; the memory in use from here on is the run's."""
    import torch

    torch.set_num_threads(setup.threads)
    if setup.device == "cpu":
        return Peak("cpu")
    cap_allocator(setup.memory_gib)
    return Peak("cuda")


def peak_gib(since: Peak, before: Peak) -> float:
    """The most in use since `since`, over what was in use at `before`."""
    return (since.start + since.over_start() - before.start) / GIB


def measure_road(setup: Setup, road: str, sizes: list[list[int]]) -> Any:
    """Yields a Standing, then a Cell for each (T, B)."""
    from qlora_roads import prepare

    import models.adapters
    import models.answer_network  # noqa: F401  imports are no part of the model's memory

    before = start(setup)
    model = build(setup.shape, device=setup.device, precision=setup.precision, quantization=setup.quantization)
    built, layer_bytes = peak_gib(before, before), stored_bytes(model.model.layers)
    prepared = prepare(road, model, precision=setup.precision, rank=setup.rank)
    yield Standing(
        road, layer_bytes=layer_bytes, other_bytes=stored_bytes(model) - stored_bytes(model.model.layers),
        trained_weights=sum(one.numel() for one in prepared.network.parameters() if one.requires_grad),
        build_peak_gib=built, memory_is="allocated on the GPU" if setup.device == "cuda" else "resident set (RSS)",
    )  # fmt: skip
    for length, rows in sizes:
        yield measure_cell(setup, road, prepared, length, rows, before)


def measure_cell(setup: Setup, road: str, prepared: Any, length: int, rows: int, before: Peak) -> Cell:
    from qlora_roads import make_batch, train
    from tried import why

    cell = Cell(road, length, rows)
    since = Peak(setup.device)  # frees what the last cell left, whatever its end
    try:
        clock = train(
            prepared, make_batch(rows, length, setup.shape.vocab), precision=setup.precision, steps=setup.steps,
            synchronise=lambda: synchronise(setup.device),
        )  # fmt: skip
    except Exception as error:
        cell.cannot = why(error)
        synchronise(setup.device)  # where CUDA is lost to this process it ends here, and the next size gets another
        return cell
    cell.peak_gib = peak_gib(since, before)
    cell.step_s = sorted(clock.seconds)[len(clock.seconds) // 2]
    cell.rows_per_s = rows / cell.step_s
    cell.loss, cell.skipped_steps = clock.losses[-1], clock.skipped
    if setup.device == "cuda":
        cell.reserved_gib, cell.outside_gib = gpu_beside()
    return cell


def gpu_beside() -> tuple[float, float]:
    """(GiB that the allocator reserved at most, GiB of the GPU in use beside what it holds now)."""
    import torch

    free, whole = torch.cuda.mem_get_info()
    return torch.cuda.max_memory_reserved() / GIB, (whole - free - torch.cuda.memory_reserved()) / GIB


def main() -> None:
    setup, road = Setup.load(Path(sys.argv[1])), sys.argv[2]
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if road == LABEL:
        from qlora_label import measure_label

        found = measure_label(setup)
    else:
        found = measure_road(setup, road, json.loads(sys.argv[3]))
    for one in found:
        print("\n" + json.dumps({"kind": type(one).__name__} | asdict(one)), flush=True)


if __name__ == "__main__":
    main()
