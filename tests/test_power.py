"""Power against published values, simulation and itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from codit.power import chance


def power(dz: float, n: int) -> float:
    """Of the paired t-test with n prompts whose differences have mean dz and variance 1."""
    return chance(dz * math.sqrt(n), n - 1)


def test_power_is_the_published_one() -> None:
    # G*Power 3.1, paired t-test, two-sided, 5 %: dz .5 needs 34 pairs for .8, 54 for .95.
    assert power(0.5, 34) == pytest.approx(0.8078, abs=1e-4)
    assert power(0.5, 33) < 0.8
    assert power(0.5, 53) < 0.95 <= power(0.5, 54)
    assert power(0.2, 198) < 0.8 <= power(0.2, 199)


def test_power_is_the_share_of_simulated_tests_that_find_the_difference() -> None:
    draws = np.random.default_rng(0).normal(0.4, 1.0, (4000, 30))
    found = (stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05).mean()
    assert power(0.4, 30) == pytest.approx(found, abs=0.025)


@settings(deadline=None, max_examples=60)
@given(st.floats(0.02, 4), st.integers(2, 2000))
def test_power_grows_with_prompts_and_size_and_does_not_know_the_sign(dz: float, n: int) -> None:
    got = power(dz, n)
    assert 0.05 - 1e-9 <= got <= 1
    assert got <= power(dz, n + 1) + 1e-9
    assert got <= power(dz * 1.1, n) + 1e-9
    assert got == pytest.approx(power(-dz, n))


def test_no_effect_is_found_as_often_as_the_level_allows_and_a_huge_one_always() -> None:
    assert power(0.0, 20) == pytest.approx(0.05)
    assert power(1000.0, 1000) == 1.0
