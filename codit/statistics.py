"""How sure a number is: intervals over prompts, of means and of paired differences.

Two arms answer the same prompts, so everything that compares them is paired: `a[i]` and `b[i]`
belong to one prompt. Several samples or seeds of one prompt are not independent prompts: average
them first. Scores that do not exist (unparsable, failed) are dropped first, from both arms, and
counted by the caller; a NaN here is an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
from scipy import stats

Scores: TypeAlias = Annotated[Sequence[float] | np.ndarray[Any, Any], "one number per prompt [n]"]


@dataclass(frozen=True)
class Interval:
    """An estimate over `n` prompts and the ends of its interval of coverage `level`.

    `method` is "BCa", "percentile", or "constant" when all values are equal.
    """

    estimate: float
    low: float
    high: float
    level: float
    n: int
    method: str


def mean_interval(
    values: Scores, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the mean over prompts with its bootstrap interval.

    mean = (1/n) sum_i x_i; the interval comes from means of n prompts drawn with replacement:
    bias-corrected and accelerated (BCa), or percentile where BCa is undefined.

    Args:
        values: one score per prompt, at least two.
        level: coverage, in (0, 1).
        resamples: bootstrap samples; more make the ends steadier, not the interval narrower.
        seed: of the resampling.

    Returns:
        Interval: in the unit of the scores.

    Raises:
        ValueError: fewer than two values, a value that is no number, level or resamples outside
            their range.

    Source: ours; BCa as in Efron 1987.
    """
    return _bootstrap(_checked("values", values), level=level, resamples=resamples, seed=seed)


def difference_interval(
    a: Scores, b: Scores, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Return the mean paired difference a - b with its bootstrap interval.

    mean difference = (1/n) sum_i (a_i - b_i). Whole prompts are resampled, so what makes a prompt
    hard for both arms cancels.

    Args:
        a: one score per prompt, at least two.
        b: the other arm's, in the same order.
        level: coverage, in (0, 1).
        resamples: bootstrap samples.
        seed: of the resampling.

    Returns:
        Interval: above 0 where `a` is better; in the unit of the scores.

    Raises:
        ValueError: as `mean_interval`, or arms of different length.

    Source: ours; BCa as in Efron 1987.
    """
    return _bootstrap(_differences(a, b), level=level, resamples=resamples, seed=seed)


def holm(p_values: Scores) -> np.ndarray[Any, Any]:
    """Return p-values corrected for their number by Holm's step-down method.

    With p_(1) <= ... <= p_(m): adjusted p_(k) = min(1, max_{j <= k} (m - j + 1) p_(j)). Rejecting
    adjusted values below a level keeps the chance of any false rejection below it, whatever the
    dependence between the tests.

    Args:
        p_values: in [0, 1], of all tests of one question.

    Returns:
        float64 [m]: in the order given; never below the p-value itself.

    Raises:
        ValueError: none, or one outside [0, 1].

    Source: Holm 1979.
    """
    p = _checked("p_values", p_values, least=1)
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"p_values must lie in [0, 1]; got {p.min():g} to {p.max():g}. Give p.")
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def _bootstrap(
    values: np.ndarray[Any, Any], *, level: float, resamples: int, seed: int
) -> Interval:
    """Return the mean with its BCa interval, percentile where BCa is undefined."""
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1; got {level}. Usual is .95.")
    _check_resamples(resamples)
    mean = float(values.mean())
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean, level, len(values), "constant")
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            ends = stats.bootstrap(
                (values,),
                _mean,
                method=method,
                confidence_level=level,
                n_resamples=resamples,
                batch=_batch(values),
                vectorized=True,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite([ends.low, ends.high]).all():
            break
    return Interval(mean, float(ends.low), float(ends.high), level, len(values), method)


def _mean(values: np.ndarray[Any, Any], axis: int = -1) -> np.ndarray[Any, Any]:
    """Return the mean along an axis, as scipy's resampling calls it."""
    return np.asarray(values.mean(axis=axis))


def _batch(values: np.ndarray[Any, Any]) -> int:
    """Return how many resamples are held at once: about 4 million numbers."""
    return max(1, 4_000_000 // len(values))


def _checked(name: str, values: Scores, *, least: int = 2) -> np.ndarray[Any, Any]:
    """Return values as float64 [n], or raise ValueError."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < least:
        raise ValueError(
            f"{name} must be a list of at least {least} numbers; got shape {array.shape}. Give one "
            "number per prompt."
        )
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise ValueError(
            f"{name} must be numbers; got {bad} of {len(array)} that are NaN or infinite. Drop "
            "these prompts from every arm and report how many."
        )
    return array


def _differences(a: Scores, b: Scores) -> np.ndarray[Any, Any]:
    """Return a - b per prompt, or raise ValueError."""
    first, second = _checked("a", a), _checked("b", b)
    if len(first) != len(second):
        raise ValueError(
            f"a and b must score the same prompts; got {len(first)} and {len(second)} scores. "
            "Align them by id."
        )
    return first - second


def _check_resamples(resamples: int) -> None:
    if resamples < 100:
        raise ValueError(f"resamples must be at least 100; got {resamples}. Usual is 10,000.")
