"""The label-only loss is the full-logits loss restricted to the labels, and so is every gradient."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny_models import KINDS
from torch.nn import functional as F

from models.answer_network import AnswerNetwork, SequenceNetwork, label_tree
from models.answer_tree import build_tree

VOCAB = 96
PROMPTS = [[5, 40, 41, 7, 42, 17, 18], [9, 33, 71], [12, 12, 60, 61, 62]]
ONE_TOKEN = ([(11,), (23,), (37,)], [0, 1, 2])
SEVERAL_TOKENS = ([(11, 4), (11, 9, 9), (37,)], [0, 1, 2])
SPELLINGS = ([(11,), (12, 5), (23, 8), (37,), (37,)], [0, 0, 1, 2, 2])
TARGETS = torch.tensor([[1.0, 0.0, 0.0], [0.2, 0.5, 0.3], [0.0, 0.0, 1.0]])


def padded(prompts: list[list[int]], fill: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, lengths); fill: an ordinary token, so that padding which is seen is felt."""
    width = max(map(len, prompts))
    return torch.tensor([[*one, *[fill] * (width - len(one))] for one in prompts]), torch.tensor(
        list(map(len, prompts))
    )


def full_log_probs(model, prompts, paths, owners, *, vocab_size=None) -> torch.Tensor:
    """(B, L) by the whole (1, T, V) logits of every prompt with every answer, unpadded, one at a time."""
    table = []
    for prompt in prompts:
        by_label: dict[int, list[torch.Tensor]] = {}
        for path, owner in dict(zip(paths, owners, strict=True)).items():
            logits = model(input_ids=torch.tensor([[*prompt, *path]]), use_cache=False).logits[0, :, :vocab_size]
            log_probs = logits.log_softmax(-1)
            steps = [log_probs[len(prompt) - 1 + at, token] for at, token in enumerate(path)]
            by_label.setdefault(owner, []).append(torch.stack(steps).sum())
        table.append(torch.stack([torch.stack(by_label[label]).logsumexp(0) for label in sorted(by_label)]))
    return torch.stack(table)


def loss_and_gradients(model, log_probs: torch.Tensor) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = F.cross_entropy(log_probs, TARGETS)
    loss.backward()
    return float(loss.detach()), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def both(model, answers, **settings) -> tuple[AnswerNetwork, tuple, tuple]:
    """(the network, its loss and gradients, the oracle's)."""
    paths, owners = answers
    network = AnswerNetwork(model, [label_tree(paths, owners)], **settings)
    expected = loss_and_gradients(model, full_log_probs(model, PROMPTS, paths, owners, **settings))
    found = loss_and_gradients(model, network(*padded(PROMPTS)))
    return network, found, expected


def same(found: tuple, expected: tuple, *, relative: float = 1e-5) -> None:
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    assert found[1].keys() == expected[1].keys()
    for name, gradient in expected[1].items():
        torch.testing.assert_close(
            found[1][name], gradient, rtol=relative, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("answers", [ONE_TOKEN, SEVERAL_TOKENS, SPELLINGS], ids=["one", "several", "spellings"])
@pytest.mark.parametrize("kind", ["llama", "llama_tied"])
def test_loss_and_every_gradient_equal_those_of_the_full_logits(tiny_causal, kind: str, answers) -> None:
    network, found, expected = both(tiny_causal(kind, VOCAB), answers)
    assert not network.tables.fed or network.takes_tree()
    same(found, expected)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"llama", "llama_tied"}))
def test_every_kind_of_head_and_layer_gives_the_loss_of_its_own_forward(tiny_causal, kind: str) -> None:
    """Softcaps, logit scales, a head's bias, windows, ALiBi, a recurrence: whatever stands behind the name."""
    _, found, expected = both(tiny_causal(kind, VOCAB), SEVERAL_TOKENS)
    same(found, expected, relative=1e-4)  # a recurrence adds up in another order when two chains stand in a batch


@pytest.mark.parametrize("answers", [ONE_TOKEN, SEVERAL_TOKENS, SPELLINGS], ids=["one", "several", "spellings"])
@pytest.mark.parametrize("kind", ["llama_tied", "gemma2", "gpt2", "mamba"])
def test_prompts_that_begin_alike_go_through_once_and_change_no_gradient(tiny_causal, kind: str, answers) -> None:
    model = tiny_causal(kind, VOCAB)
    prompts = [[*range(50, 62), *prompt] for prompt in PROMPTS]
    tokens = []
    model.get_input_embeddings().register_forward_pre_hook(lambda module, inputs: tokens.append(inputs[0].numel()))
    network = AnswerNetwork(model, [label_tree(*answers)])
    network.takes_tree()
    tokens.clear()
    found = loss_and_gradients(model, network(*padded(prompts)))
    packs = kind != "mamba"
    assert (tokens == [12 + 7 + 3 + 5 + 3 * network.tables.fed]) is packs
    same(found, loss_and_gradients(model, full_log_probs(model, prompts, *answers)), relative=1e-4)


def test_a_model_that_cannot_take_a_tree_reads_chains(tiny_causal) -> None:
    network, found, expected = both(tiny_causal("mamba", VOCAB), SPELLINGS)
    assert not network.takes_tree()
    same(found, expected, relative=1e-4)


def test_a_window_shorter_than_the_row_reads_chains(tiny_causal) -> None:
    model = tiny_causal("mistral", VOCAB, sliding_window=6)
    network, found, expected = both(model, SEVERAL_TOKENS)
    assert not network._within_window(6 + 1)
    same(found, expected)


