"""Seven ways to turn raw log_probs of labels into calibrated probabilities; none runs the model again.

Knows arrays: (N, L) natural-log probabilities, columns in label order; never ids, files or which model it was.
log_shares are log_probs less the row's log of its sum: each row's shares of the label set sum to one. Six methods come
out as softmax(weight * log_shares + bias) with a weight and a bias per label, the seventh as a curve:

    contextual   bias = -log mean share of content-free prompts    Zhao et al. 2021, Calibrate Before Use, section 5
    pmi          bias = -log P(label | domain premise)             Holtzman et al. 2021, Surface Form Competition
    batch        bias = -log mean share of the rows given          Zhou et al. 2023, Batch Calibration
    prior        bias that gives the rows' mean the shares wanted  Saerens, Latinne, Decaestecker 2002, section 2
    temperature  weight = 1 / T                                    Guo et al. 2017, equation 9
    vector       weight and bias, drawn towards 1 and 0            Guo et al. 2017, section 4.2
    isotonic     two labels: a rising curve over the log odds      Zadrozny and Elkan 2002

Contextual divides by shares, pmi by raw probabilities. Of one prompt these differ by a factor that the row's sum takes
out again: the two are then the same. Of several, contextual counts each alike and pmi by its mass on the labels. Zhao
et al. write a further softmax over the quotients, which would flatten them; here they are divided by their sum.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from infer.calibration.temperature import best_temperature, floored_softmax

METHODS = ("contextual", "pmi", "batch", "prior", "temperature", "vector", "isotonic")
FROM_PROMPTS = ("contextual", "pmi")  # fitted from a few prompts without content, not from rows
FROM_TRUTH = ("temperature", "vector", "isotonic")
# Stands for -inf. e^-700 is about the least number that float64 divides by without losing digits.
LEAST_LOG_SHARE = -700.0
SPREAD_OF_BIAS = 3.0  # nats: a bias that turns odds of 1 into odds of 20 costs as much as a weight of 0 or 2
PRIOR_TOLERANCE = 1e-6  # of a label's mean probability

Parameters = dict[str, list[float]]


def fit_parameters(
    method: str, log_probs: np.ndarray, *, truth: np.ndarray | None = None, prior: np.ndarray | None = None
) -> Parameters:
    """The numbers of a method: weight and bias (L,), or for isotonic the curve's log_odds and probs (K,).

    log_probs: (N, L), or for contextual and pmi (C, L) of the C prompts without content.
    truth: (N,) column of each row's label, for temperature, vector and isotonic. prior: (L,) shares, for prior.
    Always finite for one row or more; whether there are rows enough to trust is for the caller to say.
    """
    if method in ("contextual", "batch"):
        return _shift(-_log_mean(log_shares(log_probs)))
    if method == "pmi":
        return _shift(-_log_mean(_finite_log_probs(log_probs)))
    if method == "prior":
        assert prior is not None
        return _shift(_bias_towards(log_shares(log_probs), prior))
    if method in FROM_TRUTH:
        assert truth is not None
        return _from_truth(method, log_shares(log_probs), truth)
    raise ValueError(f"Calibration method is {method!r}, expected one of {', '.join(METHODS)}. Choose one of these.")


def apply_parameters(parameters: Mapping[str, Any], log_probs: np.ndarray) -> np.ndarray:
    """(N, L) float64 probabilities of raw log_probs, rows sum to one, none below PROB_FLOOR."""
    shares = log_shares(log_probs)
    if "log_odds" in parameters:
        second = np.interp(log_odds(shares), parameters["log_odds"], parameters["probs"])  # flat beyond its ends
        return floored_softmax(np.log(np.stack([1 - second, second], axis=1)))
    return floored_softmax(np.asarray(parameters["weight"]) * shares + np.asarray(parameters["bias"]))


def log_shares(log_probs: np.ndarray) -> np.ndarray:
    """(N, L) float64 of raw log_probs: normalised over the labels, -inf becomes LEAST_LOG_SHARE.

    Refuses what check_log_probs refuses.
    """
    from scipy.special import logsumexp

    log_probs = check_log_probs(log_probs)
    return np.maximum(log_probs - logsumexp(log_probs, axis=1, keepdims=True), LEAST_LOG_SHARE)


def log_odds(shares: np.ndarray) -> np.ndarray:
    """(N,) of two labels' log_shares: log of the second's share over the first's."""
    return shares[:, 1] - shares[:, 0]


def shrunk_targets(truth: np.ndarray, labels: int) -> np.ndarray:
    """(N, L) rows sum to one: the truths, mixed with one further row's worth of doubt spread over all rows and labels.

    N rows without an error would ask for certainty; so drawn they ask for about 1 / N of doubt. The idea is Platt's
    1999, section 2.2, with one row in all in place of one per label.
    """
    return (len(truth) * np.eye(labels)[truth] + 1 / labels) / (len(truth) + 1)


def check_log_probs(log_probs: np.ndarray, name: str = "log_probs") -> np.ndarray:
    """The same as float64 (N, L). Refuses a row with NaN, +inf or no mass at all, and probabilities that are not logs.

    -inf for some of a row's labels is an answer: they have no mass. `name` stands in the error.
    """
    log_probs = np.asarray(log_probs, dtype=np.float64)
    if log_probs.ndim != 2 or log_probs.shape[1] < 2:
        raise ValueError(f"{name} has shape {log_probs.shape}, expected (rows, labels) with two labels or more.")
    bad = np.isnan(log_probs).any(axis=1) | ~np.isfinite(log_probs.max(axis=1))
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"Row {row} of {name} is {log_probs[row].tolist()}, expected natural logs of probabilities, none NaN, at "
            "least one above -inf. Leave such rows out: the model gave them no answer."
        )
    if len(log_probs) and log_probs.min() >= 0:
        raise ValueError(
            f"{name} are all at or above 0 (row 0: {log_probs[0].tolist()}), expected natural logs of probabilities. "
            "Give np.log of them."
        )
    return log_probs


