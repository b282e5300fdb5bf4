"""Whether two judges agree, and what moves a judge besides quality: order and length.

Judgements that failed (NaN, None) are left out and counted. What is resampled is always the prompt:
several responses or draws of one prompt are not independent. Intervals: 95 %. Values and choices
without a source are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal, TypeAlias

import numpy as np
import pandas as pd
from scipy import stats

from codit.evaluation import intervals
from codit.evaluation.intervals import Interval

Numbers: TypeAlias = Annotated[np.ndarray[Any, Any], "float64 [n]"]
Kind: TypeAlias = Literal["scores", "preferences"]

FIRST = {"first": 1.0, "second": 0.0, "tie": 0.5}  # preference for what stands first


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far two judges agree on the same rows; all intervals are over prompts."""

    spearman: Interval  # rank correlation; NaN where a judge says the same of every row
    plain_kappa: Interval  # of equal judgements; means of several draws are seldom equal
    weighted_kappa: Interval  # by squared distance; of preferences: of loss, tie and win
    kappa: Interval  # the usual one: weighted for scores, plain for preferences
    equal: float  # share of rows with the same score or the same winner
    n_both: int  # rows that both judged
    n_first: int  # rows that only the first judged
    n_second: int
    n_neither: int


@dataclass(frozen=True, kw_only=True)
class PositionBias:
    """How much the order of two responses decides."""

    flip_rate: Interval  # share of pairs whose orders disagree, a tie against a winner included
    reversed_rate: Interval  # share of pairs whose two orders name different winners
    first_share: Interval  # mean preference for what stands first, ties half: .5 without a bias
    n: int  # pairs judged in both orders; others are left out


def agreement(
    first: pd.DataFrame, second: pd.DataFrame, *, kind: Kind, resamples: int = intervals.RESAMPLES
) -> Agreement:
    """Return how far two judges agree on the rows that both could judge.

    A table has `id`, `sample` where there are several responses to a prompt, and `score` or
    `preference`, NaN where it failed; in any order. Preferences lie in [0, 1]; of them kappa sees
    who wins (above .5), loses or ties. ValueError: a column is missing, rows repeat, preferences
    outside [0, 1], or fewer than two rows that both judged.
    """
    column = "score" if kind == "scores" else "preference"
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
    a, b = (np.sign(v - 0.5) for v in (x, y)) if kind == "preferences" else (x, y)
    ids = judged.index.get_level_values("id")
    over = partial(intervals.statistic_interval, ids=ids, resamples=resamples)
    plain = over(lambda i: cohens_kappa(a[i], b[i], weighted=False))
    by_distance = over(lambda i: cohens_kappa(a[i], b[i], weighted=True))
    return Agreement(
        spearman=over(lambda i: spearman(x[i], y[i])),
        plain_kappa=plain,
        weighted_kappa=by_distance,
        kappa=by_distance if kind == "scores" else plain,
        equal=float((a == b).mean()),
        n_both=len(judged),
        n_first=int((knows["first"] & ~knows["second"]).sum()),
        n_second=int((~knows["first"] & knows["second"]).sum()),
        n_neither=int((~knows.any(axis=1)).sum()),
    )


def spearman(x: Numbers, y: Numbers) -> float:
    """Return Spearman's rank correlation, in [-1, 1]; NaN where x or y is constant."""
    ranks = [stats.rankdata(values) - (len(values) + 1) / 2 for values in (x, y)]
    size = float(np.sqrt((ranks[0] ** 2).sum() * (ranks[1] ** 2).sum()))
    return float(np.clip(ranks[0] @ ranks[1] / size, -1, 1)) if size else float("nan")


def cohens_kappa(x: Numbers, y: Numbers, *, weighted: bool) -> float:
    """Return Cohen's kappa: agreement beyond what the two judges' own frequencies give by chance.

    kappa = 1 - observed / expected disagreement; expected over all pairs (x_i, y_j). The
    disagreement of two judgements is 1 where they differ or, weighted, (x - y)^2. At most 1; 0: as
    by chance; NaN where both always say the same one thing. Source: Cohen 1960, 1968.
    """
    if weighted:
        observed = ((x - y) ** 2).mean()
        expected = x.var() + y.var() + (x.mean() - y.mean()) ** 2
    else:
        observed = (x != y).mean()
        expected = 1 - sum((x == c).mean() * (y == c).mean() for c in np.unique([*x, *y]))
    return float(1 - observed / expected) if expected > 1e-12 else float("nan")


