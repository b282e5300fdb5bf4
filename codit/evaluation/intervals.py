"""How sure a number is: 95 % bootstrap intervals over prompts, paired differences, corrected tests.

Two arms answer the same prompts, so everything that compares them is paired: `a[i]` and `b[i]`
belong to one prompt. Several samples or seeds of one prompt are not independent prompts: average
them first, or name their prompt (`statistic_interval`). Scores that do not exist (unparsable,
failed) are dropped first, from both arms, and counted by the caller; a NaN here is an error.
Values and choices without a source are ours. Seeds and prompts at once: `codit.paper.seeds`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
import pandas as pd
from scipy import stats

Scores: TypeAlias = Annotated[Sequence[float] | np.ndarray[Any, Any], "one number per prompt [n]"]
Places: TypeAlias = Annotated[np.ndarray[Any, Any], "int64: numbers of rows, repeats allowed"]
Ends: TypeAlias = Annotated[Any, "an Interval, a Difference, a row: estimate, low, high"]

LEVEL = 0.95
RESAMPLES = 1_000  # of any statistic: each may be a fit or a ranking
EXACT = 5_000  # prompts: BCa's work grows with their square, and the normal one is then as good
NORMAL = 1.959964  # standard errors to either end


@dataclass(frozen=True)
class Interval:
    """An estimate over `n` prompts and the ends of its 95 % interval.

    `method` is "BCa", "percentile", "normal", or "constant" when all values are equal.
    """

    estimate: float
    low: float
    high: float
    n: int
    method: str


def mean_interval(values: Scores, *, resamples: int = 10_000, seed: int = 0) -> Interval:
    """Return the mean over prompts with its bootstrap interval, in the unit of the scores.

    The interval comes from means of n prompts drawn with replacement: bias-corrected and
    accelerated (BCa, Efron 1987), or percentile where BCa is undefined; of more than 5,000 the
    normal one. At least two values, all numbers, and 100 resamples, or a ValueError.
    """
    x = _checked("values", values)
    _check_resamples(resamples)
    mean, n = float(x.mean()), len(x)
    if np.ptp(x) == 0:
        return Interval(mean, mean, mean, n, "constant")
    if n > EXACT:
        half = NORMAL * float(x.std(ddof=1)) / math.sqrt(n)
        return Interval(mean, mean - half, mean + half, n, "normal")
    for method in ("BCa", "percentile"):
        with warnings.catch_warnings(), np.errstate(invalid="ignore", divide="ignore"):
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            ends = stats.bootstrap(
                (x,),
                np.mean,
                method=method,
                confidence_level=LEVEL,
                n_resamples=resamples,
                batch=max(1, 4_000_000 // n),  # numbers held at once
                vectorized=True,
                rng=np.random.default_rng(seed),
            ).confidence_interval
        if np.isfinite([ends.low, ends.high]).all():
            break
    return Interval(mean, float(ends.low), float(ends.high), n, method)


def difference_interval(a: Scores, b: Scores, *, resamples: int = 10_000) -> Interval:
    """Return the mean paired difference a - b with its interval: above 0 where `a` is better.

    Whole prompts are resampled, so what makes a prompt hard for both arms cancels. Arms of
    different length are a ValueError; otherwise as `mean_interval`.
    """
    first, second = _checked("a", a), _checked("b", b)
    if len(first) != len(second):
        raise ValueError(
            f"a and b must score the same prompts; got {len(first)} and {len(second)} scores. "
            "Align them by id."
        )
    return mean_interval(first - second, resamples=resamples)


def statistic_interval(
    statistic: Callable[[Places], float],
    ids: Sequence[Any],
    *,
    estimate: float | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return any statistic of all rows and the 2.5 and 97.5 % quantiles of its resamples.

    The statistic takes numbers of rows and is NaN where it is undefined; rows with equal `ids` (of
    prompts) are drawn together. `estimate`: the value for all rows where it is known.
    """
    _check_resamples(resamples)
    if estimate is None:
        estimate = float(statistic(np.arange(len(ids))))
    ends = (np.nan, np.nan)
    if np.isfinite(estimate):
        found = np.asarray([statistic(p) for p in draws(ids, resamples=resamples, seed=seed)])
        found = found[np.isfinite(found)]  # a resample may be constant
        tail = (1 - LEVEL) / 2
        ends = np.quantile(found, [tail, 1 - tail]) if len(found) else ends
    low, high = (float(end) for end in ends)
    return Interval(estimate, low, high, len(set(ids)), "percentile")


def draws(ids: Sequence[Any], *, resamples: int, seed: int) -> Iterator[Places]:
    """Yield the rows of each resample: as many ids as there are, drawn with replacement."""
    code, names = pd.factorize(np.asarray(ids))
    groups = np.split(np.argsort(code, kind="stable"), np.cumsum(np.bincount(code))[:-1])
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = rng.integers(len(names), size=len(names))
        yield drawn if len(names) == len(code) else np.concatenate([groups[k] for k in drawn])


def holm(p_values: Scores) -> np.ndarray[Any, Any]:
    """Return p-values corrected for their number by Holm's step-down method, in the order given.

    With p_(1) <= ... <= p_(m): adjusted p_(k) = min(1, max_{j <= k} (m - j + 1) p_(j)), Holm 1979.
    """
    p = _checked("p_values", p_values, least=1)
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"p_values must lie in [0, 1]; got {p.min():g} to {p.max():g}. Give p.")
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate((len(p) - np.arange(len(p))) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def text(estimate: float, low: float, high: float, form: str = "+.3f") -> str:
    """Return an interval as one reads it: +0.120 [+0.080, +0.160]."""
    return f"{estimate:{form}} [{low:{form}}, {high:{form}}]"


def columns(found: Ends, name: str = "") -> dict[str, float]:
    """Return an interval as columns: value, low, high; or `name`, `name`_low, `name`_high."""
    names = (name, f"{name}_low", f"{name}_high") if name else ("value", "low", "high")
    return dict(zip(names, (found.estimate, found.low, found.high), strict=True))


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


def _check_resamples(resamples: int) -> None:
    if resamples < 100:
        raise ValueError(f"resamples must be at least 100; got {resamples}. Usual is 1,000.")
