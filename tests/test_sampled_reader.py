"""Drawn answers come as often as the probabilities that are read say, whatever batch they are drawn in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import compose

from infer.generation import Generator
from infer.readers.label import LabelReader
from infer.readers.sampled import SampledReader
from infer.run import run
from models.method_settings import GenerationSettings
from models.settings import QuestionSettings

ROWS = [{"text": text} for text in ("good film", "the plot was dull", "", "I love it! " * 9, "good film")]
# Of one token and of several, one the beginning of another's text; likely enough that a random model draws them.
LABELS = {"a": [" a", "t"], "the": [" the"], "good": ["g", " good"]}


def subject(tiny_llama: Any, tokenizer: Any) -> Any:
    return SimpleNamespace(model=tiny_llama(448), tokenizer=tokenizer, identity={"name": "tiny"})


def question(**changes: Any) -> QuestionSettings:
    asked = compose("+experiment=reviews_soft", "question.examples=[]").question
    return replace(asked, **({"labels": LABELS} | changes))


def generation(**changes: Any) -> GenerationSettings:
    given = {"max_new_tokens": 9, "batch_rows": 3, "answer_header": "-", "instruction": None, "temperature": 1.0}
    return GenerationSettings(**({"samples": 400} | given | changes))


def drawn(loaded: Any, asked: QuestionSettings, seed: int = 7, **changes: Any) -> SampledReader:
    return SampledReader(loaded, asked, generation(**changes), seed=seed)


@pytest.mark.parametrize(
    "changes", [{}, {"answers_end": "boundary"}, {"answers": "letters", "prompt": "{text} {options}\n"}]
)
def test_answers_are_drawn_as_often_as_they_are_probable(
    changes: dict[str, Any], tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    """Twelve shares of 20,000 draws: a right reader is beyond 4.5 standard deviations once in 12,000 such tests."""
    loaded, asked, samples = subject(tiny_llama, tiny_tokenizer), question(**changes), 20_000
    probs = np.exp(LabelReader(loaded, asked).read(ROWS).log_probs)
    shares = np.exp(drawn(loaded, asked, samples=samples).read(ROWS).log_probs)
    deviations = (shares - probs) / np.sqrt(probs * (1 - probs) / samples)
    assert np.abs(deviations).max() < 4.5
    assert probs.sum() * samples > 40, "too rare to be seen"


def test_a_rows_draws_are_the_same_alone_and_in_any_batch(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    loaded = subject(tiny_llama, tiny_tokenizer)
    together = drawn(loaded, question()).read(ROWS)
    for batch_rows in (1, 8):
        other = drawn(loaded, question(), batch_rows=batch_rows).read(ROWS[::-1])
        np.testing.assert_array_equal(other.log_probs[::-1], together.log_probs)
        assert other.notes is not None and other.notes[::-1] == together.notes
    np.testing.assert_array_equal(together.log_probs[0], together.log_probs[4])
    assert (drawn(loaded, question(), seed=8).read(ROWS).log_probs != together.log_probs).any()


def test_a_low_temperature_draws_the_likeliest_and_a_high_one_anything(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    loaded = subject(tiny_llama, tiny_tokenizer)
    prompts = [np.array(tiny_tokenizer(row["text"])["input_ids"]) for row in ROWS[:2]]
    greedy = Generator(loaded, max_new_tokens=6, batch_rows=2).write(prompts)
    cold = Generator(loaded, max_new_tokens=6, batch_rows=2, temperature=0.001, seed=3)
    assert cold.write(prompts) == greedy
    counts = [
        len(
            Generator(loaded, max_new_tokens=2, batch_rows=2, temperature=heat).draw(prompts[:1], 300, lambda _: True)[
                0
            ]
        )
        for heat in (0.001, 1.0, 100.0)
    ]
    assert counts[0] == 1 < counts[1] < counts[2]


def test_draws_that_begin_alike_are_computed_once(
    tiny_llama: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """400 draws of five rows are at most the answers' beginnings wide, not 2,000 rows."""
    from infer import growing_rows

    widths: list[int] = []
    go_on = growing_rows.KeptRows.go_on

    def counted(self: Any, keep: Any, tokens: Any) -> None:
        widths.append(len(keep))
        go_on(self, keep, tokens)

    reader = drawn(subject(tiny_llama, tiny_tokenizer), question(answers_end="boundary"), batch_rows=8)
    monkeypatch.setattr(growing_rows.KeptRows, "go_on", counted)
    reader.read(ROWS)
    assert max(widths) <= 4 * sum(map(len, LABELS.values()))


