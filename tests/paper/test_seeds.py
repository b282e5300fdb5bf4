"""Intervals over seeds and prompts: they cover what they promise, and see both kinds of noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from codit.paper import seeds
from codit.paper.seeds import Components

SPREAD = Components(seed=0.02**2, prompt=0.3**2, rest=0.4**2)


def drawn(rng: Any, seeds: int, prompts: int, mean: float = 0.0) -> Any:
    seed = rng.normal(0, SPREAD.seed**0.5, (seeds, 1))
    prompt = rng.normal(0, SPREAD.prompt**0.5, (1, prompts))
    return mean + seed + prompt + rng.normal(0, SPREAD.rest**0.5, (seeds, prompts))


def test_an_interval_covers_the_true_difference_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = [seeds.difference(drawn(rng, 5, 60, 0.1)) for _ in range(800)]
    covered = np.mean([one.low <= 0.1 <= one.high for one in found])
    assert 0.93 <= covered <= 0.985


def test_an_interval_over_prompts_alone_would_be_too_narrow() -> None:
    rng = np.random.default_rng(1)
    d = drawn(rng, 5, 100) + rng.normal(0, 0.3, (5, 1))
    alone = seeds.difference(d.mean(0, keepdims=True))
    both = seeds.difference(d)
    assert both.high - both.low > 2 * (alone.high - alone.low)
    assert both.estimate == pytest.approx(alone.estimate)


def test_components_are_those_that_made_the_table() -> None:
    rng = np.random.default_rng(2)
    found = [seeds.components(drawn(rng, 8, 200)) for _ in range(200)]
    for name in ("seed", "prompt", "rest"):
        mean = np.mean([getattr(one, name) for one in found])
        assert mean == pytest.approx(getattr(SPREAD, name), rel=0.25), name


def test_components_are_never_negative() -> None:
    rest = np.array([[1.0, -1.0], [-1.0, 1.0]])
    found = seeds.components(rest)
    assert (found.seed, found.prompt, found.rest) == (0, 0, 4)


def test_components_by_hand() -> None:
    # seed effects +-1, prompt effects +-2, no rest: MS_seed = 2 * 2 = 4, MS_prompt = 2 * 8 = 16.
    found = seeds.components(np.array([[3.0, -1.0], [1.0, -3.0]]))
    assert (found.seed, found.prompt, found.rest) == (2, 8, 0)
    assert found.variance(2, 2) == 5


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_seeds_give_the_t_interval_over_prompts(n: int) -> None:
    each = np.random.default_rng(3).normal(0.2, 1, (n, 30)) + np.arange(n)[:, None]
    found, values = seeds.difference(each), each.mean(0)
    assert seeds.sampled(range(n)) == "over prompts"
    expected = stats.ttest_1samp(values, 0)
    ends = expected.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high))
    assert found.p == pytest.approx(expected.pvalue)


def test_three_seeds_tell_how_much_seeds_vary() -> None:
    each = np.random.default_rng(3).normal(0.2, 1, (3, 30)) + np.arange(3)[:, None]
    found, alone = seeds.difference(each), seeds.difference(each.mean(0, keepdims=True))
    assert found.high - found.low > 2 * (alone.high - alone.low)
    assert seeds.sampled(range(3)) == "over prompts and seeds"


def test_equal_differences_need_no_interval() -> None:
    found = seeds.difference(np.full((3, 4), 0.5))
    assert (found.estimate, found.low, found.high, found.p) == (0.5, 0.5, 0.5, 0)
    assert seeds.difference(np.zeros((3, 4))).p == 1


def test_the_power_is_the_share_of_repetitions_that_find_the_effect() -> None:
    rng = np.random.default_rng(4)
    found = [seeds.difference(drawn(rng, 5, 60, 0.12)) for _ in range(800)]
    share = np.mean([one.low > 0 or one.high < 0 for one in found])
    assert share == pytest.approx(seeds.power(0.12, SPREAD, seeds=5, prompts=60), abs=0.06)


def test_no_effect_is_found_as_often_as_the_level_allows() -> None:
    assert seeds.power(0, SPREAD, seeds=5, prompts=100) == pytest.approx(0.05, abs=1e-6)


def test_a_huge_effect_is_always_found() -> None:
    assert seeds.power(1e3, SPREAD, seeds=5, prompts=100) == 1


def test_more_seeds_find_smaller_effects_and_some_effects_need_more_prompts() -> None:
    by_seeds = [seeds.power(0.04, SPREAD, seeds=s, prompts=800) for s in (2, 5, 20, 100)]
    assert by_seeds == sorted(by_seeds)
    assert by_seeds[0] < 0.8 < by_seeds[-1]
    assert seeds.power(0.001, SPREAD, seeds=100, prompts=100) < 0.8


def test_the_detectable_difference_is_found_with_the_power_that_was_asked_for() -> None:
    found = seeds.detectable(SPREAD, seeds=5, prompts=400)
    assert seeds.power(found, SPREAD, seeds=5, prompts=400) == pytest.approx(0.8, abs=1e-6)
    assert seeds.detectable(SPREAD, seeds=10, prompts=400) < found


def test_few_seeds_and_prompts_have_a_detectable_difference_too() -> None:
    few = Components(seed=0.1, prompt=0.0, rest=0.05)
    found = seeds.detectable(few, seeds=2, prompts=12)
    assert seeds.power(found, few, seeds=2, prompts=12) == pytest.approx(0.8, abs=1e-6)
    assert found > 1


def rows(values: dict[str, list[list[float]]]) -> pd.DataFrame:
    return pd.DataFrame(
        {"role": role, "seed": s, "id": str(p), "strict": v}
        for role, table in values.items()
        for s, row in enumerate(table)
        for p, v in enumerate(row)
    )


def test_a_table_is_paired_by_prompt_and_seed_whatever_its_order() -> None:
    table = rows({"codit": [[1, 0], [1, 1]], "direct": [[0, 0], [0, 1]]})
    expected = [[1, 0], [1, 0]]
    assert seeds.table(table, "strict", "codit", "direct").tolist() == expected
    mixed = table.sample(frac=1, random_state=0)
    assert seeds.table(mixed, "strict", "codit", "direct").tolist() == expected


def test_several_students_of_a_seed_are_averaged() -> None:
    one = rows({"codit": [[1, 0]], "direct": [[0, 0]]})
    other = rows({"codit": [[0, 0]], "direct": [[0, 0]]})
    assert seeds.table(pd.concat([one, other]), "strict", "codit", "direct").tolist() == [[0.5, 0]]


@pytest.mark.parametrize("arm", ["codit", "greedy"])
def test_an_arm_that_lacks_a_prompt_or_everything_is_refused(arm: str) -> None:
    table = rows({"codit": [[1, 0]], "direct": [[0, 0]]})[:-1]
    with pytest.raises(ValueError, match=r"expected the arms|to answer the same prompts"):
        seeds.table(table, "strict", arm, "direct")


@pytest.mark.parametrize("shape", [(5,), (0, 5), (1, 1)])
def test_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected differences"):
        seeds.difference(np.zeros(shape))


def test_what_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        seeds.difference(np.array([[0.0, np.nan]]))


def test_one_seed_cannot_tell_what_varies_between_seeds() -> None:
    found = seeds.components(np.array([[0.0, 2.0, 4.0]]))
    assert (found.prompt, found.rest) == (4, 0)
    assert np.isnan(found.seed)
    assert np.isnan(seeds.power(0.1, found, seeds=5, prompts=100))


# -- power of the paired t-test, which is that of one seed ---------------------------------------


def paired(dz: float, n: int) -> float:
    """Of the paired t-test with n prompts whose differences have mean dz and variance 1."""
    return seeds.chance(dz * math.sqrt(n), n - 1)


def test_power_is_the_published_one() -> None:
    # G*Power 3.1, paired t-test, two-sided, 5 %: dz .5 needs 34 pairs for .8, 54 for .95.
    assert paired(0.5, 34) == pytest.approx(0.8078, abs=1e-4)
    assert paired(0.5, 33) < 0.8
    assert paired(0.5, 53) < 0.95 <= paired(0.5, 54)
    assert paired(0.2, 198) < 0.8 <= paired(0.2, 199)


def test_power_is_the_share_of_simulated_tests_that_find_the_difference() -> None:
    draws = np.random.default_rng(0).normal(0.4, 1.0, (4000, 30))
    found = (stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05).mean()
    assert paired(0.4, 30) == pytest.approx(found, abs=0.025)


@settings(deadline=None, max_examples=60)
@given(st.floats(0.02, 4), st.integers(2, 2000))
def test_power_grows_with_prompts_and_size_and_does_not_know_the_sign(dz: float, n: int) -> None:
    got = paired(dz, n)
    assert 0.05 - 1e-9 <= got <= 1
    assert got <= paired(dz, n + 1) + 1e-9
    assert got <= paired(dz * 1.1, n) + 1e-9
    assert got == pytest.approx(paired(-dz, n))


def test_no_effect_is_found_as_often_as_the_level_allows_and_a_huge_one_always() -> None:
    assert paired(0.0, 20) == pytest.approx(0.05)
    assert paired(1000.0, 1000) == 1.0