def position_bias(judgements: pd.DataFrame) -> PositionBias:
    """Return how much the order of two responses decides, from pairs judged in both orders.

    A judgement has `id`, `order` ("forward" or "swapped"), `value` ("first", "second" or "tie":
    what stands first or second in that order; anything else, as None, has failed), and `sample`,
    `draw` where a prompt has several pairs. ValueError: a column is missing, an order is unknown or
    stands there twice, or fewer than two ids were judged in both orders.

    Source: both orders: MT-Bench (arXiv 2306.05685).
    """
    _columns(judgements, ("id", "order", "value"))
    keys = ["id", *(name for name in ("sample", "draw") if name in judgements)]
    if unknown := set(judgements["order"]) - {"forward", "swapped"}:
        raise ValueError(f"order must be forward or swapped; got {sorted(map(str, unknown))}.")
    if judgements.duplicated([*keys, "order"]).any():
        raise ValueError(f"expected each order once for {keys}; some repeat. Number the draws.")
    wide = judgements.assign(value=judgements["value"].map(FIRST).astype("float64"))
    wide = wide.set_index([*keys, "order"])["value"].unstack("order")
    wide = wide.reindex(columns=["forward", "swapped"])
    pairs = wide.dropna()
    # One response wins both orders where it stands first in one and second in the other.
    total = pairs["forward"] + pairs["swapped"]
    flips, is_reversed = total != 1, total.isin([0.0, 2.0])
    measures = {"flip_rate": flips, "reversed_rate": is_reversed, "first_share": total / 2}
    by_id = pd.DataFrame(measures, dtype="float64").groupby(level="id").mean()
    if len(by_id) < 2:
        raise ValueError(
            f"expected at least two ids judged in both orders; got {len(by_id)}. Judge both orders."
        )
    found: dict[str, Any] = {name: intervals.mean_interval(by_id[name]) for name in measures}
    return PositionBias(**found, n=len(pairs))


def length_bias(judgements: pd.DataFrame, *, resamples: int = intervals.RESAMPLES) -> Interval:
    """Return the points of score for each doubling of the length, between responses to one prompt.

    Within prompts, because long answers to hard prompts say nothing of a judge. With s the score
    and l = log2 of the length (below 1: 1), both minus their prompt's mean, slope = sum s l / sum
    l^2 over all responses of the prompts with two judged responses of different length. It does not
    say why: longer may be better. A response has `id` (of the prompt), `score` (NaN where it
    failed), `length` (characters or tokens). ValueError: no such table, or fewer than two such
    prompts.
    """
    _columns(judgements, ("id", "score", "length"))
    usable = np.isfinite(judgements["score"].astype("float64"))
    rows = judgements.loc[usable, ["id", "score", "length"]]
    if not (np.isfinite(rows["length"].astype("float64")) & (rows["length"] >= 0)).all():
        raise ValueError("length must be a number of characters or tokens; got others. Fill it.")
    groups = rows["id"]
    s = _centred(rows["score"].astype("float64"), groups)
    l2 = _centred(np.log2(rows["length"].astype("float64").clip(lower=1)), groups)
    by_id = pd.DataFrame({"sl": s * l2, "ll": l2 * l2}).groupby(groups).sum()
    sloped = by_id[by_id["ll"] > 1e-12]
    if len(sloped) < 2:
        raise ValueError(
            "expected at least two prompts with two judged responses of different length; got "
            f"{len(sloped)}. Give the responses of several arms to the same prompts."
        )
    sl, ll = sloped["sl"].to_numpy(), sloped["ll"].to_numpy()
    return intervals.statistic_interval(
        lambda i: float(sl[i].sum() / ll[i].sum()), sloped.index, resamples=resamples
    )


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


def _centred(values: pd.Series[float], groups: pd.Series[Any]) -> pd.Series[float]:
    return values - values.groupby(groups).transform("mean")
