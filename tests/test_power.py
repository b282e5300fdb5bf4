"""Power and sample size against published values, simulation and each other."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from codit.power import power, sample_size


def test_power_and_sample_size_are_the_published_ones() -> None:
    # G*Power 3.1, paired t-test, two-sided, 5 %: dz .5 needs 34 pairs for .8, 54 for .95.
    assert sample_size(0.5) == 34
    assert power(0.5, 34) == pytest.approx(0.8078, abs=1e-4)
    assert sample_size(0.5, target=0.95) == 54
    assert sample_size(0.2) == 199


def test_power_is_the_share_of_simulated_tests_that_find_the_difference() -> None:
    draws = np.random.default_rng(0).normal(0.4, 1.0, (4000, 30))
    found = (stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05).mean()
    assert power(0.4, 30) == pytest.approx(found, abs=0.025)


@settings(deadline=None, max_examples=60)
@given(st.floats(0.02, 4), st.integers(2, 2000), st.sampled_from([0.9, 0.95, 0.99]))
def test_power_grows_with_prompts_and_size_and_does_not_know_the_sign(
    dz: float, n: int, level: float
) -> None:
    got = power(dz, n, level=level)
    assert 1 - level <= got <= 1
    assert got <= power(dz, n + 1, level=level) + 1e-9
    assert got <= power(dz * 1.1, n, level=level) + 1e-9
    assert got == pytest.approx(power(-dz, n, level=level))


@settings(deadline=None, max_examples=40)
@given(st.floats(0.01, 6), st.floats(0.3, 0.999))
def test_the_sample_size_is_the_least_that_has_the_power(dz: float, target: float) -> None:
    n = sample_size(dz, target=target)
    assert power(dz, n) >= target
    assert n == 2 or power(dz, n - 1) < target


def test_no_effect_is_found_as_often_as_the_level_allows_and_a_huge_one_always() -> None:
    assert power(0.0, 20) == pytest.approx(0.05)
    assert power(1000.0, 1000) == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: power(0.5, 1), "expected n >= 2 and a finite dz; got n=1, dz=0.5."),
        (lambda: power(float("nan"), 5), "got n=5, dz=nan."),
        (lambda: power(0.5, 5, level=0.0), "level must lie between 0 and 1; got 0.0."),
        (lambda: sample_size(0.0), "dz must be finite and not 0; got 0.0."),
        (
            lambda: sample_size(0.5, target=1.0),
            "target must lie between 0.05, the power of no effect, and 1; got 1.0.",
        ),
    ],
)
def test_bad_arguments_are_refused_with_a_remedy(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
