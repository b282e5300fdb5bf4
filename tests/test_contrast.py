"""The arithmetic of a step against an oracle in float64 that is written from the equation."""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from codit.contrast import FLOOR, contrast, plausible, sample

EXPERT = (0.5, 0.3, 0.15, 0.05)
AMATEUR = (0.6, 0.1, 0.2, 0.1)
INF = math.inf


def logs(probs) -> torch.Tensor:
    return torch.tensor([probs], dtype=torch.float64).log()


def oracle(expert, amateur, *, strength, plausibility, valid=None) -> list[float]:
    """log q of one row in Python's floats: s(v) = log p_E(v) - beta max(log p_A(v), floor)."""
    valid = [True] * len(expert) if valid is None else valid
    log_e, log_a = (log_softmax(row, valid) for row in (expert, amateur))
    raw = [x if ok else -INF for x, ok in zip(expert, valid, strict=True)]
    edge = max(raw) + (math.log(plausibility) if plausibility > 0 else -INF)
    keep = [x > -INF and x >= edge for x in raw]
    scores = [
        e - strength * max(a, FLOOR) if k else -INF
        for e, a, k in zip(log_e, log_a, keep, strict=True)
    ]
    return log_softmax(scores, [True] * len(scores))


def log_softmax(row, valid) -> list[float]:
    row = [x if ok else -INF for x, ok in zip(row, valid, strict=True)]
    top = max(row)
    total = top + math.log(math.fsum(math.exp(x - top) for x in row))
    return [x - total for x in row]


def agree(logprobs: torch.Tensor, expected: list[float]) -> None:
    """Check 1e-5 in probability, and in nats relative to the size of the log-probability."""
    got = logprobs[0].tolist()
    for x, y in zip(got, expected, strict=True):
        assert math.exp(x) == pytest.approx(math.exp(y), abs=1e-5)
        assert (x == y == -INF) or x == pytest.approx(y, abs=1e-5, rel=1e-5)


numbers = st.floats(-20, 20, width=32)
logits_or_minus_inf = st.one_of(numbers, st.just(-INF))


@st.composite
def rows(draw, elements=numbers):
    """Two rows of logits of one length, each with a finite entry."""
    size = draw(st.integers(1, 12))
    pair = [draw(st.lists(elements, min_size=size, max_size=size)) for _ in range(2)]
    assume(all(max(row) > -INF for row in pair))
    return pair


def off_the_boundary(expert, plausibility) -> bool:
    """Tell whether no id sits so near the threshold that rounding decides about it."""
    if plausibility in (0, 1):  # kept by being finite, or by being the largest: both exact
        return True
    edge = max(expert) + math.log(plausibility)
    return all(abs(x - edge) > 1e-4 for x in expert)


shares = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(1e-6, 1))


@pytest.mark.parametrize(
    ("plausibility", "strength", "expected"),
    [
        (0, 0, (0.5, 0.3, 0.15, 0.05)),
        (0.2, 0, (0.526316, 0.315789, 0.157895, 0)),
        (0.2, 0.5, (0.334525, 0.491650, 0.173825, 0)),
        (0.2, 1, (2 / 11, 36 / 55, 9 / 55, 0)),
        (0.01, 1, (0.163934, 0.590164, 0.147541, 0.098361)),
        (0.2, 2, (0.039526, 0.853755, 0.106719, 0)),
        (1, 1, (1, 0, 0, 0)),
    ],
)
def test_worked_example_gives_the_published_distribution(plausibility, strength, expected):
    logq = contrast(logs(EXPERT), logs(AMATEUR), strength=strength, plausibility=plausibility)
    assert logq.dtype == torch.float32
    assert logq.exp()[0].tolist() == pytest.approx(expected, abs=1e-6)


@given(rows(logits_or_minus_inf), st.floats(0, 3), shares)
@settings(deadline=None)
def test_contrast_equals_the_float64_oracle(pair, strength, plausibility):
    expert, amateur = pair
    assume(off_the_boundary(expert, plausibility))
    tensors = torch.tensor([expert]), torch.tensor([amateur])
    logq = contrast(*tensors, strength=strength, plausibility=plausibility)
    agree(logq, oracle(expert, amateur, strength=strength, plausibility=plausibility))


