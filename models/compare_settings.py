"""The settings of a comparison: several ways of answering, each a list of overrides, on the same rows.

Part of the schema in models.settings; knows no method and no file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from models.choices import one_of, within

WAY_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,60}")  # it names a folder


@dataclass
class CompareSettings:
    """Ways to compare (python -m infer +experiment=reviews_compare); ways None: nothing is compared.

    ways: name -> overrides as the command line takes them, over the experiment and the command line; as
    dict[str, list[str]] once checked.
    """

    ways: Any
    only: list[str] | None  # some of them; the table still shows every way that is finished
    per_class: int | None  # rows of each label, drawn with the seed; None: all
    test_share: float  # of the rows, in each label: what every way is judged by. The others are there to learn from
    learn: str  # auto: a way that learns is fitted on the fit rows; no (in a way): its checkpoint is read as it is
    way: str | None  # set by the comparison in the process of a way: its name

    def __post_init__(self) -> None:
        one_of("compare.learn", self.learn, ("auto", "no"))
        within("compare.test_share", self.test_share, 0.05, 0.95)
        if self.per_class is not None:
            within("compare.per_class", self.per_class, 4, 10_000_000)
        if self.ways is not None:
            self.ways = _ways(self.ways)
        for name in [*(self.only or []), *([] if self.way is None else [self.way])]:
            one_of("compare.only" if self.way is None else "compare.way", name, self.ways or [])


def _ways(given: Any) -> dict[str, list[str]]:
    if not isinstance(given, Mapping) or len(given) < 2:
        raise ValueError(f"compare.ways={given!r}: expected two ways or more, each a name with a list of overrides.")
    ways = {}
    for name, overrides in given.items():
        if not WAY_NAME.fullmatch(str(name)):
            raise ValueError(f"compare.ways has the name {name!r}: expected letters, digits, '_', '-' and '.'.")
        if not isinstance(overrides, list | tuple) or not all(isinstance(one, str) for one in overrides):
            raise ValueError(
                f"compare.ways.{name}={overrides!r}: expected a list of overrides as the command line takes them, such "
                "as [method=tfidf]. Put each in quotes where it holds a colon or braces."
            )
        ways[str(name)] = list(overrides)
    return ways
