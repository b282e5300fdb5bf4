"""What a grid of plausibilities says: the best value, how far it beats the others, gains at each.

Tables come from `results.study(studies.alpha(...))`; nothing is trained or drawn here.
Source of all tables: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from codit import crossed, evidence

LEVEL = 0.05  # below it a corrected p-value counts as a finding


def best(bars: pd.DataFrame, *, by: Sequence[str] = ("teacher", "role")) -> pd.DataFrame:
    """Return the row of the highest value per group; of equal values the first.

    Args:
        bars: as from `evidence.bar_table`, with columns `by`.
        by: one row for each of these.

    Returns:
        DataFrame: those rows.
    """
    return bars.loc[bars.groupby(list(by), sort=False)["value"].idxmax()]


def rivals(table: pd.DataFrame, role: str, *, measure: str = "strict") -> pd.DataFrame:
    """Return the best plausibility of a role beside every other one of its curve.

    Args:
        table: columns id, seed, arm, role, plausibility, `measure`, of one teacher and split.
        role: "codit" or "truncated".
        measure: what is maximised.

    Returns:
        DataFrame: role, best, plausibility (the other), lead (best - other) with its interval as
        text, and tied: the interval holds 0.

    Raises:
        ValueError: fewer than two plausibilities of the role.
    """
    own = table[table["role"] == role]
    means = own.groupby(["plausibility", "arm"])[measure].mean()
    if len(means) < 2:
        raise ValueError(
            f"expected two plausibilities of {role!r} or more; got {len(means)}. Try several."
        )
    top, winner = means.idxmax()
    rows = []
    for value, other in means.index:
        if other != winner:
            found = crossed.difference(crossed.table(own, measure, winner, other, by="arm"))
            text, tied = evidence.difference_text(found), evidence.decided(found) is None
            rows.append({"role": role, "best": top, "plausibility": value, "lead": text})
            rows[-1]["tied"] = tied
    return pd.DataFrame(rows)


def gains(table: pd.DataFrame, *, measure: str = "strict", seeds: bool = True) -> pd.DataFrame:
    """Return CoDIT's gain at every plausibility and student, over direct and over truncation.

    Args:
        table: columns id, seed, student, arm, role, plausibility, `measure`, of one teacher and
            split; truncation at CoDIT's plausibilities.
        measure: what is compared.
        seeds: see `evidence.bar_table`.

    Returns:
        DataFrame: student, plausibility, against ("direct" or "truncated", the latter at the same
        plausibility), estimate, low, high, p, p_holm (corrected for all rows), text.

    Raises:
        ValueError: an arm is missing; see `crossed.table`.
    """
    found: dict[int, crossed.Difference] = {}
    rows: list[dict[str, Any]] = []
    for student, own in table.groupby("student", sort=False):
        roles = own.drop_duplicates("arm").set_index("role")
        for arm, value in roles.loc[["codit"], ["arm", "plausibility"]].itertuples(index=False):
            same = own[(own["role"] == "truncated") & (own["plausibility"] == value)]["arm"]
            for against, other in (("direct", roles.loc["direct", "arm"]), ("truncated", same)):
                name = other if isinstance(other, str) else str(other.iloc[0])
                wide = crossed.table(own, measure, arm, name, by="arm")
                one = crossed.difference(wide if seeds else wide.mean(0, keepdims=True))
                found[len(rows)] = one
                rows.append({"student": student, "plausibility": value, "against": against})
                rows[-1] |= {"estimate": one.estimate, "low": one.low, "high": one.high}
                rows[-1] |= {"p": one.p, "text": evidence.difference_text(one)}
    corrected = crossed.holm(found)
    return pd.DataFrame(rows).assign(p_holm=[corrected[place] for place in found])


def gains_text(gained: pd.DataFrame) -> str:
    """Return in words how many of several gains are found, and the least of them.

    Args:
        gained: rows of `gains`.

    Returns:
        str: "15 of 18 gains (corrected p < .05), 0 losses; least +0.012 [-0.004, +0.028]".
    """
    sure = gained[gained["p_holm"] < LEVEL]
    up, down = int((sure["estimate"] > 0).sum()), int((sure["estimate"] < 0).sum())
    least = gained.loc[gained["estimate"].idxmin(), "text"]
    return (
        f"{up} of {len(gained)} gains (corrected p < {LEVEL:g}), {down} losses; least {least}"
    ).replace("0.05", ".05")


def all_gain(gained: pd.DataFrame) -> bool | None:
    """Tell whether every one of several gains is found.

    Args:
        gained: rows of `gains`.

    Returns:
        bool | None: True where all are above 0 with corrected p below .05, False where one is
        below 0 so surely, else None.
    """
    sure = gained["p_holm"] < LEVEL
    if bool((sure & (gained["estimate"] < 0)).any()):
        return False
    return True if bool(sure.all()) else None
