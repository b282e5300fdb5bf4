"""Measured speed as one reads it: labels, verdicts on goals, and what notebook 21 plots.

Tables come from `codit.throughput`; nothing is measured here. Source of all tables: ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FormatStrFormatter, LogLocator
from matplotlib.transforms import ScaledTranslation

from codit import random_pairs
from codit.figures import COLOURS
from codit.plots import YARDSTICK

BESIDE = {  # what is decoded otherwise -> its mark
    "amateur in a processor, uncached": "v",
    "amateur in a processor, cached": "^",
    "with the authors' transport": "P",
    "continuous engine, long tail": "D",
}
LIMITS = {"byte limit": "-", "FLOP limit": ":"}


def labelled(rows: pd.DataFrame) -> pd.DataFrame:
    """Return measured rows with the name of their case.

    Args:
        rows: of `throughput.measure`.

    Returns:
        DataFrame: with a column `case`, such as "small, B = 8".
    """
    batch = rows["batch"].astype(int).astype(str)
    return rows.assign(case=rows["shape"] + ", B = " + batch)


def text(row: Mapping[str, Any]) -> str:
    """Return a measured ratio as one reads it: 0.832 [0.821, 0.850].

    Args:
        row: value, low, high.

    Returns:
        str: median and quartiles, three significant digits.
    """
    value, low, high = (f"{row[name]:.3g}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def reached(row: Mapping[str, Any], goal: float) -> bool | None:
    """Tell whether a ratio is at most what it should be.

    Args:
        row: low and high, the quartiles.
        goal: the most it should be.

    Returns:
        bool | None: True where the whole middle half is at most the goal, False where it is above,
        None where it holds the goal.
    """
    return None if row["low"] <= goal < row["high"] else bool(row["high"] <= goal)


def with_goals(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the ratios that have a goal, with their verdicts.

    Args:
        rows: of `throughput.measure`.

    Returns:
        DataFrame: quantity, case, goal, found (as `text`), holds (as `reached`).
    """
    kept = labelled(rows.dropna(subset=["goal"]))
    told = kept.to_dict("records")
    return kept[["quantity", "case", "goal"]].assign(
        found=[text(row) for row in told],
        holds=pd.Series([reached(row, row["goal"]) for row in told], kept.index, dtype=object),
    )


