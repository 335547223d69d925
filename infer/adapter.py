"""A language model with trained adapters as a soft classifier: the question it was trained with, read by the engine.

The held-out table of training, tables of texts and submissions all come from here, under the preparation and the
number format of training. Knows checkpoints; nothing of training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from infer.adapter_reading import mean_reading, predict_rows, read_active, tempered
from infer.checkpoints import find_checkpoints, precision_here, run_temperature
from infer.identity import as_json, differences
from infer.logs import log
from infer.readers.label import CONTENT_FREE, LabelReader, LabelReading
from models.adapter_base import AdapterBase, load_base
from models.adapter_files import ADAPTER_FILES, check_base
from models.causal import LoadedModel, Source, read_tokenizer
from models.checkpoint import read_identity
from models.engine_settings import QuestionSettings
from models.fingerprint import fingerprint
from models.settings import Settings


class AdapterReader:
    """Reads rows with the saved adapters of one or more folds on one base: the mean of their probabilities.

    temperature: of the run, applied to the labels' shares; None: none. Adapters are put back where another reader or a
    training has taken the base meanwhile.
    """

    def __init__(
        self, base: AdapterBase, folders: Sequence[Path], question: QuestionSettings, *,
        temperature: float | None = None, budget_tokens: int | None = None, max_tokens: int | None = None,
    ) -> None:  # fmt: skip
        self.base, self.folders, self.temperature = base, tuple(folders), temperature
        self.model = base.carry(self.folders)
        loaded = base.loaded
        # The checkpoint's own tokenizer: the folder stands for itself.
        tokenizer = read_tokenizer(Source(str(self.folders[0])), loaded.model.config)
        loaded = LoadedModel(loaded.model, tokenizer, loaded.name, loaded.identity, loaded.line)
        self.reader = LabelReader(loaded, question, budget_tokens=budget_tokens, max_tokens=max_tokens)
        self.reader.check()
        self.labels = self.reader.labels
        adapters = [fingerprint(folder / file for file in ADAPTER_FILES) for folder in self.folders]
        self.identity = {**self.reader.identity, "adapters": adapters, "temperature": temperature}

    def read(
        self, rows: Sequence[Mapping[str, str]], *, names: Sequence[str] = (), progress: bool = False
    ) -> LabelReading:
        """The labels' log-probabilities for rows of text fields. names: of the rows, for errors."""
        readings = [
            read_active(self.base, self.reader, rows, names=names, progress=progress) for _ in self._each_adapter()
        ]
        reading = mean_reading(readings)
        return reading if self.temperature is None else tempered(reading, self.temperature)

    def read_content_free(self) -> np.ndarray:
        """(3, L) raw log-probabilities of texts without content, for contextual calibration."""
        return self._averaged(self.reader.read_content_free, CONTENT_FREE)

    def read_premise(self) -> np.ndarray:
        """(1, L) raw log-probabilities behind the question's last words, for PMI."""
        return self._averaged(self.reader.read_premise, ("",))

    def _averaged(self, ask: Any, texts: Sequence[str]) -> np.ndarray:
        """ask: of a label head; a sequence head, which the engine cannot read, is given rows of these texts."""
        found = []
        for _ in self._each_adapter():
            with self.base.autocast():
                if self.base.head == "sequence":
                    rows = [dict.fromkeys(self.reader.fields, text) for text in texts]
                    found.append(read_active(self.base, self.reader, rows).log_probs)
                else:
                    found.append(ask())
        return np.asarray(np.logaddexp.reduce(np.stack(found), axis=0) - np.log(len(found)))

    def _each_adapter(self) -> Any:
        """Yields with one adapter active after another."""
        if self.base.carried is not self.model:
            self.model = self.base.carry(self.folders)
        for number in range(len(self.folders)):
            self.model.set_adapter(f"fold{number}")
            yield number


class AdapterClassifier:
    """One fold's adapter as a classifier of rows: texts, or arena rows in both orders of their answers."""

    def __init__(self, reader: AdapterReader, *, tta: bool = True) -> None:
        self.reader, self.tta = reader, tta
        self.labels = reader.labels

    def predict_proba(self, rows: Sequence[Any]) -> np.ndarray:
        """(N, L) float32, rows sum to one. Every process of a launch must call it; each reads its share."""
        return self.predict(rows)[0]

    def predict(self, rows: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """((N, L) probabilities, (N,) mass outside the labels, (N,) disagreement of the two orders; NaN: not read)."""
        return predict_rows(self.reader.read, rows, labels=len(self.labels), tta=self.tta)

    @classmethod
    def load(cls, folder: Path, *, base: str | None = None) -> AdapterClassifier:
        """The classifier of a checkpoint. base: where its base model is now; None: where it was.

        Raises ValueError for another base, and what loading it raises.
        """
        identity = read_identity(folder)
        trained = identity["base"]
        name = base or trained["name"]
        check_base(folder, name, trained["quantization"])
        model = load_base(
            name, precision=precision_here(identity["precision"]), quantization=trained["quantization"],
            head=identity["head"], labels=len(identity["labels"]),
        )  # fmt: skip
        question = QuestionSettings(**identity["question"])
        return cls(AdapterReader(model, [folder], question, max_tokens=identity["max_tokens"]), tta=identity["tta"])


def load_adapter_reader(settings: Settings) -> AdapterReader:
    """The reader of a run's trained folds, its temperature applied.

    Raises FileNotFoundError where the run has no finished fold, ValueError for adapters of another base, label list,
    question or head; both before the base is loaded.
    """
    folder, model, engine = Path(settings.run_dir), settings.language_model, settings.engine
    labels = tuple(settings.question.labels)
    folders = find_checkpoints(folder)
    identities = [read_identity(one, labels=labels) for one in folders]
    for one, identity in zip(folders, identities, strict=True):
        check_question(one, identity, settings.question)
        check_head(one, identity, settings.adapter.head)
        check_base(one, model.name, model.quantization)
    wanted = precision_here(identities[0]["precision"]) if engine.precision == "auto" else engine.precision
    base = load_base(
        model.name, precision=wanted, quantization=model.quantization, head=identities[0]["head"], labels=len(labels)
    )
    log.info(base.loaded.line)
    log.info(f"{len(folders)} adapter(s) in {folder}")
    return AdapterReader(
        base, folders, settings.question, temperature=run_temperature(folder, labels, say=True),
        budget_tokens=engine.budget_tokens, max_tokens=engine.max_tokens or identities[0]["max_tokens"],
    )  # fmt: skip


def check_question(folder: Path, identity: Mapping[str, Any], question: QuestionSettings) -> None:
    """Refuse to ask an adapter what it was not trained on."""
    trained, asked = identity["question"], as_json(asdict(question))
    # A setting that a later version added, and that is not used here, changes nothing.
    asked = {key: value for key, value in asked.items() if key in trained or value is not None}
    if trained != asked:
        raise ValueError(
            f"{folder} was trained on another question: {differences(trained, asked)}. Ask it the same, train again, "
            "or set adapter.use=none to ask the model as it is."
        )


def check_head(folder: Path, identity: Mapping[str, Any], head: str) -> None:
    """Refuse settings that describe another network than the one that was trained."""
    if identity["head"] != head:
        raise ValueError(
            f"{folder} was trained with adapter.head={identity['head']}, not {head}. Set "
            f"adapter.head={identity['head']}, or train again in another run_dir."
        )
