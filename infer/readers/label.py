"""Label probabilities of rows from one language model and one question: the engine, asked in the user's words.

    row -> prompt(s) -> tokens -> log P of every answer -> log P of every label, and what the labels left over

With lettered or numbered options the question is asked once per rotation of the options and the probabilities are
averaged, so that no label gains by its place. Knows labels and texts; files and scikit-learn are its callers' affair.
"""

from __future__ import annotations

import hashlib
import json
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from infer.next_token import check_labels, model_end_tokens, read_answers, sum_spellings, token_count
from models.answers import Answers, Cut
from models.engine_settings import QuestionSettings
from models.prompt_tokens import PromptEncoder
from models.prompts import Piece, PromptTemplate, make_template, wants_chat
from models.tasks.templates import template_pieces

SIGNS = {"letters": string.ascii_uppercase, "numbers": "123456789"}
# Texts without content, whose mean answer is the prompt's bias (Zhao et al. 2021, section 5).
CONTENT_FREE = ("N/A", "", "[MASK]")


@dataclass
class LabelReading:
    """N rows read. log_probs: (N, L) float64, natural logs of each label's mass, not normalised over the labels.

    cut_share: (N,) share of a row's text left out. spread: (N,) how far a label's share moved over the rotations of
    the options, 0 to 1, None where there is one order only. strays: what took the mass where the answers held less
    than half of it, {token's text: probability summed over rows}.
    notes: what the reader wants kept of each row beside its numbers (its reasoning, say), JSON values by name.
    A row of NaN could not be computed in the model's precision.
    """

    log_probs: np.ndarray
    cut_share: np.ndarray
    spread: np.ndarray | None = None
    strays: dict[str, float] = field(default_factory=dict)
    notes: list[dict[str, Any]] | None = None

    @property
    def other(self) -> np.ndarray:
        """(N,) float64: the probability of everything but the labels, 0 to 1."""
        return np.clip(1 - np.exp(self.log_probs).sum(axis=1), 0.0, 1.0)

    def probs(self) -> np.ndarray:
        """(N, L) float64 over the label set, rows sum to one."""
        return np.asarray(softmax(self.log_probs))


@dataclass(frozen=True)
class _Arrangement:
    """One way to put the question: its template, its answers, and the label (column) that each answer stands for."""

    template: PromptTemplate
    answers: Answers
    owners: tuple[int, ...]


