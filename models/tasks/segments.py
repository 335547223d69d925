"""A row's fields as token ids in, one sequence within a token budget out, both answers always in sight.

Knows token ids, never text (only `make_frame` asks a tokenizer for the markers' ids).

    joint:    start (Prompt: p1 sep  Answer A: a1 sep  Answer B: b1 sep) (Prompt: p2 sep ...) ... end
    siamese:  start (Prompt: p1 sep  Answer: a1 sep) (Prompt: p2 sep ...) ... end
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from models.tasks.tokens import TokenFields, Turns

# The winner of the competition capped prompts at 256 of 1024 tokens: the answers are what is judged.
PROMPT_SHARE = 0.25
# Tokens of text, beside the cut mark, below which a cut turn says nothing: the turn is left out instead.
LEAST_TEXT = 4

# What stands where a text was cut. In ASCII: the one-character ellipsis is unknown to DeBERTa-v3.
CUT_MARK = "[...]"

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Frame:
    """Token ids that stand around the texts: the sequence's start and end, each segment's marker and separator."""

    start: Ids
    separator: Ids
    end: Ids
    cut_mark: Ids
    prompt_marker: Ids
    answer_a_marker: Ids
    answer_b_marker: Ids
    answer_marker: Ids


@dataclass(frozen=True)
class Encoded:
    """One sequence. input_ids, token_type_ids: (T,) int32; types are 0 in prompt segments and 1 in answer segments.

    cut: tokens of text left out of each field, in the sequence's order: (prompt, first answer, second answer), or
    (prompt, answer) in the siamese reading.
    """

    input_ids: np.ndarray
    token_type_ids: np.ndarray
    cut: tuple[int, ...]


@dataclass(frozen=True)
class _Field:
    """One field to be laid out: its turns, what precedes and follows each of them, and the price of these."""

    turns: Turns
    marker: Ids
    cost: int  # tokens of marker and separator; for both answers the longer marker's, so that a swap mirrors the cut
    type_id: int

    @property
    def need(self) -> int:
        return sum(map(len, self.turns)) + self.cost * len(self.turns)


def make_frame(tokenizer: Any) -> Frame:
    """The frame in a tokenizer's own control tokens; refuses one that has neither a separator nor an end token."""
    separator = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if separator is None:
        raise ValueError(f"Tokenizer '{tokenizer.name_or_path}' has no sep_token and no eos_token. Give it one.")
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id

    def ids(text: str) -> Ids:
        return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])

    return Frame(
        start=() if start is None else (start,),
        separator=(separator,),
        end=(),  # the last segment's separator ends the sequence, as BERT and DeBERTa expect
        cut_mark=ids(CUT_MARK),
        prompt_marker=ids("Prompt:"),
        answer_a_marker=ids("Answer A:"),
        answer_b_marker=ids("Answer B:"),
        answer_marker=ids("Answer:"),
    )


def encode_pair(
    fields: TokenFields, swapped: bool, frame: Frame, budget: int, prompt_share: float = PROMPT_SHARE
) -> Encoded:
    """The row with both answers in one sequence of at most `budget` tokens, everything counted.

    swapped: the answers change places, their text is cut exactly as before. Nothing is cut where all fits. Otherwise
    the prompt may fill `prompt_share`, the answers share the rest evenly; what one does not need the other takes,
    then the prompt. In each field later turns outrank earlier ones; a cut turn keeps its head and its tail.
    Refuses a budget below `smallest_budget`.
    """
    first, second = (fields.answer_b, fields.answer_a) if swapped else (fields.answer_a, fields.answer_b)
    markers = (frame.answer_a_marker, frame.answer_b_marker)
    return _encode(fields.prompt, (first, second), markers, frame, budget, prompt_share)


def encode_answer(
    fields: TokenFields, which: Literal["a", "b"], frame: Frame, budget: int, prompt_share: float = PROMPT_SHARE
) -> Encoded:
    """The prompt with one of the answers, within the budget by the rules of `encode_pair`."""
    if which not in ("a", "b"):
        raise ValueError(f"which is '{which}', expected 'a' or 'b'.")
    answer = fields.answer_a if which == "a" else fields.answer_b
    return _encode(fields.prompt, (answer,), (frame.answer_marker,), frame, budget, prompt_share)


def smallest_budget(frame: Frame, answers: int = 2) -> int:
    """Fewest tokens that show a cut turn of the prompt and of each answer; answers: 2 joint, 1 siamese."""
    markers = (frame.answer_a_marker, frame.answer_b_marker) if answers == 2 else (frame.answer_marker,)
    least = len(frame.separator) + _least_turn(frame)
    ends = len(frame.start) + len(frame.end)
    return ends + len(frame.prompt_marker) + least + answers * (max(map(len, markers)) + least)


