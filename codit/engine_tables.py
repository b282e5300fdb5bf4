"""What engines answered, as one reads it: agreement, distributions, tokens/s, and their panels.

Runs come from `codit.engine_study`; nothing is decoded here. Source of all tables: ours.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from codit import intervals, step_times
from codit.figures import COLOURS
from codit.line_plots import YARDSTICK

Runs: TypeAlias = Mapping[str, Mapping[str, Any]]  # engine -> as `engine_study.study`

FIRST = 8  # tokens in which two answers are said to begin alike (ours)
NAMES = {"static": "static", "continuous": "continuous", "vllm": "vLLM"}
MEASURES = {"logprobs": "mean log q of a token (nats)", "lengths": "tokens of a response"}


def agreement(runs: Runs, decoding: str, *, first: int = FIRST) -> pd.DataFrame:
    """Return how often each two engines answer alike, and how far their log q are apart.

    Args:
        runs: answers to the same prompts.
        decoding: "greedy" or "sampled".
        first: tokens of the shorter comparison.

    Returns:
        DataFrame: one, other, decoding, prompts, same (share of answers that are equal token for
        token), begin (share whose first tokens are), apart (largest |difference of log q| in nats
        over the common prefixes; NaN where none is shared), shared (tokens in those prefixes).

    Raises:
        ValueError: two engines answered unequal numbers of prompts.
    """
    found = []
    for one, other in itertools.combinations(runs, 2):
        rows = [runs[name]["answers"][decoding] for name in (one, other)]
        if len(rows[0]) != len(rows[1]):
            raise ValueError(
                f"expected answers to the same prompts; got {len(rows[0])} of {one} and "
                f"{len(rows[1])} of {other}. Give them the same."
            )
        pairs = list(zip(*rows, strict=True))
        same = [a["tokens"] == b["tokens"] for a, b in pairs]
        begin = [a["tokens"][:first] == b["tokens"][:first] for a, b in pairs]
        apart = [gap for a, b in pairs for gap in _gaps(a, b)]
        found.append(
            {
                "one": one,
                "other": other,
                "decoding": decoding,
                "prompts": len(pairs),
                "same": float(np.mean(same)),
                "begin": float(np.mean(begin)),
                "apart": max(apart, default=float("nan")),
                "shared": len(apart),
            }
        )
    return pd.DataFrame(found)


def _gaps(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[float]:
    """Return |difference of log q| of each token up to the first that differs."""
    tokens = zip(one["tokens"], other["tokens"], strict=False)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], tokens)
    logprobs = zip(one["logprobs"], other["logprobs"], strict=False)
    return [abs(a - b) for _, (a, b) in zip(alike, logprobs, strict=False)]


def samples(runs: Runs) -> pd.DataFrame:
    """Return what each engine's samples look like, and the difference from the first engine's.

    A prompt's samples are averaged first; intervals are over prompts.

    Args:
        runs: answers to the same prompts.

    Returns:
        DataFrame: engine, measure (of `MEASURES`), value, low, high (95 % bootstrap), samples,
        prompts, and difference, difference_low, difference_high (paired; NaN of the first engine).
    """
    base, *_ = runs
    found = []
    for measure, engine in itertools.product(MEASURES, runs):
        own, first = (_averaged(runs[name], measure) for name in (engine, base))
        mean = intervals.mean_interval(own)
        row = {"engine": engine, "measure": MEASURES[measure], "value": mean.estimate}
        row |= {"low": mean.low, "high": mean.high, "samples": len(runs[engine]["samples"])}
        row |= {"prompts": mean.n}
        if engine != base:
            gap = intervals.difference_interval(own, first)
            row |= {"difference": gap.estimate, "difference_low": gap.low}
            row |= {"difference_high": gap.high}
        found.append(row)
    return pd.DataFrame(found)


def _averaged(run: Mapping[str, Any], measure: str) -> np.ndarray[Any, Any]:
    return np.asarray([turn[measure] for turn in run["samples"]], dtype=float).mean(0)


def within(low: float, high: float, margin: float) -> bool | None:
    """Tell whether a difference is small: its interval lies between -margin and margin.

    Args:
        low: end of the interval.
        high: the other end.
        margin: what counts as small, in the difference's unit.

    Returns:
        bool | None: True where the whole interval is inside, False where all of it is outside,
        None where it holds an end.
    """
    if -margin <= low and high <= margin:
        return True
    return False if low > margin or high < -margin else None


def rates(runs: Runs) -> pd.DataFrame:
    """Return the tokens/s of each engine, prompts included.

    Args:
        runs: see `engine_study.study`.

    Returns:
        DataFrame: engine, value (median of the timed turns), low, high (quartiles), turns,
        standins (whether the kernels are the tests' stand-ins), origin.
    """
    found = []
    for engine, run in runs.items():
        speeds = [n / s for n, s in zip(run["tokens"], run["seconds"], strict=True)]
        about = {"turns": len(speeds), "standins": run["standins"], "origin": run["origin"]}
        found.append({"engine": engine, **step_times.quartiles(speeds), **about})
    return pd.DataFrame(found)


def quicker(runs: Runs, one: str, other: str) -> dict[str, float]:
    """Return how many times the tokens/s of another engine one has, turn by turn.

    Args:
        runs: with both engines, measured in turn: the same tokens in each turn.
        one: engine.
        other: engine.

    Returns:
        dict: value (median), low, high (quartiles).
    """
    times = pd.DataFrame({name: runs[name]["seconds"] for name in (one, other)})
    return step_times.ratio(times, other, one)


def draw_agreement(axes: Axes, greedy: pd.DataFrame, sampled: pd.DataFrame) -> None:
    """Draw the share of equal answers for each two engines: greedy above the diagonal.

    Args:
        axes: where to draw.
        greedy: of `agreement`.
        sampled: of `agreement`, of the same engines.
    """
    engines = list(dict.fromkeys([*greedy["one"], *greedy["other"]]))
    place = {engine: number for number, engine in enumerate(engines)}
    for table, upper in ((greedy, True), (sampled, False)):
        for row in table.to_dict("records"):
            at = place[row["other"]], place[row["one"]]
            _cell(axes, at if upper else at[::-1], row)
    for number in place.values():
        axes.add_patch(Rectangle((number - 0.5, number - 0.5), 1, 1, color="0.93", linewidth=0))
    names = [NAMES.get(engine, engine) for engine in engines]
    axes.set_xticks(range(len(names)), names)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5), aspect="equal")
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _cell(axes: Axes, at: tuple[int, int], row: Mapping[str, Any]) -> None:
    """Draw one pair of engines: a tile as dark as the share, with its numbers."""
    x, y = at
    colour: dict[str, Any] = {"facecolor": COLOURS["codit"], "alpha": 0.1 + 0.65 * row["same"]}
    axes.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, linewidth=0, **colour))
    ink = "white" if row["same"] > 0.6 else "black"
    centre: dict[str, Any] = {"ha": "center", "va": "center", "color": ink}
    axes.text(x, y - 0.22, row["decoding"], fontsize="x-small", **centre)
    axes.text(x, y + 0.02, f"{row['same']:.2f}", fontsize="large", **centre)
    axes.text(x, y + 0.26, f"|Δ log q| ≤ {row['apart']:.0e}", fontsize="x-small", **centre)


def draw_rates(axes: Axes, table: pd.DataFrame) -> None:
    """Draw tokens/s of each engine, hatched where its kernels are stand-ins.

    Args:
        axes: where to draw.
        table: of `rates`.
    """
    for number, row in enumerate(table.to_dict("records")):
        style: dict[str, Any] = {"color": COLOURS["codit"]}
        if row["standins"]:
            style = {"facecolor": "white", "edgecolor": YARDSTICK, "hatch": "///"}
        ends = [[row["value"] - row["low"]], [row["high"] - row["value"]]]
        axes.barh(number, row["value"], 0.6, **style)
        axes.errorbar(row["value"], number, xerr=ends, fmt="none", ecolor="black", capsize=3)
        axes.annotate(
            f"{row['value']:,.0f}", (row["high"], number), (6, 0), textcoords="offset points",
            va="center", fontsize="small",
        )  # fmt: skip
    axes.set_yticks(range(len(table)), [_label(row) for row in table.to_dict("records")])
    axes.tick_params(axis="y", labelsize="small")
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.margins(x=0.15)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)


def _label(row: Mapping[str, Any]) -> str:
    """Return an engine's name with where its numbers come from, in short lines."""
    told = row["origin"].split(", ")
    lines = [part.replace("taken on", "").replace(" on ", "\n").strip() for part in told]
    return "\n".join([NAMES.get(row["engine"], row["engine"]), *lines])


def text(row: Mapping[str, Any], digits: int = 3) -> str:
    """Return a value and its interval as one reads it: 2.05 [1.98, 2.11].

    Args:
        row: value, low, high.
        digits: significant.

    Returns:
        str: estimate, then both ends.
    """
    value, low, high = (f"{row[name]:.{digits}g}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"
