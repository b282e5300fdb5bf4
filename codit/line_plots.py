"""Curves with the band of their interval, for figures that show how one number moves another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from codit.figures import COLOURS, LABELS

STYLES = ("-o", "--s", ":^", "-.D")
YARDSTICK = "#333333"  # a curve that belongs to no role: what the others are measured against


def line(
    axes: Axes,
    table: pd.DataFrame,
    *,
    x: str,
    role: str | None,
    label: str | None = None,
    style: str = "-o",
) -> None:
    """Draw one curve and the band between the ends of its interval.

    Args:
        axes: where to draw.
        table: columns `x`, value, low, high (ends of the interval, in the value's unit); drawn in
            the order of x.
        x: column of the horizontal axis, numbers.
        role: a key of `figures.COLOURS`. None: a yardstick, dark grey.
        label: what the legend says. None: the role's own name.
        style: line and marker, as matplotlib writes them.

    Raises:
        ValueError: a role without colour, or an interval that does not hold its value.

    Source: ours.
    """
    if role is not None and role not in COLOURS:
        raise ValueError(
            f"expected a role with a colour, {', '.join(COLOURS)}; got {role!r}. Name one, or "
            "role=None for a yardstick."
        )
    outside = table[~table["value"].between(table["low"], table["high"])]
    if len(outside):
        raise ValueError(
            f"expected low <= value <= high; got {outside.iloc[0].to_dict()}. `low` and `high` "
            "are the interval's ends, not distances from the value."
        )
    table = table.sort_values(x)
    colour = COLOURS[role] if role else YARDSTICK
    named = label or (LABELS[role] if role else None)
    axes.plot(table[x], table["value"], style, color=colour, markersize=4, label=named)
    axes.fill_between(table[x], table["low"], table["high"], color=colour, alpha=0.2, linewidth=0)


def curves(axes: Axes, table: pd.DataFrame, *, x: str, level: str | None = None) -> None:
    """Draw one curve per role, and one role without an `x` as a level across the panel.

    Args:
        axes: where to draw.
        table: columns role, `x`, value, low, high.
        x: column of the horizontal axis, numbers.
        level: role that is drawn as a level: a baseline that `x` does not concern.

    Raises:
        ValueError: see `line`.

    Source: ours.
    """
    for role, own in table.groupby("role", sort=False):
        if role == level:
            (one,) = own.to_dict("records")
            axes.axhline(one["value"], color=COLOURS[role], linestyle="--", label=LABELS[role])
            if one["low"] < one["high"]:
                axes.axhspan(one["low"], one["high"], color=COLOURS[role], alpha=0.2, linewidth=0)
        else:
            line(axes, own.sort_values(x), x=x, role=str(role))


def plausibility_axis(axes: Axes, values: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, with the values that were tried as its ticks.

    Args:
        axes: the panel.
        values: above 0.

    Source: ours.
    """
    axes.set(xscale="log", xlabel="plausibility (α)")
    axes.set_xticks(list(values), [f"{value:g}".lstrip("0") for value in values])
    axes.minorticks_off()


def families(axes: Axes, table: pd.DataFrame, *, x: str, by: str) -> None:
    """Draw one curve per member of a family of the same role, told apart by line and marker.

    Args:
        axes: where to draw.
        table: columns `by`, role, `x`, value, low, high.
        x: column of the horizontal axis, numbers.
        by: column that tells the members apart; at most four.

    Raises:
        ValueError: more members than styles; see also `line`.

    Source: ours.
    """
    members = list(dict.fromkeys(table[by]))
    if len(members) > len(STYLES):
        raise ValueError(
            f"expected at most {len(STYLES)} curves of one role; got {len(members)}. Draw panels."
        )
    for member, style in zip(members, STYLES, strict=False):
        own = table[table[by] == member].sort_values(x)
        line(axes, own, x=x, role=own["role"].iloc[0], label=str(member), style=style)


def stars(axes: Axes, table: pd.DataFrame, *, x: str) -> None:
    """Mark chosen points of curves with a star.

    Args:
        axes: where the curves are.
        table: columns role, `x`, value; rows without `x` are left out.
        x: column of the horizontal axis, numbers.

    Source: ours.
    """
    for one in table.dropna(subset=[x]).to_dict("records"):
        colour = COLOURS[one["role"]]
        axes.plot(one[x], one["value"], "*", color=colour, markersize=14, markeredgecolor="black")


def legend(figure: Figure, note: str) -> None:
    """Put the names of all panels' curves above them, each once, with what the bands are.

    Args:
        figure: whose panels have named curves.
        note: what bands and marks mean.

    Source: ours.
    """
    named: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    figure.legend(
        named.values(),
        named.keys(),
        title=note,
        loc="outside upper center",
        ncols=min(len(named), 5),
        fontsize="small",
        title_fontsize="x-small",
        columnspacing=1.2,
    )


def legend_below(axes: Axes, *, columns: int = 2) -> None:
    """Put the names of a panel's curves under it, where they hide no mark.

    Args:
        axes: the panel.
        columns: names side by side.

    Source: ours.
    """
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.26),
        ncols=columns,
        fontsize="small",
        columnspacing=1.2,
    )
