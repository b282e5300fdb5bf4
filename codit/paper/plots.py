"""Marks that figures share: bars, estimates and curves with intervals, coloured tokens.

Everything drawn here comes from a table that `figures.save` keeps beside the picture; intervals
are computed elsewhere and must be named.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator
from pandas.io.formats.style import Styler

from codit.paper.figures import COLOURS, LABELS

GAIN = "log p expert − log p amateur (nats)"
STYLES = ("-o", "--s", ":^", "-.D")
YARDSTICK = "#333333"  # a curve that belongs to no role: what the others are measured against
# Colours that stay apart for colour-blind readers; markers tell them apart too.
KEYS: dict[str, tuple[str, str]] = {
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
KEY_NAMES = {
    "knowledge": "correct, fact of the world",
    "reading": "correct, answer in the prompt",
    "strict": "every constraint holds",
    "read": "answer in the prompt",
    "format": "asked-for form",
    "filler": "not asked for",
    "end": "end of turn",
}
APART = 0.012  # of the axis between neighbouring lines, so that whiskers do not hide one another


def bars(
    axes: Axes,
    table: pd.DataFrame,
    *,
    interval: str,
    group: str | None = None,
) -> None:
    """Draw one bar per role, in groups, with its interval.

    Args:
        axes: where to draw.
        table: columns `role` (a key of `COLOURS`), `value`, `low`, `high` (ends of the interval,
            in the value's unit) and, where `group` names one, the column to group by.
        interval: what the whiskers are, written into the picture: "95 % bootstrap over prompts".
        group: column whose values become groups of bars, in order of appearance.

    Raises:
        ValueError: a role has no colour, or an interval does not hold its value.

    Source: ours.
    """
    _check(table, table["role"])
    groups = list(dict.fromkeys(table[group])) if group else [None]
    roles = list(dict.fromkeys(table["role"]))
    width = 0.8 / len(roles)
    for index, role in enumerate(roles):
        rows = table[table["role"] == role]
        places = [groups.index(row) for row in rows[group]] if group else [0] * len(rows)
        x = np.array(places) + (index - (len(roles) - 1) / 2) * width
        axes.bar(x, rows["value"], 0.9 * width, color=COLOURS[role], label=LABELS[role])
        axes.errorbar(
            x, rows["value"], yerr=_ends(rows), fmt="none", ecolor="black", capsize=2, elinewidth=1
        )
    axes.set_xticks(range(len(groups)) if group else [], [str(name) for name in groups if group])
    _legend(axes, interval)


def forest(
    axes: Axes,
    table: pd.DataFrame,
    *,
    interval: str | None,
    points: pd.DataFrame | None = None,
    zero: bool = False,
) -> None:
    """Draw one estimate per row with its interval and the single seeds, the first row on top.

    Args:
        axes: where to draw.
        table: columns `role` (a key of `COLOURS`), `arm`, `value`, `low`, `high` (ends of the
            interval, in the value's unit).
        interval: what the whiskers are, written into the picture; None: another panel says it.
        points: single values behind the estimates: columns `role`, `value` and `arm`.
        zero: draw a line at 0, for differences.

    Raises:
        ValueError: a role has no colour, or an interval does not hold its value.

    Source: ours.
    """
    _check(table, table["role"])
    rows = list(dict.fromkeys(table["arm"]))
    if zero:
        axes.axvline(0, color="black", linewidth=0.8)
    if points is not None:
        own = points[points["arm"].isin(rows)]
        at = [rows.index(name) + 0.28 for name in own["arm"]]
        axes.scatter(own["value"], at, s=7, color="white", edgecolor="grey", linewidth=0.6)
    for _, one in table.iterrows():
        ends = [[one["value"] - one["low"]], [one["high"] - one["value"]]]
        colour = COLOURS[one["role"]]
        axes.errorbar(
            one["value"], rows.index(one["arm"]), xerr=ends, fmt="o", color=colour, capsize=3
        )
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    if interval is not None:
        _note(axes, f"whiskers: {interval}" + ("; circles: seeds" if points is not None else ""))


def token_strip(axes: Axes, tokens: pd.DataFrame, *, columns: int = 72) -> None:
    """Draw a response token by token, each coloured by what the contrast sees in it.

    gain = log p_expert(v) - log p_amateur(v): above 0 the expert wants the token more than the
    amateur. Framed: the places where the most likely token is another one under the contrast than
    under the expert alone.

    Args:
        axes: where to draw; its own frame and ticks are removed.
        tokens: columns token, logp_expert, logp_amateur, argmax_changed, as from
            `decode.token_table`.
        columns: characters in a line before it breaks.

    Source: ours.
    """
    gain = (tokens["logp_expert"] - tokens["logp_amateur"]).to_numpy()
    colours = ScalarMappable(Normalize(-_reach(gain), _reach(gain)), "PuOr")
    figure = axes.get_figure(root=True)
    assert figure is not None
    size = 81 * figure.get_figwidth() / columns  # points in which a line fills the width
    row = column = 0
    for token, value, changed in zip(tokens["token"], gain, tokens["argmax_changed"], strict=True):
        text = _visible(token)
        if column and column + len(text) > columns:
            row, column = row + 1, 0
        frame = {"edgecolor": "black", "linewidth": 1.5} if changed else {"edgecolor": "white"}
        box = Rectangle((column, -row - 0.8), len(text), 0.8, facecolor=colours.to_rgba(value))
        box.set(**frame, zorder=2 if changed else 1)
        axes.add_patch(box)
        centre = (column + len(text) / 2, -row - 0.4)
        ink = "white" if np.dot(colours.to_rgba(value)[:3], (0.3, 0.59, 0.11)) < 0.45 else "black"
        axes.annotate(
            text,
            centre,
            ha="center",
            va="center",
            family="monospace",
            size=size,
            color=ink,
            zorder=3,
        )
        column += len(text)
    axes.set(xlim=(-0.3, columns + 0.3), ylim=(-row - 1, 0.2))
    axes.set_axis_off()
    figure.colorbar(colours, ax=axes, label=GAIN, orientation="horizontal", shrink=0.6)


def token_colours(tokens: pd.DataFrame) -> Styler:
    """Return a token table for a notebook, its rows coloured by what the contrast sees in them.

    Args:
        tokens: the table of `decode.token_table`.

    Returns:
        Styler: log-probabilities in nats to two places, a column `gain` in the colours of
        `token_strip`, and the rows in bold where the contrast changed the arg max.

    Source: ours.
    """
    table = tokens.assign(gain=tokens["logp_expert"] - tokens["logp_amateur"])
    reach = _reach(table["gain"].to_numpy())
    return (
        table.assign(token=[_visible(token) for token in table["token"]])
        .style.background_gradient("PuOr", subset=["gain"], vmin=-reach, vmax=reach)
        .apply(lambda row: ["font-weight: bold" * bool(row["argmax_changed"])] * len(row), axis=1)
        .format(precision=2)
    )


def candidate_bars(axes: Axes, candidates: pd.DataFrame) -> None:
    """Draw one step's next-token probabilities: amateur, expert and contrast side by side.

    Args:
        axes: where to draw.
        candidates: columns token, p_expert, p_amateur, q; one row a token.

    Source: ours.
    """
    drawn = (("amateur", "p_amateur"), ("expert", "p_expert"), ("codit", "q"))
    for index, (role, column) in enumerate(drawn):
        places = np.arange(len(candidates)) + (index - 1) * 0.27
        axes.bar(places, candidates[column], 0.25, color=COLOURS[role], label=LABELS[role])
    labels = [_visible(token) for token in candidates["token"]]
    axes.set_xticks(range(len(candidates)), labels, family="monospace")
    axes.set(ylabel="probability", ylim=(0, 1))
    axes.legend(ncols=3)


def _reach(values: np.ndarray[Any, Any]) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return max(1.0, float(np.quantile(finite, 0.95))) if len(finite) else 1.0


def _visible(token: str) -> str:
    return token.replace("\n", "↵").replace("\t", "→").replace(" ", "·") or "∅"


def _check(table: pd.DataFrame, roles: Iterable[str]) -> None:
    """Raise ValueError for a role without a colour, or an interval that does not hold its value."""
    if unknown := sorted(set(roles) - set(COLOURS)):
        raise ValueError(
            f"expected roles with a colour, {', '.join(COLOURS)}; got {', '.join(unknown)}. "
            "Rename them, or give the new role a colour and a label in codit.paper.figures."
        )
    outside = table[~table["value"].between(table["low"], table["high"])]
    if len(outside):
        first = outside.iloc[0]
        raise ValueError(
            f"expected low <= value <= high; got {first['low']}, {first['value']}, "
            f"{first['high']} for {first.get('role', 'a curve')}. `low` and `high` are the "
            "interval's ends, not distances from the value."
        )


def _ends(table: pd.DataFrame) -> list[Any]:
    return [table["value"] - table["low"], table["high"] - table["value"]]


def _note(axes: Axes, text: str) -> None:
    """Say once per figure what its whiskers are."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    if text not in [one.get_text() for one in figure.texts]:
        figure.text(0.5, -0.01, text, ha="center", va="top", fontsize="x-small")


def _legend(axes: Axes, interval: str) -> None:
    """Name roles and whiskers above all panels, once where panels agree, and hide no mark."""
    handles, labels = map(tuple, axes.get_legend_handles_labels())
    figure = axes.get_figure(root=True)
    assert figure is not None
    shown = [tuple(text.get_text() for text in legend.get_texts()) for legend in figure.legends]
    if labels in shown:
        return
    place = axes.legend if shown else figure.legend
    place(
        handles,
        labels,
        title=f"whiskers: {interval}",
        loc="best" if shown else "outside upper center",
        ncols=1 if shown else min(len(labels), 4),
        fontsize="small",
        title_fontsize="x-small",
        columnspacing=1.2,
    )


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
    _check(table, [role] if role else [])
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


def strength_lines(axes: Axes, table: pd.DataFrame, *, by: str, keys: Sequence[str]) -> None:
    """Draw one line per key over the strength, with whiskers, and direct generation at the left.

    Args:
        axes: where to draw.
        table: columns `by`, strength (NaN: direct generation), value, low, high (ends of the
            interval, in the value's unit).
        by: column whose values are the keys.
        keys: which of them, in the order of the legend; each has a style in `KEYS`. Those that
            the table does not hold are left out.

    Raises:
        ValueError: a key without a style.

    Source: ours.
    """
    if unknown := [key for key in keys if key not in KEYS]:
        raise ValueError(
            f"expected keys that have a style, among {', '.join(KEYS)}; got "
            f"{', '.join(unknown)}. Name those, or give them a style."
        )
    keys = [key for key in keys if key in set(table[by])]
    strengths = sorted(table["strength"].dropna().unique())
    reach = max(strengths) or 1.0
    aside = strengths[0] - 0.2 * reach
    for place, key in enumerate(keys):
        colour, marker = KEYS[key]
        rows = table[table[by] == key].sort_values("strength")
        x = rows["strength"].fillna(aside) + (place - (len(keys) - 1) / 2) * APART * reach
        is_direct = rows["strength"].isna()
        named: dict[str, Any] = {"color": colour, "markersize": 4.5, "capsize": 2, "elinewidth": 1}
        for kept, line in ((~is_direct, "-"), (is_direct, "")):
            own = rows[kept]
            label = KEY_NAMES.get(key, key) if line else None
            axes.errorbar(
                x[kept], own["value"], yerr=_ends(own), fmt=marker + line, label=label, **named
            )
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
        named: dict[str, Any] = {"color": colour, "markersize": 4, "capsize": 2, "elinewidth": 1}
        axes.errorbar(
            x, rows["value"], yerr=_ends(rows), fmt="o-", label=f"β = {strength:g}", **named
        )
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
