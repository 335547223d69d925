"""The ways to train a 4-bit Llama on labels that the benchmark compares, each a model and a Trainer of its own.

    ours                our preparation (models.adapters), log-probabilities of the labels alone (models.answer_network)
    ours, full logits   our preparation, the plain loss
    plain               peft's prepare_model_for_kbit_training, the model's own loss over (B, T, V), a plain Trainer

All see the same rows, train the same adapters with the same optimizer, and recompute their layers for the gradient.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

LABELS = (11, 12, 13)  # the tokens that stand for three labels
FIRST_ID = 100  # prompts are random ids from here on
DROPOUT = 0.05  # of the adapters' inputs
SHORTEST = 0.75  # of the longest row: real batches have padding
IGNORED = -100  # transformers' mark of a position without a loss
# Steps before the clock starts: the first ones of fp16 may be skipped while its gradients overflow.
MOST_WARM_UP = 8


@dataclass(frozen=True)
class Batch:
    """Rows of a prompt and one answer token. input_ids: (B, T) prompt and answer, padded; lengths: (B,) of prompts."""

    input_ids: torch.Tensor
    lengths: torch.Tensor
    label: torch.Tensor

    def for_labels(self) -> dict[str, torch.Tensor]:
        """What AnswerNetwork takes, the answers left out."""
        prompts = self.input_ids[:, : int(self.lengths.max())]
        return {"input_ids": prompts, "lengths": self.lengths, "targets": F.one_hot(self.label, len(LABELS)).float()}

    def for_plain(self) -> dict[str, torch.Tensor]:
        """What a causal language model of transformers takes: the loss is at the answers."""
        places = torch.arange(self.input_ids.shape[1])
        labels = torch.where(places == self.lengths[:, None], self.input_ids, IGNORED)
        mask = (places <= self.lengths[:, None]).long()
        return {"input_ids": self.input_ids, "attention_mask": mask, "labels": labels}


def make_batch(rows: int, length: int, vocab: int, seed: int = 0) -> Batch:
    """`rows` random rows, the longest `length` tokens with its answer, the others from SHORTEST of it."""
    random = torch.Generator().manual_seed(seed)
    least = min(length - 1, max(1, int(SHORTEST * length)))
    lengths = torch.randint(least, length, (rows,), generator=random)
    lengths[0] = length - 1
    input_ids = torch.randint(min(FIRST_ID, vocab // 2), vocab, (rows, length), generator=random)
    label = torch.randint(len(LABELS), (rows,), generator=random)
    input_ids[torch.arange(rows), lengths] = torch.tensor(LABELS)[label]
    input_ids[torch.arange(length) > lengths[:, None]] = 0
    return Batch(input_ids, lengths, label)


class LabelTrainer(Trainer):
    """A Trainer whose loss is the cross-entropy over the labels, as train.loop has it."""

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        targets = inputs.pop("targets")
        return F.cross_entropy(model(**inputs).float(), targets)


@dataclass(frozen=True)
class Prepared:
    """A road, ready to train: its network, its Trainer, and what a batch becomes."""

    network: nn.Module
    trainer: type[Trainer]
    inputs: Callable[[Batch], dict[str, torch.Tensor]]


def prepare(road: str, model: Any, *, precision: str, rank: int) -> Prepared:
    """The network of a road around a model as it was built, which is changed in place."""
    if road == "plain":
        return Prepared(plain_adapters(model, rank), Trainer, Batch.for_plain)
    adapted = own_adapters(model, precision, rank)
    if road == "ours, full logits":
        return Prepared(adapted, Trainer, Batch.for_plain)
    from models.answer_network import AnswerNetwork, label_tree

    network = AnswerNetwork(adapted, [label_tree([(token,) for token in LABELS])]).to(model.device)
    return Prepared(network, LabelTrainer, Batch.for_labels)


def plain_adapters(model: Any, rank: int) -> nn.Module:
    """As peft's and bitsandbytes' pages have it: everything but the 4-bit weights becomes float32."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    from models.adapters import checkpoint_activations

    prepared = prepare_model_for_kbit_training(model)
    settings = LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=DROPOUT, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    if not getattr(model, "is_loaded_in_4bit", False):
        checkpoint_activations(prepared)  # peft's helper does it for quantized models only
    adapted: nn.Module = get_peft_model(prepared, settings)
    return adapted


def own_adapters(model: Any, precision: str, rank: int) -> nn.Module:
    """The same adapters, by models.adapters."""
    from models.adapters import add_lora, check_formats, checkpoint_activations, prepare_frozen
    from models.method_settings import AdapterSettings

    prepare_frozen(model, precision)
    settings = AdapterSettings(
        head="label", rank=rank, alpha=2 * rank, dropout=DROPOUT, targets="all-linear", use="none"
    )
    adapted: nn.Module = add_lora(model, settings, head="label", seed=0)
    check_formats(adapted, precision)
    checkpoint_activations(adapted)
    return adapted


class Stopwatch(TrainerCallback):
    """Times the steps after the optimizer's first own one, `steps` of them, then stops the training."""

    def __init__(self, steps: int, synchronise: Callable[[], None]) -> None:
        self.steps, self.synchronise = steps, synchronise
        self.seconds: list[float] = []
        self.losses: list[float] = []
        self.skipped = 0
        self._moved = False
        self._started = 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        self.synchronise()
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **others: Any) -> None:
        self.synchronise()
        if self._moved:
            self.seconds.append(time.perf_counter() - self._started)
        elif optimizer.state_dict()["state"]:
            self._moved = True
        else:
            self.skipped += 1
        control.should_training_stop = len(self.seconds) == self.steps

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))


def train(
    prepared: Prepared, batch: Batch, *, precision: str, steps: int, synchronise: Callable[[], None]
) -> Stopwatch:
    """Train on this batch again and again, `steps` timed steps behind a warm-up; the network is free to go on after it.

    Raises what training raises, and RuntimeError where fp16's gradients overflowed at every step of the warm-up.
    """
    clock = Stopwatch(steps, synchronise)
    inputs = prepared.inputs(batch)
    rows = [{name: tensor[row] for name, tensor in inputs.items()} for row in range(len(batch.label))]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder, max_steps=MOST_WARM_UP + 1 + steps, per_device_train_batch_size=len(rows),
            learning_rate=1e-4, lr_scheduler_type="constant", fp16=precision == "fp16", bf16=precision == "bf16",
            use_cpu=next(prepared.network.parameters()).device.type == "cpu", save_strategy="no", logging_steps=1,
            report_to="none", disable_tqdm=True, remove_unused_columns=False, dataloader_pin_memory=False,
            label_names=["labels"],
        )  # fmt: skip
        if arguments.n_gpu > 1:
            arguments._n_gpu = 1  # nn.DataParallel would share the batch out
        trainer = prepared.trainer(
            prepared.network,
            arguments,
            train_dataset=rows,
            data_collator=_stack,
            callbacks=[clock],  # type: ignore[arg-type]
        )
        trainer.remove_callback(PrinterCallback)
        try:
            trainer.train()
        finally:
            # Trainer leaves its autocast around the forward; the next one would put another around it.
            for name in ("forward", "_original_forward"):
                prepared.network.__dict__.pop(name, None)
            prepared.network.zero_grad(set_to_none=True)
    if not clock.seconds:
        raise RuntimeError(f"All of {clock.skipped} steps were skipped: their fp16 gradients were not finite.")
    return clock


def _stack(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
