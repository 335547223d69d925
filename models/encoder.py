"""An encoder that reads a pair of answers: label logits out of token ids; how any encoder is loaded and frozen.

Two heads over one ordinary sequence-classification network of three outputs:

joint    one sequence holds prompt and both answers; the network's outputs are the logits.
siamese  prompt + answer is read once per answer with the same weights. The outputs (f_a, f_b, f_tie), to which the
         mean of the answer's last hidden states adds a linear part, of the two readings x and y of answers A and B
         make the logits

             score  s(x) = f_a(x) - f_b(x),   d = s(x) - s(y)  [+ w . (phi_A - phi_B)]
             logit(model_a) = d / 2,  logit(model_b) = -d / 2
             logit(tie)     = f_tie(x) + f_tie(y) - slope * |d|  [+ v . |phi_A - phi_B| + u . sigma]

         so exchanging the answers exchanges the first two logits and leaves the third: exactly, by construction
         (Bradley-Terry with ties; the brackets are the pair features, where they are switched on).

Knows token ids and tensors, never text.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.shards import reading_weights
from models.tasks.arena import LABELS

log = logging.getLogger("tiebreak")


class SiameseHead(nn.Module):
    """Antisymmetric logits of two readings.

    hidden_size: of the network, for the mean over the answer's tokens: sentence encoders keep their meaning there and
    not in the first token, which the network's own outputs are made of.
    pair_size: how many features describe how A differs from B (antisymmetric: a swap negates them);
    even_size: how many describe the pair as a whole (a swap leaves them). Both 0 without pair features.
    """

    def __init__(self, hidden_size: int, pair_size: int = 0, even_size: int = 0) -> None:
        super().__init__()
        self.mean = nn.Linear(hidden_size, 3, bias=False)
        nn.init.normal_(self.mean.weight, std=0.02)
        # softplus(0.5413) = 1: a tie loses as much as the winner's full score difference gains.
        self.slope = nn.Parameter(torch.tensor(0.5413))
        # Zero weights: training starts from what the text says, and no feature can break the first steps.
        self.odd = nn.Linear(pair_size, 1, bias=False) if pair_size else None
        self.even = nn.Linear(pair_size + even_size, 1, bias=False) if pair_size + even_size else None
        for layer in (self.odd, self.even):
            if layer is not None:
                nn.init.zeros_(layer.weight)

    def forward(
        self,
        outputs: Tensor,
        hidden: Tensor,
        answer_mask: Tensor,
        odd: Tensor | None = None,
        even: Tensor | None = None,
    ) -> Tensor:
        """(B, 3) float32 logits.

        outputs: (2B, 3), answers A and B of a row in turn. hidden: (2B, T, H), the last layer's. answer_mask: (2B, T),
        1 at the answer's tokens. odd: (B, pair_size). even: (B, even_size).
        """
        # The separator keeps the mask from being empty.
        readings = (outputs + self.mean(masked_mean(hidden, answer_mask))).float()
        first, second = readings.unflatten(0, (-1, 2)).unbind(1)  # (2B, 3) -> two of (B, 3)
        difference = (first[:, 0] - first[:, 1]) - (second[:, 0] - second[:, 1])
        tie = first[:, 2] + second[:, 2]
        if self.odd is not None and odd is not None:
            difference = difference + self.odd(odd).squeeze(-1)
        if self.even is not None and odd is not None:
            whole = odd.abs() if even is None else torch.cat([odd.abs(), even], dim=-1)
            tie = tie + self.even(whole).squeeze(-1)
        tie = tie - F.softplus(self.slope) * difference.abs()
        return torch.stack([difference / 2, -difference / 2, tie], dim=-1)


class PairClassifier(nn.Module):
    """Label logits (B, 3) for a batch of pairs; wraps a transformers sequence-classification network."""

    # The forward takes **kwargs down the line, so Trainer would believe that the loss is already scaled for
    # accumulation and multiply it by the number of micro-batches (environment trap T1).
    accepts_loss_kwargs = False

    def __init__(self, encoder: Any, head: str, pair_size: int = 0, even_size: int = 0) -> None:
        super().__init__()
        self.encoder = encoder
        self.siamese = SiameseHead(encoder.config.hidden_size, pair_size, even_size) if head == "siamese" else None

    @property
    def head(self) -> str:
        return "joint" if self.siamese is None else "siamese"

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor,
        odd: Tensor | None = None,
        even: Tensor | None = None,
    ) -> Tensor:
        """(B, 3) float32 logits. input_ids, attention_mask, token_type_ids: (B, T) joint, (2B, T) siamese."""
        inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
        if getattr(self.encoder.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = token_type_ids
        if self.siamese is None:
            return self.encoder(**inputs).logits.float()
        outputs = self.encoder(**inputs, output_hidden_states=True)
        return self.siamese(outputs.logits, outputs.hidden_states[-1], token_type_ids, odd, even)


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, H): the mean of hidden (B, T, H) where mask (B, T) is 1, which it must be somewhere in each row."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weight).sum(1) / weight.sum(1)  # (B, T, H) -> (B, H)


def load_encoder(
    source: str, *, labels: Sequence[str] | None = LABELS, dropout: float | None = None, vocab_size: int | None = None,
    whole: bool = False, attention: str = "auto", allow_pickle: bool = False, training: bool = True,
) -> nn.Module:  # fmt: skip
    """A sequence-classification network with an output for each label, named after it, weights in float32.

    source: a folder or hub name from `resolve_model`. labels: None keeps the outputs of the file.
    dropout: overrides every dropout of the config.
    vocab_size: grows the embedding where the tokenizer has more tokens than it has rows (never shrinks it).
    whole: the head must be in the file too, as in a checkpoint of ours.
    attention: of a DeBERTa, see models.deberta_attention; other networks have transformers' own.
    training: false where it only predicts: an attention that cannot drop probabilities will do.
    allow_pickle: take a pickle of tensors alone (weights_only) where there are no safetensors.
    Raises ValueError where weights below the head are missing: they would be random, without a word; and for an
    attention that cannot run here. FileNotFoundError where there are no weights that may be read.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification
    from transformers.utils import logging as transformers_logging

    from models.names import has_safetensors

    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    is_deberta = config.model_type == DEBERTA
    if attention != "auto" and not is_deberta:
        raise ValueError(
            f"model.attention={attention} is for DeBERTa, and {source} is of the kind {config.model_type}, whose "
            "attention transformers chooses. Set model.attention=auto."
        )
    if labels is not None:
        config.num_labels = len(labels)
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
        config.problem_type = "single_label_classification"
    if dropout is not None:
        for key in [key for key in vars(config) if "dropout" in key and isinstance(getattr(config, key), float)]:
            setattr(config, key, dropout)
    # The report of newly initialised head weights says nothing that a user of a pre-trained encoder can act on.
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # of a second's loading; the rows have bars of their own
    try:
        # float32 whatever the file holds: fp16 weights cannot be trained (trap T8).
        with reading_weights(source):
            encoder, report = AutoModelForSequenceClassification.from_pretrained(
                source,
                config=config,
                dtype=torch.float32,
                use_safetensors=None if allow_pickle and not has_safetensors(source) else True,
                weights_only=True,
                ignore_mismatched_sizes=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
        refuse_gaps(source, report, whole)
        rows = encoder.get_input_embeddings().weight.shape[0]
        if vocab_size is not None and vocab_size > rows:
            encoder.resize_token_embeddings(vocab_size, pad_to_multiple_of=8)
    except OSError as error:
        if has_safetensors(source):
            raise
        raise FileNotFoundError(
            f"{source} has no weights as safetensors ({str(error).strip().splitlines()[0]}). Pickles (.bin, .pt) can "
            "run code and are not opened. Convert them, or, where you trust their maker, set model.allow_pickle=true: "
            "then tensors alone are taken from them."
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    if is_deberta:
        from models.deberta_attention import use_attention  # here: it imports transformers' DeBERTa

        log.info(use_attention(encoder, attention, training=training))
    return encoder


def refuse_gaps(source: str, report: dict[str, Any], whole: bool) -> None:
    """Raises ValueError where a loading report lacks weights. whole: of the head too, which may else be new."""
    found = [*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])]
    gaps = sorted(key for key in found if whole or depth(key) != HEAD_DEPTH)
    if gaps:
        raise ValueError(
            f"The weights in {source} lack {len(gaps)} of the network's tensors ({gaps[0]} first), which would be "
            "random. The file is damaged or of another architecture than its config.json; copy it again."
        )


