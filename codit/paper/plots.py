"""Marks that figures share: bars, estimates and curves with intervals, coloured tokens.

Everything drawn here comes from a table that `figures.save` keeps beside the picture. Intervals are
computed elsewhere and must be named: columns value, low, high, the ends in the value's unit. A role
is a key of `figures.COLOURS`; a table with another one, or with an interval that does not hold its
value, is a ValueError. Choices without a source are ours.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import matplotlib.pyplot as plt
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
    "correct": ("#7a4a1f", "v"),
    "both": ("#000000", "*"),
    "format": ("#029e73", "D"),
    "filler": ("#cc78bc", "P"),
    "end": ("#4b2a7b", "X"),
    "responses": ("#333333", "o"),
    "students": ("#9c9c9c", "s"),
}
KEY_NAMES = {
    "knowledge": "right, fact of the world",
    "reading": "right, answer in the prompt",
    "strict": "obeyed",
    "correct": "right",
    "read": "answer in the prompt",
    "format": "asked-for form",
    "filler": "not asked for",
    "end": "end of turn",
}
LEGEND: dict[str, Any] = {"fontsize": "small", "title_fontsize": "x-small", "columnspacing": 1.2}
APART = 0.012  # of the axis between neighbouring lines, so that whiskers do not hide one another


def bars(axes: Axes, table: pd.DataFrame, *, interval: str, group: str) -> None:
    """Draw one bar per role, in groups, with its interval.

    Args:
        axes: where to draw.
        table: columns role, value, low, high and `group`.
        interval: what the whiskers are, written into the picture: "95 % bootstrap over prompts".
        group: column whose values become groups of bars, in order of appearance.
    """
    _check(table, table["role"])
    groups, roles = (list(dict.fromkeys(table[column])) for column in (group, "role"))
    width = 0.8 / len(roles)
    for index, role in enumerate(roles):
        rows = table[table["role"] == role]
        x = np.array([groups.index(name) for name in rows[group]])
        x = x + (index - (len(roles) - 1) / 2) * width
        axes.bar(x, rows["value"], 0.9 * width, color=COLOURS[role], label=LABELS[role])
        _whiskers(axes, x, rows, fmt="none", ecolor="black")
    axes.set_xticks(range(len(groups)), list(map(str, groups)))
    _legend(axes, f"whiskers: {interval}")


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
        table: columns role, arm, value, low, high.
        interval: what the whiskers are, written into the picture; None: another panel says it.
        points: single values behind the estimates: columns role, value and arm.
        zero: draw a line at 0, for differences.
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
        mark: dict[str, Any] = {"fmt": "o", "color": COLOURS[one["role"]], "capsize": 3}
        axes.errorbar(one["value"], rows.index(one["arm"]), xerr=ends, **mark)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    if interval is not None:
        _note(axes, f"whiskers: {interval}" + ("; circles: seeds" if points is not None else ""))


def line(
    axes: Axes,
    table: pd.DataFrame,
    *,
    x: str,
    role: str | None,
    label: str | None = None,
    style: str = "-o",
) -> None:
    """Draw one curve, in the order of x, and the band between the ends of its interval.

    Args:
        axes: where to draw.
        table: columns `x`, value, low, high.
        x: column of the horizontal axis, numbers.
        role: whose colour. None: a yardstick, dark grey.
        label: what the legend says. None: the role's own name.
        style: line and marker, as matplotlib writes them.
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
    """
    for role, own in table.groupby("role", sort=False):
        if role == level:
            (one,) = own.to_dict("records")
            axes.axhline(one["value"], color=COLOURS[role], linestyle="--", label=LABELS[role])
            if one["low"] < one["high"]:
                axes.axhspan(one["low"], one["high"], color=COLOURS[role], alpha=0.2, linewidth=0)
        else:
            line(axes, own, x=x, role=str(role))


def families(axes: Axes, table: pd.DataFrame, *, x: str, by: str) -> None:
    """Draw one curve per member of a family of the same role, told apart by line and marker.

    Args:
        axes: where to draw.
        table: columns `by`, role, `x`, value, low, high.
        x: column of the horizontal axis, numbers.
        by: column that tells the members apart; more than four are a ValueError.
    """
    members = list(dict.fromkeys(table[by]))
    if len(members) > len(STYLES):
        raise ValueError(
            f"expected at most {len(STYLES)} curves of one role; got {len(members)}. Draw panels."
        )
    for member, style in zip(members, STYLES, strict=False):
        own = table[table[by] == member]
        line(
            axes, own, x=x, role=own.sort_values(x)["role"].iloc[0], label=str(member), style=style
        )


def frontier(axes: Axes, table: pd.DataFrame, line: pd.DataFrame) -> None:
    """Draw arms in the plane of obeyed (x) and right (y); several of one role are a curve.

    Args:
        axes: where to draw.
        table: of `tables.plane`; the ends of a curve bear their plausibility.
        line: the same of one model that moves, in its order, "expert" and "amateur" marked.
    """
    axes.plot(line["strict"], line["correct"], ":", color=COLOURS["chat-vector"], linewidth=1.2)
    for role, mark, size in (("amateur", "s", 6), ("expert", "*", 13)):
        own = line[line["role"] == role]
        axes.plot(
            own["strict"],
            own["correct"],
            mark,
            color=COLOURS[role],
            markersize=size,
            linestyle="none",
            label=LABELS[role],
        )
    for role, own in table.groupby("role", sort=False):
        own = own.sort_values("plausibility")
        ends = {
            axis: (own[[name]].to_numpy() - own[[f"{name}_low", f"{name}_high"]].to_numpy()).T
            for axis, name in (("xerr", "strict"), ("yerr", "correct"))
        }
        errors: dict[str, Any] = {axis: np.abs(each) for axis, each in ends.items()}
        look: dict[str, Any] = {
            "color": COLOURS[role],
            "markersize": 4,
            "linewidth": 1,
            "elinewidth": 0.5,
        }
        axes.errorbar(own["strict"], own["correct"], fmt="-o", label=LABELS[role], **look, **errors)
        if len(known := own.dropna(subset=["plausibility"])) > 1:
            for one in (known.iloc[0], known.iloc[-1]):
                axes.annotate(
                    f"{one['plausibility']:g}".lstrip("0"),
                    (one["strict"], one["correct"]),
                    xytext=(3, -9),
                    textcoords="offset points",
                    fontsize=6,
                    color=COLOURS[role],
                )
    axes.grid(color="0.92")
    axes.set_axisbelow(True)


def stars(axes: Axes, table: pd.DataFrame, *, x: str) -> None:
    """Mark points of curves, columns role, `x`, value, with a star; no `x`, no star."""
    for one in table.dropna(subset=[x]).to_dict("records"):
        colour = COLOURS[one["role"]]
        axes.plot(one[x], one["value"], "*", color=colour, markersize=14, markeredgecolor="black")


def plausibility_panels(
    table: pd.DataFrame,
    values: Sequence[float],
    *,
    by: str,
    names: Mapping[str, str],
    title: str,
    height: float = 2.3,
    sharey: Literal["col", "all"] = "col",
    marked: pd.DataFrame | None = None,
) -> Figure:
    """Draw `curves` over the plausibility, direct as a level: a row of panels for each teacher.

    Args:
        table: columns teacher, `by`, role, plausibility, value, low, high.
        values: the plausibilities that were tried.
        by: column whose values are the panels of a row.
        names: those values, in order, and what the titles call them.
        title: of a panel, with {teacher} and {name}.
        height: of a row, in inches.
        sharey: which panels have one vertical axis: those of a column, or all.
        marked: rows of the table that get a star.
    """
    teachers = list(dict.fromkeys(table["teacher"]))
    size = (7.6, height * len(teachers) + 0.5)
    figure, panels = plt.subplots(
        len(teachers), len(names), figsize=size, sharex=True, sharey=sharey, squeeze=False
    )
    for (teacher, key), own in table.groupby(["teacher", by], sort=False):
        axes = panels[teachers.index(teacher)][list(names).index(key)]
        curves(axes, own, x="plausibility", level="direct")
        plausibility_axis(axes, values)
        axes.set_xlabel("plausibility (α)" if teacher == teachers[-1] else "")
        axes.set_title(title.format(teacher=teacher, name=names[key]), fontsize="medium")
        if marked is not None:
            here = (marked["teacher"] == teacher) & (marked[by] == key)
            stars(axes, marked[here], x="plausibility")
    return figure


def plausibility_axis(axes: Axes, values: Sequence[float]) -> None:
    """Make the horizontal axis logarithmic, with the values that were tried as its ticks."""
    axes.set(xscale="log", xlabel="plausibility (α)")
    names = [f"{value:g}".lstrip("0") for value in values]
    axes.set_xticks(list(values), names, fontsize="x-small")
    axes.minorticks_off()


def strength_lines(axes: Axes, table: pd.DataFrame, *, by: str, keys: Sequence[str]) -> None:
    """Draw one line per key over the strength, with whiskers, and direct generation at the left.

    Args:
        axes: where to draw.
        table: columns `by`, strength (NaN: direct generation), value, low, high.
        by: column whose values are the keys.
        keys: which of them, in the order of the legend; each has a style in `KEYS`, or ValueError.
            Those that the table does not hold are left out.
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
        look: dict[str, Any] = {"color": colour, "markersize": 4.5}
        name = KEY_NAMES.get(key, key)
        _whiskers(axes, x[~is_direct], rows[~is_direct], fmt=f"{marker}-", label=name, **look)
        _whiskers(axes, x[is_direct], rows[is_direct], fmt=marker, **look)
    has_direct = table["strength"].isna().any()
    axes.xaxis.set_major_locator(FixedLocator([aside, *strengths] if has_direct else strengths))
    axes.set_xticklabels(["direct"] * int(has_direct) + [f"{s:g}" for s in strengths])
    axes.set_xlabel("strength β")