@given(rows(), st.floats(0, 3), shares, st.data())
@settings(deadline=None)
def test_ids_that_are_no_token_are_removed_before_normalising(pair, strength, plausibility, data):
    expert, amateur = pair
    size = len(expert)
    valid = data.draw(st.lists(st.booleans(), min_size=size, max_size=size))
    assume(any(valid))
    kept = [[x for x, ok in zip(row, valid, strict=True) if ok] for row in pair]
    assume(off_the_boundary(kept[0], plausibility))
    numbers = {"strength": strength, "plausibility": plausibility}
    mask = torch.tensor(valid)
    logq = contrast(torch.tensor([expert]), torch.tensor([amateur]), valid=mask, **numbers)
    assert (logq[0, ~mask] == -INF).all()
    agree(logq, oracle(expert, amateur, valid=valid, **numbers))
    # Cutting the ids away is the same as masking them.
    agree(logq[:, mask], oracle(*kept, **numbers))


def test_a_padding_row_with_the_largest_logit_does_not_move_the_threshold():
    expert = torch.tensor([[2.0, 1.0, 50.0]])
    valid = torch.tensor([True, True, False])
    keep = plausible(expert, plausibility=0.1, valid=valid)
    assert keep.tolist() == [[True, True, False]]
    assert plausible(expert, plausibility=0.1).tolist() == [[False, False, True]]


@given(rows())
@settings(deadline=None)
def test_without_strength_and_plausibility_it_is_exactly_the_expert(pair):
    expert = torch.tensor([pair[0]])
    direct = contrast(expert, None, strength=0.0, plausibility=0.0)
    assert torch.equal(direct, expert.log_softmax(-1))


@given(rows(), shares, st.floats(0, 3))
@settings(deadline=None)
def test_an_amateur_equal_to_the_expert_leaves_the_power_one_minus_strength(
    pair, plausibility, strength
):
    expert = torch.tensor([pair[0]])
    keep = plausible(expert, plausibility=plausibility)
    uniform = contrast(expert, expert, strength=1.0, plausibility=plausibility)
    n = int(keep.sum())
    assert uniform.exp()[keep].tolist() == pytest.approx([1 / n] * n, abs=1e-5)
    power = contrast(expert, expert, strength=strength, plausibility=plausibility)
    expected = ((1 - strength) * expert.double()).masked_fill(~keep, -INF).softmax(-1)
    assert power.exp()[0].tolist() == pytest.approx(expected[0].tolist(), abs=1e-5)


@given(rows(), st.floats(0, 3))
@settings(deadline=None)
def test_plausibility_one_keeps_the_largest_and_every_tie(pair, strength):
    expert, amateur = (torch.tensor([row]) for row in pair)
    logq = contrast(expert, amateur, strength=strength, plausibility=1.0)
    assert torch.equal(logq.isfinite(), expert == expert.amax(-1, keepdim=True))


def test_exact_ties_are_all_kept_and_shared_by_the_amateur_alone():
    expert, amateur = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])
    logq = contrast(expert, amateur, strength=1.0, plausibility=1.0)
    odds = math.e / (1 + math.e)
    assert logq.exp()[0].tolist() == pytest.approx([odds, 1 - odds, 0])


@given(rows(logits_or_minus_inf), st.tuples(shares, shares))
@settings(deadline=None)
def test_a_larger_plausibility_keeps_a_subset_that_holds_the_argmax(pair, bounds):
    expert = torch.tensor([pair[0]])
    low, high = sorted(bounds)
    loose, strict = (plausible(expert, plausibility=p) for p in (low, high))
    assert (loose | ~strict).all()
    assert strict[0, expert.argmax()]


@given(rows(), st.floats(1e-3, 1))
@settings(deadline=None)
def test_more_strength_never_makes_the_amateur_likelier(pair, plausibility):
    expert, amateur = (torch.tensor([row]) for row in pair)
    means = []
    for strength in (0.0, 0.5, 1.0, 2.0):
        q = contrast(expert, amateur, strength=strength, plausibility=plausibility).exp()
        means.append(float((q * amateur.log_softmax(-1)).sum()))
    assert all(b <= a + 1e-4 for a, b in itertools.pairwise(means))


