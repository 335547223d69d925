"""One fold: train on the other folds' rows, save the checkpoint, predict the held-out rows from what was saved.

Knows rows and settings; the loop itself is train.loop, what is trained train.learners.
"""

from __future__ import annotations

import gc
import logging
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from infer.files import write_json
from infer.predictions import Predictions
from models.settings import Settings
from train.learners import TRAINED, make_learner
from train.rows import LabelledRows

log = logging.getLogger("tiebreak")

RESTART_RATE = 0.5  # of the collapsed attempt's: instability is the rule for DeBERTa-large, finetuning trap 16


@dataclass
class FoldData:
    """What all folds of a run share.

    rows: N labelled rows. folds: (N,) the fold that holds each row out, -1 for never. prepared: what the learner made
    of all rows beforehand (tokens); None for methods that read text.
    """

    rows: LabelledRows
    folds: np.ndarray
    prepared: Any = None

    def training(self, fold: int) -> np.ndarray:
        return np.flatnonzero(self.folds != fold)

    def heldout(self, fold: int) -> np.ndarray:
        return np.flatnonzero(self.folds == fold)

    def texts(self, rows: np.ndarray) -> list[Any]:
        """The rows themselves at these numbers."""
        return [self.rows.rows[row] for row in rows]

    def predictions(
        self, rows: np.ndarray, probs: np.ndarray, fold: int | None = None, other: np.ndarray | None = None
    ) -> Predictions:
        """The table of some rows; their true labels beside the probabilities. other: (n,), None: nothing."""
        return Predictions(
            ids=self.rows.ids[rows],
            labels=self.rows.labels,
            probs=probs,
            other=np.zeros(len(rows), dtype=np.float32) if other is None else other,
            truth=self.rows.truth[rows],
            fold=None if fold is None else np.full(len(rows), fold),
        )


def prior_log_loss(data: FoldData, fold: int) -> float:
    """What the training rows' class shares score on the held-out rows: a network above this has learned nothing."""
    shares = data.rows.targets[data.training(fold)].mean(axis=0)
    held = data.heldout(fold)
    return data.predictions(held, np.tile(shares, (len(held), 1))).log_loss()


def train_fold(settings: Settings, data: FoldData, fold: int, folder: Path) -> None:
    """Leave checkpoint/, heldout.csv and, last of all, done.json in `folder`; resumes what it finds there."""
    from infer.classifiers import load_classifier, make_classifier, save_classifier
    from infer.ranks import is_main, wait_for_all

    started = time.monotonic()
    story: dict[str, Any] = {}
    if settings.method.name in TRAINED:
        story = _fit_network(settings, data, fold, folder)
    elif is_main():
        classifier = make_classifier(
            settings.method, seed=settings.seed, labels=data.rows.labels, embedding=settings.embedding
        )
        fit_rows(classifier, data, data.training(fold))
        save_classifier(classifier, folder / "checkpoint", task=settings.task.name, method=settings.method.name)
    wait_for_all()
    held = data.heldout(fold)
    attention = getattr(settings.model, "attention", "auto")  # language models have none
    classifier = load_classifier(folder / "checkpoint", attention=attention)
    probs, other, disagreement = predict_heldout(settings, classifier, data, held)
    if is_main():
        table = data.predictions(held, probs, fold, other)
        table.write(folder / "heldout.csv")
        np.save(folder / "disagreement.npy", disagreement)
        done = {"fold": fold, "log_loss": table.log_loss(), "rows": len(held), "seconds": time.monotonic() - started}
        write_json(folder / "done.json", done | story)
        shutil.rmtree(folder / "attempts", ignore_errors=True)
        log.info(f"fold {fold}: held-out log loss {table.log_loss():.4f} on {len(held)} rows")
    wait_for_all()


def fit_rows(classifier: Any, data: FoldData, rows: np.ndarray) -> None:
    """Fit a method that learns by fit: arena rows bring their targets, texts stand beside theirs."""
    if data.rows.swap is not None:
        classifier.fit(data.texts(rows))
    else:
        classifier.fit(data.texts(rows), data.rows.label_index[rows])


