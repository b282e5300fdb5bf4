"""Marks that several figures share: bars and estimates with intervals, coloured tokens.

Everything drawn here comes from a table that `figures.save` keeps beside the picture; intervals
are computed elsewhere and must be named.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.patches import Rectangle
from pandas.io.formats.style import Styler

from codit.figures import COLOURS, LABELS

GAIN = "log p expert − log p amateur (nats)"


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
    _draw_bars(axes, table, group)
    _legend(axes, interval)


def forest(
    axes: Axes,
    table: pd.DataFrame,
    *,
    interval: str | None,
    row: str = "arm",
    points: pd.DataFrame | None = None,
    zero: bool = False,
) -> None:
    """Draw one estimate per row with its interval and the single seeds, the first row on top.

    Args:
        axes: where to draw.
        table: columns `role` (a key of `COLOURS`), `row`, `value`, `low`, `high` (ends of the
            interval, in the value's unit).
        interval: what the whiskers are, written into the picture; None: another panel says it.
        row: column that names the rows.
        points: single values behind the estimates: columns `role`, `value` and `row`.
        zero: draw a line at 0, for differences.

    Raises:
        ValueError: a role has no colour, or an interval does not hold its value.

    Source: ours.
    """
    _check_roles(table)
    _check_interval(table)
    rows = list(dict.fromkeys(table[row]))
    if zero:
        axes.axvline(0, color="black", linewidth=0.8)
    if points is not None:
        own = points[points[row].isin(rows)]
        at = [rows.index(name) + 0.28 for name in own[row]]
        axes.scatter(own["value"], at, s=7, color="white", edgecolor="grey", linewidth=0.6)
    for _, one in table.iterrows():
        ends = [[one["value"] - one["low"]], [one["high"] - one["value"]]]
        colour = COLOURS[one["role"]]
        axes.errorbar(
            one["value"], rows.index(one[row]), xerr=ends, fmt="o", color=colour, capsize=3
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


def _draw_bars(axes: Axes, table: pd.DataFrame, group: str | None) -> None:
    _check_roles(table)
    _check_interval(table)
    groups = list(dict.fromkeys(table[group])) if group else [None]
    roles = list(dict.fromkeys(table["role"]))
    width = 0.8 / len(roles)
    for index, role in enumerate(roles):
        rows = table[table["role"] == role]
        places = [groups.index(row) for row in rows[group]] if group else [0] * len(rows)
        x = np.array(places) + (index - (len(roles) - 1) / 2) * width
        whiskers = [rows["value"] - rows["low"], rows["high"] - rows["value"]]
        axes.bar(x, rows["value"], 0.9 * width, color=COLOURS[role], label=LABELS[role])
        axes.errorbar(
            x, rows["value"], yerr=whiskers, fmt="none", ecolor="black", capsize=2, elinewidth=1
        )
    axes.set_xticks(range(len(groups)) if group else [], [str(name) for name in groups if group])


def _reach(values: np.ndarray[Any, Any]) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return max(1.0, float(np.quantile(finite, 0.95))) if len(finite) else 1.0


def _visible(token: str) -> str:
    return token.replace("\n", "↵").replace("\t", "→").replace(" ", "·") or "∅"


def _check_roles(table: pd.DataFrame) -> None:
    unknown = sorted(set(table["role"]) - set(COLOURS))
    if unknown:
        raise ValueError(
            f"expected roles with a colour, {', '.join(COLOURS)}; got {', '.join(unknown)}. "
            "Rename them, or give the new role a colour and a label in codit.figures."
        )


def _check_interval(table: pd.DataFrame) -> None:
    outside = table[~((table["low"] <= table["value"]) & (table["value"] <= table["high"]))]
    if len(outside):
        first = outside.iloc[0]
        raise ValueError(
            f"expected low <= value <= high; got {first['low']}, {first['value']}, "
            f"{first['high']} for {first['role']}. `low` and `high` are the interval's ends, not "
            "distances from the value."
        )


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
