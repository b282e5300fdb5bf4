"""Agreement between judges and their biases, against values by hand and by scipy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from codit.evaluation.agreement import (
    Agreement,
    agreement,
    cohens_kappa,
    length_bias,
    position_bias,
    spearman,
)

SCORES = st.lists(st.tuples(st.integers(1, 10), st.integers(1, 10)), min_size=2, max_size=40)


def judge(scores: list[float], **columns: Any) -> pd.DataFrame:
    return pd.DataFrame({"id": [f"p{k}" for k in range(len(scores))], "score": scores, **columns})


def agree(first: pd.DataFrame, second: pd.DataFrame, **how: Any) -> Agreement:
    return agreement(first, second, **{"kind": "scores", "resamples": 200, **how})


def test_kappa_of_a_table_worked_out_by_hand() -> None:
    # 20 both yes, 5 and 10 apart, 15 both no: p_o = .7, p_e = .5 * .6 + .5 * .4 = .5, kappa = .4.
    x = np.repeat([1.0, 1.0, 0.0, 0.0], [20, 5, 10, 15])
    y = np.repeat([1.0, 0.0, 1.0, 0.0], [20, 5, 10, 15])
    assert cohens_kappa(x, y, weighted=False) == pytest.approx(0.4)
    assert cohens_kappa(x, y, weighted=True) == pytest.approx(0.4), "two categories: the same"


def test_weighted_kappa_worked_out_by_hand() -> None:
    # Differences 0, 1, 2: mean of squares 5/3. All nine pairs of {1, 2, 3} and {1, 3, 5}:
    # squares 0 4 16, 1 1 9, 4 0 4 = 39/9. kappa = 1 - (5/3) / (39/9) = 8/13.
    x, y = np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 5.0])
    assert cohens_kappa(x, y, weighted=True) == pytest.approx(8 / 13)


@settings(deadline=None)
@given(SCORES)
def test_kappa_is_that_of_the_table_of_counts(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array(values, dtype=float) for values in zip(*pairs, strict=True))
    observed = np.zeros((10, 10))
    for a, b in pairs:
        observed[a - 1, b - 1] += 1 / len(pairs)
    expected = np.outer(observed.sum(axis=1), observed.sum(axis=0))
    grid = np.subtract.outer(np.arange(10), np.arange(10)) ** 2
    for weighted, weights in ((True, grid / 81), (False, (grid > 0).astype(float))):
        by_chance = (weights * expected).sum()
        found = cohens_kappa(x, y, weighted=weighted)
        if by_chance < 1e-12:
            assert math.isnan(found)
        else:
            assert found == pytest.approx(1 - (weights * observed).sum() / by_chance, abs=1e-9)


@settings(deadline=None)
@given(SCORES)
def test_spearman_is_scipys(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array(values, dtype=float) for values in zip(*pairs, strict=True))
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        assert math.isnan(spearman(x, y))
    else:
        assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)


def test_a_judge_agrees_with_itself_and_disagrees_with_its_opposite() -> None:
    scores = [1.0, 4.0, 6.5, 9.0, 10.0, 3.0]
    same = agree(judge(scores), judge(scores).sample(frac=1, random_state=0))
    assert same.spearman.estimate == same.kappa.estimate == same.equal == 1
    turned = agree(judge(scores), judge([11 - score for score in scores]))
    assert turned.spearman.estimate == pytest.approx(-1)
    assert turned.kappa.estimate < 0
    assert turned.equal == 0


def test_a_stricter_judge_ranks_alike_but_agrees_less() -> None:
    scores = [4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0]
    found = agree(judge(scores), judge([score - 3 for score in scores]))
    assert found.spearman.estimate == pytest.approx(1)
    assert found.weighted_kappa == found.kappa
    assert found.kappa.estimate == pytest.approx(1 - 9 / (4 + 4 + 9))
    # Never equal; by chance 4 of 49: both say 4, 5, 6 or 7 once.
    assert found.plain_kappa.estimate == pytest.approx(1 - 1 / (1 - 4 / 49))


def test_rows_that_either_judge_could_not_judge_are_counted_not_filled() -> None:
    first = judge([1, 2, 3, 4, math.nan, math.nan, 7])
    second = judge([1, 2, 3, math.nan, 5, None]).astype({"score": "float64"})
    found = agree(first, second)
    counts = (found.n_both, found.n_first, found.n_second, found.n_neither)
    assert counts == (3, 2, 1, 1)
    assert found.spearman.estimate == pytest.approx(1)


def test_preferences_are_compared_by_who_wins() -> None:
    first = pd.DataFrame({"id": [1, 2, 3, 4], "preference": [0.9, 0.2, 0.5, 0.6]})
    second = pd.DataFrame({"id": [1, 2, 3, 4], "preference": [0.6, 0.1, 0.5, 0.4]})
    found = agree(first, second, kind="preferences")
    # Winners 1 -1 0 1 and 1 -1 0 -1: p_o = 3/4, p_e = (2 * 1 + 1 * 2 + 1 * 1) / 16 = 5/16.
    assert found.equal == 0.75
    assert found.plain_kappa == found.kappa
    assert found.kappa.estimate == pytest.approx(1 - (1 / 4) / (11 / 16))
    # Squares 0 0 0 4; variances 11/16 each (means 1/4 and -1/4), their difference 1/2.
    assert found.weighted_kappa.estimate == pytest.approx(1 - 1 / (11 / 16 + 11 / 16 + 1 / 4))


def test_several_responses_of_a_prompt_are_resampled_together() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(1, 11, 60).astype(float)
    other = np.clip(scores + rng.integers(-3, 4, 60), 1, 10)
    keys = {"id": np.repeat(np.arange(6), 10), "sample": np.tile(np.arange(10), 6)}
    one = pd.DataFrame({**keys, "score": scores})
    two = pd.DataFrame({**keys, "score": other})
    assert agree(one, two).spearman.n == 6
    assert agree(one, two).n_both == 60
    apart = agree(one.assign(id=range(60)), two.assign(id=range(60)))
    assert apart.spearman.n == 60
    assert apart.spearman.estimate == agree(one, two).spearman.estimate


def test_the_interval_covers_the_true_correlation_about_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(5), 0
    true = 6 / math.pi * math.asin(0.6 / 2)  # Spearman's of a normal pair correlated by .6
    for _ in range(30):
        x = rng.normal(size=80)
        y = 0.6 * x + 0.8 * rng.normal(size=80)
        found = agree(judge(list(x)), judge(list(y))).spearman
        covered += found.low <= true <= found.high
    assert covered >= 24  # of 30; binomial .95 falls below with probability .0005


def test_a_judge_that_always_says_the_same_has_no_correlation() -> None:
    found = agree(judge([5, 5, 5]), judge([1, 2, 3]))
    assert math.isnan(found.spearman.estimate)
    assert found.kappa.estimate == pytest.approx(0)


@pytest.mark.parametrize(
    ("second", "kind", "message"),
    [
        (judge([1, 2, 3]).drop(columns="score"), "scores", "missing \\['score'\\]"),
        (judge([1, 2, 3]).assign(id="p0"), "scores", "some repeat"),
        (judge([1, 2, 3]).assign(id=["x", "y", "z"]), "scores", "got 0 of 6"),
        (judge([1, 2, 3]), "preferences", "missing"),
    ],
)
def test_tables_that_cannot_be_compared_say_why(
    second: pd.DataFrame, kind: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        agree(judge([1, 2, 3]), second, kind=kind)


def test_preferences_outside_their_range_are_an_error() -> None:
    table = pd.DataFrame({"id": [1, 2], "preference": [1.0, 2.0]})
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        agree(table, table, kind="preferences")


# -- order and length ----------------------------------------------------------------------------


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
    assert found.n == 8


def test_a_consistent_judge_has_no_position_bias() -> None:
    found = position_bias(pairs(*[("first", "second"), ("second", "first"), ("tie", "tie")] * 5))
    assert found.flip_rate.estimate == found.reversed_rate.estimate == 0
    assert found.first_share.estimate == found.first_share.low == found.first_share.high == 0.5


def test_a_judge_that_takes_the_first_is_seen_through() -> None:
    said = [("first", "first")] * 12 + [("first", "second")] * 8
    found = position_bias(pairs(*said))
    assert found.first_share.estimate == pytest.approx(0.8)
    assert found.first_share.low > 0.5


def test_pairs_without_both_orders_are_left_out() -> None:
    judged = [("first", "second"), ("first", "first"), ("first", None), (None, None)]
    table = pairs(*judged, ("tie", "tie"))
    table = table[~((table["id"] == 4) & (table["order"] == "swapped"))]  # never asked
    found = position_bias(table)
    assert found.n == 2
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


def test_a_slope_worked_out_by_hand() -> None:
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
    assert found.estimate == pytest.approx(0.5 / 2.5)
    assert found.n == 2


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
    assert found.low < 0 < found.high


def test_a_planted_slope_is_found_again() -> None:
    rng = np.random.default_rng(1)
    length = 2 ** rng.normal(8, 1, 900)
    score = 0.4 * np.log2(length) + rng.normal(0, 0.5, 900)
    table = pd.DataFrame({"id": np.repeat(range(300), 3), "score": score, "length": length})
    found = length_bias(table, resamples=300)
    assert found.low < 0.4 < found.high
    assert found.estimate == pytest.approx(0.4, abs=0.06)


def test_what_says_nothing_of_length_is_left_out() -> None:
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
    # s l: .5 * 1 for a, .5 * log2(3) for b; a prompt scored alike pulls the slope to 0.
    wide = math.log2(3)
    assert found.estimate == pytest.approx((1 + wide) / (1 + wide**2 + 1))
    assert found.n == 3


def test_an_empty_response_counts_as_one_character() -> None:
    rows = [("a", 5.0, 0.0), ("a", 6.0, 2.0), ("b", 5.0, 1.0), ("b", 6.0, 2.0)]
    found = length_bias(lengths(*rows), resamples=100)
    assert found.estimate == pytest.approx(1)


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