def check_budget(encoder: nn.Module, budget_tokens: int, name: str, key: str = "task.budget_tokens") -> None:
    """Refuse a budget longer than the network has positions for. key: the setting that asks for it."""
    most = positions(encoder)
    if most is not None and budget_tokens > most:
        raise ValueError(
            f"{key}={budget_tokens}, but {name} has {most} positions. "
            f"Set {key}={most} or less, or choose a model of relative positions."
        )


def positions(encoder: nn.Module) -> int | None:
    """Tokens that a network has positions for; None where they are relative, as DeBERTa's: any length goes."""
    for name, module in encoder.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin number positions from padding_idx + 1.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


def freeze_lowest(encoder: nn.Module, layers: int) -> int:
    """Freeze the embeddings (layers >= 1) and the lowest layers - 1 blocks; how many weights that froze."""
    frozen = 0
    for name, parameter in encoder.named_parameters():
        if layers and depth(name) < layers:
            parameter.requires_grad_(False)
            frozen += parameter.numel()
    return frozen


def depth(name: str) -> int:
    """How far above the tokens a parameter stands: embeddings 0, block i at i + 1, the head above all."""
    parts = name.split(".")
    if "embeddings" in parts or "rel_embeddings" in parts:
        return 0
    for word in ("layer", "layers"):  # BERT's and ModernBERT's names for the blocks
        at = parts.index(word) + 1 if word in parts else len(parts)
        if at < len(parts) and parts[at].isdigit():
            return int(parts[at]) + 1
    if "encoder" in parts[1:]:  # DeBERTa's relative embeddings and norm serve all blocks
        return 0
    return HEAD_DEPTH


HEAD_DEPTH = 10_000
DEBERTA = "deberta-v2"  # versions 2 and 3, as their config.json says
