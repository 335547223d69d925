"""What a fold trains: a network, its batches, and how it predicts; one class per kind of network.

Knows which settings mean which learner; a learner knows its rows and tokens, nothing of the training loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from models.settings import Settings

if TYPE_CHECKING:
    from train.fold import FoldData

TRAINED = ("encoder", "adapter")  # methods that need a training loop; the others learn by fit(rows)


class Learner(Protocol):
    """A network with its rows. Rows are numbers in the whole table; an item is 2 * row, and 2 * row + 1 swapped."""

    network: Any  # torch.nn.Module: network(**batch) -> (B, L) logits, whose softmax is the probability of each label

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """(n,) tokens of these rows, to put rows of similar length into one batch."""

    def batch(self, items: Sequence[int]) -> dict[str, Any]:
        """The network's inputs (tensors) for these items."""

    def predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """((n, L) probabilities, (n,) mass outside the labels, (n,) disagreement of the two orders or NaN).

        By the network as it is now, through the code that predicts new rows.
        """

    def save(self, folder: Path) -> None:
        """Write the checkpoint; its tiebreak.json comes last and says that it is whole."""

    def callbacks(self) -> list[Any]:
        """Trainer callbacks that this network needs beside everyone's."""


def prepare(settings: Settings, data: FoldData, folder: Path, main: bool) -> None:
    """Do once what all folds share, in every process, into data.prepared: tokens of the rows, a frozen base.

    Nothing for methods that need no training loop. Raises what loading, a question and its labels raise.
    """
    if settings.method.name == "encoder" and settings.task.name == "arena":
        from train.encoder_learner import prepare_rows

        data.prepared = prepare_rows(settings, data.rows.rows, folder, main)
    elif settings.method.name == "encoder":
        from train.text_encoder_learner import prepare_texts

        data.prepared = prepare_texts(settings, data.rows.rows)
    elif settings.method.name == "adapter":
        from train.adapter_learner import ask_rows

        data.prepared = ask_rows(settings, data.rows.rows, orders=1 if data.rows.swap is None else 2)


def make_learner(settings: Settings, data: FoldData, training: np.ndarray, *, seed: int) -> Learner:
    """The learner of one fold before its first step, of data that is prepared. training: the rows that it learns from.

    Raises what its network's loading raises.
    """
    if settings.method.name == "encoder" and settings.task.name == "arena":
        from train.encoder_learner import EncoderLearner

        return EncoderLearner(settings, data.prepared, training)
    if settings.method.name == "encoder":
        from train.text_encoder_learner import TextEncoderLearner

        return TextEncoderLearner(settings, data)
    from train.adapter_learner import AdapterLearner

    return AdapterLearner(settings, data.prepared, seed=seed)
