"""The arithmetic on plausible ids alone equals the one on full vectors.

Some rows of a head give the logits of these ids, or are refused.
"""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

from codit.contrast import contrast, plausible
from codit.engine import sparse as heads
from codit.engine.sparse import (
    can_gather,
    candidates,
    contrast_candidates,
    float32_logits,
    head_rows,
    linear_float32,
)
from codit.pair import ContrastivePair
from tests import tiny
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


IDS = torch.tensor([3, 7, 250])
TEXT = torch.tensor([[5, 6, 7], [9, 9, 1]])


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, "gemma3"])
@torch.no_grad()
def test_gathered_rows_give_the_logits_of_their_ids(architecture):
    model = tiny.model(architecture, seed=1)
    assert can_gather(model)
    expected = model(TEXT).logits[..., IDS]
    with head_rows(model, IDS):
        made = model(TEXT).logits
    torch.testing.assert_close(made, expected, atol=1e-5, rtol=1e-5)
    assert model(TEXT).logits.shape[-1] == 280  # as it was


@torch.no_grad()
def test_a_soft_cap_and_a_bias_are_kept():
    model = tiny.model("gemma3_text", seed=1)
    model.config.final_logit_softcapping = 2.0
    head = model.get_output_embeddings()
    head.bias = nn.Parameter(torch.randn(280))
    expected = model(TEXT).logits[..., IDS]
    assert expected.abs().max() <= 2.0
    assert can_gather(model)
    with head_rows(model, IDS):
        torch.testing.assert_close(model(TEXT).logits, expected, atol=1e-5, rtol=1e-5)


def changed(kind: str):
    """A model whose head is not what a linear layer is."""
    model = tiny.model("llama", seed=1)
    head = model.lm_head
    if kind == "hook":
        head.register_forward_hook(lambda *_: None)
    elif kind == "wrapped":
        head.forward = head.forward
    elif kind == "subclass":
        head.__class__ = type("Quantised", (nn.Linear,), {})
    elif kind == "bias":
        head.bias = nn.Parameter(torch.full((280,), -torch.inf))
    elif kind == "all logits are read":
        whole = model.forward

        def forward(*args, **kwargs):
            outputs = whole(*args, **kwargs)
            outputs.logits = outputs.logits - outputs.logits.mean(-1, keepdim=True)
            return outputs

        model.forward = forward
    elif kind == "a width is expected":
        whole = model.forward

        def forward(*args, **kwargs):
            outputs = whole(*args, **kwargs)
            outputs.logits = outputs.logits + torch.zeros(280)
            return outputs

        model.forward = forward
    return model


@pytest.mark.parametrize(
    "kind", ["hook", "wrapped", "subclass", "bias", "all logits are read", "a width is expected"]
)
def test_a_head_that_is_more_than_linear_is_found_out(kind):
    assert not can_gather(changed(kind))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("gathers", [True, False])
@torch.no_grad()
def test_a_pair_gives_the_same_log_q_with_and_without_gathered_rows(architecture, gathers):
    pair = tiny.pair(architecture, plausibility=0.2)
    pair.gather_head = gathers
    outputs = pair(TEXT, sparse=True)
    assert (outputs.logits, outputs.candidates is None) == (None, False)
    expected = contrast(*pair.both_logits(TEXT), plausibility=0.2)
    torch.testing.assert_close(
        outputs.candidates.dense(280).view(2, 3, 280), expected, atol=1e-5, rtol=0
    )
    torch.testing.assert_close(pair(TEXT).logits, expected, atol=1e-5, rtol=0)


def test_gradients_flow_through_full_vectors():
    pair = tiny.pair("llama", plausibility=0.2)
    outputs = pair(TEXT, sparse=True)
    assert outputs.candidates is None
    assert outputs.logits.requires_grad


@torch.no_grad()
def test_an_amateur_that_excludes_a_plausible_id_is_mended_by_the_floor():
    pair = tiny.pair("llama", plausibility=0.2)
    best = pair.expert(TEXT).logits[0, 0].argmax()
    pair.amateur.lm_head.bias = nn.Parameter(torch.zeros(280))
    pair.amateur.lm_head.bias[best] = -torch.inf
    expected = contrast(*pair.both_logits(TEXT), plausibility=0.2)
    assert not pair.gathers_head
    torch.testing.assert_close(pair(TEXT).logits, expected, atol=1e-5, rtol=0)


