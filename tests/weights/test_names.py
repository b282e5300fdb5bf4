"""What names say, for the names of every architecture the tests know."""

from __future__ import annotations

import re

import pytest

from codit.weights.names import expert_of, layer_of, module_of, natural
from tests import tiny


@pytest.mark.parametrize(
    ("name", "module", "layer"),
    [
        ("model.embed_tokens.weight", "embed", None),
        ("lm_head.weight", "head", None),
        ("model.norm.weight", "norms", None),
        ("model.layers.11.self_attn.q_proj.weight", "q", 11),
        ("model.layers.11.self_attn.q_proj.bias", "q", 11),
        ("model.layers.3.self_attn.q_norm.weight", "norms", 3),
        ("model.layers.0.mlp.gate.weight", "router", 0),
        ("model.layers.0.mlp.gate_proj.weight", "gate", 0),
        ("model.layers.0.mlp.experts.7.gate_proj.weight", "experts", 0),
        ("model.layers.0.mlp.shared_expert_gate.weight", "router", 0),
        ("model.layers.0.block_sparse_moe.experts.1.w1.weight", "experts", 0),
        ("gpt_neox.embed_in.weight", "embed", None),
        ("embed_out.weight", "head", None),
        ("gpt_neox.layers.5.attention.query_key_value.bias", "qkv", 5),
        ("gpt_neox.layers.5.attention.dense.weight", "o", 5),
        ("gpt_neox.layers.5.mlp.dense_h_to_4h.weight", "up", 5),
        ("gpt_neox.layers.5.mlp.dense_4h_to_h.weight", "down", 5),
        ("gpt_neox.final_layer_norm.bias", "norms", None),
        ("transformer.wte.weight", "embed", None),
        ("transformer.wpe.weight", "positions", None),
        ("transformer.h.2.attn.c_attn.weight", "qkv", 2),
        ("transformer.h.2.attn.c_proj.weight", "o", 2),
        ("transformer.h.2.mlp.c_fc.weight", "up", 2),
        ("transformer.h.2.mlp.c_proj.weight", "down", 2),
        ("transformer.h.2.ln_1.weight", "norms", 2),
        ("transformer.ln_f.bias", "norms", None),
        ("model.language_model.layers.4.mlp.up_proj.weight", "up", 4),
        (
            "model.vision_tower.vision_model.encoder.layers.4.self_attn.q_proj.weight",
            "vision",
            None,
        ),
        ("something.new", "other", None),
    ],
)
def test_a_name_tells_module_and_layer(name: str, module: str, layer: int | None) -> None:
    assert (module_of(name), layer_of(name)) == (module, layer)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_no_tensor_of_a_known_architecture_is_of_another_kind(architecture: str) -> None:
    names = list(tiny.model(architecture, seed=0).state_dict())
    kinds = {module_of(name) for name in names}
    assert "other" not in kinds
    assert {"embed", "head", "norms", "o"} <= kinds
    inside = {name for name in names if re.search(r"(layers|h)\.\d\.", name)}
    assert {name for name in names if layer_of(name) in (0, 1)} == inside


def test_an_expert_is_named_by_its_layer_and_number() -> None:
    assert expert_of("model.layers.2.mlp.experts.13.up_proj.weight") == "2.13"
    assert expert_of("model.layers.2.mlp.experts.gate_up_proj") is None
    assert expert_of("model.layers.2.mlp.up_proj.weight") is None


def test_layer_two_comes_before_layer_ten() -> None:
    names = ["layers.10.a", "layers.2.b", "layers.2.a", "norm"]
    assert sorted(names, key=natural) == ["layers.2.a", "layers.2.b", "layers.10.a", "norm"]
