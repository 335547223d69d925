"""What a checkpoint folder must hold: every file's size and SHA-256 in manifest.json, written when all are on the disk.

Knows files only. Source: issue 7.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection
from pathlib import Path

from models.tasks.files import read_record, write_atomically

MANIFEST = "manifest.json"
UNLISTED = (MANIFEST, "README.md")  # the model card is for people, and written again later


def write_manifest(folder: Path) -> None:
    """Put every file of the folder on the disk, then list them. Two runs of the same bytes give the same list."""
    listed = {}
    for file in _files(folder):
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
        listed[file.relative_to(folder).as_posix()] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    with write_atomically(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps({"files": listed}, indent=2) + "\n", encoding="utf-8")


def sha256(file: Path) -> str:
    """The mark of a file's bytes, 64 hex digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def damage(folder: Path, *, required: bool = False, only: Collection[str] | None = None) -> str | None:
    """What is wrong with the folder's files, in words; None where all are as the manifest says.

    required: a folder without a manifest is unfinished; else it is taken as it is (older, or made by others).
    only: the names that matter; None for all.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return f"it has no {MANIFEST}: it was not written to its end" if required else None
    try:
        listed = read_record(path)["files"]
        wanted = {str(name): (int(one["bytes"]), str(one["sha256"])) for name, one in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return f"its {MANIFEST} is damaged"
    unlisted = sorted(set(only or ()) - wanted.keys())
    if unlisted:
        return f"its {MANIFEST} names no {unlisted[0]}"
    for name, (size, mark) in wanted.items():
        if only is not None and name not in only:
            continue
        file = folder / name
        if not file.resolve().is_relative_to(folder.resolve()):
            return f"its {MANIFEST} names {name!r}, which is outside of it"
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != size:
            return f"{name} has {file.stat().st_size} bytes instead of {size}"
        if sha256(file) != mark:
            return f"{name} holds other bytes than were written"
    return None


def _files(folder: Path) -> list[Path]:
    inside = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith(".tmp-"))
    return sorted(file for file in inside if file.relative_to(folder).as_posix() not in UNLISTED)
