"""Bytes of caches, rows that fit, and errors that mean a lack of memory."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import Qwen3Config

from codit.engine import memory
from tests import tiny


def test_a_tokens_cache_is_keys_and_values_of_all_layers_of_both_models():
    pair = tiny.pair("llama")
    config = pair.expert.config
    one = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    assert memory.cache_bytes(config, 4) == one
    assert memory.cache_bytes(pair.config, 4) == 2 * one
    gpt2 = tiny.config("gpt2")
    assert memory.cache_bytes(gpt2, 2) == 2 * gpt2.n_layer * gpt2.n_embd * 2


@pytest.mark.parametrize(("room", "rows"), [(100.0, 64), (9.9, 8), (4.0, 4), (1.5, 1), (0.1, 1)])
def test_rows_that_fit_are_a_power_of_two_of_what_is_free(room, rows, monkeypatch):
    pair = tiny.pair("llama")
    row = 100 * memory.cache_bytes(pair.config, 4) + memory.VECTORS * pair.vocab_size * 4
    monkeypatch.setattr(memory, "free_bytes", lambda _: int(room * row / memory.USED) + 1)
    assert memory.rows_that_fit(pair, 100, most=64) == rows


def test_free_memory_of_this_machine_is_a_number_of_bytes():
    assert memory.free_bytes(torch.device("cpu")) > 2**20


def test_free_memory_of_a_gpu_counts_what_torch_holds_unused(monkeypatch):
    gpu = SimpleNamespace(
        mem_get_info=lambda _: (1000, 9000),
        memory_reserved=lambda _: 500,
        memory_allocated=lambda _: 200,
    )
    monkeypatch.setattr(memory.torch, "cuda", gpu)
    assert memory.free_bytes(torch.device("cuda", 0)) == 1300


def test_only_a_lack_of_memory_is_taken_for_one():
    assert memory.is_exhausted(MemoryError())
    assert memory.is_exhausted(torch.OutOfMemoryError("CUDA out of memory."))
    assert memory.is_exhausted(RuntimeError("DefaultCPUAllocator: can't allocate memory"))
    assert not memory.is_exhausted(RuntimeError("shapes do not match"))
    assert not memory.is_exhausted(ValueError("out of memory"))
    memory.release()


# One layer: q 8·8, k and v 8·4 each, o 8·8, three MLP products 8·16, two norms of 8, and Qwen3's
# norms of q and k, 4 each. Then the last norm and the head, 64·8.
READ = 2 * (64 + 32 + 32 + 64 + 3 * 128 + 16 + 8) + 8 + 64 * 8


def qwen(*, tied: bool = True) -> Qwen3Config:
    """A Qwen3 of two layers of width 8, whose weights are counted by hand."""
    size = {"hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 16, "vocab_size": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
    return Qwen3Config(**size, **heads, tie_word_embeddings=tied)


@pytest.mark.parametrize("tied", [True, False])
def test_the_weights_of_a_step_are_counted_as_by_hand(tied):
    assert memory.n_read(qwen(tied=tied)) == READ
    assert memory.n_weights(qwen(tied=tied)) == READ + (0 if tied else 64 * 8)


def test_the_bytes_of_a_step_are_weights_once_and_both_caches():
    token = 2 * 2 * 1 * 4 * 4  # keys and values, layers, heads, head size, float32
    found = memory.step_bytes([qwen()] * 2, rows=3, context=10, itemsize=4)
    assert found == 2 * (READ * 4 + 3 * 10 * token)


def test_the_operations_of_a_step_are_two_a_weight_and_those_of_attention():
    found = memory.step_operations([qwen()] * 2, rows=3, context=10)
    assert found == 3 * 2 * (2 * READ + 4 * 2 * 2 * 4 * 10)
    assert memory.step_operations([tiny.config("gpt2")], rows=1, context=1) > 0


def test_a_mixture_of_experts_has_no_fixed_bytes():
    with pytest.raises(ValueError, match="expected a model of dense layers; got qwen3_moe"):
        memory.n_read(tiny.config("qwen3_moe"))
