"""SoftClassifier as a scikit-learn estimator and as a plain object: what it takes, what it gives, what it refuses."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, classification_report
from sklearn.model_selection import cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from tiny_models import make_tokenizer, tiny_causal

from infer import Predictions, SoftClassifier, answer_log_probs
from infer.soft_classifier import as_rows

LABELS = {"negative": " negative", "positive": " positive"}  # in alphabetical order
PROMPT = "Review: {text}\nSentiment:"
TEXTS = [
    "the plot is good",
    "a dull film",
    "I love it",
    "which is better",
    "bad, bad, bad",
    "fine",
    "a scene",
    "the end",
]
TRUTH = ["positive", "negative", "positive", "negative", "negative", "positive", "positive", "negative"]


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return tiny_causal("llama", 448), make_tokenizer()


@pytest.fixture
def clf(pair: tuple[Any, Any]) -> SoftClassifier:
    return SoftClassifier(pair, LABELS, PROMPT)


@pytest.fixture(scope="module")
def expected(pair: tuple[Any, Any]) -> np.ndarray:
    """(8, 2) probabilities of TEXTS, from the function that knows no labels."""
    prompts = [PROMPT.replace("{text}", text) for text in TEXTS]
    mass = np.exp(answer_log_probs(*pair, prompts, list(LABELS.values()), progress=False).astype(np.float64))
    return mass / mass.sum(axis=1, keepdims=True)


def test_probabilities_are_those_of_the_answers_in_the_labels_order(clf: SoftClassifier, expected: np.ndarray) -> None:
    probs = clf.predict_proba(TEXTS)
    assert probs.shape == (8, 2) and probs.dtype == np.float32
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(probs, expected, atol=1e-5)
    turned = clone(clf).set_params(labels=dict(reversed(LABELS.items())))
    assert turned.classes_.tolist() == ["positive", "negative"]
    np.testing.assert_allclose(turned.predict_proba(TEXTS)[:, ::-1], probs, atol=1e-6)


def test_predict_gives_the_table(clf: SoftClassifier, expected: np.ndarray) -> None:
    table = clf.predict([{"id": 70 + at, "text": text, "label": TRUTH[at]} for at, text in enumerate(TEXTS)])
    assert isinstance(table, Predictions)
    assert table.ids.tolist() == [str(70 + at) for at in range(8)] and table.labels == ("negative", "positive")
    assert table.truth is not None and table.truth.tolist() == TRUTH
    np.testing.assert_allclose(table.probs, expected, atol=1e-5)
    np.testing.assert_allclose(table.other, 1 - np.exp(clf.log_probs(TEXTS)).sum(axis=1), atol=1e-6)
    truth_probs = expected[np.arange(8), [list(LABELS).index(label) for label in TRUTH]]
    assert table.log_loss() == pytest.approx(-np.log(truth_probs).mean(), abs=1e-4)
    numbered = clf.predict(TEXTS)
    assert numbered.ids.tolist() == list("01234567") and numbered.truth is None


def test_a_label_of_another_set_is_no_truth(clf: SoftClassifier) -> None:
    rows = [{"text": "fine", "label": "positive"}, {"text": "dull", "label": "neutral"}, {"text": "a", "label": np.nan}]
    truth = clf.predict(rows).truth
    assert truth is not None and truth.tolist() == ["positive", None, None]


def test_tables_come_back_from_disk_as_they_were(clf: SoftClassifier, tmp_path: Path) -> None:
    table = clf.predict(TEXTS)
    table.to_csv(tmp_path / "out.csv")
    table.to_parquet(tmp_path / "out.parquet")
    for name in ("out.csv", "out.parquet"):
        back = Predictions.read(tmp_path / name)
        np.testing.assert_array_equal(back.probs, table.probs)
        np.testing.assert_array_equal(back.other, table.other)
        assert back.ids.tolist() == table.ids.tolist() and back.labels == table.labels
    assert {"id", "p_negative", "p_positive", "p_other"} < set(table.to_frame().columns)


# As scikit-learn knows an estimator


def test_parameters_are_got_and_set(clf: SoftClassifier) -> None:
    params = clf.get_params()
    assert params["labels"] == LABELS and params["prompt"] == PROMPT and params["answers_end"] == "none"
    before = clf.predict_proba(TEXTS)
    clf.set_params(prompt="Film: {text}\nSentiment:")
    assert np.abs(clf.predict_proba(TEXTS) - before).max() > 0.01
    clf.set_params(prompt=PROMPT)
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), before)
    with pytest.raises(ValueError, match="Invalid parameter 'prompts'"):
        clf.set_params(prompts="x")
    assert "SoftClassifier" in repr(clf)


def test_a_clone_shares_the_model_and_is_its_own_otherwise(clf: SoftClassifier, pair: tuple[Any, Any]) -> None:
    first = clf.predict_proba(TEXTS)
    twin = clone(clf)
    assert twin is not clf and twin.model is pair and twin.get_params() == clf.get_params()
    twin.set_params(prompt="{text} is")
    twin.predict_proba(TEXTS)
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), first)
    assert all(clone(one).model is pair for one in (twin, clf))


def test_another_model_under_the_same_number_is_not_taken_for_the_old_one(pair: tuple[Any, Any]) -> None:
    """A freed tuple's number may be given to the next one."""
    clf = SoftClassifier((pair[0], pair[1]), LABELS, PROMPT)
    first = clf.predict_proba(TEXTS)
    other = tiny_causal("llama", 448, rms_norm_eps=0.5)
    clf.model = None
    for _ in range(50):
        clf.model = (other, pair[1])
        assert np.abs(clf.predict_proba(TEXTS[:1]) - first[:1]).max() > 1e-3
        clf.model = None


