"""The whole road of a table of texts: read untaught, train, held-out table, read again by what was learnt; a report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import compose

from infer.predictions import Predictions
from infer.text_run import run_texts
from models import adapter_base
from train.run import run as train

LABELS = ("Hard", "Soft", "Unknown")
WORDS = ("good film", "bad plot", "dull account")


@pytest.fixture(autouse=True)
def no_base_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_base, "_base", None)


def write_skills(path: Path, count: int = 24) -> Path:
    labels = [LABELS[n % 3] for n in range(count)]
    table = pd.DataFrame({"Skill": [f"{WORDS[n % 3]} {n}" for n in range(count)], "label": labels})
    table.to_csv(path, sep=";", index=False)
    return path


def settings_of(folder: Path, experiment: str, *overrides: str):
    return compose(
        f"+experiment={experiment}", f"task.input_csv={folder / 'in.csv'}", f"run_dir={folder / 'run'}",
        "folds.count=2", *overrides,
    )  # fmt: skip


def adapters(folder: Path, model: str, *overrides: str):
    return settings_of(
        folder, "skills_quickstart", f"model.name={model}", "adapter.rank=4", "trainer.epochs=2",
        "trainer.batch_rows=4", "trainer.learning_rate=0.01", *overrides,
    )  # fmt: skip


def test_one_command_reads_untaught_and_after_training_by_what_was_learnt(
    tmp_path: Path, tiny_language_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_skills(tmp_path / "in.csv")
    settings = adapters(tmp_path, tiny_language_model)
    untaught = run_texts(settings)
    assert untaught.name == "untrained.parquet"

    metrics = train(settings)
    assert metrics is not None
    folder = tmp_path / "run"
    heldout = Predictions.read(folder / "heldout.csv")
    assert len(heldout) == 24 and set(heldout.fold.tolist()) == {0, 1}  # type: ignore[union-attr]
    assert metrics["log_loss"] == pytest.approx(heldout.log_loss())
    assert {"uniform", "class prior", "TF-IDF"} <= set(metrics["baselines"])
    assert json.loads((folder / "decision.json").read_text())["labels"] == list(LABELS)
    checkpoint = {path.name for path in (folder / "fold0" / "checkpoint").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tiebreak.json", "README.md"} <= checkpoint
    assert not any(name.startswith("model") for name in checkpoint)

    capsys.readouterr()
    taught = run_texts(settings)
    assert taught.name == "predictions.parquet"
    assert "was trained on these rows, so their score below flatters it" in capsys.readouterr().out
    before, after = pd.read_parquet(untaught), pd.read_parquet(taught)
    columns = [f"p_{label}" for label in LABELS]
    assert np.abs(before[columns].to_numpy() - after[columns].to_numpy()).max() > 0.05


def test_labelled_rows_that_were_trained_on_calibrate_nothing(tmp_path: Path) -> None:
    write_skills(tmp_path / "in.csv")
    train(settings_of(tmp_path, "skills_tfidf"))
    with pytest.raises(ValueError, match=r"would learn from the rows that .* was trained on"):
        run_texts(settings_of(tmp_path, "skills_tfidf", "calibration.fit=temperature", "task.label_column=label"))


def test_the_last_network_is_kept_where_the_heldout_rows_have_no_say(tmp_path: Path, tiny_language_model: str) -> None:
    write_skills(tmp_path / "in.csv")
    settings = adapters(tmp_path, tiny_language_model, "trainer.learning_rate=0.05", "trainer.epochs=4")
    metrics = train(settings)
    assert metrics is not None and settings.trainer.keep == "last"
    for fold in (0, 1):
        done = json.loads((tmp_path / "run" / f"fold{fold}" / "done.json").read_text())
        evaluations = [entry["eval_log_loss"] for entry in done["log"] if "eval_log_loss" in entry]
        assert done["log_loss"] == pytest.approx(evaluations[-1], abs=1e-5)
        assert len(set(evaluations)) > 1


def test_a_killed_fold_of_adapters_goes_on_to_the_same_table(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from train.loop import FoldTrainer

    write_skills(tmp_path / "in.csv")
    whole = adapters(tmp_path, tiny_language_model, "folds.only=[0]", "trainer.restarts=0")
    train(whole)
    expected = (tmp_path / "run" / "fold0" / "heldout.csv").read_bytes()

    broken = adapters(
        tmp_path, tiny_language_model, f"run_dir={tmp_path / 'broken'}", "folds.only=[0]", "trainer.restarts=0"
    )
    step, steps = FoldTrainer.training_step, 0

    def dies(self, *given, **also):
        nonlocal steps
        steps += 1
        if steps == 5:
            raise KeyboardInterrupt
        return step(self, *given, **also)

    monkeypatch.setattr(FoldTrainer, "training_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(broken)
    assert list((tmp_path / "broken" / "fold0").glob("attempts/0/checkpoint-*"))
    train(broken)
    assert (tmp_path / "broken" / "fold0" / "heldout.csv").read_bytes() == expected


def test_train_and_infer_leave_a_page_with_the_rows(tmp_path: Path) -> None:
    write_skills(tmp_path / "in.csv")
    settings = settings_of(tmp_path, "skills_tfidf", "report=true")
    train(settings)
    output = run_texts(settings)
    for page in (tmp_path / "run" / "report.html", output.with_name(f"{output.name}.report.html")):
        assert "good film 3" in page.read_text(encoding="utf-8")


def test_doctor_says_that_it_looks_at_arena_rows(tmp_path: Path) -> None:
    from train.cli import _run

    with pytest.raises(ValueError, match="doctor=true looks at arena rows only"):
        _run(settings_of(tmp_path, "skills_tfidf", "doctor=true"))


def test_gemma_2_is_never_trained_in_the_format_that_it_overflows() -> None:
    assert compose("+experiment=arena_gemma2_qlora").trainer.precision == "bf16"
