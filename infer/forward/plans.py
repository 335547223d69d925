"""Which pass a model can take, found by trying: each is held against plain, unpadded, uncached passes on two prompts.

A mask, a shared prefix or a window is used only where it gives what the model gives without it. Each question is asked
once for a loaded model. Knows token ids and configs; computes no answer.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from infer.batching import is_out_of_memory
from infer.forward.decoder_passes import DecoderPass, ForestPass
from infer.forward.last_block import LastBlock
from infer.forward.last_block_search import find_last_block
from infer.forward.passes import ChainPass, Pass, SharedPrefix, TreePass, padded
from infer.forward.prefix_attention import can_attend_apart
from models.answer_tree import AnswerTree, build_tree
from models.mask_checks import PROBE_LENGTHS, agree, gap, looks_back, rounding_of, takes_masks

PROBE_PREFIX = 4

_settled: weakref.WeakKeyDictionary[Any, dict[Any, Any]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Plan:
    """A way to compute. tree: the answers' tree stands behind the prompt; else one row per chain of it.

    prefix: shared keys and values. window: of the masks, None where nothing is hidden. by_layer: masks for each kind
    of layer {name: windowed?}, None where one serves all. last: what of the last block runs on what is read only, None
    where it all runs on all tokens. apart: attention looks at the prefix by itself, once for all rows.
    """

    tree: bool
    prefix: bool
    window: int | None = None
    by_layer: tuple[tuple[str, bool], ...] | None = None
    last: LastBlock | None = None
    apart: bool = False

    def share(self, model: Any, ids: np.ndarray) -> SharedPrefix:
        """The prefix that the pass stands behind."""
        return SharedPrefix(model, ids, last=self.last, apart=self.apart)

    def make(self, model: Any, tree: AnswerTree, prefix: SharedPrefix | None, *, narrow: bool = True) -> Pass:
        """The pass itself."""
        if not self.tree:
            return ChainPass(model, tree, prefix, narrow=narrow, last=self.last)
        kinds = None if self.by_layer is None else dict(self.by_layer)
        return TreePass(model, tree, prefix, narrow=narrow, last=self.last, window=self.window, layer_types=kinds)


def causal_plan(
    model: Any, longest: np.ndarray, fed: int, *, tree: bool, prefix: bool, trim: bool = True, apart: bool = True
) -> Plan:
    """The fastest plan that is right for prompts up to `longest`, with `fed` tokens of a tree behind them.

    tree, prefix, trim (the last block to what is read), apart (the prefix in attention): whether they would be of use.
    Where the longest exceeds what a layer looks back, the check runs on a prompt of its length; else on a dozen tokens.
    """
    tree = tree and takes_masks(model.config)
    reach, windows = looks_back(model.config)
    beyond = len(longest) + fed > reach
    if beyond:
        longest = np.resize(longest, max(len(longest), int(reach) + PROBE_LENGTHS[0]))
    # A check beyond the window holds for lengths up to the next power of two, and for one way to compute attention.
    key = (tree, prefix, trim, apart, beyond and len(longest).bit_length(), *_state(model))
    settled = _settled.setdefault(model, {})
    if key not in settled:
        candidates = _candidates(tree, prefix, windows if beyond else [(None, None)])
        settled[key] = _settle(model, longest, candidates, tree=tree, trim=trim, apart=apart, beyond=beyond)
    found: Plan = settled[key]
    return found


def takes_forest(model: Any, longest: np.ndarray, start_id: int) -> bool:
    """Whether an encoder-decoder takes the chains of a tree side by side in one decoder row."""
    settled = _settled.setdefault(model, {})
    key = ("forest", *_state(model))
    if key not in settled:
        probes, (a, b, c, d) = probe_prompts(model, longest, PROBE_LENGTHS)
        tree = build_tree([(a, b, c), (a, d, c), (d, a)])
        expected = torch.cat([DecoderPass(model, tree, start_id).logits([probe]) for probe in probes])
        settled[key] = _gives(lambda: ForestPass(model, tree, start_id).logits(probes), expected, model)
    return bool(settled[key])


def check_causal(model: Any, longest: np.ndarray) -> None:
    """Refuses a network that looks at later tokens: behind padding or an answer it would say something else.

    Raises ValueError naming its class.
    """
    settled = _settled.setdefault(model, {})
    if "causal" not in settled:
        probes, (a, b, *_) = probe_prompts(model, longest, PROBE_LENGTHS)
        alone, followed = (ChainPass(model, build_tree([path])).logits(probes[:1]) for path in ((a,), (a, b)))
        # Of the logits' size, since to refuse is worse than to be slow. What is not finite (an overflow) says nothing:
        # only a difference refuses.
        rounding = rounding_of(_dtype(model)) * alone.float().log_softmax(-1).abs().mean()
        settled["causal"] = not gap(followed[:, :1], alone).mean() > rounding
    if not settled["causal"]:
        raise ValueError(
            f"{type(model).__name__} says something else of the next token once more tokens follow, expected a causal "
            "language model. Use another model."
        )


def start_token(model: Any) -> int:
    """The id a decoder starts from. Raises ValueError where the model names none."""
    start = getattr(model.config, "decoder_start_token_id", None)
    start = model.generation_config.decoder_start_token_id if start is None else start
    if start is None:
        raise ValueError(
            f"{type(model).__name__} names no decoder_start_token_id, expected a token id. Set it in its config."
        )
    return int(start)


def positions(config: Any) -> int:
    """Tokens that the model's positions reach; relative positions (T5, ALiBi) reach any number."""
    config = config.get_text_config()
    if config.is_encoder_decoder and hasattr(config, "relative_attention_num_buckets"):
        return 1 << 30
    reach = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or -1
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "dynamic":  # stretched as needed: the config's number is what it was trained on
        reach = int(reach * rope.get("factor", 1.0))
    return int(reach) if reach > 0 else 1 << 30


