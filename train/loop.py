"""The training loop of one fold: transformers.Trainer with the traps closed.

Subclassed for the loss and the parameter groups here, the steps in train.step, evaluation and saves in train.saving;
everything else is Trainer's. Knows tensors and settings, never text.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from infer.ranks import RANK_WAIT_S, world_size
from models.encoder import HEAD_DEPTH, depth
from models.settings import Settings
from train.callbacks import StepBar
from train.checkpoints import NETWORK
from train.levers import embeddings_in_32_bits, trainer_switches
from train.saving import SavingTrainer
from train.sharding import make_shardable, sharding_arguments, trainer_precision
from train.whole_weights import as_dealt


class FoldTrainer(SavingTrainer):
    """Trains a network that gives (B, L) logits on soft targets. Its checkpoints hold the trained parameters alone.

    weights: (L,) of the labels. named: what SavingTrainer and StepTrainer ask for.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        arguments: TrainingArguments,
        *,
        label_smoothing: float = 0.0,
        weights: torch.Tensor | None = None,
        layer_decay: float = 1.0,
        head_rate: float = 1.0,
        **named: Any,
    ) -> None:
        self.label_smoothing = label_smoothing
        self.weights = weights
        self.layer_decay = layer_decay
        self.head_rate = head_rate
        make_shardable(model, arguments)
        super().__init__(model, arguments, **named)
        # Both print every log entry as a dict; EvaluationLine says what matters, the bar moves on a terminal.
        for kind in (PrinterCallback, ProgressCallback):
            self.remove_callback(kind)
        if not arguments.disable_tqdm:
            self.add_callback(StepBar)

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy of the batch against soft targets (B, L), in float32; a label's part times its weight."""
        targets = inputs.pop("targets")
        logits = model(**inputs)
        weights = None if self.weights is None else self.weights.to(logits.device)
        loss = F.cross_entropy(logits.float(), targets.float(), weight=weights, label_smoothing=self.label_smoothing)
        return (loss, logits) if return_outputs else loss

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW with a rate per depth: the head at the full rate, each layer below at layer_decay of the one above."""
        if self.optimizer is None:
            network: Any = model or self.model
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, network)
            groups = parameter_groups(
                network,
                decayed=set(self.get_decay_parameter_names(network)),
                learning_rate=self.args.learning_rate,
                weight_decay=self.args.weight_decay,
                layer_decay=self.layer_decay,
                head_rate=self.head_rate,
            )
            if options.get("optim_bits") == 8:
                embeddings_in_32_bits(network)
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The trained parameters of a checkpoint: a frozen base of gigabytes is where it was loaded from.

        Every process must call it: where weights are dealt out, each has a part.
        """
        from safetensors.torch import save_file

        folder = Path(output_dir or str(self.args.output_dir))
        with self.whole(exact=True):
            if not self.args.should_save:
                return
            folder.mkdir(parents=True, exist_ok=True)
            state = {name: tensor.detach().cpu().contiguous() for name, tensor in trained(self.model).items()}
            save_file(state, folder / NETWORK)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        load_trained(self.model, Path(resume_from_checkpoint))

    def _load_best_model(self) -> None:
        if self.state.best_model_checkpoint:
            # DeepSpeed's engine may be left to itself here: there is no step after this one.
            with self.whole() if self.is_deepspeed_enabled else contextlib.nullcontext():
                load_trained(self.model, Path(self.state.best_model_checkpoint))


def trained(model: Any) -> dict[str, torch.Tensor]:
    """The parameters that training changes, by name; a tied one once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def load_trained(model: Any, folder: Path) -> None:
    """Put a checkpoint's parameters in place. Raises ValueError where it is of another network."""
    from safetensors.torch import load_file

    stored, mine = load_file(folder / NETWORK), trained(model)
    if stored.keys() != mine.keys():
        odd = sorted(stored.keys() ^ mine.keys())
        raise ValueError(f"{folder} is of another network: {odd[0]} is on one side only. Delete it.")
    with torch.no_grad():
        for name, tensor in stored.items():
            mine[name].copy_(as_dealt(tensor, mine[name]))