# -- float32 logits of half precision --------------------------------------------------------------


@pytest.fixture
def widening(monkeypatch):
    """What a GPU has, by a stand-in for its kernel: products of halves, summed in float32."""
    real, calls = torch.mm, []

    def mm(a, b, *, out_dtype):
        calls.append(out_dtype)
        return real(a.to(out_dtype), b.to(out_dtype))

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(heads, "_widens", lambda device, dtype: True)
    return calls


def captured(model, text):
    """What a model's head reads."""
    seen = []
    with_hook = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, given: seen.append(given[0])
    )
    model(text)
    with_hook.remove()
    return seen[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gemma3_text"])
@torch.no_grad()
def test_a_half_precision_models_logits_are_summed_in_float32(architecture, dtype, widening):
    model = tiny.model(architecture, seed=1).to(dtype)
    head = model.get_output_embeddings()
    hidden = captured(model, TEXT)
    expected = nn.functional.linear(hidden.double(), head.weight.double())
    with float32_logits(model):
        made = model(TEXT).logits
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.double(), expected, atol=1e-4, rtol=1e-5)
    rounded = model(TEXT).logits  # as it was
    assert rounded.dtype == dtype
    assert (rounded.double() - expected).abs().max() > 10 * (made.double() - expected).abs().max()


@torch.no_grad()
def test_gathered_rows_of_half_precision_are_float32_too(widening):
    model = tiny.model("llama", seed=1).to(torch.bfloat16)
    with float32_logits(model):
        whole = model(TEXT).logits
    with head_rows(model, IDS), float32_logits(model):
        some = model(TEXT).logits
    assert some.dtype == torch.float32
    torch.testing.assert_close(some, whole[..., IDS], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["hook", "wrapped", "subclass"])
@torch.no_grad()
def test_a_head_that_is_more_than_a_linear_layer_is_left_alone(kind, widening):
    model = changed(kind).to(torch.bfloat16)
    before = model(TEXT).logits
    with float32_logits(model):
        assert torch.equal(model(TEXT).logits, before)


def test_float32_models_and_gradients_are_left_alone(widening):
    model = tiny.model("llama", seed=1)
    with torch.no_grad(), float32_logits(model):
        assert "forward" not in vars(model.lm_head)
    half = tiny.model("llama", seed=1).to(torch.bfloat16)
    with float32_logits(half):
        half(TEXT).logits.sum().backward()
    assert half.lm_head.weight.grad.dtype == torch.bfloat16


@torch.no_grad()
def test_a_cpu_keeps_the_fast_product_of_its_own():
    model = tiny.model("llama", seed=1).to(torch.bfloat16)
    with float32_logits(model):
        assert model(TEXT).logits.dtype == torch.bfloat16


def test_a_product_that_widens_is_used_for_any_shape(widening):
    hidden, weight = torch.randn(2, 3, 8).bfloat16(), torch.randn(280, 8).bfloat16()
    bias = torch.randn(280).bfloat16()
    made = linear_float32(hidden, weight, bias)
    assert widening == [torch.float32]
    assert made.dtype == torch.float32
    expected = hidden.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(made.double(), expected, atol=1e-5, rtol=1e-5)


def test_a_device_without_it_is_found_out():
    heads._widens.cache_clear()
    assert not heads._widens(torch.device("cpu"), torch.bfloat16)


@torch.no_grad()
def test_a_pair_of_half_precision_contrasts_what_is_not_rounded(widening):
    """Its log q is that of the float32 products of what both heads read."""
    pair = ContrastivePair(
        *(tiny.model("llama", seed=seed).to(torch.bfloat16) for seed in (0, 1)), plausibility=0.0
    )
    products = [
        nn.functional.linear(captured(m, TEXT).float(), m.get_output_embeddings().weight.float())
        for m in (pair.expert, pair.amateur)
    ]
    expected = contrast(*products, strength=1.0, plausibility=0.0)
    torch.testing.assert_close(pair(TEXT).logits, expected, atol=1e-4, rtol=1e-4)
    rounded = contrast(
        pair.expert(TEXT).logits, pair.amateur(TEXT).logits, strength=1.0, plausibility=0.0
    )
    assert (rounded - expected).abs().max() > 0.01