def _encode(
    prompt: Turns, answers: Sequence[Turns], markers: Sequence[Ids], frame: Frame, budget: int, prompt_share: float
) -> Encoded:
    least = smallest_budget(frame, len(answers))
    if budget < least:
        raise ValueError(f"A budget of {budget} tokens cannot show the prompt and every answer. Give {least} or more.")
    separator = len(frame.separator)
    answer_cost = max(map(len, markers)) + separator
    asked = _Field(prompt, frame.prompt_marker, len(frame.prompt_marker) + separator, 0)
    given = [_Field(turns, marker, answer_cost, 1) for turns, marker in zip(answers, markers, strict=True)]
    room = budget - len(frame.start) - len(frame.end)
    return _lay_out([asked, *given], _fit_fields(asked, given, frame, room, prompt_share), frame)


def _fit_fields(asked: _Field, given: Sequence[_Field], frame: Frame, room: int, prompt_share: float) -> list[Turns]:
    """The kept turns of each field, a suffix of its turns whose first may be cut; all costs stay within `room`."""
    fields = [asked, *given]
    whole = sum(sum(map(len, f.turns)) + len(f.turns) * len(f.marker + frame.separator) for f in fields)
    if whole <= room:  # at their true price, which unlike markers keep below the sum of the needs
        return [field.turns for field in fields]
    least_asked = asked.cost + _least_turn(frame)
    least_given = sum(field.cost + _least_turn(frame) for field in given)
    cap = min(max(int(prompt_share * room), least_asked), room - least_given)
    shares = _even_shares([field.need for field in given], room - min(asked.need, cap))
    kept = [_fit(field, share, frame.cut_mark) for field, share in zip(given, shares, strict=True)]
    # Last, the prompt takes what the answers left: they were short, or the rest of a turn was too short to show.
    left = room - sum(_price(field, turns) for field, turns in zip(given, kept, strict=True))
    return [_fit(asked, left, frame.cut_mark), *kept]


def _even_shares(needs: Sequence[int], room: int) -> list[int]:
    """Room for each of one or two needs: an even part, and what the other does not take.

    An odd token goes to neither, else the order of the answers would decide who gets it.
    """
    total = sum(needs)
    return [min(need, max(room // len(needs), room - (total - need))) for need in needs]


def _fit(field: _Field, room: int, cut_mark: Ids) -> Turns:
    """The last turns of a field that fit, the first of them cut to fill the room unless too little is left for it."""
    kept: list[np.ndarray] = []
    for turn in reversed(field.turns):
        room -= field.cost
        if len(turn) > room:
            if room >= len(cut_mark) + LEAST_TEXT:
                kept.append(_cut(turn, room, cut_mark))
            break
        room -= len(turn)
        kept.append(turn)
    return tuple(reversed(kept))


def _cut(turn: np.ndarray, room: int, cut_mark: Ids) -> np.ndarray:
    text = room - len(cut_mark)
    tail = text // 2
    return np.concatenate([turn[: text - tail], np.array(cut_mark, dtype=np.int32), turn[len(turn) - tail :]])


def _price(field: _Field, kept: Turns) -> int:
    return sum(map(len, kept)) + field.cost * len(kept)


def _least_turn(frame: Frame) -> int:
    return len(frame.cut_mark) + LEAST_TEXT


def _lay_out(fields: Sequence[_Field], kept: Sequence[Turns], frame: Frame) -> Encoded:
    """The sequence, turn by turn, and how many tokens of text each field lost."""
    pieces: list[Any] = [frame.start]
    types: list[int] = [0]
    count = len(fields[0].turns)
    for turn in range(count):
        for field, turns in zip(fields, kept, strict=True):
            place = turn - (count - len(turns))
            if place >= 0:
                pieces += [field.marker, turns[place], frame.separator]
                types += [field.type_id] * 3
    pieces.append(frame.end)
    types.append(types[-1])
    ids = np.concatenate([np.asarray(piece, dtype=np.int32) for piece in pieces])
    type_ids = np.repeat(np.array(types, dtype=np.int32), [len(piece) for piece in pieces])
    return Encoded(ids, type_ids, tuple(_lost(f, turns, frame) for f, turns in zip(fields, kept, strict=True)))


def _lost(field: _Field, kept: Turns, frame: Frame) -> int:
    first = len(field.turns) - len(kept)
    was_cut = bool(kept) and kept[0] is not field.turns[first]
    return sum(map(len, field.turns)) - sum(map(len, kept)) + (len(frame.cut_mark) if was_cut else 0)
