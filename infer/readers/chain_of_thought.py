"""Label probabilities after reasoning: the model writes its steps, they are closed with a header, the answer is read.

    row -> prompt -> up to max_new_tokens of reasoning -> "\\nAnswer:" -> log P of every answer, by the engine

A text that was cut off is closed like any other, so every row has a distribution; what stood behind a header that the
model wrote itself is noted and not used. Beside each row: its reasoning, and what parsing the last word would have
said. Knows labels and texts; files are its callers' affair.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from infer.engine import Engine
from infer.forward.plans import positions
from infer.generation import Generator, Written
from infer.logs import log
from infer.next_token import check_labels, model_end_tokens, read_answers, sum_spellings, token_count
from infer.readers.by_method import load_asked_model
from infer.readers.label import LabelReading
from infer.readers.reasoning_notes import last_label, part_at_header
from models.answers import Answers, Cut
from models.engine_settings import REASONING, QuestionSettings, row_fields
from models.method_settings import GenerationSettings
from models.prompt_tokens import Encoded, PromptEncoder
from models.prompts import Piece, PromptTemplate, make_template, wants_chat
from models.settings import Settings

# Between the worked examples of a prompt without chat template: a model that goes on to a next one has answered.
PARAGRAPH = "\n\n"


def load_chain_reader(settings: Settings) -> ChainReader:
    """The language model of a run, asked to reason about its question; checked before and after it is loaded."""
    check_reasoned(settings.question)
    engine = settings.engine
    reader = ChainReader(
        load_asked_model(settings), settings.question, settings.generation, budget_tokens=engine.budget_tokens,
        max_tokens=engine.max_tokens,
    )  # fmt: skip
    reader.check()
    return reader


def check_reasoned(question: QuestionSettings) -> None:
    """Refuses a question whose answers cannot stand behind reasoning: signs of options, examples without reasoning."""
    if question.answers != "text":
        raise ValueError(
            f"question.answers={question.answers} lists options, expected text with method=chain_of_thought: the "
            "answer stands behind generation.answer_header. Set question.answers=text."
        )
    if REASONING in row_fields(question.prompt or ""):
        raise ValueError(
            f"question.prompt={question.prompt!r} has the field {{{REASONING}}}, which with method=chain_of_thought is "
            "what an example shows before its answer. Rename the column."
        )
    without = [number for number, example in enumerate(question.examples) if not example.get(REASONING)]
    if without:
        raise ValueError(
            f"question.examples[{without[0]}] has no {REASONING}, expected one in every example with "
            "method=chain_of_thought: what is written before the answer. conf/question/skills_cot.yaml is an example."
        )


class ChainReader:
    """Reads labels behind reasoning with a loaded model (`models.causal.LoadedModel`, or anything with its fields).

    max_tokens: of prompt, reasoning and answer together; None: what the model's positions reach. budget_tokens: of a
    batch that is read. Raises ValueError where the question does not suit the tokenizer or the model.
    """

    def __init__(
        self, loaded: Any, question: QuestionSettings, generation: GenerationSettings, *,
        budget_tokens: int | None = None, max_tokens: int | None = None,
    ) -> None:  # fmt: skip
        check_reasoned(question)
        if question.prompt is None or question.labels is None:
            raise ValueError("A question needs a prompt and labels. Set question.prompt and question.labels.")
        self.labels = tuple(question.labels)
        self.question, self.generation = question, generation
        self.spellings: dict[str, list[str]] = question.labels
        model, self.tokenizer = loaded.model, loaded.tokenizer
        self.engine = Engine(model, vocab_size=token_count(self.tokenizer), budget_tokens=budget_tokens)
        self.max_tokens = min(max_tokens or 1 << 30, positions(model.config))
        texts = [self._behind_header(text) for label in self.labels for text in self.spellings[label]]
        self.owners = [at for at, label in enumerate(self.labels) for _ in self.spellings[label]]
        # Not these texts: behind the header every answer begins with a space, also in a chat.
        spoken = [text for spellings in self.spellings.values() for text in spellings]
        self.chat = wants_chat(question.chat, self.tokenizer, spoken)
        self.encoder = PromptEncoder(self.tokenizer, chat=self.chat)
        self.template = self._template()
        stops = [] if self.chat else [PARAGRAPH]
        self.generator = Generator(
            loaded, max_new_tokens=generation.max_new_tokens, batch_rows=generation.batch_rows, stops=stops
        )
        self.ended = question.answers_end != "none"
        self.answers = Answers(self.encoder, texts, end=question.answers_end, end_ids=model_end_tokens(model))
        self._checked: set[Cut] = set()
        what = [self.template.text, texts, self.owners, question.answers_end, self.chat, self.max_tokens]
        what += [generation.answer_header, generation.max_new_tokens, stops]
        self.identity = {**loaded.identity, "prompt_sha256": hashlib.sha256(json.dumps(what).encode()).hexdigest()}

    def check(self) -> None:
        """The checks that need the tokenizer but no forward pass, on a row of short fields."""
        fields = {part: "x" for part in self.template.parts if isinstance(part, str)}
        asked = self._fit(self.encoder.encode([self.template.fill(fields)]))[0]
        closed = self.encoder.encode([(*asked.prompt, *self._closed(" x"))])[0]
        self._check([self.answers.follow(closed)[1]])

    def read(
        self, rows: Sequence[Mapping[str, str]], *, names: Sequence[str] = (), progress: bool = False
    ) -> LabelReading:
        """The labels' log-probabilities behind each row's reasoning, and a note of it. names: of the rows, for errors.

        A note: reasoning, tokens (written), cut (before the text ended by itself), answered (what the model wrote
        behind a header of its own, or None), last_word (the label that last-word parsing finds, or None), read (the
        likeliest label, None where the row could not be computed).
        """
        started = time.monotonic()
        asked = self._fit(self.encoder.encode([self.template.fill(row) for row in rows]) if rows else [])
        written = self.generator.write([one.ids for one in asked], names=names, progress=progress)
        between = time.monotonic()
        parted = [part_at_header(one.text, self.generation.answer_header) for one in written]
        closed = [(*one.prompt, *self._closed(reasoning)) for one, (reasoning, _) in zip(asked, parted, strict=True)]
        encoded = self.encoder.encode(closed) if rows else []
        encoded = [self.encoder.fit(one, self.max_tokens - self.answers.most_tokens) for one in encoded]
        reading = read_answers(self.engine, self.answers, encoded, names=names, progress=progress, strays=True)
        self._check(reading.cuts)
        log_probs = sum_spellings(reading, self.owners, len(self.labels), ended=self.ended)
        notes = [self._note(*one) for one in zip(written, parted, log_probs, strict=True)]
        self._log(notes, between - started, time.monotonic() - between)
        cut_share = np.array([max(a.cut_share, b.cut_share) for a, b in zip(asked, encoded, strict=True)])
        strays = {str(self.tokenizer.decode([token])): prob for token, prob in reading.strays.items()}
        return LabelReading(log_probs, cut_share, strays=strays, notes=notes)

    def _template(self) -> PromptTemplate:
        """The prompt behind worked examples, each with its reasoning, the header and its answer."""
        question = self.question
        assert question.prompt is not None
        joined = "" if self.chat or question.prompt[-1:].isspace() else " "
        replies = {
            str(number): f"{joined}{example[REASONING]}\n{self.generation.answer_header}"
            + self._behind_header(self.spellings[example["label"]][0])
            for number, example in enumerate(question.examples)
        }
        examples = [{**example, "label": str(number)} for number, example in enumerate(question.examples)]
        return make_template(
            question.prompt, system=question.system, examples=examples, answers=replies, chat=self.chat,
            tokenizer=self.tokenizer,
        )  # fmt: skip

    def _behind_header(self, answer: str) -> str:
        """The answer as it follows the header on its line, a space between them also in a chat."""
        apart = self.generation.answer_header[-1].isspace() or answer[0].isspace()
        return answer if apart else " " + answer

    def _closed(self, reasoning: str) -> tuple[Piece, Piece]:
        # The model's words are a row's text: a control token that they spell is none.
        return Piece(reasoning, given=True), Piece(f"\n{self.generation.answer_header}")

    def _fit(self, encoded: Sequence[Encoded]) -> list[Encoded]:
        """Prompts that leave room for the reasoning, the header and the answer."""
        header = len(self.encoder.bare_ids(self._closed("")))
        new = self.generation.max_new_tokens
        room = self.max_tokens - header - self.answers.most_tokens
        try:
            return [self.encoder.fit(one, room - new) for one in encoded]
        except ValueError:
            for one in encoded:
                self.encoder.fit(one, room)  # without reasoning there is no room either: the prompt is the cause
            raise ValueError(
                f"generation.max_new_tokens={new} leaves the prompt {max(room - new, 0)} of {self.max_tokens} tokens, "
                "too few for its instruction, its examples and the row's text. Lower it, shorten the prompt, or raise "
                "engine.max_tokens where the model reads more."
            ) from None

    def _check(self, cuts: Iterable[Cut]) -> None:
        for cut in set(cuts) - self._checked:
            check_labels(cut, self.answers.texts, self.owners, self.labels, ended=self.ended)
            self._checked.add(cut)

    def _note(self, written: Written, parted: tuple[str, str | None], log_probs: np.ndarray) -> dict[str, Any]:
        reasoning, answered = parted
        return {
            "reasoning": reasoning.strip(), "tokens": written.tokens, "cut": written.cut, "answered": answered,
            "last_word": last_label(written.text, self.spellings),
            "read": self.labels[int(log_probs.argmax())] if np.isfinite(log_probs).all() else None,
        }  # fmt: skip

    def _log(self, notes: Sequence[Mapping[str, Any]], writing_s: float, reading_s: float) -> None:
        if notes:
            rows, ratio = len(notes), writing_s / max(reading_s, 1e-9)
            log.info(
                f"{rows} rows: reasoning {rows / max(writing_s, 1e-9):.2f} rows/s, reading the answer behind it "
                f"{rows / max(reading_s, 1e-9):.2f} rows/s, {ratio:.0f} times as fast"
            )
