"""Zero-shot by sentence vectors: the cosine of a text to what each label means, over a temperature, as probabilities.

Knows texts, labels and vectors; learns nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infer.classifiers import embedding_of
from infer.readers.label import LabelReading
from infer.text_classifiers import tempered, unit
from infer.text_embeddings import Embedding, embed, identify_embedding
from models.engine_settings import QuestionSettings
from models.settings import Settings


class DescriptionReader:
    """Rows of text fields in; the labels' shares by the descriptions' mean vectors out, nothing outside the labels.

    descriptions: label -> one text or more. temperature: of the cosines; smaller is surer.
    """

    def __init__(
        self, descriptions: Mapping[str, Sequence[str]], *, temperature: float, embedding: Embedding, mark: str = ""
    ) -> None:
        self.labels = tuple(descriptions)
        self.temperature, self.embedding = temperature, embedding
        self.identity: dict[str, Any] = {
            "embedding": mark, "temperature": temperature,
            "descriptions": {label: list(texts) for label, texts in descriptions.items()},
        }  # fmt: skip
        means = [embed(list(texts), embedding).astype(np.float64).mean(axis=0) for texts in descriptions.values()]
        self._meanings = unit(np.stack(means))  # (L, H)

    def read(
        self, rows: Sequence[Mapping[str, str]], *, names: Sequence[str] = (), progress: bool = False
    ) -> LabelReading:
        """log_probs of normalised probabilities."""
        if not rows:
            return LabelReading(np.zeros((0, len(self.labels))), np.zeros(0))
        texts = ["\n".join(row.values()) for row in rows]
        cosines = embed(texts, self.embedding).astype(np.float64) @ self._meanings.T
        with np.errstate(divide="ignore"):
            return LabelReading(np.log(tempered(cosines, self.temperature)), np.zeros(len(rows)))


def descriptions_of(question: QuestionSettings) -> dict[str, list[str]]:
    """What each label means: the question's descriptions, or the labels' own names."""
    if question.descriptions is not None:
        return dict(question.descriptions)
    return {label: [label] for label in question.labels}


def load_description_reader(settings: Settings) -> DescriptionReader:
    """The reader of a run. Raises FileNotFoundError where the network of sentence vectors is not there."""
    embedding = embedding_of(settings.embedding)
    return DescriptionReader(
        descriptions_of(settings.question), temperature=settings.embedding.temperature, embedding=embedding,
        mark=identify_embedding(embedding),
    )  # fmt: skip
