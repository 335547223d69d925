"""What is watched while a fold trains: the epoch's shuffle, extra saves, one line per evaluation, collapse, patience.

Knows Trainer's state, nothing of rows.
"""

from __future__ import annotations

import logging
import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from models.settings import TrainerSettings
from train.batches import StepSampler

log = logging.getLogger("tiebreak")

# A network that learned nothing sits within this of the class prior, in nats per row.
COLLAPSE_MARGIN = 0.005
# Steps before a fold can be said to learn nothing: a small table may have no more than three.
LEAST_STEPS = 20


class StepBar(ProgressCallback):
    """Trainer's bar without its printed dicts."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Says nothing."""


class EpochShuffle(TrainerCallback):
    """Tells the sampler which epoch it is, also after a resume, where accelerate's wrappers hide it from Trainer."""

    def __init__(self, sampler: StepSampler) -> None:
        self.sampler = sampler

    def on_epoch_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.sampler.set_epoch(int((state.epoch or 0.0) + 1e-6))


class SaveBetweenEvaluations(TrainerCallback):
    """Saves every so many steps as well as at evaluations, so that a kill loses less."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step % self.steps == 0:
            control.should_save = True


class EvaluateLastStep(TrainerCallback):
    """Evaluates and saves the last step, which a fraction of an epoch would leave out."""

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True


class EvaluationLine(TrainerCallback):
    """One log line per evaluation: step, epoch, train loss, held-out loss, rate, seconds."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.started = time.monotonic()

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **given: Any) -> None:
        metrics: dict[str, float] = given["metrics"]
        if not state.is_world_process_zero:
            return
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        recent = losses[-20:]
        rates = [entry["learning_rate"] for entry in state.log_history if "learning_rate" in entry]
        train = f"train {sum(recent) / len(recent):.4f}  " if recent else ""
        log.info(
            f"{self.prefix}  step {state.global_step}/{state.max_steps}  epoch {state.epoch or 0:.2f}  {train}"
            f"heldout/log_loss {metrics['eval_log_loss']:.4f}  heldout/accuracy {metrics['eval_accuracy']:.3f}  "
            f"rate {rates[-1] if rates else 0:.1e}  {time.monotonic() - self.started:.0f} s"
        )


class CollapseGuard(TrainerCallback):
    """Stops a fold that sits at the class prior after its warm-up (finetuning trap 16).

    prior_log_loss: what the class shares alone score on the held-out rows. Collapsed means that neither the held-out
    rows nor the training rows are any better than that; a training loss far below it is over-fitting, another matter.
    """

    def __init__(self, prior_log_loss: float, *, stop: bool) -> None:
        self.prior_log_loss = prior_log_loss
        self.stop = stop

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self.stop and self.judge(state, args):
            control.should_training_stop = True

    def judge(self, state: TrainerState, args: TrainingArguments) -> bool:
        """True where the log says so: read from there, so that a resumed fold is judged as an unbroken one."""
        floor = self.prior_log_loss - COLLAPSE_MARGIN
        warm = state.global_step > max(args.get_warmup_steps(state.max_steps), LEAST_STEPS)
        heldout = [entry["eval_log_loss"] for entry in state.log_history if "eval_log_loss" in entry]
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry][-20:]
        learns = bool(losses) and sum(losses) / len(losses) < floor - COLLAPSE_MARGIN
        return warm and bool(heldout) and min(heldout) >= floor and not learns


class Patience(TrainerCallback):
    """Stops after so many evaluations without a better held-out log loss.

    Counts from the log that a checkpoint carries, so that a resumed fold stops where an unbroken one would.
    """

    def __init__(self, evaluations: int) -> None:
        self.evaluations = evaluations

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        scores = [entry["eval_log_loss"] for entry in state.log_history if "eval_log_loss" in entry]
        if len(scores) - 1 - scores.index(min(scores)) >= self.evaluations:
            control.should_training_stop = True


def watchers(
    trainer: TrainerSettings, arguments: TrainingArguments, guard: CollapseGuard, name: str
) -> list[TrainerCallback]:
    """All that watches one fold, as its settings ask. name: how the log calls the fold."""
    watching = [EvaluationLine(name), guard, EvaluateLastStep()]
    if trainer.saves_per_eval > 1:
        watching.append(SaveBetweenEvaluations(max(1, int(arguments.save_steps) // trainer.saves_per_eval)))
    if trainer.early_stopping:
        watching.append(Patience(trainer.early_stopping))
    return watching
