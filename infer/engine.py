"""Exact log-probabilities of an answer tree behind many prompts, each token computed once.

    floor per prompt = 2 W (S + n + P / N) + 2 (W' + V H)(1 + n)   FLOPs

    S own tokens, P shared prefix, N prompts, n tree nodes; V H the head's weights, W' those of the last block but for
    its keys and values, W all others of the body

Prompts that are equal are read once; the prefix that all share is computed once; the rest goes longest first, in
batches of a token budget; the tree stands behind each prompt in the same forward pass; the head, and of the last
block all but keys and values, sees only what is read. Which of this a model can take is checked against plain unpadded
passes before it is used, not assumed.

Knows token ids, never text. Holds for any transformers model with a language-model head, causal or encoder-decoder.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from infer.batching import common_prefix, distinct, in_batches, is_out_of_memory
from infer.forward.decoder_passes import DecoderPass, ForestPass
from infer.forward.passes import ChainPass, Pass
from infer.forward.plans import causal_plan, check_causal, positions, start_token, steady_reach, takes_forest
from infer.forward.tree_log_probs import read_tree
from models.answer_tree import AnswerTree, Reading

# Tokens of a batch. CPU: past 1,000 the caches are full and memory only grows; GPU: enough to fill one.
BUDGET_TOKENS = {"cpu": 1024, "cuda": 16_384}
# Float32 logits of a batch's read positions, so that many labels times many short texts are no (B, T, V) either.
HEAD_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}
# A prefix shorter than this is not worth a pass of its own: every chat template and BOS would make one.
LEAST_PREFIX = 8


class Engine:
    """Reads answer trees with one model, which may be in any state; it is left as it was found.

    vocab_size: ids from here on are padding of the head, no tokens: they take no probability. None: all rows count.
    budget_tokens: tokens of a batch, padding included; halved for good when memory runs out.
    prefix, sort, tree, head, trim, apart: the ideas by which it is fast; each can be switched off to measure what it
    is worth.
    """

    def __init__(
        self, model: Any, *, vocab_size: int | None = None, budget_tokens: int | None = None, prefix: bool = True,
        sort: bool = True, tree: bool = True, head: bool = True, trim: bool = True, apart: bool = True,
    ) -> None:  # fmt: skip
        self.model = bare_network(model)
        weight = self.model.get_input_embeddings().weight
        self.kind = "cuda" if weight.device.type == "cuda" else "cpu"
        self.dtype = weight.dtype
        self.vocab_size = vocab_size
        self.budget_tokens = budget_tokens or BUDGET_TOKENS[self.kind]
        self.prefix, self.sort, self.tree, self.head = prefix, sort, tree, head
        self.trim, self.apart = trim, apart
        self.seq2seq = bool(self.model.config.is_encoder_decoder)

    def read(
        self,
        prompts: Sequence[np.ndarray],
        tree: AnswerTree,
        *,
        progress: bool = False,
        name: Callable[[int], str] = "row {}".format,
        strays: dict[int, float] | None = None,
    ) -> Reading:
        """The tree's log-probabilities behind each of N prompts (arrays of token ids, one token at least).

        strays: filled with {token id: summed probability} of the tokens that took the mass where the answers' first
        tokens hold less than half of it.
        A row that is not finite in half precision is computed again in float32, and is NaN where that is impossible:
        4-bit weights, no memory for a copy, under autocast.
        Raises ValueError for a prompt without tokens or longer than the model's positions, MemoryError naming a
        prompt that does not fit alone.
        """
        empty = [at for at, prompt in enumerate(prompts) if not len(prompt)]
        if empty:
            raise ValueError(f"{name(empty[0])} has no tokens, expected one at least. Give the prompt some text.")
        self._refuse_too_long(prompts, tree, name)
        firsts, same_as = distinct(prompts)
        edges = np.full((len(firsts), len(tree.edge_ids)), np.nan, dtype=np.float32)
        masses = np.full((len(firsts), len(tree.mass_ids)), np.nan, dtype=np.float32)
        result = Reading(edges, masses)
        if firsts:
            unique = [np.asarray(prompts[at], dtype=np.int64) for at in firsts]
            with in_eval_mode(self.model), torch.inference_mode():
                self._read(unique, np.bincount(same_as), tree, result, progress, lambda row: name(firsts[row]), strays)
            self._redo(unique, tree, result)
        return Reading(edges[same_as], masses[same_as])

    def _read(
        self, prompts: list[np.ndarray], counts: np.ndarray, tree: AnswerTree, into: Reading, progress: bool,
        name: Callable[[int], str], strays: dict[int, float] | None,
    ) -> None:  # fmt: skip
        for way, rows, skip in self._ways(prompts, tree):

            def work(batch: np.ndarray, way: Pass = way, skip: int = skip) -> None:
                logits = way.logits([prompts[row][skip:] for row in batch])
                found = read_tree(logits, tree, vocab_size=self.vocab_size, strays=strays, counts=counts[batch])
                into.edges[batch], into.masses[batch] = found.edges, found.masses

            lengths = np.array([len(prompt) - skip for prompt in prompts])
            order = rows[np.argsort(-lengths[rows], kind="stable")] if self.sort else rows
            cost = np.maximum(way.cost(lengths), self._head_cost(tree))
            self.budget_tokens = in_batches(work, order, cost, self.budget_tokens, progress=progress, name=name)

    def _refuse_too_long(self, prompts: Sequence[np.ndarray], tree: AnswerTree, name: Callable[[int], str]) -> None:
        behind = int(tree.depths.max()) if tree.fed and not self.seq2seq else 0
        reach = positions(self.model.config)
        for row, prompt in enumerate(prompts):
            if len(prompt) + behind > reach:
                raise ValueError(
                    f"{name(row)} takes {len(prompt) + behind} tokens with its answers, and the model's positions "
                    f"reach {reach}. Shorten it; SoftClassifier cuts the middle of the row's text by itself."
                )

    def _head_cost(self, tree: AnswerTree) -> int:
        """The tokens' worth of a prompt's logits, so that a batch's float32 logits stay within HEAD_BYTES."""
        head = self.model.get_output_embeddings()
        vocabulary = head.weight.shape[0] if head is not None else self.vocab_size or 0
        return int((1 + tree.fed) * vocabulary * 4 * BUDGET_TOKENS[self.kind] / HEAD_BYTES[self.kind])

    def _redo(self, prompts: list[np.ndarray], tree: AnswerTree, result: Reading) -> None:
        """Rows that half precision could not hold, once more in float32, where a copy of the weights fits."""
        bad = np.flatnonzero(np.isnan(result.edges).any(axis=1))
        if not len(bad) or self.dtype == torch.float32 or getattr(self.model, "is_quantized", False):
            return
        # Autocast would compute the copy in half precision again. Models that carry adapters in half precision are read
        # under it, and hooks behind their norms would turn float32 back as well (models.adapters.prepare_frozen).
        if torch.is_autocast_enabled(self.kind):
            return
        try:  # a copy of now: the weights may be others at the next call
            wider = Engine(copy.deepcopy(self.model).float(), vocab_size=self.vocab_size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            return
        again = wider.read([prompts[row] for row in bad], tree)
        result.edges[bad], result.masses[bad] = again.edges, again.masses

    def _ways(self, prompts: list[np.ndarray], tree: AnswerTree) -> Iterator[tuple[Pass, np.ndarray, int]]:
        """(pass, rows it computes, first tokens of theirs that it already has): all rows, each once."""
        everyone = np.arange(len(prompts))
        if self.seq2seq:
            yield self._decoder_way(prompts, tree), everyone, 0
            return
        check_causal(self.model, max(prompts, key=len))
        lengths = np.array([len(prompt) for prompt in prompts]) + tree.fed
        far = lengths >= steady_reach(self.model.config)
        if far.any():  # positions whose rotation depends on the longest row of a batch: one by one
            yield _OneByOne(ChainPass(self.model, tree, narrow=self.head)), everyone[far], 0
        near = everyone[~far]
        if len(near):
            way, skip = self._causal_way([prompts[row] for row in near], tree)
            yield way, near, skip

    def _causal_way(self, prompts: list[np.ndarray], tree: AnswerTree) -> tuple[Pass, int]:
        longest = max(prompts, key=len)
        shared = common_prefix(prompts) if self.prefix and len(prompts) > 1 else 0
        shared = shared if shared >= LEAST_PREFIX else 0
        forked = self.tree and tree.fed > 0
        plan = causal_plan(
            self.model, longest, tree.fed, tree=forked, prefix=bool(shared), trim=self.trim, apart=self.apart
        )
        prefix = plan.share(self.model, longest[:shared]) if shared and plan.prefix else None
        return plan.make(self.model, tree, prefix, narrow=self.head), 0 if prefix is None else len(prefix)

    def _decoder_way(self, prompts: list[np.ndarray], tree: AnswerTree) -> Pass:
        start = start_token(self.model)
        forest = self.tree and tree.fed > 0 and takes_forest(self.model, max(prompts, key=len), start)
        return (ForestPass if forest else DecoderPass)(self.model, tree, start, narrow=self.head)


class _OneByOne:
    """A pass that reads every node behind its own tokens alone, for models whose numbers depend on a row's length."""

    def __init__(self, way: ChainPass) -> None:
        self.way = way

    def cost(self, lengths: np.ndarray) -> np.ndarray:
        return np.full(len(lengths), 1 << 30)  # no two fit a budget

    def logits(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        way, parts = self.way, []
        for chain, depth in way.seen_at:
            single = copy.copy(way)
            single.chains, single.seen_at = [way.chains[chain][:depth]], [(0, depth)]
            # Dynamic NTK keeps the angles of the longest sequence so far until one comes that is short.
            way.model(input_ids=torch.as_tensor(prompts[0][:1], device=way.device)[None], use_cache=False)
            parts.append(single.logits(prompts))
        return torch.cat(parts, dim=1)


def bare_network(model: Any) -> Any:
    """The network itself, with PEFT's adapters in its layers. Refuses adapters that live in the wrapper alone."""
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise ValueError(
            f"The model has an adapter of type {model.active_peft_config.peft_type.value}, expected one inside its "
            "layers (such as LoRA): tokens learnt before every prompt are not read. Use another adapter."
        )
    # transformers' own add_adapter changes the layers and wraps nothing
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def in_eval_mode(model: Any) -> Iterator[None]:
    """The model without dropout, and back in the mode it was in, module by module."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
