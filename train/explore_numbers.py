"""The numbers that exploratory figures share: histograms of lengths, shares by bins of equal count, writing systems.

Knows arrays and texts; never a task or a page.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
EQUAL_BINS = 10
LOOKED_AT = 400  # letters of a text that say which writing system it is in


def length_histogram(lengths: dict[str, np.ndarray], bins: int = 40) -> tuple[list[float], dict[str, list[int]]]:
    """(middles of bins of equal width in the logarithm, rows of each series in them); a length of 0 counts as 1."""
    every = np.maximum(np.concatenate(list(lengths.values())), 1)
    # Whole numbers: a bin between two of them would stay empty.
    edges = np.unique(np.geomspace(every.min(), every.max() + 1, bins + 1).round())
    counts = {name: np.histogram(np.maximum(values, 1), edges)[0].tolist() for name, values in lengths.items()}
    return np.sqrt(edges[:-1] * np.maximum(edges[1:] - 1, edges[:-1])).tolist(), counts


def boxes(values: np.ndarray, groups: np.ndarray, names: Sequence[str]) -> list[list[float]]:
    """Per name the five QUANTILES of the values of its group; zeros where it has none."""
    return [
        np.quantile(values[groups == name], QUANTILES).tolist() if (groups == name).any() else [0.0] * len(QUANTILES)
        for name in names
    ]


def by_equal_bins(
    values: np.ndarray, shares: np.ndarray, bins: int = EQUAL_BINS
) -> tuple[list[float], np.ndarray, list[int]]:
    """(median value of each bin of equal count, (bins, L) mean of shares (N, L) in it, rows in it).

    Equal values stay in one bin, so that there may be fewer.
    """
    begins = np.unique(np.quantile(values, np.arange(bins) / bins))
    at = np.searchsorted(begins, values, side="right") - 1
    filled = np.unique(at)
    middles = [float(np.median(values[at == one])) for one in filled]
    means = np.stack([shares[at == one].mean(axis=0) for one in filled])
    return middles, means, [int((at == one).sum()) for one in filled]


def writing_system(text: str) -> str:
    """The writing system of most letters at a text's beginning, as Unicode names it (LATIN); "" where it has none."""
    letters = [sign for sign in text[: 4 * LOOKED_AT] if sign.isalpha()][:LOOKED_AT]
    if not letters:
        return ""
    if all(sign < "\u0250" for sign in letters):
        return "LATIN"
    names = Counter(unicodedata.name(sign, "UNKNOWN").split()[0] for sign in letters)
    return names.most_common(1)[0][0]


def writing_systems(texts: Iterable[str]) -> list[dict[str, object]]:
    """Rows of a table: writing system, texts, share; the commonest first."""
    counts = Counter(writing_system(text) for text in texts)
    total = sum(counts.values())
    named = {"": "no letters", "CJK": "Chinese characters"}
    return [
        {"writing system": named.get(name, name.capitalize()), "rows": count, "share": f"{count / total:.1%}"}
        for name, count in counts.most_common()
    ]
