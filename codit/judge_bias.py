"""What moves a judge besides quality: which response stands first, and how long it is.

Judgements that failed are left out and counted. What is resampled is always the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, TypeAlias

import numpy as np
import pandas as pd

from codit import resampling, statistics
from codit.statistics import Interval

Numbers: TypeAlias = Annotated[np.ndarray[Any, Any], "float64 [n]"]

FIRST = {"first": 1.0, "second": 0.0, "tie": 0.5}  # preference for what stands first


@dataclass(frozen=True, kw_only=True)
class PositionBias:
    """How much the order of two responses decides.

    Args:
        flip_rate: share of pairs whose two orders disagree, a tie against a winner included.
        reversed_rate: share of pairs whose two orders name different winners.
        first_share: mean preference for what stands first, ties half: .5 without a bias.
        n: pairs judged in both orders.
        one_order: pairs left out, judged in one order only.
        failed: pairs left out, judged in neither.
    """

    flip_rate: Interval
    reversed_rate: Interval
    first_share: Interval
    n: int
    one_order: int
    failed: int


@dataclass(frozen=True, kw_only=True)
class LengthBias:
    """How scores go with the length of responses to the same prompt.

    Args:
        spearman: mean over prompts of the rank correlation of score and length.
        slope: points of score for each doubling of the length, within prompts.
        n: prompts in `spearman`.
        n_slope: prompts in `slope`; a prompt scored alike throughout has a slope but no ranks.
        left_out: prompts without two judged responses of different length.
        failed: responses without a score.
    """

    spearman: Interval
    slope: Interval
    n: int
    n_slope: int
    left_out: int
    failed: int


def position_bias(judgements: pd.DataFrame, *, level: float = 0.95, seed: int = 0) -> PositionBias:
    """Return how much the order of two responses decides, from pairs judged in both orders.

    Args:
        judgements: a row for each judgement: `id`, `order` ("forward" or "swapped"), `value`
            ("first", "second" or "tie": what stands first or second in that order; anything else,
            as None, has failed); and `sample`, `draw` where a prompt has several pairs.
        level: coverage of the intervals, in (0, 1).
        seed: of the resampling.

    Returns:
        PositionBias: shares, means over ids of their pairs, BCa intervals over ids.

    Raises:
        ValueError: a column is missing, an order is unknown or stands there twice, fewer than two
            ids were judged in both orders, level outside its range.

    Source: both orders: MT-Bench (arXiv 2306.05685); the measures: ours.
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
    known = wide.notna().sum(axis=1)
    pairs = wide[known == 2]
    # One response wins both orders where it stands first in one and second in the other.
    total = pairs["forward"] + pairs["swapped"]
    measures = pd.DataFrame(
        {
            "flip": (total != 1).astype("float64"),
            "reversed": total.isin([0.0, 2.0]).astype("float64"),
            "first": total / 2,
        }
    )
    by_id = measures.groupby(level="id").mean()
    if len(by_id) < 2:
        raise ValueError(
            f"expected at least two ids judged in both orders; got {len(by_id)}. Judge both orders."
        )
    flip, reverse, share = (
        statistics.mean_interval(by_id[name], level=level, seed=seed) for name in measures
    )
    return PositionBias(
        flip_rate=flip,
        reversed_rate=reverse,
        first_share=share,
        n=len(pairs),
        one_order=int((known == 1).sum()),
        failed=int((known == 0).sum()),
    )


def length_bias(
    judgements: pd.DataFrame,
    *,
    level: float = 0.95,
    resamples: int = resampling.RESAMPLES,
    seed: int = 0,
) -> LengthBias:
    """Return how scores go with the length of responses, between responses to one prompt.

    Within prompts, because long answers to hard prompts say nothing of a judge. Slope: with s the
    score, l = log2 of the length and both taken minus their prompt's mean,
    slope = sum s l / sum l^2 over all responses. Neither measure says why: longer may be better.

    Args:
        judgements: a row for each response: `id` of the prompt, `score` (NaN where it failed),
            `length` (characters or tokens; below 1 counts as 1). At least two rows for a prompt.
        level: coverage of the intervals, in (0, 1).
        resamples: bootstrap samples of prompts, at least 100.
        seed: of the resampling.

    Returns:
        LengthBias: intervals by percentile bootstrap over prompts.

    Raises:
        ValueError: a column is missing, a length is no length, fewer than two prompts have two
            judged responses of different length, level or resamples outside their range.

    Source: ours.
    """
    _columns(judgements, ("id", "score", "length"))
    usable = np.isfinite(judgements["score"].astype("float64"))
    rows = judgements.loc[usable, ["id", "score", "length"]]
    if not (np.isfinite(rows["length"].astype("float64")) & (rows["length"] >= 0)).all():
        raise ValueError("length must be a number of characters or tokens; got others. Fill it.")
    groups = rows["id"]
    s = _centred(rows["score"].astype("float64"), groups)
    l2 = _centred(np.log2(rows["length"].astype("float64").clip(lower=1)), groups)
    ranks = [_centred(rows.groupby("id")[name].rank(), groups) for name in ("score", "length")]
    sums = pd.DataFrame({"sl": s * l2, "ll": l2 * l2, "rr": ranks[0] * ranks[1]})
    sums["sizes"] = ranks[0] ** 2
    sums["lengths"] = ranks[1] ** 2
    by_id = sums.groupby(groups).sum()
    sloped = by_id[by_id["ll"] > 1e-12]
    if len(sloped) < 2:
        raise ValueError(
            "expected at least two prompts with two judged responses of different length; got "
            f"{len(sloped)}. Give the responses of several arms to the same prompts."
        )
    ranked = sloped[sloped["sizes"] > 0]
    rho = (ranked["rr"] / np.sqrt(ranked["sizes"] * ranked["lengths"])).to_numpy()
    sl, ll = sloped["sl"].to_numpy(), sloped["ll"].to_numpy()
    how: dict[str, Any] = {"level": level, "resamples": resamples, "seed": seed}
    return LengthBias(
        spearman=resampling.interval(lambda i: _mean(rho[i]), ranked.index, **how),
        slope=resampling.interval(lambda i: float(sl[i].sum() / ll[i].sum()), sloped.index, **how),
        n=len(ranked),
        n_slope=len(sloped),
        left_out=judgements["id"].nunique() - len(sloped),
        failed=len(judgements) - len(rows),
    )


def _centred(values: pd.Series[float], groups: pd.Series[Any]) -> pd.Series[float]:
    return values - values.groupby(groups).transform("mean")


def _mean(values: Numbers) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _columns(table: pd.DataFrame, wanted: Sequence[str]) -> None:
    if missing := [name for name in wanted if name not in table]:
        raise ValueError(f"expected the columns {list(wanted)}; missing {missing}. Add them.")
