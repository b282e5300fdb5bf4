"""Intervals and corrected tests against closed forms and scipy."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from codit.evaluation.intervals import (
    Interval,
    columns,
    difference_interval,
    draws,
    holm,
    mean_interval,
    statistic_interval,
    text,
)

numbers = st.integers(-1000, 1000).map(lambda k: k / 8)
arms = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=30)
p_lists = st.lists(st.floats(0, 1), min_size=1, max_size=12)


def normal(n: int, *, mean: float = 0.0, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(mean, 1.0, n)


def test_the_interval_of_normal_data_is_that_of_the_t_distribution() -> None:
    values = normal(400, mean=3.0)
    got = mean_interval(values)
    low, high = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert got.estimate == pytest.approx(values.mean())
    assert (got.low, got.high) == pytest.approx((low, high), abs=0.01)
    assert (got.n, got.method) == (400, "BCa")


def test_the_interval_is_scipys_paired_bootstrap_of_the_difference() -> None:
    a, b = normal(40, mean=0.4, seed=1), normal(40, seed=2)
    got = difference_interval(a, b, resamples=2000)
    expected = stats.bootstrap(
        (a, b),
        lambda x, y, axis: (x - y).mean(axis=axis),
        paired=True,
        method="BCa",
        confidence_level=0.95,
        n_resamples=2000,
        rng=np.random.default_rng(0),
    ).confidence_interval
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_intervals_cover_the_true_mean_about_as_often_as_they_say() -> None:
    covered = 0
    for seed in range(200):
        values = np.random.default_rng(seed).random(50) < 0.3
        interval = mean_interval(values, resamples=500, seed=seed)
        covered += interval.low <= 0.3 <= interval.high
    assert 0.90 <= covered / 200 <= 0.99


@settings(deadline=None, max_examples=50)
@given(arms)
def test_an_interval_holds_its_estimate_and_stays_within_the_data(
    rows: list[tuple[float, float]],
) -> None:
    a, b = zip(*rows, strict=True)
    difference = np.subtract(a, b)
    got = difference_interval(a, b, resamples=200)
    assert difference.min() <= got.low <= got.high <= difference.max()
    assert got.estimate == pytest.approx(difference.mean())
    turned = difference_interval(b, a, resamples=200)
    assert turned.estimate == -got.estimate


def test_a_seed_repeats_an_interval() -> None:
    values = normal(30)
    assert mean_interval(values) == mean_interval(values, seed=0) != mean_interval(values, seed=1)


def test_the_interval_of_very_many_values_is_the_normal_one() -> None:
    values = normal(5001, mean=3.0)
    got = mean_interval(values)
    ends = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert (got.low, got.high) == pytest.approx(ends, abs=1e-8)
    assert got.method == "normal"
    nearly = mean_interval(values[1:], resamples=1000)
    assert (nearly.low, nearly.high) == pytest.approx(ends, abs=3e-3)


def test_equal_values_give_an_interval_of_no_width() -> None:
    got = mean_interval([0.25, 0.25, 0.25])
    assert (got.estimate, got.low, got.high, got.method) == (0.25, 0.25, 0.25, "constant")


def test_where_bca_is_undefined_the_interval_is_the_percentile_one() -> None:
    # Differences so small that the cubes in BCa's acceleration underflow: 0/0.
    got = mean_interval([0.0, 1e-200, 2e-200])
    assert got.method == "percentile"
    assert 0 <= got.low < got.estimate < got.high <= 2e-200


def test_holm_equals_a_worked_example() -> None:
    # Sorted .005, .01, .03, .04: 4*.005, 3*.01, 2*.03, and 1*.04 raised to the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@settings(deadline=None)
@given(p_lists)
def test_holm_never_lowers_a_p_keeps_their_order_and_is_at_most_bonferroni(p: list[float]) -> None:
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, np.multiply(p, len(p)))).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
    assert holm(p[::-1]) == pytest.approx(adjusted[::-1])


# Any statistic


def test_rows_of_one_prompt_are_drawn_together() -> None:
    ids = ["a", "b", "a", "c", "b", "a"]
    for places in draws(ids, resamples=200, seed=1):
        drawn = [ids[place] for place in places]
        counts = {name: drawn.count(name) / ids.count(name) for name in "abc"}
        assert sum(counts.values()) == 3
        assert all(count == int(count) for count in counts.values())
        for name in "abc":
            own = [place for place in places if ids[place] == name]
            assert len(own) == len(set(own)) * max(counts[name], 1)


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = statistic_interval(lambda i: float(values[i].mean()), range(400), resamples=4_000)
    half = 1.96 * values.std(ddof=1) / 20
    assert found.estimate == values.mean()
    assert found.high - found.estimate == pytest.approx(half, rel=0.06)
    assert found.estimate - found.low == pytest.approx(half, rel=0.06)
    assert (found.n, found.method) == (400, "percentile")


def test_several_rows_of_a_prompt_do_not_make_it_more_certain() -> None:
    values = np.random.default_rng(0).normal(size=100)
    copies, ids = np.tile(values, 5), np.tile(np.arange(100), 5)
    one = statistic_interval(lambda i: float(values[i].mean()), range(100), seed=2)
    five = statistic_interval(lambda i: float(copies[i].mean()), ids, seed=2)
    assert five.n == 100
    assert five.high - five.low == pytest.approx(one.high - one.low, rel=0.01)


def test_equal_seeds_give_equal_intervals_and_others_do_not() -> None:
    values = np.random.default_rng(0).normal(size=50)

    def ends(seed: int) -> tuple[float, float]:
        found = statistic_interval(lambda i: float(values[i].mean()), range(50), seed=seed)
        return found.low, found.high

    assert ends(1) == ends(1) != ends(2)


def test_an_undefined_statistic_has_no_interval_and_a_resample_without_one_is_left_out() -> None:
    never = statistic_interval(lambda i: math.nan, range(5))
    assert all(math.isnan(value) for value in (never.estimate, never.low, never.high))
    values = np.array([1.0, 2.0])
    some = statistic_interval(
        lambda i: float(values[i].mean()) if np.ptp(values[i]) else math.nan, range(2)
    )
    assert (some.low, some.high) == (1.5, 1.5)


# As text and as columns


def test_an_interval_is_written_and_tabled() -> None:
    found = Interval(0.12, 0.08, -0.0004, 9, "BCa")
    assert text(found.estimate, found.low, found.high) == "+0.120 [+0.080, -0.000]"
    assert text(0.5, 0.25, 1.0, ".2g") == "0.5 [0.25, 1]"
    assert columns(found) == {"value": 0.12, "low": 0.08, "high": -0.0004}
    assert list(columns(found, "kappa")) == ["kappa", "kappa_low", "kappa_high"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([1.0]), "values must be a list of at least 2 numbers; got shape (1"),
        (lambda: mean_interval([[1.0, 2.0]]), "got shape (1, 2). Give one number per prompt."),
        (
            lambda: mean_interval([1.0, float("nan"), float("inf")]),
            "got 2 of 3 that are NaN or infinite. Drop these prompts from every arm",
        ),
        (lambda: mean_interval([0, 1], resamples=0), "resamples must be at least 100; got 0."),
        (
            lambda: statistic_interval(lambda i: 0.0, range(3), resamples=99),
            "resamples must be at least 100; got 99.",
        ),
        (
            lambda: difference_interval([1, 2, 3], [1, 2]),
            "a and b must score the same prompts; got 3 and 2 scores. Align them by id.",
        ),
        (lambda: holm([]), "p_values must be a list of at least 1 numbers; got shape (0,)."),
        (lambda: holm([0.5, 1.5]), "p_values must lie in [0, 1]; got 0.5 to 1.5."),
    ],
)
def test_bad_arguments_are_refused_with_a_remedy(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
