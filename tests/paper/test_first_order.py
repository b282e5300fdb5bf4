"""The first-order argument on a float64 toy, strictly; on tiny models, as far as they allow."""

from __future__ import annotations

from functools import partial
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from codit.paper.first_order import (
    Expansion,
    alignment_table,
    chat_vector,
    curve,
    differentiate,
    distribution,
    expand,
    expectation,
    loglog_slope,
    logprobs_of,
    margins,
    on_head,
    one_step,
    over_prompts,
    reach_table,
    relative_error,
    shifted,
    strength_slope,
    strength_table,
    total_variation,
)
from codit.recipes import Decoding
from tests import tiny

# torch's forward mode scripts its own decompositions when it is first used.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)

SCALES = (1e-1, 1e-2, 1e-3, 1e-4)
ASKED = [{"role": "user", "content": "where is the cat?"}]
ANSWERS = ("on the mat.", "in it")


def toy(*, seed: int = 0) -> tuple[Any, dict[str, Tensor], dict[str, Tensor]]:
    """A hand-written two-layer model at 3 contexts, its weights and a direction; float64."""
    noise = torch.Generator().manual_seed(seed)
    shapes = {"inner": (5, 8), "bias": (8,), "outer": (8, 11)}
    draw = partial(torch.randn, generator=noise, dtype=torch.float64)
    inputs = draw(3, 5)
    theta, tau = ({name: draw(*shape) for name, shape in shapes.items()} for _ in range(2))

    def compute(weights: dict[str, Tensor]) -> Tensor:
        hidden = torch.tanh(inputs @ weights["inner"] + weights["bias"])
        return (hidden @ weights["outer"]).log_softmax(-1)

    return compute, theta, {name: 0.3 * weight for name, weight in tau.items()}


def random_logq(compute: Any, theta: dict[str, Tensor], *, kept: int, seed: int = 3) -> Tensor:
    """Any distribution, on the first `kept` ids."""
    shape = compute(theta).shape
    noise = torch.Generator().manual_seed(seed)
    scores = torch.randn(shape, generator=noise, dtype=torch.float64)
    return scores.masked_fill(torch.arange(shape[-1]) >= kept, -torch.inf).log_softmax(-1)


@pytest.mark.parametrize("seed", range(3))
def test_the_residual_shrinks_with_the_square_of_the_scale(seed: int) -> None:
    compute, theta, tau = toy(seed=seed)
    value, derivative = differentiate(compute, theta, tau)
    residuals = [
        float((compute(shifted(theta, tau, c)) - value - c * derivative).abs().max())
        for c in SCALES
    ]
    assert loglog_slope(SCALES[1:], residuals[1:]) == pytest.approx(2, abs=0.05)


@pytest.mark.parametrize("seed", range(3))
def test_the_derivative_equals_a_central_difference(seed: int) -> None:
    compute, theta, tau = toy(seed=seed)
    _, derivative = differentiate(compute, theta, tau)
    ahead, behind = (compute(shifted(theta, tau, c)) for c in (1e-4, -1e-4))
    difference = (ahead - behind) / 2e-4
    assert (difference - derivative).norm() / derivative.norm() <= 1e-6


def test_the_amateur_itself_has_no_alignment() -> None:
    compute, theta, tau = toy()
    value, derivative = differentiate(compute, theta, tau)
    assert expectation(value, derivative).abs().max() <= 1e-12
    assert derivative.abs().max() > 0.1


@pytest.mark.parametrize("kept", [11, 4, 1])
def test_the_gradient_of_a_cross_entropy_meets_tau_as_the_mean_of_the_derivative(kept: int) -> None:
    compute, theta, tau = toy()
    logq = random_logq(compute, theta, kept=kept)
    weights = {name: weight.clone().requires_grad_() for name, weight in theta.items()}
    expectation(logq, compute(weights)).sum().backward()
    product = sum(float((tau[name] * weights[name].grad).sum()) for name in tau)
    _, derivative = differentiate(compute, theta, tau)
    assert product == pytest.approx(float(expectation(logq, derivative).sum()), abs=1e-10)


