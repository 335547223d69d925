"""`python -m infer` on tables of texts, with a network of two layers: what comes out, what survives, what is refused."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, WORDS, compose

from infer.calibrator import load_calibrator
from infer.predictions import Predictions
from infer.run import run

LABELS = ("positive", "negative")
COLUMNS = ["id", "label", "p_positive", "p_negative", "p_other", "predicted", "confidence", "logp_positive",
           "logp_negative", "cut_share"]  # fmt: skip
NUMBERS = [name for name in COLUMNS if name.startswith(("p_", "logp_")) or name in ("confidence", "cut_share")]


def reviews(count: int, *, labelled: bool = True) -> pd.DataFrame:
    """Rows of few words, each text its own."""
    random = np.random.default_rng(3)
    texts = [f"{' '.join(random.choice(WORDS, random.integers(2, 9)))} {number}" for number in range(count)]
    table = pd.DataFrame({"id": [f"r{number}" for number in range(count)], "text": texts})
    return table.assign(label=random.choice(LABELS, count)) if labelled else table


def settings_of(folder: Path, model: str, *overrides: str, source: str = "in.csv", output: str = "out.csv"):
    return compose(*arguments(folder, model, *overrides, source=source, output=output))


def arguments(folder: Path, model: str, *overrides: str, source: str = "in.csv", output: str = "out.csv") -> list[str]:
    return [
        "+experiment=reviews_soft", f"model.name={model}", f"task.input_csv={folder / source}",
        f"output={folder / output}", "engine.chunk_rows=8", *overrides,
    ]  # fmt: skip


def read(folder: Path, model: str, *overrides: str, **names: str) -> pd.DataFrame:
    """The table that a run writes, as pandas reads it."""
    written = run(settings_of(folder, model, *overrides, **names))
    return pd.read_parquet(written) if str(written).endswith(".parquet") else pd.read_csv(written)


def record_of(path: Path) -> dict:
    return json.loads(Path(f"{path}.json").read_text())


def both_files(path: Path) -> tuple[bytes, bytes]:
    return path.read_bytes(), Path(f"{path}.json").read_bytes()


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model is an error from here on."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("models.causal.load_language_model", refuse)


@pytest.fixture
def no_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    """Running a model is an error from here on; loading it is none."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr("infer.engine.Engine.read", refuse)


# What comes out


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


def test_an_instruction_that_leaves_no_room_for_the_text_is_refused_before_any_row_is_read(
    tmp_path: Path, tiny_language_model: str, no_forward: None
) -> None:
    reviews(3).to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(ValueError, match=r"Shorten the instruction or the examples, or raise max_tokens"):
        read(tmp_path, tiny_language_model, f"question.system={'the good film ' * 300}")


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


# Rows that could not be computed


@pytest.fixture
def long_rows_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's numbers of every prompt over 60 tokens are no numbers."""
    from infer.passes import ChainPass

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
    from infer.passes import ChainPass

    logits = ChainPass.logits
    monkeypatch.setattr(ChainPass, "logits", lambda self, prompts: logits(self, prompts) * float("nan"))
    reviews(12).to_csv(tmp_path / "in.csv", index=False)
    table = read(tmp_path, tiny_language_model)
    assert table["p_positive"].isna().all() and "12 of 12 rows" in capsys.readouterr().out
    record = record_of(tmp_path / "out.csv")
    assert record["median_label_mass"] is None and "score" not in record
    with pytest.raises(ValueError, match="answers to prompts without content, and they are not finite"):
        read(tmp_path, tiny_language_model, "calibration.fit=contextual")
    with pytest.raises(ValueError, match="fitted on 0 rows"):
        read(tmp_path, tiny_language_model, "calibration.fit=batch")


# What survives


