"""Mixes several runs' probabilities by weights that were fitted on their held-out tables.

Knows tables and run names; never models. The loss of a linear mixture is convex in its weights, so there is one best
value and the fit can prove that it reached it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from infer.calibration.temperature import crossfit_parts
from infer.predictions import Predictions, align_like, average

LARGEST_GAP = 1e-5  # nats above the best possible mixture; scores are read to four digits
SMALLEST_SHARE = 1e-6  # what the search leaves on a run that it means to drop


@dataclass(frozen=True)
class Blend:
    """Weights of runs, and the held-out log loss (nats) they give.

    weights: run name -> share, non-negative, sum to one. alone: run name -> its own log loss.
    in_sample: scored on the rows the weights were fitted on, which flatters.
    cross_fitted: each fold scored with the weights of the other folds; the number to report.
    """

    weights: dict[str, float]
    in_sample: float
    cross_fitted: float
    alone: dict[str, float]


def fit_weights(tables: Mapping[str, Predictions]) -> Blend:
    """The weights on the simplex with the least held-out log loss. tables: run name -> its held-out table.

    Refuses runs of other ids, labels, truths or folds, naming the run and the first difference. Without folds, the
    cross-fitted estimate splits by a hash of the id; with one row it is the in-sample one.
    """
    aligned = _align_all(tables)
    first = next(iter(aligned.values()))
    truth_probs = np.stack([table.truth_probs() for table in aligned.values()], axis=1)  # (N, K)
    weights = simplex_weights(truth_probs)
    return Blend(
        weights={name: float(weight) for name, weight in zip(aligned, weights, strict=True)},
        in_sample=_mixture_log_loss(weights, truth_probs),
        cross_fitted=_cross_fitted_log_loss(truth_probs, crossfit_parts(first) if len(first) > 1 else np.zeros(1)),
        alone={name: table.log_loss() for name, table in aligned.items()},
    )


def apply(weights: Mapping[str, float], tables: Mapping[str, Predictions]) -> Predictions:
    """The weighted mean of the runs' tables, in the first one's order of ids. Refuses a run named on one side only."""
    if set(weights) != set(tables):
        raise ValueError(
            f"The weights are of runs {sorted(weights)}, the tables of {sorted(tables)}. Give the same runs."
        )
    return average(list(tables.values()), [weights[name] for name in tables])


def simplex_weights(truth_probs: np.ndarray) -> np.ndarray:
    """(N, K) positive probability of the truth per run -> (K,) weights of the mixture with the least log loss.

    Equal runs keep equal weights, since the search starts in the middle.
    """
    from scipy.optimize import minimize

    runs = truth_probs.shape[1]
    found = minimize(
        _mixture_log_loss,
        x0=np.full(runs, 1 / runs),
        args=(truth_probs,),
        jac=_mixture_gradient,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * runs,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(runs)},
        options={"ftol": 1e-12, "maxiter": 1000},
    )
    weights = np.where(found.x < SMALLEST_SHARE, 0.0, found.x)
    weights /= weights.sum()
    # Frank-Wolfe gap: moving to any single run cannot gain more than this, by convexity, nor can any mixture of them.
    gap = float(-_mixture_gradient(weights, truth_probs).min() - 1)
    if gap > LARGEST_GAP:
        raise RuntimeError(f"The blend stopped {gap:.1e} nats from the best, expected {LARGEST_GAP}: {found.message}.")
    return weights


def _mixture_log_loss(weights: np.ndarray, truth_probs: np.ndarray) -> float:
    return float(-np.log(truth_probs @ weights).mean())


def _mixture_gradient(weights: np.ndarray, truth_probs: np.ndarray) -> np.ndarray:
    return -(truth_probs / (truth_probs @ weights)[:, None]).mean(axis=0)  # (N, K) -> (K,)


def _cross_fitted_log_loss(truth_probs: np.ndarray, parts: np.ndarray) -> float:
    held_out_probs = np.empty(len(truth_probs))
    for part in np.unique(parts):
        held_out = parts == part
        fitting = truth_probs[~held_out] if not held_out.all() else truth_probs
        held_out_probs[held_out] = truth_probs[held_out] @ simplex_weights(fitting)
    return float(-np.log(held_out_probs).mean())


def _align_all(tables: Mapping[str, Predictions]) -> dict[str, Predictions]:
    """All tables in the first one's order of ids, checked to be of the same rows and the same folds."""
    if not tables:
        raise ValueError("There are no runs to blend, expected at least one held-out table. Name them in blend.runs.")
    first_name, first = next(iter(tables.items()))
    aligned = {name: align_like(table, first, f"run {name!r}") for name, table in tables.items()}
    for name, table in aligned.items():
        if (table.fold is None) != (first.fold is None):
            raise ValueError(
                f"Only one of runs {first_name!r} and {name!r} has folds. Blend held-out tables of one kind."
            )
        if table.fold is not None and first.fold is not None and (table.fold != first.fold).any():
            row = int(np.flatnonzero(table.fold != first.fold)[0])
            raise ValueError(
                f"Run {name!r} has id {table.ids[row]!r} in fold {table.fold[row]}, but run {first_name!r} in fold "
                f"{first.fold[row]}. Train both on one split: folds.file={first_name}/folds.csv in a new run folder."
            )
    return aligned
