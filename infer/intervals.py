"""How far a figure could lie from where it is: 95 % percentile intervals over rows drawn again.

Knows arrays and group numbers; never labels or tables. Source: Efron and Tibshirani 1993, chapter 13. Of a plain
share of rows, Wilson's, which draws nothing.
"""

import numpy as np

PERCENTILES = (2.5, 97.5)
DRAWS_AT_ONCE = 4_000_000  # 32 MB per array of drawn indices
# Draws times rows (times columns): two seconds of AUC. Three labels of 20,000 rows still get 1000 draws.
DRAWN_AT_MOST = 60_000_000
FEWEST_DRAWS = 100


def bootstrap_interval(
    rows: np.ndarray, units: np.ndarray | None = None, *, draws: int = 1000, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of each column's mean: rows (N, C) -> low (C,), high (C,).

    units: (N,) whole number 0..U-1 of the group each row is drawn with; None draws single rows.
    Beyond 60,000 units fewer draws, down to 100.
    """
    units = np.arange(len(rows)) if units is None else units
    # Per group its sums and its size: a draw's mean is a ratio of two sums, since groups differ in size.
    columns = [*rows.T.astype(np.float64), np.ones(len(rows))]
    sums = np.stack([np.bincount(units, weights=column) for column in columns], axis=1)  # (U, C + 1)
    draws = affordable(draws, len(sums))
    random, means = np.random.default_rng(seed), np.empty((draws, rows.shape[1]))
    at_once = max(1, DRAWS_AT_ONCE // len(sums))
    for start in range(0, draws, at_once):
        chosen = random.integers(len(sums), size=(min(at_once, draws - start), len(sums)))
        drawn = np.stack([column[chosen].sum(axis=1) for column in sums.T], axis=1)
        means[start : start + len(drawn)] = drawn[:, :-1] / drawn[:, -1:]
    low, high = np.percentile(means, PERCENTILES, axis=0)
    return low, high


def auc_interval(
    truths: np.ndarray, scores: np.ndarray, units: np.ndarray | None = None, *, draws: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """95 % interval of the mean over columns of the AUC; truths (N, C) bool, scores (N, C), units as above.

    A column that has but one side in a draw is left out of that draw's mean; None where every draw has none left.
    Beyond 60 million draws x rows x columns (20,000 rows of three labels) fewer draws, down to 100.
    """
    units = np.arange(len(scores)) if units is None else units
    count = int(units.max()) + 1
    draws = affordable(draws, scores.size)
    sides = [_ranked(truths[:, column], scores[:, column], units) for column in range(scores.shape[1])]
    random, areas = np.random.default_rng(seed), np.empty((draws, len(sides)))
    at_once = max(1, DRAWS_AT_ONCE // 4 // len(scores))  # several arrays of this size live at a time
    for start in range(0, draws, at_once):
        size = min(at_once, draws - start)
        chosen = random.integers(count, size=(size, count)) + count * np.arange(size)[:, None]
        times = np.bincount(chosen.ravel(), minlength=size * count).reshape(size, count)
        areas[start : start + size] = np.stack([_drawn_auc(times, *side) for side in sides], axis=1)
    defined = np.isfinite(areas).any(axis=1)
    if not defined.any():
        return None
    low, high = np.percentile(np.nanmean(areas[defined], axis=1), PERCENTILES)
    return float(low), float(high)


def affordable(draws: int, size: int) -> int:
    """`draws`, or fewer where each reads so many (`size`) numbers that all would take minutes."""
    return min(draws, max(FEWEST_DRAWS, DRAWN_AT_MOST // max(size, 1)))


def _ranked(truth: np.ndarray, scores: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """In rising order of score: (N,) unit, (N,) 1 where true, and where each block of equal scores begins."""
    order = np.argsort(scores, kind="stable")
    begins = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    return units[order], truth[order].astype(np.float64), begins


def _drawn_auc(times: np.ndarray, units: np.ndarray, positive: np.ndarray, begins: np.ndarray) -> np.ndarray:
    """(D,) AUC of each draw, NaN where it has one side only; times: (D, U) how often a draw holds each unit.

    The share of pairs (true, not true) ranked rightly, equal scores counting half: Mann and Whitney 1947.
    """
    weights = times[:, units].astype(np.float64)  # (D, U) -> (D, N)
    true = np.add.reduceat(weights * positive, begins, axis=1)  # per block of equal scores
    false = np.add.reduceat(weights, begins, axis=1) - true
    below = np.cumsum(false, axis=1) - false
    pairs = true.sum(axis=1) * false.sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(pairs > 0, (true * (below + false / 2)).sum(axis=1) / pairs, np.nan)


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share of which `right` of `count` were seen: 2.5 % on either side. (0, 1) of no rows."""
    low, missed = wilson_low(np.array([right, count - right]), np.array([count, count]), 0.975).tolist()
    return low, 1 - missed


def wilson_low(right: np.ndarray, rows: np.ndarray, confidence: float = 0.95) -> np.ndarray:
    """(K,) what the share right / rows is at least, with this one-sided confidence; 0 where there are no rows.

    For one share chosen beforehand; the best of many is a little worse than it looks. Source: Wilson 1927, equation 4,
    no continuity correction.
    """
    from scipy.stats import norm

    z, rows = norm.ppf(confidence), rows.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        share = right / rows
        low = (share + z**2 / (2 * rows) - z * np.sqrt(share * (1 - share) / rows + (z / rows) ** 2 / 4)) / (
            1 + z**2 / rows
        )
    return np.where(rows > 0, np.maximum(low, 0), 0.0)  # a share of 0 comes out a hair below
