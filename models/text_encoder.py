"""An encoder that reads a text: token ids within what the network takes, label logits out of them.

A checkpoint is an ordinary sequence-classification one, with a file beside it where the mean over the tokens is read
too. Knows texts and tensors; never rows or labels' names.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.encoder import load_encoder, masked_mean, positions
from models.encoder_adapters import save_encoder
from models.prompt_tokens import Encoded, PromptEncoder
from models.prompts import Piece
from models.shards import reading_weights

MEAN_FILE = "text_head.safetensors"  # what pooling=mean adds to the ordinary checkpoint
UNBOUNDED = 1_000_000  # tokenizers without a length of their own name a number above it
USUAL_TOKENS = 512  # of a text, where neither the network nor its tokenizer sets a bound


class TextNetwork(nn.Module):
    """Label logits (B, L) for a batch of texts; wraps a transformers sequence-classification network.

    pooling: own is the network's own head; mean adds a linear part of the mean of its last hidden states, where
    sentence encoders keep their meaning.
    """

    accepts_loss_kwargs = False  # as PairClassifier's

    def __init__(self, encoder: Any, pooling: str = "own") -> None:
        super().__init__()
        self.encoder = encoder
        self.mean: nn.Linear | None = None
        if pooling == "mean":
            self.mean = nn.Linear(encoder.config.hidden_size, encoder.config.num_labels, bias=False)
            nn.init.normal_(self.mean.weight, std=0.02)

    @property
    def pooling(self) -> str:
        return "own" if self.mean is None else "mean"

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, L) float32 logits. input_ids, attention_mask: (B, T)."""
        if self.mean is None:
            return self.encoder(input_ids=input_ids, attention_mask=attention_mask).logits.float()
        outputs = self.encoder(input_ids=input_ids, attention_mask=attention_mask, output_hidden_states=True)
        logits = outputs.logits + self.mean(masked_mean(outputs.hidden_states[-1], attention_mask))
        return logits.float()


class TextEncoding:
    """Texts to token ids between the tokenizer's own marks; a control token spelt in a text is text.

    max_tokens: of a text with the marks; a longer one loses its middle. multiple: a batch is padded to a multiple of
    so many tokens as far as max_tokens, for kernels that are compiled for each length. Refuses a tokenizer without a
    pad token.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, multiple: int = 1) -> None:
        if tokenizer.pad_token_id is None:
            raise ValueError(
                f"The tokenizer of {tokenizer.name_or_path} has no pad token, which batches of texts need. Name one in "
                "its tokenizer_config.json, or read the model with method=next_token."
            )
        self.tokenizer, self.max_tokens, self.multiple = tokenizer, max_tokens, multiple
        self.encoder = _encoder(tokenizer)

    def encode(self, texts: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
        """(the token ids of each text, (N,) share of it left out)."""
        return self.cut(whole_texts(self.tokenizer, texts))

    def cut(self, whole: Sequence[Encoded]) -> tuple[list[np.ndarray], np.ndarray]:
        """The same of what whole_texts gave for them, with this tokenizer."""
        encoded = [self.encoder.fit(one, self.max_tokens) for one in whole]
        return [one.ids for one in encoded], np.array([one.cut_share for one in encoded], dtype=np.float64)

    def batch(self, ids: Sequence[np.ndarray]) -> dict[str, Tensor]:
        """The network's inputs, padded on the right: input_ids, attention_mask, (B, T) int64."""
        longest = max(map(len, ids))
        longest = max(longest, min(self.max_tokens, -(-longest // self.multiple) * self.multiple))
        shape = (len(ids), longest)
        padded = np.full(shape, self.tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros(shape, dtype=np.int64)
        for row, one in enumerate(ids):
            padded[row, : len(one)] = one
            mask[row, : len(one)] = 1
        return {"input_ids": torch.from_numpy(padded), "attention_mask": torch.from_numpy(mask)}


def whole_texts(tokenizer: Any, texts: Sequence[str]) -> list[Encoded]:
    """Each text's tokens between the tokenizer's marks, however many."""
    return _encoder(tokenizer).encode([(Piece(text, given=True),) for text in texts]) if texts else []


def _encoder(tokenizer: Any) -> PromptEncoder:
    return PromptEncoder(tokenizer, seq2seq=True)  # with the marks at the end too


def longest_text(model: nn.Module, tokenizer: Any, asked: int | None = None) -> int:
    """Tokens of a text: what is asked for, as far as network and tokenizer take it; all they take where None."""
    bounds = [most for most in (positions(model),) if most is not None]
    if tokenizer.model_max_length < UNBOUNDED:
        bounds.append(tokenizer.model_max_length)
    if asked is not None:
        return min([asked, *bounds])
    return min(bounds, default=USUAL_TOKENS)


def load_text_network(source: str, *, allow_pickle: bool = False, attention: str = "auto") -> TextNetwork:
    """The network of a checkpoint in float32, head and all, to predict with. Raises what load_encoder raises."""
    encoder = load_encoder(
        source, labels=None, whole=True, allow_pickle=allow_pickle, attention=attention, training=False
    )
    beside = Path(source) / MEAN_FILE
    if not beside.is_file():
        return TextNetwork(encoder)
    from safetensors.torch import load_file

    network = TextNetwork(encoder, "mean")
    assert network.mean is not None
    with reading_weights(source):
        network.mean.load_state_dict(load_file(beside))
    return network


def save_text_network(network: TextNetwork, folder: Path) -> None:
    """Write what `load_text_network` reads."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_encoder(network.encoder, folder)
    if network.mean is not None:
        state = {name: tensor.contiguous().cpu() for name, tensor in network.mean.state_dict().items()}
        save_file(state, folder / MEAN_FILE)
