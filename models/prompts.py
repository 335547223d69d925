"""From a row to a prompt: an instruction, worked examples, the row's texts, with or without a chat template.

A prompt is a sequence of pieces, each either written by whoever asks (`given=False`: control tokens in it count) or
taken from a row (`given=True`: it is text and nothing else, whatever it looks like). The chat template is rendered
once, with place-holders; rows are put in their places afterwards, so that no row ever passes through Jinja.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.tasks.templates import template_pieces


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt's text. given: it comes from a row."""

    text: str
    given: bool = False


Prompt = tuple[Piece, ...]
Example = Mapping[str, str]  # the template's fields and "label"

_OPEN_THOUGHT = re.compile(r"<think>\s*\Z")
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


@dataclass(frozen=True)
class PromptTemplate:
    """A prompt with places for a row's fields.

    parts: pieces to be used as they are, and names of fields. chat: it ends at the head of the assistant's turn.
    """

    parts: tuple[Piece | str, ...]
    chat: bool

    def fill(self, fields: Mapping[str, str]) -> Prompt:
        """The prompt of one row. Raises ValueError naming a field that the row lacks."""
        try:
            return tuple(part if isinstance(part, Piece) else Piece(fields[part], given=True) for part in self.parts)
        except KeyError as error:
            raise ValueError(
                f"The row has no field {error.args[0]!r} that the prompt asks for; it has {', '.join(fields)}. "
                "Give rows with this field, or change the prompt."
            ) from None

    @property
    def text(self) -> str:
        """The template as one string, fields in braces: what a prompt's identity is computed from."""
        return "".join(part.text if isinstance(part, Piece) else "{" + part + "}" for part in self.parts)


def make_template(
    prompt: str,
    *,
    system: str | None = None,
    examples: Sequence[Example] = (),
    answers: Mapping[str, str],
    chat: bool,
    tokenizer: Any = None,
    options: str | None = None,
) -> PromptTemplate:
    """The template of `prompt`, after the system text and the worked examples.

    examples: rows with their label; in a chat each is a turn and its answer, else a paragraph. answers: label -> the
    text that answers for it. options: the lines that stand in the place {options}.
    Raises ValueError for an example without a field or with an unknown label.
    """
    asked = [_ask(prompt, options)]
    for number, example in enumerate(examples, start=1):
        asked.insert(-1, _worked(prompt, example, options, number))
    replies = [answers[_label(example, answers, number)] for number, example in enumerate(examples, start=1)]
    if chat:
        return PromptTemplate(tuple(_chat_parts(system, asked, replies, tokenizer)), chat=True)
    parts: list[Piece | str] = [Piece(system + "\n\n")] if system else []
    for turn, reply in zip(asked, replies, strict=False):
        parts += [*turn, Piece(reply + "\n\n")]
    return PromptTemplate((*parts, *asked[-1]), chat=False)


def wants_chat(chat: str, tokenizer: Any, answers: Sequence[str]) -> bool:
    """Is the chat template used? chat: yes, no or auto.

    auto: where the tokenizer has one, unless every answer begins with a space: such answers continue a line of the
    prompt, and a chat's reply begins on a line of its own. Raises ValueError for yes without a template.
    """
    has_one = bool(getattr(tokenizer, "chat_template", None))
    if chat == "yes" and not has_one:
        raise ValueError(
            f"chat=yes, but the tokenizer of {tokenizer.name_or_path!r} has no chat template. Use chat=no."
        )
    return chat == "yes" or (chat == "auto" and has_one and not all(answer.startswith(" ") for answer in answers))


def _ask(prompt: str, options: str | None) -> list[Piece | str]:
    parts: list[Piece | str] = []
    for is_field, text in template_pieces(prompt):
        if is_field and text == "options" and options is not None:
            parts.append(Piece(options))
        else:
            parts.append(text if is_field else Piece(text))
    return parts


def _worked(prompt: str, example: Example, options: str | None, number: int) -> list[Piece | str]:
    parts: list[Piece | str] = []
    for part in _ask(prompt, options):
        if isinstance(part, str) and part not in example:
            raise ValueError(
                f"Example {number} has no field {part!r} of the prompt; it has {', '.join(example)}. Add it."
            )
        parts.append(part if isinstance(part, Piece) else Piece(example[part], given=True))
    return parts


def _label(example: Example, answers: Mapping[str, str], number: int) -> str:
    if example.get("label") not in answers:
        raise ValueError(
            f"Example {number} has label {example.get('label')!r}, expected one of {', '.join(answers)}. "
            "Give it a label."
        )
    return example["label"]


def _chat_parts(
    system: str | None, asked: Sequence[Sequence[Piece | str]], replies: Sequence[str], tokenizer: Any
) -> list[Piece | str]:
    """The rendered conversation, cut at its place-holders."""
    places: list[Piece | str] = []
    place = _place_holder(system, asked, replies, tokenizer.chat_template)

    def written(turn: Sequence[Piece | str]) -> str:
        text = ""
        for part in turn:
            if isinstance(part, Piece) and not part.given:
                text += part.text
            else:
                text += place.format(len(places))
                places.append(part)
        return text

    messages = []
    for number, turn in enumerate(asked):
        messages.append({"role": "user", "content": written(turn)})
        if number < len(replies):
            messages.append({"role": "assistant", "content": replies[number].strip()})
    rendered = _render(system, messages, tokenizer)
    if _OPEN_THOUGHT.search(rendered):  # the template makes the model think first: close the thought, empty
        rendered = _OPEN_THOUGHT.sub(EMPTY_THOUGHT, rendered)
    parts: list[Piece | str] = []
    for at, text in enumerate(re.split(place.format(r"(\d+)"), rendered)):
        parts.append(places[int(text)] if at % 2 else Piece(text))
    found = [part for part in parts if isinstance(part, str) or part.given]
    if sorted(map(str, found)) != sorted(map(str, places)):
        raise ValueError(
            f"The chat template of {tokenizer.name_or_path!r} does not show every message once ({len(found)} of "
            f"{len(places)} texts found). Use chat=no."
        )
    return parts


def _place_holder(*texts: object) -> str:
    """The name of a field's place while the chat template is rendered, a word that the texts do not hold.

    Letters and a number only, so that no template escapes or trims it.
    """
    name = "FIELD"
    while name in str(texts):
        name += "X"
    return name + "{}PLACE"


def _render(system: str | None, messages: list[dict[str, str]], tokenizer: Any) -> str:
    """The conversation as text, ready for the assistant's reply, without room to think.

    A template that refuses or drops the system's turn gets its text at the head of the first user turn.
    """
    settings = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
    if system is None:
        return str(tokenizer.apply_chat_template(messages, **settings))
    try:
        rendered = str(tokenizer.apply_chat_template([{"role": "system", "content": system}, *messages], **settings))
    except Exception:  # jinja2's own TemplateError, with whatever the template raises
        rendered = ""
    if system.strip() in rendered:
        return rendered
    first = {"role": "user", "content": f"{system}\n\n{messages[0]['content']}"}
    return str(tokenizer.apply_chat_template([first, *messages[1:]], **settings))
