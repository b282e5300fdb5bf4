"""The first-order argument on a float64 toy, strictly; on tiny models, as far as they allow."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from codit.first_order import (
    chat_vector,
    differentiate,
    expand,
    expectation,
    loglog_slope,
    logprobs_of,
    one_step,
    shifted,
)
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
