"""Biases of a judge against judgements made by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from codit.judge_bias import length_bias, position_bias


def pairs(*values: tuple[str | None, str | None]) -> pd.DataFrame:
    """What a judge said of each pair in the order it was given, and swapped."""
    rows = [
        {"id": name, "order": order, "value": value}
        for name, both in enumerate(values)
        for order, value in zip(("forward", "swapped"), both, strict=True)
    ]
    return pd.DataFrame(rows)


def test_flips_and_first_places_counted_by_hand() -> None:
    found = position_bias(
        pairs(
            ("first", "second"),  # the same response wins
            ("second", "first"),
            ("tie", "tie"),
            ("first", "first"),  # what stands first wins
            ("second", "second"),  # what stands second wins
            ("first", "tie"),
            ("first", "first"),
            ("tie", "second"),
        )
    )
    assert found.flip_rate.estimate == 5 / 8
    assert found.reversed_rate.estimate == 3 / 8
    assert found.first_share.estimate == (3 * 0.5 + 1 + 0 + 0.75 + 1 + 0.25) / 8
    assert (found.n, found.one_order, found.failed) == (8, 0, 0)


def test_a_consistent_judge_has_no_position_bias() -> None:
    found = position_bias(pairs(*[("first", "second"), ("second", "first"), ("tie", "tie")] * 5))
    assert found.flip_rate.estimate == found.reversed_rate.estimate == 0
    assert found.first_share.estimate == found.first_share.low == found.first_share.high == 0.5


def test_a_judge_that_takes_the_first_is_seen_through() -> None:
    said = [("first", "first")] * 12 + [("first", "second")] * 8
    found = position_bias(pairs(*said))
    assert found.first_share.estimate == pytest.approx(0.8)
    assert found.first_share.low > 0.5


def test_pairs_without_both_orders_are_counted_and_left_out() -> None:
    judged = [("first", "second"), ("first", "first"), ("first", None), (None, None)]
    table = pairs(*judged, ("tie", "tie"))
    table = table[~((table["id"] == 4) & (table["order"] == "swapped"))]  # never asked
    found = position_bias(table)
    assert (found.n, found.one_order, found.failed) == (2, 2, 1)
    assert found.flip_rate.estimate == 0.5


def test_draws_of_one_pair_are_averaged_before_anything_is_resampled() -> None:
    three = pd.concat(
        [pairs(("first", "first"), ("first", "second")).assign(draw=draw) for draw in range(3)]
    )
    found = position_bias(three)
    assert found.n == 6
    assert found.flip_rate.n == 2
    assert found.flip_rate.estimate == 0.5


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pairs(("first", "first")), "two ids judged in both orders; got 1"),
        (pairs(("first", None), (None, "first")), "got 0"),
        (pairs(("tie", "tie")).assign(order="ab"), "forward or swapped"),
        (pairs(("tie", "tie")).assign(order="forward"), "some repeat"),
        (pairs(("tie", "tie")).drop(columns="value"), "missing"),
    ],
)
def test_judgements_that_say_nothing_of_position_say_why(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        position_bias(table)


def lengths(*rows: tuple[str, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["id", "score", "length"])


def test_slope_and_ranks_worked_out_by_hand() -> None:
    found = length_bias(
        lengths(
            ("a", 5, 100),
            ("a", 6, 200),
            ("a", 7, 400),  # a point for each doubling
            ("b", 9, 1000),
            ("b", 6, 2000),  # three points less
        ),
        resamples=200,
    )
    # s: -1 0 1, 1.5 -1.5; l: -1 0 1, -.5 .5; sum s l = 2 - 1.5, sum l^2 = 2.5.
    assert found.slope.estimate == pytest.approx(0.5 / 2.5)
    assert found.spearman.estimate == pytest.approx((1 - 1) / 2)
    assert (found.n, found.n_slope, found.left_out, found.failed) == (2, 2, 0, 0)


def test_harder_prompts_with_longer_answers_are_no_bias() -> None:
    rng = np.random.default_rng(0)
    rows = []
    for prompt in range(200):
        hard = rng.random()
        for _ in range(3):
            length = 2 ** (6 + 5 * hard + rng.normal(0, 0.5))
            rows.append((str(prompt), 8 - 6 * hard + rng.normal(0, 0.5), length))
    table = lengths(*rows)
    pooled = np.corrcoef(table["score"], np.log2(table["length"]))[0, 1]
    found = length_bias(table, resamples=300)
    assert pooled < -0.8
    assert found.slope.low < 0 < found.slope.high
    assert found.spearman.low < 0 < found.spearman.high


def test_a_planted_slope_is_found_again() -> None:
    rng = np.random.default_rng(1)
    length = 2 ** rng.normal(8, 1, 900)
    score = 0.4 * np.log2(length) + rng.normal(0, 0.5, 900)
    table = pd.DataFrame({"id": np.repeat(range(300), 3), "score": score, "length": length})
    found = length_bias(table, resamples=300)
    assert found.slope.low < 0.4 < found.slope.high
    assert found.slope.estimate == pytest.approx(0.4, abs=0.06)
    assert found.spearman.low > 0


def test_what_says_nothing_is_counted() -> None:
    usable = [("a", 5.0, 10.0), ("a", 6.0, 20.0), ("b", 3.0, 10.0), ("b", 4.0, 30.0)]
    found = length_bias(
        lengths(
            *usable,
            ("same score", 5, 10),
            ("same score", 5, 20),
            ("same length", 5, 10),
            ("same length", 7, 10),
            ("one", 5, 10),
            ("failed", math.nan, 10),
            ("failed", 5, 20),
        ),
        resamples=100,
    )
    assert (found.n, found.n_slope, found.left_out, found.failed) == (2, 3, 3, 1)


def test_an_empty_response_counts_as_one_character() -> None:
    rows = [("a", 5.0, 0.0), ("a", 6.0, 2.0), ("b", 5.0, 1.0), ("b", 6.0, 2.0)]
    found = length_bias(lengths(*rows), resamples=100)
    assert found.slope.estimate == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": ["a", "b", "c", "d"]}, "several arms to the same prompts"),
        ({"length": math.nan}, "length must be a number"),
        ({"length": -1}, "length must be a number"),
    ],
)
def test_tables_that_say_nothing_of_length_say_why(change: dict[str, Any], message: str) -> None:
    rows = [("a", 5.0, 1.0), ("a", 6.0, 2.0), ("b", 5.0, 1.0), ("b", 6.0, 2.0)]
    with pytest.raises(ValueError, match=message):
        length_bias(lengths(*rows).assign(**change))
