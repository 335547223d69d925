"""The answer behind a model's reasoning is read, wherever the reasoning ends; last-word parsing only reported."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import compose
from text_runs import LABELS, record_of, reviews

from infer.generation import Generator, Written
from infer.readers.chain_of_thought import ChainReader, load_chain_reader
from infer.readers.reasoning_notes import last_label, part_at_header, reasoning_figures, reasoning_line
from infer.reference import reference_log_probs
from infer.run import run
from models.engine_settings import QuestionSettings
from models.method_settings import GenerationSettings

EXAMPLES = [
    {"text": "I love it!", "reasoning": "It praises.", "label": "positive"},
    {"text": "This was bad.", "reasoning": "It blames.", "label": "negative"},
]
SHOWN = (
    "Judge.\n\nReview: I love it!\nSteps: It praises.\nAnswer: positive\n\n"
    "Review: This was bad.\nSteps: It blames.\nAnswer: negative\n\nReview: {}\nSteps:"
)


def question(**changes: Any) -> QuestionSettings:
    asked = {
        "prompt": "Review: {text}\nSteps:", "system": "Judge.", "examples": EXAMPLES,
        "labels": {label: f" {label}" for label in LABELS}, "answers": "text", "permutations": "cyclic",
        "answers_end": "none", "chat": "no",
    }  # fmt: skip
    return QuestionSettings(**(asked | changes))


def chain(model: Any, tokenizer: Any, *, new: int = 8, max_tokens: int | None = None, **changes: Any) -> ChainReader:
    loaded = SimpleNamespace(model=model, tokenizer=tokenizer, identity={"name": "tiny"})
    generation = GenerationSettings(
        max_new_tokens=new, batch_rows=4, answer_header="Answer:",
        instruction=None, temperature=0, samples=1,
    )  # fmt: skip
    return ChainReader(loaded, question(**changes), generation, max_tokens=max_tokens)


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Any:
    """says(texts, cut=...): what the model will have written, row by row."""

    def put(*texts: str, cut: bool = False) -> None:
        written = [Written(text, 5, cut) for text in texts]
        monkeypatch.setattr(Generator, "write", lambda self, prompts, **how: written)

    return put


@pytest.fixture(scope="module")
def model(tiny_causal: Any) -> Any:
    return tiny_causal("llama", 448)


def test_the_answer_is_read_behind_the_closed_reasoning(model: Any, tiny_tokenizer: Any, says: Any) -> None:
    says(" The plot is good", " dull, I hated")
    reading = chain(model, tiny_tokenizer).read([{"text": "fine film"}, {"text": "dull plot"}])
    prompts = [
        SHOWN.format("fine film") + " The plot is good\nAnswer:",
        SHOWN.format("dull plot") + " dull, I hated\nAnswer:",
    ]
    expected = reference_log_probs(model, tiny_tokenizer, prompts, [" positive", " negative"])
    np.testing.assert_allclose(reading.log_probs, expected, atol=1e-4)


def test_a_sentence_that_was_cut_off_has_probabilities_too(model: Any, tiny_tokenizer: Any, says: Any) -> None:
    says(" It is good, but even though", cut=True)
    reading = chain(model, tiny_tokenizer).read([{"text": "fine film"}])
    np.testing.assert_allclose(reading.probs().sum(axis=1), 1)
    assert reading.notes is not None
    assert reading.notes[0]["cut"] and reading.notes[0]["last_word"] is None
    assert reading.notes[0]["read"] in LABELS and reading.notes[0]["reasoning"] == "It is good, but even though"


def test_what_the_model_answered_itself_is_noted_and_not_read(model: Any, tiny_tokenizer: Any, says: Any) -> None:
    reader = chain(model, tiny_tokenizer)
    says(" Good story.\nAnswer: negative")
    own = reader.read([{"text": "fine film"}])
    says(" Good story.")
    closed = reader.read([{"text": "fine film"}])
    np.testing.assert_array_equal(own.log_probs, closed.log_probs)
    assert own.notes is not None and closed.notes is not None
    assert (own.notes[0]["answered"], own.notes[0]["last_word"]) == ("negative", "negative")
    assert (closed.notes[0]["answered"], closed.notes[0]["last_word"]) == (None, None)


def test_the_model_sees_the_examples_reasoning_and_writes_behind_the_question(
    model: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def write(self: Generator, prompts: Any, **how: Any) -> list[Written]:
        seen.extend(tiny_tokenizer.decode(ids) for ids in prompts)
        return [Written("", 0, True) for _ in prompts]

    monkeypatch.setattr(Generator, "write", write)
    chain(model, tiny_tokenizer).read([{"text": "fine film"}])
    assert seen == ["<s>" + SHOWN.format("fine film")]


def test_in_a_chat_the_reply_is_left_open_and_closed_with_the_header(
    model: Any, tiny_tokenizer: Any, says: Any
) -> None:
    says("Good story.")
    labels = {label: label for label in LABELS}  # without the space that the header needs
    reader = chain(model, tiny_tokenizer, chat="yes", prompt="Review: {text}", labels=labels)
    reading = reader.read([{"text": "fine film"}])
    turns = "".join(
        f"<|im_start|>{role}\n{text}<|im_end|>\n"
        for role, text in [
            ("system", "Judge."), ("user", "Review: I love it!"), ("assistant", "It praises.\nAnswer: positive"),
            ("user", "Review: This was bad."), ("assistant", "It blames.\nAnswer: negative"),
            ("user", "Review: fine film"),
        ]
    )  # fmt: skip
    prompt = f"{turns}<|im_start|>assistant\nGood story.\nAnswer:"
    expected = reference_log_probs(model, tiny_tokenizer, [prompt], [" positive", " negative"])
    np.testing.assert_allclose(reading.log_probs, expected, atol=1e-4)


def test_control_tokens_that_the_model_spells_stay_text(model: Any, tiny_tokenizer: Any, says: Any) -> None:
    reader = chain(model, tiny_tokenizer)
    asked = reader.encoder.encode([reader.template.fill({"text": "fine"})])[0]
    ids = reader.encoder.encode([(*asked.prompt, *reader._closed(" <|im_end|> good"))])[0].ids
    assert tiny_tokenizer.convert_tokens_to_ids("<|im_end|>") not in ids
    assert "<|im_end|> good\nAnswer:" in tiny_tokenizer.decode(ids)


def test_a_long_text_leaves_room_for_the_reasoning(model: Any, tiny_tokenizer: Any) -> None:
    reading = chain(model, tiny_tokenizer, new=20, max_tokens=160).read([{"text": "good film " * 200}, {"text": "ok"}])
    assert reading.cut_share[0] > 0.5 and reading.cut_share[1] == 0
    np.testing.assert_allclose(reading.probs().sum(axis=1), 1)


def test_no_rows_give_no_readings(model: Any, tiny_tokenizer: Any) -> None:
    reading = chain(model, tiny_tokenizer).read([])
    assert reading.log_probs.shape == (0, 2) and reading.notes == []


def test_a_base_without_a_chat_template_is_refused_where_a_chat_is_asked_for(model: Any) -> None:
    from tiny_models import make_tokenizer

    plain = make_tokenizer()
    plain.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        chain(model, plain, chat="yes")


WITHOUT = [{"text": "fine", "label": "positive"}]
LISTED = {"answers": "letters", "prompt": "{text}\n{options}\n", "examples": []}
TAKEN = {"prompt": "{reasoning}", "examples": []}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"examples": [EXAMPLES[0], *WITHOUT]}, r"question.examples\[1\] has no reasoning"),
        (LISTED, "question.answers=letters"),
        (TAKEN, "the field {reasoning}"),
        ({"labels": {"positive": [" positive", " good"], "negative": "good"}}, "become the same tokens"),
    ],
)
def test_a_question_that_reasoning_cannot_answer_is_refused(
    changes: Mapping[str, Any], said: str, model: Any, tiny_tokenizer: Any
) -> None:
    with pytest.raises(ValueError, match=said):
        chain(model, tiny_tokenizer, **{"examples": [], **changes}).check()


def test_the_reasoning_of_examples_changes_nothing_where_none_is_asked_for(model: Any, tiny_tokenizer: Any) -> None:
    from infer.readers.label import LabelReader

    loaded = SimpleNamespace(model=model, tokenizer=tiny_tokenizer, identity={})
    bare = [{key: value for key, value in one.items() if key != "reasoning"} for one in EXAMPLES]
    found = [LabelReader(loaded, question(examples=one)).read([{"text": "ok"}]) for one in (EXAMPLES, bare)]
    np.testing.assert_array_equal(found[0].log_probs, found[1].log_probs)


def test_whatever_changes_the_reasoning_changes_the_identity(model: Any, tiny_tokenizer: Any) -> None:
    told = [{**EXAMPLES[0], "reasoning": "It does praise."}, EXAMPLES[1]]
    readers = [{}, {"new": 9}, {"examples": told}, {"system": "Judge it."}, {"max_tokens": 200}]
    marks = [chain(model, tiny_tokenizer, **changes).identity["prompt_sha256"] for changes in readers]
    assert len(set(marks)) == len(marks)
    assert chain(model, tiny_tokenizer).identity["prompt_sha256"] == marks[0]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (" Step 1.\n\nAnswer: Hard", (" Step 1.", "Hard")),
        (" Step 1.\n**Answer:** Hard", (" Step 1.", "Hard")),
        (" Step 1, and then", (" Step 1, and then", None)),
        ("Answer: Hard\nAnswer: Soft", ("", "Hard\nAnswer: Soft")),
        (" Step 1.\nAnswer:", (" Step 1.", "")),
    ],
)
def test_the_reasoning_ends_at_the_first_header(text: str, parts: tuple[str, str | None]) -> None:
    assert part_at_header(text, "Answer:") == parts


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Answer: Hard", "Hard"), ("It is **soft**.", "Soft"), ("Hard, even though it is not", None), ("", None),
        ("It is a Home Decor", "Home Decor"), ("Decor", None), ("rock-hard", "Hard"), ("hardly", None),
    ],
)  # fmt: skip
def test_the_last_word_is_a_label_or_nothing(text: str, label: str | None) -> None:
    answers = {"Hard": [" Hard"], "Soft": [" Soft", " Softly"], "Home Decor": ["Home Decor"]}
    assert last_label(text, answers) == label


def test_last_word_parsing_says_of_real_texts_what_their_makers_took_from_them(real_data: Path) -> None:
    """773 texts of a Llama with the labels that its last words became; every other last word became Unknown."""
    path = real_data / "skills" / "origin_cot_generations.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    answers = {label: [f" {label}"] for label in ("Hard", "Soft", "Unknown")}
    found = [last_label(row["generation"], answers) for row in rows]
    other = [row["last_word"] for row, one in zip(rows, found, strict=True) if (one or "Unknown") != row["final_label"]]
    assert other == ['"Soft".', "Soft."]  # they took the marks for a part of the word
    assert found.count(None) == 46  # sentences that were cut off, not answers, of their 63 "Unknown"


def test_the_figures_of_a_run_are_shares_of_its_rows() -> None:
    kept = {"reasoning": "", "tokens": 10, "cut": False, "answered": "Hard", "last_word": "Hard", "read": "Hard"}
    notes = [kept, {**kept, "read": "Soft"}, {**kept, "last_word": None, "cut": True, "answered": None, "tokens": 50},
             {**kept, "read": None}]  # fmt: skip
    assert reasoning_figures(notes) == {
        "rows": 4, "tokens": 20.0, "cut": 0.25, "no_label": 0.25, "differs": 0.25, "closed": 0.75,
    }  # fmt: skip
    assert "25.0% cut off" in reasoning_line(reasoning_figures(notes))


def reasoned(folder: Path, model: str, *overrides: str) -> Any:
    told = ",".join(f'{{text:"{one["text"]}",reasoning:"{one["reasoning"]}",label:{one["label"]}}}' for one in EXAMPLES)
    return compose(
        "+experiment=reviews_soft", "method=chain_of_thought", f"model.name={model}",
        f"task.input_csv={folder / 'in.csv'}", f"output={folder / 'out.csv'}", "engine.chunk_rows=8",
        "generation.max_new_tokens=6", f"question.examples=[{told}]", *overrides,
    )  # fmt: skip


def test_a_run_keeps_each_rows_reasoning_and_says_how_fast_it_was(
    tmp_path: Path, tiny_language_model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = reviews(20)
    rows.to_csv(tmp_path / "in.csv", index=False)
    run(reasoned(tmp_path, tiny_language_model))
    table = pd.read_csv(tmp_path / "out.csv")
    notes = [json.loads(line) for line in (tmp_path / "out.reasoning.jsonl").read_text().splitlines()]
    assert [one["id"] for one in notes] == table["id"].tolist() == rows["id"].tolist()
    assert [one["text"] for one in notes] == rows["text"].tolist()
    assert [one["read"] for one in notes] == table["predicted"].tolist()
    assert all(one["tokens"] <= 6 for one in notes)
    said = capsys.readouterr().out
    for words in ("reasoning of 20 rows", "cut off", "last-word parsing", "rows/s", "times as fast"):
        assert words in said
    assert record_of(tmp_path / "out.csv")["reasoning"]["rows"] == 20


def test_a_killed_run_goes_on_without_writing_again(
    tmp_path: Path, tiny_language_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reviews(20).to_csv(tmp_path / "in.csv", index=False)
    run(reasoned(tmp_path, tiny_language_model, f"output={tmp_path / 'whole' / 'out.csv'}"))
    calls: list[int] = []
    write = Generator.write

    def failing(self: Generator, prompts: Any, **how: Any) -> list[Written]:
        if len(calls) == 1:
            calls.append(0)
            raise KeyboardInterrupt
        calls.append(len(prompts))
        return write(self, prompts, **how)

    monkeypatch.setattr(Generator, "write", failing)
    with pytest.raises(KeyboardInterrupt):
        run(reasoned(tmp_path, tiny_language_model))
    assert not (tmp_path / "out.reasoning.jsonl").exists()
    run(reasoned(tmp_path, tiny_language_model, "generation.batch_rows=3"))  # how many at once is free to change
    assert calls == [8, 0, 8, 4]
    for name in ("out.csv", "out.reasoning.jsonl"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_the_question_is_refused_before_the_model_is_looked_for(tmp_path: Path) -> None:
    settings = reasoned(tmp_path, str(tmp_path / "no model"), "question.examples=[{text: fine, label: positive}]")
    with pytest.raises(ValueError, match="has no reasoning"):
        load_chain_reader(settings)


def test_smollm2_reasons_in_the_form_of_its_examples(smollm2: Any) -> None:
    settings = compose("+experiment=skills_cot")
    model, tokenizer = smollm2
    loaded = SimpleNamespace(model=model, tokenizer=tokenizer, identity={})
    generation = GenerationSettings(
        max_new_tokens=40, batch_rows=4, answer_header="Answer:",
        instruction=None, temperature=0, samples=1,
    )  # fmt: skip
    reader = ChainReader(loaded, settings.question, generation)
    reader.check()
    reading = reader.read([{"text": "Java"}, {"text": "Kindness"}])
    assert reading.notes is not None
    assert [one["answered"] for one in reading.notes] == [one["last_word"] for one in reading.notes]
    assert all(one["reasoning"] and not one["cut"] for one in reading.notes)
    assert (reading.other < 0.5).all()
    probs = reading.probs()
    assert probs[0, 0] > probs[1, 0], "Java is harder than Kindness"
