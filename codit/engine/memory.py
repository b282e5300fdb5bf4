"""What a step needs, and how many rows fit: weights, caches and operations against a device.

Notation: B rows, context tokens in a row's cache, itemsize bytes of a number. What has no source is
ours.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Sequence

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from codit.engine.cache import n_layers, paged_shape

logger = logging.getLogger(__name__)

USED = 0.8  # share of the free memory that caches may take: activations and growth need the rest
VECTORS = 4  # of the vocabulary, float32, that a row needs at a step: logits, mask, copies
PUBLISHED = {  # name: (bytes per second, bfloat16 operations per second without sparsity)
    "H100": (3.35e12, 989e12),  # NVIDIA H100 datasheet, SXM: 3.35 TB/s; 1,979 TFLOPS with sparsity
    "H200": (4.8e12, 989e12),  # NVIDIA H200 datasheet, SXM: 4.8 TB/s; the same compute
}


def n_weights(config: PreTrainedConfig) -> int:
    """Return the parameters of a causal LM, a tied head counted once; nothing is allocated."""
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    return sum(weight.numel() for weight in made.parameters())


def n_read(config: PreTrainedConfig) -> int:
    """Return the weights that every token is multiplied with: all but the embedding, and the head.

    A mixture of experts is refused: a step reads what its tokens choose.
    """
    if getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None):
        raise ValueError(
            f"expected a model of dense layers; got {config.model_type}, a mixture of experts. "
            "Its bytes per step depend on the tokens."
        )
    table = config.vocab_size * config.hidden_size
    return n_weights(config) - (0 if config.tie_word_embeddings else table)


def step_bytes(
    configs: Sequence[PreTrainedConfig], *, rows: int, context: int, itemsize: int
) -> int:
    """Return the bytes that a step of all models has to read; activations are left out.

    bytes = sum over models (weights · itemsize + B · context · cache bytes of a token)

    No step is quicker than its bytes over a device's bytes per second (`PUBLISHED`).
    """
    caches = sum(cache_bytes(config, itemsize) for config in configs)
    return sum(map(n_read, configs)) * itemsize + rows * context * caches


def step_operations(configs: Sequence[PreTrainedConfig], *, rows: int, context: int) -> int:
    """Return the multiplications and additions of a step of all models.

    operations = B · sum over models (2 weights + 4 · layers · heads · head size · context)

    Source: Kaplan et al. 2020 (2 operations a weight).
    """
    attention = sum(
        4 * n_layers(one) * one.num_attention_heads * paged_shape(one)[1] for one in configs
    )
    return rows * (2 * sum(map(n_read, configs)) + attention * context)


def cache_bytes(config: PreTrainedConfig, itemsize: int) -> int:
    """Return the bytes that one token takes in a model's cache; sliding windows may need less.

    bytes = 2 · layers · key-value heads · head size · itemsize
    """
    heads, size = paged_shape(config)
    return 2 * n_layers(config) * heads * size * itemsize


def free_bytes(device: torch.device) -> int:
    """Return the memory that nothing uses yet, of a GPU also what torch holds and does not use."""
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return psutil.virtual_memory().available


def rows_that_fit(model: PreTrainedModel, tokens: int, *, most: int) -> int:
    """Return how many rows can be decoded at once: a power of two, or `most`.

    rows · (tokens · bytes of a token in all caches + vectors of the vocabulary) <= .8 · free

    `tokens` are of a row's prompt and response at their longest. At least 1, and coarse on purpose:
    a little more or less free memory should not change which rows are computed together.
    """
    width = model.config.get_text_config(decoder=True).vocab_size
    row = tokens * cache_bytes(model.config, model.dtype.itemsize) + VECTORS * width * 4
    fit = int(USED * free_bytes(model.device)) // max(row, 1)
    return most if fit >= most else 1 << max(fit.bit_length() - 1, 0)


def is_exhausted(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out; torch has a type for GPUs only."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def fewer_rows(tried: int) -> int:
    """Give back what failed for want of memory, say so, and return half as many rows."""
    release()
    logger.warning("out of memory with %d rows at once; going on with %d", tried, tried // 2)
    return tried // 2


def release() -> None:
    """Give back what failed computations still hold."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
