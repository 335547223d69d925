"""An encoder learns labels of texts: the whole road of a tiny one, its checkpoints, and who reads them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import compose

from infer.calibration.temperature import read_calibration
from infer.classifiers import load_classifier
from infer.predictions import Predictions
from infer.run import run as infer
from models.text_encoder import MEAN_FILE
from train.fold import FoldData
from train.learners import make_learner, prepare
from train.rows import read_training_rows
from train.run import run as train

LABELS = ("positive", "negative")


def write_reviews(path: Path, count: int = 48) -> Path:
    texts = [f"the {('good', 'bad')[n % 2]} film is {('fine', 'dull')[n % 2]} {n}" for n in range(count)]
    pd.DataFrame({"id": range(count), "text": texts, "label": [LABELS[n % 2] for n in range(count)]}).to_csv(
        path, index=False
    )
    return path


def settings_of(folder: Path, encoder: str, *overrides: str):
    return compose(
        "+experiment=reviews_encoder", f"task.input_csv={folder / 'in.csv'}", f"run_dir={folder / 'run'}",
        f"model.name={encoder}", "model.frozen_layers=0", "trainer.epochs=4", "trainer.batch_rows=8",
        "trainer.learning_rate=5e-3", *overrides,
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def no_sentence_vectors():
    """Their baseline takes longer than all that is tested here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("infer.text_embeddings.installed", lambda: False)
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: str):
    """(settings, metrics) of a finished run."""
    folder = tmp_path_factory.mktemp("reviews")
    write_reviews(folder / "in.csv")
    settings = settings_of(folder, tiny_encoder)
    return settings, train(settings)


def test_an_encoder_learns_texts_on_the_folds_of_every_method(finished) -> None:
    settings, metrics = finished
    folder = Path(settings.run_dir)
    heldout = Predictions.read(folder / "heldout.csv")
    assert len(heldout) == 48 and set(heldout.fold.tolist()) == {0, 1}
    assert metrics["log_loss"] < 0.4 < metrics["baselines"]["class prior"]
    told = json.loads((folder / "fold0" / "checkpoint" / "tiebreak.json").read_text())
    assert told["task"] == "text" and told["method"] == "encoder" and told["labels"] == list(LABELS)
    card = (folder / "fold0" / "checkpoint" / "README.md").read_text()
    assert "reads texts with it" in card and MEAN_FILE in card


