"""One step of training: its rows read in as many parts as memory asks for, as if they were read at once.

transformers.Trainer stays the loop; for it a batch is a whole step of one process, so that it counts, schedules and
resumes the same steps however they are cut. Knows tensors and numbers of rows, never text.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainingArguments

from infer.batching import is_out_of_memory, release_memory
from infer.stopping import SIGNALS
from train.agreement import average_gradients, joined, smallest
from train.batches import RowItems, StepSampler
from train.callbacks import EpochShuffle
from train.micro_batches import MicroBatches

log = logging.getLogger("tiebreak")


class StepTrainer(Trainer):
    """A Trainer whose subclass computes the mean loss of a micro-batch (compute_loss).

    collate: items -> a batch for compute_loss. budget_tokens: of a micro-batch. nan_steps: so many steps in a row
    without a number for a loss or a gradient end the training; each is skipped. names: items -> their rows' ids.
    """

    def __init__(
        self, model: torch.nn.Module, arguments: TrainingArguments, *, sampler: StepSampler,
        collate: Callable[[list[int]], dict[str, torch.Tensor]], budget_tokens: int, nan_steps: int,
        names: Callable[[Sequence[int]], list[str]], callbacks: list[Any] | None = None,
    ) -> None:  # fmt: skip
        self.sampler = sampler
        self.micro = MicroBatches(
            collate, sampler.lengths, budget_tokens=budget_tokens, process=arguments.process_index,
            processes=arguments.world_size, even=shards(arguments),
        )  # fmt: skip
        self.nan_steps, self.names = nan_steps, names
        self.skipped_steps = self.skipped_in_a_row = 0
        self.unread_steps = 0  # since the last log entry, that had no loss
        self.losses: list[tuple[list[int], torch.Tensor]] = []  # of this step: a micro-batch's items and its mean loss
        items = RowItems(len(sampler.lengths))
        super().__init__(
            model,
            arguments,
            data_collator=self.micro,
            train_dataset=items,
            eval_dataset=items,  # never read: a subclass evaluates in its own way
            callbacks=[EpochShuffle(sampler), *(callbacks or [])],
        )

    def get_train_dataloader(self) -> torch.utils.data.DataLoader:
        """Every process walks all steps and reads its share of each: nothing is left for accelerate to deal out."""
        return torch.utils.data.DataLoader(
            RowItems(len(self.sampler.lengths)),
            batch_sampler=self.sampler,
            collate_fn=self.micro,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            worker_init_fn=_leave_signals_to_parent,
        )

    def train(self, *given: Any, **named: Any) -> Any:
        """As Trainer's. Raises MemoryError where memory runs out outside of the micro-batches."""
        try:
            return super().train(*given, **named)
        except Exception as error:
            if isinstance(error, MemoryError) or not is_out_of_memory(error):
                raise
            raise MemoryError(
                f"Memory ran out in step {self.state.global_step + 1} outside of its micro-batches: most likely in the "
                "optimizer, which makes its state in the first step. Train with trainer.optimizer=adamw_8bit, or less "
                "of the network (model.frozen_layers, model.adapters=true)."
            ) from error

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        """One step of this process, micro-batch by micro-batch: leaves the gradient, returns its part of the mean loss.

        Where memory runs out in any process, all halve the budget, cut their shares again and repeat the step.
        Raises MemoryError where that cannot help.
        """
        model.train()
        items, batches = inputs["items"], inputs["batches"]
        if inputs["cut_for"] != self.micro.budget_tokens:  # a worker cut it before memory ran out
            batches = None
        while True:
            cuts = self.micro.cuts(items)
            # A process that runs out of memory amid DDP's exchange would leave the others waiting. So they exchange
            # nothing before all have come through, unless all have been through something as large before.
            apart = exchanges(model) and not self.micro.proven(cuts)
            mine = cuts[self.micro.process]
            loss, failed = self._through(model, items, mine, batches or map(self.micro.collate, mine), apart)
            budget = self.micro.budget_tokens if failed is None else self.micro.smaller(failed)
            if apart:
                budget = smallest(budget, self.args.device)
            if budget == self.micro.budget_tokens:
                break
            self._shrink(budget, apart)
            model.zero_grad()
            batches = None
            release_memory()
        if apart:
            average_gradients(model.parameters())
        if self.state.global_step and self.micro.processes > 1:  # the first step is without the optimiser's memory
            self.micro.prove(cuts)
        self.step_loss = torch.where(loss.isfinite(), loss, 0.0)
        return self.step_loss

    def _through(
        self, model: Any, items: list[int], mine: list[list[int]], batches: Iterable[dict[str, Any]], apart: bool
    ) -> tuple[torch.Tensor, list[int] | None]:
        """Forward and backward of a process's micro-batches: (its part of the loss, where memory ran out or None).

        apart: the gradients stay in this process.
        """
        total = torch.zeros((), device=self.args.device)
        self.losses = []
        deepspeed = self.accelerator.distributed_type == DistributedType.DEEPSPEED
        sharded = shards(self.args)  # its gradients are dealt out at every pass: whole ones would need the room
        for number, (part, batch) in enumerate(zip(mine, batches, strict=True), start=1):
            last = number == len(mine)
            self.accelerator.gradient_state._set_sync_gradients(last)  # where DeepSpeed ends its step
            together = sharded or (last and not apart)
            try:
                with contextlib.nullcontext() if together else self.accelerator.no_sync(model):
                    with self.compute_loss_context_manager():
                        loss: Any = self.compute_loss(model, self._prepare_inputs(batch))
                    self.losses.append((part, loss.detach()))
                    # Where the loss is infinite its gradient may look like any other's. As NaN it reaches all processes
                    # with their gradients, so that they leave out the same step.
                    loss = loss * (1.0 + 0.0 * loss.detach()) * self.micro.weight(part, items, mine[: number - 1])
                    self.accelerator.backward(loss, **({"scale_wrt_gas": False} if deepspeed else {}))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                return total, part
            total += loss.detach()
        return total, None

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        """The norm of a step's gradient; None, and the step is left out, where it is no number. Raises ValueError."""
        norm = super()._get_grad_norm(model, grad_norm)
        if norm is None or math.isfinite(norm):
            self.skipped_in_a_row = 0
            return norm
        # The norm is the same in every process, so all come here, and one speaks for all.
        odd = joined([item for part, loss in self.losses if not math.isfinite(loss) for item in part])
        scaled = getattr(self.accelerator, "scaler", None) is not None or (self.is_deepspeed_enabled and self.args.fp16)
        # fp16's scaler finds what does not fit, skips the step and scales less. That is its work, no failure: it
        # counts only where a loss was no number either.
        if odd:  # the mean that is logged is of the other steps
            self._tr_loss -= self.step_loss
            self.unread_steps += 1
        if odd or not scaled:
            self._leave_out(odd, scaled)
        return None

    def _maybe_log_save_evaluate(self, *given: Any, **named: Any) -> None:
        if self.control.should_log and self.unread_steps:
            steps = self.state.global_step - self._globalstep_last_logged
            if steps > self.unread_steps:
                self._tr_loss *= steps / (steps - self.unread_steps)
            else:  # nothing to log
                self.control.should_log = False
                self._globalstep_last_logged = self.state.global_step
            self.unread_steps = 0
        super()._maybe_log_save_evaluate(*given, **named)

    def _leave_out(self, odd: list[int], scaled: bool) -> None:
        """Make the coming optimizer step do nothing; said in the log, counted. odd: all items without a loss.

        The gradient stays as it is, for whoever looks at it, until Trainer throws it away. The schedule goes on: it
        counts steps, and the plan of the training does not depend on what could not be read.
        """
        self.skipped_steps += 1
        self.skipped_in_a_row += 1
        what = "loss" if odd or scaled else "loss or gradient"
        items = odd or joined([item for part, _ in self.losses for item in part])
        rows = ", ".join(dict.fromkeys(self.names(items)))
        step = self.state.global_step + 1
        if self.is_deepspeed_enabled and not scaled:
            most = 1  # the engine has taken its step by now
        else:
            most = self.nan_steps
            if not scaled:
                self.accelerator.gradient_state._set_sync_gradients(False)  # accelerate's optimizers then do nothing
        if self.skipped_in_a_row >= most:
            raise ValueError(
                f"Step {step}: the {what} was not a number in {self.skipped_in_a_row} step(s) in a row "
                f"(trainer.nan_steps={self.nan_steps}). The training stands at its last save, in "
                f"{self.args.output_dir}. Rows of this step's batch: {rows}. Look at them; if they are right, train "
                "with a lower trainer.learning_rate or trainer.precision=fp32, in a new run_dir."
            )
        if self.is_world_process_zero():
            log.warning(
                f"step {step}: the {what} is not a number; the step is skipped, {self.skipped_in_a_row} in a row of at "
                f"most {most - 1}. Rows: {rows}"
            )

    def _shrink(self, budget_tokens: int, apart: bool) -> None:
        """Make do with a smaller budget; said in the log."""
        was = self.micro.budget_tokens
        if not budget_tokens:
            raise MemoryError(
                "A single row of a step does not fit into memory. Train with trainer.activation_checkpointing=true, "
                "shorter rows (task.budget_tokens, engine.max_tokens), or less of the network (model.frozen_layers)."
            )
        if (self.micro.processes > 1 and not apart) or shards(self.args):
            raise MemoryError(
                f"Memory ran out with {was} tokens at once, and the other processes cannot be told. The same command "
                f"with trainer.budget_tokens={budget_tokens} goes on from the last save."
            )
        self.micro.budget_tokens = budget_tokens
        if self.is_world_process_zero():
            log.warning(
                f"step {self.state.global_step + 1}: out of memory with {was} tokens at once; {budget_tokens} at most "
                f"from here on. A step keeps its {self.sampler.step_items} rows, in more parts."
            )

    def _prepare_input(self, data: Any) -> Any:
        """To the device without waiting, where the loader has pinned the memory."""
        if isinstance(data, torch.Tensor) and not self.is_deepspeed_enabled:
            return data.to(self.args.device, non_blocking=True)
        return super()._prepare_input(data)


def _leave_signals_to_parent(worker: int) -> None:
    """A loader's worker ends with its process; one that a signal to the whole group ended would be its failure."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def shards(arguments: TrainingArguments) -> bool:
    """Are gradients dealt out to the processes, by DeepSpeed or FSDP, so that each pass of one is a pass of all?"""
    return bool(arguments.deepspeed or arguments.fsdp)


def exchanges(model: Any) -> bool:
    """Does its backward pass exchange gradients between processes? accelerate compiles around DDP."""
    return isinstance(getattr(model, "_orig_mod", model), DistributedDataParallel)
