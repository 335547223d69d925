"""One answer of a chat completion, read from a server's JSON: its text, why it ended, its tokens' log-probabilities."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SHOWN = 300  # characters of a server's error


@dataclass(frozen=True)
class ReadToken:
    """One token of an answer: its log-probability, and the likeliest tokens in its place, as the server gave them."""

    token: str
    log_prob: float
    top: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Completion:
    """An answer.

    finish: stop, length (cut off), content_filter, ... as the server says. model: the name it answers under, which may
    be another than the one asked for. tokens: () where not asked for.
    """

    text: str
    finish: str
    model: str
    tokens: tuple[ReadToken, ...] = ()


def read_completion(body: str) -> Completion:
    """The first choice of a chat completion's JSON. Raises ValueError where the JSON is cut off or holds no answer."""
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"an answer of {len(body)} characters that is not whole JSON ({error})") from error
    if isinstance(content, dict) and content.get("error") and not content.get("choices"):  # some do, with status 200
        raise ValueError(f"an error in the place of an answer: {str(content['error'])[:SHOWN]}")
    try:
        choice = content["choices"][0]
        text = _text(choice["message"].get("content"))
        tokens = tuple(map(_token, (choice.get("logprobs") or {}).get("content") or ()))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
        raise ValueError(f"JSON that is no chat completion ({found}): it needs choices[0].message") from error
    return Completion(text, str(choice.get("finish_reason") or ""), str(content.get("model") or ""), tokens)


def _text(content: Any) -> str:
    """The text of a message; "" where there is none, as in a refusal. Some servers write a list of parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def _token(written: Mapping[str, Any]) -> ReadToken:
    top = tuple((str(one["token"]), _log_prob(one)) for one in written.get("top_logprobs") or ())
    return ReadToken(str(written["token"]), _log_prob(written), top)


def _log_prob(written: Mapping[str, Any]) -> float:
    """A token's log-probability; Python's JSON reads NaN, which is none."""
    found = float(written["logprob"])
    if math.isnan(found):
        raise ValueError(f"the log-probability of {written['token']!r} is not a number")
    return found
