"""How a model is told to write its answer, and how worked examples write theirs; written_answers reads it back.

Knows methods, labels and words; no model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from infer.readers.written_answers import CLOSING_TAG
from models.engine_settings import QuestionSettings
from models.method_settings import AUTO

TAG = "<answer>"
SURE = 0.9  # what an example's written distribution gives its own label
DIGITS = 3


def instruction(method: str, labels: Mapping[str, Sequence[str]]) -> str:
    """The sentences that ask for the form which the method's parser reads."""
    names = [spoken(labels, label) for label in labels]
    if method == "generate_hard":
        return f"Answer with one of: {', '.join(names)}. Write only {TAG}ANSWER{CLOSING_TAG}."
    if method == "verbalized":
        shape = ", ".join(f"{json.dumps(name, ensure_ascii=False)}: ..." for name in names)
        return (
            f"Give the probability of each of: {', '.join(names)}. The numbers sum to 1. Write only "
            f"{TAG}{{{shape}}}{CLOSING_TAG}."
        )
    return (
        f"Give the probability that the answer is {names[0]}, not {names[1]}, as one number from 0 to 1. Write only "
        f"{TAG}NUMBER{CLOSING_TAG}."
    )


def reply(method: str, labels: Mapping[str, Sequence[str]], label: str) -> str:
    """What an example of this label answers."""
    if method == "generate_hard":
        content = spoken(labels, label)
    elif method == "verbalized":
        rest = round((1 - SURE) / (len(labels) - 1), DIGITS)
        shares = {spoken(labels, one): SURE if one == label else rest for one in labels}
        content = json.dumps(shares, ensure_ascii=False)
    else:
        content = str(SURE if label == next(iter(labels)) else round(1 - SURE, DIGITS))
    return f"{TAG}{content}{CLOSING_TAG}"


def system_text(question: QuestionSettings, method: str, given: str | None, *, shown: bool = False) -> str | None:
    """The question's system text with the instruction behind it. given: generation.instruction.

    shown: worked examples that the model continues show the form, so that auto says nothing. On 40 reviews SmolLM2's
    labels were right in 0.83 of them without the instruction above the examples, and in 0.65 with it.
    """
    told = ("" if shown else instruction(method, question.labels)) if given == AUTO else given
    return "\n\n".join(text for text in (question.system, told) if text) or None


def spoken(labels: Mapping[str, Sequence[str]], label: str) -> str:
    """The first answer of a label, as it is written alone."""
    return labels[label][0].strip()
