"""The panels of notebook 08: arms by who scores, Best-of-N, cut replies, order and length.

Tables come from `codit.judge_evidence` and `judge_leanings`. A table without rows, where nothing
was asked or the verifier knows nothing, leaves its panel empty and says so. Source: ours.
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.axes import Axes

from codit import plots

INTERVAL = "95 % over prompts"
INTERVAL_BOTH = "95 %, left over prompts and seeds, right over prompts"


def draw_arms(axes: Axes, gaps: pd.DataFrame) -> None:
    """Draw what each judge and the verifier say of one arm less another.

    Args:
        axes: where to draw.
        gaps: of `judge_evidence.differences` with a column `set`, one pair of arms.
    """
    named = gaps.assign(arm=gaps["who"] + ", " + gaps["set"])
    plots.forest(axes, named, interval=INTERVAL, zero=True)


def draw_best_of(axes: Axes, best: pd.DataFrame) -> None:
    """Draw how good the kept response is over N, a curve for each who chooses.

    Args:
        axes: where to draw.
        best: of `judge_evidence.best_of`, one set.
    """
    axes.set(xlabel="N", ylabel="verifier's score of the kept")
    if _is_empty(axes, best):
        return
    for (who, role), own in best.groupby(["who", "role"], sort=False):
        plots.line(axes, own, x="n", role=role, label=f"by {who}")
    axes.set_xticks(sorted(set(best["n"])))
    axes.legend(fontsize="small")


def draw_failures(axes: Axes, errors: pd.DataFrame) -> None:
    """Draw how wrong a mean is over the share of cut replies, a curve for each treatment.

    Args:
        axes: where to draw.
        errors: of `judge_evidence.failure_errors`, one judge.
    """
    axes.set(xlabel="share of replies that were cut", ylabel="error of the mean score (points)")
    axes.axhline(0, color="black", linewidth=0.8)
    if _is_empty(axes, errors):
        return
    treatments = errors.groupby("treatment", sort=False)
    for (name, own), style in zip(treatments, plots.STYLES, strict=False):
        plots.line(axes, own, x="failed", role=None, label=str(name), style=style)
    axes.legend(fontsize="small", title="failures are")


def draw_order(axes: Axes, order: pd.DataFrame, roles: Mapping[str, str]) -> None:
    """Draw the preference for what stands first, a row for each judge and comparison.

    Args:
        axes: where to draw.
        order: of `judge_leanings.order` with a column `set`.
        roles: a judge's colour.
    """
    table = order.rename(columns={"first": "value", "first_low": "low", "first_high": "high"})
    table["arm"] = table["judge"] + ": " + table["compared"] + ", " + table["set"]
    axes.axvline(0.5, color="black", linewidth=0.8)
    plots.forest(axes, table.assign(role=table["judge"].map(roles)), interval=INTERVAL)


def draw_length(axes: Axes, length: pd.DataFrame, roles: Mapping[str, str]) -> None:
    """Draw how scores go with length, a row for each who scores.

    Args:
        axes: where to draw.
        length: of `judge_leanings.length` with a column `set`.
        roles: a judge's, and the verifier's, colour.
    """
    table = length.assign(role=length["who"].map(roles))
    table["arm"] = table["who"] + ": " + table["kind"] + ", " + table["set"]
    plots.forest(axes, table, interval=None, zero=True)


def draw_students(axes: Axes, table: pd.DataFrame, *, zero: bool = True) -> None:
    """Draw what each who scores says of students, a row for each arm.

    Args:
        axes: where to draw.
        table: of `judge_students.score_gains`, or of one kind of `wins` with a column `role`.
        zero: draw a line at 0, and name the intervals; False: a line at .5, of win rates.
    """
    table = table.dropna(subset=["value"])
    if _is_empty(axes, table):
        return
    named = table.assign(arm=table["who"] + ": " + table["arm"])
    plots.forest(axes, named, interval=INTERVAL_BOTH if zero else None, zero=zero)
    if not zero:
        axes.axvline(0.5, color="black", linewidth=0.8)


def _is_empty(axes: Axes, table: pd.DataFrame) -> bool:
    if len(table) == 0:
        axes.text(0.5, 0.5, "not asked at this scale", ha="center", transform=axes.transAxes)
    return len(table) == 0
