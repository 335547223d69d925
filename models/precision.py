"""Which number format a device trains and predicts in, and the sentence that says so.

Decided by compute capability: torch's own bfloat16 question also says yes where bfloat16 is only emulated
(finetuning traps: P100 and T4).
"""

from __future__ import annotations

import os
from collections.abc import Sequence

BF16_FROM = (8, 0)
GPU_FROM = (6, 0)
TORCH_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
# CUDA 12.6 is the last build that holds code for sm_60, and the last for sm_70 from torch 2.11 on.
OLD_GPU_INDEX = "https://download.pytorch.org/whl/cu126"


def resolve_precision(asked: str, capability: tuple[int, int] | None, key: str = "trainer.precision") -> str:
    """fp32, fp16 or bf16.

    asked: auto, fp16, bf16 or fp32. capability: of the CUDA device, None on a CPU. key: the setting asked for it.
    Raises ValueError for a word it does not know, bf16 under sm_80, fp16 on a CPU, and a GPU under sm_60.
    """
    if asked not in ("auto", *TORCH_NAMES):
        raise ValueError(f"{key}={asked!r}: expected one of auto, {', '.join(TORCH_NAMES)}.")
    if capability is None:
        if asked == "fp16":
            raise ValueError(
                f"{key}=fp16 needs a CUDA GPU; on a CPU it would be ignored or slow. Use auto or fp32 here."
            )
        return "fp32" if asked == "auto" else asked
    if capability < GPU_FROM:
        raise ValueError(f"This GPU is sm_{capability[0]}{capability[1]}; sm_60 (Pascal) is the oldest supported.")
    if asked == "bf16" and capability < BF16_FROM:
        raise ValueError(
            f"{key}=bf16 needs sm_80 or newer; this GPU is sm_{capability[0]}{capability[1]} and would "
            f"emulate it. Use {key}=fp16."
        )
    return "fp16" if asked == "auto" else asked


def check_build(capability: tuple[int, int], built_for: Sequence[str], torch_version: str) -> None:
    """Refuse a torch build that holds no code for this GPU (`torch.cuda.is_available()` says True all the same).

    built_for: torch.cuda.get_arch_list(), such as ["sm_75", "sm_80", "compute_90"].
    Raises ValueError with the index to install from.
    """
    major, minor = capability
    for arch in built_for:
        kind, _, digits = arch.partition("_")
        digits = digits.rstrip("af")  # sm_90a: that one chip only, but it is a chip of that number
        if not digits.isdigit():
            continue
        built = (int(digits[:-1]), int(digits[-1]))
        same_major = built[0] == major and built[1] <= minor
        if (kind == "sm" and same_major) or (kind == "compute" and built <= capability):
            return
    raise ValueError(
        f"torch {torch_version} is built for {', '.join(built_for)}, not for this GPU (sm_{major}{minor}). "
        f"Install the CUDA 12.6 build: pip install torch --index-url {OLD_GPU_INDEX}"
    )


def device_and_precision(asked: str, key: str = "trainer.precision") -> tuple[str, str, str]:
    """(device, precision, the log line about them) of this process. Raises ValueError, see above."""
    import torch

    if not torch.cuda.is_available():
        precision = resolve_precision(asked, None, key)
        return "cpu", precision, f"device cpu, precision {precision}"
    capability = torch.cuda.get_device_capability()
    check_build(capability, torch.cuda.get_arch_list(), torch.__version__)
    precision = resolve_precision(asked, capability, key)
    name = torch.cuda.get_device_name()
    note = (
        " (no tensor cores: fp16 halves memory more than time)" if capability < (7, 0) and precision == "fp16" else ""
    )
    return "cuda", precision, f"device {name}, sm_{capability[0]}{capability[1]}, precision {precision}{note}"


def own_capability() -> tuple[int, int] | None:
    """Of this process's CUDA device, (6, 0) for sm_60; None on a CPU."""
    import torch

    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def own_device() -> str:
    """cpu, or this process's GPU, made the current one: launchers number their processes by LOCAL_RANK."""
    import torch

    if not torch.cuda.is_available():
        return "cpu"
    rank = os.environ.get("LOCAL_RANK")
    # A launcher may also show each process one GPU only, which is then number 0.
    index = torch.cuda.current_device() if rank is None else int(rank) % torch.cuda.device_count()
    torch.cuda.set_device(index)
    return f"cuda:{index}"
