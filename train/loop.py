"""The training loop of one fold: transformers.Trainer with the traps closed.

Subclassed for the sampler, the loss, the parameter groups and our own held-out evaluation; everything else is
Trainer's. Knows tensors and settings, never text.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from infer.ranks import RANK_WAIT_S
from models.encoder import HEAD_DEPTH, PairClassifier, depth
from models.settings import Settings
from train.batches import PairItems, PairSampler
from train.callbacks import StepBar


class PairTrainer(Trainer):
    """Trains a PairClassifier on soft targets.

    evaluate_heldout: the network -> held-out scores; the same code writes the submission.
    """

    def __init__(
        self,
        model: PairClassifier,
        arguments: TrainingArguments,
        *,
        sampler: PairSampler,
        collate: Callable[[list[int]], dict[str, torch.Tensor]],
        evaluate_heldout: Callable[[PairClassifier], dict[str, float]],
        label_smoothing: float = 0.0,
        layer_decay: float = 1.0,
        head_rate: float = 1.0,
        callbacks: list[Any] | None = None,
    ) -> None:
        self.sampler = sampler
        self.evaluate_heldout = evaluate_heldout
        self.label_smoothing = label_smoothing
        self.layer_decay = layer_decay
        self.head_rate = head_rate
        items = PairItems(len(sampler.lengths))
        super().__init__(
            model,
            arguments,
            data_collator=collate,
            train_dataset=items,
            eval_dataset=items,  # never read: evaluate() below asks evaluate_heldout
            callbacks=callbacks,
        )
        # Both print every log entry as a dict; EvaluationLine says what matters, the bar moves on a terminal.
        for kind in (PrinterCallback, ProgressCallback):
            self.remove_callback(kind)
        if not arguments.disable_tqdm:
            self.add_callback(StepBar)

    def _get_train_sampler(self, train_dataset: Any = None) -> PairSampler:
        return self.sampler

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean cross-entropy of the batch against soft targets (B, 3), in float32."""
        targets = inputs.pop("targets")
        logits = model(**inputs)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)
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
            self.optimizer = kind(groups, **options)
        return self.optimizer

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Held-out scores by the code of the submission.

        Not Trainer's own loop: that one would prepare the model before train() does, after which the ranks of a
        distributed run drift apart (environment trap T6), and multiplies eval_loss by the number of ranks (T1).
        """
        network: Any = self.model
        network.eval()
        scores = {f"{metric_key_prefix}_{key}": value for key, value in self.evaluate_heldout(network).items()}
        self.log(dict(scores))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores


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


def training_arguments(settings: Settings, folder: Path, *, rows: int, seed: int, rate: float, precision: str,
                       report_to: list[str], quiet: bool, world_size: int) -> TrainingArguments:  # fmt: skip
    """Trainer's arguments for one fold. rows: training pairs; precision: as resolved for this device."""
    trainer = settings.trainer
    items = rows * (2 if trainer.swap == "both" else 1)
    steps_per_epoch = max(1, math.ceil(items / (trainer.batch_rows * trainer.accumulation * world_size)))
    eval_steps = max(1, int(steps_per_epoch / trainer.evals_per_epoch))
    arguments = TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=trainer.epochs,
        per_device_train_batch_size=trainer.batch_rows,
        gradient_accumulation_steps=trainer.accumulation,
        learning_rate=rate,
        weight_decay=trainer.weight_decay,
        max_grad_norm=trainer.max_grad_norm,
        warmup_steps=trainer.warmup_share,  # under 1: a share of all steps
        # Trainer's plain "constant" would pass over the warm-up.
        lr_scheduler_type="constant_with_warmup" if trainer.schedule == "constant" else trainer.schedule,
        fp16=precision == "fp16",
        bf16=precision == "bf16",
        use_cpu=not torch.cuda.is_available(),  # without it two CPU ranks train alone, each as rank 0 (trap T5)
        seed=seed,
        data_seed=seed,
        eval_strategy="steps",
        eval_steps=eval_steps,
        save_strategy="steps",
        save_steps=eval_steps,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="log_loss",
        greater_is_better=False,  # inferred wrongly for most names (finetuning trap 37)
        logging_strategy="steps",
        logging_steps=max(1, steps_per_epoch // 20),
        dataloader_num_workers=trainer.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        remove_unused_columns=False,
        label_names=["targets"],
        ddp_find_unused_parameters=False,
        ddp_timeout=RANK_WAIT_S,
        report_to=report_to,
        disable_tqdm=quiet,
    )
    if arguments.n_gpu > 1:
        # One process drives one GPU; nn.DataParallel would tear the two readings of a siamese pair apart.
        arguments._n_gpu = 1
    return arguments


def last_whole_checkpoint(folder: Path, *, delete: bool = True) -> Path | None:
    """The newest checkpoint that was written to its end; unfinished newer ones are deleted, by one process of a launch.

    Trainer writes trainer_state.json last: a folder without a readable one was cut off by a kill.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for checkpoint in found:
        try:
            json.loads((checkpoint / "trainer_state.json").read_text())
        except (OSError, ValueError):
            if delete:
                shutil.rmtree(checkpoint)
            continue
        return checkpoint
    return None