def _finite_log_probs(log_probs: np.ndarray) -> np.ndarray:
    """(N, L) raw, not normalised; an entry is at most -LEAST_LOG_SHARE below the largest of its row."""
    log_probs = check_log_probs(log_probs)
    return np.maximum(log_probs, log_probs.max(axis=1, keepdims=True) + LEAST_LOG_SHARE)


def _log_mean(log_values: np.ndarray) -> np.ndarray:
    """(L,) log of the mean over rows of exp(log_values)."""
    from scipy.special import logsumexp

    return np.asarray(logsumexp(log_values, axis=0)) - np.log(len(log_values))


def _from_truth(method: str, shares: np.ndarray, truth: np.ndarray) -> Parameters:
    if method == "vector":
        return _vector(shares, truth)
    if method == "isotonic":
        return _isotonic(log_odds(shares), truth)
    inverse = 1 / best_temperature(shares, shrunk_targets(truth, shares.shape[1]))
    return {"weight": [inverse] * shares.shape[1], "bias": [0.0] * shares.shape[1]}


def _shift(bias: np.ndarray) -> Parameters:
    return {"weight": [1.0] * len(bias), "bias": bias.tolist()}


def _bias_towards(shares: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """(L,) bias with mean_n softmax(shares_n + bias) = prior.

    e^bias are the ratios of new to old priors in Saerens et al.; theirs are known from training and the new priors
    unknown, ours the other way round. The equation says that the gradient of mean_n logsumexp(shares_n + bias) -
    prior . bias is zero, and that is convex: it has a solution for positive shares, one up to a constant.
    """
    from scipy.optimize import minimize
    from scipy.special import logsumexp, softmax

    def objective(bias: np.ndarray) -> tuple[float, np.ndarray]:
        scores = shares + bias
        gradient = softmax(scores, axis=1).mean(axis=0) - prior
        return float(logsumexp(scores, axis=1).mean() - prior @ bias), gradient

    def curvature(bias: np.ndarray) -> np.ndarray:
        probs = softmax(shares + bias, axis=1)
        return np.diag(probs.mean(axis=0)) - probs.T @ probs / len(probs)

    start = np.log(prior) - _log_mean(shares)
    # Newton within a trust region: where rows are sure of themselves, a fixed-point iteration takes thousands of steps.
    found = minimize(objective, start, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-8})
    gap = np.abs(objective(found.x)[1]).max()
    if not gap < PRIOR_TOLERANCE:
        raise ValueError(
            f"No bias gives these {len(shares)} rows the mean shares {prior.tolist()}: {gap:.1e} is left, expected "
            f"{PRIOR_TOLERANCE:.0e}. Give shares further from 0 and 1, or more rows."
        )
    return found.x - found.x.mean()


def _vector(shares: np.ndarray, truth: np.ndarray) -> Parameters:
    """Weight and bias with the least cross entropy plus a penalty worth about one row, drawn towards 1 and 0.

    The penalty is that of a normal prior of deviation 1 for weights and SPREAD_OF_BIAS for biases: it keeps rows that
    are all right, or a label that never occurs, from asking for infinity.
    """
    from scipy.optimize import minimize
    from scipy.special import logsumexp, softmax

    rows, labels = shares.shape
    targets = np.eye(labels)[truth]
    identity = np.stack([np.ones(labels), np.zeros(labels)])
    spread = np.array([[1.0], [SPREAD_OF_BIAS]])
    # The search steps in weight times a typical share, so that a step in weight and one in bias move scores alike.
    typical = np.array([[max(1.0, float(np.sqrt((shares**2).mean())))], [1.0]])

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = flat.reshape(2, labels) / typical
        scores = weight * shares + bias
        wrong = softmax(scores, axis=1) - targets
        drawn = (np.stack([weight, bias]) - identity) / spread
        loss = (logsumexp(scores, axis=1) - (targets * scores).sum(axis=1)).mean() + (drawn**2).sum() / 2 / rows
        slope = np.stack([(wrong * shares).mean(axis=0), wrong.mean(axis=0)]) + drawn / spread / rows
        return float(loss), (slope / typical).ravel()

    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-14, "gtol": 1e-8}
    found = minimize(objective, (identity * typical).ravel(), jac=True, method="L-BFGS-B", options=options)
    weight, bias = found.x.reshape(2, labels) / typical
    return {"weight": weight.tolist(), "bias": bias.tolist()}


def _isotonic(scores: np.ndarray, truth: np.ndarray) -> Parameters:
    """The rising curve from log odds to the second label's probability, by its corners; equal scores share a value.

    Every step is drawn towards the share of all rows as if by one row more: a step at the end of the curve often holds
    few rows, all of one label, and would be certain.
    """
    from sklearn.isotonic import IsotonicRegression

    curve = IsotonicRegression(out_of_bounds="clip").fit(scores, truth)
    steps, step_of_row, rows = np.unique(curve.predict(scores), return_inverse=True, return_counts=True)
    share = (truth.sum() + 0.5) / (len(truth) + 1)
    drawn = (rows * steps + share) / (rows + 1)
    curve.fit(scores, drawn[step_of_row])  # again: a small step may have been drawn past its neighbour
    return {"log_odds": curve.X_thresholds_.tolist(), "probs": curve.y_thresholds_.tolist()}