@pytest.mark.parametrize("rate", [1.0, 1e-3])
def test_a_step_of_sgd_moves_along_tau_by_the_alignment(rate: float) -> None:
    compute, theta, tau = toy()
    logq = random_logq(compute, theta, kept=4)
    _, derivative = differentiate(compute, theta, tau)
    moved = one_step(compute, theta, tau, logq, partial(torch.optim.SGD, lr=rate))
    expected = rate * float(expectation(logq, derivative).mean())
    assert moved == pytest.approx(expected, abs=1e-10)
    assert not any(weight.requires_grad for weight in theta.values())


def test_a_step_of_adam_may_move_against_tau_where_sgd_moves_along() -> None:
    def compute(weights: dict[str, Tensor]) -> Tensor:
        return (torch.diag(torch.tensor([3.0, 1.0]).double()) @ weights["w"])[None].log_softmax(-1)

    theta = {"w": torch.zeros(2, dtype=torch.float64)}
    tau = {"w": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    logq = torch.tensor([[1.0, 0.0]], dtype=torch.float64).log()
    assert one_step(compute, theta, tau, logq, partial(torch.optim.SGD, lr=1.0)) > 0
    assert one_step(compute, theta, tau, logq, partial(torch.optim.Adam, lr=1.0)) < 0


def test_an_id_of_probability_zero_counts_nothing_whatever_its_value() -> None:
    logq = torch.tensor([0.5, 0.5, 0.0]).log()
    assert expectation(logq, torch.tensor([1.0, 3.0, -torch.inf])) == pytest.approx(2)


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2", "gemma3_text"])
def test_tiny_pairs_obey_the_identities_within_float32(architecture: str) -> None:
    pair, tokenizer = tiny.pair(architecture), tiny.tokenizer()
    expansions = expand(pair, tokenizer, [ASKED] * 2, ANSWERS, ids=["0", "1"])
    theta, tau = chat_vector(pair.expert, pair.amateur)
    for one, answer in zip(expansions, ANSWERS, strict=True):
        assert one.linear.shape == (len(tokenizer(answer).input_ids), pair.vocab_size)
        assert expectation(one.amateur, one.linear).abs().max() < 1e-4 * one.linear.abs().max()
        ahead, behind = (one.compute(shifted(theta, tau, c)).detach() for c in (1e-3, -1e-3))
        difference = (ahead - behind) / 2e-3
        assert (difference - one.linear).norm() < 0.02 * one.linear.norm()


def test_an_expansion_holds_what_both_models_say_at_the_answer_s_tokens() -> None:
    pair, tokenizer = tiny.pair("qwen3"), tiny.tokenizer()
    (one,) = expand(pair, tokenizer, [ASKED], ANSWERS[:1], ids=["0"])
    prompt = tokenizer.apply_chat_template(ASKED, add_generation_prompt=True, return_dict=False)
    ids = torch.tensor([prompt + tokenizer(ANSWERS[0]).input_ids])
    logits = [z[0, len(prompt) - 1 : -1] for z in pair.both_logits(ids)]
    torch.testing.assert_close(one.expert, logits[0].log_softmax(-1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.amateur, logits[1].log_softmax(-1), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(one.scores, one.expert - one.amateur)


def test_a_tiny_model_s_step_moves_along_tau_by_the_alignment() -> None:
    pair, tokenizer = tiny.pair("qwen3"), tiny.tokenizer()
    (one,) = expand(pair, tokenizer, [ASKED], ANSWERS[:1], ids=["0"])
    weights = chat_vector(pair.expert, pair.amateur)
    moved = one_step(one.compute, *weights, one.expert, partial(torch.optim.SGD, lr=1.0))
    assert moved == pytest.approx(float(expectation(one.expert, one.linear).mean()), rel=1e-4)


def test_attention_is_left_as_it_was() -> None:
    pair = tiny.pair("qwen3")
    before = pair.amateur.config._attn_implementation
    expand(pair, tiny.tokenizer(), [ASKED], ANSWERS[:1], ids=["0"])
    assert pair.amateur.config._attn_implementation == before != "eager"


def test_models_of_different_shapes_have_no_chat_vector() -> None:
    small, large = tiny.model("qwen3", seed=0), tiny.model("qwen3", seed=0, intermediate_size=64)
    with pytest.raises(ValueError, match="expected expert and amateur of one shape; got 6 weights"):
        chat_vector(small, large)


@pytest.mark.parametrize("first", [0, 3])
def test_contexts_need_a_prompt_and_an_answer(first: int) -> None:
    with pytest.raises(ValueError, match="expected a prompt and an answer"):
        logprobs_of(tiny.model("qwen3", seed=0), torch.tensor([1, 2, 3]), first=first, vocab_size=9)


@pytest.mark.parametrize(("x", "y"), [((1, 2), (1, 0)), ((1, 1), (1, 2)), ((1, 2), (1,))])
def test_a_slope_needs_two_places_and_positive_numbers(x: Any, y: Any) -> None:
    with pytest.raises(ValueError, match="expected positive x and y"):
        loglog_slope(x, y)


UP = (0.7, 0.2, 0.1), (0.2, 0.5, 0.3)
DOWN = (0.9, 0.05, 0.05), (0.5, 0.45, 0.05)
ARMS = {
    "direct": Decoding(strength=0, plausibility=0),
    "truncated": Decoding(strength=0, plausibility=0.3),
    "codit": Decoding(plausibility=0.3),
}
seeds = st.integers(0, 10_000)


def logs(probs: tuple[float, ...]) -> Tensor:
    return torch.tensor(probs, dtype=torch.float64).log()


def rows(seed: int, n: int = 3, *, size: int = 7) -> list[Tensor]:
    """Log-probabilities of n random distributions, float64."""
    noise = torch.Generator().manual_seed(seed)
    draws = [2 * torch.randn(size, generator=noise, dtype=torch.float64) for _ in range(n)]
    return [draw.log_softmax(-1) for draw in draws]


def head(post: Tensor, *, share: float = 0.1) -> Tensor:
    return post >= post.max() + torch.tensor(share).log()


def expansions() -> list[Expansion]:
    compute, theta, _ = toy()
    scores = torch.randn(3, 11, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    amateur, expert = compute(theta), (compute(theta) + scores).log_softmax(-1)
    return [Expansion(name, compute, amateur, expert, scores) for name in "ab"]


@pytest.mark.parametrize(
    ("example", "expected"), [(UP, (0.5838, 0.8627)), (DOWN, (0.4191, 0.2796))], ids=["up", "down"]
)
def test_contrast_may_raise_or_lower_the_mean_score(example, expected) -> None:
    table = strength_table(*example, strengths=(0, 1))
    assert table["expected_score"].tolist() == pytest.approx(expected, abs=5e-5)
    assert (table["slope"].iloc[0] > 0) == (expected[1] > expected[0])


@pytest.mark.parametrize("expert", [(1.0,), (1.0, 0.0), (0.9, 0.2)])
def test_an_example_is_two_positive_distributions(expert) -> None:
    with pytest.raises(ValueError, match="expected two distributions"):
        strength_table(expert, (0.5, 0.5), strengths=(0,))


@given(seeds, st.floats(0, 3))
@settings(deadline=None)
def test_the_slope_is_the_derivative_by_the_strength(seed: int, strength: float) -> None:
    post, pre, _ = rows(seed)
    keep, scores, h = head(post), post - pre, 1e-5
    q, ahead, behind = (
        on_head(post - b * pre, keep) for b in (strength, strength + h, strength - h)
    )
    difference = (expectation(ahead, scores) - expectation(behind, scores)) / (2 * h)
    assert float(strength_slope(q, scores, pre)) == pytest.approx(float(difference), abs=1e-7)


@given(seeds, st.floats(0, 3))
@settings(deadline=None)
def test_on_a_fixed_head_tilting_along_a_score_raises_its_mean(seed: int, tilt: float) -> None:
    post, pre, _ = rows(seed)
    keep, scores = head(post), post - pre
    before, after = (on_head(t * scores, keep) for t in (tilt, tilt + 0.1))
    assert expectation(after, scores) >= expectation(before, scores) - 1e-12


def test_that_mean_may_still_be_below_zero() -> None:
    scores = torch.tensor([-1.0, -2.0, 3.0], dtype=torch.float64)
    keep = torch.tensor([True, True, False])
    assert expectation(on_head(scores, keep), scores) < 0


@given(seeds)
@settings(deadline=None)
def test_mean_scores_of_both_models_are_divergences(seed: int) -> None:
    post, pre, _ = rows(seed)
    to_post = float((post.exp() * (post - pre)).sum())
    assert float(expectation(post, post - pre)) == pytest.approx(to_post)
    assert to_post >= 0 >= float(expectation(pre, post - pre))


@given(seeds)
@settings(deadline=None)
def test_total_variation_is_a_distance_between_0_and_1(seed: int) -> None:
    a, b, c = rows(seed)
    assert total_variation(a, a) == 0
    assert total_variation(a, b) == total_variation(b, a)
    assert 0 <= total_variation(a, c) <= total_variation(a, b) + total_variation(b, c) + 1e-12
    assert total_variation(logs((1, 0)), logs((0, 1))) == 1


def test_the_relative_error_is_0_where_exact_and_1_where_nothing_is_approximated() -> None:
    values = torch.tensor([3.0, 4.0])
    assert relative_error(values, values) == 0
    assert relative_error(values, torch.zeros(2)) == 1


def test_scores_on_the_head_are_the_contrast_at_strength_1() -> None:
    one = expansions()[0]
    logq = distribution(one, ARMS["codit"])
    torch.testing.assert_close(
        on_head(one.scores, logq.isfinite()).exp(), logq.exp().double(), atol=1e-6, rtol=1e-5
    )


def test_the_alignment_table_has_a_row_for_every_context_and_arm() -> None:
    table = alignment_table(expansions(), ARMS)
    assert len(table) == 2 * 3 * 3
    assert set(table["role"]) == set(ARMS)
    assert (table.loc[table["role"] == "direct", "n_plausible"] == 11).all()
    one = expansions()[1]
    expected = (one.expert.exp() * one.linear).sum(-1).tolist()
    found = table[(table["id"] == "b") & (table["role"] == "direct")].sort_values("position")
    assert found["alignment"].tolist() == pytest.approx(expected, abs=1e-5)


def test_margins_are_zero_where_only_one_token_is_plausible() -> None:
    one = expansions()[0]
    certain = torch.full((1, 11), -30.0).index_fill(1, torch.tensor([2]), 0.0).log_softmax(-1)
    expert = torch.cat([certain.double(), one.expert[1:]])
    table = alignment_table([Expansion("a", one.compute, one.amateur, expert, one.linear)], ARMS)
    found = margins(table, "codit", "truncated", column="alignment")
    assert found["is_open"].tolist()[0] is False
    assert found["difference"].iloc[0] == 0
    assert not found["above"].iloc[0]
    assert set(found["role"]) == {"truncated"}


def test_the_reach_of_the_expansion_ends_as_the_vector_grows() -> None:
    compute, theta, tau = toy()
    value, linear = differentiate(compute, theta, tau)
    one = Expansion("a", compute, value, value, linear)
    scales = (1e-3, 1e-2, 1.0, 4.0)
    table = reach_table([one], theta, tau, scales, plausibility=0.1)
    assert len(table) == 3 * len(scales)
    means = table.groupby("scale")[
        ["residual", "error", "head_error", "linearised", "uniform"]
    ].mean()
    assert loglog_slope(scales[:2], means["residual"][:2]) == pytest.approx(2, abs=0.05)
    assert means["error"].is_monotonic_increasing
    assert means["head_error"].iloc[0] < 0.01 < means["head_error"].iloc[-1]
    assert means["linearised"].iloc[0] < 1e-4 < means["linearised"].iloc[-1]
    assert means["uniform"].iloc[0] < means["uniform"].iloc[-1]


def test_what_all_plausible_tokens_share_is_no_error_of_the_choice() -> None:
    compute, theta, tau = toy()
    one = expansions()[0]
    scores = compute(shifted(theta, tau, 1.0)) - compute(theta)
    shift = Expansion("a", compute, compute(theta), one.expert, scores - 0.7)
    table = reach_table([shift], theta, tau, [1.0], plausibility=0)
    assert table["head_error"].max() < 1e-12 < table["error"].min()
    assert table["linearised"].max() < 1e-12 < table["uniform"].min()


def test_prompts_weigh_equally_however_long_their_answers_are() -> None:
    table = pd.DataFrame({"id": ["a", "a", "a", "b"], "role": "codit", "x": [1.0, 2.0, 3.0, 6.0]})
    assert over_prompts(table, "x").estimate == pytest.approx(4)
    assert over_prompts(table, "x").n == 2
    two = pd.concat([table, table.assign(role="direct", x=table["x"] > 1)])
    found = curve(two, "x", by="role")
    assert found["role"].tolist() == ["codit", "direct"]
    assert found["value"].tolist() == pytest.approx([4, (2 / 3 + 1) / 2])
    assert (found["low"] <= found["value"]).all()
    assert (found["value"] <= found["high"]).all()
