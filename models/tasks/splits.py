"""Parts of labelled rows: alike shares of the labels in each, and every group of rows whole in one of them.

Knows arrays; never what a row is.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

FINEST_PARTS = 20  # a single held-out part is some of these, so its share is right to 5 % of the rows


def split_parts(
    label_index: np.ndarray, groups: np.ndarray, count: int, *, seed: int, setting: str,
    remedy: str = "Ask for fewer folds or give more rows.",
) -> np.ndarray:  # fmt: skip
    """(N,) int64 part of each row, 0..count-1.

    label_index: (N,) column of the label. groups: (N,) the same for rows that stay together. setting: what asked for
    this, as `folds.count=5`, and remedy: what to do where the rows do not do, for errors. Refuses fewer groups, or rows
    of a label, than parts.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    if count < 2:
        raise ValueError(f"{setting} gives {count} part(s), expected 2 or more.")
    most = _most_parts(label_index, groups)
    if most < count:
        raise ValueError(
            f"{setting} needs {count} different prompts and {count} rows of each label, but the {len(groups)} rows are "
            f"enough for {most}. {remedy}"
        )
    parts = np.full(len(groups), -1, dtype=np.int64)
    splitter = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
    for part, (_, held_out) in enumerate(splitter.split(label_index, label_index, groups)):
        parts[held_out] = part
    empty = sorted(set(range(count)) - set(parts.tolist()))
    if empty:
        raise ValueError(f"{setting} leaves fold {empty[0]} without rows: one prompt has most of them. {remedy}")
    return parts


def split_share(label_index: np.ndarray, groups: np.ndarray, share: float, *, seed: int, setting: str) -> np.ndarray:
    """(N,) bool: the rows of one part of about this share. Refuses what split_parts refuses, and a share outside 0..1.

    Some of many equal parts: it has the stratifying and the grouping of whole parts at any share.
    """
    if not 0 < share < 1:
        raise ValueError(
            f"{setting.partition('=')[0]} is {share}, expected a share of the rows between 0 and 1, as in 0.15."
        )
    most = max(2, min(FINEST_PARTS, _most_parts(label_index, groups)))
    wanted = Fraction(share).limit_denominator(most)
    wanted = min(max(wanted, Fraction(1, most)), Fraction(most - 1, most))
    parts = split_parts(
        label_index, groups, wanted.denominator, seed=seed, setting=setting,
        remedy="Give more rows: of each label at least two, of different texts.",
    )  # fmt: skip
    return parts < wanted.numerator


def _most_parts(label_index: np.ndarray, groups: np.ndarray) -> int:
    """Parts that could each have a group of their own and a row of every label there is."""
    counts = np.bincount(label_index)
    return int(min(len(np.unique(groups)), counts[counts > 0].min(initial=len(groups))))