def test_rows_of_the_head_that_are_no_tokens_take_no_probability(tiny_llama) -> None:
    _, found, expected = both(tiny_llama(VOCAB), SEVERAL_TOKENS, vocab_size=80)
    same(found, expected)


def test_different_trees_in_one_batch_are_each_read_behind_their_own_prompts(tiny_llama) -> None:
    model = tiny_llama(VOCAB)
    kinds = [SEVERAL_TOKENS, ONE_TOKEN, SPELLINGS]
    network = AnswerNetwork(model, [label_tree(*answers) for answers in kinds])
    numbers = [2, 0, 1]
    expected = torch.cat(
        [full_log_probs(model, [prompt], *kinds[number]) for prompt, number in zip(PROMPTS, numbers, strict=True)]
    )
    found = network(*padded(PROMPTS), tree=torch.tensor(numbers))
    same(loss_and_gradients(model, found), loss_and_gradients(model, expected))


def test_padding_does_not_change_the_answer(tiny_llama) -> None:
    network = AnswerNetwork(tiny_llama(VOCAB), [label_tree(*SEVERAL_TOKENS)])
    ids, lengths = padded(PROMPTS)
    wider = F.pad(ids, (0, 5), value=3)
    torch.testing.assert_close(network(ids, lengths), network(wider, lengths), rtol=0, atol=1e-5)


def test_a_changed_prompt_token_moves_the_loss(tiny_llama) -> None:
    network = AnswerNetwork(tiny_llama(VOCAB), [label_tree(*ONE_TOKEN)])
    ids, lengths = padded(PROMPTS)
    changed = ids.clone()
    changed[1, 1] += 1
    gap = (network(ids, lengths) - network(changed, lengths)).abs().amax(dim=1)
    assert gap[1] > 1e-2 and gap[0] == gap[2] == 0


@pytest.mark.parametrize("ended", ["none", "eos"])
def test_the_network_says_what_the_engine_says(tiny_llama, tiny_tokenizer, ended: str) -> None:
    """The held-out numbers come from the engine: one prompt, one number, whichever of the two is asked."""
    from infer.next_token import token_count
    from infer.readers.label import LabelReader
    from models.causal import LoadedModel
    from models.engine_settings import QuestionSettings

    model = tiny_llama(448)
    labels = {"yes": [" Yes", " positive"], "no": " No", "bill": " billing problem"}
    question = QuestionSettings("Review: {text}\nSentiment:", None, [], labels, "text", "none", ended, "no")
    reader = LabelReader(LoadedModel(model, tiny_tokenizer, "tiny", {}, ""), question)
    rows = [{"text": text} for text in ("the plot is good", "bad", "a dull film, I hated it")]
    arrangement = reader.arrangements[0]
    encoded = reader.encoder.encode([arrangement.template.fill(row) for row in rows])
    followed = [arrangement.answers.follow(one) for one in encoded]
    cut = followed[0][1]
    tree = label_tree(cut.paths, arrangement.owners, ended=ended != "none", tree=arrangement.answers.tree(cut))
    network = AnswerNetwork(model, [tree], vocab_size=token_count(tiny_tokenizer))
    with torch.no_grad():
        found = network(*padded([ids.tolist() for ids, _ in followed]))
    np.testing.assert_allclose(found.numpy(), reader.read(rows).log_probs, atol=1e-5)


def test_no_full_logits_are_ever_made(tiny_llama) -> None:
    model = tiny_llama(VOCAB)
    shapes = []
    model.lm_head.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    AnswerNetwork(model, [label_tree(*ONE_TOKEN)])(*padded(PROMPTS))
    assert shapes == [(len(PROMPTS), 1, VOCAB)]


def test_checkpointed_activations_give_the_same_gradients(tiny_llama) -> None:
    plain, saved = tiny_llama(VOCAB), tiny_llama(VOCAB)
    saved.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tree = label_tree(*SEVERAL_TOKENS)
    results = [
        loss_and_gradients(model, AnswerNetwork(model, [tree]).train()(*padded(PROMPTS))) for model in (plain, saved)
    ]
    same(results[0], results[1])


def test_a_label_contained_in_another_is_refused() -> None:
    with pytest.raises(ValueError, match="answers_end=boundary"):
        label_tree([(11,), (11, 4)])


def test_an_ended_label_may_begin_another() -> None:
    ended = build_tree([(11,), (11, 4)], end_ids=np.array([1, 2]))
    assert label_tree([(11,), (11, 4)], ended=True, tree=ended).kept == (0, 1)


def test_the_sequence_head_reads_the_last_token_whatever_the_padding() -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        num_labels=3, pad_token_id=90,
    )  # fmt: skip
    model = LlamaForSequenceClassification(config).eval()
    ids, lengths = padded(PROMPTS)
    alone = torch.cat([model(input_ids=torch.tensor([prompt])).logits for prompt in PROMPTS])
    torch.testing.assert_close(SequenceNetwork(model)(ids, lengths), alone, rtol=0, atol=1e-5)
    # A prompt that ends with the pad id itself is still read at its end.
    ends_with_pad = copy.deepcopy(PROMPTS)
    ends_with_pad[0][-1] = 90
    moved = SequenceNetwork(model)(*padded(ends_with_pad))
    assert (moved[0] - alone[0]).abs().max() > 1e-4
