"""What reads a run's texts, by its method: a language model asked as it is, after reasoning, adapted, or a classifier.

Knows which module stands behind a method; each is imported when it is wanted. A reader is anything with `Reader`'s
three names.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from infer.checkpoints import checkpoint_identity, finished_checkpoints, say_missing_folds
from infer.logs import log
from models.engine_settings import row_fields
from models.method_settings import ASKED_METHODS, ENDPOINT_METHODS, WRITTEN_METHODS
from models.settings import FREE_KEYS, Settings, flatten
from models.tasks.text import TEXT_FIELD

if TYPE_CHECKING:
    from infer.readers.label import LabelReader, LabelReading
    from models.causal import LoadedModel

# Keys that say where labelled rows are, which reading does not depend on; of the input its bytes count, not its place.
# What only one way reads is named there.
UNIMPORTANT = {*FREE_KEYS, "task.input_csv", "task.train_csv", "task.target_columns", "question.descriptions"}

# method -> kind of reader, where the method alone says it.
_KINDS = {
    "chain_of_thought": "reasoning", "next_token": "label", "encoder": "encoder", "embedding_description": "described",
    "sampled": "sampled",
}  # fmt: skip
# kind -> the module and its function of the settings that loads it; imported when wanted.
_LOADERS = {
    "label": ("infer.readers.by_method", "load_label_reader"),
    "reasoning": ("infer.readers.chain_of_thought", "load_chain_reader"),
    "adapter": ("infer.adapter", "load_adapter_reader"),
    "fitted": ("infer.readers.checkpoint", "load_checkpoint_reader"),
    "encoder": ("infer.readers.text_encoder", "load_text_encoder"),
    "trained": ("infer.readers.trained_text_encoder", "load_trained_reader"),
    "described": ("infer.readers.embedding", "load_description_reader"),
    "written": ("infer.readers.answer", "load_answer_reader"),
    "asked": ("infer.readers.endpoint", "load_endpoint_reader"),
    "sampled": ("infer.readers.sampled", "load_sampled_reader"),
}
_DRAWING = ("generation.temperature", "seed")
# kind -> the settings that its numbers depend on.
_GROUPS = {
    "label": ("task.", "question.", "engine."),
    "reasoning": ("task.", "question.", "engine.", "generation.max_new_tokens", "generation.answer_header"),
    "adapter": ("task.", "question.", "engine."),
    "fitted": ("task.", "question.labels"),
    "encoder": ("task.", "question.labels", "engine.", "model.labels"),
    "trained": ("task.", "question.labels", "engine."),
    "described": ("task.", "question.labels", "embedding."),
    "written": (
        "method.name", "task.", "question.", "engine.", "generation.max_new_tokens", "generation.instruction",
    ),
    "asked": ("task.", "question.", "engine."),
    "sampled": ("method.name", "task.", "question.", "engine.", "generation.samples", *_DRAWING),
}  # fmt: skip


class Reader(Protocol):
    """Rows of text fields in, label probabilities out.

    labels: in column order. identity: JSON values by name, whatever must be the same again for the same probabilities.
    One that also has read_content_free() and read_premise(), as LabelReader does, can be calibrated by them.
    """

    @property
    def labels(self) -> tuple[str, ...]: ...

    @property
    def identity(self) -> dict[str, Any]: ...

    def read(
        self, rows: Sequence[Mapping[str, str]], *, names: Sequence[str] = (), progress: bool = False
    ) -> LabelReading:
        """The labels' log-probabilities of each row. names: of the rows, for errors. progress: show a bar."""
        ...


def reader_kind(settings: Settings) -> str:
    """Which reader a run needs, the key of _LOADERS: label is a language model as it is, fitted a run's classifiers.

    While the run has no finished fold, method=adapter with adapter.use=auto is label, and method=encoder is encoder, a
    checkpoint as it is; from then on they are adapter and trained.
    """
    method, use = settings.method.name, settings.adapter.use
    if method in ENDPOINT_METHODS and settings.endpoint.url is not None:
        return "asked" if method == "next_token" else "written"
    if method == "encoder" and finished_checkpoints(Path(settings.run_dir)):
        return "trained"
    if method != "adapter":
        return _KINDS.get(method, "written" if method in WRITTEN_METHODS else "fitted")
    trained = use == "run" or (use == "auto" and bool(finished_checkpoints(Path(settings.run_dir))))
    return "adapter" if trained else "label"


