"""Pairs of random weights in the shapes of real models: what speed is measured with.

Speed depends on shapes and on how many ids are plausible, not on what a model has learned. Random
weights find nearly every id equally likely, so the expert's last norm is scaled until as many ids
are plausible as in a trained expert: tens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from codit.contrast import plausible
from codit.pair import ContrastivePair

PLAUSIBLE = 32
"""Ids plausible at .01, on average over contexts, that an expert is scaled to. (ours)"""
STOP = 0
"""The one stop id; nothing makes it plausible unless it is meant to end a text."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The shape of a model of dense layers.

    Args:
        name: what tables call it.
        architecture: transformers model type with grouped attention: "qwen3", "llama", ...
        layers: of the decoder.
        hidden: width of the residual stream.
        heads: attention heads.
        kv_heads: heads of keys and values.
        head_size: width of a head.
        intermediate: width of the gated MLP.
        vocabulary: V.
        dtype: of weights and caches, "float32" or "bfloat16".
        tied: whether the head is the embedding, as it is published. The models made here have a
            head of their own, which costs a step the same: tied random models repeat themselves.
    """

    name: str
    architecture: str = "qwen3"
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    dtype: str = "float32"
    tied: bool = True
    version: ClassVar[int] = 1


def shapes() -> dict[str, Shape]:
    """Return the shapes that are measured, by name.

    Returns:
        dict: of a CPU (float32), then of a GPU (bfloat16).

    Source: published configs of Qwen3-0.6B, Qwen3-8B and Gemma-3-27B (its text part); "micro" is
    the embedded pair's shape; "small" and "llama-small": ours.
    """
    cpu, gpu = ("float32", True), ("bfloat16", False)
    rows: tuple[tuple[Any, ...], ...] = (
        ("qwen3-0.6b", "qwen3", 28, 1024, 16, 8, 128, 3072, 151_936, *cpu),
        ("small", "qwen3", 8, 512, 8, 4, 64, 1536, 151_936, *cpu),
        ("llama-small", "llama", 8, 512, 8, 4, 64, 1536, 32_000, *cpu),
        ("micro", "qwen3", 4, 128, 4, 2, 32, 384, 1536, *cpu),
        ("qwen3-8b", "qwen3", 36, 4096, 32, 8, 128, 12_288, 151_936, *gpu),
        ("gemma3-27b", "gemma3_text", 62, 5376, 32, 16, 128, 21_504, 262_208, "bfloat16", True),
    )
    names = [field.name for field in fields(Shape)]
    return {row[0]: Shape(**dict(zip(names, row, strict=True))) for row in rows}


def config(shape: Shape, **changes: Any) -> PreTrainedConfig:
    """Return the transformers config of a shape.

    Args:
        shape: of the model.
        **changes: fields of the config that differ.

    Returns:
        PreTrainedConfig: without a stop id of its own.

    Source: ours.
    """
    values: dict[str, Any] = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "intermediate_size": shape.intermediate,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": 8192,
        "bos_token_id": None,
        "eos_token_id": STOP,
        "pad_token_id": STOP,
    }
    if shape.architecture.startswith("gemma3"):
        values |= {"query_pre_attn_scalar": shape.hidden // shape.heads, "sliding_window": 1024}
    return CONFIG_MAPPING[shape.architecture](**(values | changes))


def model(shape: Shape, *, seed: int, device: str = "cpu") -> PreTrainedModel:
    """Return a causal LM of random weights, in evaluation mode.

    Args:
        shape: of the model.
        seed: of its weights.
        device: where they are made.

    Returns:
        PreTrainedModel: whose stop id has the logit 0.

    Source: ours.
    """
    dtype = getattr(torch, shape.dtype)
    devices = [device] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices), torch.device(device), torch.no_grad():
        torch.manual_seed(seed)
        free = config(shape, tie_word_embeddings=False)
        made = AutoModelForCausalLM.from_config(free, dtype=dtype)
        made.get_output_embeddings().weight[STOP] = 0.0
    return made.eval()


def pair(
    shape: Shape, *, seed: int = 0, device: str = "cpu", n_plausible: float = PLAUSIBLE
) -> tuple[ContrastivePair, float]:
    """Return a pair of random weights whose expert finds a realistic number of ids plausible.

    Args:
        shape: of both models.
        seed: of the expert's weights; the amateur has one more.
        device: where both are.
        n_plausible: ids that shall be plausible at .01, on average over contexts.

    Returns:
        (ContrastivePair, float): plausibility .01, strength 1; and the number found.

    Source: ours.
    """
    expert = model(shape, seed=seed, device=device)
    found = sharpen(expert, n_plausible, seed=seed)
    return ContrastivePair(expert, model(shape, seed=seed + 1, device=device)), found


@torch.no_grad()
def sharpen(expert: PreTrainedModel, n_plausible: float, *, seed: int) -> float:
    """Scale a random model's last norm, and so its logits, until few ids are plausible at .01.

    |{ v : c z(v) >= max c z + log .01 }| falls as c grows; bisection finds c.

    Args:
        expert: changed in place.
        n_plausible: the mean number over random contexts that is aimed at.
        seed: of the contexts.

    Returns:
        float: the mean number over other random contexts, after scaling.

    Source: ours.
    """
    noise = torch.Generator().manual_seed(seed)
    width = expert.config.vocab_size
    contexts = torch.randint(1, width, (2, 16, 8), generator=noise).to(expert.device)
    logits = expert(contexts[0]).logits[:, -1].float()
    low, high = 1e-3, 1e3
    for _ in range(40):
        scale = math.sqrt(low * high)
        low, high = (scale, high) if _count(scale * logits) > n_plausible else (low, scale)
    norm = expert.base_model.norm.weight
    shift = 1.0 if expert.config.model_type.startswith("gemma3") else 0.0  # its norm is 1 + w
    norm.copy_(scale * (norm + shift) - shift)
    return _count(expert(contexts[1]).logits[:, -1].float())


def _count(logits: Tensor) -> float:
    return float(plausible(logits, plausibility=0.01).sum(-1).float().mean())


@torch.no_grad()
def countdown(shape: Shape, *, seed: int = 0) -> ContrastivePair:
    """Return a pair whose text counts down: after id v comes v - 1, and 0 ends it.

    So the last word of a prompt says how long its answer is, with any engine and no wrapper: the
    head's row v - 1 is the embedding of v, which random layers of small weights hardly change.

    Args:
        shape: of both models; its head is not tied.
        seed: of the weights.

    Returns:
        ContrastivePair: at each step one id is plausible.

    Source: ours.
    """
    noise = torch.Generator().manual_seed(seed)
    free = config(shape, tie_word_embeddings=False)
    parts = [AutoModelForCausalLM.from_config(free, dtype=torch.float32).eval() for _ in range(2)]
    for part in parts:
        table = part.get_input_embeddings().weight
        table.copy_(torch.randn(table.shape, generator=noise))
        part.get_output_embeddings().weight.copy_(table.roll(-1, dims=0))
    return ContrastivePair(*parts)


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of numbered words: "w5 w7" is [5, 7]; its chat template adds nothing.

    Args:
        vocabulary: V, at least 2.

    Returns:
        PreTrainedTokenizerFast: id 0 is its stop and padding token.

    Source: ours.
    """
    words = {f"w{number}": number for number in range(vocabulary)}
    made = Tokenizer(models.WordLevel(words, unk_token=f"w{STOP}"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    stop = f"w{STOP}"
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=stop, pad_token=stop, padding_side="left"
    )
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return fast


def chat(ids: list[int]) -> list[dict[str, str]]:
    """Return the conversation whose prompt is these ids, in the words of `tokenizer`.

    Args:
        ids: at least one.

    Returns:
        list: one message.

    Source: ours.
    """
    return [{"role": "user", "content": " ".join(f"w{number}" for number in ids)}]
