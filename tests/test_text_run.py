"""`python -m infer` on tables of texts, with a network of two layers: the columns, the numbers and what is said."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from text_runs import COLUMNS, LABELS, NUMBERS, read, record_of, reviews, settings_of

from infer.forward.tree_log_probs import read_tree
from infer.predictions import Predictions
from infer.run import run


def test_labelled_rows_come_out_with_their_probabilities_and_a_score(
    tmp_path: Path, tiny_language_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = reviews(20)
    rows.to_csv(tmp_path / "in.csv", index=False)
    table = read(tmp_path, tiny_language_model)
    assert list(table.columns) == COLUMNS
    assert table["id"].tolist() == rows["id"].tolist() and table["label"].tolist() == rows["label"].tolist()
    np.testing.assert_allclose(table["p_positive"] + table["p_negative"], 1, atol=1e-6)
    raw = np.exp(table[["logp_positive", "logp_negative"]].to_numpy())
    np.testing.assert_allclose(table[["p_positive", "p_negative"]], raw / raw.sum(axis=1, keepdims=True), atol=1e-6)
    np.testing.assert_allclose(table["p_other"], 1 - raw.sum(axis=1), atol=1e-6)
    assert table["predicted"].tolist() == np.where(table["p_positive"] > 0.5, "positive", "negative").tolist()
    np.testing.assert_allclose(table["confidence"], table[["p_positive", "p_negative"]].max(axis=1), atol=1e-7)
    assert (table["cut_share"] == 0).all()

    score = record_of(tmp_path / "out.csv")["score"]
    truth_probs = np.where(table["label"] == "positive", table["p_positive"], table["p_negative"])
    assert score["rows"] == 20 and score["log_loss"] == pytest.approx(-np.log(truth_probs).mean(), abs=1e-5)
    assert score["accuracy"] == pytest.approx((table["label"] == table["predicted"]).mean())
    said = capsys.readouterr().out
    for words in ("20 rows from", "20 labelled", "log loss", "accuracy", "AUC", "average precision",
                  "calibration error", f"{score['log_loss']:.4f}", "median mass on the labels"):  # fmt: skip
        assert words in said


def test_the_numbers_are_those_of_the_plain_model(tmp_path: Path, tiny_language_model: str) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from infer.reference import reference_log_probs

    rows = reviews(5)
    rows.to_csv(tmp_path / "in.csv", index=False)
    table = read(tmp_path, tiny_language_model, "question.examples=[]")
    model = AutoModelForCausalLM.from_pretrained(tiny_language_model)
    prompts = [f"Review: {text}\nSentiment:" for text in rows["text"]]
    expected = reference_log_probs(
        model, AutoTokenizer.from_pretrained(tiny_language_model), prompts, [" positive", " negative"]
    )
    np.testing.assert_allclose(table[["logp_positive", "logp_negative"]], expected, atol=1e-4)


def test_unlabelled_rows_are_numbered_and_not_scored(
    tmp_path: Path, tiny_language_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reviews(9, labelled=False)[["text"]].to_csv(tmp_path / "in.csv", index=False)
    table = read(tmp_path, tiny_language_model)
    assert list(table.columns) == [name for name in COLUMNS if name != "label"]
    assert table["id"].tolist() == list(range(9))
    assert "score" not in record_of(tmp_path / "out.csv")
    assert "log loss" not in capsys.readouterr().out


def test_of_partly_labelled_rows_the_labelled_are_scored(
    tmp_path: Path, tiny_language_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = reviews(20)
    rows.loc[3:12, "label"] = ""
    rows.to_csv(tmp_path / "in.csv", index=False)
    table = read(tmp_path, tiny_language_model)
    assert table["label"].isna().tolist() == [3 <= number <= 12 for number in range(20)]
    assert record_of(tmp_path / "out.csv")["score"]["rows"] == 10
    assert "20 rows from" in (said := capsys.readouterr().out) and "10 labelled" in said
    assert len(Predictions.read(tmp_path / "out.csv")) == 20


def test_ids_and_labels_may_have_other_names_and_further_columns_are_kept(
    tmp_path: Path, tiny_language_model: str
) -> None:
    rows = reviews(6).rename(columns={"id": "key", "label": "gold", "text": "review"})
    rows["key"] = [f"00{number}" for number in range(6)]
    rows["stars"] = ["4.50", "", "NA", "x,y", 'say "no"', "two\nlines"]
    rows.to_csv(tmp_path / "in.csv", index=False)
    names = ("task.id_column=key", "task.label_column=gold", "task.text_column=review", "task.keep_columns=[stars]")
    run(settings_of(tmp_path, tiny_language_model, *names))
    table = pd.read_csv(tmp_path / "out.csv", dtype=str, keep_default_na=False)
    assert list(table.columns) == ["id", "label", "stars", *COLUMNS[2:]]
    for column, original in (("id", "key"), ("label", "gold"), ("stars", "stars")):
        assert table[column].tolist() == rows[original].tolist()


def test_no_id_and_no_label_are_taken_where_that_is_asked(tmp_path: Path, tiny_language_model: str) -> None:
    reviews(4).assign(label="of no known name", id="same").to_csv(tmp_path / "in.csv", index=False)
    table = read(tmp_path, tiny_language_model, "task.id_column=null", "task.label_column=null")
    assert table["id"].tolist() == [0, 1, 2, 3] and "label" not in table


INPUTS: dict[str, Callable[[pd.DataFrame, Path], None]] = {
    "in.csv": lambda rows, path: rows.to_csv(path, index=False),
    "in.csv.gz": lambda rows, path: rows.to_csv(path, index=False),
    "in.jsonl": lambda rows, path: rows.to_json(path, orient="records", lines=True),
    "in.parquet": lambda rows, path: rows.to_parquet(path),
}


def test_every_input_and_output_form_gives_the_same_numbers(tmp_path: Path, tiny_language_model: str) -> None:
    rows, tables = reviews(20), {}
    for source, write in INPUTS.items():
        write(rows, tmp_path / source)
    for source in INPUTS:
        for ending in (".csv", ".csv.gz", ".parquet"):
            tables[source, ending] = read(tmp_path, tiny_language_model, source=source, output=f"{source}-out{ending}")
    first = tables["in.csv", ".csv"]
    for table in tables.values():
        assert list(table.columns) == COLUMNS
        for name in COLUMNS:
            kind = np.float32 if name in NUMBERS else object
            np.testing.assert_array_equal(table[name].to_numpy(kind), first[name].to_numpy(kind))
    for ending in (".csv", ".csv.gz", ".parquet"):
        predictions = Predictions.read(tmp_path / f"in.jsonl-out{ending}")
        assert predictions.ids.tolist() == rows["id"].tolist() and predictions.labels == LABELS
        np.testing.assert_array_equal(predictions.probs[:, 0], first["p_positive"].to_numpy(np.float32))
        assert predictions.predicted.tolist() == first["predicted"].tolist()
        assert predictions.truth is not None and predictions.truth.tolist() == rows["label"].tolist()


def test_the_chunk_size_does_not_change_the_numbers(tmp_path: Path, tiny_language_model: str) -> None:
    reviews(20).to_csv(tmp_path / "in.csv", index=False)
    small = read(tmp_path, tiny_language_model, "engine.chunk_rows=3")
    large = read(tmp_path, tiny_language_model, "engine.chunk_rows=100", output="large.csv")
    np.testing.assert_allclose(small[NUMBERS], large[NUMBERS], atol=1e-5)  # float32 sums in another order


def test_the_files_mark_quotes_and_odd_cells_are_read_as_text(tmp_path: Path, tiny_language_model: str) -> None:
    content = '\ufeffid,text,label\n1,"two\nlines, and ""quotes""",positive\n2,NaN,\n3,null,negative\n4,,\n'
    (tmp_path / "in.csv").write_text(content, encoding="utf-8")
    table = read(tmp_path, tiny_language_model)
    assert table["id"].tolist() == [1, 2, 3, 4] and table["p_positive"].notna().all()