def test_predictions_go_into_the_metrics(clf: SoftClassifier, expected: np.ndarray) -> None:
    right = np.mean([list(LABELS)[at] == label for at, label in zip(expected.argmax(axis=1), TRUTH, strict=True)])
    assert accuracy_score(TRUTH, clf.predict(TEXTS)) == pytest.approx(right)
    assert clf.score(TEXTS, TRUTH) == pytest.approx(right)
    assert "negative" in classification_report(TRUTH, clf.predict(TEXTS), zero_division=0)


def test_it_works_without_fit_and_fit_changes_nothing(clf: SoftClassifier) -> None:
    before = clf.predict_proba(TEXTS)
    try:
        assert clf.fit(TEXTS, TRUTH) is clf
    except NotFittedError:
        pytest.fail("there is nothing to fit")
    np.testing.assert_array_equal(clf.predict_proba(TEXTS), before)


def test_cross_validation_gives_the_plain_numbers(clf: SoftClassifier, expected: np.ndarray) -> None:
    np.testing.assert_allclose(cross_val_predict(clf, TEXTS, TRUTH, cv=4, method="predict_proba"), expected, atol=1e-5)
    labels = np.array(list(LABELS))
    assert cross_val_predict(clf, TEXTS, TRUTH, cv=4).tolist() == labels[expected.argmax(axis=1)].tolist()
    # Two folds of four rows that stand together: stratified folds without shuffling take the first two of each label.
    from sklearn.model_selection import KFold

    truth = np.array([label == "positive" for label in TRUTH])
    for scoring in ("accuracy", "neg_log_loss", "roc_auc"):
        found = cross_val_score(clf, TEXTS, TRUTH, cv=KFold(2), scoring=scoring)
        by_hand = [_score(scoring, truth[fold], expected[fold, 1]) for fold in (slice(4), slice(4, None))]
        np.testing.assert_allclose(found, by_hand, atol=1e-5)


