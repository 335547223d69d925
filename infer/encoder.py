"""A fine-tuned encoder as a soft classifier: rows in, a probability per label out, both orders averaged.

The held-out table of training and the submission both come from here. Knows checkpoints, nothing of training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from infer.batching import in_batches
from infer.predictions import swap_average
from infer.ranks import is_main, over_ranks
from models.checkpoint import read_identity, write_identity
from models.encoder import PairClassifier, load_encoder
from models.encoder_adapters import save_encoder
from models.precision import device_and_precision
from models.reader import (
    FeatureScale,
    PairFeatures,
    PairReader,
    load_tokenizer,
    make_reader,
    scaled_features,
)
from models.shards import reading_weights
from models.tasks.arena import LABELS, SWAP, ArenaRow
from models.tasks.tokens import TokenFields, cached_fields, tokenise_fields

HEAD_FILE = "pair_head.safetensors"  # what the siamese head adds to the ordinary checkpoint


class EncoderClassifier:
    """A PairClassifier with its tokenizer and reading.

    tta: the joint head reads both orders and the un-swapped probabilities are averaged; the siamese head needs no
    second reading.
    """

    def __init__(
        self, model: PairClassifier, tokenizer: Any, reader: PairReader, scale: FeatureScale | None = None, *,
        tta: bool = True, base: str = "",
    ) -> None:  # fmt: skip
        self.model = model
        self.tokenizer = tokenizer
        self.reader = reader
        self.scale = scale
        self.tta = tta
        self.base = base

    def predict_proba(
        self, rows: Sequence[ArenaRow], *, batch_rows: int = 32, precision: str = "auto", cache: Path | None = None
    ) -> np.ndarray:
        """(N, 3) float32, rows sum to one. Every process of a launch must call it; each reads its share.

        cache: a folder where the rows' tokens are kept, so that the folds' checkpoints tokenise them once.
        """
        tokenizer = self.tokenizer
        fields = tokenise_fields(rows, tokenizer) if cache is None else cached_fields(rows, tokenizer, cache)
        return self.probs_of(fields, scaled_features(rows, self.scale), batch_rows=batch_rows, precision=precision)[0]

    def probs_of(
        self, fields: Sequence[TokenFields], given: PairFeatures | None, *, batch_rows: int, precision: str = "auto"
    ) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3) probabilities of tokenised rows, and (N,) how far the two orders disagreed (L1; NaN: not read).

        batch_rows: of the longest row; of shorter ones as many more as have its tokens. The two orders of a row are as
        long as each other and share a batch. Raises MemoryError where a row alone does not fit.
        """
        orders = (0, 1) if self.reader.head == "joint" and self.tta else (0,)
        lengths = np.array([self.reader.tokens(one) for one in fields], dtype=np.int64)
        longest_first = np.argsort(-lengths, kind="stable")  # running out of memory shows at once
        budget_tokens = batch_rows * int(lengths.max(initial=1))

        def work(mine: np.ndarray) -> np.ndarray:
            items = (2 * mine[:, None] + orders).ravel()  # (rows x orders,)
            probs, _ = self.read_items(
                fields, given, items, lengths[items // 2], budget_tokens, precision=precision, progress=is_main(),
                name=lambda at: f"row {items[at] // 2}",
            )  # fmt: skip
            return probs.reshape(len(mine), len(orders), len(LABELS))

        probs = over_ranks(longest_first, work)  # (N, orders, 3)
        if len(orders) == 1:
            unknown = 0.0 if self.reader.head == "siamese" else np.nan  # a joint reading of one order cannot tell
            return probs[:, 0], np.full(len(probs), unknown, dtype=np.float32)
        return swap_average(probs[:, 0], probs[:, 1], SWAP)

    def read_items(
        self, fields: Sequence[TokenFields], given: PairFeatures | None, items: np.ndarray, tokens: np.ndarray,
        budget_tokens: int, *, precision: str = "auto", progress: bool = False, name: Callable[[int], str] = str,
    ) -> tuple[np.ndarray, int]:  # fmt: skip
        """((n, 3) probabilities as each item's order has its answers, the budget that was enough in the end).

        items: (n,) 2 * row + swapped, the longest first; tokens: (n,) of each. Raises MemoryError, with name(place),
        where one alone does not fit.
        """
        device, kind, _ = device_and_precision(precision)
        self.model.to(device).eval()
        probs = np.empty((len(items), len(LABELS)), dtype=np.float32)

        def read(batch: np.ndarray) -> None:
            inputs = self.reader.batch(fields, items[batch].tolist(), given)
            probs[batch] = self._forward(inputs, device, kind)

        budget_tokens = in_batches(
            read, np.arange(len(items)), tokens, budget_tokens, progress=progress,
            name=name, doing="predicting",
        )  # fmt: skip
        return probs, budget_tokens

    def _forward(self, inputs: dict[str, torch.Tensor], device: str, precision: str) -> np.ndarray:
        half = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
        with torch.inference_mode(), torch.autocast(device, dtype=half, enabled=half is not None):
            logits = self.model(**{name: tensor.to(device) for name, tensor in inputs.items()})
        if not bool(torch.isfinite(logits).all()):
            raise ValueError(
                f"The network gave a logit that is not a number in {precision}. Predict with trainer.precision=fp32, "
                "or train again with a lower trainer.learning_rate."
            )
        return torch.softmax(logits.float(), dim=-1).cpu().numpy()

    def save(self, folder: Path) -> None:
        """Write an ordinary sequence-classification checkpoint, and beside it what the pair reading adds."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_encoder(self.model.encoder, folder)
        self.tokenizer.save_pretrained(folder)
        if self.model.siamese is not None:
            save_file({k: v.contiguous().cpu() for k, v in self.model.siamese.state_dict().items()}, folder / HEAD_FILE)
        scale = (
            None
            if self.scale is None
            else {"mean": self.scale.mean.tolist(), "deviation": self.scale.deviation.tolist()}
        )
        write_identity(
            folder,
            task="arena",
            method="encoder",
            labels=LABELS,
            base=self.base,
            head=self.reader.head,
            budget_tokens=self.reader.budget_tokens,
            prompt_share=self.reader.prompt_share,
            tta=self.tta,
            feature_scale=scale,
        )

    @classmethod
    def load(cls, folder: Path, *, attention: str = "auto") -> EncoderClassifier:
        """The classifier of a checkpoint folder, to predict with; needs nothing outside it.

        Raises ValueError, see read_identity.
        """
        from safetensors.torch import load_file

        identity = read_identity(folder, task="arena", labels=LABELS)
        tokenizer, reader = load_reading(folder)
        stored = identity["feature_scale"]
        scale = None if stored is None else FeatureScale(np.array(stored["mean"]), np.array(stored["deviation"]))
        encoder = load_encoder(str(folder), whole=True, attention=attention, training=False)
        model = build_model(encoder, identity["head"], scale)
        if model.siamese is not None:
            with reading_weights(folder):
                model.siamese.load_state_dict(load_file(folder / HEAD_FILE))
        return cls(model, tokenizer, reader, scale, tta=identity["tta"], base=identity["base"])


def load_reading(folder: Path) -> tuple[Any, PairReader]:
    """The tokenizer of a checkpoint, and how it reads a row; no weights are loaded."""
    identity = read_identity(folder, task="arena", labels=LABELS)
    tokenizer = load_tokenizer(folder)
    reader = make_reader(
        tokenizer,
        head=identity["head"],
        budget_tokens=identity["budget_tokens"],
        prompt_share=identity["prompt_share"],
    )
    return tokenizer, reader


def build_model(encoder: Any, head: str, scale: FeatureScale | None) -> PairClassifier:
    """A PairClassifier whose head has room for the features of `scale`."""
    from models.tasks.arena_features import antisymmetric_columns

    odd = antisymmetric_columns() if scale is not None else np.array([], dtype=bool)
    return PairClassifier(encoder, head, int(odd.sum()), int((~odd).sum()))
