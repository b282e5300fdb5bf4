"""Resampling draws whole prompts, and its interval is that of theory where theory has one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from codit import resampling


def test_rows_of_one_prompt_are_drawn_together() -> None:
    ids = ["a", "b", "a", "c", "b", "a"]
    for places in resampling.draws(ids, resamples=200, seed=1):
        drawn = [ids[place] for place in places]
        counts = {name: drawn.count(name) / ids.count(name) for name in "abc"}
        assert sum(counts.values()) == 3
        assert all(count == int(count) for count in counts.values())
        for name in "abc":
            own = [place for place in places if ids[place] == name]
            assert len(own) == len(set(own)) * max(counts[name], 1)


def test_the_interval_of_a_mean_is_as_wide_as_theory_says() -> None:
    values = np.random.default_rng(0).normal(size=400)
    found = resampling.interval(lambda i: float(values[i].mean()), range(400), resamples=4_000)
    half = 1.96 * values.std(ddof=1) / 20
    assert found.estimate == values.mean()
    assert found.high - found.estimate == pytest.approx(half, rel=0.06)
    assert found.estimate - found.low == pytest.approx(half, rel=0.06)
    assert (found.n, found.method, found.level) == (400, "percentile", 0.95)


def test_several_rows_of_a_prompt_do_not_make_it_more_certain() -> None:
    values = np.random.default_rng(0).normal(size=100)
    copies, ids = np.tile(values, 5), np.tile(np.arange(100), 5)
    one = resampling.interval(lambda i: float(values[i].mean()), range(100), seed=2)
    five = resampling.interval(lambda i: float(copies[i].mean()), ids, seed=2)
    assert five.n == 100
    assert five.high - five.low == pytest.approx(one.high - one.low, rel=0.01)


def test_equal_seeds_give_equal_intervals_and_others_do_not() -> None:
    values = np.random.default_rng(0).normal(size=50)

    def ends(seed: int) -> tuple[float, float]:
        found = resampling.interval(lambda i: float(values[i].mean()), range(50), seed=seed)
        return found.low, found.high

    assert ends(1) == ends(1) != ends(2)


def test_an_undefined_statistic_has_no_interval_and_a_resample_without_one_is_left_out() -> None:
    never = resampling.interval(lambda i: math.nan, range(5))
    assert all(math.isnan(value) for value in (never.estimate, never.low, never.high))
    values = np.array([1.0, 2.0])
    some = resampling.interval(
        lambda i: float(values[i].mean()) if np.ptp(values[i]) else math.nan, range(2)
    )
    assert (some.low, some.high) == (1.5, 1.5)


@pytest.mark.parametrize("how", [{"level": 1.0}, {"level": 0.0}, {"resamples": 99}])
def test_impossible_arguments_say_so(how: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"level in \(0, 1\) and resamples of at least 100"):
        resampling.interval(lambda i: 0.0, range(3), **how)  # type: ignore[arg-type]