def place_lines(axes: Axes, table: pd.DataFrame) -> None:
    """Draw one line per strength over the place in a response, darker where stronger.

    Args:
        axes: where to draw.
        table: columns strength, place (0: begin, 1: end), value, low, high.
    """
    strengths = sorted(table["strength"].unique())
    for number, strength in enumerate(strengths):
        rows = table[table["strength"] == strength].sort_values("place")
        colour = colormaps["Blues"](0.4 + 0.6 * (number + 1) / len(strengths))
        x = rows["place"] + (number - (len(strengths) - 1) / 2) * APART
        name = f"β = {strength:g}"
        _whiskers(axes, x, rows, fmt="o-", label=name, color=colour, markersize=4)
    axes.set_xlim(0, 1)
    axes.set_xlabel("place in the response (0: begin, 1: end)")


def token_strip(axes: Axes, tokens: pd.DataFrame, *, columns: int = 72) -> None:
    """Draw a response token by token, each coloured by what the contrast sees in it.

    gain = log p_expert(v) - log p_amateur(v): above 0 the expert wants the token more than the
    amateur. Framed: the places where the most likely token is another one under the contrast than
    under the expert alone.

    Args:
        axes: where to draw; its own frame and ticks are removed.
        tokens: the table of `decode.token_table`.
        columns: characters in a line before it breaks.
    """
    gain = (tokens["logp_expert"] - tokens["logp_amateur"]).to_numpy()
    colours = ScalarMappable(Normalize(-_reach(gain), _reach(gain)), "PuOr")
    figure = _figure(axes)
    size = 81 * figure.get_figwidth() / columns  # points in which a line fills the width
    look: dict[str, Any] = {"ha": "center", "va": "center", "family": "monospace", "size": size}
    row = column = 0
    for token, value, changed in zip(tokens["token"], gain, tokens["argmax_changed"], strict=True):
        text = _visible(token)
        if column and column + len(text) > columns:
            row, column = row + 1, 0
        colour = colours.to_rgba(value)
        frame = {"edgecolor": "black", "linewidth": 1.5} if changed else {"edgecolor": "white"}
        box = Rectangle((column, -row - 0.8), len(text), 0.8, facecolor=colour)
        box.set(**frame, zorder=2 if changed else 1)
        axes.add_patch(box)
        centre = (column + len(text) / 2, -row - 0.4)
        ink = "white" if np.dot(colour[:3], (0.3, 0.59, 0.11)) < 0.45 else "black"
        axes.annotate(text, centre, color=ink, zorder=3, **look)
        column += len(text)
    axes.set(xlim=(-0.3, columns + 0.3), ylim=(-row - 1, 0.2))
    axes.set_axis_off()
    figure.colorbar(colours, ax=axes, label=GAIN, orientation="horizontal", shrink=0.6)