class LabelReader:
    """Reads labels with a loaded model (`models.causal.LoadedModel`, or anything with its five fields).

    budget_tokens: of a batch. max_tokens: of prompt and answer together; None: what the model's positions reach.
    Raises ValueError where the question does not suit the tokenizer: no chat template, labels with equal tokens.
    """

    def __init__(
        self,
        loaded: Any,
        question: QuestionSettings,
        *,
        budget_tokens: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        if question.prompt is None or question.labels is None:
            raise ValueError("A question needs a prompt and labels. Set question.prompt and question.labels.")
        self.labels = tuple(question.labels)
        self.question = question
        model, tokenizer = loaded.model, loaded.tokenizer
        self.tokenizer = tokenizer
        self.seq2seq = bool(model.config.is_encoder_decoder)
        from infer.engine import Engine  # here: it brings torch, and a refused input must be told at once
        from infer.forward.plans import positions

        self.engine = Engine(model, vocab_size=token_count(tokenizer), budget_tokens=budget_tokens)
        self.max_tokens = min(max_tokens or 1 << 30, positions(model.config))
        self.chat = wants_chat(question.chat, tokenizer, _spoken(question)) and not self.seq2seq
        self.encoder = PromptEncoder(tokenizer, chat=self.chat, seq2seq=self.seq2seq)
        self.ended = question.answers_end != "none"
        rotations = len(self.labels) if question.answers != "text" and question.permutations == "cyclic" else 1
        self.arrangements = [self._arrange(shift, model_end_tokens(model)) for shift in range(rotations)]
        self._checked: set[tuple[int, Cut]] = set()
        self.identity = {**loaded.identity, "prompt_sha256": self._fingerprint()}

    def read(
        self, rows: Sequence[Mapping[str, str]], *, names: Sequence[str] = (), progress: bool = False
    ) -> LabelReading:
        """The labels' log-probabilities for rows of text fields. names: of the rows, for errors."""
        cut_share = np.zeros(len(rows))
        strays: dict[int, float] = {}
        parts = []
        for number, arrangement in enumerate(self.arrangements):
            encoded = self.encoder.encode([arrangement.template.fill(row) for row in rows]) if rows else []
            encoded = [self.encoder.fit(one, self.room(arrangement)) for one in encoded]
            cut_share = np.maximum(cut_share, [one.cut_share for one in encoded])
            reading = read_answers(
                self.engine, arrangement.answers, encoded, progress=progress, names=names, strays=True
            )
            self._check(number, reading.cuts)
            parts.append(sum_spellings(reading, arrangement.owners, len(self.labels), ended=self.ended))
            for token, prob in reading.strays.items():
                strays[token] = strays.get(token, 0.0) + prob / len(self.arrangements)
        stacked = np.stack(parts)  # (rotations, N, L)
        with np.errstate(invalid="ignore"):
            log_probs = np.logaddexp.reduce(stacked, axis=0) - np.log(len(parts))
        shares = softmax(stacked)
        spread = (shares.max(axis=0) - shares.min(axis=0)).max(axis=1) if len(parts) > 1 and len(rows) else None
        return LabelReading(log_probs, cut_share, spread, self._spelt(strays))

    def room(self, arrangement: _Arrangement) -> int:
        """Tokens left to a prompt. An answer's end is said behind the answer's last token and takes no place."""
        return self.max_tokens - arrangement.answers.most_tokens

    @property
    def fields(self) -> list[str]:
        """The template's fields that a row fills, each once."""
        return list(dict.fromkeys(part for part in self.arrangements[0].template.parts if isinstance(part, str)))

    def read_content_free(self) -> np.ndarray:
        """(3, L) raw log-probabilities of texts without content, for contextual calibration."""
        return self.read([dict.fromkeys(self.fields, text) for text in CONTENT_FREE]).log_probs

    def read_premise(self) -> np.ndarray:
        """(1, L) raw log-probabilities behind the question's last words ("\\nSentiment:"), for PMI.

        What comes before the question, the instruction and the examples, stays. In a chat, or where the prompt ends
        with the row's text, behind the prompt with empty fields.
        """
        parts = self.arrangements[0].template.parts
        last = parts[-1]
        if self.chat or self.seq2seq or isinstance(last, str) or len(self.arrangements) > 1:
            return self.read([dict.fromkeys(self.fields, "")]).log_probs
        first = next(at for at, part in enumerate(parts) if isinstance(part, str))
        opens_with_text = not template_pieces(str(self.question.prompt))[0][0]  # "Review: {text}": it goes too
        before = [part for part in parts[: first - opens_with_text] if isinstance(part, Piece)]
        arrangement = self.arrangements[0]
        reading = read_answers(self.engine, arrangement.answers, self.encoder.encode([(*before, last)]))
        return sum_spellings(reading, arrangement.owners, len(self.labels), ended=self.ended)

    def _arrange(self, shift: int, end_ids: list[int]) -> _Arrangement:
        question, labels = self.question, list(self.labels)
        assert question.prompt is not None
        if question.answers == "text":
            owners = [at for at, label in enumerate(labels) for _ in question.labels[label]]
            texts = [text for label in labels for text in question.labels[label]]
            spoken = {label: question.labels[label][0] for label in labels}
            options = None
        else:
            # Position p shows label (p + shift) mod L under its p-th sign.
            owners = [(place + shift) % len(labels) for place in range(len(labels))]
            signs = SIGNS[question.answers][: len(labels)]
            joined = "" if self.chat or question.prompt[-1:].isspace() else " "
            texts = [joined + sign for sign in signs]
            spoken = {labels[owner]: text for owner, text in zip(owners, texts, strict=True)}
            shown = [question.labels[labels[owner]][0].strip() for owner in owners]
            options = "\n".join(f"{sign}. {text}" for sign, text in zip(signs, shown, strict=True))
        template = make_template(
            question.prompt, system=question.system, examples=question.examples, answers=spoken, chat=self.chat,
            tokenizer=self.tokenizer, options=options,
        )  # fmt: skip
        answers = Answers(self.encoder, texts, end=question.answers_end, end_ids=end_ids, seq2seq=self.seq2seq)
        return _Arrangement(template, answers, tuple(owners))

    def _check(self, number: int, cuts: Sequence[Cut]) -> None:
        """Refuses, once per way the answers continue a prompt, labels that their tokens do not tell apart."""
        for cut in dict.fromkeys(cuts):
            if (number, cut) not in self._checked:
                arrangement = self.arrangements[number]
                check_labels(cut, arrangement.answers.texts, arrangement.owners, self.labels, ended=self.ended)
                self._checked.add((number, cut))

    def check(self) -> None:
        """The checks that need the tokenizer but no forward pass, on a row of empty fields."""
        for number, arrangement in enumerate(self.arrangements):
            encoded = self.encoder.encode([arrangement.template.fill(dict.fromkeys(self.fields, "x"))])[0]
            self.encoder.fit(encoded, self.room(arrangement))
            self._check(number, [arrangement.answers.follow(encoded)[1]])

    def _fingerprint(self) -> str:
        """SHA-256 of all that the probabilities depend on beside the model and the row."""
        arranged = [[a.template.text, a.answers.texts, a.owners] for a in self.arrangements]
        what = [arranged, self.question.answers_end, self.chat, self.max_tokens]
        return hashlib.sha256(json.dumps(what).encode()).hexdigest()

    def _spelt(self, strays: Mapping[int, float]) -> dict[str, float]:
        spelt: dict[str, float] = {}
        for token, prob in strays.items():
            text = str(self.tokenizer.decode([token]))
            spelt[text] = spelt.get(text, 0.0) + prob
        return spelt


def softmax(log_probs: np.ndarray) -> Any:
    """exp(log_probs) with the last axis divided by its sum; float64."""
    shifted = np.asarray(log_probs, dtype=np.float64)
    with np.errstate(invalid="ignore"):  # a row of NaN stays one
        probs = np.exp(shifted - shifted.max(axis=-1, keepdims=True))
        return probs / probs.sum(axis=-1, keepdims=True)


def _spoken(question: QuestionSettings) -> list[str]:
    if question.answers != "text":
        return list(SIGNS[question.answers][: len(question.labels)])
    return [text for spellings in question.labels.values() for text in spellings]
