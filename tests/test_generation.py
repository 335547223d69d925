"""What a model writes is what it writes alone, token by token, from plain passes; and it ends where it should."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from infer import growing_rows
from infer.generation import Generator, Written

KINDS = ["llama", "gemma2", "mistral", "gpt2", "cohere", "granite", "qwen3", "mamba", "bloom", "phi"]
NEW = 12


@pytest.fixture(scope="module")
def prompts(tiny_tokenizer: Any) -> list[np.ndarray]:
    """Different lengths behind ten tokens that all share, one of them twice; longer than Mistral's window of 16."""
    start = tiny_tokenizer("Review: I love this film, a wonderful story!")["input_ids"][:10]
    texts = [" Sentiment:", " The plot is good but the end was bad. Answer:", " No", " billing", " No"]
    return [np.array(start + tiny_tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]


def written_plainly(model: Any, prompt: np.ndarray, new: int, ends: set[int], most: int) -> list[int]:
    """Greedy tokens by one whole, unpadded, uncached pass each; most: ids from here on are no tokens."""
    ids = prompt.tolist()
    for _ in range(new):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1, :most]
        ids.append(int(logits.argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


def loaded(model: Any, tokenizer: Any) -> Any:
    return SimpleNamespace(model=model, tokenizer=tokenizer)


def generator(model: Any, tokenizer: Any, **changes: Any) -> Generator:
    return Generator(loaded(model, tokenizer), **({"max_new_tokens": NEW, "batch_rows": 8} | changes))


def plainly(one: Generator, prompts: list[np.ndarray]) -> list[Written]:
    """What `one` should write, by the plain passes above."""
    ids = [written_plainly(one.model, p, one.max_new_tokens, one.ends, one.vocab_size) for p in prompts]
    texts = [one.tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    return [
        Written(text.rstrip("\N{REPLACEMENT CHARACTER}"), len(row), row[-1] not in one.ends)
        for text, row in zip(texts, ids, strict=True)
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_rows", [8, 2])
def test_a_batch_writes_what_plain_passes_write(
    kind: str, batch_rows: int, tiny_causal: Any, tiny_tokenizer: Any, prompts: list[np.ndarray]
) -> None:
    one = generator(tiny_causal(kind, 448), tiny_tokenizer, batch_rows=batch_rows)
    assert one.write(prompts) == plainly(one, prompts)


@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2", "bloom"])
def test_these_models_are_written_with_in_batches(
    kind: str, tiny_causal: Any, tiny_tokenizer: Any, prompts: list[np.ndarray]
) -> None:
    """The right text alone does not say so: the slow way would give it too."""
    start = growing_rows.best_start(tiny_causal(kind, 448), prompts[1], 10, NEW)
    assert start.func is growing_rows.KeptRows and len(start.keywords["prefix"]) == 10


def test_a_prefix_is_not_shared_beyond_a_window(
    tiny_causal: Any, tiny_tokenizer: Any, prompts: list[np.ndarray]
) -> None:
    start = growing_rows.best_start(tiny_causal("mistral", 448), prompts[1], 10, NEW)
    assert start.func is growing_rows.KeptRows and not start.keywords


def test_a_mask_that_a_model_neglects_is_noticed(
    tiny_causal: Any, tiny_tokenizer: Any, prompts: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_causal("llama", 448)
    forward = model.forward

    def deaf(input_ids: Any, position_ids: Any = None, attention_mask: Any = None, **how: Any) -> Any:
        return forward(input_ids=input_ids, position_ids=position_ids, **how)

    monkeypatch.setattr(model, "forward", deaf)
    one = generator(model, tiny_tokenizer)
    assert growing_rows.best_start(model, prompts[1], 0, NEW).func is growing_rows.RowsAnew
    assert one.write(prompts) == plainly(one, prompts)


def test_a_text_ends_at_an_end_token_which_is_no_part_of_it(
    tiny_causal: Any, tiny_tokenizer: Any, prompts: list[np.ndarray]
) -> None:
    one = generator(tiny_causal("llama", 448), tiny_tokenizer)
    ids = written_plainly(one.model, prompts[1], NEW, set(), one.vocab_size)
    end = ids[4]
    first = ids.index(end)
    one.ends = {end}
    found = one.write([prompts[1]])[0]
    assert (
        not found.cut
        and found.tokens == first + 1
        and found.text == tiny_tokenizer.decode(ids[:first], skip_special_tokens=True)
    )


def test_a_text_that_uses_up_its_tokens_is_cut(
    tiny_causal: Any, tiny_tokenizer: Any, prompts: list[np.ndarray]
) -> None:
    one = generator(tiny_causal("llama", 448), tiny_tokenizer)
    one.ends = set()
    assert [(found.tokens, found.cut) for found in one.write(prompts)] == [(NEW, True)] * len(prompts)


def test_a_text_ends_before_its_first_stop_text(
    tiny_causal: Any, tiny_tokenizer: Any, prompts: list[np.ndarray]
) -> None:
    plain = generator(tiny_causal("llama", 448), tiny_tokenizer)
    whole = plain.write(prompts)
    stop = whole[1].text[5:8]  # across tokens, most likely
    found = generator(plain.model, tiny_tokenizer, stops=[stop, "not written at all"]).write(prompts)
    for stopped, before in zip(found, whole, strict=True):
        assert stopped.text == before.text.partition(stop)[0]
        assert stopped.cut == (before.cut and stop not in before.text)


def test_rows_that_have_ended_are_no_longer_computed(
    tiny_causal: Any, tiny_tokenizer: Any, prompts: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = generator(tiny_causal("llama", 448), tiny_tokenizer)
    first = written_plainly(one.model, prompts[0], 1, set(), one.vocab_size)[0]
    one.ends = {first}
    sizes: list[int] = []
    go_on = growing_rows.KeptRows.go_on

    def counted(self: Any, keep: Any, tokens: Any) -> None:
        sizes.append(len(keep))
        go_on(self, keep, tokens)

    expected = plainly(one, prompts)
    monkeypatch.setattr(growing_rows.KeptRows, "go_on", counted)
    assert one.write(prompts) == expected
    assert max(sizes) < len({found.tobytes() for found in prompts})


def test_out_of_memory_halves_the_batch_and_changes_no_text(
    tiny_causal: Any, tiny_tokenizer: Any, prompts: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = generator(tiny_causal("llama", 448), tiny_tokenizer)
    expected = plainly(one, prompts)
    logits = growing_rows.KeptRows.logits

    def small(self: Any) -> torch.Tensor:
        if len(self.ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return logits(self)

    monkeypatch.setattr(growing_rows.KeptRows, "logits", small)
    assert one.write(prompts) == expected
    assert one.batch_rows == 2


def test_the_model_is_left_as_it_was_found(tiny_causal: Any, tiny_tokenizer: Any, prompts: list[np.ndarray]) -> None:
    model = tiny_causal("llama", 448, attention_dropout=0.5)
    one = generator(model, tiny_tokenizer)
    expected = one.write(prompts)
    model.train()
    model.model.layers[0].eval()
    assert one.write(prompts) == expected
    assert model.training and not model.model.layers[0].training
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_sampling_settings_of_the_model_are_not_used(
    tiny_causal: Any, tiny_tokenizer: Any, prompts: list[np.ndarray]
) -> None:
    """Llama-3.1 ships a temperature of 0.6, Qwen2.5 a repetition penalty: both would change a greedy text."""
    one = generator(tiny_causal("llama", 448), tiny_tokenizer)
    expected = one.write(prompts)
    one.model.generation_config.update(do_sample=True, temperature=5.0, repetition_penalty=2.0)
    assert one.write(prompts) == expected


def test_rows_that_are_not_finite_end_there(
    tiny_causal: Any, tiny_tokenizer: Any, prompts: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = generator(tiny_causal("llama", 448), tiny_tokenizer)
    expected = one.write(prompts[:2])
    logits = growing_rows.KeptRows.logits

    def broken(self: Any) -> torch.Tensor:
        found = logits(self)
        if self.ids.shape[0] == 2:
            found[0] = float("nan")  # the longer of the two comes first
        return found

    monkeypatch.setattr(growing_rows.KeptRows, "logits", broken)
    assert one.write(prompts[:2]) == [expected[0], Written("", 0, True)]


@pytest.mark.parametrize("length", [0, 502])
def test_a_prompt_without_tokens_or_room_is_refused_by_name(length: int, tiny_causal: Any, tiny_tokenizer: Any) -> None:
    one = generator(tiny_causal("llama", 448), tiny_tokenizer)
    with pytest.raises(ValueError, match=f"line 7 has {length} tokens, expected 1 to 501"):
        one.write([np.array([5]), np.zeros(length, dtype=np.int64)], names=["line 6", "line 7"])


def test_an_encoder_decoder_is_refused(tiny_t5: Any, tiny_tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="encoder-decoder"):
        generator(tiny_t5(448), tiny_tokenizer)


def test_no_prompts_give_no_texts(tiny_causal: Any, tiny_tokenizer: Any) -> None:
    assert generator(tiny_causal("llama", 448), tiny_tokenizer).write([]) == []


def test_smollm2_answers_in_a_batch_as_transformers_does_alone(smollm2: Any) -> None:
    model, tokenizer = smollm2
    questions = ["What is the capital of France?", "Name a colour. One word only."]
    rendered = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
        for q in questions
    ]
    prompts = [np.array(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in rendered]
    found = generator(model, tokenizer).write(prompts)
    assert found[0] == Written("The capital of France is Paris.", 8, cut=False)
    for prompt, one in zip(prompts, found, strict=True):
        with torch.no_grad():
            ids = model.generate(
                torch.tensor([prompt.tolist()]), attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False, max_new_tokens=NEW, repetition_penalty=1.0,
            )  # fmt: skip
        assert one.text == tokenizer.decode(ids[0, len(prompt) :], skip_special_tokens=True)