def test_a_template_may_ask_for_any_column(tmp_path: Path, tiny_language_model: str) -> None:
    rows = reviews(4)
    rows["the title"] = ["good", "bad", "fine", "dull"]
    rows.to_csv(tmp_path / "in.csv", index=False)
    prompt = "question.prompt=Title: {the title}\\nReview: {text}\\nSentiment:"
    joined = read(tmp_path, tiny_language_model, prompt, "question.examples=[]")
    rows["text"] = [f"{title}\nReview: {text}" for title, text in zip(rows["the title"], rows["text"], strict=True)]
    rows.to_csv(tmp_path / "in.csv", index=False)
    prompt = "question.prompt=Title: {text}\\nSentiment:"
    written = read(tmp_path, tiny_language_model, prompt, "question.examples=[]", output="written.csv")
    np.testing.assert_allclose(joined[NUMBERS[:3]], written[NUMBERS[:3]], atol=1e-5)


def test_little_mass_on_the_labels_is_warned_of_with_the_tokens_that_took_it(
    tmp_path: Path, tiny_language_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows that stand twice count twice in the tokens' shares."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_language_model)
    texts = ["the plot is good", "dull", "dull", "dull"]
    pd.DataFrame({"text": texts}).to_csv(tmp_path / "in.csv", index=False)
    read(tmp_path, tiny_language_model, "question.examples=[]")
    shares: dict[str, float] = {}
    model = AutoModelForCausalLM.from_pretrained(tiny_language_model)
    for text in texts:
        ids = tokenizer(f"Review: {text}\nSentiment:", return_tensors="pt").input_ids
        probs, tokens = model(ids).logits[0, -1, : len(tokenizer)].softmax(-1).topk(3)
        for prob, token in zip(probs.tolist(), tokens.tolist(), strict=True):
            word = tokenizer.decode([token])
            shares[word] = shares.get(word, 0) + prob / len(texts)
    expected = sorted(shares.items(), key=lambda item: -item[1])[:5]
    record = record_of(tmp_path / "out.csv")
    assert record["median_label_mass"] < 0.5
    assert [text for text, _ in record["strays"]] == [text for text, _ in expected]
    np.testing.assert_allclose([prob for _, prob in record["strays"]], [prob for _, prob in expected], atol=1e-5)
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("warning:"))
    for text, share in expected:
        assert f"{text!r} {share:.3f}" in said