def token_colours(tokens: pd.DataFrame) -> Styler:
    """Return the table of `decode.token_table` for a notebook, coloured as by `token_strip`.

    Log-probabilities in nats to two places, a column `gain`; rows in bold where the contrast
    changed the arg max.
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
    """
    drawn = (("amateur", "p_amateur"), ("expert", "p_expert"), ("codit", "q"))
    for index, (role, column) in enumerate(drawn):
        places = np.arange(len(candidates)) + (index - 1) * 0.27
        axes.bar(places, candidates[column], 0.25, color=COLOURS[role], label=LABELS[role])
    labels = [_visible(token) for token in candidates["token"]]
    axes.set_xticks(range(len(candidates)), labels, family="monospace")
    axes.set(ylabel="probability", ylim=(0, 1))
    axes.legend(ncols=3, fontsize="x-small", columnspacing=1, handlelength=1.2)


def head_maps(panels: Any, table: pd.DataFrame) -> None:
    """Draw indirect effects of heads: a panel for each model (down) and kind (across).

    Green gives the answer back, purple takes it away; one scale for all models of a kind.

    Args:
        panels: axes, models by kinds.
        table: columns model, kind, layer, head, value, in the order of the panels.
    """
    models, kinds = (list(dict.fromkeys(table[column])) for column in ("model", "kind"))
    for across, kind in enumerate(kinds):
        own = table[table["kind"] == kind]
        most = own["value"].abs().max() or 1.0
        for down, model in enumerate(models):
            values = own[own["model"] == model].pivot(index="layer", columns="head", values="value")
            axes = panels[down][across]
            axes.imshow(values.to_numpy(), cmap="PRGn", vmin=-most, vmax=most)
            axes.set_xticks(range(values.shape[1]), [""] * values.shape[1])
            axes.set_yticks(range(values.shape[0]), [""] * values.shape[0])
            if down == 0:
                name = textwrap.fill(str(kind), 13)
                axes.set_title(f"{name}\n±{most:.2g}", fontsize="x-small")
            if across == 0:
                axes.set_ylabel(f"{model}\nlayer", fontsize="x-small")
            if down == len(models) - 1:
                axes.set_xlabel("head", fontsize="x-small")


