"""The penalised fit against its closed form, its optimality conditions, and itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from codit import logistic


def logit(share: float) -> float:
    return math.log(share / (1 - share))


@pytest.mark.parametrize(("mean", "c"), [(0.7, 1.0), (0.7, 0.1), (0.2, 2.0)])
def test_with_one_constant_feature_the_fit_has_a_closed_form(mean: float, c: float) -> None:
    preferences = np.array([mean] * 50)
    (w,) = logistic.fit(np.ones((50, 1)), preferences, np.ones(50), inverse_penalty=c)
    # 0 = C n (sigma(w) - mean) + sign(w)
    assert w == pytest.approx(logit(mean - np.sign(mean - 0.5) / (c * 50)), abs=1e-9)


def test_a_penalty_above_the_slope_at_zero_leaves_exact_zeros() -> None:
    features, preferences = np.ones((50, 1)), np.array([0.7] * 50)
    for c, is_zero in ((0.0999, True), (0.1001, False)):  # C n |mean - 1/2| against 1
        (w,) = logistic.fit(features, preferences, np.ones(50), inverse_penalty=c)
        assert (w == 0) is np.bool_(is_zero)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(2, 30), st.integers(1, 3), st.floats(-4, 4), st.integers(0, 10**6), st.booleans()
)
def test_no_small_step_could_improve_a_fit(
    n: int, terms: int, power: float, seed: int, hard: bool
) -> None:
    rng, c = np.random.default_rng(seed), 10.0**power
    features = rng.normal(size=(n, terms))
    preferences = (features[:, 0] > 0).astype(float) if hard else rng.random(n)
    weights = rng.random(n) + 0.01
    w = logistic.fit(features, preferences, weights, inverse_penalty=c)
    slope = c * features.T @ (weights * (special.expit(features @ w) - preferences))
    off = np.where(w != 0, np.abs(slope + np.sign(w)), np.maximum(np.abs(slope) - 1, 0))
    assert off.max() <= 1e-8 * max(1.0, c * weights.sum())


def test_a_probability_counts_as_its_shares_of_both_outcomes() -> None:
    rng = np.random.default_rng(3)
    features, p, weights = rng.normal(size=(40, 2)), rng.random(40), rng.random(40)
    soft = logistic.fit(features, p, weights, inverse_penalty=2.0)
    hard = logistic.fit(
        np.concatenate([features, features]),
        np.repeat([1.0, 0.0], 40),
        np.concatenate([weights * p, weights * (1 - p)]),
        inverse_penalty=2.0,
    )
    assert soft == pytest.approx(hard, abs=1e-9)


def test_known_coefficients_are_found_again() -> None:
    features, true = np.random.default_rng(0).normal(size=(500, 3)), np.array([0.5, -1.2, 0.0])
    p = special.expit(features @ true)
    found = logistic.fit(features, p, np.ones(500), inverse_penalty=1e6)
    assert found == pytest.approx(true, abs=1e-6)


def test_cross_validation_penalises_noise_to_nothing_and_keeps_what_predicts() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(200, 1))
    noise = np.tile([0.0, 1.0], 100)
    predicted = special.expit(3 * features[:, 0])
    weights = np.ones(200)
    assert logistic.choose_inverse_penalty(features, noise, weights) == pytest.approx(1e-4)
    assert logistic.choose_inverse_penalty(features, predicted, weights) > 10


@pytest.mark.parametrize("c", [0.0, -1.0, math.nan])
def test_a_penalty_must_be_one(c: float) -> None:
    with pytest.raises(ValueError, match="inverse_penalty must be above 0"):
        logistic.fit(np.ones((5, 1)), np.ones(5), np.ones(5), inverse_penalty=c)


def test_features_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(ValueError, match="finite"), np.errstate(invalid="ignore"):
        logistic.fit(np.full((5, 1), np.nan), np.ones(5), np.ones(5), inverse_penalty=1.0)
