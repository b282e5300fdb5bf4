"""Marks: what is drawn is what the table says."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

from codit import figures, plots
from codit.figures import COLOURS

TABLE = pd.DataFrame(
    [
        {"role": role, "set": name, "value": value, "low": value - 0.1, "high": value + 0.2}
        for name, values in {"test": (0.2, 0.5), "families": (0.3, 0.6)}.items()
        for role, value in zip(("direct", "codit"), values, strict=True)
    ]
)
TOKENS = pd.DataFrame(
    {
        "token": ["The", " mill", "\n", " stands"],
        "token_id": [1, 2, 3, 4],
        "logp_expert": [-0.5, -0.1, -3.0, -0.2],
        "logp_amateur": [-0.5, -4.0, -0.1, -np.inf],
        "logq": [-0.1, -0.1, -0.1, 0.0],
        "n_plausible": [3, 1, 2, 1],
        "argmax_changed": [False, False, True, False],
    }
)


@pytest.fixture
def axes() -> Axes:
    figures.theme()
    figure, axes = pyplot.subplots()
    pyplot.close(figure)
    return axes


def words(axes: Axes) -> str:
    (legend,) = axes.figure.legends
    return " ".join([legend.get_title().get_text(), *(t.get_text() for t in legend.get_texts())])


def test_every_row_is_a_bar_of_its_height_and_its_role_s_colour(axes: Axes) -> None:
    plots.bars(axes, TABLE, interval="95 % bootstrap over prompts", group="set")
    bars = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    drawn = {(round(bar.get_height(), 3), bar.get_facecolor()) for bar in bars}
    assert drawn == {(row.value, to_rgba(COLOURS[row.role])) for row in TABLE.itertuples()}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["test", "families"]


def test_whiskers_end_where_the_interval_ends_and_are_named(axes: Axes) -> None:
    plots.bars(axes, TABLE, interval="95 % bootstrap over prompts", group="set")
    segments = [s for lines in axes.collections for s in lines.get_segments()]
    ends = {tuple(np.round(segment[:, 1], 3)) for segment in segments}
    assert ends == {(round(r.low, 3), round(r.high, 3)) for r in TABLE.itertuples()}
    assert words(axes) == "whiskers: 95 % bootstrap over prompts Direct CoDIT"


def test_panels_share_a_legend_where_they_agree_and_have_their_own_where_not() -> None:
    figures.theme()
    figure, (left, middle, right) = pyplot.subplots(1, 3)
    pyplot.close(figure)
    for axes, table in ((left, TABLE), (middle, TABLE), (right, TABLE.assign(role="expert"))):
        plots.bars(axes, table.drop_duplicates(["role", "set"]), interval="none", group="set")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["Direct", "CoDIT"]
    assert len(figure.legends) == 1
    assert middle.get_legend() is None
    own = right.get_legend()
    assert own is not None
    assert [text.get_text() for text in own.get_texts()] == ["Expert"]


def test_a_role_that_lacks_a_group_leaves_its_place_empty(axes: Axes) -> None:
    table = TABLE[(TABLE["role"] == "codit") | (TABLE["set"] == "test")]
    plots.bars(axes, table, interval="none", group="set")
    places = {round(bar.get_x() + bar.get_width() / 2, 3) for bar in axes.patches}
    assert places == {-0.2, 0.2, 1.2}


def test_single_seeds_are_drawn_at_their_values_beside_their_bar(axes: Axes) -> None:
    points = TABLE.assign(value=TABLE["value"] + 0.01)
    plots.bars(axes, TABLE, interval="none", group="set", points=points)
    offsets = np.concatenate([c.get_offsets() for c in axes.collections if len(c.get_offsets())])
    drawn = sorted(round(float(y), 3) for _, y in offsets if y)
    assert drawn == sorted(round(value, 3) for value in points["value"])


def test_a_role_without_a_colour_is_refused(axes: Axes) -> None:
    message = r"expected roles with a colour, direct, .*; got magic. Rename them"
    with pytest.raises(ValueError, match=message):
        plots.bars(axes, TABLE.assign(role="magic"), interval="none", group="set")


@pytest.mark.parametrize("low", [0.25, float("nan")])
def test_distances_in_place_of_the_ends_of_an_interval_are_refused(axes: Axes, low: float) -> None:
    table = TABLE.head(1).assign(low=low)
    message = re.escape(f"low <= value <= high; got {low}, 0.2, 0.4 for direct")
    with pytest.raises(ValueError, match=message):
        plots.bars(axes, table, interval="none")


scores = st.lists(st.floats(1, 10), min_size=1, max_size=40)


@settings(deadline=None)
@given(scores)
def test_shares_sum_to_one_inside_intervals_that_hold_them(values: list[float]) -> None:
    shares = plots.score_shares(pd.DataFrame({"role": "codit", "score": values}))
    assert shares["share"].sum() == pytest.approx(1)
    assert shares["count"].sum() == len(values)
    assert list(shares["score"]) == list(range(1, 11))
    assert (shares["low"] <= shares["share"]).all()
    assert (shares["share"] <= shares["high"]).all()
    assert shares["mean"].iloc[0] == pytest.approx(np.mean(values))


def test_the_interval_of_a_share_is_wilson_s() -> None:
    shares = plots.score_shares(pd.DataFrame({"role": "codit", "score": [3] * 4 + [7] * 6}))
    n, p, z = 10, 0.4, 1.959964
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    row = shares[shares["score"] == 3].iloc[0]
    assert (row["low"], row["high"]) == pytest.approx((centre - half, centre + half), abs=1e-6)


@pytest.mark.parametrize("score", [0, 11, float("nan")])
def test_what_was_not_scored_is_never_plotted_as_a_number(score: float) -> None:
    table = pd.DataFrame({"role": "codit", "score": [5.0, score]})
    with pytest.raises(ValueError, match=r"scores from 1 to 10; got 1 others, the first .* Drop"):
        plots.score_shares(table)


def test_a_score_distribution_shows_means_and_numbers_of_responses(axes: Axes) -> None:
    table = pd.DataFrame({"role": ["direct"] * 4 + ["codit"] * 4, "score": [2, 4, 4, 6] * 2})
    table.loc[table["role"] == "codit", "score"] += 3
    plots.score_distribution(axes, plots.score_shares(table), interval="95 % Wilson")
    assert words(axes) == "whiskers: 95 % Wilson; triangles: means; n = 4 Direct: 4.00 CoDIT: 7.00"
    triangles = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "v"]
    assert triangles == [3, 6]  # the places of the ticks labelled 4 and 7
    assert axes.get_xticklabels()[3].get_text() == "4"


def test_every_token_is_a_box_and_only_changed_ones_are_framed(axes: Axes) -> None:
    plots.token_strip(axes, TOKENS)
    assert [text.get_text() for text in axes.texts] == ["The", "·mill", "↵", "·stands"]
    framed = [patch.get_edgecolor() == to_rgba("black") for patch in axes.patches]
    assert framed == list(TOKENS["argmax_changed"])


def test_tokens_that_do_not_fit_begin_a_new_line(axes: Axes) -> None:
    plots.token_strip(axes, TOKENS, columns=9)
    tops = [patch.get_y() for patch in axes.patches]
    ends = [patch.get_x() + patch.get_width() for patch in axes.patches]
    assert len(set(tops)) == 2
    assert max(ends) <= 9


def test_wanted_and_unwanted_tokens_have_colours_on_the_two_sides_of_the_map(axes: Axes) -> None:
    plots.token_strip(axes, TOKENS)
    red, _, blue, _ = zip(*(patch.get_facecolor() for patch in axes.patches), strict=True)
    assert blue[1] > red[1], "the expert wants `mill`: violet"
    assert red[2] > blue[2], "the amateur wants the line break: orange"
    assert red[0] == pytest.approx(blue[0], abs=0.02), "the first token is wanted by both"


def test_the_candidates_of_a_step_have_three_bars_each(axes: Axes) -> None:
    rows = {"token": [" mill", "\n"], "p_expert": [0.5, 0.3], "p_amateur": [0.2, 0.7], "q": [1, 0]}
    plots.candidate_bars(axes, pd.DataFrame(rows))
    drawn = [[bar.get_height() for bar in container] for container in axes.containers]
    assert drawn == [rows["p_amateur"], rows["p_expert"], rows["q"]]
    colours = [container[0].get_facecolor() for container in axes.containers]
    assert colours == [to_rgba(COLOURS[role]) for role in ("amateur", "expert", "codit")]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["·mill", "↵"]


def test_a_coloured_table_shows_the_gain_and_marks_changes() -> None:
    html = plots.token_colours(TOKENS).to_html()
    assert "·mill" in html
    assert "3.90" in html
    assert "font-weight: bold" in html
    plain = plots.token_colours(TOKENS.assign(argmax_changed=False)).to_html()
    assert "font-weight: bold" not in plain
