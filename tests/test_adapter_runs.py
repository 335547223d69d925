"""A run of adapters: folds trained on texts or arena rows, read back with the run's temperature."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import compose, pair_rows

from infer.adapter import AdapterClassifier, load_adapter_reader
from infer.adapter_reading import mean_reading, tempered
from infer.readers.by_method import load_label_reader
from infer.readers.label import LabelReading
from models import adapter_base
from models.tasks.text import TextRow
from train.fold import FoldData
from train.learners import make_learner, prepare
from train.rows import LabelledRows, arena_rows

LABELS = ("Hard", "Soft", "Unknown")


@pytest.fixture(autouse=True)
def no_base_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter_base, "_base", None)


def skills(folder: Path, model: str, *overrides: str):
    return compose(
        "+experiment=skills_quickstart", f"model.name={model}", f"run_dir={folder / 'run'}", "adapter.rank=4",
        "trainer.precision=fp32", f"output={folder / 'out.csv'}", "adapter.dropout=0", *overrides,
    )  # fmt: skip


def text_data(count: int = 12) -> FoldData:
    words = ["good film", "bad plot", "dull"]
    rows = [TextRow(str(n), {"text": f"{words[n % 3]} {n}"}, LABELS[n % 3], {}, f"row {n}") for n in range(count)]
    index = np.arange(count) % 3
    targets = np.eye(3, dtype=np.float32)[index]
    ids = np.array([row.id for row in rows], dtype=object)
    return FoldData(LabelledRows(rows, ids, LABELS, index, targets, np.arange(count)), np.arange(count) % 2)


def arena_data(count: int = 6) -> FoldData:
    return FoldData(arena_rows(pair_rows(count)), np.arange(count) % 2)


def taught(settings, data: FoldData, *, steps: int = 3):
    """A learner after a few steps on all rows."""
    import torch
    from torch.nn import functional as F

    if data.prepared is None:
        prepare(settings, data, Path(settings.run_dir), main=True)
    learner = make_learner(settings, data, np.arange(len(data.rows)), seed=1)
    weights = [weight for weight in learner.network.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    items = [2 * row for row in range(len(data.rows))]
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(learner.network(**learner.batch(items)), torch.from_numpy(data.rows.targets))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    return learner


def finish(folder: Path, number: int, learner) -> Path:
    """A finished fold, as train_fold leaves it."""
    fold = folder / "run" / f"fold{number}"
    learner.save(fold / "checkpoint")
    (fold / "done.json").write_text("{}")
    return fold / "checkpoint"


@pytest.mark.parametrize("head", ["label", "sequence"])
def test_a_saved_fold_predicts_what_the_trained_one_did(tmp_path: Path, tiny_language_model: str, head: str) -> None:
    import torch

    settings, data = skills(tmp_path, tiny_language_model, f"adapter.head={head}"), text_data()
    learner = taught(settings, data)
    every = np.arange(len(data.rows))
    probs, other, gap = learner.predict(every)
    with torch.no_grad():
        shares = learner.network(**learner.batch([2 * row for row in every])).softmax(dim=-1)
    np.testing.assert_allclose(probs, shares.numpy(), atol=1e-5)  # the loss and the held-out table mean the same
    assert (gap == 0).all() and (other < 1e-6).all() == (head == "sequence")
    classifier = AdapterClassifier.load(finish(tmp_path, 0, learner))
    again, other_again, _ = classifier.predict(data.rows.rows)
    np.testing.assert_allclose(again, probs, atol=1e-6)
    np.testing.assert_allclose(other_again, other, atol=1e-6)
    with pytest.raises(AssertionError, match="has taken the base"):
        learner.predict(every)


def test_arena_rows_are_learnt_and_read_in_both_orders(tmp_path: Path, tiny_language_model: str) -> None:
    settings = compose(
        "+experiment=arena_llama_qlora", f"model.name={tiny_language_model}", "model.quantization=none",
        f"run_dir={tmp_path / 'run'}", "trainer.precision=fp32", "adapter.rank=4", "engine.max_tokens=400",
        "trainer.activation_checkpointing=false",
    )  # fmt: skip
    data = arena_data()
    learner = taught(settings, data)
    as_written, swapped = (learner.batch([item])["input_ids"].tolist() for item in (4, 5))
    assert as_written != swapped
    first, second = (data.rows.rows[2], data.rows.rows[2].swapped())
    trained = learner.predict(np.arange(len(data.rows)))
    classifier = AdapterClassifier.load(finish(tmp_path, 0, learner))
    probs, _, gap = classifier.predict([first, second])
    np.testing.assert_allclose(probs[0], probs[1][[1, 0, 2]], atol=1e-6)  # A and B exchanged, the tie stays
    assert (gap > 1e-4).all()
    for found, expected in zip(classifier.predict(data.rows.rows), trained, strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_folds_are_averaged_and_the_temperature_of_the_run_is_applied(tmp_path: Path, tiny_language_model: str) -> None:
    import json

    settings, data = skills(tmp_path, tiny_language_model), text_data()
    rows = [row.fields for row in data.rows.rows]
    each = []
    for fold in (0, 1):
        learner = taught(settings, data, steps=2 + 2 * fold)
        each.append(learner.predict(np.arange(len(rows)))[0])
        finish(tmp_path, fold, learner)
    found = load_adapter_reader(settings).read(rows)
    np.testing.assert_allclose(found.probs(), np.mean(each, axis=0), atol=1e-5)
    calibration = {"method": "temperature", "temperature": 2.0, "labels": list(LABELS)}
    (tmp_path / "run" / "calibration.json").write_text(json.dumps(calibration))
    softer = load_adapter_reader(settings).read(rows)
    expected = np.sqrt(found.probs())
    np.testing.assert_allclose(softer.probs(), expected / expected.sum(axis=1, keepdims=True), atol=1e-5)
    np.testing.assert_allclose(softer.other, found.other, atol=1e-9)
    plain = load_label_reader(settings).read(rows)
    assert np.abs(plain.probs() - found.probs()).max() > 0.05


def test_an_adapter_is_not_asked_another_question_nor_other_labels(tmp_path: Path, tiny_language_model: str) -> None:
    settings = skills(tmp_path, tiny_language_model)
    finish(tmp_path, 0, taught(settings, text_data(), steps=2))
    other = skills(tmp_path, tiny_language_model, "question.prompt='Is {text} hard?'")
    with pytest.raises(ValueError, match=r"another question: prompt .*adapter\.use=none"):
        load_adapter_reader(other)
    other = skills(tmp_path, tiny_language_model, "question.examples=[]", "~question.labels.Unknown")
    with pytest.raises(ValueError, match="has the labels"):
        load_adapter_reader(other)


def test_a_setting_that_came_later_and_is_not_used_refuses_no_adapter(tmp_path: Path, tiny_language_model: str) -> None:
    settings = skills(tmp_path, tiny_language_model)
    folder = finish(tmp_path, 0, taught(settings, text_data(), steps=2))
    path = folder / "tiebreak.json"
    identity = json.loads(path.read_text())
    del identity["question"]["descriptions"]
    path.write_text(json.dumps(identity))
    assert load_adapter_reader(settings).labels == LABELS


def test_a_mean_of_readings_keeps_what_the_labels_hold_together() -> None:
    readings = [LabelReading(np.log([[0.2, 0.6]]), np.zeros(1)), LabelReading(np.log([[0.1, 0.1]]), np.zeros(1))]
    mean = mean_reading(readings)
    np.testing.assert_allclose(mean.probs(), [[(0.25 + 0.5) / 2, (0.75 + 0.5) / 2]])
    np.testing.assert_allclose(mean.other, [(0.2 + 0.8) / 2])
    tiny = mean_reading([LabelReading(np.array([[-80.0, -81.0]]), np.zeros(1))] * 2)
    assert np.isfinite(tiny.log_probs).all()
    np.testing.assert_allclose(tempered(mean, 1.0).log_probs, mean.log_probs)


def test_a_new_head_is_asked_about_texts_without_content_too(tmp_path: Path, tiny_language_model: str) -> None:
    settings = skills(tmp_path, tiny_language_model, "adapter.head=sequence")
    finish(tmp_path, 0, taught(settings, text_data(), steps=2))
    reader = load_adapter_reader(settings)
    empty = [{"text": text} for text in ("N/A", "", "[MASK]")]
    np.testing.assert_allclose(reader.read_content_free(), reader.read(empty).log_probs, atol=1e-6)
    np.testing.assert_allclose(reader.read_premise(), reader.read([{"text": ""}]).log_probs, atol=1e-6)


def test_an_adapter_is_not_read_with_another_head(tmp_path: Path, tiny_language_model: str) -> None:
    finish(tmp_path, 0, taught(skills(tmp_path, tiny_language_model), text_data(), steps=2))
    with pytest.raises(ValueError, match=r"trained with adapter\.head=label, not sequence\. Set adapter\.head=label"):
        load_adapter_reader(skills(tmp_path, tiny_language_model, "adapter.head=sequence"))