def test_rows_are_tokenised_before_the_first_fold_and_never_again(
    finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, _ = finished
    rows = read_training_rows(settings)
    data = FoldData(rows, np.arange(len(rows)) % 2)
    prepare(settings, data, tmp_path, main=True)
    prepared = data.prepared
    monkeypatch.setattr("models.text_encoder.whole_texts", None)
    monkeypatch.setattr("train.text_encoder_learner.whole_texts", None)
    learners = [make_learner(settings, data, data.training(fold), seed=fold) for fold in (0, 1)]
    assert data.prepared is prepared is not None
    tokenizer = learners[0].reader.encoding.tokenizer
    expected = [tokenizer("\n".join(row.fields.values()))["input_ids"] for row in rows.rows]
    for learner in learners:
        assert [ids.tolist() for ids in learner.ids] == expected


def test_other_rows_are_read_by_the_mean_of_the_folds_at_the_runs_temperature(finished, tmp_path: Path) -> None:
    settings, _ = finished
    others = pd.DataFrame({"text": ["a good scene", "bad plot and dull", "which film"]})
    others.to_csv(tmp_path / "others.csv", index=False)
    overrides = [f"task.input_csv={tmp_path / 'others.csv'}", f"output={tmp_path / 'out.csv'}"]
    infer(settings_of(Path(settings.run_dir).parent, settings.model.name, *overrides))
    table = pd.read_csv(tmp_path / "out.csv")
    from models.tasks.text import TextRow

    rows = [TextRow("", {"text": text}, None, {}, "") for text in others["text"]]
    folds = [load_classifier(Path(settings.run_dir) / f"fold{fold}" / "checkpoint") for fold in (0, 1)]
    mean = np.mean([one.predict_proba(rows) for one in folds], axis=0)
    sharpened = mean ** (1 / read_calibration(Path(settings.run_dir) / "calibration.json", LABELS))
    expected = sharpened / sharpened.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(table[[f"p_{label}" for label in LABELS]], expected, atol=1e-4)
    assert table["p_other"].abs().max() < 1e-6


def test_a_fold_is_an_ordinary_checkpoint_but_for_the_mean(finished, tiny_encoder: str, tmp_path: Path) -> None:
    """With pooling=own transformers alone gives our probabilities; with mean the file beside it adds to them."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    write_reviews(tmp_path / "in.csv", 16)
    train(settings_of(tmp_path, tiny_encoder, "model.pooling=own", "folds.only=[0]", "trainer.epochs=1"))
    mean = Path(finished[0].run_dir) / "fold0" / "checkpoint"
    for folder, same in ((tmp_path / "run" / "fold0" / "checkpoint", True), (mean, False)):
        assert (folder / MEAN_FILE).is_file() is not same
        classifier = load_classifier(folder)
        network = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        assert network.config.id2label == dict(enumerate(LABELS))
        with torch.inference_mode():
            inputs = AutoTokenizer.from_pretrained(folder)("the film was good", return_tensors="pt")
            plain = network(**inputs).logits.softmax(-1).numpy()
        reading = classifier.reader.read([{"text": "the film was good"}])
        assert np.allclose(reading.probs(), plain, atol=1e-5) is same


def test_a_finished_fold_can_be_named_as_a_checkpoint_of_its_own(finished, tmp_path: Path) -> None:
    """model.name takes our checkpoints as it takes the hub's, mean head and all; so does run_dir."""
    fold = Path(finished[0].run_dir) / "fold0" / "checkpoint"
    given = [f"task.input_csv={finished[0].task.input_csv}", "report=false"]
    ways = {
        "named.csv": [f"model.name={fold}", f"run_dir={tmp_path / 'none'}"],
        "run.csv": [f"run_dir={fold}", f"model.name={finished[0].model.name}"],
    }
    for output, way in ways.items():
        infer(compose("+experiment=reviews_encoder", *given, *way, f"output={tmp_path / output}"))
    named, run = (pd.read_csv(tmp_path / output) for output in ways)
    np.testing.assert_allclose(named["p_positive"], run["p_positive"], atol=1e-6)


def test_reading_before_training_says_to_train(tiny_encoder: str, tmp_path: Path) -> None:
    write_reviews(tmp_path / "in.csv")
    with pytest.raises(ValueError, match="python -m train with the same arguments"):
        infer(settings_of(tmp_path, tiny_encoder))


def test_a_run_is_not_read_as_another_checkpoint(finished, minilm: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"was trained from .*another run_dir"):
        infer(settings_of(Path(finished[0].run_dir).parent, minilm, f"output={tmp_path / 'never.csv'}"))
    assert not list(tmp_path.iterdir()), "refused before anything is begun"


def test_a_text_longer_than_the_network_is_refused_before_training(tiny_encoder: str, tmp_path: Path) -> None:
    write_reviews(tmp_path / "in.csv", 16)
    with pytest.raises(ValueError, match=r"engine.max_tokens=300, but .* has 256 positions"):
        train(settings_of(tmp_path, tiny_encoder, "engine.max_tokens=300"))


def test_shares_of_labels_are_learnt_as_shares(tiny_encoder: str, tmp_path: Path) -> None:
    """Every row is 0.7 positive: the largest share alone would teach a probability near 1."""
    table = pd.DataFrame({"id": range(40), "text": [f"the film {n}" for n in range(40)], "a": 0.7, "b": 0.3})
    table.loc[:1, ["a", "b"]] = [0.3, 0.7]  # a table of one label alone would be refused
    table.to_csv(tmp_path / "in.csv", index=False)
    shares = "task.target_columns={positive: a, negative: b}"
    train(settings_of(tmp_path, tiny_encoder, shares, "folds.count=2", "trainer.epochs=6", "trainer.restarts=0"))
    probs = Predictions.read(tmp_path / "run" / "heldout.csv").probs
    assert 0.6 < probs[:, 0].mean() < 0.8
