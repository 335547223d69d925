"""What an output depends on, as JSON values kept beside it, and how two such differ; knows no model and no setting."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from infer.files import write_json

NAMED_DIFFERENCES = 4
VALUE_CHARACTERS = 40


def as_json(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The values as they come back from a file: tuples are lists, keys are text. Refuses NaN and infinity."""
    return json.loads(json.dumps(dict(identity), allow_nan=False))


def identity_in(path: Path) -> dict[str, Any] | None:
    """What a JSON file holds under `identity`; None where there is no such file, or nothing of the kind in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    found = content.get("identity") if isinstance(content, dict) else None
    return found if isinstance(found, dict) else None


def write_record(path: Path, identity: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Writes how an output was made: what it depends on, for `identity_in`, and what else is to be known of it."""
    assert "identity" not in values, values["identity"]
    write_json(path, {"identity": as_json(identity), **values})


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """The keys whose values differ, the first few: `engine.budget_tokens (512 there, 1024 now), ...`."""
    old, new = _flat(old), _flat(new)
    keys = [key for key in dict.fromkeys([*new, *old]) if _short(old, key, None) != _short(new, key, None)]
    said = [
        f"{key} ({_short(old, key, VALUE_CHARACTERS)} there, {_short(new, key, VALUE_CHARACTERS)} now)"
        for key in keys[:NAMED_DIFFERENCES]
    ]
    return ", ".join(said) + (f" and {len(keys) - len(said)} more" if len(keys) > len(said) else "")


def input_identity(path: str | Path) -> dict[str, Any]:
    """Name, size and SHA-256 of a file that is read; of a path into a zip (`data.zip/train.csv`), those of the zip."""
    path = Path(path)
    mark = mark_of(next((folder for folder in path.parents if folder.is_file()), path))
    return {"input": path.name, "input_bytes": mark["bytes"], "input_sha256": mark["sha256"]}


def mark_of(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def refuse_foreign(written: Iterable[Path], records: Iterable[Path]) -> None:
    """Refuses to replace files of which no run is known to have made them: none of the records holds an identity.

    A folder that a run of ours has written to is its own. Raises ValueError naming the files.
    """
    there = [str(path) for path in written if path.exists() or path.is_symlink()]
    if there and not any(identity_in(path) for path in records):
        said = "is there already and was made otherwise: no record beside it says how. Move it away"
        if len(there) > 1:
            said = "are there already and were made otherwise: no record beside them says how. Move them away"
        raise ValueError(f"{', '.join(there)} {said}, or name another output.")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {prefix + key: value}
    return flat


def _short(values: Mapping[str, Any], key: str, characters: int | None) -> str:
    if key not in values:
        return "none"
    text = json.dumps(values[key], ensure_ascii=False)
    return text if characters is None or len(text) <= characters else text[: characters - 3] + "..."