def test_expected_log_probability_of_the_amateur_has_the_worked_values():
    means = []
    for strength in (0.0, 0.5, 1.0, 2.0):
        q = contrast(logs(EXPERT), logs(AMATEUR), strength=strength, plausibility=0.01).exp()
        means.append(float((q * logs(AMATEUR)).sum()))
    assert means == pytest.approx([-1.302733, -1.637230, -1.906586, -2.175829], abs=1e-6)


@given(rows(), st.floats(0, 3), shares, st.floats(-10, 10), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_offsets_of_logits_and_the_order_of_ids_do_not_matter(
    pair, strength, plausibility, offset, random
):
    expert, amateur = pair
    assume(off_the_boundary(expert, plausibility) and plausibility < 1)
    numbers = {"strength": strength, "plausibility": plausibility}
    tensors = torch.tensor([expert]), torch.tensor([amateur])
    logq = contrast(*tensors, **numbers)
    shifted = contrast(tensors[0] + offset, tensors[1] - offset, **numbers)
    assert shifted.exp()[0].tolist() == pytest.approx(logq.exp()[0].tolist(), abs=1e-4)
    order = list(range(len(expert)))
    random.shuffle(order)
    permuted = contrast(tensors[0][:, order], tensors[1][:, order], **numbers)
    assert permuted.exp()[0].tolist() == pytest.approx(logq.exp()[0, order].tolist(), abs=1e-6)


def test_a_row_does_not_depend_on_its_neighbours_or_on_leading_dimensions():
    generator = torch.Generator().manual_seed(0)
    expert, amateur = torch.randn(2, 3, 5, 40, generator=generator).unbind(0)
    together = contrast(expert, amateur, strength=1.0, plausibility=0.1)
    assert together.shape == (3, 5, 40)
    for b in range(3):
        for t in range(5):
            row = expert[b, t][None], amateur[b, t][None]
            assert torch.equal(contrast(*row, strength=1.0, plausibility=0.1)[0], together[b, t])


def test_half_precision_logits_are_computed_in_float32():
    generator = torch.Generator().manual_seed(0)
    expert, amateur = torch.randn(2, 4, 40, generator=generator).bfloat16().unbind(0)
    numbers = {"strength": 1.0, "plausibility": 0.1}
    assert torch.equal(
        contrast(expert, amateur, **numbers), contrast(expert.float(), amateur.float(), **numbers)
    )


def test_an_id_that_both_models_exclude_stays_excluded_without_nan():
    expert = torch.tensor([[1.0, -INF, 0.0]])
    amateur = torch.tensor([[0.0, -INF, 1.0]])
    for plausibility in (0.0, 0.01, 1.0):
        logq = contrast(expert, amateur, strength=1.0, plausibility=plausibility)
        assert not logq.isnan().any()
        assert logq[0, 1] == -INF


def test_plausible_ids_that_the_amateur_excludes_share_the_distribution_by_the_expert():
    expert = torch.tensor([[2.0, 1.0, 3.0]])
    amateur = torch.tensor([[-INF, -INF, 0.0]])
    q = contrast(expert, amateur, strength=1.0, plausibility=0.01).exp()[0].tolist()
    odds = math.e / (1 + math.e)
    assert q == pytest.approx([odds, 1 - odds, 0], abs=1e-6)


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=12),
    st.floats(0, 1, exclude_max=True),
)
@settings(deadline=None)
def test_sample_is_the_smallest_id_whose_cumulative_probability_exceeds_the_uniform(
    weights, uniform
):
    assume(max(weights) > 1e-3)
    logprobs = torch.tensor([weights], dtype=torch.float64).log()
    drawn = int(sample(logprobs, torch.tensor([uniform], dtype=torch.float64)))
    assert weights[drawn] > 0
    total = math.fsum(weights)
    before, upto = math.fsum(weights[:drawn]), math.fsum(weights[: drawn + 1])
    assert before / total <= uniform + 1e-12
    assert upto / total > uniform - 1e-12


