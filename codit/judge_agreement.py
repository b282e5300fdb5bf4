"""Whether two judges agree on the same rows.

Judgements that failed (NaN, None) are left out and counted. What is resampled is always the prompt:
several responses or draws of one prompt are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from scipy import stats

from codit import resampling
from codit.statistics import Interval

Numbers: TypeAlias = Annotated[np.ndarray[Any, Any], "float64 [n]"]
Kind: TypeAlias = Literal["scores", "preferences"]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two judges agree on the same rows.

    Args:
        spearman: rank correlation, in [-1, 1]; NaN where a judge says the same of every row.
        plain_kappa: Cohen's of equal judgements, at most 1; 0: as by chance. Means of several draws
            are seldom equal: read the other then.
        weighted_kappa: Cohen's by squared distance; of preferences: of loss, tie and win.
        kappa: the usual one: weighted for scores, plain for preferences.
        equal: share of rows with the same score or the same winner.
        n_both: rows that both judged.
        n_first: rows that only the first judged.
        n_second: rows that only the second judged.
        n_neither: rows that neither judged.
        share_both: n_both of all rows.
    """

    spearman: Interval
    plain_kappa: Interval
    weighted_kappa: Interval
    kappa: Interval
    equal: float
    n_both: int
    n_first: int
    n_second: int
    n_neither: int
    share_both: float


def agreement(
    first: pd.DataFrame,
    second: pd.DataFrame,
    *,
    kind: Kind,
    column: str | None = None,
    level: float = 0.95,
    resamples: int = resampling.RESAMPLES,
    seed: int = 0,
) -> Agreement:
    """Return how far two judges agree on the rows that both could judge.

    Args:
        first: a judge's table: `id`, `sample` where there are several responses to a prompt, and
            the judgement, NaN where it failed.
        second: the other judge's, in any order.
        kind: "scores": numbers, as 1 to 10. "preferences": in [0, 1], of which kappa sees who wins
            (above .5), loses or ties.
        column: of the judgement. Default: `score`, or `preference`.
        level: coverage of the intervals, in (0, 1).
        resamples: bootstrap samples of ids, at least 100.
        seed: of the resampling.

    Returns:
        Agreement: intervals by percentile bootstrap over ids.

    Raises:
        ValueError: a column is missing, rows repeat, preferences outside [0, 1], fewer than two
            rows that both judged, level or resamples outside their range.

    Source: Cohen 1960 and 1968, Spearman 1904; the rest: ours.
    """
    column = column or ("score" if kind == "scores" else "preference")
    keys = ["id", "sample"] if "sample" in first and "sample" in second else ["id"]
    said = [_said(table, keys, column, kind) for table in (first, second)]
    both = pd.concat(said, axis=1, keys=["first", "second"])
    knows = both.notna()
    judged = both[knows.all(axis=1)]
    if len(judged) < 2:
        raise ValueError(
            f"expected at least two rows that both judges judged; got {len(judged)} of "
            f"{len(both)}. Do the ids belong to one dataset?"
        )
    x, y = (judged[name].to_numpy(dtype="float64") for name in ("first", "second"))
    over = judged.index.get_level_values("id")
    how: dict[str, Any] = {"level": level, "resamples": resamples, "seed": seed}
    a, b = (np.sign(v - 0.5) for v in (x, y)) if kind == "preferences" else (x, y)

    def kappa(weighted: bool) -> Interval:
        return resampling.interval(
            lambda i: cohens_kappa(a[i], b[i], weighted=weighted), over, **how
        )

    plain, by_distance = kappa(False), kappa(True)
    return Agreement(
        spearman=resampling.interval(lambda i: spearman(x[i], y[i]), over, **how),
        plain_kappa=plain,
        weighted_kappa=by_distance,
        kappa=by_distance if kind == "scores" else plain,
        equal=float((a == b).mean()),
        n_both=len(judged),
        n_first=int((knows["first"] & ~knows["second"]).sum()),
        n_second=int((~knows["first"] & knows["second"]).sum()),
        n_neither=int((~knows.any(axis=1)).sum()),
        share_both=len(judged) / len(both),
    )


def spearman(x: Numbers, y: Numbers) -> float:
    """Return Spearman's rank correlation.

    rho = Pearson correlation of the ranks; equal values share the mean of their ranks.

    Args:
        x: numbers.
        y: numbers, in the same order.

    Returns:
        float: in [-1, 1]; NaN where x or y is constant.

    Source: Spearman 1904.
    """
    ranks = [stats.rankdata(values) - (len(values) + 1) / 2 for values in (x, y)]
    size = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float(np.clip(ranks[0] @ ranks[1] / size, -1, 1)) if size else float("nan")


def cohens_kappa(x: Numbers, y: Numbers, *, weighted: bool) -> float:
    """Return Cohen's kappa: agreement beyond what the two judges' own frequencies give by chance.

    kappa = 1 - observed / expected disagreement; expected over all pairs (x_i, y_j). The
    disagreement of two judgements is 1 where they differ or, weighted, (x - y)^2, so that
    kappa = 1 - mean (x_i - y_i)^2 / (var x + var y + (mean x - mean y)^2), variances with n.

    Args:
        x: one judge's categories as numbers.
        y: the other's, in the same order.
        weighted: by squared distance, for scores; half points need no rounding.

    Returns:
        float: at most 1; 0: as by chance; NaN where both always say the same one thing.

    Source: Cohen 1960; weighted: Cohen 1968.
    """
    if weighted:
        observed = ((x - y) ** 2).mean()
        expected = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    else:
        observed = (x != y).mean()
        expected = 1 - sum((x == c).mean() * (y == c).mean() for c in np.unique([*x, *y]))
    return float(1 - observed / expected) if expected > 1e-12 else float("nan")


def _said(table: pd.DataFrame, keys: list[str], column: str, kind: Kind) -> pd.Series[float]:
    """Return one judge's judgements by row; NaN where it has none."""
    _columns(table, (*keys, column))
    if table.duplicated(keys).any():
        raise ValueError(f"expected every row once by {keys}; some repeat. Average them first.")
    said = table.set_index(keys)[column].astype("float64")
    said = said.where(np.isfinite(said))
    if kind == "preferences" and not said.dropna().between(0, 1).all():
        raise ValueError("preferences must lie in [0, 1]; got others. Convert them.")
    return said


def _columns(table: pd.DataFrame, wanted: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in table]:
        raise ValueError(f"expected the columns {list(wanted)}; missing {missing}. Add them.")
