"""The trainings of one fold: a network that learns nothing is trained again, one that is out of time is cut short.

Knows rows and settings; the loop itself is train.loop, what is trained train.learners.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from infer.batching import release_memory
from infer.files import write_json
from infer.stopping import Stopped, asked_to_stop, finishing_steps, time_left_s
from models.checkpoint import save_whole
from models.settings import Settings
from train.learners import make_learner
from train.seeds import fold_seed, seed_everything
from train.sharding import forget_sharding

if TYPE_CHECKING:
    from train.fold import FoldData

log = logging.getLogger("tiebreak")

RESTART_RATE = 0.5  # of the collapsed attempt's: instability is the rule for DeBERTa-large, finetuning trap 16
ADAM_COPIES = 3  # a checkpoint holds the weights and the optimizer's two moments


def fit_network(settings: Settings, data: FoldData, fold: int, folder: Path, *, deliver: bool) -> dict[str, Any]:
    """Train until an attempt does not collapse, save its best network; what happened, for done.json.

    Beside it least_s: the seconds that must be left for another fold to be worth its beginning.
    deliver: where the time budget ends, the network of then is saved; else raises TimeIsUp. Raises Stopped.
    """
    from infer.ranks import is_main, wait_for_all

    restarts = settings.trainer.restarts
    for attempt in range(restarts + 1):
        work = folder / "attempts" / str(attempt)
        if (work / "collapsed.json").is_file():
            continue  # judged in an earlier launch
        seed = fold_seed(settings.seed, fold, attempt)
        rate = settings.trainer.learning_rate * RESTART_RATE**attempt
        last = attempt == restarts
        learner, loop, story = _attempt(settings, data, fold, work, seed=seed, rate=rate, last=last, deliver=deliver)
        kept = not story["collapsed"] or last or story["cut_short"]
        if kept:
            if is_main() and story["collapsed"]:
                log.warning(f"fold {fold}: still at the class prior after {attempt + 1} attempts; kept, and no use")
            with loop.whole(exact=True):
                if is_main():
                    save_whole(folder / "checkpoint", learner.save)
                wait_for_all()
        elif is_main():
            log.warning(
                f"fold {fold}: the loss sits at the class prior after warm-up (seed {seed}, rate {rate:.1e}); starting "
                f"again with seed {fold_seed(settings.seed, fold, attempt + 1)} and rate {rate * RESTART_RATE:.1e}"
            )
            write_json(work / "collapsed.json", {key: value for key, value in story.items() if key != "least_s"})
        wait_for_all()
        loop.take_back()
        # A Trainer and its callbacks hold each other: weights, gradients and Adam's state would stay for another fold.
        del learner, loop
        forget_sharding()
        release_memory()
        if kept:
            return story | {"attempts": attempt + 1}
    raise AssertionError("the last attempt always returns")


def _attempt(
    settings: Settings, data: FoldData, fold: int, work: Path, *, seed: int, rate: float, last: bool, deliver: bool
) -> tuple[Any, Any, dict[str, Any]]:
    """One training from `seed` at `rate`: (the learner with its best weights, the loop that made them, its story)."""
    from infer.ranks import from_main, is_main
    from train import callbacks
    from train.checkpoints import last_whole_checkpoint
    from train.pace import TimeIsUp

    started = time.monotonic()
    seed_everything(seed)  # the new head's weights, then dropout
    learner = make_learner(settings, data, data.training(fold), seed=seed)
    if settings.trainer.workers:  # a forked worker must not find the tokenizer's threads (trap 38)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    guard = callbacks.CollapseGuard(prior_log_loss(data, fold), stop=not last)
    loop = _make_loop(settings, data, fold, work, learner, guard, seed=seed, rate=rate, deliver=deliver)
    if is_main():
        work.mkdir(parents=True, exist_ok=True)
    # One looks for all: gigabytes are read once, and no two processes go on from different steps.
    checkpoint = from_main(last_whole_checkpoint(work) if is_main() else None)
    if checkpoint is not None:
        log.info(f"fold {fold}: going on from {checkpoint}")
    cut_short = False
    start_up_s = time.monotonic() - started
    try:
        with finishing_steps():
            loop.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except TimeIsUp:
        number = asked_to_stop()  # meanwhile, and nobody has answered
        if number is not None:
            raise Stopped(number) from None
        at = f"fold {fold}: the time budget ends at step {loop.state.global_step} of {loop.state.max_steps}"
        if not deliver:
            log.warning(f"{at}; it is saved, and left to the next launch of the same command")
            raise
        log.warning(f"{at}, and no fold is finished: the network of now is kept. The same command trains it on")
        cut_short = True
        _settle_network(loop, settings.trainer.keep)
    finally:
        _finish_tracking()
    state = loop.state
    story = {
        "collapsed": guard.judge(state, loop.args),
        "cut_short": cut_short,
        "seed": seed,
        "learning_rate": rate,
        "steps": state.global_step,
        "best_step": state.best_global_step,
        "skipped_steps": loop.skipped_steps,  # whose loss was no number
        "budget_tokens": loop.micro.budget_tokens,  # less than asked where memory ran out
        # No fact of this fold, but for the next one: loading, a step and a save must fit in.
        "least_s": start_up_s + loop.pace.needed_s(deliver=False, evaluates=False),
        "log": [entry for entry in state.log_history if "eval_log_loss" in entry or "loss" in entry],
    }
    return learner, loop, story


def prior_log_loss(data: FoldData, fold: int) -> float:
    """What the training rows' class shares score on the held-out rows: a network above this has learned nothing."""
    shares = data.rows.targets[data.training(fold)].mean(axis=0)
    held = data.heldout(fold)
    return data.predictions(held, np.tile(shares, (len(held), 1))).log_loss()


