"""Win rates against hand-computed values and against numbers of the published program."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import special

from codit import win_rates
from codit.win_rates import WinRates

QUICK = {"resamples": 100}
STEPS = (0.6180339887, 0.7548776662, 0.5698402910, 0.4142135624)


def made(
    n: int = 200,
    *,
    shift: float = 0.0,
    by_length: float = 1.1,
    hard: bool = False,
    difficulty: bool = True,
) -> pd.DataFrame:
    """A table from multiples of irrational numbers: the same wherever it is made."""
    i = np.arange(1, n + 1)
    u, v, w, z = ((i * step + shift) % 1 for step in STEPS)
    baseline = 200 + np.floor(2000 * u)
    length = np.floor(baseline * (0.6 + 1.2 * v))
    gamma = np.round(4 * w - 2, 6)
    longer = length - baseline
    odds = 0.4 + by_length * np.tanh(longer / longer.std(ddof=1)) + 0.7 * gamma
    p = (z < special.expit(odds)) * 1.0 if hard else special.expit(odds + 3 * z - 1.5).round(6)
    table = pd.DataFrame({"id": i, "preference": p, "length": length, "length_baseline": baseline})
    return table.assign(difficulty=gamma) if difficulty else table


def simple(preferences: list[float], longer: list[float]) -> pd.DataFrame:
    lengths = {"length": [9000 + d for d in longer], "length_baseline": 9000.0}
    return pd.DataFrame({"id": range(len(preferences)), "preference": preferences, **lengths})


def rates(table: pd.DataFrame, **how: Any) -> WinRates:
    return win_rates.win_rates(table, **{**QUICK, **how})


# alpaca_eval 0.6.6's own design matrix and fit on these tables, with scikit-learn 1.7.2 and a
# tolerance of 1e-10 in place of its 1e-4. Its length difference is baseline minus model.
PUBLISHED = {
    "length_controlled_minimal": (
        (0.43286418297133533, 0.9223124525597769),
        21.54434690031882,
        0.6065574010748317,
    ),
    "length_controlled_noreg": (
        (0.34489982662972385, 0.8795663905223451, 0.5876681112952706),
        21.54434690031882,
        0.5789986751751951,
    ),
    "length_controlled_v1": (
        (0.3548985928603523, 0.8288927437039152, 0.5811830625957188),
        21.54434690031882,
        0.5813434415010297,
    ),
}


@pytest.mark.parametrize("variant", PUBLISHED)
def test_the_published_program_gives_the_same_numbers(variant: str) -> None:
    is_minimal = variant.endswith("minimal")
    table = made(hard=is_minimal, difficulty=not is_minimal)
    gamed = [made(120, shift=0.3, by_length=2), made(120, shift=0.6, by_length=-1)]
    found = rates(table, gamed=gamed if variant.endswith("v1") else ())
    coefficients, c, rate = PUBLISHED[variant]
    assert tuple(found.coefficients.values()) == pytest.approx(coefficients, abs=1e-7)
    assert found.inverse_penalty == pytest.approx(c)
    assert found.length_controlled.estimate == pytest.approx(rate, abs=1e-7)
    assert found.note.startswith(variant)


def test_what_was_left_out_is_said() -> None:
    assert "difficulty was not given" in rates(made(difficulty=False)).note
    assert "gamed" in rates(made()).note
    assert rates(made(), gamed=[made(60, shift=0.2)]).note == "length_controlled_v1"


def test_the_raw_rate_is_the_mean_and_ties_count_half() -> None:
    found = rates(simple([1, 1, 0, 0.5, 0.5, 0.8], [1, -1, 2, -2, 3, -3]))
    assert found.raw.estimate == pytest.approx(3.8 / 6)
    assert found.ties == 2
    assert found.raw.low < found.raw.estimate < found.raw.high


def test_at_equal_lengths_both_rates_agree_up_to_the_penalty() -> None:
    found = rates(simple([1.0] * 70 + [0.0] * 30, [0.0] * 100))
    # One free coefficient: sigma(theta) = mean - 1 / (C n).
    expected = 0.7 - 1 / (found.inverse_penalty * 100)
    assert found.length_controlled.estimate == pytest.approx(expected, abs=1e-9)
    assert found.length_controlled.estimate == pytest.approx(found.raw.estimate, abs=0.005)
    assert found.coefficients["length"] == 0


def test_who_wins_by_length_alone_loses_the_advantage() -> None:
    rng = np.random.default_rng(0)
    longer = rng.normal(900, 800, 800)
    p = special.expit(2.5 * np.tanh(longer / longer.std(ddof=1)))
    found = rates(simple(list(p), list(longer)))
    assert found.raw.estimate > 0.7
    assert found.length_controlled.estimate == pytest.approx(0.5, abs=0.02)
    assert found.coefficients["length"] == pytest.approx(2.5, abs=0.1)
    assert found.is_extreme


def test_known_coefficients_of_simulated_judgements_are_found_again() -> None:
    rng = np.random.default_rng(4)
    n, gamma, longer = 8_000, rng.normal(size=8_000), rng.normal(200, 500, 8_000)
    odds = -0.5 + 1.5 * np.tanh(longer / longer.std(ddof=1)) + 0.8 * gamma
    table = simple(list((rng.random(n) < special.expit(odds)) * 1.0), list(longer))
    found = rates(table.assign(difficulty=gamma))
    expected = {"model": -0.5, "length": 1.5, "difficulty": 0.8}
    assert found.coefficients == pytest.approx(expected, abs=0.1)
    true = special.expit(-0.5 + 0.8 * gamma).mean()
    assert found.length_controlled.low < true < found.length_controlled.high
    assert found.length_controlled.estimate == pytest.approx(true, abs=0.015)


def test_swapping_model_and_baseline_mirrors_both_rates() -> None:
    table = made(difficulty=False)
    swapped = table.assign(
        preference=1 - table["preference"],
        length=table["length_baseline"],
        length_baseline=table["length"],
    )
    one, other = rates(table), rates(swapped)
    assert other.raw.estimate == pytest.approx(1 - one.raw.estimate)
    controlled = one.length_controlled.estimate
    assert other.length_controlled.estimate == pytest.approx(1 - controlled, abs=1e-9)


def test_the_order_of_rows_and_the_unit_of_length_decide_nothing() -> None:
    table = made(80)
    moved = table.sample(frac=1, random_state=1).reset_index(drop=True)
    scaled = table.assign(length=table["length"] * 7, length_baseline=table["length_baseline"] * 7)
    assert rates(moved).coefficients == rates(table).coefficients
    assert rates(moved).length_controlled == rates(table).length_controlled
    assert rates(scaled).coefficients == pytest.approx(rates(table).coefficients)


@pytest.mark.parametrize("broken", [math.nan, math.inf, None])
def test_failed_judgements_are_counted_and_change_nothing(broken: float | None) -> None:
    table = made(60)
    failed = table.head(3).assign(id=[900, 901, 902], preference=[broken] * 3, length=math.nan)
    found = rates(pd.concat([failed, table]))
    assert found.failed == 3
    assert found.raw == rates(table).raw
    assert found.length_controlled == rates(table).length_controlled
    assert found.raw.n == 60


def test_where_nothing_is_learned_the_interval_is_not_a_point() -> None:
    found = rates(simple([0.0, 1.0] * 30, list(range(60))))
    assert found.length_controlled.estimate == 0.5
    assert found.inverse_penalty == pytest.approx(1e-4)
    assert found.length_controlled.high - found.length_controlled.low > 0.1


def test_the_interval_covers_the_true_rate_about_as_often_as_it_says() -> None:
    rng, covered = np.random.default_rng(7), 0
    for _ in range(25):
        longer = rng.normal(100, 400, 150)
        odds = 0.6 + np.tanh(longer / longer.std(ddof=1))
        wins = list((rng.random(150) < special.expit(odds)) * 1.0)
        interval = rates(simple(wins, list(longer))).length_controlled
        covered += interval.low <= special.expit(0.6) <= interval.high
    assert covered >= 20  # of 25; binomial .95 falls below with probability .001


@pytest.mark.parametrize(
    ("raw", "controlled", "expected"),
    [
        (0.2, 0.11, False),  # not below min(.15, .1)
        (0.2, 0.09, True),
        (0.2, 0.39, False),  # not above max(.4, .3)
        (0.2, 0.41, True),
        (0.5, 0.37, True),
        (0.5, 0.38, False),
    ],
)
def test_an_extreme_difference_is_told_by_the_published_rule(
    raw: float, controlled: float, expected: bool
) -> None:
    assert win_rates.is_extreme(raw, controlled) is expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preference": 2.0}, r"must lie in \[0, 1\].*Take 1 from AlpacaEval"),
        ({"id": 1}, "every id once"),
        ({"length": -1.0}, "must be numbers"),
        ({"length": math.nan}, "must be numbers"),
        ({"difficulty": math.nan}, "must be numbers"),
        ({"preference": math.nan}, "at least 5"),
        ({"length": 500.0, "length_baseline": 400.0}, "cannot be told from the model"),
    ],
)
def test_a_table_that_cannot_be_used_says_why(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rates(made(20).assign(**change))


def test_a_missing_column_and_bad_arguments_say_so() -> None:
    with pytest.raises(ValueError, match="missing \\['length'\\]"):
        rates(made(20).drop(columns="length"))
    with pytest.raises(ValueError, match="difficulty in all tables or in none"):
        rates(made(20), gamed=[made(20, difficulty=False)])
    with pytest.raises(ValueError, match="resamples of at least 100"):
        rates(made(20), resamples=10)
