"""How a training ends before its last step and goes on as if it had not: whole saves, signals, the time budget.

Beside what Trainer saves, a checkpoint holds progress.json: what was counted and not yet logged, whether an evaluation
is still to come, whether the training was over. Knows steps and files; never rows.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from infer.files import write_json
from infer.ranks import from_main
from infer.stopping import Stopped, asked_to_stop, at_once, time_left_s
from models.tasks.disk import told_by_disk
from models.tasks.files import read_record
from train.agreement import largest, mean
from train.checkpoints import UNFINISHED, best_whole_step, put_in_place
from train.pace import Pace, TimeIsUp
from train.step import StepTrainer
from train.whole_weights import load_deepspeed_state, marks, save_dealt_state, take_back, whole

PROGRESS = "progress.json"
TIME_IS_UP = 1  # beside the signals' numbers, which are larger


class SavingTrainer(StepTrainer):
    """A StepTrainer that can be stopped after any step.

    name: of the fold, for sentences. deliver: within the time budget the fold is to end with a network, cut short.
    """

    def __init__(
        self, *given: Any, name: str, pace: Pace, deliver: bool,
        evaluate_heldout: Callable[[Any], dict[str, float]], **named: Any,
    ) -> None:  # fmt: skip
        self.name, self.pace, self.deliver, self.evaluate_heldout = name, pace, deliver, evaluate_heldout
        self.evaluation_due = False
        self._resumed: Path | None = None
        self._saving = False
        super().__init__(*given, **named)
        self.marks = marks(self.model)
        self.add_callback(_GoOn(self))

    @property
    def folder(self) -> Path:
        return Path(str(self.args.output_dir))

    def training_step(self, *given: Any, **named: Any) -> Any:
        with self.pace.timed("step"):
            return super().training_step(*given, **named)

    def evaluate(self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval") -> Any:
        """Held-out scores by the code of the submission.

        Not Trainer's own loop: that one would prepare the model before train() does, after which the ranks of a
        distributed run drift apart (environment trap T6), and multiplies eval_loss by the number of ranks (T1).
        """
        try:
            # One process may drop an evaluation, of several all would have to; so a signal waits for those.
            with at_once() if self.args.world_size == 1 else contextlib.nullcontext(), self.pace.timed("evaluation"):
                found = self.heldout_scores()
        except Stopped as stopped:
            self.evaluation_due = True
            self._save_checkpoint(self.model_wrapped, None)
            raise self._stopped(stopped.signal_number) from None
        scores = {f"{metric_key_prefix}_{key}": value for key, value in found.items()}
        self.log(dict(scores))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, scores)
        return scores

    def heldout_scores(self) -> dict[str, float]:
        """Of the network as it is. Every process must call it."""
        network: Any = self.model
        network.eval()
        with self.whole():
            return self.evaluate_heldout(network)

    def whole(self, *, exact: bool = False) -> AbstractContextManager[None]:
        """A block in which every process has the network's whole weights; see train.whole_weights."""
        return whole(self.model, self.model_wrapped, exact=exact)

    def take_back(self) -> None:
        """The network as it was before any sharding, the training being over; see train.whole_weights."""
        take_back(self.model, self.model_wrapped, self.marks)

    def _maybe_log_save_evaluate(self, *given: Any, **named: Any) -> None:
        """What follows a step. Raises Stopped or TimeIsUp once it is saved; an evaluation is then left to the next."""
        reason = self._reason_to_stop()
        self.evaluation_due = bool(reason) and self.control.should_evaluate
        if reason:
            self.control.should_evaluate, self.control.should_save = False, True
        super()._maybe_log_save_evaluate(*given, **named)
        if reason == TIME_IS_UP:
            raise TimeIsUp
        if reason:
            raise self._stopped(reason)

    def _reason_to_stop(self) -> int:
        """The signal's number, TIME_IS_UP, or 0; the same in every process."""
        reason = asked_to_stop() or 0
        last = self.state.global_step >= self.state.max_steps or self.control.should_training_stop
        if not reason and not (last and self.deliver):  # what would be cut short is about to end anyway
            evaluates = self.control.should_evaluate
            if time_left_s() < self.pace.needed_s(deliver=self.deliver, evaluates=evaluates):
                reason = TIME_IS_UP
        return largest(reason, self.args.device)

    def _stopped(self, number: int) -> Stopped:
        at = f"{self.name}, step {self.state.global_step} of {self.state.max_steps}"
        return Stopped(number, f"{at} is saved in {self.folder}. The same command goes on from there.")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As Trainer's, whole or not at all, see train.checkpoints; by every process of a launch."""
        with self.pace.timed("save"), told_by_disk(self.folder):
            main = self.is_world_process_zero()
            if main:
                os.stat(self.folder)  # made when training began: one that has vanished is not made again
                shutil.rmtree(self.folder / UNFINISHED, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            self._saving = True
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._saving = False
            progress = {
                "pending_loss": mean(self._tr_loss), "last_logged": self._globalstep_last_logged,
                "skipped_steps": self.skipped_steps, "skipped_in_a_row": self.skipped_in_a_row,
                "unread_steps": self.unread_steps,
                "evaluation_due": self.evaluation_due, "over": bool(self.control.should_training_stop),
            }  # fmt: skip
            self.accelerator.wait_for_everyone()
            if main:
                unfinished = self.folder / UNFINISHED / f"checkpoint-{self.state.global_step}"
                write_json(unfinished / PROGRESS, progress)
                put_in_place(unfinished)
            self.accelerator.wait_for_everyone()
            self._find_best()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """As Trainer's; sharded, the optimizer's state alone: the weights are beside it already."""
        if not (self.is_deepspeed_enabled or self.is_fsdp_enabled):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_dealt_state(self, output_dir)
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")  # type: ignore[union-attr]

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        """As Trainer's, but for DeepSpeed's resume: Trainer's would ask a checkpoint for the frozen weights too."""
        later = resume_from_checkpoint if self.is_deepspeed_enabled else None
        now = None if later else resume_from_checkpoint
        prepared = super()._prepare_for_training(max_steps, train_dataloader, now)
        if later:
            load_deepspeed_state(self.model_wrapped, Path(later), self.args.world_size)
            self._load_optimizer_and_scheduler(later)
        return prepared

    def _get_output_dir(self, trial: Any) -> str:
        return str(self.folder / UNFINISHED) if self._saving else str(self.folder)

    def _init_training_state(self, max_steps: int, steps: int, epochs: int, resumed: Any, trial: Any) -> Any:
        self._resumed = Path(resumed) if resumed else None
        found = super()._init_training_state(max_steps, steps, epochs, resumed, trial)
        if self._resumed is not None and self.args.load_best_model_at_end:
            self._settle_best()
        self._find_best()
        return found

    def _settle_best(self) -> None:
        """Where the best network so far is damaged, the best of those that are not takes its place."""
        log = self.state.log_history
        scores = {
            int(one["step"]): one["eval_log_loss"] for one in log if math.isfinite(one.get("eval_log_loss", math.nan))
        }
        told = self.state.best_global_step
        main = self.is_world_process_zero()
        step = from_main(best_whole_step(self.folder, scores, told=told) if main and told else told)
        if step != told:
            self.state.best_global_step, self.state.best_metric = step, scores[step] if step else None

    def _find_best(self) -> None:
        """The best network's checkpoint by its step: its path may have changed, when it was saved or with the run's."""
        best = self.folder / f"checkpoint-{self.state.best_global_step}"
        self.state.best_model_checkpoint = str(best) if self.state.best_global_step and best.is_dir() else None

    def _run_epoch(self, *given: Any, **named: Any) -> None:
        if not self.control.should_training_stop:  # a resumed training may be over
            super()._run_epoch(*given, **named)

    def go_on(self) -> None:
        """Take up what progress.json of the checkpoint says, before the first step after it."""
        if self._resumed is None or not (self._resumed / PROGRESS).is_file():
            return
        progress = read_record(self._resumed / PROGRESS)
        self._tr_loss += progress["pending_loss"]
        self._globalstep_last_logged = progress["last_logged"]
        self.skipped_steps, self.skipped_in_a_row = progress["skipped_steps"], progress["skipped_in_a_row"]
        self.unread_steps = progress["unread_steps"]
        self.control.should_training_stop = progress["over"]
        if progress["evaluation_due"]:
            # Trainer loads the generators' states with the first step. This evaluation saves them before that.
            self._load_rng_state(str(self._resumed))
            self.control.should_log, self.control.should_evaluate, self.control.should_save = False, True, True
            self._maybe_log_save_evaluate(
                self._tr_loss, None, self.model_wrapped, None, self.state.epoch, None, time.time()
            )


class _GoOn(TrainerCallback):
    """Where Trainer has a loaded checkpoint's state and network in place, and no step was made yet."""

    def __init__(self, loop: SavingTrainer) -> None:
        self.loop = loop

    def on_train_begin(self, *given: Any, **also: Any) -> None:
        self.loop.go_on()
