"""Pairs of random weights in the shapes of real models: what speed is measured with.

Speed depends on shapes and on how many ids are plausible, not on what a model has learned. Random
weights find nearly every id equally likely, so the expert's last norm is scaled until as many ids
are plausible as in a trained expert: tens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from codit.contrast import plausible
from codit.pair import ContrastivePair

PLAUSIBLE = 32  # ids plausible at .01, on average over contexts, that an expert is scaled to
STOP = 0  # the one stop id; nothing makes it plausible unless it is meant to end a text


@dataclass(frozen=True)
class Shape:
    """The shape of a model of dense layers.

    `tied`: whether the head is the embedding, as it is published. The models made here have a head
    of their own, which costs a step the same: tied random models repeat themselves.
    """

    name: str
    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    dtype: str = "float32"
    tied: bool = True


# Published configs of Qwen3-0.6B, Qwen3-8B and Gemma-3-27B (its text part); "micro" is the embedded
# pair's shape.
SHAPES = {
    shape.name: shape
    for shape in (
        Shape("qwen3-0.6b", "qwen3", 28, 1024, 16, 8, 128, 3072, 151_936),
        Shape("small", "qwen3", 8, 512, 8, 4, 64, 1536, 151_936),
        Shape("llama-small", "llama", 8, 512, 8, 4, 64, 1536, 32_000),
        Shape("micro", "qwen3", 4, 128, 4, 2, 32, 384, 1536),
        Shape("qwen3-8b", "qwen3", 36, 4096, 32, 8, 128, 12_288, 151_936, "bfloat16", False),
        Shape("gemma3-27b", "gemma3_text", 62, 5376, 32, 16, 128, 21_504, 262_208, "bfloat16"),
    )
}


def config(shape: Shape, *, tied: bool | None = None) -> PreTrainedConfig:
    """Return the transformers config of a shape, without a stop id of its own."""
    values = {
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_size,
        "intermediate_size": shape.intermediate,
        "tie_word_embeddings": shape.tied if tied is None else tied,
        "max_position_embeddings": 8192,
        "bos_token_id": None,
        "eos_token_id": STOP,
        "pad_token_id": STOP,
    }
    if shape.architecture.startswith("gemma3"):
        values |= {"query_pre_attn_scalar": shape.hidden // shape.heads, "sliding_window": 1024}
    return CONFIG_MAPPING[shape.architecture](**values)


def model(shape: Shape, *, seed: int, device: str = "cpu") -> PreTrainedModel:
    """Return a causal LM of random weights, whose stop id has the logit 0."""
    devices = [device] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices), torch.device(device), torch.no_grad():
        torch.manual_seed(seed)
        dtype = getattr(torch, shape.dtype)
        made = AutoModelForCausalLM.from_config(config(shape, tied=False), dtype=dtype)
        made.get_output_embeddings().weight[STOP] = 0.0
    return made.eval()


def pair(
    shape: Shape, *, seed: int = 0, device: str = "cpu", n_plausible: float = PLAUSIBLE
) -> ContrastivePair:
    """Return a pair of random weights whose expert finds about so many ids plausible at .01."""
    expert = model(shape, seed=seed, device=device)
    sharpen(expert, n_plausible, seed=seed)
    return ContrastivePair(expert, model(shape, seed=seed + 1, device=device))


@torch.no_grad()
def sharpen(expert: PreTrainedModel, n_plausible: float, *, seed: int) -> None:
    """Scale a random model's last norm, and so its logits, until few ids are plausible at .01.

    |{ v : c z(v) >= max c z + log .01 }| falls as c grows; bisection finds c.
    """
    noise = torch.Generator().manual_seed(seed)
    contexts = torch.randint(1, expert.config.vocab_size, (16, 8), generator=noise)
    logits = expert(contexts.to(expert.device)).logits[:, -1].float()
    low, high = 1e-3, 1e3
    for _ in range(40):
        scale = math.sqrt(low * high)
        found = plausible(scale * logits, plausibility=0.01).sum(-1).float().mean()
        low, high = (scale, high) if found > n_plausible else (low, scale)
    norm = expert.base_model.norm.weight
    shift = 1.0 if expert.config.model_type.startswith("gemma3") else 0.0  # its norm is 1 + w
    norm.copy_(scale * (norm + shift) - shift)


@torch.no_grad()
def countdown(shape: Shape, *, seed: int = 0) -> ContrastivePair:
    """Return a pair whose text counts down: after id v comes v - 1, and 0 ends it.

    So the last word of a prompt says how long its answer is, with any engine and no wrapper: the
    head's row v - 1 is the embedding of v, which random layers of small weights hardly change.
    """
    noise = torch.Generator().manual_seed(seed)
    free = config(shape, tied=False)
    parts = [AutoModelForCausalLM.from_config(free, dtype=torch.float32).eval() for _ in range(2)]
    for part in parts:
        table = part.get_input_embeddings().weight
        table.copy_(torch.randn(table.shape, generator=noise))
        part.get_output_embeddings().weight.copy_(table.roll(-1, dims=0))
    return ContrastivePair(*parts)


def lengths(rows: int, median: float, *, most: int) -> list[int]:
    """Return long-tailed lengths of responses: log-normal with sigma 1, the stop token included."""
    drawn = np.random.default_rng(0).lognormal(np.log(median), 1.0, rows)
    return [int(one) for one in drawn.clip(2, most).round()]


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Return a tokenizer of numbered words: "w5 w7" is [5, 7]; its chat template adds nothing."""
    words = {f"w{number}": number for number in range(vocabulary)}
    stop = f"w{STOP}"
    made = Tokenizer(models.WordLevel(words, unk_token=stop))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token=stop, pad_token=stop, padding_side="left"
    )
    fast.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return fast


def chat(ids: list[int]) -> list[dict[str, str]]:
    """Return the conversation whose prompt is these ids, in the words of `tokenizer`."""
    return [{"role": "user", "content": " ".join(f"w{number}" for number in ids)}]
