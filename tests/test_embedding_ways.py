"""Class means and label descriptions by sentence vectors, and the vectors that are kept on disk by content."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import compose
from text_rows import LABELS, skill_rows

from infer import text_classifiers, text_embeddings
from infer.classifiers import load_classifier, make_classifier, save_classifier
from infer.readers.embedding import DescriptionReader, descriptions_of
from infer.run import run
from infer.text_classifiers import EmbeddingCentroid, tempered, unit
from infer.text_embeddings import MINILM, Embedding, embed
from infer.vector_cache import VectorCache
from models.settings import MethodSettings

rows, index = skill_rows(60)


def word_vectors(texts: list[str], embedding: Embedding = MINILM) -> np.ndarray:
    """Unit vectors that stand for words: the letters' counts, the same for the same text."""
    counts = np.array([[text.count(sign) for sign in "abcdefghijklmnopqrstuvwxyz"] for text in texts], dtype=float)
    return unit(counts + 1e-3).astype(np.float32)


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_classifiers, "embed", word_vectors)
    monkeypatch.setattr("infer.readers.embedding.embed", word_vectors)


def test_class_means_are_the_mean_directions_of_their_rows(letters: None) -> None:
    fitted = EmbeddingCentroid(LABELS).fit(rows, index)
    vectors = word_vectors([row.fields["text"] for row in rows]).astype(np.float64)
    means = np.stack([vectors[index == label].mean(axis=0) for label in range(3)])
    expected = tempered(vectors @ unit(means).T, fitted.settings["temperature"])
    np.testing.assert_allclose(fitted.predict_proba(rows), expected, atol=1e-6)
    assert (expected.argmax(axis=1) == index).mean() > 0.5  # letters say something of the words; chance is a third


def test_the_temperature_is_the_best_one_for_rows_left_out_of_their_mean(letters: None) -> None:
    """Each row left out by hand: no other temperature has a lower loss."""
    fitted = EmbeddingCentroid(LABELS).fit(rows, index)
    vectors = word_vectors([row.fields["text"] for row in rows]).astype(np.float64)
    cosines = np.empty((60, 3))
    for row in range(60):
        others = np.arange(60) != row
        means = unit(np.stack([vectors[others & (index == label)].sum(axis=0) for label in range(3)]))
        cosines[row] = means @ vectors[row]

    def loss(temperature: float) -> float:
        return float(-np.log(tempered(cosines, temperature)[np.arange(60), index]).mean())

    best = fitted.settings["temperature"]
    assert all(loss(best) <= loss(best * factor) + 1e-9 for factor in (0.5, 0.9, 1.1, 2.0))


def test_class_means_come_back_from_their_folder_with_the_same_numbers(letters: None, tmp_path: Path) -> None:
    settings = MethodSettings(name="embedding_centroid", embeddings="no")
    network = replace(compose("+experiment=skills_minilm").embedding, max_tokens=64)
    made = make_classifier(settings, seed=0, labels=LABELS, embedding=network).fit(rows, index)
    save_classifier(made, tmp_path, task="skills", method="embedding_centroid")
    loaded = load_classifier(tmp_path, task="skills", labels=LABELS)
    np.testing.assert_array_equal(loaded.predict_proba(rows[:20]), made.predict_proba(rows[:20]))
    assert loaded.embedding == Embedding(MINILM.name, 64, "mean")


def test_a_label_without_rows_is_rare_and_one_row_a_label_is_enough(letters: None) -> None:
    few = EmbeddingCentroid(LABELS).fit(rows[:2], [0, 1])
    probs = few.predict_proba(rows[:2])
    np.testing.assert_allclose(probs.sum(axis=1), 1, atol=1e-6)
    assert few.settings["temperature"] == text_classifiers.USUAL_TEMPERATURE and (probs[:, 2] > 0).all()
    assert (probs.argmax(axis=1) == [0, 1]).all()


def test_weights_move_a_class_mean(letters: None) -> None:
    heavy = EmbeddingCentroid(LABELS).fit(rows, index, np.where(np.arange(60) == 0, 1000.0, 1.0))
    vector = word_vectors([rows[0].fields["text"]])[0]
    assert heavy.parts["centroids"][index[0]] @ vector > 0.999


def test_descriptions_are_read_by_their_mean_direction_and_the_temperature(letters: None) -> None:
    given = {"a": ["aaaa", "aab"], "z": ["zz"]}
    reader = DescriptionReader(given, temperature=0.5, embedding=MINILM)
    reading = reader.read([{"text": "aaz"}, {"text": "z", "more": "z"}])
    first = unit(word_vectors(["aaaa", "aab"]).astype(np.float64).mean(axis=0)[None])[0]
    cosines = [word_vectors(["aaz"])[0] @ first, word_vectors(["aaz"])[0] @ word_vectors(["zz"])[0]]
    weights = np.exp(np.array(cosines) / 0.5)
    np.testing.assert_allclose(reading.probs()[0], weights / weights.sum(), atol=1e-6)
    assert reading.probs()[1].argmax() == 1 and np.abs(reading.other).max() < 1e-12
    assert reader.read([]).log_probs.shape == (0, 2)


