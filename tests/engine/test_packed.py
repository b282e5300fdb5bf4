"""Packed weights give the same texts, only where they are quicker, and leave nothing behind."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from codit import decode
from codit.engine import packed as packed_weights
from codit.engine import sparse
from codit.engine.packed import LEAST_ROWS, LEAST_TOKENS, weights_to_pack
from codit.recipes import Decoding
from tests import tiny
from tests.benchmarks import random_pairs

MANY = {"rows": LEAST_ROWS, "tokens": LEAST_TOKENS}
TEXT = torch.arange(1, 13).view(4, 3)


@pytest.fixture
def small_ones_too(monkeypatch):
    monkeypatch.setattr(sparse, "LEAST_NUMBERS", 1)


def forwards(model):
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


def packed(model, **changes):
    return packed_weights.packed_weights(model, **(MANY | changes))


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, "gemma3"])
@torch.inference_mode()
def test_logits_are_those_of_the_layers_as_they_are(small_ones_too, architecture):
    model = tiny.model(architecture, seed=1)
    expected = model(TEXT).logits
    with packed(model) as layers:
        assert layers == len(forwards(model)) > 0
        torch.testing.assert_close(model(TEXT).logits, expected, atol=1e-4, rtol=1e-4)
    assert forwards(model) == []
    assert torch.equal(model(TEXT).logits, expected)


@torch.inference_mode()
def test_a_bias_is_added_and_any_shape_is_taken(small_ones_too):
    holder = tiny.model("llama", seed=1)
    layer = holder.lm_head = nn.Linear(32, 7)
    hidden = torch.randn(6, 5, 32)
    for given in (hidden, hidden[:, -1:], hidden[:, 0], hidden.transpose(0, 1), hidden[:1, :1]):
        expected = layer(given)
        with packed(holder):
            torch.testing.assert_close(layer(given), expected, atol=1e-5, rtol=1e-5)
            assert layer(given).shape == expected.shape


def test_few_rows_take_the_layer_as_it_is(small_ones_too, monkeypatch):
    model = tiny.model("llama", seed=1)
    head, asked = model.get_output_embeddings(), []
    linear = nn.functional.linear
    with packed(model), torch.inference_mode():
        monkeypatch.setattr(
            nn.functional, "linear", lambda *args: (asked.append(len(args[0])), linear(*args))[1]
        )
        for rows in (LEAST_ROWS - 1, LEAST_ROWS):
            head(torch.randn(rows, head.in_features))
    assert asked == [LEAST_ROWS - 1]


def test_gradients_pass_through(small_ones_too):
    model = tiny.model("llama", seed=1)
    layer = model.get_output_embeddings()
    with packed(model):
        hidden = torch.randn(8, layer.in_features, requires_grad=True)
        layer(hidden).sum().backward()
    torch.testing.assert_close(hidden.grad, layer.weight.sum(0).expand_as(hidden))


def test_texts_are_the_same_and_the_model_is_as_before(small_ones_too, monkeypatch):
    pair = tiny.pair("qwen3", plausibility=0.1)
    pair.gather_head = True
    chats = [[{"role": "user", "content": "abcdefgh"[:n]}] for n in range(1, 7)]
    decoding = Decoding(plausibility=0.1, max_new_tokens=24)
    seen = []
    make = packed_weights._packed
    monkeypatch.setattr(
        packed_weights, "_packed", lambda layer: (seen.append(layer), make(layer))[1]
    )
    how = {"engine": "static", "progress": False}
    made = decode.generate(pair, tiny.tokenizer(), chats, decoding, **how)
    assert len(seen) == len(set(seen)) > 20
    assert pair.amateur.get_output_embeddings() not in seen  # its rows are gathered
    assert pair.expert.get_output_embeddings() in seen
    assert forwards(pair) == []
    monkeypatch.setattr(packed_weights, "weights_to_pack", lambda *_, **__: [])
    plain = decode.generate(pair, tiny.tokenizer(), chats, decoding, **how)
    assert [one.token_ids for one in made] == [one.token_ids for one in plain]
    for one, other in zip(made, plain, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_an_error_leaves_the_model_as_it_was(small_ones_too):
    model = tiny.model("llama", seed=1)
    with pytest.raises(KeyError), packed(model):
        raise KeyError
    assert forwards(model) == []


def test_a_block_inside_another_packs_nothing(small_ones_too):
    model = tiny.model("llama", seed=1)
    with packed(model) as outer, packed(model) as inner:
        assert (outer > 0, inner) == (True, 0)
    assert forwards(model) == []


def test_the_amateur_is_packed_only_if_it_is_run(small_ones_too):
    pair = tiny.pair("llama")
    both = weights_to_pack(pair, **MANY)
    with pair.override(strength=0.0):
        one = weights_to_pack(pair, **MANY)
    assert len(both) > len(one) > 0
    assert set(one) <= set(pair.expert.modules())


@pytest.mark.parametrize("why", ["rows", "tokens", "machine", "mkldnn", "memory", "dtype", "small"])
def test_layers_stay_as_they_are_where_packing_does_not_pay(monkeypatch, why):
    if why != "small":
        monkeypatch.setattr(sparse, "LEAST_NUMBERS", 1)
    model, how = tiny.model("llama", seed=1), dict(MANY)
    assert bool(weights_to_pack(model, **how)) == (why != "small")
    if why in how:
        how[why] -= 1
    elif why == "machine":
        monkeypatch.setattr(packed_weights.platform, "machine", lambda: "aarch64")
    elif why == "mkldnn":
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    elif why == "memory":
        monkeypatch.setattr(packed_weights, "free_bytes", lambda device: 1000)
    elif why == "dtype":
        model = copy.deepcopy(model).to(torch.bfloat16)
    assert weights_to_pack(model, **how) == []


def test_shapes_that_are_measured_say_which_are_packed():
    small = random_pairs.model(random_pairs.SHAPES["micro"], seed=1)
    assert weights_to_pack(small, rows=64, tokens=256) == []
