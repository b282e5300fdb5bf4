"""Some rows of a head give the logits of these ids, or are refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from codit.contrast import contrast
from codit.head_rows import can_gather, head_rows
from tests import tiny

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


@torch.no_grad()
def test_a_strength_per_id_needs_the_amateurs_normaliser_and_gets_it():
    pair = tiny.pair("llama", plausibility=0.2)
    with pair.override(special_strength=0.25, special_ids=[3, 7, *range(100, 200)]):
        assert pair(TEXT, sparse=True).candidates is None
        expected = contrast(*pair.both_logits(TEXT), strength=pair.strengths(), plausibility=0.2)
        torch.testing.assert_close(pair(TEXT).logits, expected)


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
