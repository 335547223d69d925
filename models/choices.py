"""The two refusals that every settings group uses: a value outside its choices, a number outside its range."""

from __future__ import annotations

from collections.abc import Iterable


def one_of(key: str, value: object, choices: Iterable[str]) -> None:
    """Raises ValueError with the choices where value is none of them."""
    choices = tuple(choices)
    if value not in choices:
        raise ValueError(f"{key}={value!r}: expected one of {', '.join(choices)}.")


def within(key: str, value: float, low: float, high: float) -> None:
    """Raises ValueError with the range where value is outside it, or NaN."""
    if not low <= value <= high:
        raise ValueError(f"{key}={value}: expected a number from {low} to {high}.")
