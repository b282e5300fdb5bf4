"""Logistic regression on probabilities with an L1 penalty: the model behind length control."""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import numpy as np
from scipy import special

Numbers: TypeAlias = Annotated[np.ndarray[Any, Any], "float64 [n]"]
Features: TypeAlias = Annotated[np.ndarray[Any, Any], "float64 [n, terms]"]

INVERSE_PENALTIES = tuple(np.logspace(-4, 4, 10).tolist())  # published: the library's grid
FOLDS = 5  # published
STEPS = 200  # ours: about ten are needed


def fit(
    features: Features, preferences: Numbers, weights: Numbers, *, inverse_penalty: float
) -> Numbers:
    """Return the coefficients of a logistic regression on probabilities with an L1 penalty.

    min_w |w|_1 + C sum_i s_i [-p_i ln sigma(x_i w) - (1 - p_i) ln sigma(-x_i w)], convex; solved by
    Newton steps on the loss, whose penalised quadratic model is solved term by term.

    Args:
        features: x, one row for each judgement; no intercept is added.
        preferences: p in [0, 1].
        weights: s, not negative, not all 0.
        inverse_penalty: C, above 0; towards 0 all w vanish, large C does not penalise.

    Returns:
        float64 [terms]: w, in log odds.

    Raises:
        ValueError: inverse_penalty is not above 0, or no solution was found.

    Source: the published program, through scikit-learn's liblinear; the solver: ours.
    """
    if not inverse_penalty > 0:
        raise ValueError(f"inverse_penalty must be above 0; got {inverse_penalty}. Usual is 1.")
    share = weights / weights.sum()
    penalty = 1 / (inverse_penalty * weights.sum())  # the objective over C sum(s): its scale is 1

    def objective(w: Numbers) -> float:
        odds = features @ w
        loss = share @ (np.logaddexp(0, odds) - preferences * odds)
        return float(loss + penalty * np.abs(w).sum())

    w, value = np.zeros(features.shape[1]), np.log(2)
    for _ in range(STEPS):
        p = special.expit(features @ w)
        slope = features.T @ (share * (p - preferences))
        curve = (features.T * (share * p * (1 - p))) @ features
        step = _quadratic(slope, curve, w, penalty) - w
        # What the model promises. Where it is next to nothing the last step squares the error.
        promised = slope @ step + penalty * (np.abs(w + step).sum() - np.abs(w).sum())
        if promised > -1e-14:
            return np.asarray(w + step)
        length = 1.0
        while (new := objective(w + length * step)) > value + 1e-4 * length * promised:
            length /= 2
            if length < 1e-12:  # nothing is left to gain that a float can show
                return w
        w, value = w + length * step, new
    raise ValueError(
        f"expected a fit within {STEPS} steps; got none. Give finite features, more rows."
    )


def choose_inverse_penalty(features: Features, preferences: Numbers, weights: Numbers) -> float:
    """Return the C whose fits predict held-out rows best, over five folds.

    Row i is held out in fold i mod 5. The score is the mean over folds of the held-out rows'
    weighted log loss; of equals the smallest C wins.

    Args:
        features: x, one row for each judgement, at least five.
        preferences: p in [0, 1].
        weights: s, not negative.

    Returns:
        float: one of ten values from 1e-4 to 1e4.

    Source: the published program.
    """
    fold = np.arange(len(preferences)) % FOLDS
    losses = []
    for c in INVERSE_PENALTIES:
        held_out = []
        for number in range(FOLDS):
            kept, out = fold != number, fold == number
            w = fit(features[kept], preferences[kept], weights[kept], inverse_penalty=c)
            p = np.clip(special.expit(features[out] @ w), 1e-15, 1 - 1e-15)
            loss = special.xlogy(preferences[out], p) + special.xlogy(1 - preferences[out], 1 - p)
            held_out.append(-(weights[out] * loss).mean())
        losses.append(float(np.mean(held_out)))
    return INVERSE_PENALTIES[int(np.argmin(losses))]


def _quadratic(slope: Numbers, curve: Numbers, w: Numbers, penalty: float) -> Numbers:
    """Return argmin_v slope (v - w) + (v - w) curve (v - w) / 2 + penalty |v|_1."""
    v = w.copy()
    size = np.diag(curve) + 1e-12  # a feature that is 0 everywhere has no curve
    for _ in range(1_000):
        before = v.copy()
        for j in range(len(v)):
            pull = size[j] * v[j] - slope[j] - curve[j] @ (v - w)
            v[j] = np.sign(pull) * max(abs(pull) - penalty, 0.0) / size[j]
        if np.abs(v - before).max() <= 1e-12 * (1 + np.abs(v).max()):
            break
    return v
