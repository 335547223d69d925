"""A causal language model as a network of one logit per label: log P(the label's answers | prompt), with gradients.

    prompt tokens ... last | tree of the answers' tokens        hidden states of the whole row, once
                      ^root   ^nodes                            the head there alone: (B, 1 + n, V), never (B, T, V)

The same numbers as the engine's, in a form that can be trained. Behind a prompt stand the nodes of the answers' tree,
each seeing the prompt and its ancestors, at the position its depth says; a model that cannot take such a mask reads
one row per chain of the tree. Answers of one token cost nothing beside the prompt, and then no mask is made at all.

    network = AnswerNetwork(model, [label_tree([(11,), (12,), (13,)])])
    logits = network(input_ids, lengths)          # (B, 3) log-probabilities; softmax gives the shares

Knows token ids, never text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from models.answer_tree import AnswerTree, Ids, build_tree, distinct_answers
from models.mask_checks import PROBE_LENGTHS, agree, looks_back, takes_masks
from models.narrow_head import read_logits
from models.tree_rows import Rows, TreeTables

# Tokens of a packed row at most (its mask is their square), and the share of the padded rows' work it must stay under.
MOST_PACKED = 8192
WORTH_PACKING = 0.8


@dataclass(frozen=True, eq=False)
class LabelTree:
    """The answers of L labels behind a prompt. owners: (A,) the label of each of the tree's answers.

    kept: the answers that count; the others repeat one, or are contained in one.
    """

    tree: AnswerTree
    owners: tuple[int, ...]
    kept: tuple[int, ...]

    @property
    def labels(self) -> int:
        """L."""
        return max(self.owners) + 1


def label_tree(paths: Sequence[Ids], owners: Sequence[int] | None = None, *, ended: bool = False,
               tree: AnswerTree | None = None) -> LabelTree:  # fmt: skip
    """The tree of answers given as paths of token ids. owners: the label of each; None: each is a label of its own.

    ended: the tree's answers have an end, so that one does not contain another. tree: where it was built already
    (models.answers), with the ends and the taken-back tokens that it needs.
    Raises ValueError for a label whose answers are all contained in others'.
    """
    owners = tuple(range(len(paths)) if owners is None else owners)
    kept = tuple(distinct_answers(paths, ended=ended))
    lost = set(owners) - {owners[answer] for answer in kept}
    if lost:
        raise ValueError(
            f"The answers of label {min(lost)} are contained in another label's, so their mass would count for both. "
            "Set question.answers_end=boundary (or eos), which tells them apart."
        )
    return LabelTree(tree or build_tree(list(paths)), owners, kept)


class AnswerNetwork(nn.Module):
    """A causal language model, plain or a PeftModel; forward gives (B, L) float32 log P(label's answers | prompt).

    trees: what may stand behind a prompt; most questions have one. vocab_size: ids from here on are padding of the
    head and take no probability; None: all rows count. pack: prompts that begin alike go through the network as one row
    where that is less work: the beginning once, no padding.
    """

    def __init__(self, model: nn.Module, trees: Sequence[LabelTree], *, vocab_size: int | None = None,
                 pack: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.pack = pack
        self.model = model
        self.trees = tuple(trees)
        self.labels = self.trees[0].labels
        self.vocab_size = vocab_size
        self.tables = TreeTables([one.tree for one in self.trees])
        self._takes_tree: bool | None = None
        assert all(one.labels == self.labels for one in self.trees), [one.labels for one in self.trees]

    @property
    def plain(self) -> Any:
        """The model without PEFT's wrapper; the adapters are in its layers."""
        model: Any = self.model
        return model.get_base_model() if hasattr(model, "get_base_model") else model

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor, tree: torch.Tensor | None = None) -> torch.Tensor:
        """(B, L) float32. input_ids: (B, T) prompts padded on the right with any id; lengths: (B,) tokens of each.

        tree: (B,) which of the trees stands behind each prompt; None: the first.
        """
        tree = torch.zeros_like(lengths) if tree is None else tree
        logits = self._logits(self._rows(input_ids, lengths, tree))
        logits = logits.view(len(lengths), 1 + self.tables.fed, -1)  # (B, 1 + n, V), also of prompts packed in one row
        if len(self.trees) == 1:
            return self._label_log_probs(self.trees[0], logits)
        result = logits.new_zeros((len(logits), self.labels), dtype=torch.float32)
        for number in tree.unique().tolist():
            rows = (tree == number).nonzero()[:, 0]
            result = result.index_copy(0, rows, self._label_log_probs(self.trees[number], logits[rows]))
        return result

    def _logits(self, rows: Rows) -> torch.Tensor:
        return read_logits(self.plain, rows.rows, rows.columns, use_cache=False, **rows.inputs)  # type: ignore[no-any-return]

    def _rows(self, input_ids: torch.Tensor, lengths: torch.Tensor, tree: torch.Tensor) -> Rows:
        prefix, packed = self._packed(input_ids, lengths)
        masked = packed or self.tables.fed > 0
        if masked and self._within_window(input_ids.shape[1] + self.tables.fed) and self.takes_tree():
            if packed:
                return self.tables.packed_rows(input_ids, lengths, tree, self._mask_dtype, prefix)
            return self.tables.tree_rows(input_ids, lengths, tree, self._mask_dtype)
        if not self.tables.fed:
            return self.tables.prompts_alone(input_ids, lengths)
        return self.tables.chain_rows(input_ids, lengths, tree)

    def _packed(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> tuple[int, bool]:
        """(tokens that all prompts begin with, whether one row of all prompts' own tokens is less work than B rows).

        A token costs 12 H of matrices and half a token of attention per token that it may look at.
        """
        same = (input_ids == input_ids[:1]).all(dim=0).cumprod(dim=0).sum()
        prefix = int(torch.minimum(same, lengths.min() - 1)) if self.pack and len(lengths) > 1 else 0
        if not prefix:
            return 0, False
        hidden, width = 12 * self.plain.config.get_text_config().hidden_size, input_ids.shape[1] + self.tables.fed
        total = prefix + int((lengths - prefix + self.tables.fed).sum())
        packed, padded = total * (1 + total / hidden), len(lengths) * width * (1 + width / hidden)
        return prefix, total <= MOST_PACKED and packed < WORTH_PACKING * padded

    @property
    def _mask_dtype(self) -> torch.dtype:
        return self.plain.get_input_embeddings().weight.dtype  # type: ignore[no-any-return]

    def _within_window(self, tokens: int) -> bool:
        return tokens <= looks_back(self.plain.config)[0]

    def takes_tree(self) -> bool:
        """Whether the model gives behind a tree mask what it gives without one; tried once, on two short prompts."""
        if self._takes_tree is None:
            self._takes_tree = takes_masks(self.plain.config) and self._try_tree()
        return self._takes_tree

    def _try_tree(self) -> bool:
        weight = self.plain.get_input_embeddings().weight
        ids = np.linspace(len(weight) // 4, 3 * len(weight) // 4, 4 + PROBE_LENGTHS[0], dtype=np.int64)
        a, b, c, d = (int(token) for token in ids[-4:])
        tables = TreeTables([build_tree([(a, b, c), (a, d, c), (d,)])]).to(weight.device)
        prompts = torch.as_tensor(ids[:-4], device=weight.device).repeat(2, 1)
        lengths = torch.tensor(PROBE_LENGTHS, device=weight.device)
        first = torch.zeros_like(lengths)
        modes = {module: module.training for module in self.modules()}
        self.eval()
        try:
            with torch.no_grad():
                expected = self._logits(tables.chain_rows(prompts, lengths, first))
                rows = tables.tree_rows(prompts, lengths, first, self._mask_dtype)
                found = self._logits(rows)
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception:  # whatever a model does that cannot take a mask
            return False
        finally:
            for module, training in modes.items():
                module.training = training
        half = torch.is_autocast_enabled(weight.device.type)
        return agree(found, expected, torch.float16 if half else self._mask_dtype)

    def _label_log_probs(self, labelled: LabelTree, logits: torch.Tensor) -> torch.Tensor:
        """(B, L) of (B, 1 + n, V) logits at the tree's nodes; the softmax is float32 whatever the model is."""
        tree = labelled.tree
        values = logits[:, :, : self.vocab_size].float()
        total = values.logsumexp(dim=-1)  # (B, 1 + n)
        nodes, ids = (torch.as_tensor(part, device=logits.device) for part in (tree.edge_nodes, tree.edge_ids))
        edges = values[:, nodes, ids] - total[:, nodes]  # (B, E)
        masses = []
        for node, tokens in zip(tree.mass_nodes.tolist(), tree.mass_ids, strict=True):
            # Tokens added to a tokenizer and not to the model have no row in the head, and so no probability.
            known = torch.as_tensor(tokens[tokens < values.shape[-1]], device=logits.device)
            masses.append(values[:, node, known].logsumexp(dim=-1) - total[:, node])
        answers = {
            answer: edges[:, list(tree.paths[answer])].sum(dim=1)
            + (masses[tree.ends[answer]] if tree.ends[answer] >= 0 else 0.0)
            for answer in labelled.kept
        }
        by_label = [
            torch.stack([answers[at] for at in labelled.kept if labelled.owners[at] == label]).logsumexp(dim=0)
            for label in range(labelled.labels)
        ]
        result = torch.stack(by_label, dim=1)
        if not tree.start:
            return result
        started = [edges[:, list(path)].sum(dim=1) + masses[mass] for path, mass in tree.start]
        return result - torch.stack(started).logsumexp(dim=0)[:, None]


class SequenceNetwork(nn.Module):
    """A language model with a new head of L outputs at each prompt's last token; forward gives (B, L) float32 logits.

    model: a transformers *ForSequenceClassification, plain or a PeftModel. The last token is found by length, never by
    a pad id; the head works in float32, also under autocast.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """(B, L) float32. input_ids: (B, T) padded on the right with any id; lengths: (B,) tokens of each."""
        model: Any = self.model
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        body = getattr(plain, plain.base_model_prefix)
        hidden = body(input_ids=input_ids, use_cache=False).last_hidden_state  # (B, T, H)
        last = hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
        with torch.autocast(last.device.type, enabled=False):
            # float32 but under DeepSpeed's fp16, which halves all weights
            return plain.score(last.to(plain.score.weight.dtype)).float()  # type: ignore[no-any-return]
