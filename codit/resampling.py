"""Percentile bootstrap over prompts, for statistics that are no plain mean.

`codit.statistics` has the better BCa interval for means; here the statistic may be anything, and a
prompt may have several rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, TypeAlias

import numpy as np
import pandas as pd

from codit.statistics import Interval

Places: TypeAlias = Annotated[np.ndarray[Any, Any], "int64: numbers of rows, repeats allowed"]

RESAMPLES = 1_000  # ours: each may be a fit or a ranking


def draws(ids: Sequence[Any], *, resamples: int = RESAMPLES, seed: int = 0) -> Iterator[Places]:
    """Yield the rows of each resample: as many ids as there are, drawn with replacement.

    Args:
        ids: the prompt of each row; rows of one prompt are drawn together.
        resamples: how many.
        seed: of the drawing.

    Yields:
        int64: numbers of rows; [n] where every id occurs once.

    Source: ours.
    """
    code, names = pd.factorize(np.asarray(ids))
    groups = np.split(np.argsort(code, kind="stable"), np.cumsum(np.bincount(code))[:-1])
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = rng.integers(len(names), size=len(names))
        yield drawn if len(names) == len(code) else np.concatenate([groups[k] for k in drawn])


def interval(
    statistic: Callable[[Places], float],
    ids: Sequence[Any],
    *,
    estimate: float | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Return a statistic of all rows and the quantiles of its resamples.

    low, high = quantiles (1 - level)/2 and (1 + level)/2 of the resamples where it is defined.

    Args:
        statistic: of the rows with these numbers; NaN where it is undefined.
        ids: the prompt of each row.
        estimate: the value for all rows where it is known. Default: the statistic of all.
        level: coverage, in (0, 1).
        resamples: bootstrap samples, at least 100.
        seed: of the resampling.

    Returns:
        Interval: over prompts; estimate and ends NaN where the statistic is undefined.

    Raises:
        ValueError: level or resamples outside their range.

    Source: ours; Efron 1979.
    """
    if not 0 < level < 1 or resamples < 100:
        raise ValueError(
            f"expected level in (0, 1) and resamples of at least 100; got {level} and {resamples}. "
            "Usual are .95 and 1,000."
        )
    if estimate is None:
        estimate = float(statistic(np.arange(len(ids))))
    ends = (np.nan, np.nan)
    if np.isfinite(estimate):
        found = np.asarray([statistic(p) for p in draws(ids, resamples=resamples, seed=seed)])
        found = found[np.isfinite(found)]  # a resample may be constant
        tail = (1 - level) / 2
        ends = np.quantile(found, [tail, 1 - tail]) if len(found) else ends
    low, high = (float(end) for end in ends)
    return Interval(estimate, low, high, level, len(set(ids)), "percentile")
