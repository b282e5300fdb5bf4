"""What a tensor's name says: its kind of module, its layer, its expert.

The names are those of transformers' Llama, Qwen, Gemma, OLMo, Mixtral, GPT-NeoX and GPT-2.
"""

from __future__ import annotations

import re

VOCABULARY = ("embed", "head")
"""Kinds whose rows are the ids of a vocabulary."""

OUTSIDE_BODY = (*VOCABULARY, "norms")
"""Kinds that `codit.chat_vector.cosines` leaves out of the body."""

# Searched in this order, in the name with a dot at either end; the first that is found decides.
_KINDS = (
    ("vision", r"vision|image|audio|multi_modal|multimodal"),
    ("embed", r"\.(embed_tokens|embed_in|wte)\."),
    ("head", r"\.(lm_head|embed_out)\."),
    ("positions", r"\.(wpe|embed_positions)\."),
    ("norms", r"norm|\.ln_\w+\."),
    ("router", r"\.(router|shared_expert_gate)\.|\.(mlp|block_sparse_moe)\.gate\."),
    ("experts", r"expert"),
    ("qkv", r"\.(query_key_value|c_attn|qkv_proj)\."),
    ("q", r"\.q_proj\."),
    ("k", r"\.k_proj\."),
    ("v", r"\.v_proj\."),
    ("o", r"\.o_proj\.|\.attention\.dense\.|\.attn\.c_proj\."),
    ("gate_up", r"\.gate_up_proj\."),
    ("gate", r"\.gate_proj\."),
    ("up", r"\.(up_proj|dense_h_to_4h|c_fc)\."),
    ("down", r"\.(down_proj|dense_4h_to_h)\.|\.mlp\.c_proj\."),
)
_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")


def module_of(name: str) -> str:
    """Return the kind of module that a tensor belongs to, weights and biases alike.

    q, k, v, o, gate, up, down; qkv or gate_up where these are one tensor; norms, embed, head,
    positions (learnt ones); router, experts (shared ones too); vision (all that reads images or
    sound); other.
    """
    for kind, pattern in _KINDS:
        if re.search(pattern, f".{name}."):
            return kind
    return "other"


def layer_of(name: str) -> int | None:
    """Return the index of the language model's layer that a tensor lies in, from 0.

    None for embeddings, head, the last norm and a vision tower.
    """
    found = _LAYER.search(f".{name}.")
    return None if found is None or module_of(name) == "vision" else int(found[1])


def expert_of(name: str) -> str | None:
    """Return "layer.expert", the routed expert of a mixture that a tensor belongs to.

    None outside experts and where one tensor holds all of them.
    """
    found = _EXPERT.search(f".{name}.")
    return None if found is None else f"{layer_of(name)}.{found[1]}"


def natural(name: str) -> tuple[tuple[str, int], ...]:
    """Return a key that sorts names with layer 2 before layer 10."""
    parts = re.findall(r"(\D*)(\d*)", name)
    return tuple((text, int(digits or -1)) for text, digits in parts)