def steps(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the time of a step relative to two forward passes.

    Args:
        rows: of `throughput.measure`.

    Returns:
        DataFrame: case, way ("ours", "unpacked", "naive"), value, low, high, goal.
    """
    kept = labelled(rows[rows["quantity"] == "step"])
    return kept[["case", "way", "value", "low", "high", "goal"]]


def beside(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the tokens/s of other ways and of the device's limits; ours is 1.

    Args:
        rows: of `throughput.measure`.

    Returns:
        DataFrame: case, way (of `BESIDE` and `LIMITS`), value, low, high. A transport is added to
        the medians of our steps at its batch size and vocabulary: what was not measured together.
    """
    rows = labelled(rows)
    processors, bounds = list(BESIDE)[:2], list(LIMITS)
    names = dict(zip((("rate", "uncached"), ("rate", "cached")), processors, strict=True))
    names |= dict(zip((("limit", "bytes"), ("limit", "FLOP")), bounds, strict=True))
    names["engines", "static"] = list(BESIDE)[3]
    found = []
    for row in rows.to_dict("records"):
        if way := names.get((row["quantity"], row["way"])):
            ends = {"value": 1 / row["value"], "low": 1 / row["high"], "high": 1 / row["low"]}
            found.append({"case": row["case"], "way": way, **ends})
    return pd.DataFrame(found + _transported(rows))


def _transported(rows: pd.DataFrame) -> list[dict[str, Any]]:
    own = rows[(rows["quantity"] == "milliseconds") & (rows["way"] == "ours")]
    widths = {name: f"V = {shape.vocabulary:,}" for name, shape in random_pairs.shapes().items()}
    moved = rows[(rows["quantity"] == "transport") & (rows["unit"] == "ms per step")]
    found = []
    for one in own.to_dict("records"):
        same = (moved["shape"] == widths.get(one["shape"])) & (moved["batch"] == one["batch"])
        for extra in moved[same].iloc:
            step = one["value"]
            ends = {"value": extra["value"], "low": extra["high"], "high": extra["low"]}
            told = {name: step / (step + added) for name, added in ends.items()}
            found.append({"case": one["case"], "way": list(BESIDE)[2], **told})
    return found


def draw_steps(axes: Axes, table: pd.DataFrame) -> None:
    """Draw the time of a step, ours with and without packed weights and naive, with the goals.

    Args:
        axes: where to draw.
        table: of `steps`.
    """
    cases = list(dict.fromkeys(table["case"]))
    axes.axvline(1, color="black", linewidth=0.8)
    styles = {
        "ours": ("ours", "o", COLOURS["codit"], -0.12),
        "unpacked": ("ours, weights as torch keeps them", "x", COLOURS["codit"], 0.0),
        "naive": ("naive", "s", YARDSTICK, 0.12),
    }
    for way, (label, shape, colour, shift) in styles.items():
        own = table[table["way"] == way]
        _dots(axes, own, cases, mark=shape, colour=colour, shift=shift, label=label)
    goals = table.dropna(subset=["goal"])
    places = [cases.index(case) - 0.12 for case in goals["case"]]
    mark: dict[str, Any] = {"markersize": 13, "markeredgewidth": 2.5, "linestyle": "none"}
    axes.plot(goals["goal"], places, marker="|", color="black", label="goal (at most)", **mark)
    _rows(axes, cases, columns=2)


def draw_beside(axes: Axes, table: pd.DataFrame, cases: list[str]) -> None:
    """Draw tokens/s of other ways and limits relative to ours, on a logarithmic axis.

    Args:
        axes: where to draw.
        table: of `beside`.
        cases: from top to bottom; what is not among them gets a row of its own below.
    """
    cases = list(dict.fromkeys([*cases, *table["case"]]))
    axes.axvline(1, color=COLOURS["codit"], label="ours")
    for number, (way, mark) in enumerate(BESIDE.items()):
        own = table[table["way"] == way]
        shift = (number - 1.5) * 0.16
        _dots(axes, own, cases, mark=mark, colour=YARDSTICK, shift=shift, label=way)
    for way, style in LIMITS.items():
        own = table[table["way"] == way]
        at = [cases.index(case) for case in own["case"]]
        ends = ([one - 0.4 for one in at], [one + 0.4 for one in at])
        axes.vlines(own["value"], *ends, color=YARDSTICK, linestyle=style, label=way)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
    axes.minorticks_off()
    _rows(axes, cases, columns=2)


def _dots(
    axes: Axes, own: pd.DataFrame, cases: list[str], *, mark: str, colour: str, shift: float,
    label: str,
) -> None:  # fmt: skip
    if len(own):
        axes.errorbar(
            own["value"],
            [cases.index(case) + shift for case in own["case"]],
            xerr=[own["value"] - own["low"], own["high"] - own["value"]],
            fmt=mark,
            color=colour,
            markersize=5,
            capsize=3,
            label=label,
        )


def _rows(axes: Axes, cases: list[str], *, columns: int) -> None:
    """Name the rows, and the marks in a legend below, at one distance whatever the height."""
    axes.set_yticks(range(len(cases)), cases)
    axes.set_ylim(len(cases) - 0.4, -0.6)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)
    figure = axes.get_figure(root=True)
    assert figure is not None
    below = axes.transAxes + ScaledTranslation(0, -0.5, figure.dpi_scale_trans)
    axes.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0),
        bbox_transform=below,
        ncols=columns,
        fontsize="small",
        columnspacing=1.2,
    )
