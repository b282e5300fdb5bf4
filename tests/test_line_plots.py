"""Curves: role colours, named bands, refused nonsense."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import same_color

from codit.figures import COLOURS
from codit.line_plots import (
    STYLES,
    YARDSTICK,
    curves,
    families,
    legend,
    legend_below,
    line,
    plausibility_axis,
    stars,
)

TABLE = pd.DataFrame({"c": [0.1, 1.0], "value": [1, 2], "low": [0.5, 1.5], "high": [1.5, 2.5]})


@pytest.fixture
def axes():
    figure, axes = plt.subplots()
    yield axes
    plt.close(figure)


def test_a_curve_and_its_band_have_the_colour_of_their_role(axes) -> None:
    line(axes, TABLE[::-1], x="c", role="codit")  # drawn in the order of x
    (curve,), (band,) = axes.lines, axes.collections
    assert same_color(curve.get_color(), COLOURS["codit"])
    assert same_color(band.get_facecolor()[0][:3], COLOURS["codit"])
    assert curve.get_xydata().tolist() == [[0.1, 1], [1, 2]]
    assert curve.get_label() == "CoDIT"


def test_a_yardstick_belongs_to_no_role(axes) -> None:
    line(axes, TABLE, x="c", role=None, label="uniform", style="--")
    assert same_color(axes.lines[0].get_color(), YARDSTICK)


def test_a_role_without_colour_is_refused(axes) -> None:
    with pytest.raises(ValueError, match="expected a role with a colour"):
        line(axes, TABLE, x="c", role="teacher")


def test_an_interval_must_hold_its_value(axes) -> None:
    with pytest.raises(ValueError, match="not distances from the value"):
        line(axes, TABLE.assign(low=0.1, high=0.2), x="c", role="codit")


def test_the_legend_stands_below_the_panel(axes) -> None:
    line(axes, TABLE, x="c", role="codit")
    legend_below(axes)
    axes.figure.canvas.draw()
    legend = axes.get_legend().get_window_extent()
    assert legend.y1 < axes.get_window_extent().y0


ROLES = pd.concat(
    [
        TABLE.assign(role="codit"),
        TABLE.assign(role="truncated"),
        TABLE[:1].assign(role="direct", c=float("nan")),
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
    table = pd.concat([TABLE.assign(role="codit", student=name) for name in "ab"])
    families(axes, table, x="c", by="student")
    assert [one.get_label() for one in axes.lines] == ["a", "b"]
    assert len({(one.get_linestyle(), one.get_marker()) for one in axes.lines}) == 2
    many = pd.concat([TABLE.assign(role="codit", student=k) for k in range(len(STYLES) + 1)])
    with pytest.raises(ValueError, match="expected at most 4 curves of one role; got 5"):
        families(axes, many, x="c", by="student")


def test_stars_mark_what_has_a_place(axes) -> None:
    stars(axes, ROLES[[True, False, False, False, True]], x="c")
    assert [one.get_xydata().tolist() for one in axes.lines] == [[[0.1, 1]]]


def test_tried_values_are_the_ticks(axes) -> None:
    plausibility_axis(axes, (0.01, 0.3, 0.9))
    assert axes.get_xscale() == "log"
    assert [text.get_text() for text in axes.get_xticklabels()] == [".01", ".3", ".9"]


def test_the_legend_names_each_curve_of_all_panels_once() -> None:
    figure, panels = plt.subplots(1, 2, layout="constrained")
    for axes in panels:
        curves(axes, ROLES, x="c", level="direct")
    legend(figure, "bands: 95 %")
    (found,) = figure.legends
    assert sorted(text.get_text() for text in found.get_texts()) == ["CoDIT", "Direct", "Truncated"]
    assert found.get_title().get_text() == "bands: 95 %"
    plt.close(figure)
