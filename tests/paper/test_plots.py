"""Marks: what is drawn is what the table says."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import same_color, to_rgba
from matplotlib.patches import Rectangle

from codit.paper import figures, plots
from codit.paper.figures import COLOURS
from codit.paper.plots import (
    STYLES,
    YARDSTICK,
    curves,
    families,
    frontier,
    legend,
    line,
    plausibility_axis,
    plausibility_panels,
    stars,
)

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


def test_a_role_without_a_colour_is_refused(axes: Axes) -> None:
    message = r"expected roles with a colour, direct, .*; got magic. Rename them"
    with pytest.raises(ValueError, match=message):
        plots.bars(axes, TABLE.assign(role="magic"), interval="none", group="set")


@pytest.mark.parametrize("low", [0.25, float("nan")])
def test_distances_in_place_of_the_ends_of_an_interval_are_refused(axes: Axes, low: float) -> None:
    table = TABLE.head(1).assign(low=low)
    message = re.escape(f"low <= value <= high; got {low}, 0.2, 0.4 for direct")
    with pytest.raises(ValueError, match=message):
        plots.bars(axes, table, interval="none", group="set")


ROWS = TABLE.drop_duplicates(["role", "set"]).assign(
    arm=lambda t: t["set"] + " " + t["role"], value=lambda t: t["value"]
)


def test_a_forest_has_one_estimate_per_row_in_its_role_s_colour_the_first_on_top(
    axes: Axes,
) -> None:
    plots.forest(axes, ROWS, interval="95 % over prompts", zero=True)
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == list(ROWS["arm"])
    low, high = axes.get_ylim()
    assert low > high, "row 0 is on top"
    dots = {
        (round(float(c[0].get_xdata()[0]), 3), int(c[0].get_ydata()[0]), to_rgba(c[0].get_color()))
        for c in axes.containers
    }
    assert dots == {
        (round(row.value, 3), place, to_rgba(COLOURS[row.role]))
        for place, row in enumerate(ROWS.itertuples())
    }
    assert 0 in [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]


def test_a_forest_says_once_per_figure_what_its_whiskers_are(axes: Axes) -> None:
    points = ROWS.assign(value=ROWS["value"] + 0.05)
    for _ in range(2):
        plots.forest(axes, ROWS, interval="95 % over prompts", points=points)
    plots.forest(axes, ROWS, interval=None)
    figure = axes.get_figure()
    assert figure is not None
    notes = [text.get_text() for text in figure.texts]
    assert notes == ["whiskers: 95 % over prompts; circles: seeds"]
    drawn = [float(x) for c in axes.collections for x, _ in c.get_offsets() if x]
    assert set(np.round(points["value"], 3)) <= set(np.round(drawn, 3))


def test_a_forest_refuses_what_bars_refuse(axes: Axes) -> None:
    with pytest.raises(ValueError, match="expected roles with a colour"):
        plots.forest(axes, ROWS.assign(role="magic"), interval=None)
    with pytest.raises(ValueError, match="low <= value <= high"):
        plots.forest(axes, ROWS.assign(low=1.0), interval=None)


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


CURVE = pd.DataFrame({"c": [0.1, 1.0], "value": [1, 2], "low": [0.5, 1.5], "high": [1.5, 2.5]})


def test_a_curve_and_its_band_have_the_colour_of_their_role(axes) -> None:
    line(axes, CURVE[::-1], x="c", role="codit")  # drawn in the order of x
    (curve,), (band,) = axes.lines, axes.collections
    assert same_color(curve.get_color(), COLOURS["codit"])
    assert same_color(band.get_facecolor()[0][:3], COLOURS["codit"])
    assert curve.get_xydata().tolist() == [[0.1, 1], [1, 2]]
    assert curve.get_label() == "CoDIT"


def test_a_yardstick_belongs_to_no_role(axes) -> None:
    line(axes, CURVE, x="c", role=None, label="uniform", style="--")
    assert same_color(axes.lines[0].get_color(), YARDSTICK)


def test_a_role_without_colour_is_refused(axes) -> None:
    with pytest.raises(ValueError, match="expected roles with a colour"):
        line(axes, CURVE, x="c", role="teacher")


def test_an_interval_must_hold_its_value(axes) -> None:
    with pytest.raises(ValueError, match="not distances from the value"):
        line(axes, CURVE.assign(low=0.1, high=0.2), x="c", role="codit")


ROLES = pd.concat(
    [
        CURVE.assign(role="codit"),
        CURVE.assign(role="truncated"),
        CURVE[:1].assign(role="direct", c=float("nan")),
    ]
)


def test_one_curve_per_role_and_the_baseline_as_a_level(axes) -> None:
    curves(axes, ROLES, x="c", level="direct")
    found = {str(one.get_label()): one for one in axes.lines}
    assert set(found) == {"CoDIT", "Truncated", "Direct"}
    assert set(found["Direct"].get_ydata()) == {1}
    assert same_color(found["Truncated"].get_color(), COLOURS["truncated"])


def test_a_level_without_an_interval_has_no_band(axes) -> None:
    exact = ROLES.assign(low=ROLES["value"], high=ROLES["value"])
    curves(axes, exact[exact["role"] == "direct"], x="c", level="direct")
    assert not axes.patches


def test_members_of_a_family_are_told_apart_by_line_and_marker(axes) -> None:
    table = pd.concat([CURVE.assign(role="codit", student=name) for name in "ab"])
    families(axes, table, x="c", by="student")
    assert [one.get_label() for one in axes.lines] == ["a", "b"]
    assert len({(one.get_linestyle(), one.get_marker()) for one in axes.lines}) == 2
    many = pd.concat([CURVE.assign(role="codit", student=k) for k in range(len(STYLES) + 1)])
    with pytest.raises(ValueError, match="expected at most 4 curves of one role; got 5"):
        families(axes, many, x="c", by="student")


def test_stars_mark_what_has_a_place(axes) -> None:
    stars(axes, ROLES[[True, False, False, False, True]], x="c")
    assert [one.get_xydata().tolist() for one in axes.lines] == [[[0.1, 1]]]


def place(role: str, x: float, y: float, plausibility: float = np.nan) -> dict[str, Any]:
    ends = {"strict_low": x - 0.1, "strict_high": x + 0.2, "correct_low": y, "correct_high": y}
    return {"role": role, "plausibility": plausibility, "strict": x, "correct": y, **ends}


def test_the_frontier_joins_a_role_s_values_in_order_and_names_the_ends(axes) -> None:
    table = [place("codit", 0.5, 0.7, 0.3), place("codit", 0.4, 0.8, 0.9)]
    table += [place("codit", 0.6, 0.6, 0.03), place("direct", 0.3, 0.8)]
    line = [place("amateur", 0.1, 0.9), place("chat-vector", 0.3, 0.8), place("expert", 0.5, 0.6)]
    frontier(axes, pd.DataFrame(table), pd.DataFrame(line))
    drawn = {one.get_label(): one.get_xydata().tolist() for one in axes.lines}
    assert drawn["Amateur"] == [[0.1, 0.9]]
    assert drawn["Expert"] == [[0.5, 0.6]]
    curves = {c.get_label(): c.lines[0].get_xydata().tolist() for c in axes.containers}
    assert curves["CoDIT"] == [[0.6, 0.6], [0.5, 0.7], [0.4, 0.8]]
    assert curves["Direct"] == [[0.3, 0.8]]
    assert [text.get_text() for text in axes.texts] == [".03", ".9"]
    whiskers = axes.containers[0].lines[2][0].get_segments()
    assert whiskers[0].tolist() == [[pytest.approx(0.5), 0.6], [pytest.approx(0.8), 0.6]]


def test_tried_values_are_the_ticks(axes) -> None:
    plausibility_axis(axes, (0.01, 0.3, 0.9))
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == [".01", ".3", ".9"]


def test_each_teacher_is_a_row_of_panels_and_what_is_marked_has_its_star_there() -> None:
    own = ROLES.rename(columns={"c": "plausibility"})
    keys = [("A", "score"), ("A", "both"), ("B", "score"), ("B", "both")]
    table = pd.concat([own.assign(teacher=teacher, measure=key) for teacher, key in keys])
    marked = table[(table["teacher"] == "B") & (table["measure"] == "both")].dropna().tail(1)
    figure = plausibility_panels(
        table,
        [0.1, 0.9],
        by="measure",
        names={"both": "in full", "score": "score"},
        title="{teacher}: {name}",
        sharey="all",
        marked=marked,
    )
    panels = figure.axes
    titles = ["A: in full", "A: score", "B: in full", "B: score"]
    assert [one.get_title() for one in panels] == titles
    assert [one.get_xlabel() for one in panels] == ["", "", *["plausibility (α)"] * 2]
    assert [[line.get_marker() for line in one.lines].count("*") for one in panels] == [0, 0, 1, 0]
    assert {len(one.lines) for one in panels} == {3, 4}, "three roles, and the star"
    assert panels[0].get_ylim() == panels[3].get_ylim()
    pyplot.close(figure)


def test_the_legend_names_each_curve_of_all_panels_once() -> None:
    figure, panels = pyplot.subplots(1, 2, layout="constrained")
    for axes in panels:
        curves(axes, ROLES, x="c", level="direct")
    legend(figure, "bands: 95 %")
    (found,) = figure.legends
    assert sorted(text.get_text() for text in found.get_texts()) == ["CoDIT", "Direct", "Truncated"]
    assert found.get_title().get_text() == "bands: 95 %"
    pyplot.close(figure)
