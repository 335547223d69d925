"""Adapters that a fold trains beside a frozen language model, on texts or on arena rows in both orders.

The loss sees the label answers alone, where the answer starts (models.answer_network). Knows rows and settings; nothing
of the training loop.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.adapter_reading import fields_of, padded, predict_rows, read_active, sequence_prompts
from infer.identity import as_json
from infer.next_token import token_count
from infer.readers.label import LabelReader, LabelReading
from models.adapter_base import AdapterBase, load_base
from models.adapter_files import base_identity, save_adapter
from models.adapters import checkpoint_activations, trained_line
from models.answer_network import AnswerNetwork, LabelTree, SequenceNetwork, label_tree
from models.settings import Settings
from train.adapter_guard import GradientGuard

log = logging.getLogger("tiebreak")


@dataclass
class AskedRows:
    """The prompts of all rows, made once for all folds.

    prompts: per item (2 * row, + 1 for swapped answers) its token ids; tree: (items,) which of `trees` stands behind.
    """

    base: AdapterBase
    reader: LabelReader
    rows: Sequence[Any]
    prompts: list[np.ndarray]
    tree: np.ndarray
    trees: list[LabelTree]
    orders: int  # 1: rows have one order, and item 2 * row is prompt number row


def ask_rows(settings: Settings, rows: Sequence[Any], *, orders: int) -> AskedRows:
    """Load the base and encode every row's question. Raises what loading, the question and its labels raise."""
    model, trainer, head = settings.language_model, settings.trainer, settings.adapter.head
    base = load_base(
        model.name, precision=trainer.precision, quantization=model.quantization, head=head,
        labels=len(settings.question.labels),
    )  # fmt: skip
    log.info(base.loaded.line)
    engine = settings.engine
    reader = LabelReader(
        base.loaded, settings.question, budget_tokens=engine.budget_tokens, max_tokens=engine.max_tokens
    )
    reader.check()
    fields = [fields_of(row, swapped=swapped) for row in rows for swapped in (False, True)[:orders]]
    if head == "sequence":
        return AskedRows(
            base, reader, rows, sequence_prompts(reader, fields)[0], np.zeros(len(fields), int), [], orders
        )
    prompts, tree, trees = _label_prompts(reader, fields)
    return AskedRows(base, reader, rows, prompts, tree, trees, orders)


def _label_prompts(
    reader: LabelReader, fields: Sequence[dict[str, str]]
) -> tuple[list[np.ndarray], np.ndarray, list[LabelTree]]:
    """(token ids, (N,) number of the tree behind each, the trees).

    Where the options are lettered, the rows take the question's rotations in turn.
    """
    prompts: list[np.ndarray] = [np.empty(0)] * len(fields)
    tree = np.zeros(len(fields), dtype=np.int64)
    trees: dict[Any, LabelTree] = {}
    for number, arrangement in enumerate(reader.arrangements):
        mine = range(number, len(fields), len(reader.arrangements))
        encoded = reader.encoder.encode([arrangement.template.fill(fields[at]) for at in mine]) if mine else []
        room = reader.room(arrangement)
        for at, one in zip(mine, encoded, strict=True):
            prompts[at], cut = arrangement.answers.follow(reader.encoder.fit(one, room))
            key = (number, cut)
            if key not in trees:
                trees[key] = label_tree(
                    cut.paths, arrangement.owners, ended=reader.ended, tree=arrangement.answers.tree(cut)
                )
            tree[at] = list(trees).index(key)
    return prompts, tree, list(trees.values())


class AdapterLearner:
    """One fold's adapters. The newest learner of a process has the base; an older one refuses to go on."""

    def __init__(self, settings: Settings, asked: AskedRows, *, seed: int) -> None:
        self.settings, self.asked, self.base = settings, asked, asked.base
        self.model = self.base.fresh(settings.adapter, seed=seed)
        if settings.trainer.activation_checkpointing:
            checkpoint_activations(self.base.loaded.model, settings.trainer.checkpoint_every)
        self.network: Any
        if self.base.head == "label":
            vocab_size = token_count(self.base.loaded.tokenizer)
            self.network = AnswerNetwork(self.model, asked.trees, vocab_size=vocab_size)
            if settings.trainer.sharding == "zero3":
                # Tried when it is first asked for, one process would read the model while the others do not.
                with self.base.autocast():
                    self.network.takes_tree()
        else:
            self.network = SequenceNetwork(self.model)
        log.info(trained_line(self.model))

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        lengths = np.array([len(prompt) for prompt in self.asked.prompts])
        return lengths.reshape(-1, self.asked.orders).max(axis=1)[rows]

    def batch(self, items: Sequence[int]) -> dict[str, Any]:
        import torch

        at = [item if self.asked.orders == 2 else item // 2 for item in items]
        inputs = padded([self.asked.prompts[one] for one in at])
        if self.base.head == "label":
            inputs["tree"] = torch.from_numpy(self.asked.tree[at])
        return inputs

    def predict(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        self._check_carried()
        tta = self.settings.trainer.tta
        mine = [self.asked.rows[row] for row in rows]
        return predict_rows(self._read, mine, labels=len(self.asked.reader.labels), tta=tta)

    def save(self, folder: Path) -> None:
        self._check_carried()
        model = self.settings.language_model
        save_adapter(
            self.base, folder, task=self.settings.task.name, labels=self.asked.reader.labels,
            base=base_identity(model.name, model.quantization), question=as_json(asdict(self.settings.question)),
            max_tokens=self.settings.engine.max_tokens, tta=self.settings.trainer.tta,
        )  # fmt: skip

    def callbacks(self) -> list[Any]:
        return [GradientGuard(self.model)]

    def _read(self, fields: Sequence[dict[str, str]], *, names: Sequence[str] = ()) -> LabelReading:
        return read_active(self.base, self.asked.reader, fields, names=names)

    def _check_carried(self) -> None:
        assert self.base.carried is self.model, "another learner or reader has taken the base of this one"
