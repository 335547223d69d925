"""The mark of a base's weights: of all of them, fetched where the hub's cache has none, refused where it cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants

from models import adapter_files
from models.adapter_files import weights_mark

COMMIT = "abc123" * 6 + "abcd"


@pytest.fixture
def cached(tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The snapshot of me/tiny in a hub cache of its own; no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    folder = tmp_path / "models--me--tiny"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    shutil.copytree(tiny_language_model, folder / "snapshots" / COMMIT)
    return folder / "snapshots" / COMMIT


def test_a_cached_hub_model_has_the_mark_of_its_files(cached: Path, tiny_language_model: str) -> None:
    assert weights_mark("me/tiny") == weights_mark(tiny_language_model)


def test_weights_that_cannot_be_fetched_are_not_called_other_weights(cached: Path) -> None:
    (cached / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights of me/tiny are not all in the cache.*HF_HUB_OFFLINE is set"):
        weights_mark("me/tiny")


def test_weights_are_fetched_before_they_are_marked(
    cached: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def fetch(name: str, **how: object) -> None:
        asked.append(name)
        shutil.copy(Path(tiny_language_model) / "model.safetensors", cached)

    (cached / "model.safetensors").unlink()
    monkeypatch.setattr(adapter_files, "resolve_model", lambda name: name)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    for _ in range(2):
        assert weights_mark("me/tiny") == weights_mark(tiny_language_model)
    assert asked == ["me/tiny"]


@pytest.mark.parametrize("where", ["hub", "folder"])
def test_a_part_of_the_weights_is_not_marked(cached: Path, where: str) -> None:
    (cached / "model.safetensors").rename(cached / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (cached / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    said = "not all in the cache" if where == "hub" else "lacks weights of .*model-00002-of-00002"
    with pytest.raises(FileNotFoundError, match=said):
        weights_mark("me/tiny" if where == "hub" else str(cached))


def test_a_second_copy_beside_the_weights_changes_no_mark(cached: Path, tiny_language_model: str) -> None:
    shutil.copy(cached / "model.safetensors", cached / "consolidated.safetensors")
    assert weights_mark("me/tiny") == weights_mark(tiny_language_model)
