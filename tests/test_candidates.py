"""The arithmetic on plausible ids alone equals the one on full vectors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from codit.contrast import contrast, plausible
from codit.engine.sparse import candidates, contrast_candidates
from tests.test_contrast import off_the_boundary, oracle


def logits(rows: int, width: int, seed: int) -> torch.Tensor:
    """Random logits with few plausible ids."""
    return 4 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@given(
    st.integers(1, 5),
    st.integers(20, 300),
    st.sampled_from([0.01, 0.1, 0.5, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0, 2.5]),
    st.integers(0, 10**6),
)
@settings(deadline=None)
@example(1, 251, 0.01, 2.5, 26940)  # where float32 of full vectors is 6e-6 off the equation
def test_log_q_is_the_equations_and_its_ids_are_those_of_full_vectors(
    rows, width, plausibility, strength, seed
):
    expert, amateur = logits(rows, width, seed), logits(rows, width, seed + 1)
    assume(all(off_the_boundary(row, plausibility) for row in expert.tolist()))
    found = candidates(expert, plausibility=plausibility)
    expected = contrast(expert, amateur, strength=strength, plausibility=plausibility)
    if found is None:
        assert plausible(expert, plausibility=plausibility).float().mean() > 0.25
        return
    at_ids = amateur.gather(1, found.ids) if strength else None
    made = contrast_candidates(found, at_ids, strength=strength)
    numbers = {"strength": strength, "plausibility": plausibility}
    pairs = zip(expert.tolist(), amateur.tolist(), strict=True)
    exact = torch.tensor([oracle(*pair, **numbers) for pair in pairs], dtype=torch.float64)
    torch.testing.assert_close(made.dense(width).double(), exact, atol=1e-5, rtol=0)
    assert torch.equal(made.dense(width) == -math.inf, expected == -math.inf)
    assert (made.ids.diff(dim=1)[made.scores[:, 1:].isfinite()] > 0).all()  # ascending


def test_half_precision_logits_are_computed_in_float32():
    expert = logits(4, 200, 0).bfloat16()
    found = candidates(expert, plausibility=0.05)
    assert found.scores.dtype == torch.float32
    made = contrast_candidates(found, None, strength=0.0)
    expected = contrast(expert, None, strength=0.0, plausibility=0.05)
    torch.testing.assert_close(made.dense(200), expected, atol=1e-5, rtol=0)


def test_a_large_constant_in_either_model_changes_nothing():
    expert, amateur = logits(4, 200, 0), logits(4, 200, 1)
    expected = contrast(expert, amateur, plausibility=0.05)
    found = candidates(expert + 64, plausibility=0.05)
    made = contrast_candidates(found, amateur.gather(1, found.ids) - 8192, strength=1.0)
    torch.testing.assert_close(made.dense(200), expected, atol=2e-3, rtol=0)  # of 8192's rounding


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_without_a_distribution_is_nan_and_its_neighbours_are_not(bad):
    expert = logits(3, 50, 0)
    expert[1, 3] = bad
    found = contrast_candidates(candidates(expert, plausibility=0.1), None, strength=0.0)
    assert found.dense(50).isnan().all(1).tolist() == [False, True, False]


def test_plausibility_zero_and_flat_rows_want_full_vectors():
    assert candidates(logits(2, 50, 0), plausibility=0.0) is None
    assert candidates(torch.zeros(2, 50), plausibility=0.5) is None
