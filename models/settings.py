"""The schema of a run: one dataclass per config group, merged with the YAML at the door.

Holds types and what each value may be; the values themselves stand in `conf/` and nowhere else, so no field here has a
default. Knows nothing of Hydra.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from models.choices import one_of, within
from models.compare_settings import CompareSettings
from models.engine_settings import PRECISIONS, CalibrationSettings, EngineSettings, QuestionSettings
from models.kind_settings import (
    ArenaTask,
    EncoderModel,
    LanguageModel,
    ModelSettings,
    TaskSettings,
    TextTask,
)
from models.method_settings import (
    ARENA_METHODS,
    ASKED_METHODS,
    TEXT_METHODS,
    AdapterSettings,
    EmbeddingSettings,
    EndpointSettings,
    GenerationSettings,
    MethodSettings,
)
from models.run_checks import check_asked, check_calibration, check_endpoint, check_output
from models.runner_settings import RaySettings, check_runner

SCHEDULES = ("linear", "cosine", "constant")
SWAPS = ("both", "random", "none")
OPTIMIZERS = ("adamw", "adamw_plain", "adamw_8bit", "paged_adamw_8bit")
SHARDINGS = ("none", "zero2", "zero3", "fsdp")
TRACKS = ("offline", "online", "disabled")


@dataclass
class TrainerSettings:
    """The loop. Rates are per step, shares are of 1, rows are pairs (both answers together)."""

    epochs: float
    batch_rows: int  # a step reads batch_rows x accumulation x processes; with swap=both each order counts
    accumulation: int
    budget_tokens: int | None  # read at once by a process, padding counted; None: batch_rows of the longest row
    predict_batch_rows: int
    learning_rate: float
    head_rate: float  # the new head's rate over the network's
    layer_decay: float  # rate of a layer over the rate of the layer above it
    weight_decay: float
    max_grad_norm: float
    warmup_share: float
    schedule: str
    label_smoothing: float
    class_weights: Any  # None; balanced: inverse to a label's rows; or a list, one per label
    swap: str  # of rows that have two orders
    tta: bool  # predictions averaged over both orders of the answers
    precision: str
    activation_checkpointing: bool
    checkpoint_every: int  # with activation_checkpointing: 2 recomputes every second layer, and keeps the others'
    optimizer: str
    compile: bool  # the network's kernels, on lengths of multiples of 64; needs Triton
    keep: str  # of a fold's evaluations: best by held-out log loss, or last, which the held-out rows had no say in
    evals_per_epoch: float  # 0.5: every second epoch
    saves_per_eval: int  # 2 and more: also saves between evaluations, so that less is lost
    early_stopping: int  # evaluations without improvement; 0 never stops early
    restarts: int  # of a fold that collapsed to the class prior: next seed, half the rate
    workers: int  # processes that prepare batches
    nan_steps: int  # without a number for a loss, in a row, that end a run; each is skipped
    sharding: str  # what the processes of a launch deal out among themselves
    bucket_weights: int  # zero2, zero3: weights whose gradients are exchanged at once
    whole_below: int  # zero3: a tensor of fewer weights stays whole in every process

    def __post_init__(self) -> None:
        one_of("trainer.sharding", self.sharding, SHARDINGS)
        one_of("trainer.keep", self.keep, ("best", "last"))
        one_of("trainer.schedule", self.schedule, SCHEDULES)
        one_of("trainer.swap", self.swap, SWAPS)
        one_of("trainer.precision", self.precision, PRECISIONS)
        one_of("trainer.optimizer", self.optimizer, OPTIMIZERS)
        for key in ("warmup_share", "label_smoothing"):
            within(f"trainer.{key}", getattr(self, key), 0.0, 0.99)
        _check_class_weights(self.class_weights)
        within("trainer.layer_decay", self.layer_decay, 0.01, 1.0)
        within("trainer.evals_per_epoch", self.evals_per_epoch, 0.01, 1_000)
        for key in (
            "batch_rows",
            "accumulation",
            "predict_batch_rows",
            "saves_per_eval",
            "checkpoint_every",
            "nan_steps",
        ):
            within(f"trainer.{key}", getattr(self, key), 1, 1_000_000)
        within("trainer.bucket_weights", self.bucket_weights, 1, 1_000_000_000)
        within("trainer.whole_below", self.whole_below, 0, 1_000_000_000)
        if self.budget_tokens is not None:
            within("trainer.budget_tokens", self.budget_tokens, 1, 1_000_000_000)


def _check_class_weights(weights: Any) -> None:
    numbers = isinstance(weights, list) and all(isinstance(one, int | float) and one > 0 for one in weights)
    if weights not in (None, "balanced") and not numbers:
        raise ValueError(
            f"trainer.class_weights={weights!r}: expected null, balanced, or a list of numbers above 0, one per label."
        )


@dataclass
class FoldSettings:
    """Which rows are held out, and when."""

    count: int
    holdout: float | None  # a share: one grouped split in place of k folds
    only: list[int] | None  # None: all folds
    file: str | None  # reuse another run's folds.csv

    def __post_init__(self) -> None:
        if self.holdout is not None:
            within("folds.holdout", self.holdout, 0.01, 0.9)
        elif self.count < 2:
            raise ValueError(f"folds.count={self.count}: expected 2 or more. For one split set folds.holdout=0.15.")
        highest = 0 if self.holdout is not None else self.count - 1
        for fold in self.only or []:
            within("folds.only", fold, 0, highest)


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
        one_of("track.wandb", self.wandb, TRACKS)


@dataclass
class Settings:
    """A whole run."""

    name: str  # of the experiment
    seed: int
    run_dir: str
    out_dir: str | None  # where python -m infer writes; None: the run folder
    runner: str  # who reads a table of texts: local, this command; ray, actors on one machine or many
    input: Any  # runner=ray: a file, a folder, a glob such as folder/*.parquet, or a list of these
    output: str | None  # task text: the table that python -m infer writes; runner=ray: the folder of its parts
    spreadsheet: bool  # task text: the CSV is for one, so no cell of it may become a formula
    report: bool  # report.html of a finished run or table, and its figures as PNGs
    time_budget_minutes: float | None  # from the command's start; stops in time to save and to deliver an answer
    doctor: bool  # print what the run would do, and stop
    explore: bool  # python -m train: a page of exploratory figures of the labelled rows, and stop
    task: TaskSettings
    model: ModelSettings
    method: MethodSettings
    question: QuestionSettings
    engine: EngineSettings
    adapter: AdapterSettings
    generation: GenerationSettings
    embedding: EmbeddingSettings
    endpoint: EndpointSettings
    calibration: CalibrationSettings
    decision: str | None  # a decision.json: what each label's probability counts when one label is chosen
    trainer: TrainerSettings
    folds: FoldSettings
    blend: BlendSettings
    compare: CompareSettings
    track: TrackSettings
    ray: RaySettings

    def __post_init__(self) -> None:
        if self.time_budget_minutes is not None and not self.time_budget_minutes > 0:
            raise ValueError(
                f"time_budget_minutes={self.time_budget_minutes}: expected minutes above 0, or null for as long as it "
                "takes."
            )
        if self.method.name in TEXT_METHODS and not isinstance(self.task, TextTask):
            raise ValueError(f"method.name={self.method.name} reads texts, not arena rows: task=text or task=skills.")
        if self.compare.ways is not None and not isinstance(self.task, TextTask):
            raise ValueError(f"compare.ways reads texts, not task.name={self.task.name}: task=text or task=skills.")
        check_runner(self)
        if self.endpoint.url is not None:
            check_endpoint(self)
        if self.method.name in ASKED_METHODS:
            check_asked(self)
        if isinstance(self.task, TextTask):
            if self.method.name in ARENA_METHODS:
                raise ValueError(
                    f"method.name={self.method.name} reads the arena task only; task.name={self.task.name} takes "
                    f"encoder, tfidf, next_token, adapter, {', '.join(TEXT_METHODS)}."
                )
            if self.question.labels is None:
                raise ValueError(f"task.name={self.task.name} needs question.labels: the labels, each with its answer.")
            if self.runner == "local":
                check_output(self.output, spreadsheet=self.spreadsheet)
            check_calibration(self)
        if self.method.name == "encoder" and not isinstance(self.model, EncoderModel):
            raise ValueError(
                f"method.name=encoder needs model.kind=encoder, not {self.model.kind}: model=deberta_v3_small, or "
                "method=next_token to read a language model."
            )

    @property
    def arena(self) -> ArenaTask:
        """The task of a run that reads arena rows. Raises ValueError for any other."""
        if not isinstance(self.task, ArenaTask):
            raise ValueError(f"{self.name} has task.name={self.task.name}, and this step reads arena rows: task=arena.")
        return self.task

    @property
    def text(self) -> TextTask:
        """The task of a run that reads a table of texts. Raises ValueError for any other."""
        if not isinstance(self.task, TextTask):
            raise ValueError(f"{self.name} has task.name={self.task.name}, and this step reads texts: task=text.")
        return self.task

    @property
    def encoder(self) -> EncoderModel:
        """The model of a run that trains an encoder. Raises ValueError for any other."""
        if not isinstance(self.model, EncoderModel):
            raise ValueError(f"{self.name} has model.kind={self.model.kind}, and this step trains an encoder.")
        return self.model

    @property
    def language_model(self) -> LanguageModel:
        """The model of a run that reads next tokens. Raises ValueError for any other."""
        if not isinstance(self.model, LanguageModel):
            raise ValueError(f"{self.name} has model.kind={self.model.kind}, and this step reads a language model.")
        return self.model


# Keys that may change between two launches of one run: they say where, how much of it, or how fast, never what. Only
# dropout draws otherwise after trainer.budget_tokens or model.attention changed, as it does with another seed.
FREE_KEYS = {
    "runner", "input", "ray.address", "ray.actors", "ray.cpus_per_actor", "ray.gpus_per_actor", "ray.retries",
    "run_dir", "doctor", "explore", "report", "time_budget_minutes", "folds.only", "folds.file", "task.test_csv",
    "task.sample_csv", "blend.runs", "trainer.budget_tokens", "trainer.predict_batch_rows", "trainer.workers",
    "trainer.saves_per_eval", "trainer.nan_steps", "trainer.bucket_weights", "out_dir", "output", "track.wandb",
    "track.project", "engine.budget_tokens", "generation.batch_rows",
    "endpoint.url", "endpoint.key_variable", "endpoint.workers", "endpoint.timeout_s", "endpoint.attempts",
    "endpoint.stop_after", "compare.ways", "compare.only", "compare.per_class", "compare.test_share", "compare.learn",
    "compare.way", "model.attention",
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