def test_a_run_killed_in_the_middle_is_resumed_to_the_same_bytes(tmp_path: Path, tiny_language_model: str) -> None:
    reviews(2400).to_csv(tmp_path / "in.csv", index=False)
    whole, killed = tmp_path / "whole.csv", tmp_path / "killed.csv"
    run(settings_of(tmp_path, tiny_language_model, output=whole.name))
    command = [sys.executable, "-m", "infer", *arguments(tmp_path, tiny_language_model, output=killed.name)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    parts = tmp_path / "killed.csv.parts"
    while len(list(parts.glob("part-*"))) < 20:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    there = len(list(parts.glob("part-*")))
    assert not killed.exists() and 20 <= there < 300
    resumed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert f"{there * 8} rows were there already" in resumed.stdout
    assert f"{2400 - there * 8} rows read in" in resumed.stdout
    assert both_files(killed) == both_files(whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "in.csv", "killed.csv", "killed.csv.json", "whole.csv", "whole.csv.json"
    ]  # fmt: skip


def test_a_finished_run_is_not_read_again(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reviews(10).to_csv(tmp_path / "in.csv", index=False)
    run(settings_of(tmp_path, tiny_language_model))
    first, said = both_files(tmp_path / "out.csv"), capsys.readouterr().out.splitlines()
    monkeypatch.setattr("models.causal.load_language_model", None)
    run(settings_of(tmp_path, tiny_language_model, "engine.budget_tokens=64"))  # how fast, not what
    again = capsys.readouterr().out.splitlines()
    assert again[0] == f"{tmp_path / 'out.csv'} is finished already"
    assert again[1:] == said[3:]  # the same report, without the lines of reading
    assert both_files(tmp_path / "out.csv") == first


def test_an_output_made_otherwise_is_not_overwritten(tmp_path: Path, tiny_language_model: str, monkeypatch) -> None:
    reviews(10).to_csv(tmp_path / "in.csv", index=False)
    run(settings_of(tmp_path, tiny_language_model))
    monkeypatch.setattr("models.causal.load_language_model", None)
    with pytest.raises(ValueError, match=r"question\.prompt \(\"Review: \{text\}.*Delete it, or name another output"):
        read(tmp_path, tiny_language_model, "question.prompt=Film: {text}\\nSentiment:")
    reviews(11).to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(ValueError, match=r"input\.input_bytes"):
        read(tmp_path, tiny_language_model)


def test_a_refused_question_does_not_stand_in_the_way_of_its_mended_form(
    tmp_path: Path, tiny_language_model: str
) -> None:
    reviews(10).to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(ValueError, match="one is the beginning of the other"):
        read(tmp_path, tiny_language_model, 'question.labels={positive:" positive film",negative:" positive"}')
    assert len(read(tmp_path, tiny_language_model)) == 10


def test_two_processes_give_the_bytes_of_one(tmp_path: Path, tiny_language_model: str) -> None:
    """And started again on a finished output they read nothing and leave nothing behind."""
    reviews(59).to_csv(tmp_path / "in.csv", index=False)
    run(settings_of(tmp_path, tiny_language_model, output="one.parquet"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "infer"]
    command = [*launcher, *arguments(tmp_path, tiny_language_model, output="two.parquet")]
    environment = os.environ | {"MASTER_PORT": str(29500 + os.getpid() % 2000), "OMP_NUM_THREADS": "1"}
    for said in ("rows read in", "two.parquet is finished already"):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
        assert said in done.stdout and done.stdout.count("median mass on the labels") == 1
        assert both_files(tmp_path / "two.parquet") == both_files(tmp_path / "one.parquet")
        assert sorted(path.name for path in tmp_path.glob("two*")) == ["two.parquet", "two.parquet.json"]


# What is refused, before a model is loaded


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("question.labels={}", "question.labels is empty: expected two labels or more"),
        ('question.labels={positive:" positive"}', r"has one label \('positive'\): its share would always be 1"),
        ('question.labels={a:" yes",b:" yes"}', "'a' and 'b' share the answer ' yes'"),
        ('question.labels={a:" ",b:" yes"}', "expected more than white space, which encodes to nothing"),
        ("question.prompt=Is it good?", r"has no field, so every row would get the same answer. Write \{text\}"),
        ("question.prompt=Review: {text} {label}", "it holds the true label, which is what is asked"),
        ("question.prompt=Review: {text}\\n{options}", r"lists \{options\}, but question.answers=text"),
        ("question.prompt=Review: {text!r}", "a text is put in as it is, without a format"),
        ("output=out.xlsx", r"expected a file that ends in \.parquet, \.csv, \.csv\.gz"),
        ("output=null", "output=null: expected a file"),
    ],
)
def test_a_question_without_sense_is_refused_at_the_door(
    tmp_path: Path, tiny_language_model: str, override: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        settings_of(tmp_path, tiny_language_model, "question.examples=[]", override)


BAD_FILES = {
    "a template with an unknown field": (
        "text\nfine\n", ("question.prompt=Review: {texts}",), r"no column 'texts' \(closest: 'text'\).*Mend question.prompt"
    ),
    "a missing text column": (
        "Text,id\nfine,1\n", (), r"in\.csv has no column 'text' \(closest: 'Text'\). It has: Text, id. Mend task.text_column"
    ),
    "a missing label column": (
        "text\nfine\n", ("task.label_column=labl",), r"no column 'labl'. It has: text. Mend task.label_column, or set it"
    ),
    "a missing column to keep": (
        "text,stars\nfine,1\n", ("task.keep_columns=[star]",), r"no column 'star' \(closest: 'stars'\)"
    ),
    "the true label in the prompt": (
        "text,gold\nfine,positive\n", ("task.label_column=gold", "question.prompt=Review: {text} {gold}"),
        r"question.prompt shows \{gold\}, which is the column 'gold' of the true labels. Take it out",
    ),
    "an unknown label": (
        "text,label\nfine,Positive\n", (), r"row 1 \(line 2\): label is 'Positive', expected one of positive, negative"
    ),
    "a probability column": ("text,p_positive\nfine,0.5\n", (), "already has a column p_positive, which the output"),
    "another probability column to keep": (
        "text,p_value\nfine,0.5\n", ("task.keep_columns=[p_value]",), "begins with p_ is a label's probability"
    ),
    "ids that stand twice": ("id,text\n7,fine\n7,dull\n", (), r"row 2 \(line 3\): id '7' stands already in"),
    "no rows": ("id,text\n", (), "has no rows to read"),
    "an empty file": ("", (), "is empty: it needs a first line with the column names"),
    "bytes that are not UTF-8": (b"text\nfine\ncaf\xe9\n", (), r"line 3 is not UTF-8 \(byte 0xe9"),
    "a quote left open": ('text\n"fine\n', (), "is not a whole CSV file"),
    "a row with a cell too many": ("text\nfine, but long\n", (), r"row 1 \(line 2\) has 2 cells, the header has 1"),
    "a device that is not there": ("text\nfine\n", ("engine.precision=fp16",), "engine.precision=fp16 needs a CUDA GPU"),
    "a calibrator that is not there": ("text\nfine\n", ("calibration.use=no.json",), "no.json does not exist"),
    "too few labelled rows to fit on": (
        "text,label\nfine,positive\ndull,\n", ("calibration.fit=temperature",),
        "calibration.fit=temperature needs 10 labelled rows or more, and .* has 1",
    ),
    "too few rows to fit on": ("text\nfine\n", ("calibration.fit=batch",), "needs 10 rows or more, and .* has 1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_is_refused_with_a_sentence_before_the_model_is_loaded(
    tmp_path: Path, tiny_language_model: str, no_model: None, case: str
) -> None:
    content, overrides, said = BAD_FILES[case]
    (tmp_path / "in.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        read(tmp_path, tiny_language_model, "question.examples=[]", *overrides)
    assert not (tmp_path / "out.csv").exists()


def test_missing_cells_are_refused_by_their_row(tmp_path: Path, tiny_language_model: str, no_model: None) -> None:
    pd.DataFrame({"text": ["fine", None, "dull"]}).to_parquet(tmp_path / "in.parquet")
    with pytest.raises(ValueError, match=r"in\.parquet, row 2: text is missing"):
        read(tmp_path, tiny_language_model, source="in.parquet")
    (tmp_path / "in.jsonl").write_text('{"text": "fine"}\n{"text": NaN}\n')
    with pytest.raises(ValueError, match=r"in\.jsonl, row 2 \(line 2\): text is missing"):
        read(tmp_path, tiny_language_model, source="in.jsonl")


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path, tiny_language_model: str, no_model: None) -> None:
    reviews(3).to_csv(tmp_path / "in.csv", index=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/out\.csv cannot be written: .*Give a file in a folder that you can"):
        read(tmp_path, tiny_language_model, output="file/out.csv")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv does not exist"):
        read(tmp_path, tiny_language_model, source="nowhere.csv")


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    reviews(3).to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises((ValueError, OSError), match="nothing"):
        read(tmp_path, str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ('{positive:" positive",negative:" Positive"}',
         r"' positive' and ' Positive' of labels positive and negative become the same tokens \(\[\d+\]\) with this"),
        ('{positive:" positive",negative:"\u200b"}', r"The answer '\\u200b' encodes to nothing"),
    ],
)  # fmt: skip
def test_answers_that_the_tokenizer_does_not_tell_apart_are_refused_before_the_model_is_run(
    tmp_path: Path, tiny_language_model: str, no_forward: None, labels: str, said: str
) -> None:
    from tiny_models import make_tokenizer
    from tokenizers import normalizers

    shutil.copytree(tiny_language_model, tmp_path / "model")
    tokenizer = make_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace("\u200b", "")]
    )
    tokenizer.save_pretrained(tmp_path / "model")
    reviews(3).to_csv(tmp_path / "in.csv", index=False)
    with pytest.raises(ValueError, match=said):
        read(tmp_path, str(tmp_path / "model"), f"question.labels={labels}", "question.examples=[]")


# Calibration


@pytest.mark.parametrize("method", ["contextual", "pmi", "batch", "prior", "temperature", "vector", "isotonic"])
def test_every_method_is_fitted_on_a_finished_table_without_the_model(
    tmp_path: Path, tiny_language_model: str, capsys: pytest.CaptureFixture[str], method: str, monkeypatch
) -> None:
    reviews(40).to_csv(tmp_path / "in.csv", index=False)
    table = read(tmp_path, tiny_language_model)
    before = both_files(tmp_path / "out.csv")
    monkeypatch.setattr("models.causal.load_language_model", None)
    prior = ["calibration.prior=[0.3,0.7]"] if method == "prior" else []
    run(settings_of(tmp_path, tiny_language_model, f"calibration.fit={method}", *prior))
    assert both_files(tmp_path / "out.csv") == before
    calibrator = load_calibrator(tmp_path / "out.csv.calibrator.json")
    assert calibrator.method == method and calibrator.labels == LABELS
    assert calibrator.log_loss_before == pytest.approx(record_of(tmp_path / "out.csv")["score"]["log_loss"], abs=1e-4)
    said = capsys.readouterr().out
    assert f"held-out log loss {calibrator.log_loss_before:.4f} before, {calibrator.log_loss_after:.4f} after" in said
    assert "Calibration makes it worse" in said or "Calibration helps" in said or "changes nothing" in said
    assert f"Use it: calibration.use={tmp_path / 'out.csv.calibrator.json'}" in said
    if method == "prior":
        shares = calibrator.apply(table[["logp_positive", "logp_negative"]].to_numpy(np.float64)).mean(axis=0)
        np.testing.assert_allclose(shares, [0.3, 0.7], atol=1e-4)


def test_without_labels_nothing_is_judged_and_that_is_said(
    tmp_path: Path, tiny_language_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reviews(12, labelled=False).to_csv(tmp_path / "in.csv", index=False)
    run(settings_of(tmp_path, tiny_language_model, "calibration.fit=contextual"))
    said = capsys.readouterr().out
    assert "Calibration was not judged: no true labels are known" in said
    assert "contextual, fitted on 3 prompts without content" in said


def test_a_saved_calibrator_is_applied_and_the_raw_numbers_stay(tmp_path: Path, tiny_language_model: str) -> None:
    reviews(40).to_csv(tmp_path / "in.csv", index=False)
    raw = read(tmp_path, tiny_language_model, "calibration.fit=vector")
    use = f"calibration.use={tmp_path / 'out.csv.calibrator.json'}"
    table = read(tmp_path, tiny_language_model, use, output="used.csv")
    log_probs = ["logp_positive", "logp_negative", "p_other"]
    np.testing.assert_array_equal(table[log_probs], raw[log_probs])
    calibrator = load_calibrator(tmp_path / "out.csv.calibrator.json")
    expected = calibrator.apply(raw[log_probs[:2]].to_numpy(np.float64))
    np.testing.assert_allclose(table[["p_positive", "p_negative"]], expected, atol=1e-6)
    assert np.abs(table["p_positive"] - raw["p_positive"]).max() > 0.01
    assert table["predicted"].tolist() == [LABELS[at] for at in expected.argmax(axis=1)]


def test_a_calibrator_of_another_model_or_other_labels_is_refused_before_loading(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reviews(40).to_csv(tmp_path / "in.csv", index=False)
    run(settings_of(tmp_path, tiny_language_model, "calibration.fit=batch"))
    use = f"calibration.use={tmp_path / 'out.csv.calibrator.json'}"
    monkeypatch.setattr("models.causal.load_language_model", None)
    turned = 'question.labels={negative:" negative",positive:" positive"}'
    with pytest.raises(ValueError, match=r"labels was \['positive', 'negative'\], now \['negative', 'positive'\]"):
        read(tmp_path, tiny_language_model, use, turned, output="used.csv")
    from tiny_models import tiny_causal

    shutil.copytree(tiny_language_model, tmp_path / "model")
    tiny_causal("llama", 448, rms_norm_eps=0.1).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="was fitted on something else: name was .* files was"):
        read(tmp_path, str(tmp_path / "model"), use, output="used.csv")


def test_a_calibrator_of_another_prompt_is_refused_before_a_row_is_read(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reviews(40).to_csv(tmp_path / "in.csv", index=False)
    run(settings_of(tmp_path, tiny_language_model, "calibration.fit=batch"))
    monkeypatch.setattr("infer.engine.Engine.read", None)
    use = f"calibration.use={tmp_path / 'out.csv.calibrator.json'}"
    with pytest.raises(ValueError, match=r"prompt_sha256 was .* Fit one on these answers \(calibration.fit=batch\)"):
        read(tmp_path, tiny_language_model, use, "question.prompt=Film: {text}\\nSentiment:", output="used.csv")


def test_a_gzipped_output_is_whole(tmp_path: Path, tiny_language_model: str) -> None:
    reviews(9).to_csv(tmp_path / "in.csv", index=False)
    run(settings_of(tmp_path, tiny_language_model, output="out.csv"))
    run(settings_of(tmp_path, tiny_language_model, output="out.csv.gz"))
    assert gzip.decompress((tmp_path / "out.csv.gz").read_bytes()) == (tmp_path / "out.csv").read_bytes()