def test_labels_without_descriptions_are_described_by_their_names() -> None:
    question = compose("+experiment=reviews_soft", "method=embedding_description").question
    assert descriptions_of(question) == {"positive": ["positive"], "negative": ["negative"]}


def test_descriptions_of_other_labels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"question.descriptions=.*expected a text for each label"):
        compose("+experiment=reviews_soft", "question.descriptions={positive:good}")
    with pytest.raises(ValueError, match=r"is a description of negative: expected text"):
        compose("+experiment=reviews_soft", "question.descriptions={positive:good,negative:0.5}")


def test_a_table_is_read_zero_shot_without_training(letters: None, tmp_path: Path, minilm: str) -> None:
    pd.DataFrame({"text": ["aaa", "zzz", "zza"]}).to_csv(tmp_path / "in.csv", index=False)
    run(compose(
        "+experiment=reviews_soft", "method=embedding_description", f"task.input_csv={tmp_path / 'in.csv'}",
        f"output={tmp_path / 'out.csv'}", "question.labels={a:a,z:z}", "question.examples=[]",
        "question.descriptions={a:aaaa,z:[zz,zzz]}",
    ))  # fmt: skip
    assert pd.read_csv(tmp_path / "out.csv")["predicted"].tolist() == ["a", "z", "z"]


def test_real_sentence_vectors_know_what_a_label_means(minilm: str) -> None:
    descriptions = {"food": ["Something to eat or drink."], "tool": ["An instrument to repair or build things."]}
    reader = DescriptionReader(descriptions, temperature=0.05, embedding=MINILM)
    probs = reader.read([{"text": "strawberry jam"}, {"text": "screwdriver set"}, {"text": "cordless drill"}]).probs()
    assert probs.argmax(axis=1).tolist() == [0, 1, 1]


def test_a_text_is_embedded_once_and_then_read_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, minilm: str
) -> None:
    monkeypatch.setenv("TIEBREAK_CACHE", str(tmp_path))
    texts = ["a text for the cache", "another", "a text for the cache"]
    text_embeddings._vectors.clear()
    first = embed(texts)
    text_embeddings._vectors.clear()
    monkeypatch.setattr(text_embeddings, "_embedded", lambda *_: pytest.fail("embedded again"))
    np.testing.assert_array_equal(embed(texts), first)
    assert len(list(tmp_path.glob("vectors/*.sqlite"))) == 1
    text_embeddings._vectors.clear()
    with pytest.raises(pytest.fail.Exception, match="embedded again"):
        embed(texts[:1], replace(MINILM, max_tokens=64))


def test_the_cache_keeps_vectors_to_the_last_bit_and_by_content(tmp_path: Path) -> None:
    vectors = {f"text {at}": np.random.default_rng(at).normal(size=8).astype(np.float32) for at in range(1200)}
    vectors["\ud800 lone"] = np.ones(8, dtype=np.float32)
    cache = VectorCache("m", tmp_path)
    assert cache.read(["text 1"]) == {}
    cache.write(vectors)
    found = VectorCache("m", tmp_path).read([*vectors, "unknown"])
    assert set(found) == set(vectors)
    assert all(np.array_equal(found[text], vector) for text, vector in vectors.items())
    assert VectorCache("other", tmp_path).read(["text 1"]) == {}


def test_a_damaged_or_forbidden_cache_costs_time_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = VectorCache("m", tmp_path)
    cache.path.parent.mkdir()
    cache.path.write_bytes(b"no database at all " * 100)
    with caplog.at_level(logging.WARNING, logger="tiebreak"):
        assert cache.read(["a"]) == {}
    assert "is damaged and begins anew" in caplog.text
    cache.write({"a": np.ones(3, dtype=np.float32)})
    np.testing.assert_array_equal(cache.read(["a"])["a"], np.ones(3))
    (tmp_path / "file").write_text("")
    barred = VectorCache("m", tmp_path / "file")
    barred.write({"a": np.ones(3, dtype=np.float32)})
    assert barred.read(["a"]) == {}


def test_a_network_that_is_not_there_says_how_to_get_it() -> None:
    mpnet = Embedding(compose("+experiment=skills_minilm", "embedding=mpnet").embedding.name, 384, "mean")
    with pytest.raises(FileNotFoundError, match=r"hf download sentence-transformers/all-mpnet-base-v2"):
        embed(["a text"], mpnet)


def test_the_first_tokens_vector_is_read_where_that_is_asked_for(minilm: str) -> None:
    first, mean = embed(["One text of words."], replace(MINILM, pooling="cls")), embed(["One text of words."])
    assert np.linalg.norm(first) == pytest.approx(1) and 0 < (first @ mean.T).item() < 0.99


def test_methods_by_sentence_vectors_read_no_arena_rows() -> None:
    for method in ("embedding_centroid", "embedding_description", "generate_hard", "verbalized"):
        with pytest.raises(ValueError, match="reads texts, not arena rows"):
            compose("+experiment=arena_judge", f"method={method}")