def predict_heldout(
    settings: Settings, classifier: Any, data: FoldData, held: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What Learner.predict gives, for the rows `held` by a saved checkpoint: the code of the submission."""
    if settings.method.name == "encoder" and settings.task.name == "arena":
        from train.encoder_learner import predict_rows

        return predict_rows(classifier, data.prepared.fields, data.prepared.matrix, held, settings.trainer)
    if settings.method.name in TRAINED:
        found: tuple[np.ndarray, np.ndarray, np.ndarray] = classifier.predict(data.texts(held))
        return found
    nothing = np.zeros(len(held), dtype=np.float32)
    return np.asarray(classifier.predict_proba(data.texts(held))), nothing, nothing


def _fit_network(settings: Settings, data: FoldData, fold: int, folder: Path) -> dict[str, Any]:
    """Train until an attempt does not collapse, save its best network; what happened, for done.json."""
    from infer.ranks import is_main, wait_for_all

    restarts = settings.trainer.restarts
    for attempt in range(restarts + 1):
        work = folder / "attempts" / str(attempt)
        if (work / "collapsed.json").is_file():
            continue  # judged in an earlier launch
        seed = settings.seed + 1000 * attempt + fold
        rate = settings.trainer.learning_rate * RESTART_RATE**attempt
        learner, story = _attempt(settings, data, fold, work, seed=seed, rate=rate, last=attempt == restarts)
        if not story["collapsed"] or attempt == restarts:
            if is_main():
                if story["collapsed"]:
                    log.warning(f"fold {fold}: still at the class prior after {attempt + 1} attempts; kept, and no use")
                learner.save(folder / "checkpoint")
            wait_for_all()
            return story | {"attempts": attempt + 1}
        if is_main():
            log.warning(
                f"fold {fold}: the loss sits at the class prior after warm-up (seed {seed}, rate {rate:.1e}); "
                f"starting again with seed {seed + 1000} and rate {rate * RESTART_RATE:.1e}"
            )
            write_json(work / "collapsed.json", story)
        wait_for_all()
        del learner
        gc.collect()
    raise AssertionError("the last attempt always returns")


def _attempt(
    settings: Settings, data: FoldData, fold: int, work: Path, *, seed: int, rate: float, last: bool
) -> tuple[Any, dict[str, Any]]:
    """One training from `seed` at `rate`: (the learner with its best weights, its story)."""
    from transformers import set_seed

    from infer.ranks import is_main, wait_for_all
    from train import callbacks
    from train.loop import last_whole_checkpoint

    set_seed(seed)  # the new head's weights, then dropout
    training = data.training(fold)
    learner = make_learner(settings, data, training, seed=seed)
    if settings.trainer.workers:  # a forked worker must not find the tokenizer's threads (trap 38)
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    guard = callbacks.CollapseGuard(prior_log_loss(data, fold), stop=not last)
    loop = _make_loop(settings, data, fold, work, learner, guard, seed=seed, rate=rate)
    if is_main():
        last_whole_checkpoint(work)
    wait_for_all()
    checkpoint = last_whole_checkpoint(work, delete=False)
    if checkpoint is not None:
        log.info(f"fold {fold}: going on from {checkpoint}")
    loop.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    _finish_tracking()
    state = loop.state
    story = {
        "collapsed": guard.judge(state, loop.args),
        "seed": seed,
        "learning_rate": rate,
        "steps": state.global_step,
        "best_step": state.best_global_step,
        "budget_tokens": loop.micro.budget_tokens,  # less than asked where memory ran out
        "log": [entry for entry in state.log_history if "eval_log_loss" in entry or "loss" in entry],
    }
    return learner, story


def _make_loop(
    settings: Settings, data: FoldData, fold: int, work: Path, learner: Any, guard: Any, *, seed: int, rate: float
) -> Any:
    """The FoldTrainer of one attempt."""
    import torch

    from infer.ranks import world_size
    from models.precision import device_and_precision
    from train import callbacks
    from train.batches import StepSampler
    from train.loop import FoldTrainer, class_weights, training_arguments
    from train.metrics import heldout_scores
    from train.micro_batches import token_budget

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

    arguments = training_arguments(
        settings, work, items=len(training) * (2 if swap == "both" else 1), seed=seed, rate=rate,
        precision=device_and_precision(trainer.precision)[1], report_to=_report_to(settings, fold, work),
        quiet=not sys.stderr.isatty(), world_size=world_size(),
    )  # fmt: skip
    step_items = trainer.batch_rows * trainer.accumulation * world_size()
    sampler = StepSampler(learner.lengths(training), swap=swap, step_items=step_items, seed=seed)
    loop = FoldTrainer(
        learner.network,
        arguments,
        sampler=sampler,
        collate=collate,
        budget_tokens=token_budget(trainer, sampler.lengths),
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
