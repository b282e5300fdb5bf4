"""The compiled CPU operators that vLLM 0.33 calls for a dense model, in plain torch.

vLLM's source archive installs in seconds without its kernels; then these are missing. They are
slow and exact: tests compare what the engine does around them. Shapes are those of vLLM's own
CPU attention backend: a page holds [key heads, block, head size] of keys, then of values.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

_library: torch.library.Library | None = None
_SCHEMAS = {
    "init_cpu_memory_env": "(int[] nodes) -> ()",
    "cpu_attn_has_isa": "(str isa) -> bool",
    "get_scheduler_metadata": "(int num_req, int num_heads_q, int num_heads_kv, int head_dim, "
    "Tensor seq_lens, ScalarType dtype, Tensor query_start_loc, bool casual, int window_size, "
    "str isa_hint, bool enable_kv_split, Tensor? dynamic_causal, str kv_cache_dtype) -> Tensor",
    "cpu_attn_reshape_and_cache": "(Tensor key, Tensor value, Tensor(a!) key_cache, "
    "Tensor(b!) value_cache, Tensor slot_mapping, str isa, float k_scale, float v_scale, "
    "str kv_cache_dtype) -> ()",
    "cpu_attention_with_kv_cache": "(Tensor query, Tensor key_cache, Tensor value_cache, "
    "Tensor(a!) output, Tensor query_start_loc, Tensor seq_lens, float scale, bool causal, "
    "Tensor? alibi_slopes, SymInt sliding_window_size, Tensor block_table, float softcap, "
    "Tensor scheduler_metadata, Tensor? s_aux, Tensor? dynamic_causal, float k_scale, "
    "float v_scale, str kv_cache_dtype) -> ()",
    "rotary_embedding": "(Tensor positions, Tensor(a!) query, Tensor(b!)? key, int head_size, "
    "Tensor cos_sin_cache, bool is_neox) -> ()",
    "prepack_moe_weight": "(Tensor weight, Tensor(a!) packed, str isa) -> ()",
    "cpu_fused_moe": "(Tensor(a!) output, Tensor hidden, Tensor w13, Tensor w2, Tensor? w13_bias, "
    "Tensor? w2_bias, Tensor topk_weights, Tensor topk_ids, bool skip_weighted, str act, str isa) "
    "-> ()",
    "compute_slot_mapping_kernel_impl": "(Tensor query_start_loc, Tensor positions, "
    "Tensor block_table, Tensor(a!) slot_mapping, int block_size) -> ()",
    "greedy_argmax": "(Tensor logits) -> Tensor",
    "fused_gumbel_argmax": "(Tensor logits, Tensor seeds) -> Tensor",
}


def register() -> None:
    """Define the operators that are missing, once per process."""
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("_C", "FRAGMENT")
    made = {name: globals()[f"_{name}"] for name in _SCHEMAS}
    for name, schema in _SCHEMAS.items():
        if hasattr(torch.ops._C, name):
            continue
        _library.define(name + schema)
        _library.impl(name, made[name], "CompositeExplicitAutograd")


def _init_cpu_memory_env(nodes: list[int]) -> None:
    """Where memory lies matters to speed alone."""


def _cpu_attn_has_isa(isa: str) -> bool:
    return False


def _get_scheduler_metadata(*plan: object) -> Tensor:
    """The kernel's plan of work; what is done here needs none."""
    return torch.empty(0)


