"""Differences of arms over seeds and prompts at once: what another training would have given.

Two arms are compared on N prompts in S repetitions; a repetition (seed) moves the noise of the
dataset and of the training alike. Seeds and prompts are both samples of what could have been, so an
interval over prompts alone is too narrow: it tells of these students, not of the method.

Notation: d[s, p] = a[s, p] - b[s, p] = mean + seed_s + prompt_p + rest_sp, all effects random.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
from scipy import optimize, stats

from codit.evaluation.intervals import LEVEL

POWER = 0.8  # with which a difference should be found
FEWEST = 3  # seeds that can tell how much seeds vary: with two, one degree of freedom would decide
Differences: TypeAlias = Annotated[np.ndarray[Any, Any], "a - b, seeds by prompts [S, N]"]


@dataclass(frozen=True)
class Components:
    """Variances of the three effects, in squared units of the score; never below 0.

    One seed cannot tell what varies between seeds: `seed` is then NaN, and `prompt` holds the rest.
    """

    seed: float
    prompt: float
    rest: float

    def variance(self, seeds: int, prompts: int) -> float:
        """Return the variance of the mean difference over so many seeds and prompts."""
        return self.seed / seeds + self.prompt / prompts + self.rest / (seeds * prompts)


@dataclass(frozen=True)
class Difference:
    """A mean difference a - b, its 95 % interval and two-sided p-value.

    `seeds` is their number; with fewer than three the interval is over prompts alone.
    """

    estimate: float
    low: float
    high: float
    p: float
    seeds: int
    prompts: int


def components(differences: Differences) -> Components:
    """Return the variance components of a table of differences, of two prompts or more.

    Mean squares of a two-way layout without repetition: E[MS_seed] = rest + N seed,
    E[MS_prompt] = rest + S prompt, E[MS_rest] = rest; a component that comes out below 0 is 0.
    Source: Searle, Casella, McCulloch 1992, the crossed random model.
    """
    d = _checked(differences)
    if len(d) == 1:
        return Components(seed=math.nan, prompt=float(d.var(ddof=1)), rest=0.0)
    by_seed, by_prompt, rest = _mean_squares(d)
    return Components(
        seed=max(0.0, (by_seed - rest) / d.shape[1]),
        prompt=max(0.0, (by_prompt - rest) / d.shape[0]),
        rest=rest,
    )


def difference(differences: Differences) -> Difference:
    """Return the mean difference, its t-interval over seeds and prompts, and its p-value.

    variance of the mean = (MS_seed + MS_prompt - MS_rest) / (S N), each of the first two at least
    MS_rest; degrees of freedom by Satterthwaite (1946), those of the other factor where a component
    is 0. With fewer than three seeds, of which prompts' means are taken: mean +- t sd / sqrt(N).
    """
    d = _checked(differences)
    mean, (s, n) = float(d.mean()), d.shape
    variance, freedom = _of_mean(d)
    if variance == 0:
        return Difference(mean, mean, mean, float(mean == 0), s, n)
    error = math.sqrt(variance)
    reach = float(stats.t.ppf(0.5 + LEVEL / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(mean) / error, freedom))
    return Difference(mean, mean - reach, mean + reach, p, s, n)


def standard_error(differences: Differences) -> float:
    """Return the standard error of the mean of `difference`."""
    return math.sqrt(_of_mean(_checked(differences))[0])


def sampled(seeds: Sequence[int]) -> str:
    """Return what the intervals of `difference` are over, as figures say it."""
    return "over prompts and seeds" if len(seeds) >= FEWEST else "over prompts"


def power(effect: float, spread: Components, *, seeds: int, prompts: int) -> float:
    """Return the chance that `difference` finds a true `effect`: its interval leaves 0 out.

    `spread` are the components of a pilot. .05 where the effect is 0; NaN where the spread of seeds
    is not known. Source: noncentral t with the degrees of freedom of `difference`.
    """
    if seeds < 2 or prompts < 2:
        raise ValueError(f"expected two seeds and prompts or more; got {seeds}, {prompts}.")
    if math.isnan(spread.seed):
        return math.nan
    expected = (
        spread.rest + prompts * spread.seed,
        spread.rest + seeds * spread.prompt,
        spread.rest,
    )
    variance, freedom = _variance(*expected, seeds, prompts)
    if variance == 0:
        return float(effect != 0) or 1 - LEVEL
    return chance(effect / math.sqrt(variance), freedom)


def chance(away: float, freedom: float) -> float:
    """Return the chance that a two-sided t-test at 5 % finds what is `away` standard errors from 0.

    P(|T| > c), T noncentral t; T^2 is noncentral F with 1 and `freedom`. Source: Cohen 1988.
    """
    critical = stats.t.ppf(1 - (1 - LEVEL) / 2, freedom)
    # Computed as F: scipy's noncentral t is NaN in its far tail, its F wrong without noncentrality.
    if abs(away) < 1e-6:
        return 1 - LEVEL
    if abs(away) > 30 + critical:
        return 1.0
    return min(1.0, float(stats.ncf.sf(critical**2, 1, freedom, away**2)))


def detectable(spread: Components, *, seeds: int, prompts: int) -> float:
    """Return the least true difference, in the unit of the score, found with probability .8.

    Arguments as in `power`; NaN where the spread of seeds is not known.
    """

    def short(effect: float) -> float:
        return power(effect, spread, seeds=seeds, prompts=prompts) - POWER

    if math.isnan(short(0.0)):
        return math.nan
    high = math.sqrt(spread.variance(seeds, prompts)) or 1e-12
    while short(high) < 0:
        high *= 2
    return float(optimize.brentq(short, 0.0, high))


def table(values: Any, value: str, one: str, other: str, *, by: str = "role") -> Differences:
    """Return the differences of two arms, `one` less `other`, as seeds by prompts.

    `values` has columns id, seed, `by` (which names the arm) and `value`; several rows of a prompt
    and seed, of several students say, are averaged first. ValueError: an arm that is not there, or
    did not answer a prompt in a seed that the other answered.
    """
    kept = values[values[by].isin([one, other])]
    wide = kept.assign(**{value: kept[value].astype(float)}).pivot_table(
        index="seed", columns=[by, "id"], values=value
    )
    if missing := {one, other} - set(kept[by]):
        raise ValueError(
            f"expected the arms {one!r} and {other!r}; got no rows of {sorted(missing)}. "
            f"There are {sorted(set(values[by]))}."
        )
    first, second = wide[one], wide[other]
    if not first.columns.equals(second.columns) or wide.isna().to_numpy().any():
        raise ValueError(
            f"expected {one!r} and {other!r} to answer the same prompts in the same seeds; they do "
            "not. Drop what one of them lacks, and report how much."
        )
    return (first - second).to_numpy()


def _checked(differences: Differences) -> np.ndarray[Any, Any]:
    d = np.asarray(differences, dtype=np.float64)
    if d.ndim != 2 or d.shape[0] < 1 or d.shape[1] < 2:
        raise ValueError(
            f"expected differences [seeds, prompts] of at least 1 and 2; got shape {d.shape}."
            " Give one row per seed."
        )
    if not np.isfinite(d).all():
        raise ValueError("expected numbers; got NaN or infinite ones. Drop their prompts first.")
    return d


def _of_mean(d: np.ndarray[Any, Any]) -> tuple[float, float]:
    """Return the variance of the mean over prompts and, of enough seeds, seeds; and its freedom."""
    s, n = d.shape
    if s < FEWEST:
        return float(d.mean(0).var(ddof=1)) / n, float(n - 1)
    return _variance(*_mean_squares(d), s, n)


def _mean_squares(d: np.ndarray[Any, Any]) -> tuple[float, float, float]:
    s, n = d.shape
    mean, seed, prompt = d.mean(), d.mean(1, keepdims=True), d.mean(0, keepdims=True)
    by_seed = n * float(((seed - mean) ** 2).sum()) / (s - 1)
    by_prompt = s * float(((prompt - mean) ** 2).sum()) / (n - 1)
    rest = float(((d - seed - prompt + mean) ** 2).sum()) / ((s - 1) * (n - 1))
    return by_seed, by_prompt, rest


def _variance(by_seed: float, by_prompt: float, rest: float, s: int, n: int) -> tuple[float, float]:
    """Return the variance of the mean and its degrees of freedom.

    A component that comes out below 0 is 0: its factor is averaged over, and the other decides.
    """
    if by_seed <= rest:
        return max(by_prompt, rest) / (s * n), n - 1
    if by_prompt <= rest:
        return by_seed / (s * n), s - 1
    total = by_seed + by_prompt - rest
    parts = by_seed**2 / (s - 1) + by_prompt**2 / (n - 1) + rest**2 / ((s - 1) * (n - 1))
    return total / (s * n), total**2 / parts
