"""The frozen language model of a process, loaded and prepared once, carrying the adapters of one fold after another.

Knows weights, never a row.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.adapters import add_lora, autocast, check_formats, prepare_frozen, quiet_peft
from models.causal import LoadedModel, load_language_model
from models.method_settings import AdapterSettings
from models.precision import device_and_precision
from models.shards import reading_weights

if TYPE_CHECKING:
    import torch


@dataclass
class AdapterBase:
    """A frozen language model that carries one set of adapters at a time: a fold's new one, or saved ones.

    loaded.model is the network itself; `carried` the PeftModel around it, None without adapters. precision: of weights,
    compute and Trainer. Whoever holds a PeftModel that is no longer `carried` holds an empty shell.
    """

    loaded: LoadedModel
    head: str
    precision: str
    carried: Any = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.loaded.model.get_input_embeddings().weight.device  # type: ignore[no-any-return]

    def autocast(self) -> AbstractContextManager[Any]:
        """What every forward pass with adapters runs in."""
        return autocast(str(self.device), self.precision)

    def bare(self) -> Any:
        """The network without adapters."""
        if self.carried is not None:
            self.carried.unload()
            self.carried = None
        return self.loaded.model

    def fresh(self, settings: AdapterSettings, *, seed: int) -> Any:
        """A PeftModel with a new adapter to be trained; whatever was carried before is gone."""
        self.carried = add_lora(self.bare(), settings, head=self.head, seed=seed)
        check_formats(self.carried, self.precision)
        return self.carried

    def carry(self, folders: Sequence[Path]) -> Any:
        """A PeftModel with the saved adapters of these folders, named fold0, fold1, ..., the first one active."""
        from peft import PeftModel

        model = self.bare()
        first, *others = folders
        with quiet_peft(), reading_weights(first):
            self.carried = PeftModel.from_pretrained(model, str(first), adapter_name="fold0")
            for number, folder in enumerate(others, start=1):
                self.carried.load_adapter(str(folder), adapter_name=f"fold{number}")
        self.carried.requires_grad_(False)
        return self.carried.eval()


_base: tuple[tuple[Any, ...], AdapterBase] | None = None


def load_base(
    name: str, *, precision: str = "auto", quantization: str = "none", head: str = "label", labels: int = 0
) -> AdapterBase:
    """The prepared base that `name` means, without adapters; loaded once per process, on this process's own device.

    labels: L, outputs of the sequence head. Raises what load_language_model raises, and ValueError for a launch that
    would shard 4-bit weights.
    """
    global _base
    refuse_sharding(quantization, os.environ)
    _, precision, _ = device_and_precision(precision)
    key = (name, precision, quantization, head, labels)
    if _base is None or _base[0] != key:
        _base = None  # the old one goes before the new one comes
        loaded = load_language_model(name, precision=precision, quantization=quantization)
        if head == "sequence":
            loaded = LoadedModel(
                with_sequence_head(loaded.model, labels), loaded.tokenizer, name, loaded.identity, loaded.line
            )
        prepare_frozen(loaded.model, precision)
        _base = key, AdapterBase(loaded, head, precision)
    _base[1].bare()
    return _base[1]


def with_sequence_head(model: Any, labels: int) -> Any:
    """The *ForSequenceClassification network around a causal model's body: a new float32 head of `labels` outputs.

    Raises ValueError where transformers has no such network for this kind of model.
    """
    import copy

    import torch
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING as KINDS

    if type(model.config) not in KINDS:
        raise ValueError(f"{type(model).__name__} has no sequence-classification network. Use adapter.head=label.")
    kind: Any = KINDS[type(model.config)]
    config = copy.deepcopy(model.config)
    config.num_labels = labels
    with torch.device("meta"):
        network: Any = kind(config)
    if network.base_model_prefix != model.base_model_prefix or not hasattr(network, "score"):
        raise ValueError(f"{type(network).__name__} is built unlike {type(model).__name__}. Use adapter.head=label.")
    setattr(network, network.base_model_prefix, getattr(model, model.base_model_prefix))
    device = model.get_input_embeddings().weight.device
    network.score = torch.nn.Linear(config.get_text_config().hidden_size, labels, bias=False, device=device)
    for mark in ("is_loaded_in_4bit", "is_quantized", "quantization_method", "hf_quantizer"):
        if hasattr(model, mark):
            setattr(network, mark, getattr(model, mark))
    return network.eval()


def refuse_sharding(quantization: str, environment: Any) -> None:
    """Refuse ZeRO-3 and FSDP, as accelerate's launcher announces them, around 4-bit weights, which are bytes."""
    zero3 = environment.get("ACCELERATE_USE_DEEPSPEED") == "true" and (
        environment.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3" or _zero_stage(environment) == 3
    )
    kind = "ZeRO-3" if zero3 else "FSDP" if environment.get("ACCELERATE_USE_FSDP") == "true" else None
    if quantization == "nf4" and kind:
        raise ValueError(
            f"model.quantization=nf4 keeps weights as bytes, which {kind} cannot shard. Launch plain processes "
            "(accelerate launch --multi_gpu) or ZeRO-2: in 4 bits each GPU holds an 8B model whole, in 5.5 GiB."
        )


def _zero_stage(environment: Any) -> int | None:
    try:
        content = json.loads(Path(environment["ACCELERATE_DEEPSPEED_CONFIG_FILE"]).read_text(encoding="utf-8"))
        return int(content["zero_optimization"]["stage"])
    except (KeyError, OSError, ValueError, TypeError):
        return None
