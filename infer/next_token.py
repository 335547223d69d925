"""log P(answer | prompt) of texts: from prompts and answers through tokens to the engine and back.

    >>> answer_log_probs(model, tokenizer, ["Review: great fun\\nSentiment:"], [" positive", " negative"])
    array([[-0.31, -2.07]], dtype=float32)

Knows texts and tokens; `infer.engine` knows tokens only, `infer.soft_classifier` labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.answer_tree import distinct_answers
from models.answers import Answers, Cut
from models.prompt_tokens import Encoded, PromptEncoder
from models.prompts import Piece


@dataclass
class AnswerReading:
    """What a model said about A answers behind N prompts.

    log_probs: (N, A) float32, natural logarithms; a row of NaN could not be computed. cuts: (N,) how the answers
    continue each prompt. strays: token id -> probability summed over prompts, of the tokens that took the mass where
    the answers held less than half.
    """

    log_probs: np.ndarray
    cuts: list[Cut]
    strays: dict[int, float] = field(default_factory=dict)


def answer_log_probs(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    answers: Sequence[str],
    *,
    end: str = "none",
    budget_tokens: int | None = None,
    progress: bool = True,
    engine: Any = None,
) -> np.ndarray:
    """(N, L) float32: the natural logarithm of P(answer | prompt) for every prompt and answer.

    model, tokenizer: ordinary transformers objects in any state (train mode, left padding, 4-bit, PEFT), causal or
    encoder-decoder. prompts: N texts, encoded as they are; the beginning-of-text token stands before each exactly
    once. Control tokens in them count, since the caller wrote them: for texts of others use SoftClassifier, which
    keeps them apart. answers: L texts of one or more tokens, joined to the prompt as written (" yes", not "yes",
    behind "Answer:"); spaces at a prompt's end belong to the answers.
    end: none (P(" positive") contains " positively"), eos or boundary, see models.answers.
    budget_tokens: of a batch; None: 1,024 on a CPU, 16,384 on a GPU. engine: an infer.engine.Engine of this model.
    Raises ValueError for no answers, an answer without tokens or with unknown ones, an unknown end, a prompt longer
    than the model's positions (SoftClassifier cuts, this function does not); MemoryError naming a prompt that does
    not fit alone. A row that is not finite even in float32 is NaN, with a RuntimeWarning.
    """
    from infer.engine import Engine

    if isinstance(prompts, str):
        raise ValueError(f"prompts is one text ({prompts[:40]!r}...), expected a list of texts. Put it in a list.")
    for what, texts in (("prompts", prompts), ("answers", answers)):
        wrong = next((at for at, text in enumerate(texts) if not isinstance(text, str)), None)
        if wrong is not None:
            raise ValueError(f"{what}[{wrong}] is {texts[wrong]!r}, expected a text. Fill it, or leave it out.")
    seq2seq = bool(model.config.is_encoder_decoder)
    encoder = PromptEncoder(tokenizer, seq2seq=seq2seq)
    followed = Answers(encoder, answers, end=end, end_ids=model_end_tokens(model), seq2seq=seq2seq)
    if engine is None:
        engine = Engine(model, vocab_size=token_count(tokenizer), budget_tokens=budget_tokens)
    encoded = encoder.encode([(Piece(prompt),) for prompt in prompts]) if len(prompts) else []
    reading = read_answers(engine, followed, encoded, progress=progress)
    warn_of_nan(reading.log_probs)
    return reading.log_probs


def read_answers(
    engine: Any, answers: Answers, encoded: Sequence[Encoded], *, progress: bool = False, names: Sequence[str] = (),
    strays: bool = False,
) -> AnswerReading:  # fmt: skip
    """The answers' log-probabilities behind encoded prompts. names: of the prompts, for errors (row numbers)."""
    followed = [answers.follow(one) for one in encoded]
    result = AnswerReading(
        np.full((len(encoded), len(answers.texts)), np.nan, dtype=np.float32), [cut for _, cut in followed]
    )
    groups: dict[Cut, list[int]] = {}
    for row, (_, cut) in enumerate(followed):
        groups.setdefault(cut, []).append(row)
    for cut, rows in groups.items():
        tree = answers.tree(cut)
        reading = engine.read(
            [followed[row][0] for row in rows],
            tree,
            progress=progress,
            name=lambda at, rows=rows: names[rows[at]] if names else f"row {rows[at]}",
            strays=result.strays if strays else None,
        )
        result.log_probs[rows] = tree.log_probs(reading)
    return result


def sum_spellings(reading: AnswerReading, owners: Sequence[int], labels: int, *, ended: bool) -> np.ndarray:
    """(N, labels) float64: log of each label's mass, the sum over its answers, each counted once.

    owners: (A,) the label of each answer. ended: answers have an end, so that one does not contain another.
    Raises ValueError where two labels' answers become the same tokens, or contain one another without an end.
    """
    result = np.full((len(reading.log_probs), labels), -np.inf)
    kept: dict[Cut, list[int]] = {}
    with np.errstate(invalid="ignore"):  # a row of NaN stays one
        for row, cut in enumerate(reading.cuts):
            if cut not in kept:
                kept[cut] = distinct_answers(cut.paths, ended=ended)
            for column in kept[cut]:
                result[row, owners[column]] = np.logaddexp(result[row, owners[column]], reading.log_probs[row, column])
    return result


def check_labels(cut: Cut, texts: Sequence[str], owners: Sequence[int], labels: Sequence[str], *, ended: bool) -> None:
    """Refuses answers of different labels that are the same tokens, or where one contains the other's mass."""
    for one, path in enumerate(cut.paths):
        for other in range(one + 1, len(cut.paths)):
            if owners[one] == owners[other]:
                continue
            names = f"{texts[one]!r} and {texts[other]!r} of labels {labels[owners[one]]} and {labels[owners[other]]}"
            if path == cut.paths[other]:
                raise ValueError(
                    f"Answers {names} become the same tokens ({list(path)}) with this tokenizer. "
                    "Give one of them another answer text in question.labels."
                )
            shared = min(len(path), len(cut.paths[other]))
            if not ended and path[:shared] == cut.paths[other][:shared]:
                raise ValueError(
                    f"Answers {names}: one is the beginning of the other, so its mass would count for both. "
                    "Set answers_end=boundary (or eos), which tells them apart."
                )


def token_count(tokenizer: Any) -> int:
    """Rows of a head that are tokens: the highest id of the vocabulary and one. Padding rows come after them."""
    return int(max(tokenizer.get_vocab().values())) + 1


def model_end_tokens(model: Any) -> list[int]:
    """The ids at which the model's own generation config stops."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [] if found is None else [int(one) for one in (found if isinstance(found, list | tuple) else [found])]


def warn_of_nan(log_probs: np.ndarray) -> None:
    """Names the rows that the network could not compute."""
    import warnings

    bad = np.flatnonzero(np.isnan(log_probs).any(axis=1))
    if len(bad):
        warnings.warn(
            f"{len(bad)} rows have no finite logits and are NaN, the first is row {bad[0]}. Load the model in float32 "
            "(or bfloat16, where the GPU has it).",
            RuntimeWarning,
            stacklevel=3,
        )