def test_what_was_drawn_is_noted_and_a_row_without_an_answer_stays_empty(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    loaded = subject(tiny_llama, tiny_tokenizer)
    found = drawn(loaded, question(), samples=50).read(ROWS)
    assert found.notes is not None
    for note in found.notes:
        assert sum(note["drawn"].values()) == 50 and note["written"] == next(iter(note["drawn"]))
    rare = drawn(loaded, question(labels={"a": [" wonderful story"], "b": [" billing"]}), samples=1).read(ROWS[:1])
    assert np.isnan(rare.log_probs).all() and rare.notes is not None and rare.notes[0]["outcome"] == "unparsable"
    assert sum(rare.strays.values()) == 1
    assert len(drawn(loaded, question()).read([]).log_probs) == 0


def test_rows_that_are_not_finite_stay_empty(
    tiny_llama: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from infer import growing_rows

    reader = drawn(subject(tiny_llama, tiny_tokenizer), question(), batch_rows=8)
    assert not np.isnan(reader.read(ROWS).log_probs).any()
    logits = growing_rows.KeptRows.logits

    def broken(self: Any) -> Any:
        found = logits(self)
        found[0] = float("nan")  # the longest comes first
        return found

    monkeypatch.setattr(growing_rows.KeptRows, "logits", broken)
    found = reader.read(ROWS)
    assert np.isnan(found.log_probs).all(axis=1).tolist() == [False, False, False, True, False]
    assert found.notes is not None and found.notes[3]["outcome"] == "failed"


def test_a_row_that_stops_being_finite_between_its_draws_has_failed(
    tiny_llama: Any, tiny_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of its draws had ended by then: they are kept, and are not called unparsable."""
    from infer import growing_rows

    reader = drawn(subject(tiny_llama, tiny_tokenizer), question(answers_end="boundary"), batch_rows=1)
    logits, go_on, steps = growing_rows.KeptRows.logits, growing_rows.KeptRows.go_on, [0]

    def stepped(self: Any, keep: Any, tokens: Any) -> None:
        steps[0] += 1
        go_on(self, keep, tokens)

    def broken(self: Any) -> Any:
        found = logits(self)
        return found * float("nan") if steps[0] else found

    before = reader.read(ROWS[:1]).notes  # the ways that the model takes are tried here
    monkeypatch.setattr(growing_rows.KeptRows, "logits", broken)
    monkeypatch.setattr(growing_rows.KeptRows, "go_on", stepped)
    found = reader.read(ROWS[:1])
    assert before is not None and before[0]["outcome"] != "failed" and steps[0] == 1
    assert np.isnan(found.log_probs).all() and found.notes is not None
    assert found.notes[0]["outcome"] == "failed" and 0 < sum(found.notes[0]["drawn"].values()) < 400


@pytest.mark.parametrize("max_tokens", [90, None])
@pytest.mark.parametrize("changes", [{}, {"answers_end": "boundary"}])
def test_a_long_row_is_cut_as_where_its_probabilities_are_read(
    max_tokens: int | None, changes: dict[str, Any], tiny_llama: Any, tiny_tokenizer: Any
) -> None:
    """As far as the model's positions go: an answer's end takes none of them."""
    loaded, asked = subject(tiny_llama, tiny_tokenizer), question(**changes)
    rows = [{"text": "I love it! " * 400}]
    read = LabelReader(loaded, asked, max_tokens=max_tokens).read(rows)
    sampled = SampledReader(loaded, asked, generation(samples=2), seed=1, max_tokens=max_tokens).read(rows)
    assert sampled.cut_share.tolist() == read.cut_share.tolist() and 0 < read.cut_share[0] < 1


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["method=sampled"], "generation.temperature=0 with method.name=sampled"),
        (["method=sampled", "generation.temperature=-1"], "generation.temperature=-1"),
        (["method=sampled", "generation.temperature=1", "generation.samples=0"], "generation.samples=0"),
        (["method=chain_of_thought", "generation.temperature=1"], "the likeliest steps are written"),
        (["method=sampled", "generation.temperature=1", "endpoint.url=http://localhost:1/v1", "endpoint.model=m"],
         "asks no server"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_drawn_with_are_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        compose("+experiment=reviews_soft", *overrides)


def test_an_answer_that_changes_the_prompts_last_token_is_refused(tiny_llama: Any, tiny_tokenizer: Any) -> None:
    reader = drawn(
        subject(tiny_llama, tiny_tokenizer),
        question(chat="no", prompt="{text} is posi", labels={"a": ["tive"], "b": ["x"]}),
    )
    with pytest.raises(ValueError, match=r"End question\.prompt with a whole word"):
        reader.read(ROWS[:1])


def test_the_command_writes_shares_of_the_draws_and_another_seed_is_another_table(
    tmp_path: Path, tiny_language_model: str
) -> None:
    pd.DataFrame({"text": ["good", "bad film", "dull"]}).to_csv(tmp_path / "in.csv", index=False)
    asked = [
        "+experiment=reviews_soft", "method=sampled", f"model.name={tiny_language_model}", "generation.temperature=1",
        f"task.input_csv={tmp_path / 'in.csv'}", f"output={tmp_path / 'out.csv'}", "generation.samples=64",
        "question.labels={positive:e,negative:t}", "question.examples=[]",
    ]  # fmt: skip
    run(compose(*asked))
    table = pd.read_csv(tmp_path / "out.csv")
    notes = [json.loads(line) for line in (tmp_path / "out.answers.jsonl").read_text().splitlines()]
    for row, note in zip(table.itertuples(), notes, strict=True):
        hit = note["drawn"].get("e", 0), note["drawn"].get("t", 0)
        if sum(hit):
            assert row.p_positive == pytest.approx(hit[0] / sum(hit)) and row.p_other == pytest.approx(
                1 - sum(hit) / 64
            )
        else:
            assert np.isnan(row.p_positive)
    with pytest.raises(ValueError, match="they differ in seed"):
        run(compose(*asked, "seed=43"))
