"""A prompt template and the fields that a row fills in it: {text}, or any column's name. Knows text only."""

from __future__ import annotations

import re

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")


def template_pieces(template: str) -> list[tuple[bool, str]]:
    """The template in its order: (False, literal text) and (True, name of a field).

        template_pieces("Rate {{0-9}}: {text}")   [(False, "Rate {0-9}: "), (True, "text")]

    A name is all that stands between its braces, so it may hold blanks and dots. Refuses what str.format would take
    for something else ({}, {0}, {text!r}, {text:>9}), and a brace without its partner.
    """
    pieces: list[tuple[bool, str]] = []
    literal, end = "", 0
    for found in _BRACES.finditer(template):
        literal += template[end : found.start()]
        end = found.end()
        if found[0] in ("{{", "}}"):
            literal += found[0][0]
            continue
        _check_field(found[0], found[1], found.start())
        pieces += [(False, literal)] * bool(literal) + [(True, found[1])]
        literal = ""
    literal += template[end:]
    return pieces + [(False, literal)] * bool(literal)


def template_fields(template: str) -> tuple[str, ...]:
    """The names of the template's fields, each once, in the order in which they first stand."""
    return tuple(dict.fromkeys(text for is_field, text in template_pieces(template) if is_field))


def _check_field(written: str, name: str | None, position: int) -> None:
    where = f"question.prompt has {written!r} at character {position + 1}"
    if name is None:
        raise ValueError(f"{where} without its partner. Write {{{{ and }}}} for braces that are text.")
    if not name.strip():
        raise ValueError(f"{where}, which names no column. Write its name between the braces, such as {{text}}.")
    if name.isdigit():
        raise ValueError(f"{where}: fields have names, not numbers. Write the column's name, such as {{text}}.")
    if "!" in name or ":" in name:
        raise ValueError(
            f"{where}: a text is put in as it is, without a format. Write {{{re.split('[!:]', name)[0]}}}, or rename "
            "the column if this is its name; double the braces if they are text."
        )
