"""What a run's checkpoints are known by."""

from __future__ import annotations

from pathlib import Path

from infer.checkpoints import checkpoint_identity
from models.checkpoint import write_identity


def test_a_model_card_changes_no_identity_and_weights_do(tmp_path: Path) -> None:
    write_identity(tmp_path, task="text", method="adapter", labels=["a", "b"])
    (tmp_path / "weights").write_text("1")
    before = checkpoint_identity(tmp_path, ["a", "b"])
    (tmp_path / "README.md").write_text("A card.")
    assert checkpoint_identity(tmp_path, ["a", "b"]) == before
    (tmp_path / "weights").write_text("2")
    assert checkpoint_identity(tmp_path, ["a", "b"]) != before
