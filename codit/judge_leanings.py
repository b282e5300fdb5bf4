"""What moves a judge besides quality, as tables: order, length, and what that does to win rates.

The tables come from `codit.judge_study`; measures: `codit.judge_agreement`, `codit.win_rates`.
Source of all tables: ours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from codit import intervals, judge_agreement
from codit.judge import length_controlled, outcomes
from codit.judge_evidence import VERIFIER


def order(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return how much the order of two responses decides, by judge and by what was compared.

    Args:
        comparisons: of the study.

    Returns:
        DataFrame: judge, compared, pairs, flips (rate), reversed (named different winners), first
        (preference for what stands first: .5 without a bias), each with `_low`, `_high`.
    """
    rows = []
    for (judge, one, other), own in comparisons.groupby(["judge", "one", "other"], sort=False):
        found = judge_agreement.position_bias(own)
        measures = {
            "flips": found.flip_rate,
            "reversed": found.reversed_rate,
            "first": found.first_share,
        }
        told: dict[str, Any] = {"judge": judge, "compared": _compared(one, other), "pairs": found.n}
        for name, value in measures.items():
            told |= intervals.columns(value, name)
        rows.append(told)
    return pd.DataFrame(rows)


def wins(comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return win rates by judge, raw and length-controlled, and by the verifier.

    Args:
        comparisons: of the study. The verifier prefers what it scores higher; equal is a tie.

    Returns:
        DataFrame: who, compared, kind ("raw" or "length-controlled"), value, low, high (NaN where
        nothing can be fitted), ties (share), pairs, equal (share of pairs on which a judge and the
        verifier name the same winner, or a tie; NaN for the verifier).
    """
    rows: list[dict[str, Any]] = []
    parts = comparisons[comparisons["one"] != comparisons["other"]]
    for (one, other), pair in parts.groupby(["one", "other"], sort=False):
        truth = _truth(pair)
        told = {"compared": _compared(one, other)}
        for who, own in pair.groupby("judge", sort=False):
            rows += _rates(str(who), _outcomes(own), truth, told)
        if not truth["preference"].isna().all():
            rows += _rates(VERIFIER, truth, None, told)
    return pd.DataFrame(rows)


def length(scores: pd.DataFrame) -> pd.DataFrame:
    """Return how scores go with length within a prompt: by the verifier, by judges, by their error.

    Longer may be better; what a judge adds to the verifier's slope is its own.

    Args:
        scores: of the study; its part "arms" is used.

    Returns:
        DataFrame: who, kind ("score" or "error": score less the verifier's), value, low, high
        (points for each doubling of the length), prompts.
    """
    part = scores[scores["part"] == "arms"]
    first = part[part["judge"] == part["judge"].iloc[0]]
    has_truth = bool(part["verifier"].notna().any())
    rows = [_slope(VERIFIER, "score", first, first["verifier"])] if has_truth else []
    for who, own in part.groupby("judge", sort=False):
        rows.append(_slope(str(who), "score", own, own["score"]))
        if has_truth:
            rows.append(_slope(str(who), "error", own, own["score"] - own["verifier"]))
    return pd.DataFrame(rows)


def misses(scores: pd.DataFrame) -> pd.DataFrame:
    """Return what judges see and what they miss: their errors by what is true of a response.

    Args:
        scores: of the study, with the verifier's; its part "arms" is used.

    Returns:
        DataFrame: who, correct, obeyed (every instruction), n (responses), verifier (its mean
        score), value, low, high (a judge's mean score less the verifier's). Without rows where the
        verifier knows nothing.
    """
    part = scores[(scores["part"] == "arms") & scores["verifier"].notna()]
    rows = []
    for (who, correct, obeyed), own in part.groupby(["judge", "correct", "strict"], sort=True):
        gaps = (own["score"].astype("float64") - own["verifier"]).groupby(own["id"]).mean()
        told = {"who": who, "correct": bool(correct), "obeyed": bool(obeyed), "n": len(own)}
        found = intervals.mean_interval(gaps.dropna().to_numpy(dtype="float64"))
        rows.append({**told, "verifier": float(own["verifier"].mean()), **intervals.columns(found)})
    columns = ["who", "correct", "obeyed", "n", "verifier", "value", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def _slope(who: str, kind: str, table: pd.DataFrame, values: pd.Series[float]) -> dict[str, Any]:
    found = judge_agreement.length_bias(table.assign(score=values.astype("float64")))
    return {"who": who, "kind": kind, **intervals.columns(found.slope), "prompts": found.n_slope}


def _rates(
    who: str, table: pd.DataFrame, truth: pd.DataFrame | None, told: dict[str, Any]
) -> list[dict[str, Any]]:
    """Return both win rates of one judge, or of the verifier."""
    known = table["preference"].dropna()
    equal = np.nan
    if truth is not None:
        both = table.merge(truth, on="id", suffixes=("", "_true")).dropna()
        signs = [np.sign(both[c] - 0.5) for c in ("preference", "preference_true")]
        equal = float((signs[0] == signs[1]).mean()) if len(both) else np.nan
    common = {"ties": float((known == 0.5).mean()), "pairs": len(known), "equal": equal}
    raw = intervals.mean_interval(known.to_numpy(dtype="float64"))
    rows = [{"who": who, **told, "kind": "raw", **intervals.columns(raw), **common}]
    controlled = length_controlled(table)  # of few or lopsided pairs there may be none
    named = {"value": "length_controlled", "low": "lc_low", "high": "lc_high"}
    ends = {end: controlled[name] for end, name in named.items()}
    return [*rows, {"who": who, **told, "kind": "length-controlled", **ends, **common}]


def _outcomes(own: pd.DataFrame) -> pd.DataFrame:
    """Return who wins each pair by a judge, as `judge.outcomes` decides it."""
    names = {"length_one": "length", "length_other": "length_baseline"}
    return outcomes(own.rename(columns=names).assign(draw=0))


def _truth(pair: pd.DataFrame) -> pd.DataFrame:
    """Return who wins each pair by the verifier's scores."""
    own = pair.drop_duplicates("id")
    gap = own["verifier_one"].astype("float64") - own["verifier_other"].astype("float64")
    return pd.DataFrame(
        {
            "id": own["id"],
            "preference": (np.sign(gap) + 1) / 2,
            "length": own["length_one"],
            "length_baseline": own["length_other"],
        }
    )


def _compared(one: str, other: str) -> str:
    return f"{one} with itself" if one == other else f"{one} with {other}"
