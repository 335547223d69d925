"""Label probabilities that a model writes out: a label, a distribution as JSON, or one number, parsed strictly.

    row -> prompt -> what the local model or an endpoint writes, up to the closing tag -> parser -> probabilities

A text that is no answer, or a request that failed, leaves its row unanswered (NaN) and says so in its note; it is
never given a label. Knows labels and texts; files are its callers' affair.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from infer.endpoint.questions import EndpointAsker
from infer.logs import log
from infer.readers.answer_notes import ANSWERED, FAILED, UNPARSABLE, note
from infer.readers.answer_prompts import reply, system_text
from infer.readers.by_method import load_asked_model
from infer.readers.label import LabelReading
from infer.readers.written_answers import CLOSING_TAG, Spellings, Unparsable, read_written
from models.engine_settings import QuestionSettings
from models.method_settings import EndpointSettings, GenerationSettings
from models.settings import Settings

# Behind the answer to a prompt without chat template a model goes on to the next example.
PARAGRAPH = "\n\n"


@dataclass(frozen=True)
class WrittenRow:
    """What was written about a row. text: None where nothing came, and `trouble` says why. tokens: None: unknown."""

    text: str | None
    cut: bool = False
    tokens: int | None = None
    cut_share: float = 0.0
    trouble: str | None = None


class Writer(Protocol):
    """Something that writes an answer to each row. identity: what the texts depend on beside the rows."""

    identity: dict[str, Any]

    def write(
        self, rows: Sequence[Mapping[str, str]], *, names: Sequence[str] = (), progress: bool = False
    ) -> list[WrittenRow]: ...


class AnswerReader:
    """Reads what a Writer writes by a method of WRITTEN_METHODS. labels: label -> spellings."""

    def __init__(self, method: str, labels: Mapping[str, Sequence[str]], writer: Writer) -> None:
        self.method, self.writer = method, writer
        self.labels = tuple(labels)
        self.spellings = Spellings.of(labels)
        self.identity = {**writer.identity, "method": method}

    def read(
        self, rows: Sequence[Mapping[str, str]], *, names: Sequence[str] = (), progress: bool = False
    ) -> LabelReading:
        """The logs of what was written, -inf for a label that got nothing; NaN rows are unanswered. Notes: see note."""
        written = self.writer.write(rows, names=names, progress=progress)
        probs = np.full((len(rows), len(self.labels)), np.nan)
        notes = []
        for at, one in enumerate(written):
            details: dict[str, Any] = {"cut": one.cut, "tokens": one.tokens}
            if one.text is None:
                notes.append(note(None, FAILED, one.trouble, **details))
                continue
            try:
                probs[at] = read_written(self.method, one.text, self.spellings, cut=one.cut)
                notes.append(note(one.text, ANSWERED, **details))
            except Unparsable as error:
                notes.append(note(one.text, UNPARSABLE, str(error), **details))
        with np.errstate(divide="ignore"):
            log_probs = np.log(probs)
        return LabelReading(log_probs, np.array([one.cut_share for one in written]), notes=notes)


class LocalWriter:
    """Writes with a loaded model (`models.causal.LoadedModel`, or anything with its fields), in batches.

    max_tokens: of prompt and answer together; None: what the model's positions reach. seed: of what is drawn where
    generation.temperature is not 0.
    """

    def __init__(
        self, loaded: Any, method: str, question: QuestionSettings, generation: GenerationSettings, *,
        max_tokens: int | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        from infer.forward.plans import positions
        from infer.generation import Generator
        from models.prompt_tokens import PromptEncoder
        from models.prompts import make_template, wants_chat

        assert question.prompt is not None
        answers = [one for spellings in question.labels.values() for one in spellings]
        self.chat = wants_chat(question.chat, loaded.tokenizer, answers)
        self.encoder = PromptEncoder(loaded.tokenizer, chat=self.chat)
        joined = "" if self.chat or question.prompt[-1:].isspace() else " "
        shown = bool(question.examples) and not self.chat
        system = system_text(question, method, generation.instruction, shown=shown)
        self.template = make_template(
            question.prompt, system=system, examples=question.examples,
            answers={label: joined + reply(method, question.labels, label) for label in question.labels},
            chat=self.chat, tokenizer=loaded.tokenizer,
        )  # fmt: skip
        stops = [CLOSING_TAG] if self.chat else [CLOSING_TAG, PARAGRAPH]
        self.generator = Generator(
            loaded, max_new_tokens=generation.max_new_tokens, batch_rows=generation.batch_rows, stops=stops,
            temperature=generation.temperature, seed=seed,
        )  # fmt: skip
        self.room = min(max_tokens or 1 << 30, positions(loaded.model.config)) - generation.max_new_tokens
        what = [self.template.text, self.chat, self.room, generation.max_new_tokens, stops]
        what += _drawing(generation, seed)
        self.identity = {**loaded.identity, "prompt_sha256": _sha256(what)}

    def check(self) -> None:
        """Refuses, before a row is read, a prompt that leaves a row's text no room."""
        fields = {part: "x" for part in self.template.parts if isinstance(part, str)}
        encoded = self.encoder.encode([self.template.fill(fields)])[0]
        if len(encoded.ids) > self.room:
            new = self.generator.max_new_tokens
            raise ValueError(
                f"generation.max_new_tokens={new} leaves the prompt {max(self.room, 0)} of {self.room + new} tokens, "
                f"and without the row's text it takes {len(encoded.ids)}. Lower it, shorten the instruction or the "
                "examples, or raise engine.max_tokens where the model reads more."
            )

    def write(
        self, rows: Sequence[Mapping[str, str]], *, names: Sequence[str] = (), progress: bool = False
    ) -> list[WrittenRow]:
        """In the rows' order; a text too long for the prompt loses its middle."""
        encoded = self.encoder.encode([self.template.fill(row) for row in rows]) if rows else []
        encoded = [self.encoder.fit(one, self.room) for one in encoded]
        written = self.generator.write([one.ids for one in encoded], names=names, progress=progress)
        return [
            WrittenRow(one.text, one.cut, one.tokens, asked.cut_share)
            for one, asked in zip(written, encoded, strict=True)
        ]


