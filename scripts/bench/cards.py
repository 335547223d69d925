"""What a benchmark may take of this machine, so that a larger card stands for a smaller one. Imports torch when asked.

torch's caching allocator can be capped, and nothing else: CUDA's context with its kernels, NCCL's buffers and the paged
state of bitsandbytes (managed memory) lie outside it. So a card of so many GiB leaves its tensors OUTSIDE_GIB less.
"""

from __future__ import annotations

import argparse

# What torch can see of the card: nvidia-smi's 15,360 MiB of a T4 and 16,384 of a P100, less what the driver keeps.
CARDS = {"t4": 14.56, "p100": 15.89}
# 0.5 to 0.6 GiB on Hopper, which has more kernels loaded than a T4 or P100: their tensors get rather less than more.
OUTSIDE_GIB = 0.6
MEMORY_HELP = (
    f"stand for a card of so many GiB: {', '.join(f'{name} ({gib})' for name, gib in CARDS.items())} or a number; "
    f"on a GPU its tensors get {OUTSIDE_GIB} less, for CUDA's context"
)


def card_gib(text: str) -> float:
    """GiB of a card by its name in CARDS, or as a number. For argparse, which tells the ArgumentTypeError."""
    if text in CARDS:
        return CARDS[text]
    try:
        gib = float(text)
    except ValueError:
        gib = 0.0
    if not gib > 0 or (gib == float("inf")):
        raise argparse.ArgumentTypeError(f"{text}: expected {', '.join(CARDS)} or a number of GiB above 0")
    return gib


def tensor_gib(card: float, device: str) -> float:
    """What is left for tensors on a card of so many GiB. Raises ValueError where its context alone fills it."""
    left = card - OUTSIDE_GIB if device == "cuda" else card
    if left <= 0:
        raise ValueError(f"--memory-gib {card:g}: CUDA's context alone takes about {OUTSIDE_GIB} GiB; give more.")
    return left


def cap_allocator(card: float | None) -> None:
    """No more tensors for this process than a card of so many GiB has room for; None: all that the GPU has."""
    if card is None:
        return
    import torch

    whole = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, tensor_gib(card, "cuda") * 2**30 / whole))