def test_sample_never_draws_an_id_of_probability_zero():
    logprobs = torch.tensor([[-INF, 0.5, -INF, 0.5, -INF]]).log_softmax(-1).expand(3, -1)
    uniforms = torch.tensor([0.0, 0.5, 1 - 2.0**-24])
    drawn = sample(logprobs, uniforms)
    assert drawn.dtype == torch.int64
    assert drawn.tolist() == [1, 3, 3]


def test_sample_takes_the_last_possible_id_where_the_sum_rounds_below_the_uniform():
    logprobs = torch.full((1, 1000), 1 / 1000).log()
    logprobs[0, -1] = -INF
    assert sample(logprobs, torch.tensor([1.0], dtype=torch.float64)).tolist() == [998]


def test_a_sum_that_moves_where_nothing_is_added_draws_no_impossible_id(monkeypatch):
    def parallel(probs, dim):  # accelerators add in trees, so equal sums may differ in a digit
        return torch.tensor([[0.25, 0.25 + 1e-15, 1.0]], dtype=torch.float64)

    logprobs = torch.tensor([[0.25, 0.0, 0.75]]).log()
    monkeypatch.setattr(torch.Tensor, "cumsum", parallel)
    assert sample(logprobs, torch.tensor([0.25], dtype=torch.float64)).tolist() == [2]


def test_sampled_frequencies_match_the_distribution():
    logq = contrast(logs(EXPERT), logs(AMATEUR), strength=1.0, plausibility=0.01)
    n = 20_000
    uniforms = torch.rand(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    counts = torch.bincount(sample(logq.expand(n, -1), uniforms), minlength=4)
    expected = logq.double().softmax(-1)[0] * n
    assert chisquare(counts.numpy(), expected.numpy()).pvalue > 0.01


def test_equal_uniforms_draw_equal_ids_in_any_batch():
    generator = torch.Generator().manual_seed(0)
    logprobs = torch.randn(6, 50, generator=generator).log_softmax(-1)
    uniforms = torch.rand(6, generator=generator)
    together = sample(logprobs, uniforms)
    alone = [int(sample(logprobs[i : i + 1], uniforms[i : i + 1])) for i in range(6)]
    assert together.tolist() == alone


ROW = torch.zeros(1, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: plausible(ROW, plausibility=1.5),
            "plausibility must lie in [0, 1]; got 1.5. It is the share of the largest",
        ),
        (
            lambda: contrast(ROW, ROW, plausibility=math.nan),
            "plausibility must lie in [0, 1]; got nan",
        ),
        (
            lambda: contrast(ROW, ROW, strength=-1.0),
            "strength must be a finite number of at least 0; got -1.0. 0 ignores the amateur",
        ),
        (
            lambda: contrast(ROW, ROW, strength=INF),
            "strength must be a finite number of at least 0; got inf",
        ),
        (
            lambda: contrast(ROW, None),
            "a strength above 0 needs the amateur's logits; got None. Pass them, or strength=0",
        ),
        (
            lambda: contrast(ROW, torch.zeros(1, 5)),
            "must have one shape; got [1, 4] and [1, 5]. Cut both to the tokenizer's length",
        ),
        (
            lambda: contrast(ROW, ROW, valid=torch.ones(3, dtype=torch.bool)),
            "valid must be bool [4], one entry per logit; got torch.bool [3]. Use torch.arange(V)",
        ),
        (
            lambda: plausible(ROW, plausibility=0.1, valid=torch.ones(4)),
            "valid must be bool [4], one entry per logit; got torch.float32 [4]",
        ),
        (
            lambda: sample(ROW[0], torch.zeros(1)),
            "sample expects logprobs [B, V] and one uniform per row [B]; got [4] and [1]",
        ),
        (
            lambda: sample(ROW, torch.zeros(2)),
            "got [1, 4] and [2]. Take the last position's rows",
        ),
    ],
)
def test_wrong_arguments_are_refused_with_a_remedy(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