def load_reader(settings: Settings) -> Reader:
    """The reader of a run, loaded; whatever can be told before a row is read is checked."""
    kind = reader_kind(settings)
    if settings.method.name == "adapter" and kind == "label":
        log.info(f"the model as it is: adapter.use={settings.adapter.use}, {_trained_folds(settings)}")
    if kind in ("adapter", "fitted", "trained"):
        say_missing_folds(Path(settings.run_dir), settings.folds.only)
    module, name = _LOADERS[kind]
    load: Callable[[Settings], Reader] = getattr(importlib.import_module(module), name)
    return load(settings)


def load_asked_model(settings: Settings) -> LoadedModel:
    """The language model of a run, loaded and said in the log."""
    from models.causal import load_language_model

    model, precision = settings.language_model, settings.engine.precision
    loaded = load_language_model(model.name, precision=precision, quantization=model.quantization)
    log.info(loaded.line)
    return loaded


def load_label_reader(settings: Settings) -> LabelReader:
    """The language model of a run, asked its question; whatever the tokenizer can tell is checked."""
    from infer.readers.label import LabelReader

    engine = settings.engine
    loaded = load_asked_model(settings)
    reader = LabelReader(loaded, settings.question, budget_tokens=engine.budget_tokens, max_tokens=engine.max_tokens)
    reader.check()
    return reader


def identify(settings: Settings) -> dict[str, Any]:
    """What a run's numbers depend on beside the rows: its settings that are not free to change, and the files read.

    A model's files are under `model`, those of a run's checkpoints under `checkpoints`.
    """
    kind = reader_kind(settings)
    identity = {k: v for k, v in flatten(settings).items() if k.startswith(_GROUPS[kind]) and k not in UNIMPORTANT}
    if kind == "written" and settings.generation.temperature > 0:
        identity |= {key: value for key, value in flatten(settings).items() if key in _DRAWING}
    if kind == "encoder":
        from infer.readers.text_encoder import identify_text_encoder

        identity["model"] = identify_text_encoder(settings)
    elif kind == "trained":
        from infer.readers.trained_text_encoder import identify_trained

        identity["model"] = identify_trained(settings)
    elif kind == "described":
        from infer.classifiers import embedding_of
        from infer.readers.embedding import descriptions_of
        from infer.text_embeddings import identify_embedding

        identity["model"] = {"embedding": identify_embedding(embedding_of(settings.embedding))}
        identity["descriptions"] = descriptions_of(settings.question)
    elif settings.endpoint.url is not None:
        identity["model"] = {"endpoint": settings.endpoint.model}
    elif kind != "fitted":
        identity["model"] = identify_model(settings)
    if kind in ("adapter", "fitted", "trained"):
        identity |= checkpoint_identity(Path(settings.run_dir), list(settings.question.labels))
    return identity


def asked_fields(settings: Settings) -> list[str]:
    """The fields of a row that are read: the question's, or the text where no question is asked."""
    if settings.method.name not in ASKED_METHODS:
        return [TEXT_FIELD]
    return row_fields(settings.question.prompt or "")


def rotates(settings: Settings) -> bool:
    """Is the question asked in every rotation of its options? Then there is a column `spread`."""
    asked = settings.method.name in ASKED_METHODS
    return asked and settings.question.answers != "text" and settings.question.permutations == "cyclic"


def identify_model(settings: Settings) -> dict[str, str]:
    """The mark of the language model that the settings name, without loading it."""
    from models.causal import identify_language_model

    model = settings.language_model
    return identify_language_model(model.name, precision=settings.engine.precision, quantization=model.quantization)


def _trained_folds(settings: Settings) -> str:
    count = len(finished_checkpoints(Path(settings.run_dir)))
    return f"{count or 'no'} trained folds in {settings.run_dir}"
