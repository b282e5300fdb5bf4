"""Lines over the strength of the contrast: one per class of tokens or per measure of responses.

One colour per meaning in every panel: knowledge is blue, what an instruction asks for is green.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator

# Colours of `codit.figures` that stay apart for colour-blind readers; markers tell them apart too.
STYLES: dict[str, tuple[str, str]] = {
    "knowledge": ("#0173b2", "o"),
    "right fact": ("#0173b2", "o"),
    "wrong fact": ("#b33f00", "v"),
    "reading": ("#56b4e9", "s"),
    "read": ("#56b4e9", "s"),
    "strict": ("#029e73", "D"),
    "format": ("#029e73", "D"),
    "filler": ("#cc78bc", "P"),
    "end": ("#4b2a7b", "X"),
    "responses": ("#333333", "o"),
    "students": ("#9c9c9c", "s"),
}
NAMES = {
    "knowledge": "correct, fact of the world",
    "reading": "correct, answer in the prompt",
    "strict": "every constraint holds",
    "read": "answer in the prompt",
    "format": "asked-for form",
    "filler": "not asked for",
    "end": "end of turn",
}
APART = 0.012  # of the axis between neighbouring lines, so that whiskers do not hide one another


def strength_lines(axes: Axes, table: pd.DataFrame, *, by: str, keys: Sequence[str]) -> None:
    """Draw one line per key over the strength, with whiskers, and direct generation at the left.

    Args:
        axes: where to draw.
        table: columns `by`, strength (NaN: direct generation), value, low, high (ends of the
            interval, in the value's unit).
        by: column whose values are the keys.
        keys: which of them, in the order of the legend; each has a style in `STYLES`. Those that
            the table does not hold are left out.

    Raises:
        ValueError: a key without a style.

    Source: ours.
    """
    if unknown := [key for key in keys if key not in STYLES]:
        raise ValueError(
            f"expected keys that have a style, among {', '.join(STYLES)}; got "
            f"{', '.join(unknown)}. Name those, or give them a style."
        )
    keys = [key for key in keys if key in set(table[by])]
    strengths = sorted(table["strength"].dropna().unique())
    reach = max(strengths) or 1.0
    aside = strengths[0] - 0.2 * reach
    for place, key in enumerate(keys):
        colour, marker = STYLES[key]
        rows = table[table[by] == key].sort_values("strength")
        x = rows["strength"].fillna(aside) + (place - (len(keys) - 1) / 2) * APART * reach
        is_direct = rows["strength"].isna()
        named: dict[str, Any] = {"color": colour, "markersize": 4.5, "capsize": 2, "elinewidth": 1}
        for kept, line in ((~is_direct, "-"), (is_direct, "")):
            own = rows[kept]
            ends = [own["value"] - own["low"], own["high"] - own["value"]]
            label = NAMES.get(key, key) if line else None
            axes.errorbar(x[kept], own["value"], yerr=ends, fmt=marker + line, label=label, **named)
    has_direct = table["strength"].isna().any()
    ticks = [aside, *strengths] if has_direct else strengths
    names = ("direct",) * int(has_direct) + tuple(f"{s:g}" for s in strengths)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.set_xticklabels(names)
    axes.set_xlabel("strength β")


def place_lines(axes: Axes, table: pd.DataFrame) -> None:
    """Draw one line per strength over the place in a response, darker where stronger.

    Args:
        axes: where to draw.
        table: columns strength, place (0: begin, 1: end), value, low, high.

    Source: ours.
    """
    strengths = sorted(table["strength"].unique())
    for number, strength in enumerate(strengths):
        rows = table[table["strength"] == strength].sort_values("place")
        colour = colormaps["Blues"](0.4 + 0.6 * (number + 1) / len(strengths))
        x = rows["place"] + (number - (len(strengths) - 1) / 2) * APART
        ends = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
        named: dict[str, Any] = {"color": colour, "markersize": 4, "capsize": 2, "elinewidth": 1}
        axes.errorbar(x, rows["value"], yerr=ends, fmt="o-", label=f"β = {strength:g}", **named)
    axes.set_xlim(0, 1)
    axes.set_xlabel("place in the response (0: begin, 1: end)")


def legend_beside(axes: Axes, title: str) -> None:
    """Put the names of a panel's lines at its right, where they hide no mark.

    Args:
        axes: the panel.
        title: what whiskers are, say.

    Source: ours.
    """
    axes.legend(
        loc="center left",
        bbox_to_anchor=(1.0, 0.5),
        fontsize="small",
        title=title,
        title_fontsize="x-small",
        alignment="left",
    )


def legend_below(axes: Axes) -> None:
    """Put the names of a panel's lines under it.

    Args:
        axes: the panel.

    Source: ours.
    """
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=3, fontsize="small")
