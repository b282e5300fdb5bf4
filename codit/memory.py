"""How many rows fit: bytes of the caches against what the device has left."""

from __future__ import annotations

import gc
import logging

import psutil
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from codit.shared_cache import n_layers, paged_shape

logger = logging.getLogger(__name__)

USED = 0.8
"""Share of the free memory that caches may take: activations and growth need the rest. (ours)"""
VECTORS = 4
"""Float32 vectors of the vocabulary that a row needs at a step: logits, mask, copies. (ours)"""


def n_weights(config: PreTrainedConfig) -> int:
    """Return the parameters of a causal LM, a tied head counted once; nothing is allocated.

    Args:
        config: of the model.

    Returns:
        int: parameters.

    Source: ours.
    """
    with torch.device("meta"):
        made = AutoModelForCausalLM.from_config(config)
    return sum(weight.numel() for weight in made.parameters())


def cache_bytes(config: PreTrainedConfig, itemsize: int) -> int:
    """Return the bytes that one token takes in a model's cache; sliding windows may need less.

    bytes = 2 · layers · key-value heads · head size · itemsize

    Args:
        config: of a causal LM; of a pair, whose layers are both models'.
        itemsize: bytes of a number.

    Returns:
        int: bytes.

    Source: ours.
    """
    heads, size = paged_shape(config)
    return 2 * n_layers(config) * heads * size * itemsize


def free_bytes(device: torch.device) -> int:
    """Return the memory of a device that nothing uses yet.

    Args:
        device: a CUDA device or the CPU.

    Returns:
        int: bytes; of a GPU also what torch holds and does not use.

    Source: ours.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    return psutil.virtual_memory().available


def rows_that_fit(model: PreTrainedModel, tokens: int, *, most: int) -> int:
    """Return how many rows can be decoded at once: a power of two, or `most`.

    rows · (tokens · bytes of a token in all caches + vectors of the vocabulary) <= .8 · free

    Args:
        model: a pair, whose two caches count, or a causal LM.
        tokens: of a row's prompt and response at their longest.
        most: the answer where memory is plenty.

    Returns:
        int: at least 1, at most `most`. Coarse on purpose: a little more or less free memory
        should not change which rows are computed together.

    Source: ours.
    """
    width = model.config.get_text_config(decoder=True).vocab_size
    row = tokens * cache_bytes(model.config, model.dtype.itemsize) + VECTORS * width * 4
    fit = int(USED * free_bytes(model.device)) // max(row, 1)
    return most if fit >= most else 1 << max(fit.bit_length() - 1, 0)


def is_exhausted(error: BaseException) -> bool:
    """Tell whether an error says that memory ran out, on a GPU or on the CPU.

    Args:
        error: what was raised.

    Returns:
        bool: whether fewer rows at once may help.

    Source: ours; torch has a type for GPUs only.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def fewer_rows(tried: int) -> int:
    """Give back what failed for want of memory, say so, and return half as many rows.

    Args:
        tried: rows at once that did not fit; at least 2.

    Returns:
        int: rows to go on with.

    Source: ours.
    """
    release()
    logger.warning("out of memory with %d rows at once; going on with %d", tried, tried // 2)
    return tried // 2


def release() -> None:
    """Give back what failed computations still hold.

    Source: ours.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