def legend(figure: Figure, note: str) -> None:
    """Name the curves of all panels above them, each once; `note`: what bands and marks mean."""
    named: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(name, handle)
    place: dict[str, Any] = {"loc": "outside upper center", "ncols": min(len(named), 5)}
    figure.legend(named.values(), named.keys(), title=note, **place, **LEGEND)


def legend_beside(axes: Axes, title: str) -> None:
    """Name a panel's lines at its right, where they hide no mark; `title`: what whiskers are."""
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
    sizes = {name: LEGEND[name] for name in ("fontsize", "title_fontsize")}
    axes.legend(title=title, alignment="left", **place, **sizes)


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


def _whiskers(axes: Axes, x: Any, table: pd.DataFrame, **look: Any) -> None:
    """Draw estimates with their intervals upright at x."""
    ends = [table["value"] - table["low"], table["high"] - table["value"]]
    axes.errorbar(x, table["value"], yerr=ends, capsize=2, elinewidth=1, **look)


def _figure(axes: Axes) -> Figure:
    figure = axes.get_figure(root=True)
    assert figure is not None
    return figure


def _note(axes: Axes, text: str) -> None:
    """Say once per figure what its whiskers are."""
    figure = _figure(axes)
    if text not in [one.get_text() for one in figure.texts]:
        figure.text(0.5, -0.01, text, ha="center", va="top", fontsize="x-small")


def _legend(axes: Axes, note: str) -> None:
    """Name roles and whiskers above all panels, once where panels agree, and hide no mark."""
    handles, labels = map(tuple, axes.get_legend_handles_labels())
    figure = _figure(axes)
    shown = [tuple(text.get_text() for text in legend.get_texts()) for legend in figure.legends]
    if not shown:
        place: dict[str, Any] = {"loc": "outside upper center", "ncols": min(len(labels), 4)}
        figure.legend(handles, labels, title=note, **place, **LEGEND)
    elif labels not in shown:
        axes.legend(handles, labels, title=note, loc="best", ncols=1, **LEGEND)


def _reach(values: np.ndarray[Any, Any]) -> float:
    finite = np.abs(values[np.isfinite(values)])
    return max(1.0, float(np.quantile(finite, 0.95))) if len(finite) else 1.0


def _visible(token: str) -> str:
    return token.replace("\n", "↵").replace("\t", "→").replace(" ", "·") or "∅"
