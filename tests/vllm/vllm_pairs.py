"""Saved random pairs in shapes that vLLM's CPU attention takes: heads of 32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests import tiny

ARCHITECTURES = ("llama", "qwen3", "qwen3_moe", "gemma3_text", "olmo3", "mistral")
SHAPE = {"hidden_size": 128, "intermediate_size": 96}


def shape(architecture: str) -> dict[str, Any]:
    """Return the fields of a config that differ from `tiny.config`'s."""
    headed = architecture in ("qwen3", "qwen3_moe", "gemma3_text", "mistral")
    values = SHAPE | ({"head_dim": 32} if headed else {})
    if architecture == "mistral":
        values |= {"sliding_window": None}
    return values


def save(
    folder: Path, architecture: str, *, vocab_size: int = 280, **changes: Any
) -> tuple[str, str]:
    """Write expert and amateur with their tokenizers; return both folders."""
    names = []
    for role, seed, eos in (("expert", 0, tiny.END), ("amateur", 1000, tiny.EOS)):
        values = shape(architecture) | changes
        model = tiny.model(architecture, seed=seed, vocab_size=vocab_size, scale=4.0, **values)
        if role == "expert":
            stops = [tiny.SPECIAL.index(tiny.END), tiny.SPECIAL.index(tiny.EOS)]
            model.generation_config.eos_token_id = stops
        target = folder / role
        model.save_pretrained(target)
        tiny.tokenizer(eos_token=eos).save_pretrained(target)
        names.append(str(target))
    return names[0], names[1]
