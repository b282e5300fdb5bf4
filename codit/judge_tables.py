"""From judgements to tables and means: what has no value is counted, left out, never replaced."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from codit import intervals, win_rates
from codit.judge_rows import Answered

WIN = {"forward": {"first": 1.0, "second": 0.0}, "swapped": {"first": 0.0, "second": 1.0}}


def means(judgements: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Return the mean score of each thing judged.

    Args:
        judgements: a row for each judgement: the columns of `by`, `state` and `value`.
        by: columns that name what was judged.

    Returns:
        DataFrame: `by`, `score` (1 to 10; NaN without any value), `n_ok` and `n` (judgements),
        `state` ("ok", or that of the last judgement); in the order of first occurrence.

    Source: ours.
    """
    rows = []
    for name, group in judgements.groupby(list(by), sort=False):
        ok = group["state"] == "ok"
        values = [float(value) for value in group.loc[ok, "value"]]
        rows.append(
            {
                **dict(zip(by, name, strict=True)),
                "score": math.fsum(values) / len(values) if values else math.nan,
                "n_ok": len(values),
                "n": len(group),
                "state": "ok" if values else group["state"].iloc[-1],
            }
        )
    return pd.DataFrame(rows)


def outcomes(judgements: pd.DataFrame) -> pd.DataFrame:
    """Return who wins each pair: an arm that both orders name, else nobody.

    Args:
        judgements: a row for each judgement: `id`, `sample`, `length`, `length_baseline`, `draw`,
            `order` ("forward" or "swapped"), `state`, `value`.

    Returns:
        DataFrame: `id`, `sample`, `length` and `length_baseline` (characters of the first and of
        the second arm's response), `preference` (for the first arm: mean of 1, 1/2 and 0 over
        draws; NaN without any), `flips` (draws whose two orders disagree), `n_ok` (draws with a
        verdict in both orders), `n` (draws), `state` ("ok", or that of the last failed judgement).

    Source: disagreement as a tie: MT-Bench (arXiv 2306.05685); the rest: ours.
    """
    rows = []
    by = ["id", "sample", "length", "length_baseline"]
    for name, pair in judgements.groupby(by, sort=False):
        wins, flips, state = [], 0, "ok"
        draws = pair.groupby("draw", sort=False)
        for _, draw in draws:
            if (draw["state"] != "ok").any():
                state = draw.loc[draw["state"] != "ok", "state"].iloc[-1]
                continue
            one, other = (
                WIN[order].get(value, 0.5)
                for order, value in zip(draw["order"], draw["value"], strict=True)
            )
            flips += one != other
            wins.append(one if one == other else 0.5)
        rows.append(
            {
                **dict(zip(by, name, strict=True)),
                "preference": math.fsum(wins) / len(wins) if wins else math.nan,
                "flips": flips,
                "n_ok": len(wins),
                "n": draws.ngroups,
                "state": "ok" if wins else state,
            }
        )
    return pd.DataFrame(rows)


def comparison(table: pd.DataFrame, judgements: pd.DataFrame) -> dict[str, Any]:
    """Return the win rate of a comparison, and how much the order decided.

    Args:
        table: from `outcomes`.
        judgements: what it was made from.

    Returns:
        dict: `n`, `n_ok`, `mean` (raw win rate of the first arm), `low`, `high`; see
        `length_controlled`; `first`, `tie`,
        `second` (pairs); `flip_rate` (share of draws whose two orders disagree);
        `first_place_rate` (share of the verdicts for what stood first, ties aside: .5 without a
        bias); `failed` (share of judgements).

    Source: ours.
    """
    wins, draws = table["preference"].dropna(), table["n_ok"].sum()
    named = judgements.loc[judgements["value"].isin(["first", "second"]), "value"]
    return {
        "n": len(table),
        **mean(table["preference"], table["id"]),
        **length_controlled(table),
        "first": int((wins > 0.5).sum()),
        "tie": int((wins == 0.5).sum()),
        "second": int((wins < 0.5).sum()),
        "flip_rate": float(table["flips"].sum() / draws) if draws else math.nan,
        "first_place_rate": float((named == "first").mean()) if len(named) else math.nan,
        "failed": failed(judgements),
    }