def _score(name: str, truth: np.ndarray, positive: np.ndarray) -> float:
    """A score of rows by its definition; positive: their probability of the label that sorts last."""
    if name == "accuracy":
        return float(((positive > 0.5) == truth).mean())
    if name == "neg_log_loss":
        return float(np.log(np.where(truth, positive, 1 - positive)).mean())
    gaps = positive[truth][:, None] - positive[~truth]
    return float(((gaps > 0) + (gaps == 0) / 2).mean())


def test_labels_out_of_alphabetical_order_are_warned_of_in_fit_alone(pair: tuple[Any, Any]) -> None:
    turned = SoftClassifier(pair, {"positive": " positive", "negative": " negative"}, PROMPT)
    with pytest.warns(UserWarning, match=r"\['positive', 'negative'\], not in alphabetical order.*List the labels"):
        turned.fit(TEXTS, TRUTH)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        turned.predict_proba(TEXTS)
        SoftClassifier(pair, LABELS, PROMPT).fit(TEXTS, TRUTH)


def test_it_stands_at_the_end_of_a_pipeline(clf: SoftClassifier, expected: np.ndarray) -> None:
    cleaned = make_pipeline(FunctionTransformer(lambda texts: [text.strip() for text in texts]), clf)
    padded = [f"  {text}\n" for text in TEXTS]
    np.testing.assert_allclose(cleaned.predict_proba(padded), expected, atol=1e-5)
    assert cleaned.fit(padded, TRUTH).predict(padded).labels == ("negative", "positive")
    assert cleaned.classes_.tolist() == list(LABELS)


def test_a_classifier_of_a_named_model_is_pickled_without_its_weights(
    tiny_language_model: str, tmp_path: Path, expected: np.ndarray
) -> None:
    clf = SoftClassifier(tiny_language_model, LABELS, PROMPT)
    np.testing.assert_allclose(clf.predict_proba(TEXTS), expected, atol=1e-5)
    joblib.dump(clf, tmp_path / "clf.joblib")
    assert (tmp_path / "clf.joblib").stat().st_size < 5_000
    np.testing.assert_array_equal(joblib.load(tmp_path / "clf.joblib").predict_proba(TEXTS), clf.predict_proba(TEXTS))
    found = cross_val_predict(clf, TEXTS, TRUTH, cv=2, method="predict_proba", n_jobs=1)
    np.testing.assert_allclose(found, expected, atol=1e-5)


# What it takes


@pytest.mark.parametrize(
    "given",
    [
        TEXTS,
        tuple(TEXTS),
        np.array(TEXTS),
        np.array(TEXTS, dtype=object),
        pd.Series(TEXTS),
        [{"text": text} for text in TEXTS],
        pd.DataFrame({"n": range(8), "text": TEXTS}, index=range(20, 28)),
        (text for text in TEXTS),
    ],
    ids=["list", "tuple", "array of str", "array of objects", "Series", "dicts", "DataFrame", "generator"],
)
def test_texts_come_in_any_form(clf: SoftClassifier, expected: np.ndarray, given: Any) -> None:
    np.testing.assert_allclose(clf.predict_proba(given), expected, atol=1e-5)


def test_no_rows_give_no_rows(clf: SoftClassifier) -> None:
    assert clf.predict_proba([]).shape == (0, 2) and len(clf.predict([])) == 0


def test_rows_fill_the_fields_and_numbers_are_written_out(pair: tuple[Any, Any]) -> None:
    rows = pd.DataFrame({"stars": [4, 1], "text": ["good", "bad"], "id": ["a", "b"], "label": ["positive", None]})
    clf = SoftClassifier(pair, LABELS, "{stars} stars. " + PROMPT)
    found = clf.predict(rows)
    plain = SoftClassifier(pair, LABELS, PROMPT.replace("Review", "{stars} stars. Review"))
    np.testing.assert_array_equal(found.probs, plain.predict_proba(rows))
    assert found.ids.tolist() == ["a", "b"] and found.truth is not None and found.truth.tolist() == ["positive", None]
    by_hand = [{"stars": "4", "text": "good"}, {"stars": "1", "text": "bad"}]
    np.testing.assert_array_equal(found.probs, clf.predict_proba(by_hand))