class EndpointWriter:
    """Lets an OpenAI-compatible server write; a request that fails leaves its row without a text."""

    def __init__(
        self, endpoint: EndpointSettings, method: str, question: QuestionSettings, generation: GenerationSettings, *,
        seed: int = 0,
    ) -> None:  # fmt: skip
        replies = {label: reply(method, question.labels, label) for label in question.labels}
        system = system_text(question, method, generation.instruction)
        self.asker = EndpointAsker(endpoint, question, system=system, replies=replies)
        self.max_new_tokens, self.temperature = generation.max_new_tokens, generation.temperature
        self.seed = seed if self.temperature else None  # greedy needs none, and not every server takes one
        what = [question.prompt, self.asker.before, self.max_new_tokens, *_drawing(generation, seed)]
        self.identity = {"endpoint": endpoint.model, "prompt_sha256": _sha256(what)}

    def write(
        self, rows: Sequence[Mapping[str, str]], *, names: Sequence[str] = (), progress: bool = False
    ) -> list[WrittenRow]:
        """In the rows' order. Raises EndpointRefused where no request is answered any more."""
        found: dict[int, WrittenRow] = {}
        asked = self.asker.ask(
            rows, max_tokens=self.max_new_tokens, stop=[CLOSING_TAG], temperature=self.temperature, seed=self.seed
        )
        for number, said in asked:
            if isinstance(said, Exception):
                found[number] = WrittenRow(None, trouble=str(said))
            else:
                found[number] = WrittenRow(said.text, cut=said.finish == "length")
        return [found[number] for number in range(len(rows))]


def load_answer_reader(settings: Settings) -> AnswerReader:
    """The reader of a run, by its local model or its endpoint."""
    method, question = settings.method.name, settings.question
    if settings.endpoint.url is not None:
        log.info(f"{settings.endpoint.url}, model {settings.endpoint.model}, {settings.endpoint.workers} at a time")
        writer: Writer = EndpointWriter(settings.endpoint, method, question, settings.generation, seed=settings.seed)
        return AnswerReader(method, question.labels, writer)
    local = LocalWriter(
        load_asked_model(settings), method, question, settings.generation, max_tokens=settings.engine.max_tokens,
        seed=settings.seed,
    )  # fmt: skip
    local.check()
    return AnswerReader(method, question.labels, local)


def _drawing(generation: GenerationSettings, seed: int) -> list[Any]:
    """What drawn texts depend on; nothing for the likeliest."""
    return [generation.temperature, seed] if generation.temperature else []


def _sha256(what: Any) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()
