"""Fits a calibrator of a model's answers from raw log_probs kept on disk, and judges it on rows it was not fitted on.

Knows (N, L) log_probs and truths; the formulas stand in methods, what is kept in calibrator. No forward
pass: contextual and pmi read a few prompts without content that were answered like any row, the others read the rows.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infer.calibration.calibrator import Calibrator, check_columns
from infer.calibration.methods import (
    FROM_PROMPTS,
    FROM_TRUTH,
    METHODS,
    Parameters,
    apply_parameters,
    check_log_probs,
    fit_parameters,
    log_shares,
)
from infer.calibration.temperature import FEWEST_ROWS as FEWEST_ROWS
from infer.calibration.temperature import floored_softmax, hashed_parts
from infer.predictions import PROB_FLOOR

SAME = 5e-5  # nats: no difference in the four digits that are shown
SHARES_TOLERANCE = 1e-6


def fit_calibrator(
    method: str,
    log_probs: np.ndarray,
    truth: np.ndarray | None = None,
    *,
    labels: Sequence[str],
    identity: Mapping[str, Any],
    ids: Sequence[str] | np.ndarray | None = None,
    content_free: np.ndarray | None = None,
    prior: Sequence[float] | np.ndarray | None = None,
) -> Calibrator:
    """The calibrator fitted on all rows given, with its held-out log loss before and after where truths are known.

    log_probs: (N, L) raw natural logs. truth: (N,) column of the true label, -1 where unknown; temperature, vector and
    isotonic need one for every row. content_free: (C, L) log_probs of prompts without content (pmi: of the domain
    premise), for contextual and pmi, which fit nothing on the rows. prior: (L,) class shares, for prior.
    ids: (N,) decide which rows are held out together; by default the positions.
    Refuses, with a sentence: what a method needs and lacks, fewer than FEWEST_ROWS rows, truths of one label only.
    """
    check_columns(log_probs, labels)
    evidence = {"content_free": content_free, "prior": prior}
    truth = None if truth is None else np.asarray(truth, dtype=np.int64)
    _check_evidence(method, log_probs, truth, **evidence)
    before, after = None, None
    if truth is not None and (truth >= 0).any():
        before, after = judge(method, log_probs, truth, ids, **evidence)
    return Calibrator(
        method=method,
        labels=tuple(labels),
        parameters=_fit(method, log_probs, truth, **evidence),
        identity=dict(identity),
        rows=len(_source(method, log_probs, content_free)),
        log_loss_before=before,
        log_loss_after=after,
    )


def crossfit(
    method: str,
    log_probs: np.ndarray,
    truth: np.ndarray | None = None,
    ids: Sequence[str] | np.ndarray | None = None,
    *,
    content_free: np.ndarray | None = None,
    prior: Sequence[float] | np.ndarray | None = None,
) -> np.ndarray:
    """(N, L) probabilities of every row by a calibrator that was fitted without it: an honest view of the gain.

    Five parts by a hash of the ids; arguments and refusals as in fit_calibrator.
    """
    evidence = {"content_free": content_free, "prior": prior}
    truth = None if truth is None else np.asarray(truth, dtype=np.int64)
    _check_evidence(method, log_probs, truth, **evidence)
    if method in FROM_PROMPTS:
        return apply_parameters(_fit(method, log_probs, truth, **evidence), log_probs)
    parts = hashed_parts([str(row_id) for row_id in (range(len(log_probs)) if ids is None else ids)])
    if len(parts) != len(log_probs):
        raise ValueError(f"There are {len(parts)} ids for {len(log_probs)} rows, expected one each. Give all ids.")
    probs = np.empty(log_probs.shape)
    for part in np.unique(parts):
        held_out = parts == part
        others = None if truth is None else truth[~held_out]
        probs[held_out] = apply_parameters(_fit(method, log_probs[~held_out], others, **evidence), log_probs[held_out])
    return probs


def judge(
    method: str,
    log_probs: np.ndarray,
    truth: np.ndarray,
    ids: Sequence[str] | np.ndarray | None = None,
    **evidence: Any,
) -> tuple[float, float]:
    """(log loss without calibration, cross-fitted log loss with it), nats, over the rows whose truth is known: >= 0."""
    truth = np.asarray(truth, dtype=np.int64)
    after, known = crossfit(method, log_probs, truth, ids, **evidence), truth >= 0
    return _log_loss(floored_softmax(log_shares(log_probs)[known]), truth[known]), _log_loss(after[known], truth[known])


def harms(before: float | None, after: float | None) -> bool:
    """Did rows that the fit did not see get worse? False where nobody knows."""
    return before is not None and after is not None and after > before + SAME


def verdict(before: float | None, after: float | None) -> str:
    """One sentence: whether rows that the fit did not see got better, said plainly where they got worse."""
    if before is None or after is None:
        return "Calibration was not judged: no true labels are known. Give task.label_column to see what it does."
    figures = f"held-out log loss {before:.4f} before, {after:.4f} after"
    if harms(before, after):
        return f"Calibration makes it worse: {figures}. Leave it out, or fit another method or on more rows."
    return f"Calibration changes nothing: {figures}." if after > before - SAME else f"Calibration helps: {figures}."


def _fit(method: str, log_probs: np.ndarray, truth: np.ndarray | None, content_free: Any, prior: Any) -> Parameters:
    prior = None if prior is None else np.asarray(prior, dtype=np.float64)
    return fit_parameters(method, _source(method, log_probs, content_free), truth=truth, prior=prior)


def _source(method: str, log_probs: np.ndarray, content_free: Any) -> np.ndarray:
    return np.asarray(content_free) if method in FROM_PROMPTS else log_probs


def _log_loss(probs: np.ndarray, truth: np.ndarray) -> float:
    return float(-np.log(np.maximum(probs[np.arange(len(truth)), truth], PROB_FLOOR)).mean())


def _check_evidence(
    method: str, log_probs: np.ndarray, truth: np.ndarray | None, content_free: Any, prior: Any
) -> None:
    """Refuses what a method cannot be fitted on, before anything is fitted."""
    if method not in METHODS:
        raise ValueError(f"calibration.fit is {method!r}, expected one of {', '.join(METHODS)}. Choose one of these.")
    if truth is not None and np.shape(truth) != (len(log_probs),):
        raise ValueError(f"truth has shape {np.shape(truth)}, expected ({len(log_probs)},): one column per row.")
    if truth is not None and len(truth) and not -1 <= truth.min() <= truth.max() < log_probs.shape[1]:
        raise ValueError(
            f"truth holds {truth.min()} to {truth.max()}, expected columns 0 to {log_probs.shape[1] - 1}, or -1 where "
            "unknown. Count the labels from 0, in the columns' order."
        )
    check_log_probs(log_probs)  # here, so that the row an error names is counted among all
    if method in FROM_PROMPTS:
        if content_free is None or not len(content_free):
            raise ValueError(f"{method} has no prompts without content, expected at least one. Give content_free.")
        check_columns(content_free, range(log_probs.shape[1]))
        check_log_probs(content_free, "content_free")
        return
    if len(log_probs) < FEWEST_ROWS:  # the mean of fewer is these rows' own answer: dividing by it erases what they say
        raise ValueError(
            f"{method} would be fitted on {len(log_probs)} rows, expected at least {FEWEST_ROWS}. Give more rows, use "
            "a saved calibrator, or fit contextual, which needs no rows."
        )
    if method == "prior":
        _check_prior(prior, log_probs.shape[1])
    if method in FROM_TRUTH:
        _check_truth(method, truth, log_probs.shape[1])


def _check_prior(prior: Any, labels: int) -> None:
    shares = np.asarray([] if prior is None else prior, dtype=np.float64)
    if shares.shape != (labels,) or not (shares > 0).all() or abs(shares.sum() - 1) > SHARES_TOLERANCE:
        raise ValueError(
            f"calibration.prior is {None if prior is None else shares.tolist()}, expected {labels} shares above 0 that "
            "sum to one, in the labels' order. Leave out a label that never occurs."
        )


def _check_truth(method: str, truth: np.ndarray | None, labels: int) -> None:
    if method == "isotonic" and labels != 2:
        raise ValueError(f"isotonic has {labels} labels, expected two. Fit temperature or vector for more.")
    if truth is None or (truth < 0).any():
        unknown = "no true labels" if truth is None else f"{(truth < 0).sum()} rows without a true label"
        raise ValueError(f"{method} has {unknown}, expected one per row. Give labelled rows only, or fit batch.")
    if len(np.unique(truth)) < 2:
        raise ValueError(
            f"{method} has {len(truth)} rows, all of one true label, expected two labels or more: it would learn to "
            "answer that one always. Give rows of the other labels too."
        )