def test_ids_that_stand_twice_are_refused_in_a_table_and_no_matter_without_one(clf: SoftClassifier) -> None:
    """Resampling repeats rows."""
    rows = [{"id": "a", "text": "good"}] * 2
    assert np.array_equal(*clf.predict_proba(rows))
    with pytest.raises(ValueError, match="1 ids stand twice: 'a'"):
        clf.predict(rows)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("a text", "Got one str, expected a list of texts or rows. Put it in a list"),
        ({"text": "a text"}, "Got one dict, expected a list of texts or rows"),
        (["fine", None], r"Row 1 is None \(NoneType\), expected a text or a mapping.*Fill missing texts"),
        (["fine", float("nan")], r"Row 1 is nan \(float\)"),
        ([["fine"]], r"Row 0 is \['fine'\] \(list\)"),
        (pd.DataFrame({"text": ["fine", None]}), r"Row 1 has text=.*expected a text. Fill missing texts"),
        ([{"text": None}], r"Row 0 has text=None \(NoneType\), expected a text"),
        ([{"text": ["fine"]}], r"Row 0 has text=\['fine'\] \(list\), expected a text"),
        ([{"text": "a"}, {"review": "a"}], r"Row 1 has no field 'text' that the prompt asks for; it has review"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_by_its_row(clf: SoftClassifier, given: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        clf.predict_proba(given)


def test_half_of_a_surrogate_pair_is_mended_as_in_a_table_of_texts(clf: SoftClassifier) -> None:
    torn, whole = "fine \ud83d film", "the \ud83d\ude00 plot"
    np.testing.assert_array_equal(
        clf.predict_proba(["a scene", torn, whole]),
        clf.predict_proba(["a scene", "fine \ufffd film", "the \U0001f600 plot"]),
    )


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"labels": ["negative", "positive"]}, r"labels is \['negative', 'positive'\], expected a mapping"),
        ({"examples": None}, "examples has None, expected a list of rows"),
        ({"examples": ["good"]}, "examples has 'good', expected a list of rows"),
    ],
)  # fmt: skip
def test_labels_and_examples_of_another_form_are_refused(pair: Any, parameters: dict[str, Any], said: str) -> None:
    odd = SoftClassifier(pair, **{"labels": LABELS, **parameters})
    for ask in (odd.fit, lambda: odd.predict_proba(TEXTS)):
        with pytest.raises(ValueError, match=said):
            ask()


def test_a_truth_that_is_none_of_the_labels_is_refused_not_scored_as_wrong(clf: SoftClassifier) -> None:
    with pytest.raises(ValueError, match="y holds 'x', expected one of the labels negative, positive"):
        clf.fit(["a", "b"], ["x", "y"])
    assert clf.fit(TEXTS, np.array(TRUTH)) is clf and clf.fit(TEXTS, pd.Series(TRUTH)) is clf


