"""From the logits at an answer tree's nodes to the log-probabilities that are read there; knows token ids and arrays.

The softmax is float32 whatever the model is, over so many rows at a time that its working memory stays small.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from models.answer_tree import AnswerTree, Reading

STRAYS = 3  # tokens noted per prompt that took mass from the answers
HALF = 0.5
# Of the float32 logits worked on at once. CPU: from one row to all, this was among the fastest for 49k and 128k tokens,
# and its temporaries stay small; GPU: 128 rows of 128k tokens.
WORK_BYTES = {"cpu": 4 << 20, "cuda": 64 << 20}


def read_tree(
    logits: torch.Tensor,
    tree: AnswerTree,
    *,
    vocab_size: int | None = None,
    strays: dict[int, float] | None = None,
    counts: Sequence[int] | np.ndarray | None = None,
) -> Reading:
    """The edges (B, E) and masses (B, M) of (B, 1 + n, V) logits; a row with a number that is not finite is all NaN.

    vocab_size: logits from here on are padding and take no probability. strays: {token id: summed probability}, to
    which is added what took the mass where the answers' first tokens hold less than half. counts: (B,) how many
    prompts each row stands for; None: one each.
    """
    device = logits.device
    nodes, ids = (torch.as_tensor(part, device=device) for part in (tree.edge_nodes, tree.edge_ids))
    # Tokens added to a tokenizer and not to the model have no row in the head, and so no probability.
    chosen = [torch.as_tensor(part[part < logits.shape[-1]], device=device) for part in tree.mass_ids]
    weights = torch.as_tensor(np.ones(len(logits)) if counts is None else np.asarray(counts), device=device)
    edges = logits.new_empty((len(logits), len(ids)), dtype=torch.float32)
    masses = logits.new_empty((len(logits), len(chosen)), dtype=torch.float32)
    found = []
    start = 0
    for part in logits.split(_rows_at_once(logits)):
        rows = slice(start, start + len(part))
        start = rows.stop
        values = part[:, :, :vocab_size].float()
        total = values.logsumexp(dim=-1)  # (R, 1 + n)
        total[~total.isfinite().all(dim=1)] = torch.nan
        edges[rows] = values[:, nodes, ids] - total[:, nodes]
        for at, (node, tokens) in enumerate(zip(tree.mass_nodes.tolist(), chosen, strict=True)):
            masses[rows, at] = values[:, node, tokens].logsumexp(dim=-1) - total[:, node]
        if strays is not None:
            found.append(_strays(values[:, 0], total[:, 0], ids[nodes == 0], weights[rows]))
    if strays is not None:
        for token, prob in torch.cat(found).tolist() if found else []:
            strays[int(token)] = strays.get(int(token), 0.0) + prob
    return Reading(edges.cpu().numpy(), masses.cpu().numpy())


def _rows_at_once(logits: torch.Tensor) -> int:
    work_bytes = WORK_BYTES["cuda" if logits.device.type == "cuda" else "cpu"]
    return max(1, work_bytes // (4 * logits.shape[1] * logits.shape[2]))


def _strays(values: torch.Tensor, total: torch.Tensor, answers: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(K, 2) float64: token and its probability times the row's weight, of the rows that left the answers half."""
    answers = answers.unique()
    held = (values[:, answers] - total[:, None]).exp().sum(dim=1)
    poor = held < HALF  # of NaN this is false
    log_probs = values[poor] - total[poor, None]
    log_probs[:, answers] = -torch.inf
    probs, tokens = log_probs.topk(min(STRAYS, log_probs.shape[1]), dim=1)
    weighed = probs.double().exp() * weights[poor, None]
    return torch.stack([tokens.double(), weighed], dim=2).reshape(-1, 2)