def class_weights(asked: Any, targets: np.ndarray, labels: Sequence[str]) -> torch.Tensor | None:
    """(L,) float32 weights of the labels' losses, or None. targets: (n, L) of the training rows.

    asked: None; balanced: n / (L * mass of the label), so that the mean over the rows is 1, as scikit-learn has it; or
    one number per label. Raises ValueError for a list of another length, and balanced where a label has no row.
    """
    if asked is None:
        return None
    if asked != "balanced":
        if len(asked) != len(labels):
            raise ValueError(
                f"trainer.class_weights={asked} has {len(asked)} numbers for the {len(labels)} labels "
                f"{', '.join(labels)}: expected one per label, in this order."
            )
        return torch.tensor([float(one) for one in asked])
    mass = targets.sum(axis=0)
    if not mass.all():
        absent = labels[int(mass.argmin())]
        raise ValueError(
            f"trainer.class_weights=balanced, but no training row has the label {absent}: "
            "its weight would be infinite. Give the weights as a list, or leave the label out."
        )
    return torch.from_numpy((len(targets) / (len(labels) * mass)).astype(np.float32))


def parameter_groups(
    model: torch.nn.Module,
    *,
    decayed: set[str],
    learning_rate: float,
    weight_decay: float,
    layer_decay: float,
    head_rate: float = 1.0,
) -> list[dict[str, Any]]:
    """Parameters grouped by (rate, weight decay); frozen ones are left out.

    The rate at depth d is learning_rate * layer_decay ** (top - d), the head's learning_rate * head_rate.
    Source: Howard and Ruder 2018, section 3.2.
    """
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    depths = {depth(name) for name, _ in trained} - {HEAD_DEPTH}
    top = max(depths, default=0) + 1
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in trained:
        at_head = depth(name) == HEAD_DEPTH
        rate = learning_rate * (head_rate if at_head else layer_decay ** (top - depth(name)))
        decay = weight_decay if name in decayed else 0.0
        group = groups.setdefault((rate, decay), {"params": [], "lr": rate, "weight_decay": decay})
        group["params"].append(parameter)
    return list(groups.values())


def training_arguments(
    settings: Settings, folder: Path, *, items: int, step_items: int, seed: int, rate: float, precision: str,
    report_to: list[str], quiet: bool,
) -> TrainingArguments:  # fmt: skip
    """Trainer's arguments for one fold. items: of an epoch; precision: as resolved for this device.

    step_items: of a step, of all processes together; they need not be a multiple of the processes.
    """
    trainer = settings.trainer
    steps_per_epoch = max(1, math.ceil(items / step_items))
    eval_steps = max(1, int(steps_per_epoch / trainer.evals_per_epoch))
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=trainer.epochs,
        per_device_train_batch_size=math.ceil(step_items / world_size()),  # a step; FoldTrainer cuts it
        learning_rate=rate,
        weight_decay=trainer.weight_decay,
        max_grad_norm=trainer.max_grad_norm,
        warmup_steps=trainer.warmup_share,  # under 1: a share of all steps
        # Trainer's plain "constant" would pass over the warm-up.
        lr_scheduler_type="constant_with_warmup" if trainer.schedule == "constant" else trainer.schedule,
        **trainer_precision(trainer, precision),
        **trainer_switches(trainer),
        **sharding_arguments(trainer, precision),
        use_cpu=not torch.cuda.is_available(),  # without it two CPU ranks train alone, each as rank 0 (trap T5)
        seed=seed,
        data_seed=seed,
        eval_strategy="steps",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=eval_steps,
        save_total_limit=None,  # train.checkpoints thins them out
        load_best_model_at_end=trainer.keep == "best",
        metric_for_best_model="log_loss",
        greater_is_better=False,  # inferred wrongly for most names (finetuning trap 37)
        logging_strategy="steps",
        logging_steps=max(1, steps_per_epoch // 20),
        logging_nan_inf_filter=False,  # train.step leaves such steps out of the log
        dataloader_num_workers=trainer.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["targets"],
        ddp_find_unused_parameters=False,
        ddp_broadcast_buffers=False,  # nothing here learns a buffer, and an exchange per forward would have to agree
        ddp_timeout=RANK_WAIT_S,
        report_to=report_to,
        disable_tqdm=quiet,
    )
    if arguments.n_gpu > 1:
        # One process drives one GPU; nn.DataParallel would tear the two readings of a siamese pair apart.
        arguments._n_gpu = 1
    return arguments
