"""Answers that are written: read as probabilities or left unanswered, noted row by row, by a model or a server."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import compose
from endpoint_server import Reply, answer, serving

from infer.endpoint import client as endpoint_module
from infer.endpoint.client import EndpointRefused
from infer.generation import Generator, Written
from infer.readers.answer import AnswerReader, LocalWriter, WrittenRow
from infer.readers.answer_notes import answer_figures, report_answers
from infer.readers.answer_prompts import instruction, reply, system_text
from infer.readers.written_answers import Spellings, read_written
from infer.run import run
from models.method_settings import WRITTEN_METHODS
from models.settings import GenerationSettings

LABELS = {"positive": [" positive"], "negative": [" negative"]}
SPELLINGS = Spellings.of(LABELS)
SECRET = "sk-neverseen-0987654321"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("SERVED_KEY", SECRET)


class Says:
    """A writer that says what it is told, row by row."""

    def __init__(self, *rows: WrittenRow) -> None:
        self.rows, self.identity = rows, {"name": "says"}

    def write(self, rows: Any, *, names: Any = (), progress: bool = False) -> list[WrittenRow]:
        return list(self.rows)


def test_what_is_no_answer_leaves_its_row_empty_and_says_why() -> None:
    written = (
        WrittenRow("<answer>negative", tokens=5), WrittenRow("maybe", cut_share=0.25),
        WrittenRow(None, trouble="HTTP 500"), WrittenRow('{"answer": "positive"} as', cut=True),
    )  # fmt: skip
    reading = AnswerReader("generate_hard", LABELS, Says(*written)).read([{}] * 4)
    np.testing.assert_array_equal(reading.log_probs[[0, 3]], [[-np.inf, 0], [0, -np.inf]])
    assert np.isnan(reading.log_probs[[1, 2]]).all() and reading.cut_share.tolist() == [0, 0.25, 0, 0]
    np.testing.assert_array_equal(reading.probs()[[0, 3]], [[0, 1], [1, 0]])
    assert reading.notes is not None
    assert [one["outcome"] for one in reading.notes] == ["answered", "unparsable", "failed", "answered"]
    assert [one["why"] for one in reading.notes] == [None, "no label: 'maybe'", "HTTP 500", None]
    figures = answer_figures(reading.notes)
    assert (figures["rows"], figures["answered"], figures["unparsable"], figures["failed"]) == (4, 2, 1, 1)
    assert figures["cut"] == 1 and figures["reasons"] == [["HTTP 500", 1], ["no label: 'maybe'", 1]]
    assert report_answers([{"reasoning": "none of answers"}]) == {}


@pytest.mark.parametrize("method", WRITTEN_METHODS)
def test_what_examples_answer_is_read_as_their_label(method: str) -> None:
    for label in LABELS:
        probs = read_written(method, reply(method, LABELS, label), SPELLINGS)
        assert SPELLINGS.labels[int(probs.argmax())] == label


@pytest.mark.parametrize("method", WRITTEN_METHODS)
def test_the_instruction_names_the_labels_and_the_tag_and_can_be_left_to_the_question(method: str) -> None:
    told = instruction(method, LABELS)
    assert "positive" in told and "negative" in told and "<answer>" in told and "</answer>" in told
    question = compose("+experiment=reviews_soft", "question.system=Be brief.").question
    assert system_text(question, method, "auto") == f"Be brief.\n\n{told}"
    assert system_text(question, method, "auto", shown=True) == "Be brief."  # by examples that a model continues
    assert system_text(question, method, "In words.", shown=True) == "Be brief.\n\nIn words."
    assert system_text(question, method, None) == "Be brief."
    assert system_text(question, method, "In words.") == "Be brief.\n\nIn words."


def local(tiny_llama: Any, tokenizer: Any, **changes: Any) -> LocalWriter:
    question = compose("+experiment=reviews_soft").question
    generation = GenerationSettings(
        max_new_tokens=6, batch_rows=3, answer_header="-",
        instruction="auto", temperature=0, samples=1,
    )  # fmt: skip
    loaded = SimpleNamespace(model=tiny_llama(448), tokenizer=tokenizer, identity={"name": "tiny"})
    return LocalWriter(loaded, "generate_hard", question, generation, **changes)


def test_a_local_model_is_asked_as_the_examples_answer(
    tiny_llama: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def write(self: Generator, prompts: Any, **_: Any) -> list[Written]:
        asked.extend(tiny_tokenizer.decode(ids) for ids in prompts)
        assert self.stops == ("</answer>", "\n\n")
        return [Written(" <answer>positive", 4, False) for _ in prompts]

    monkeypatch.setattr(Generator, "write", write)
    writer = local(tiny_llama, tiny_tokenizer)
    reading = AnswerReader("generate_hard", LABELS, writer).read([{"text": "a good film"}, {"text": "dull"}])
    assert asked[1] == (
        "<s>Review: This was terrible.\nSentiment: <answer>negative</answer>\n\n"
        "Review: I love it!\nSentiment: <answer>positive</answer>\n\nReview: dull\nSentiment:"
    )
    np.testing.assert_array_equal(reading.probs(), [[1, 0], [1, 0]])
    assert (
        writer.identity["prompt_sha256"] != local(tiny_llama, tiny_tokenizer, max_tokens=200).identity["prompt_sha256"]
    )


def test_a_text_is_written_the_same_alone_and_cut_to_its_room(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    writer = local(tiny_llama, tiny_tokenizer, max_tokens=120)
    writer.check()
    texts = [{"text": "good"}, {"text": "the film was dull and bad " * 30}, {"text": "is it fine"}]
    together = writer.write(texts)
    assert together == [writer.write([row])[0] for row in texts]
    assert together[1].cut_share > 0.5 and together[0].cut_share == 0
    with pytest.raises(ValueError, match=r"generation\.max_new_tokens=6 leaves the prompt 54"):
        local(tiny_llama, tiny_tokenizer, max_tokens=60).check()


def settings_of(folder: Path, *overrides: str, rows: int = 12, output: str = "out.csv") -> Any:
    """A run over reviews, the true label of an even number positive."""
    labels = ["negative" if at % 2 else "positive" for at in range(rows)]
    pd.DataFrame({"text": [f"film {at}" for at in range(rows)], "label": labels}).to_csv(folder / "in.csv", index=False)
    return compose(
        "+experiment=reviews_soft", "method=generate_hard", f"task.input_csv={folder / 'in.csv'}",
        f"output={folder / output}", "engine.chunk_rows=4", "endpoint.model=served", "endpoint.key_variable=SERVED_KEY",
        "endpoint.attempts=2", "endpoint.timeout_s=5", "endpoint.workers=3", *overrides,
    )  # fmt: skip


def number_in(content: dict[str, Any]) -> int:
    return int(content["messages"][-1]["content"].split("film ")[1].split("\n")[0])


def right(number: int) -> Reply:
    return answer(f"<answer>{'negative' if number % 2 else 'positive'}")


def test_faults_lose_no_row_and_invent_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """429, 500, a time-out, cut JSON and a hang-up once each are asked again; a row refused stays unanswered."""
    once = {1: Reply(429, "{}"), 2: Reply(500, "oops"), 4: Reply(200, '{"choices": [{"mess'), 5: Reply(hang_up=True),
            6: Reply(delay_s=60)}  # fmt: skip
    seen: set[int] = set()

    def served(_: int, content: dict[str, Any]) -> Reply:
        number = number_in(content)
        if number == 7:
            return Reply(400, '{"error": {"message": "too long"}}')
        if number == 8:
            return answer("I am not sure. \ud83d")  # half a character, cut off
        if number in once and number not in seen:
            seen.add(number)
            return once[number]
        return right(number)

    with serving(served) as server:
        run(settings_of(tmp_path, f"endpoint.url={server.url}", "endpoint.timeout_s=0.7", "endpoint.attempts=12"))
    table = pd.read_csv(tmp_path / "out.csv")
    answered = [at for at in range(12) if at not in (7, 8)]
    assert table["predicted"][answered].tolist() == table["label"][answered].tolist()
    assert table.loc[[7, 8], ["p_positive", "p_negative", "p_other", "predicted", "confidence"]].isna().all().all()
    notes = [json.loads(line) for line in (tmp_path / "out.answers.jsonl").read_text().splitlines()]
    assert [note["outcome"] for note in notes] == ["answered"] * 7 + ["failed", "unparsable"] + ["answered"] * 3
    assert "too long" in notes[7]["why"] and notes[8]["written"] == "I am not sure. \N{REPLACEMENT CHARACTER}"
    record = json.loads((tmp_path / "out.csv.json").read_text())
    assert record["answers"]["failed"] == record["answers"]["unparsable"] == 1 and record["score"]["rows"] == 10
    said = capsys.readouterr().out
    assert "10 answered, 1 unparsable, 1 failed" in said and "2 of 12 rows stay unanswered" in said
    assert all(SECRET not in path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET not in said


def test_a_killed_server_ends_the_run_and_the_same_command_goes_on(tmp_path: Path) -> None:
    """What was finished is not asked again, and the table is that of an unbroken run."""
    with serving(lambda _, content: right(number_in(content))) as server:
        run(settings_of(tmp_path, f"endpoint.url={server.url}", output="whole.csv"))
    asked: list[int] = []

    def dying(number: int, content: dict[str, Any]) -> Reply:
        asked.append(number_in(content))
        return right(asked[-1]) if asked[-1] < 4 else Reply(hang_up=True)

    with serving(dying) as server, pytest.raises(EndpointRefused, match="requests in a row failed"):
        run(settings_of(tmp_path, f"endpoint.url={server.url}", "endpoint.stop_after=2"))
    assert not (tmp_path / "out.csv").exists() and {0, 1, 2, 3} <= set(asked)
    again: list[int] = []

    def well(_: int, content: dict[str, Any]) -> Reply:
        again.append(number_in(content))
        return right(again[-1])

    with serving(well) as server:
        run(settings_of(tmp_path, f"endpoint.url={server.url}"))
    assert sorted(again) == list(range(4, 12))
    assert (tmp_path / "out.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_server_is_asked_in_turns_with_the_instruction_before_them(tmp_path: Path) -> None:
    with serving(lambda *_: answer('<answer>{"positive": 0.25, "negative": 0.75}')) as server:
        run(settings_of(tmp_path, f"endpoint.url={server.url}", "method=verbalized", rows=4))
    _, sent, headers = server.asked[0]
    roles = [message["role"] for message in sent["messages"]]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    assert sent["messages"][0]["content"] == instruction("verbalized", LABELS)
    assert json.loads(sent["messages"][2]["content"][len("<answer>") : -len("</answer>")])["negative"] == 0.9
    assert (sent["temperature"], sent["stop"], sent["max_tokens"]) == (0, ["</answer>"], 150)
    assert headers["Authorization"] == f"Bearer {SECRET}"
    np.testing.assert_allclose(pd.read_csv(tmp_path / "out.csv")["p_negative"], 0.75)


def first_token(text: str, **probs: float) -> Reply:
    top = [{"token": token.replace("_", " "), "logprob": math.log(prob)} for token, prob in probs.items()]
    content = [{"token": text, "logprob": top[0]["logprob"] if top else 0.0, "top_logprobs": top}]
    return answer(text, logprobs={"content": content}, finish_reason="length")


def test_a_servers_likeliest_tokens_are_read_as_the_labels_and_the_tail_is_other(tmp_path: Path) -> None:
    replies = [
        first_token("positive", positive=0.5, _pos=0.25, negative=0.125, The=0.0625),
        first_token("Well", Well=0.75, _n=0.125),
        first_token("Hm", Hm=0.5, So=0.25),
        Reply(400, "{}"),
    ]  # fmt: skip
    with serving(lambda _, content: replies[number_in(content)]) as server:
        run(settings_of(tmp_path, f"endpoint.url={server.url}", "method=next_token", rows=4))
    table = pd.read_csv(tmp_path / "out.csv")
    np.testing.assert_allclose(table["p_positive"][:2], [6 / 7, 0], atol=1e-6)
    np.testing.assert_allclose(table["p_other"][:2], [0.125, 0.875], atol=1e-6)
    assert table["predicted"].isna().tolist() == [False, False, True, True]
    notes = [json.loads(line) for line in (tmp_path / "out.answers.jsonl").read_text().splitlines()]
    assert [one["outcome"] for one in notes] == ["answered", "answered", "unparsable", "failed"]
    assert notes[2]["why"] == "no label among the 2 likeliest first tokens"
    sent = server.asked[0][1]
    assert (sent["max_tokens"], sent["logprobs"], sent["top_logprobs"]) == (1, True, 20)
    record = json.loads((tmp_path / "out.csv.json").read_text())
    assert record["strays"][0] == ["Well", pytest.approx(0.75 / 4)]


def test_tokens_that_are_written_the_same_add_up(tmp_path: Path) -> None:
    """A SentencePiece server writes a word with its space and without it alike; each has its own probability."""
    top = [{"token": token, "logprob": math.log(prob)} for token, prob in (("positive", 0.5), ("positive", 0.25))]
    content = [{"token": "positive", "logprob": math.log(0.5), "top_logprobs": top}]
    with serving(lambda *_: answer("positive", logprobs={"content": content})) as server:
        run(settings_of(tmp_path, f"endpoint.url={server.url}", "method=next_token", rows=1))
    assert pd.read_csv(tmp_path / "out.csv")["p_other"][0] == pytest.approx(0.25)


def test_a_table_without_any_answer_has_no_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda *_: answer("I would rather not say.")) as server:
        run(settings_of(tmp_path, f"endpoint.url={server.url}", "report=true", rows=3))
    assert pd.read_csv(tmp_path / "out.csv")["predicted"].isna().all()
    assert "no page: no row has an answer" in capsys.readouterr().out


def test_labels_that_begin_alike_and_servers_without_probabilities_are_refused(tmp_path: Path) -> None:
    alike = "question.labels={home furnishing:home furnishing,home decor:home decor}"
    asked = ("method=next_token", "question.examples=[]", "task.label_column=null")
    with (
        serving(lambda *_: first_token("home", home=0.9)) as server,
        pytest.raises(ValueError, match="cannot tell them"),
    ):
        run(settings_of(tmp_path, f"endpoint.url={server.url}", *asked, alike, rows=1))
    with serving(lambda *_: answer("positive")) as server, pytest.raises(ValueError, match="tells no log-prob"):
        run(settings_of(tmp_path, f"endpoint.url={server.url}", *asked, rows=1, output="b.csv"))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["endpoint.url=http://localhost:1/v1"], "endpoint.url needs endpoint.model"),
        (["endpoint.key_variable=sk-abc"], r"endpoint.key_variable \(not shown"),
        (["endpoint.url=http://localhost:1/v1", "endpoint.model=m", "method=tfidf"], "asks no server"),
        (["endpoint.url=http://localhost:1/v1", "endpoint.model=m", "method=chain_of_thought"], "asks no server"),
        (["method=verbalized_score", "question.labels={a:a,b:b,c:c}", "question.examples=[]"], "writes one number"),
        (["method=generate_hard", "calibration.fit=batch"], "writes a label"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        compose("+experiment=reviews_soft", *overrides)
    assert "sk-abc" not in str(refused.value)


def test_a_server_needs_no_local_model(tmp_path: Path) -> None:
    with serving(lambda _, content: right(number_in(content))) as server:
        run(settings_of(tmp_path, f"endpoint.url={server.url}", "model.name=nowhere/to-be-found", rows=2))
    assert pd.read_csv(tmp_path / "out.csv")["predicted"].tolist() == ["positive", "negative"]


def test_the_same_texts_from_another_method_are_another_table(tmp_path: Path) -> None:
    with serving(lambda _, content: right(number_in(content))) as server:
        run(settings_of(tmp_path, f"endpoint.url={server.url}", rows=2))
        with pytest.raises(ValueError, match=r"they differ in method.name"):
            run(settings_of(tmp_path, f"endpoint.url={server.url}", "method=verbalized", rows=2))
