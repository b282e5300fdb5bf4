"""What vLLM runs in each of its processes: it tells the engine of the pair, and imports nothing."""

from __future__ import annotations

ARCHITECTURE = "ContrastivePairForCausalLM"
"""What `architectures` of `--hf-overrides` names."""


def register() -> None:
    """Enter the pair into vLLM's registry of models, by name: it is imported when it is used.

    Source: vLLM's entry point `vllm.general_plugins`.
    """
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"codit.vllm_model:{ARCHITECTURE}")
