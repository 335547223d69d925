"""Exact log-probabilities of an answer tree behind many prompts, each token computed once.

    floor per prompt = 2 W (S + n + P / N) + 2 V H (1 + n)   FLOPs: W body weights, S own tokens, P shared prefix,
                                                             n tree nodes, V H the head's weights

Prompts that are equal are read once; the prefix that all share is computed once; the rest goes longest first, in
batches of a token budget; the tree stands behind each prompt in the same forward pass; the head sees only what is
read. Which of this a model can take is checked against plain unpadded passes before it is used, not assumed.

Knows token ids, never text. Holds for any transformers model with a language-model head, causal or encoder-decoder.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from infer.batching import common_prefix, distinct, in_batches, is_out_of_memory
from infer.passes import ChainPass, DecoderPass, ForestPass, Pass, SharedPrefix, TreePass
from models.answer_tree import AnswerTree, Reading, build_tree

# Tokens of a batch. CPU: past 1,000 the caches are full and memory only grows; GPU: enough to fill one.
BUDGET_TOKENS = {"cpu": 1024, "cuda": 16_384}
# Float32 logits of a batch's read positions, so that many labels times many short texts are no (B, T, V) either.
HEAD_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}
# A prefix shorter than this costs more in concatenation than it saves.
LEAST_PREFIX = 8
PROBE_LENGTHS = (12, 9)  # different, so that padding is part of the check
PROBE_PREFIX = 4
# Mean difference of log-probabilities, in nats, that rounding explains: measured 1e-6 and 0.01; a wrong mask gives 0.1.
ROUNDING = {torch.float32: 1e-4, torch.float64: 1e-6}
HALF_ROUNDING = 0.05
STRAYS = 3  # tokens noted per prompt that took mass from the answers

_settled: weakref.WeakKeyDictionary[Any, dict[Any, str]] = weakref.WeakKeyDictionary()


class Engine:
    """Reads answer trees with one model, which may be in any state; it is left as it was found.

    vocab_size: ids from here on are padding of the head, no tokens: they take no probability. None: all rows count.
    budget_tokens: tokens of a batch, padding included; halved for good when memory runs out.
    prefix, sort, tree, head: the ideas by which it is fast; each can be switched off to measure what it is worth.
    """

    def __init__(
        self, model: Any, *, vocab_size: int | None = None, budget_tokens: int | None = None, prefix: bool = True,
        sort: bool = True, tree: bool = True, head: bool = True,
    ) -> None:  # fmt: skip
        self.model = model.get_base_model() if hasattr(model, "peft_config") else model
        weight = self.model.get_input_embeddings().weight
        self.kind = "cuda" if weight.device.type == "cuda" else "cpu"
        self.dtype = weight.dtype
        self.vocab_size = vocab_size
        self.budget_tokens = budget_tokens or BUDGET_TOKENS[self.kind]
        self.prefix, self.sort, self.tree, self.head = prefix, sort, tree, head
        self.seq2seq = bool(self.model.config.is_encoder_decoder)
        self._prefix: SharedPrefix | None = None
        self._wider: Engine | None = None

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
        A row that is not finite in half precision is computed again in float32, and is NaN where that is impossible.
        Raises ValueError for a prompt without tokens, MemoryError naming a prompt that does not fit alone.
        """
        empty = [at for at, prompt in enumerate(prompts) if not len(prompt)]
        if empty:
            raise ValueError(f"{name(empty[0])} has no tokens, expected one at least. Give the prompt some text.")
        firsts, same_as = distinct(prompts)
        edges = np.full((len(firsts), len(tree.edge_ids)), np.nan, dtype=np.float32)
        masses = np.full((len(firsts), len(tree.mass_ids)), np.nan, dtype=np.float32)
        result = Reading(edges, masses)
        if firsts:
            unique = [np.asarray(prompts[at], dtype=np.int64) for at in firsts]
            with _quiet(self.model), torch.inference_mode():
                self._read(unique, tree, result, progress, lambda row: name(firsts[row]), strays)
            self._redo(unique, tree, result)
        return Reading(edges[same_as], masses[same_as])

    def _read(
        self, prompts: list[np.ndarray], tree: AnswerTree, into: Reading, progress: bool, name: Callable[[int], str],
        strays: dict[int, float] | None,
    ) -> None:  # fmt: skip
        for way, rows, skip in self._ways(prompts, tree):

            def work(batch: np.ndarray, way: Pass = way, skip: int = skip) -> None:
                logits = way.logits([prompts[row][skip:] for row in batch])
                for row, (edges, masses) in zip(batch, self._take(logits, tree, strays), strict=True):
                    into.edges[row], into.masses[row] = edges, masses

            lengths = np.array([len(prompt) - skip for prompt in prompts])
            order = rows[np.argsort(-lengths[rows], kind="stable")] if self.sort else rows
            cost = np.maximum(way.cost(lengths), self._head_cost(tree))
            self.budget_tokens = in_batches(work, order, cost, self.budget_tokens, progress=progress, name=name)

    def _head_cost(self, tree: AnswerTree) -> int:
        """The tokens' worth of a prompt's logits, so that a batch's float32 logits stay within HEAD_BYTES."""
        head = self.model.get_output_embeddings()
        vocabulary = head.weight.shape[0] if head is not None else self.vocab_size or 0
        return int((1 + tree.fed) * vocabulary * 4 * BUDGET_TOKENS[self.kind] / HEAD_BYTES[self.kind])

    def _take(
        self, logits: torch.Tensor, tree: AnswerTree, strays: dict[int, float] | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Per prompt of (B, 1 + n, V) logits its edges and masses; the softmax is float32 whatever the model is."""
        for row in logits:
            values = row[:, : self.vocab_size].float()
            total = values.logsumexp(dim=-1)
            nodes = torch.as_tensor(tree.edge_nodes, device=values.device)
            ids = torch.as_tensor(tree.edge_ids, device=values.device)
            edges = values[nodes, ids] - total[nodes]
            masses = [
                values[node, torch.as_tensor(chosen, device=values.device)].logsumexp(dim=-1) - total[node]
                for node, chosen in zip(tree.mass_nodes, tree.mass_ids, strict=True)
            ]
            if not bool(torch.isfinite(total).all()):
                edges, masses = torch.full_like(edges, torch.nan), [torch.full_like(m, torch.nan) for m in masses]
            elif strays is not None:
                _note_strays(values[0] - total[0], ids[nodes == 0], strays)
            stacked = torch.stack(masses) if masses else edges.new_empty(0)
            yield edges.cpu().numpy(), stacked.cpu().numpy()

    def _redo(self, prompts: list[np.ndarray], tree: AnswerTree, result: Reading) -> None:
        """Rows that half precision could not hold, once more in float32, where a copy of the weights fits."""
        bad = np.flatnonzero(np.isnan(result.edges).any(axis=1))
        if not len(bad) or self.dtype == torch.float32 or getattr(self.model, "is_quantized", False):
            return
        if self._wider is None:
            try:
                self._wider = Engine(copy.deepcopy(self.model).float(), vocab_size=self.vocab_size)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                return
        again = self._wider.read([prompts[row] for row in bad], tree)
        result.edges[bad], result.masses[bad] = again.edges, again.masses

    def _ways(self, prompts: list[np.ndarray], tree: AnswerTree) -> Iterator[tuple[Pass, np.ndarray, int]]:
        """(pass, rows it computes, first tokens of theirs that it already has): all rows, each once."""
        everyone = np.arange(len(prompts))
        if self.seq2seq:
            yield self._decoder_way(prompts, tree), everyone, 0
            return
        lengths = np.array([len(prompt) for prompt in prompts]) + tree.fed
        far = lengths > _reach(self.model.config)
        if far.any():  # positions whose rotation depends on the longest row of a batch: one by one
            yield _OneByOne(ChainPass(self.model, tree, narrow=self.head)), everyone[far], 0
        near = everyone[~far]
        if len(near):
            way, skip = self._causal_way([prompts[row] for row in near], tree)
            yield way, near, skip

    def _causal_way(self, prompts: list[np.ndarray], tree: AnswerTree) -> tuple[Pass, int]:
        window, kinds = _windows(self.model.config)
        longest = max(prompts, key=len)
        beyond = window is not None and len(longest) + tree.fed > window
        shared = common_prefix(prompts) if self.prefix and len(prompts) > 1 else 0
        shared = shared if shared >= LEAST_PREFIX else 0
        wants_tree = self.tree and tree.fed > 0
        key = (wants_tree, bool(shared), beyond and len(longest))
        settled = _settled.setdefault(self.model, {})
        if key not in settled:
            settled[key] = self._settle(longest, wants_tree, bool(shared), beyond)
        plan = settled[key]
        prefix = self._shared(longest[:shared]) if shared and "prefix" in plan else None
        skip = 0 if prefix is None else len(prefix)
        return self._build(plan, tree, prefix, window if beyond else None, kinds), skip

    def _build(
        self,
        plan: str,
        tree: AnswerTree,
        prefix: SharedPrefix | None,
        window: int | None,
        kinds: dict[str, bool] | None,
    ) -> Pass:
        if not plan.startswith("tree"):
            return ChainPass(self.model, tree, prefix, narrow=self.head)
        masks = kinds if plan.startswith("tree-by-layer") else None
        return TreePass(self.model, tree, prefix, narrow=self.head, window=window, layer_types=masks)

    def _settle(self, longest: np.ndarray, wants_tree: bool, shared: bool, beyond: bool) -> str:
        """The fastest plan that gives what plain unpadded passes give on two short prompts of these tokens.

        beyond: the longest prompt exceeds the model's window, so the check runs on it whole.
        """
        window, kinds = _windows(self.model.config)
        trees = ["tree-by-layer", "tree"] if kinds and beyond else ["tree"]
        plans = [f"{tree} prefix" for tree in trees] if wants_tree and shared else trees if wants_tree else []
        plans += ["chains prefix"] if shared else []
        lengths = (len(longest), len(longest) - 3) if beyond else PROBE_LENGTHS
        prompts = [np.resize(longest, length) for length in lengths]
        a, b, c, d = np.resize(longest[::-1], 4).tolist()
        tree = build_tree([(a, b, c), (a, b + 1, c), (d,)] if wants_tree else [(a,)])
        expected = [ChainPass(self.model, tree).logits([prompt]) for prompt in prompts] if plans else []
        for plan in plans:
            try:
                prefix, skip = None, 0
                if "prefix" in plan:
                    skip = len(longest) // 2 if beyond else PROBE_PREFIX
                    prefix = SharedPrefix(self.model, prompts[0][:skip])
                way = self._build(plan, tree, prefix, window if beyond else None, kinds)
                found = way.logits([prompt[skip:] for prompt in prompts])
            except Exception as error:  # whatever a model does that cannot take a mask or a cache
                if is_out_of_memory(error):
                    raise
                continue
            if _agree(found, torch.cat(expected), self.dtype):
                return plan
        return "chains"

    def _shared(self, ids: np.ndarray) -> SharedPrefix:
        if self._prefix is None or not np.array_equal(self._prefix.ids, ids):
            self._prefix = None  # the old one goes first: both need not fit
            self._prefix = SharedPrefix(self.model, ids)
        return self._prefix

    def _decoder_way(self, prompts: list[np.ndarray], tree: AnswerTree) -> Pass:
        config = self.model.config
        start = getattr(config, "decoder_start_token_id", None)
        start = self.model.generation_config.decoder_start_token_id if start is None else start
        if start is None:
            raise ValueError(
                f"{type(self.model).__name__} names no decoder_start_token_id, expected a token id. "
                "Set it in its config."
            )
        if not (self.tree and tree.fed):
            return DecoderPass(self.model, tree, start, narrow=self.head)
        settled = _settled.setdefault(self.model, {})
        if "forest" not in settled:
            settled["forest"] = self._settle_decoder(max(prompts, key=len), start)
        kind = ForestPass if settled["forest"] == "yes" else DecoderPass
        return kind(self.model, tree, start, narrow=self.head)

    def _settle_decoder(self, longest: np.ndarray, start: int) -> str:
        probes = [np.resize(longest, length) for length in PROBE_LENGTHS]
        a, b, c, d = np.resize(longest[::-1], 4).tolist()
        tree = build_tree([(a, b, c), (a, b + 1, c), (d, a)])
        expected = torch.cat([DecoderPass(self.model, tree, start).logits([probe]) for probe in probes])
        try:
            found = ForestPass(self.model, tree, start).logits(probes)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            return "no"
        return "yes" if _agree(found, expected, self.dtype) else "no"


class _OneByOne:
    """A pass whose prompts and chains never share a batch, for models whose numbers depend on the longest row."""

    def __init__(self, way: ChainPass) -> None:
        self.way = way

    def cost(self, lengths: np.ndarray) -> np.ndarray:
        return np.full(len(lengths), 1 << 30)  # no two fit a budget

    def logits(self, prompts: Sequence[np.ndarray]) -> torch.Tensor:
        way, parts = self.way, []
        for chain in way.chains:
            single = copy.copy(way)
            single.chains, nodes = [chain], len(chain)
            single.seen_at = [(0, depth) for depth in range(nodes + 1)]
            parts.append(single.logits(prompts))
        return torch.stack([parts[at][:, depth] for at, depth in way.seen_at], dim=1)


def _note_strays(log_probs: torch.Tensor, answers: torch.Tensor, strays: dict[int, float]) -> None:
    if float(log_probs[answers.unique()].exp().sum()) >= 0.5:
        return
    probs = log_probs.exp()
    probs[answers] = 0
    for prob, token in zip(*probs.topk(STRAYS), strict=True):
        strays[int(token)] = strays.get(int(token), 0.0) + float(prob)


def _agree(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    gap = (found.float().log_softmax(-1) - expected.float().log_softmax(-1)).abs()
    return bool(torch.isfinite(gap).all()) and float(gap.mean()) <= ROUNDING.get(dtype, HALF_ROUNDING)


def _windows(config: Any) -> tuple[int | None, dict[str, bool] | None]:
    """(tokens back that a layer sees, masks by kind of layer {name: windowed?} where there are two kinds)."""
    window = getattr(config, "sliding_window", None) or getattr(config, "attention_chunk_size", None)
    if getattr(config, "use_sliding_window", None) is False:
        window = None
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds and kinds == {"full_attention"}:
        return None, None
    return window, {kind: kind != "full_attention" for kind in sorted(kinds)} or None


def _reach(config: Any) -> float:
    """Length past which rotary angles change with the longest row of a batch (dynamic NTK, LongRoPE)."""
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) not in ("dynamic", "longrope"):
        return float("inf")
    return float(rope.get("original_max_position_embeddings") or config.max_position_embeddings)


@contextmanager
def _quiet(model: Any) -> Iterator[None]:
    """The model without dropout, and back in the mode it was in, module by module."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
