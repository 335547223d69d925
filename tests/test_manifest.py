"""What a checkpoint folder must hold, by its manifest: whatever was done to a file is said, in words."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from models.manifest import MANIFEST, damage, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "checkpoint"
    (made / "inner").mkdir(parents=True)
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 40)
    (made / "inner" / "settings.json").write_text("{}")
    (made / "README.md").write_text("a card")
    write_manifest(made)
    return made


def test_a_folder_as_it_was_written_has_no_damage_and_the_same_list_again(folder: Path) -> None:
    assert damage(folder, required=True) is None
    first = (folder / MANIFEST).read_bytes()
    write_manifest(folder)
    assert (folder / MANIFEST).read_bytes() == first
    assert set(json.loads(first)["files"]) == {"model.safetensors", "inner/settings.json"}


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[5000] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (flip, "model.safetensors holds other bytes than were written"),
        (lambda file: file.write_bytes(b""), "model.safetensors has 0 bytes instead of 10240"),
        (lambda file: file.write_bytes(file.read_bytes()[:-1]), "model.safetensors has 10239 bytes instead of 10240"),
        (lambda file: file.write_bytes(file.read_bytes() + b"\0"), "model.safetensors has 10241 bytes"),
        (Path.unlink, "model.safetensors is missing"),
        (lambda file: (file.unlink(), file.mkdir()), "model.safetensors is missing"),
        (lambda file: (file.parent / "inner" / "settings.json").write_text("[]"), "inner/settings.json holds other"),
    ],
)
def test_every_harm_to_a_listed_file_is_said(harm: Callable[[Path], object], said: str, folder: Path) -> None:
    harm(folder / "model.safetensors")
    assert said in str(damage(folder))


def test_what_is_not_listed_may_change_and_come(folder: Path) -> None:
    (folder / "README.md").write_text("a better card")
    (folder / "notes.txt").write_text("mine")
    assert damage(folder, required=True) is None


def test_a_folder_without_a_manifest_is_unfinished_or_of_others(folder: Path) -> None:
    (folder / MANIFEST).unlink()
    assert damage(folder) is None
    assert "not written to its end" in str(damage(folder, required=True))


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b"{}", b'{"files": []}', b'{"files": {"a": 1}}', b'{"files": {"a": {"bytes": 1}}}',
     b'{"files": {"a": {"bytes": "many", "sha256": ""}}}', b'{"files": {"a": {"bytes": 1e999, "sha256": ""}}}',
     b"[" * 3000],
)  # fmt: skip
def test_a_manifest_that_is_none_is_damage(content: bytes, folder: Path) -> None:
    (folder / MANIFEST).write_bytes(content)
    assert damage(folder) == f"its {MANIFEST} is damaged"


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "inner/../../secret", "link"])
def test_a_manifest_never_leads_out_of_its_folder(name: str, folder: Path) -> None:
    secret = folder.parent / "secret"
    secret.write_text("")
    (folder / "link").symlink_to(secret)
    listed = {"files": {name: {"bytes": 0, "sha256": ""}}}
    (folder / MANIFEST).write_text(json.dumps(listed))
    assert f"names {name!r}, which is outside of it" in str(damage(folder))
