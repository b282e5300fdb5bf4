"""Win rates against hand-computed values and against numbers of the published program."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from codit.evaluation import win_rates
from codit.evaluation.intervals import Interval

QUICK = {"resamples": 100}
STEPS = (0.6180339887, 0.7548776662, 0.5698402910, 0.4142135624)


def made(n: int = 200, *, shift: float = 0.0, hard: bool = False) -> pd.DataFrame:
    """A table from multiples of irrational numbers: the same wherever it is made."""
    i = np.arange(1, n + 1)
    u, v, w, z = ((i * step + shift) % 1 for step in STEPS)
    baseline = 200 + np.floor(2000 * u)
    length = np.floor(baseline * (0.6 + 1.2 * v))
    longer = length - baseline
    odds = 0.4 + 1.1 * np.tanh(longer / longer.std(ddof=1)) + 0.7 * np.round(4 * w - 2, 6)
    p = (z < special.expit(odds)) * 1.0 if hard else special.expit(odds + 3 * z - 1.5).round(6)
    return pd.DataFrame({"id": i, "preference": p, "length": length, "length_baseline": baseline})


def simple(preferences: list[float], longer: list[float]) -> pd.DataFrame:
    lengths = {"length": [9000 + d for d in longer], "length_baseline": 9000.0}
    return pd.DataFrame({"id": range(len(preferences)), "preference": preferences, **lengths})


def rate(table: pd.DataFrame, **how: Any) -> Interval:
    return win_rates.length_controlled(table, **{**QUICK, **how})


def fitted(table: pd.DataFrame) -> tuple[Any, float]:
    """Both coefficients, of model and length, and C as it is chosen."""
    c = win_rates.choose_inverse_penalty(*win_rates.terms(table))
    return win_rates.fit(*win_rates.terms(table), inverse_penalty=c), c


# Its variant "minimal": alpaca_eval 0.6.6's own design matrix and fit, scikit-learn 1.7.2 and a
# tolerance of 1e-10 in place of its 1e-4. Its length difference is baseline minus model.
PUBLISHED = ((0.43286418297133533, 0.9223124525597769), 21.54434690031882, 0.6065574010748317)


def test_the_published_program_gives_the_same_numbers() -> None:
    coefficients, c, published = PUBLISHED
    found, chosen = fitted(made(hard=True))
    assert found == pytest.approx(coefficients, abs=1e-7)
    assert chosen == pytest.approx(c)
    assert rate(made(hard=True)).estimate == pytest.approx(published, abs=1e-7)


def test_at_equal_lengths_the_rate_is_the_mean_up_to_the_penalty() -> None:
    table = simple([1.0] * 70 + [0.0] * 30, [0.0] * 100)
    coefficients, c = fitted(table)
    # One free coefficient: sigma(theta) = mean - 1 / (C n).
    assert rate(table).estimate == pytest.approx(0.7 - 1 / (c * 100), abs=1e-9)
    assert rate(table).estimate == pytest.approx(0.7, abs=0.005)
    assert coefficients[1] == 0


def test_who_wins_by_length_alone_loses_the_advantage() -> None:
    rng = np.random.default_rng(0)
    longer = rng.normal(900, 800, 800)
    p = special.expit(2.5 * np.tanh(longer / longer.std(ddof=1)))
    table = simple(list(p), list(longer))
    assert table["preference"].mean() > 0.7
    assert rate(table).estimate == pytest.approx(0.5, abs=0.02)
    assert fitted(table)[0][1] == pytest.approx(2.5, abs=0.1)


def test_known_coefficients_of_simulated_judgements_are_found_again() -> None:
    rng = np.random.default_rng(4)
    n, longer = 8_000, rng.normal(200, 500, 8_000)
    odds = -0.5 + 1.5 * np.tanh(longer / longer.std(ddof=1))
    table = simple(list((rng.random(n) < special.expit(odds)) * 1.0), list(longer))
    assert fitted(table)[0] == pytest.approx([-0.5, 1.5], abs=0.1)
    found, true = rate(table), special.expit(-0.5)
    assert found.low < true < found.high
    assert found.estimate == pytest.approx(true, abs=0.015)


def test_swapping_model_and_baseline_mirrors_the_rate() -> None:
    table = made()
    swapped = table.assign(
        preference=1 - table["preference"],
        length=table["length_baseline"],
        length_baseline=table["length"],
    )
    assert rate(swapped).estimate == pytest.approx(1 - rate(table).estimate, abs=1e-9)


def test_the_order_of_rows_and_the_unit_of_length_decide_nothing() -> None:
    table = made(80)
    moved = table.sample(frac=1, random_state=1).reset_index(drop=True)
    scaled = table.assign(length=table["length"] * 7, length_baseline=table["length_baseline"] * 7)
    assert rate(moved) == rate(table)
    assert fitted(scaled)[0] == pytest.approx(fitted(table)[0])


@pytest.mark.parametrize("broken", [math.nan, math.inf, None])
def test_failed_judgements_change_nothing(broken: float | None) -> None:
    table = made(60)
    failed = table.head(3).assign(id=[900, 901, 902], preference=[broken] * 3, length=math.nan)
    found = rate(pd.concat([failed, table]))
    assert found == rate(table)
    assert found.n == 60


def test_where_nothing_is_learned_the_interval_is_not_a_point() -> None:
    table = simple([0.0, 1.0] * 30, list(range(60)))
    found = rate(table)
    assert found.estimate == 0.5
    assert fitted(table)[1] == pytest.approx(1e-4)
    assert found.high - found.low > 0.1


def test_the_interval_covers_the_true_rate_about_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(7), 0
    for _ in range(25):
        longer = rng.normal(100, 400, 150)
        odds = 0.6 + np.tanh(longer / longer.std(ddof=1))
        wins = list((rng.random(150) < special.expit(odds)) * 1.0)
        interval = rate(simple(wins, list(longer)))
        covered += interval.low <= special.expit(0.6) <= interval.high
    assert covered >= 20  # of 25; binomial .95 falls below with probability .001


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preference": 2.0}, r"must lie in \[0, 1\].*Take 1 from AlpacaEval"),
        ({"id": 1}, "every id once"),
        ({"length": -1.0}, "must be numbers"),
        ({"length": math.nan}, "must be numbers"),
        ({"preference": math.nan}, "at least 5"),
        ({"length": 500.0, "length_baseline": 400.0}, "cannot be told from the model"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rate(made(20).assign(**change))


def test_a_missing_column_and_bad_arguments_say_so() -> None:
    with pytest.raises(ValueError, match="missing \\['length'\\]"):
        rate(made(20).drop(columns="length"))
    with pytest.raises(ValueError, match="resamples must be at least 100"):
        rate(made(20), resamples=10)


# The fit


def logit(share: float) -> float:
    return math.log(share / (1 - share))


@pytest.mark.parametrize(("mean", "c"), [(0.7, 1.0), (0.7, 0.1), (0.2, 2.0)])
def test_with_one_constant_feature_the_fit_has_a_closed_form(mean: float, c: float) -> None:
    preferences = np.array([mean] * 50)
    (w,) = win_rates.fit(np.ones((50, 1)), preferences, inverse_penalty=c)
    # 0 = C n (sigma(w) - mean) + sign(w)
    assert w == pytest.approx(logit(mean - np.sign(mean - 0.5) / (c * 50)), abs=1e-9)


def test_a_penalty_above_the_slope_at_zero_leaves_exact_zeros() -> None:
    features, preferences = np.ones((50, 1)), np.array([0.7] * 50)
    for c, is_zero in ((0.0999, True), (0.1001, False)):  # C n |mean - 1/2| against 1
        (w,) = win_rates.fit(features, preferences, inverse_penalty=c)
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
    w = win_rates.fit(features, preferences, inverse_penalty=c)
    slope = c * features.T @ (special.expit(features @ w) - preferences)
    off = np.where(w != 0, np.abs(slope + np.sign(w)), np.maximum(np.abs(slope) - 1, 0))
    assert off.max() <= 1e-8 * max(1.0, c * n)


def test_a_probability_counts_as_its_shares_of_both_outcomes() -> None:
    rng = np.random.default_rng(3)
    features, p = rng.normal(size=(40, 2)), rng.integers(0, 5, 40) / 4
    soft = win_rates.fit(features, p, inverse_penalty=2.0)
    wins = np.concatenate([np.arange(4) < 4 * one for one in p]).astype(float)
    hard = win_rates.fit(np.repeat(features, 4, axis=0), wins, inverse_penalty=0.5)
    assert soft == pytest.approx(hard, abs=1e-9)


def test_a_fit_without_a_penalty_finds_the_coefficients() -> None:
    features, true = np.random.default_rng(0).normal(size=(500, 3)), np.array([0.5, -1.2, 0.0])
    p = special.expit(features @ true)
    found = win_rates.fit(features, p, inverse_penalty=1e6)
    assert found == pytest.approx(true, abs=1e-6)


def test_cross_validation_penalises_noise_to_nothing_and_keeps_what_predicts() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(200, 1))
    noise = np.tile([0.0, 1.0], 100)
    predicted = special.expit(3 * features[:, 0])
    assert win_rates.choose_inverse_penalty(features, noise) == pytest.approx(1e-4)
    assert win_rates.choose_inverse_penalty(features, predicted) > 10


@pytest.mark.parametrize("c", [0.0, -1.0, math.nan])
def test_a_penalty_must_be_one(c: float) -> None:
    with pytest.raises(ValueError, match="inverse_penalty must be above 0"):
        win_rates.fit(np.ones((5, 1)), np.ones(5), inverse_penalty=c)


def test_features_that_are_no_numbers_are_an_error() -> None:
    with pytest.raises(ValueError, match="finite"), np.errstate(invalid="ignore"):
        win_rates.fit(np.full((5, 1), np.nan), np.ones(5), inverse_penalty=1.0)