def _cpu_attn_reshape_and_cache(
    key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slots: Tensor, *how: object
) -> None:
    size = key_cache.shape[2]
    kept = slots >= 0  # padding has no slot
    slots = slots[kept].long()
    for new, cache in ((key, key_cache), (value, value_cache)):
        cache[slots // size, :, slots % size] = new[: len(kept)][kept].to(cache.dtype)


def _cpu_attention_with_kv_cache(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    output: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    scale: float,
    causal: bool,
    alibi_slopes: Tensor | None,
    window: int,
    block_table: Tensor,
    softcap: float,
    scheduler_metadata: Tensor,
    s_aux: Tensor | None,
    *how: object,
) -> None:
    assert causal, "not among the tested models"
    assert alibi_slopes is s_aux is None, "not among the tested models"
    starts, totals = query_start_loc.tolist(), seq_lens.tolist()
    lengths = [end - start for start, end in itertools.pairwise(starts)]
    single = [row for row, length in enumerate(lengths) if length == 1]
    groups = [single] if single else []
    groups += [[row] for row, length in enumerate(lengths) if length > 1]
    for rows in groups:
        n_query, longest = lengths[rows[0]], max(totals[row] for row in rows)
        index = torch.tensor(rows)
        places = torch.tensor([[starts[row] + i for i in range(n_query)] for row in rows])
        pages = block_table[index, : -(-longest // key_cache.shape[2])].long()
        keys, values = (
            cache[pages].transpose(1, 2).flatten(2, 3)[:, :, :longest]
            for cache in (key_cache, value_cache)
        )
        total = torch.tensor([totals[row] for row in rows])
        at = total[:, None] - n_query + torch.arange(n_query)  # positions of the queries
        behind = at[:, :, None] - torch.arange(longest)  # [rows, queries, keys]
        seen = behind >= 0
        if window > 0:
            seen &= behind < window
        asked = query[places].transpose(1, 2)
        output[places.flatten()] = (
            _attend(asked, keys, values, seen[:, None], scale, softcap)
            .transpose(1, 2)
            .flatten(0, 1)
            .to(output.dtype)
        )


def _attend(
    query: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float, softcap: float
) -> Tensor:
    if not softcap:
        how = {"attn_mask": seen, "scale": scale, "enable_gqa": True}
        return scaled_dot_product_attention(query, keys, values, **how)
    groups = query.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(groups, dim=1) for x in (keys, values))
    scores = softcap * torch.tanh(query @ keys.transpose(-1, -2) * scale / softcap)
    return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ values


def _rotary_embedding(
    positions: Tensor,
    query: Tensor,
    key: Tensor | None,
    head_size: int,
    cos_sin_cache: Tensor,
    is_neox: bool,
) -> None:
    assert is_neox, "not among the tested models"
    cos, sin = cos_sin_cache[positions.flatten()].to(query.dtype)[:, None].chunk(2, dim=-1)
    rotated = 2 * cos.shape[-1]
    for states in (query, key):
        if states is not None:
            heads = states.view(len(cos), -1, head_size)
            one, other = heads[..., :rotated].clone().chunk(2, dim=-1)
            heads[..., :rotated] = torch.cat([one * cos - other * sin, other * cos + one * sin], -1)


def _prepack_moe_weight(weight: Tensor, packed: Tensor, isa: str) -> None:
    packed.copy_(weight.view_as(packed))


def _cpu_fused_moe(
    output: Tensor,
    hidden: Tensor,
    w13: Tensor,
    w2: Tensor,
    w13_bias: Tensor | None,
    w2_bias: Tensor | None,
    topk_weights: Tensor,
    topk_ids: Tensor,
    skip_weighted: bool,
    act: str,
    isa: str,
) -> None:
    assert act == "silu", "not among the tested models"
    assert w13_bias is w2_bias is None, "not among the tested models"
    made = torch.zeros_like(output)
    for expert in topk_ids.unique().tolist():
        rows, places = (topk_ids == expert).nonzero(as_tuple=True)
        gate, up = (hidden[rows] @ w13[expert].T).chunk(2, dim=-1)
        found = (torch.nn.functional.silu(gate) * up) @ w2[expert].T
        share = 1.0 if skip_weighted else topk_weights[rows, places, None].to(found.dtype)
        made.index_add_(0, rows, found * share)
    output.copy_(made)


def _compute_slot_mapping_kernel_impl(
    query_start_loc: Tensor, positions: Tensor, block_table: Tensor, slots: Tensor, size: int
) -> None:
    starts = query_start_loc.long()
    lengths = starts[1:] - starts[:-1]
    count = int(lengths.sum())
    rows = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    places = positions[:count].long()
    slots[:count] = block_table[rows, places // size].long() * size + places % size


def _greedy_argmax(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


def _fused_gumbel_argmax(logits: Tensor, seeds: Tensor) -> Tensor:
    """arg max of logits + Gumbel noise, the noise a function of the row's seed and the id."""
    noise = torch.stack(
        [
            torch.rand(
                logits.shape[1],
                generator=torch.Generator().manual_seed(seed),
                dtype=torch.float64,
            )
            for seed in seeds.tolist()
        ]
    )
    gumbel = -(-noise.clamp(min=1e-300).log()).log()
    return (logits.double() + gumbel).argmax(-1)
