"""One cache for two models: its config, its two views, and what cannot share one."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import CONFIG_MAPPING, Cache, DynamicCache, StaticCache

from codit.engine.cache import (
    CACHE,
    GrowingLayer,
    check_paged,
    growing_cache,
    halves,
    joint_config,
    n_layers,
)
from tests import tiny

KEYS = torch.zeros(1, 2, 3, 8)  # [rows, heads, tokens, head size]


@pytest.mark.parametrize("architecture", [*tiny.ARCHITECTURES, "gemma3"])
def test_joint_config_has_the_layers_of_both_models_and_leaves_theirs_alone(architecture):
    expert, amateur = tiny.config(architecture), tiny.config(architecture)
    before = expert.to_dict()
    joint = joint_config(expert, amateur, vocab_size=100)
    assert (n_layers(expert), n_layers(joint)) == (2, 4)
    assert joint.vocab_size == 100
    assert expert.to_dict() == before == amateur.to_dict()
    kinds = [layer.is_sliding for layer in DynamicCache(config=joint).layers]
    assert kinds == [layer.is_sliding for layer in DynamicCache(config=expert).layers] * 2


def test_an_amateur_with_fewer_layers_brings_its_own():
    expert, amateur = tiny.config("llama"), tiny.config("llama", num_hidden_layers=1)
    assert n_layers(joint_config(expert, amateur)) == 3


def test_vocabulary_is_the_narrower_models_unless_it_is_given():
    expert, amateur = tiny.config("llama", vocab_size=300), tiny.config("llama", vocab_size=290)
    assert joint_config(expert, amateur).vocab_size == 290
    assert joint_config(expert, amateur, vocab_size=280).vocab_size == 280


def test_views_share_the_layers_of_the_cache_and_number_them_from_zero():
    cache = DynamicCache(config=joint_config(tiny.config("llama"), tiny.config("llama")))
    expert, amateur = halves(cache, first=2, total=4, both=True)
    expert.update(KEYS, KEYS, 0)
    amateur.update(KEYS, KEYS + 1, 0)
    assert cache.layers[0].values.sum() == 0
    assert cache.layers[2].values.sum() == KEYS.numel()
    cache.reorder_cache(torch.tensor([0, 0]))
    assert amateur.layers[0].keys.shape[0] == 2


def test_a_cache_that_grows_gets_its_layers_before_it_is_halved():
    cache = DynamicCache()
    expert, amateur = halves(cache, first=2, total=4, both=True)
    assert (len(cache.layers), len(expert.layers), len(amateur.layers)) == (4, 2, 2)


def test_a_cache_that_only_the_expert_filled_is_refused_once_the_amateur_is_read():
    config = joint_config(tiny.config("llama"), tiny.config("llama"))
    for cache in (DynamicCache(config=config), StaticCache(config=config, max_cache_len=8)):
        expert, _ = halves(cache, first=2, total=4, both=False)
        expert.update(KEYS, KEYS, 0)
        halves(cache, first=2, total=4, both=False)
        with pytest.raises(ValueError, match=r"filled at strength 0\. Start with an empty cache"):
            halves(cache, first=2, total=4, both=True)
        cache.layers[2].update(KEYS, KEYS)
        halves(cache, first=2, total=4, both=True)


def test_a_cache_of_a_single_model_is_refused():
    cache = DynamicCache(config=tiny.config("llama"))
    message = "has the layers of both models, 4; got 2. Make it with DynamicCache(config=pair.conf"
    with pytest.raises(ValueError, match=re.escape(message)):
        halves(cache, first=2, total=4, both=True)


def test_an_offloaded_cache_is_refused():
    cache = Cache(layers=DynamicCache(config=tiny.config("llama")).layers)
    cache.offloading = True
    message = "cannot share an offloaded cache. Use cache_implementation 'dynamic' or 'static'"
    with pytest.raises(ValueError, match=message):
        halves(cache, first=1, total=2, both=True)


def refused_pairs():
    llama, window = tiny.config("llama"), tiny.config("gemma3_text")
    mixed = CONFIG_MAPPING["lfm2"](num_hidden_layers=2, layer_types=["conv", "full_attention"])
    yield llama, tiny.config("qwen3"), None, "must have one architecture; got llama and qwen3. Take"
    yield mixed, mixed, None, "full and sliding attention; got layers of kind conv. Such an arch"
    wider = tiny.config("gemma3_text", sliding_window=9)
    yield window, wider, None, "need one window; got [6, 9]. Give both configs the same"
    yield llama, llama, 281, "vocab_size must lie in 1..280, the narrower model's logits; got 281"
    yield llama, llama, 0, "vocab_size must lie in 1..280, the narrower model's logits; got 0"


@pytest.mark.parametrize(("expert", "amateur", "vocab_size", "message"), [*refused_pairs()])
def test_models_that_cannot_share_a_cache_are_refused(expert, amateur, vocab_size, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        joint_config(expert, amateur, vocab_size=vocab_size)


def test_keys_of_two_shapes_are_refused_for_pages():
    check_paged(tiny.config("gpt2"), tiny.config("gpt2"))
    message = "keys of one shape (heads, head size); got (2, 8) and (4, 8). Use generate for this"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_paged(tiny.config("llama"), tiny.config("llama", num_key_value_heads=4))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@torch.no_grad()
def test_a_growing_cache_holds_what_the_librarys_holds(architecture):
    model = tiny.model(architecture, seed=2)
    caches = growing_cache(model.config), DynamicCache(config=model.config)
    assert any(isinstance(layer, GrowingLayer) for layer in caches[0].layers)
    text = torch.randint(0, 280, (3, 60), generator=torch.Generator().manual_seed(0))
    pieces = [text[:, :5], *text[:, 5:50].split(1, dim=1), text[:, 50:]]
    for place, piece in enumerate(pieces):
        if place == 20:  # a row is taken out, the others change places
            for cache in caches:
                for layer in cache.layers:
                    layer.batch_select_indices(torch.tensor([2, 0]))
        ids = piece if place < 20 else piece[[2, 0]]
        ours, theirs = (model(ids, **{CACHE: cache}).logits for cache in caches)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert caches[0].get_seq_length() == caches[1].get_seq_length() == 60


def test_a_growing_layer_that_was_cropped_overwrites_and_one_that_was_reordered_does_not():
    layer = GrowingLayer()
    first, second = torch.randn(2, 1, 4, 8), torch.randn(2, 1, 1, 8)
    layer.update(first, first)
    room = layer.keys.data_ptr()
    layer.crop(-2)
    keys, _ = layer.update(second, second)
    assert torch.equal(keys, torch.cat([first[:, :, :2], second], 2))
    assert keys.data_ptr() == room
    layer.reorder_cache(torch.tensor([1, 1]))
    keys, _ = layer.update(second, second)
    expected = torch.cat([torch.cat([first[:, :, :2], second], 2)[[1, 1]], second], 2)
    assert torch.equal(keys, expected)
    layer.reset()
    keys, _ = layer.update(second, second)
    assert torch.equal(keys, second)
