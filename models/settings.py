"""The schema of a run: one dataclass per config group, merged with the YAML at the door.

Holds types and what each value may be; the values themselves stand in `conf/` and nowhere else, so no field here has a
default. Knows nothing of Hydra.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

TASKS = ("arena",)
HEADS = ("joint", "siamese")
METHODS = ("encoder", "uniform", "prior", "length", "tfidf", "features", "ensemble", "blend")
PRECISIONS = ("auto", "fp16", "bf16", "fp32")
SCHEDULES = ("linear", "cosine", "constant")
SWAPS = ("both", "random", "none")
TRACKS = ("offline", "online", "disabled")


def _one_of(key: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{key}={value!r}: expected one of {', '.join(choices)}.")


def _within(key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{key}={value}: expected a number from {low} to {high}.")


@dataclass
class TaskSettings:
    """Where the rows are and how a row is read. Paths are relative to the folder the command runs in."""

    name: str
    train_csv: str
    test_csv: str
    sample_csv: str | None  # None: sample_submission.csv beside test_csv, where it exists
    votes_csv: str | None  # id, votes_a, votes_b, votes_tie: soft labels
    on_bad_row: str  # refuse or skip
    budget_tokens: int
    prompt_share: float  # of the budget, at most, while an answer still needs room

    def __post_init__(self) -> None:
        _one_of("task.name", self.name, TASKS)
        _one_of("task.on_bad_row", self.on_bad_row, ("refuse", "skip"))
        _within("task.prompt_share", self.prompt_share, 0.0, 0.9)


@dataclass
class ModelSettings:
    """The network that reads a row."""

    name: str  # a local folder, package:NAME/folder, or a hub name
    head: str
    dropout: float | None  # None keeps the model's own
    pair_features: bool  # siamese: the structural features stand beside the text
    frozen_layers: int  # 0: all train; n >= 1: the embeddings and the lowest n - 1 layers stay

    def __post_init__(self) -> None:
        _one_of("model.head", self.head, HEADS)
        if self.dropout is not None:
            _within("model.dropout", self.dropout, 0.0, 0.9)
        if self.pair_features and self.head != "siamese":
            raise ValueError("model.pair_features=true needs model.head=siamese: the joint head reads text only.")


@dataclass
class MethodSettings:
    """How an answer is found: a fine-tuned encoder, or one of the scikit-learn baselines."""

    name: str
    embeddings: str  # features, ensemble: MiniLM cosines; auto uses them where the package is installed

    def __post_init__(self) -> None:
        _one_of("method.name", self.name, METHODS)
        _one_of("method.embeddings", self.embeddings, ("auto", "yes", "no"))


@dataclass
class TrainerSettings:
    """The loop. Rates are per step, shares are of 1, rows are pairs (both answers together)."""

    epochs: float
    batch_rows: int  # per process and micro-batch; with swap=both each order counts
    accumulation: int  # micro-batches per step
    predict_batch_rows: int
    learning_rate: float
    head_rate: float  # the new head's rate over the network's
    layer_decay: float  # rate of a layer over the rate of the layer above it
    weight_decay: float
    max_grad_norm: float
    warmup_share: float
    schedule: str
    label_smoothing: float
    swap: str
    tta: bool  # predictions averaged over both orders of the answers
    precision: str
    activation_checkpointing: bool
    evals_per_epoch: float  # 0.5: every second epoch
    saves_per_eval: int  # 2 and more: also saves between evaluations, so that less is lost
    early_stopping: int  # evaluations without improvement; 0 never stops early
    restarts: int  # of a fold that collapsed to the class prior: next seed, half the rate
    workers: int  # processes that prepare batches

    def __post_init__(self) -> None:
        _one_of("trainer.schedule", self.schedule, SCHEDULES)
        _one_of("trainer.swap", self.swap, SWAPS)
        _one_of("trainer.precision", self.precision, PRECISIONS)
        for key in ("warmup_share", "label_smoothing"):
            _within(f"trainer.{key}", getattr(self, key), 0.0, 0.99)
        _within("trainer.layer_decay", self.layer_decay, 0.01, 1.0)
        _within("trainer.evals_per_epoch", self.evals_per_epoch, 0.01, 1_000)
        for key in ("batch_rows", "accumulation", "predict_batch_rows", "saves_per_eval"):
            _within(f"trainer.{key}", getattr(self, key), 1, 1_000_000)


@dataclass
class FoldSettings:
    """Which rows are held out, and when."""

    count: int
    holdout: float | None  # a share: one grouped split in place of k folds
    only: list[int] | None  # None: all folds
    file: str | None  # reuse another run's folds.csv

    def __post_init__(self) -> None:
        if self.holdout is not None:
            _within("folds.holdout", self.holdout, 0.01, 0.9)
        elif self.count < 2:
            raise ValueError(f"folds.count={self.count}: expected 2 or more. For one split set folds.holdout=0.15.")
        highest = 0 if self.holdout is not None else self.count - 1
        for fold in self.only or []:
            _within("folds.only", fold, 0, highest)


@dataclass
class BlendSettings:
    """Finished runs to be blended (python -m infer +experiment=arena_blend)."""

    runs: list[str]


@dataclass
class TrackSettings:
    """Weights & Biases; needs the extra `track`."""

    wandb: str
    project: str

    def __post_init__(self) -> None:
        _one_of("track.wandb", self.wandb, TRACKS)


@dataclass
class Settings:
    """A whole run."""

    name: str  # of the experiment
    seed: int
    run_dir: str
    out_dir: str | None  # where python -m infer writes; None: the run folder
    doctor: bool  # print what the run would do, and stop
    task: TaskSettings
    model: ModelSettings
    method: MethodSettings
    trainer: TrainerSettings
    folds: FoldSettings
    blend: BlendSettings
    track: TrackSettings


# Keys that may change between two launches of one run: they say where, how much of it, or how fast, never what.
FREE_KEYS = {
    "run_dir", "doctor", "folds.only", "folds.file", "task.test_csv", "task.sample_csv", "blend.runs",
    "trainer.predict_batch_rows", "trainer.workers", "trainer.saves_per_eval", "out_dir", "track.wandb",
    "track.project",
}  # fmt: skip


def flatten(settings: Any, prefix: str = "") -> dict[str, Any]:
    """{"trainer.epochs": 3, ...} of a settings dataclass, in the order of its fields."""
    flat: dict[str, Any] = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        if hasattr(value, "__dataclass_fields__"):
            flat.update(flatten(value, f"{prefix}{field.name}."))
        else:
            flat[prefix + field.name] = value
    return flat
