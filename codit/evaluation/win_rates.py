"""The win rate against a baseline with the effect of length taken out.

A table has one row for each instruction that both the model and the baseline answered:

    id                instruction, once each
    preference        for the model, in [0, 1]: 1 it wins, 0 the baseline does, .5 a tie, between
                      these a judge's probability; NaN, None or infinite: the judgement failed
    length            of the model's output, in characters
    length_baseline   of the baseline's output, in characters

Failed judgements are left out; nothing takes their place. The raw rate is the mean preference.
Values and choices without a source are ours.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

import numpy as np
import pandas as pd
from scipy import special

from codit.evaluation import intervals
from codit.evaluation.intervals import Interval

Numbers: TypeAlias = Annotated[np.ndarray[Any, Any], "float64 [n]"]
Features: TypeAlias = Annotated[np.ndarray[Any, Any], "float64 [n, terms]"]

COLUMNS = ("id", "preference", "length", "length_baseline")
VARIANT = "length_controlled_minimal"  # of the published program
INVERSE_PENALTIES = tuple(np.logspace(-4, 4, 10).tolist())  # published: the library's grid
FOLDS = 5  # published
STEPS = 200  # about ten are needed


def length_controlled(
    judgements: pd.DataFrame, *, resamples: int = intervals.RESAMPLES, seed: int = 0
) -> Interval:
    """Return the share that a model would win at equal lengths, with its 95 % interval.

    Fit P(model preferred on x) = sigma(theta + phi tanh(d_x / sd(d))), d_x the length of the
    model's output minus the baseline's, sd with n - 1, without an intercept, and set d to 0:
    LC = sigma(theta).

    This is the published variant "minimal": the difficulties of instructions and the judgements of
    two gamed baselines are files of AlpacaEval's own prompts. It differs from the published program
    so: failed judgements take no part in sd(d) and in the mean over x; the fit is exact where
    theirs stops at a tolerance of 1e-4; rows are put in the order of their ids before folds are
    made; the interval is a percentile bootstrap, theirs a standard error of the predictions, 0 when
    minimal. A resample is fitted with C as chosen, at least 1: below, every LC may be .5.

    ValueError: the table is not of this form, has fewer than five judgements, or all d are equal
    and not 0: then length cannot be told from the model.

    Source: Dubois et al. 2024 (arXiv 2404.04475) and alpaca_eval 0.6.6.
    """
    table = _judged(judgements)
    longer = table["length"] - table["length_baseline"]
    if longer.nunique() == 1 and longer.iloc[0] != 0:
        raise ValueError(
            f"expected length differences that vary; got {longer.iloc[0]:g} in every row, "
            "which cannot be told from the model. Report the raw rate alone."
        )
    c = choose_inverse_penalty(*terms(table))

    def rate(rows: pd.DataFrame, c: float) -> float:
        return float(special.expit(fit(*terms(rows), inverse_penalty=c)[0]))

    return intervals.statistic_interval(
        lambda places: rate(table.iloc[places], max(c, 1.0)),
        table["id"],
        estimate=rate(table, c),
        resamples=resamples,
        seed=seed,
    )


def terms(table: pd.DataFrame) -> tuple[Features, Numbers]:
    """Return features (1 for the model, tanh of the length difference) and preferences."""
    longer = (table["length"] - table["length_baseline"]).to_numpy(dtype="float64")
    spread = longer.std(ddof=1)
    length = np.tanh(longer / spread) if spread > 0 else np.zeros(len(table))
    preferences = table["preference"].to_numpy(dtype="float64")
    return np.stack([np.ones(len(table)), length], axis=1), preferences


def fit(features: Features, preferences: Numbers, *, inverse_penalty: float) -> Numbers:
    """Return the coefficients [terms] of a logistic regression on probabilities, in log odds.

    min_w |w|_1 + C sum_i [-p_i ln sigma(x_i w) - (1 - p_i) ln sigma(-x_i w)], convex; solved by
    Newton steps on the loss, whose penalised quadratic model is solved term by term (.5 ms;
    scikit-learn's liblinear, which the published program uses, takes 11). No intercept is added.
    """
    if not inverse_penalty > 0:
        raise ValueError(f"inverse_penalty must be above 0; got {inverse_penalty}. Usual is 1.")
    n = len(preferences)
    penalty = 1 / (inverse_penalty * n)  # the objective over C n: its scale is 1

    def objective(w: Numbers) -> float:
        odds = features @ w
        loss = (np.logaddexp(0, odds) - preferences * odds).mean()
        return float(loss + penalty * np.abs(w).sum())

    w, value = np.zeros(features.shape[1]), np.log(2)
    for _ in range(STEPS):
        p = special.expit(features @ w)
        slope = features.T @ (p - preferences) / n
        curve = (features.T * (p * (1 - p))) @ features / n
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


def choose_inverse_penalty(features: Features, preferences: Numbers) -> float:
    """Return the C, of ten, whose fits predict held-out rows best, over five folds.

    Row i is held out in fold i mod 5; of equals the smallest C wins. Source: the published program.
    """
    fold = np.arange(len(preferences)) % FOLDS
    losses = []
    for c in INVERSE_PENALTIES:
        held_out = []
        for number in range(FOLDS):
            kept, out = fold != number, fold == number
            w = fit(features[kept], preferences[kept], inverse_penalty=c)
            p = np.clip(special.expit(features[out] @ w), 1e-15, 1 - 1e-15)
            loss = special.xlogy(preferences[out], p) + special.xlogy(1 - preferences[out], 1 - p)
            held_out.append(-loss.mean())
        losses.append(float(np.mean(held_out)))
    return INVERSE_PENALTIES[int(np.argmin(losses))]


def _judged(judgements: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a preference in the order of their ids."""
    if missing := [column for column in COLUMNS if column not in judgements]:
        raise ValueError(f"expected the columns {COLUMNS}; missing {missing}. Add them.")
    rows = judgements[list(COLUMNS)].assign(preference=judgements["preference"].astype("float64"))
    if rows["id"].duplicated().any() or rows["id"].isna().any():
        raise ValueError("expected every id once; got others. Average equal ids.")
    rows = rows[np.isfinite(rows["preference"])]
    if not rows["preference"].between(0, 1).all():
        raise ValueError(
            f"preferences must lie in [0, 1]; got {rows['preference'].min():g} to "
            f"{rows['preference'].max():g}. Take 1 from AlpacaEval's, where 2 is a win."
        )
    lengths = rows[["length", "length_baseline"]].to_numpy(dtype="float64")
    if not np.isfinite(lengths).all() or (lengths < 0).any():
        raise ValueError("lengths must be numbers of characters; got others. Fill them.")
    if len(rows) < FOLDS:
        raise ValueError(f"expected at least {FOLDS} judgements; got {len(rows)}. Judge more.")
    is_number = pd.api.types.is_numeric_dtype(rows["id"])
    rows = rows.sort_values("id", key=None if is_number else lambda ids: ids.astype(str))
    return rows.reset_index(drop=True)


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