def test_missing_values_of_pandas_are_refused_too(clf: SoftClassifier) -> None:
    with pytest.raises(ValueError, match="Row 0 has text=<NA>"):
        clf.predict_proba([{"text": pd.NA}])
    with pytest.raises(ValueError, match="Row 1 is"):
        clf.predict_proba(pd.Series(["fine", None]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": {}}, "is empty"),
        ({"labels": {"a": " a"}}, "has one label"),
        ({"labels": {"a": " yes", "b": " yes"}}, "share the answer ' yes'"),
        ({"labels": {"a": " positive", "b": " positive film"}}, "one is the beginning of the other"),
        ({"labels": {"a": " yes", "other": " no"}}, "'other' is taken"),
        ({"prompt": "no field"}, "has no field"),
        ({"chat": "maybe"}, "question.chat='maybe': expected one of auto, yes, no"),
        ({"answers_end": "full stop"}, "expected one of none, eos, boundary"),
        ({"model": 7}, r"model is int, expected a folder, package:NAME, a hub name, or the pair"),
        ({"examples": [{"text": "good"}]}, "expected the fields text, label"),
    ],
)
def test_a_question_without_sense_is_refused_before_anything_is_read(
    clf: SoftClassifier, changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infer.engine.Engine.read", None)
    with pytest.raises(ValueError, match=said):
        clf.set_params(**changes).predict_proba(TEXTS)


def test_a_row_that_cannot_be_computed_is_refused(clf: SoftClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    from infer.forward.tree_log_probs import read_tree

    def broken(logits, *arguments, **settings):
        logits[0] = float("nan")  # the longest row of a batch
        return read_tree(logits, *arguments, **settings)

    monkeypatch.setattr("infer.engine.read_tree", broken)
    with pytest.raises(ValueError, match=r"1 rows have no finite logits, the first is row 3. Use precision='fp32'"):
        clf.predict_proba(TEXTS)


def test_texts_and_rows_are_told_apart() -> None:
    assert as_rows(["a", {"text": "b"}]) == [{"text": "a"}, {"text": "b"}]


# Calibrators


def test_a_calibrator_of_the_file_road_serves_the_same_question(
    tiny_language_model: str, tmp_path: Path, clf: SoftClassifier
) -> None:
    from conftest import compose

    from infer.run import run

    pd.DataFrame({"text": TEXTS * 2, "label": TRUTH * 2}).to_csv(tmp_path / "in.csv", index=False)
    common = ["+experiment=reviews_soft", f"model.name={tiny_language_model}", f"task.input_csv={tmp_path / 'in.csv'}",
              "question.examples=[]", 'question.labels={negative:" negative",positive:" positive"}']  # fmt: skip
    run(compose(*common, f"output={tmp_path / 'raw.csv'}", "calibration.fit=contextual"))
    saved = tmp_path / "raw.csv.calibrator.json"
    run(compose(*common, f"output={tmp_path / 'used.csv'}", f"calibration.use={saved}"))
    written = pd.read_csv(tmp_path / "used.csv")[["p_negative", "p_positive"]][:8]
    calibrated = SoftClassifier(tiny_language_model, LABELS, PROMPT, calibrator=saved)
    np.testing.assert_allclose(calibrated.predict_proba(TEXTS), written, atol=1e-5)
    assert np.abs(calibrated.predict_proba(TEXTS) - clf.predict_proba(TEXTS)).max() > 0.01
    with pytest.raises(ValueError, match="was fitted on something else: prompt_sha256 was"):
        calibrated.set_params(prompt="Film: {text}\nSentiment:").predict_proba(TEXTS)
    with pytest.raises(ValueError, match="labels was"):
        calibrated.set_params(prompt=PROMPT, labels=dict(reversed(LABELS.items()))).predict_proba(TEXTS)
    with pytest.raises(ValueError, match="name was"):
        clf.set_params(calibrator=saved).predict_proba(TEXTS)


# A real model


def test_smollm2_tells_obvious_reviews_apart(smollm2: tuple[Any, Any]) -> None:
    examples = [{"text": "This was terrible.", "label": "negative"}, {"text": "I love it!", "label": "positive"}]
    clf = SoftClassifier(smollm2, LABELS, PROMPT, examples=examples)
    good = ["it's awesome", "A wonderful film, full of joy.", "The best movie of the year.", "I enjoyed every minute."]
    bad = ["this sucks", "A boring, stupid mess.", "The worst film I have ever seen.", "I want my money back."]
    table = clf.predict(good + bad)
    assert table.predicted.tolist() == ["positive"] * 4 + ["negative"] * 4
    positive = dict(zip(good + bad, table.probs[:, 1].tolist(), strict=True))
    assert positive["this sucks"] < 0.1 and positive["it's awesome"] > 0.8
    assert (table.other < 0.5).all()
