"""The parts of vLLM's interface that the pair stands on, named one by one.

When another version is installed and something here fails, its message says what moved.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect

import pytest

USED = {  # object -> parameters, fields or attributes that are used
    "vllm:LLM.__init__": {"model", "hf_overrides", "dtype"},
    "vllm:EngineArgs": {
        "generation_config", "tensor_parallel_size", "max_model_len", "max_num_seqs",
        "hf_overrides",
    },
    "vllm:TokensPrompt": {"prompt_token_ids"},
    "vllm:ModelRegistry.register_model": {"model_arch", "model_cls"},
    "vllm:ModelRegistry.get_supported_archs": set(),
    "vllm:SamplingParams": {
        "temperature", "top_k", "top_p", "seed", "max_tokens", "logprobs", "ignore_eos",
        "stop_token_ids", "detokenize",
    },
    "vllm.config:VllmConfig": {"model_config", "speculative_config"},
    "vllm.config.utils:replace": {"dataclass_instance"},
    "vllm.config:ModelConfig": {"hf_config", "hf_text_config", "revision", "trust_remote_code"},
    "vllm.compilation.backends:set_model_tag": {"tag"},
    "vllm.model_executor.models.utils:init_vllm_registered_model": {
        "vllm_config", "prefix", "hf_config", "architectures",
    },
    "vllm.model_executor.models.utils:maybe_prefix": {"prefix", "name"},
    "vllm.model_executor.model_loader.default_loader:DefaultModelLoader.Source": {
        "model_or_path", "revision", "prefix",
    },
    "vllm.model_executor.layers.vocab_parallel_embedding:UnquantizedEmbeddingMethod.apply": {
        "layer", "x", "bias",
    },
    "vllm.transformers_utils.config:get_config": {"model", "trust_remote_code", "revision"},
    "vllm.v1.engine.llm_engine:LLMEngine.add_request": {"request_id", "prompt", "params"},
    "vllm.v1.engine.llm_engine:LLMEngine.step": set(),
    "vllm.v1.engine.llm_engine:LLMEngine.abort_request": {"request_ids"},
    "vllm.v1.engine.llm_engine:LLMEngine.has_unfinished_requests": set(),
}  # fmt: skip


def found(path):
    module, _, names = path.partition(":")
    made = importlib.import_module(module)
    for name in names.split("."):
        assert hasattr(made, name), f"vLLM's {module} has no {names}: find what replaced it"
        made = getattr(made, name)
    return made


def names_of(made):
    if dataclasses.is_dataclass(made):
        return {field.name for field in dataclasses.fields(made)} | set(dir(made))
    if isinstance(made, type) and getattr(made, "__annotations__", None):
        return set(made.__annotations__) | set(getattr(made, "__struct_fields__", ()))
    return set(inspect.signature(made).parameters)


@pytest.mark.parametrize("path", USED)
def test_what_is_used_is_there_and_takes_what_it_is_given(path):
    missing = USED[path] - names_of(found(path))
    assert not missing, f"vLLM's {path} takes no {', '.join(sorted(missing))} any more"


def test_the_loader_reads_a_models_secondary_weights():
    source = inspect.getsource(
        found("vllm.model_executor.model_loader.default_loader:DefaultModelLoader.get_all_weights")
    )
    assert '"secondary_weights"' in source


def test_the_plugin_makes_the_pair_known_without_importing_it():
    import sys

    from vllm import ModelRegistry
    from vllm.plugins import load_general_plugins

    load_general_plugins()
    assert "ContrastivePairForCausalLM" in ModelRegistry.get_supported_archs()
    assert "codit.engine.vllm.model" not in sys.modules


@pytest.mark.parametrize(
    ("name", "supported"),
    [("supports_lora", False), ("supports_pp", False), ("is_text_generation_model", True)],
)
def test_vllm_is_told_what_a_pair_can_do(name, supported):
    from vllm.model_executor.models import interfaces, interfaces_base

    from codit.engine.vllm.model import ContrastivePairForCausalLM

    tells = getattr(interfaces, name, None) or getattr(interfaces_base, name)
    assert bool(tells(ContrastivePairForCausalLM)) is supported