def test_a_text_too_long_for_the_model_loses_its_middle_and_is_counted(
    tmp_path: Path, tiny_language_model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from models.prompt_tokens import PromptEncoder

    prompts = []
    fit = PromptEncoder.fit

    def watched(self, encoded, room):
        prompts.append(fit(self, encoded, room))
        return prompts[-1]

    monkeypatch.setattr(PromptEncoder, "fit", watched)
    long = "BEGIN " + "the good film was dull " * 300 + "END"
    pd.DataFrame({"text": ["short", long]}).to_csv(tmp_path / "in.csv", index=False)
    table = read(tmp_path, tiny_language_model)
    assert table["cut_share"][0] == 0 and 0.5 < table["cut_share"][1] < 1
    assert record_of(tmp_path / "out.csv")["cut_rows"] == 1
    assert "1 texts were too long and lost their middle" in capsys.readouterr().out
    cut = next("".join(piece.text for piece in one.prompt) for one in prompts if one.cut_share)
    head, tail = "Review: This was terrible.\nSentiment: negative\n\nReview: I love it!", "END\nSentiment:"
    assert cut.startswith(head) and cut.endswith(tail) and "Review: BEGIN the good" in cut
    assert max(len(one.ids) for one in prompts) <= 512 - 2


@pytest.mark.parametrize("end", ["boundary", "eos"])
def test_an_end_takes_mass_from_an_answer_and_tells_its_beginning_apart(
    tmp_path: Path, tiny_language_model: str, end: str
) -> None:
    reviews(6, labelled=False).to_csv(tmp_path / "in.csv", index=False)
    labels = 'question.labels={short:" positive",long:" positive film"}'
    with pytest.raises(ValueError, match=r"one is the beginning of the other.*Set answers_end=boundary"):
        read(tmp_path, tiny_language_model, labels, "question.examples=[]")
    ended = read(tmp_path, tiny_language_model, labels, "question.examples=[]", f"question.answers_end={end}")
    others = ('question.labels={short:" positive",long:" negative"}', "question.examples=[]")
    open_ended = read(tmp_path, tiny_language_model, *others, output="open.csv")
    assert (ended["logp_short"] < open_ended["logp_short"]).all()
    assert (np.exp(ended["logp_short"]) + np.exp(ended["logp_long"]) <= np.exp(open_ended["logp_short"]) + 1e-6).all()


LETTERS = ("question.answers=letters", "question.examples=[]",
           "question.prompt=Review: {text}\\n{options}\\nAnswer:")  # fmt: skip


def test_lettered_options_are_averaged_over_their_rotations_and_the_spread_is_shown(
    tmp_path: Path, tiny_language_model: str
) -> None:
    """With both rotations averaged the order of the labels has no say; with one it has."""
    reviews(6).to_csv(tmp_path / "in.csv", index=False)
    turned = 'question.labels={negative:" negative",positive:" positive"}'
    table = read(tmp_path, tiny_language_model, *LETTERS)
    other = read(tmp_path, tiny_language_model, *LETTERS, turned, output="turned.csv")
    columns = [*COLUMNS[:7], "spread", *COLUMNS[7:]]
    assert list(table.columns) == columns
    assert table["spread"].between(0, 1).all() and (table["spread"] > 0.01).any()
    shared = ["p_positive", "p_negative", "p_other", "logp_positive", "logp_negative", "spread"]
    np.testing.assert_allclose(table[shared], other[shared], atol=1e-5)

    once = (*LETTERS, "question.permutations=none")
    table = read(tmp_path, tiny_language_model, *once, output="once.csv")
    other = read(tmp_path, tiny_language_model, *once, turned, output="once_turned.csv")
    assert "spread" not in table
    assert np.abs(table["p_positive"] - other["p_positive"]).max() > 0.01


def test_a_gzipped_output_is_whole(tmp_path: Path, tiny_language_model: str) -> None:
    reviews(9).to_csv(tmp_path / "in.csv", index=False)
    run(settings_of(tmp_path, tiny_language_model, output="out.csv"))
    run(settings_of(tmp_path, tiny_language_model, output="out.csv.gz"))
    assert gzip.decompress((tmp_path / "out.csv.gz").read_bytes()) == (tmp_path / "out.csv").read_bytes()


@pytest.fixture
def long_rows_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's numbers of every prompt over 60 tokens are no numbers."""
    from infer.forward.passes import ChainPass

    logits = ChainPass.logits

    def broken(self, prompts):
        found = logits(self, prompts)
        found[[len(prompt) > 60 for prompt in prompts]] = float("nan")
        return found

    monkeypatch.setattr(ChainPass, "logits", broken)


@pytest.mark.parametrize("output", ["out.csv", "out.parquet"])
def test_a_row_that_is_not_finite_stands_empty_and_is_counted(
    tmp_path: Path, tiny_language_model: str, long_rows_fail: None, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    rows = reviews(20)
    rows.loc[4, "text"] = "the good film was dull " * 12
    rows.to_csv(tmp_path / "in.csv", index=False)
    table = read(tmp_path, tiny_language_model, "question.examples=[]", output=output)
    assert table["id"].tolist() == rows["id"].tolist()
    empty = table[["p_positive", "p_negative", "p_other", "predicted", "confidence", "logp_positive"]].isna()
    assert empty.loc[4].all() and not empty.drop(index=4).any(axis=None)
    record = record_of(tmp_path / output)
    assert record["not_finite"] == 1 and record["score"]["rows"] == 19
    said = capsys.readouterr().out
    assert "1 of 20 rows have no finite numbers and stand empty in the table. Use engine.precision=fp32" in said


def test_a_table_without_any_number_is_written_and_cannot_be_calibrated(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("infer.engine.read_tree", lambda logits, *a, **b: read_tree(logits * float("nan"), *a, **b))
    reviews(12).to_csv(tmp_path / "in.csv", index=False)
    table = read(tmp_path, tiny_language_model)
    assert table["p_positive"].isna().all() and "12 of 12 rows" in capsys.readouterr().out
    record = record_of(tmp_path / "out.csv")
    assert record["median_label_mass"] is None and "score" not in record
    with pytest.raises(ValueError, match="answers to prompts without content, and they are not finite"):
        read(tmp_path, tiny_language_model, "calibration.fit=contextual")
    with pytest.raises(ValueError, match="fitted on 0 rows"):
        read(tmp_path, tiny_language_model, "calibration.fit=batch")