def length_controlled(table: pd.DataFrame) -> dict[str, Any]:
    """Return the win rate that the first arm would have at equal lengths; AlpacaEval 2's.

    Args:
        table: from `outcomes`; several pairs of a prompt are averaged first.

    Returns:
        dict: `length_controlled` and its `lc_low`, `lc_high`, 95 % over prompts; `lc_note`: the
        published variant that was fitted, or why it could not be: then the three are NaN.

    Source: Dubois et al. 2024 (arXiv 2404.04475); see `win_rates.win_rates`.
    """
    columns = ["preference", "length", "length_baseline"]
    averaged = table.dropna(subset="preference").groupby("id", sort=False)[columns].mean()
    try:
        found = win_rates.win_rates(averaged.reset_index())
    except ValueError as error:
        nothing = dict.fromkeys(("length_controlled", "lc_low", "lc_high"), math.nan)
        return {**nothing, "lc_note": str(error)}
    lc = found.length_controlled
    ends = {"length_controlled": lc.estimate, "lc_low": lc.low, "lc_high": lc.high}
    return {**ends, "lc_note": win_rates.VARIANT}


def best(
    group: Sequence[Answered], scores: Mapping[tuple[str, int], float]
) -> tuple[Answered, dict[str, Any]]:
    """Return the response that scored highest; of equals, and without any score, the first.

    Args:
        group: responses to one prompt.
        scores: by id and sample; NaN where there is none.

    Returns:
        tuple: the response, and `id`, `sample`, `score`, `first_score`, `n_ok`, `is_tie`.

    Source: ours.
    """
    said = [scores.get((row.id, row.sample), math.nan) for row in group]
    known = [value for value in said if not math.isnan(value)]
    place = said.index(max(known)) if known else 0
    return group[place], {
        "id": group[place].id,
        "sample": group[place].sample,
        "score": said[place],
        "first_score": said[0],
        "n_ok": len(known),
        "is_tie": bool(known) and known.count(max(known)) > 1,
    }


def mean(values: pd.Series[float], ids: pd.Series[str]) -> dict[str, float]:
    """Return the mean over prompts of what has a value, with its 95 % interval.

    Args:
        values: one number for each response; NaN where there is none.
        ids: the prompt of each: responses to one prompt are averaged first.

    Returns:
        dict: `n_ok` (responses), `mean`, `low`, `high`, see `intervals.mean_interval`. NaN without
        a value; ends NaN with fewer than two prompts.

    Source: ours.
    """
    left = values.dropna()
    known = left.groupby(ids[left.index], sort=False).mean().to_numpy(dtype="float64")
    found = {"n_ok": len(left), "mean": math.nan, "low": math.nan, "high": math.nan}
    if len(known):
        found["mean"] = float(known.mean())
    if len(known) > 1:
        interval = intervals.mean_interval(known)
        found |= {"low": interval.low, "high": interval.high}
    return found


def failed(judgements: pd.DataFrame) -> float:
    """Return the share of judgements without a value.

    Args:
        judgements: with a column `state`, or empty.

    Returns:
        float: in [0, 1]; 0 where nothing was judged.

    Source: ours.
    """
    return float((judgements["state"] != "ok").mean()) if len(judgements) else 0.0


def failures(judgements: pd.DataFrame) -> str:
    """Say how many judgements have no value, by state, and why the first has none.

    Args:
        judgements: with the columns `state` and `note`.

    Returns:
        str: such as "2 truncated, 1 empty; the first: ...".

    Source: ours.
    """
    bad = judgements[judgements["state"] != "ok"]
    counted = ", ".join(f"{n} {state}" for state, n in Counter(bad["state"]).most_common())
    return f"{counted}; the first: {bad['note'].iloc[0]}" if len(bad) else "none"
