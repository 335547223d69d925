"""Is one way of answering better than another on the same rows, or is it chance? Two tests of paired rows.

Knows arrays; never tables, labels or ways.
"""

from __future__ import annotations

import numpy as np

from infer.intervals import DRAWS_AT_ONCE, affordable

DRAWS = 10_000  # a p-value of 0.001 rests on ten of them


def mcnemar(right: np.ndarray, other_right: np.ndarray) -> float:
    """Two-sided p-value that both are right equally often: (N,) bool each, of the same rows; 1 where none differs.

    Exact: of the rows that one alone has right, each side has half, so their number is binomial. Source: McNemar 1947,
    in its exact form.
    """
    from scipy.stats import binomtest

    mine, theirs = int((right & ~other_right).sum()), int((~right & other_right).sum())
    return 1.0 if mine + theirs == 0 else float(binomtest(mine, mine + theirs, 0.5).pvalue)


def paired_bootstrap(
    losses: np.ndarray, other_losses: np.ndarray, units: np.ndarray | None = None, *, draws: int = DRAWS, seed: int = 0
) -> float:
    """Two-sided p-value that both have the same mean loss: (N,) each, of the same rows, which are drawn together.

    Twice the share of draws in which the difference of the means is on the other side of 0, with one draw more on
    each side, so that no p-value is 0. units: (N,) the same for rows that are drawn together; None: rows.
    Large tables get fewer draws. Source: Efron and Tibshirani 1993, section 15.4. Raises ValueError for no rows.
    """
    if not len(losses) or losses.shape != other_losses.shape:
        raise ValueError(f"losses have the shapes {losses.shape} and {other_losses.shape}, expected equal ones, not 0.")
    units = np.arange(len(losses)) if units is None else np.unique(units, return_inverse=True)[1]
    # The sign of a mean is that of the sum, so groups of unlike size need no division.
    sums = np.bincount(units, weights=losses.astype(np.float64) - other_losses)
    if not sums.any():
        return 1.0
    draws = affordable(draws, len(sums))
    random, at_once = np.random.default_rng(seed), max(1, DRAWS_AT_ONCE // len(sums))
    above = below = 0
    for start in range(0, draws, at_once):
        chosen = random.integers(len(sums), size=(min(at_once, draws - start), len(sums)))
        drawn = sums[chosen].sum(axis=1)
        above, below = above + int((drawn >= 0).sum()), below + int((drawn <= 0).sum())
    return min(1.0, 2 * (min(above, below) + 1) / (draws + 1))