def steady_reach(config: Any) -> float:
    """Length past which rotary angles change with the longest row of a batch (dynamic NTK, LongRoPE); else endless."""
    config = config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    if rope.get("rope_type", rope.get("type")) not in ("dynamic", "longrope"):
        return float("inf")
    return float(rope.get("original_max_position_embeddings") or config.max_position_embeddings)


def _candidates(tree: bool, prefix: bool, windows: list[tuple[int | None, Any]]) -> list[Plan]:
    """From the fastest to the plainest but one."""
    trees = [Plan(True, prefix, window, kinds) for window, kinds in windows] if tree else []
    return [*trees, *([Plan(False, True)] if prefix else [])]


def _settle(
    model: Any, longest: np.ndarray, candidates: list[Plan], *, tree: bool, trim: bool, apart: bool, beyond: bool
) -> Plan:
    lengths = (len(longest), len(longest) - 3) if beyond else PROBE_LENGTHS
    prompts, (a, b, c, d) = probe_prompts(model, longest, lengths)
    probe = build_tree([(a, b, c), (a, d, c), (d,)] if tree else [(a,)])
    if not candidates and not trim:
        return Plan(False, False)
    expected = torch.cat([ChainPass(model, probe).logits([prompt]) for prompt in prompts])
    first = len(longest) // 2 if beyond else PROBE_PREFIX

    def logits(plan: Plan) -> torch.Tensor:
        skip = first if plan.prefix else 0
        shared = plan.share(model, prompts[0][:skip]) if skip else None
        return plan.make(model, probe, shared).logits([prompt[skip:] for prompt in prompts])

    plain = Plan(False, False)
    plan = next((one for one in candidates if _gives(lambda one=one: logits(one), expected, model)), plain)
    trimmed = replace(plan, last=_last_block(model, longest) if trim else None)
    plan = trimmed if trimmed.last and _gives(lambda: logits(trimmed), expected, model) else plan
    # Beyond a window some of the prefix is hidden, and what looks at it apart has no mask.
    useful = apart and plan.prefix and not beyond and can_attend_apart(model)
    divided = replace(plan, apart=useful)
    return divided if useful and _gives(lambda: logits(divided), expected, model) else plan


def _last_block(model: Any, longest: np.ndarray) -> LastBlock | None:
    """What of the last block needs run only on what is read; None where it cannot be told."""
    settled, key = _settled.setdefault(model, {}), ("last", *_state(model))
    if key not in settled:
        settled[key] = _find_last_block(model, longest)
    found: LastBlock | None = settled[key]
    return found


def _find_last_block(model: Any, longest: np.ndarray) -> LastBlock | None:
    prompts, _ = probe_prompts(model, longest, PROBE_LENGTHS)
    ids = padded(prompts).to(model.get_input_embeddings().weight.device)
    columns = torch.tensor([[len(prompt) - 1] for prompt in prompts])
    try:
        return find_last_block(model, ids, torch.arange(len(prompts))[:, None], columns)
    except Exception as error:  # whatever a model does that is not a row of blocks: it is left alone
        if is_out_of_memory(error):
            raise
        return None


def _state(model: Any) -> tuple[Any, ...]:
    """What may change in a loaded model and with it what it takes."""
    return getattr(model.config, "_attn_implementation", None), _dtype(model)


def _dtype(model: Any) -> Any:
    return model.get_input_embeddings().weight.dtype


def probe_prompts(model: Any, longest: np.ndarray, lengths: tuple[int, int]) -> tuple[list[np.ndarray], list[int]]:
    """Prompts of these lengths, made of the longest one's tokens and of others, and four different tokens for answers.

    A prompt that repeats one token would show no mask's mistake: whatever is seen looks the same.
    """
    rows = model.get_input_embeddings().weight.shape[0]
    spread = np.linspace(rows // 4, 3 * rows // 4, 2 * PROBE_LENGTHS[0], dtype=np.int64)  # controls are at the ends
    missing = max(0, PROBE_LENGTHS[0] - len(np.unique(longest)))
    others = np.setdiff1d(spread, longest)[:missing]
    answers = list(dict.fromkeys([*longest[::-1].tolist(), *others.tolist()]))[:4]
    return [np.resize(np.concatenate([others, longest]), length) for length in lengths], answers


def _gives(logits: Any, expected: torch.Tensor, model: Any) -> bool:
    """Whether logits() runs, and agrees with `expected` to within rounding."""
    try:
        found = logits()
    except Exception as error:  # whatever a model does that cannot take a mask or a cache
        if is_out_of_memory(error):
            raise
        return False
    return agree(found, expected, _dtype(model))
