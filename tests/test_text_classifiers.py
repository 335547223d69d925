"""The baselines of texts: they learn, say so in the labels' order, and come back from their folder to the last bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from text_rows import LABELS, skill_rows

from infer.classifiers import load_classifier, make_classifier, save_classifier
from infer.text_classifiers import KINDS, PriorTexts, TfidfTexts, UniformTexts, best_strength, text_of
from models.settings import MethodSettings
from models.tasks.text import TextRow

rows, index = skill_rows(90)


@pytest.mark.parametrize("method", ["uniform", "prior", "tfidf"])
def test_a_classifier_comes_back_from_its_folder_with_the_same_numbers(tmp_path: Path, method: str) -> None:
    made = make_classifier(MethodSettings(name=method, embeddings="no"), seed=3, labels=LABELS)
    probs = made.fit(rows, index).predict_proba(rows[:20])
    assert probs.shape == (20, 3) and probs.dtype == np.float32
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    save_classifier(made, tmp_path, task="skills", method=method)
    loaded = load_classifier(tmp_path, task="skills", labels=LABELS)
    assert loaded.labels == LABELS and loaded.seed == 3
    np.testing.assert_array_equal(loaded.predict_proba(rows[:20]), probs)
    with pytest.raises(ValueError, match="in this order"):
        load_classifier(tmp_path, labels=LABELS[::-1])


def test_ngrams_learn_what_the_words_say() -> None:
    fresh, truth = skill_rows(60, seed=1)
    probs = TfidfTexts(LABELS).fit(rows, index).predict_proba(fresh)
    assert (probs.argmax(axis=1) == truth).mean() > 0.9


def test_a_prediction_does_not_depend_on_its_neighbours() -> None:
    fitted = TfidfTexts(LABELS).fit(rows, index)
    alone = np.concatenate([fitted.predict_proba([row]) for row in rows[:10]])
    np.testing.assert_array_equal(fitted.predict_proba(rows[:10]), alone)


def test_the_prior_counts_the_rows_and_leaves_no_label_impossible() -> None:
    probs = PriorTexts(LABELS).fit(rows[:3], [0, 0, 1]).predict_proba(rows[:1])
    np.testing.assert_allclose(probs, [[3 / 6, 2 / 6, 1 / 6]], atol=1e-7)
    weighted = PriorTexts(LABELS).fit(rows[:3], [0, 0, 1], np.array([1.0, 1.0, 5.0])).predict_proba(rows[:1])
    np.testing.assert_allclose(weighted, [[3 / 10, 6 / 10, 1 / 10]], atol=1e-7)


def test_weights_move_the_answer_towards_the_heavy_rows() -> None:
    plain = TfidfTexts(LABELS).fit(rows, index).predict_proba(rows)
    heavy = TfidfTexts(LABELS).fit(rows, index, np.where(index == 1, 20.0, 1.0)).predict_proba(rows)
    assert heavy[:, 1].mean() > plain[:, 1].mean()


def test_a_label_without_training_rows_is_rare_and_not_impossible() -> None:
    known = index < 2
    fitted = TfidfTexts(LABELS).fit([row for row, keep in zip(rows, known, strict=True) if keep], index[known])
    probs = fitted.predict_proba(rows[:5])
    assert (probs[:, 2] > 0).all() and (probs[:, 2] < 0.02).all()


def test_the_strength_is_the_one_with_the_least_inner_loss() -> None:
    """Columns that are the label want a weak ridge, columns of noise a strong one."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 120)
    noise = random.normal(size=(120, 60))
    ones = np.ones(120)
    assert best_strength(np.eye(3)[labels], labels, ones, seed=0) == 30
    assert best_strength(noise, labels, ones, seed=0) == 0.3
    assert best_strength(noise[:4], np.array([0, 0, 0, 1]), ones[:4], seed=0) == 1  # no two folds with every label


def test_rows_and_labels_that_differ_in_number_are_refused() -> None:
    with pytest.raises(ValueError, match=r"90 rows and .3,. labels were given"):
        UniformTexts(LABELS).fit(rows, [0, 1, 2])
    with pytest.raises(ValueError, match="0 rows"):
        PriorTexts(LABELS).fit([], [])


def test_an_unfitted_classifier_predicts_and_saves_nothing(tmp_path: Path) -> None:
    for kind in KINDS.values():
        with pytest.raises(ValueError, match="not fitted"):
            kind(LABELS).predict_proba(rows[:1])
        with pytest.raises(ValueError, match="not fitted"):
            kind(LABELS).save(tmp_path)


def test_all_texts_of_a_row_are_read() -> None:
    assert text_of(TextRow("0", {"Skill": "Python", "trade": "IT"}, None, {}, "")) == "Python\nIT"


def test_no_rows_have_no_probabilities() -> None:
    assert TfidfTexts(LABELS).fit(rows, index).predict_proba([]).shape == (0, 3)


def test_sentence_vectors_learn_what_words_mean(minilm: str, tmp_path: Path) -> None:
    """Words that no training row has: n-grams cannot know them, sentence vectors do."""
    hard = ["Java", "welding", "accounting", "surgery", "SQL databases", "carpentry", "tax law", "chemistry"]
    soft = ["kindness", "patience", "listening", "leading people", "honesty", "empathy", "humour", "tact"]
    texts = [TextRow(str(at), {"text": text}, None, {}, "") for at, text in enumerate(hard + soft)]
    fitted = KINDS["embedding_logistic"](LABELS[:2]).fit(texts, [0] * 8 + [1] * 8)
    fresh = ["programming in Python", "plumbing", "being friendly", "compassion"]
    new = [TextRow("", {"text": text}, None, {}, "") for text in fresh]
    probs = fitted.predict_proba(new)
    assert probs.argmax(axis=1).tolist() == [0, 0, 1, 1]
    fitted.save(tmp_path)
    np.testing.assert_array_equal(KINDS["embedding_logistic"].load(tmp_path).predict_proba(new), probs)