def _settle_network(loop: Any, keep: str) -> None:
    """Of a training that is cut short, leave the better network: of now, or of its best evaluation so far."""
    from infer.ranks import from_main

    if keep == "last" or loop.state.best_model_checkpoint is None:
        return
    score = math.inf
    if from_main(time_left_s() > loop.pace.needed_s(deliver=True, evaluates=False)):
        score = loop.heldout_scores()["log_loss"]
    if score >= loop.state.best_metric:
        loop._load_best_model()


def _make_loop(
    settings: Settings, data: FoldData, fold: int, work: Path, learner: Any, guard: Any, *, seed: int, rate: float,
    deliver: bool,
) -> Any:  # fmt: skip
    """The FoldTrainer of one attempt."""
    import torch

    from models.precision import device_and_precision
    from train import callbacks
    from train.batches import StepSampler
    from train.loop import FoldTrainer, class_weights, training_arguments
    from train.metrics import heldout_scores
    from train.micro_batches import token_budget
    from train.pace import Pace

    trainer, training, held = settings.trainer, data.training(fold), data.heldout(fold)
    swap = trainer.swap if data.rows.swap is not None else "none"
    targets = data.rows.targets

    def collate(items: list[int]) -> dict[str, Any]:
        rows = training[np.asarray(items) // 2]
        swapped = np.asarray(items) % 2
        target = targets[rows]
        if data.rows.swap is not None:
            target[swapped == 1] = target[swapped == 1][:, data.rows.swap]
        return learner.batch((2 * rows + swapped).tolist()) | {"targets": torch.from_numpy(target)}

    score = heldout_scores()

    def evaluate_heldout(network: Any) -> dict[str, float]:
        probs, _, disagreement = learner.predict(held)
        return score(probs, data.rows.label_index[held], disagreement)

    def names(items: Sequence[int]) -> list[str]:
        return [str(data.rows.ids[row]) for row in training[np.asarray(items) // 2]]

    step_items = trainer.batch_rows * trainer.accumulation * data.processes
    arguments = training_arguments(
        settings, work, step_items=step_items, items=len(training) * (2 if swap == "both" else 1), seed=seed, rate=rate,
        precision=device_and_precision(trainer.precision)[1], report_to=_report_to(settings, fold, work),
        quiet=not sys.stderr.isatty(),
    )  # fmt: skip
    sampler = StepSampler(learner.lengths(training), swap=swap, step_items=step_items, seed=seed)
    trained = [weight for weight in learner.network.parameters() if weight.requires_grad]
    minutes = settings.time_budget_minutes
    pace = Pace(
        heldout_steps=len(held) * (2 if data.rows.swap is not None and trainer.tta else 1) / step_items,
        saved_bytes=ADAM_COPIES * sum(weight.nbytes for weight in trained),
        budget_s=math.inf if minutes is None else 60 * minutes,
    )
    loop = FoldTrainer(
        learner.network,
        arguments,
        sampler=sampler,
        collate=collate,
        budget_tokens=token_budget(trainer, sampler.lengths),
        nan_steps=trainer.nan_steps,
        names=names,
        name=f"fold {fold}",
        pace=pace,
        deliver=deliver,
        evaluate_heldout=evaluate_heldout,
        label_smoothing=trainer.label_smoothing,
        weights=class_weights(trainer.class_weights, targets[training], data.rows.labels),
        layer_decay=trainer.layer_decay,
        head_rate=trainer.head_rate,
        callbacks=[*callbacks.watchers(trainer, arguments, guard, f"fold {fold}"), *learner.callbacks()],
    )
    log.info(
        f"fold {fold}: {len(sampler)} steps an epoch of {step_items} rows, at most {loop.micro.budget_tokens} tokens "
        f"at once, {loop.micro.padding(sampler):.1%} of them padding"
    )
    return loop


def _report_to(settings: Settings, fold: int, work: Path) -> list[str]:
    """["wandb"] where it is wanted and installed; its files stay in the run folder."""
    import importlib.util

    mode = os.environ.get("WANDB_MODE", settings.track.wandb)
    if mode == "disabled" or importlib.util.find_spec("wandb") is None:
        return []
    work.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "WANDB_MODE": mode,
        "WANDB_DIR": settings.run_dir,
        "WANDB_PROJECT": settings.track.project,
        "WANDB_RUN_GROUP": f"{settings.name}-seed{settings.seed}",
        "WANDB_NAME": f"{settings.name}-seed{settings.seed}-fold{fold}",
    }
    return ["wandb"]


def _finish_tracking() -> None:
    """Close this fold's tracking run, if there is one: the next fold is another."""
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()
