"""The settings of the two groups that come in kinds: what is asked about (task) and what answers (model).

Part of the schema in models.settings: `task.name` and `model.kind` say which fields the group has. A new kind is a
dataclass here, an entry in its registry, and a YAML file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from models.choices import one_of, within

HEADS = ("joint", "siamese")
ATTENTIONS = ("auto", "eager", "sdpa", "flex")
TEXT_POOLINGS = ("own", "mean")
QUANTIZATIONS = ("none", "nf4")
AUTO = "auto"


@dataclass
class TaskSettings:
    """Where the rows are and how a row is read. Paths are relative to the folder the command runs in."""

    name: str  # a key of TASK_KINDS: it says which of them the other fields are


@dataclass
class ArenaTask(TaskSettings):
    """Two chat answers: which of them wins, or a tie."""

    train_csv: str
    test_csv: str
    sample_csv: str | None  # None: sample_submission.csv beside test_csv, where it exists
    votes_csv: str | None  # id, votes_a, votes_b, votes_tie: soft labels
    on_bad_row: str  # refuse or skip
    budget_tokens: int
    prompt_share: float  # of the budget, at most, while an answer still needs room

    def __post_init__(self) -> None:
        one_of("task.on_bad_row", self.on_bad_row, ("refuse", "skip"))
        within("task.prompt_share", self.prompt_share, 0.0, 0.9)


@dataclass
class TextTask(TaskSettings):
    """Rows of any table with a text column.

    id_column, label_column: a column; auto: the column `id` or `label` where the file has it; None: none, and rows are
    numbered from 0.
    on_bad_row: of the rows that python -m infer reads: refuse; skip_damaged leaves out those that the file itself has
    broken (cells, quotes, bytes), a few; skip also those whose cells are wrong, however many. Training refuses.
    """

    input_csv: str  # what python -m infer reads
    train_csv: str | None  # labelled rows to learn from; None: input_csv
    id_column: str | None
    text_column: str
    label_column: str | None
    keep_columns: list[str]  # carried over into the output
    target_columns: dict[str, str] | None  # label -> column of its share, where a row's label is soft
    on_bad_row: str

    def __post_init__(self) -> None:
        one_of("task.on_bad_row", self.on_bad_row, ("refuse", "skip_damaged", "skip"))

    @property
    def labelled_csv(self) -> str:
        """The table that training reads."""
        return self.train_csv or self.input_csv

    def with_columns(self, columns: list[str]) -> TextTask:
        """This task with `auto` settled by a file's columns."""
        found = {name: name if name in columns else None for name in ("id", "label")}
        return replace(
            self,
            id_column=found["id"] if self.id_column == AUTO else self.id_column,
            label_column=found["label"] if self.label_column == AUTO else self.label_column,
        )


@dataclass
class SkillsTask(TextTask):
    """Names of skills, each once: a later one that differs by case alone is left out.

    only_column, only_value: rows with another value in that column are left out, where the file has the column.
    """

    only_column: str | None
    only_value: str | None


@dataclass
class ModelSettings:
    """The network that reads a row."""

    kind: str  # a key of MODEL_KINDS: it says which of them the other fields are
    name: str  # a local folder, package:NAME/folder, or a hub name


@dataclass
class EncoderModel(ModelSettings):
    """A network with a head of one output per label, to be fine-tuned."""

    head: str  # of pairs of answers
    pooling: str  # of texts: own is the network's own head; mean also reads the mean over the tokens
    attention: str  # of a DeBERTa: the same results by other kernels, see models.deberta_attention
    dropout: float | None  # None keeps the model's own
    pair_features: bool  # siamese: the structural features stand beside the text
    adapters: bool  # low-rank matrices (the group adapter) and the head train, nothing else; merged when saved
    frozen_layers: int  # 0: all train; n >= 1: the embeddings and the lowest n - 1 layers stay
    allow_pickle: bool  # weights from a .bin where there are no safetensors; of it tensors alone are taken
    labels: dict[str, Any] | None  # texts: the checkpoint's name of a label -> ours; null leaves it out

    def __post_init__(self) -> None:
        one_of("model.head", self.head, HEADS)
        one_of("model.pooling", self.pooling, TEXT_POOLINGS)
        one_of("model.attention", self.attention, ATTENTIONS)
        if self.dropout is not None:
            within("model.dropout", self.dropout, 0.0, 0.9)
        if self.pair_features and self.head != "siamese":
            raise ValueError("model.pair_features=true needs model.head=siamese: the joint head reads text only.")


@dataclass
class LanguageModel(ModelSettings):
    """A network that continues a text; its next-token probabilities are the answer."""

    quantization: str  # nf4: weights in 4 bits, a quarter of fp16's memory

    def __post_init__(self) -> None:
        one_of("model.quantization", self.quantization, QUANTIZATIONS)


TASK_KINDS: dict[str, type[TaskSettings]] = {"arena": ArenaTask, "text": TextTask, "skills": SkillsTask}
MODEL_KINDS: dict[str, type[ModelSettings]] = {"encoder": EncoderModel, "causal": LanguageModel}
