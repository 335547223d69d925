"""A short mark of a model's files, so that numbers made with one model are not taken for another's. Knows no format."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

# What the probabilities of a checkpoint folder depend on; not its README, nor what we or a trainer keep beside it.
MODEL_FILES = (
    "config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "*.model", "vocab*", "merges.txt",
    "special_tokens_map.json", "added_tokens.json", "chat_template*",
)  # fmt: skip
# 64 blocks over each file: a fine-tune moves whole matrices, so some block differs, and 16 GB are marked in a moment.
BLOCKS = 64
BLOCK_BYTES = 16_384


def fingerprint(files: Iterable[Path]) -> str:
    """16 hex digits from each file's name, size and 64 evenly spaced blocks (all of a file under 1 MiB).

    Not proof against a forger: one changed byte of a large file may go unseen.
    """
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}\n".encode())
        with file.open("rb") as stream:
            for block in range(BLOCKS):
                stream.seek(max(block * BLOCK_BYTES, block * (size - BLOCK_BYTES) // (BLOCKS - 1)))
                digest.update(stream.read(BLOCK_BYTES))
    return digest.hexdigest()[:16]


def model_files(folder: Path) -> set[Path]:
    """The files of a checkpoint folder that its probabilities depend on."""
    return {file for pattern in MODEL_FILES for file in folder.glob(pattern) if file.is_file()}
