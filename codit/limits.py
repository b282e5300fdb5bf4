"""What hardware allows: bytes and operations of one step of a pair, and a device's speed.

A step reads the weights of both models and both caches once, whatever the batch, and multiplies
every weight with every row. So no step is quicker than its bytes over the bandwidth, nor than its
operations over what the device can do of them.

Notation: B rows, V ids, itemsize bytes of a number, context tokens in a row's cache.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from codit.memory import cache_bytes, n_weights

BUFFER = 256 * 2**20  # numbers that the bandwidth of a CPU is measured with, 1 GiB (ours)
SIDE = 2048  # of the matrices that its operations are measured with (ours)
PUBLISHED = {  # name: (bytes per second, bfloat16 operations per second without sparsity)
    "H100": (3.35e12, 989e12),  # NVIDIA H100 datasheet, SXM: 3.35 TB/s; 1,979 TFLOPS with sparsity
    "H200": (4.8e12, 989e12),  # NVIDIA H200 datasheet, SXM: 4.8 TB/s; the same compute
}


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What a device can do at most.

    Args:
        device: its name.
        bytes_per_second: read from memory.
        flops_per_second: multiplications and additions, in the models' dtype.
        source: "measured here", or the document.
    """

    device: str
    bytes_per_second: float
    flops_per_second: float
    source: str


def n_read(config: PreTrainedConfig) -> int:
    """Return the weights that every token is multiplied with: all but the embedding, and the head.

    Args:
        config: of a model of dense layers.

    Returns:
        int: parameters.

    Raises:
        ValueError: a mixture of experts, of which a step reads what its tokens choose.

    Source: ours.
    """
    if getattr(config, "num_experts", None) or getattr(config, "num_local_experts", None):
        raise ValueError(
            f"expected a model of dense layers; got {config.model_type}, a mixture of experts. "
            "Its bytes per step depend on the tokens."
        )
    table = config.vocab_size * config.hidden_size
    return n_weights(config) - (0 if config.tie_word_embeddings else table)


def bytes_per_step(
    configs: Sequence[PreTrainedConfig],
    *,
    rows: int,
    context: int,
    itemsize: int,
    unread: int = 0,
) -> int:
    """Return the bytes that a step of all models has to read.

    bytes = sum over models (weights · itemsize + B · context · cache bytes of a token)

    Args:
        configs: of expert and amateur.
        rows: B.
        context: tokens in each row's cache.
        itemsize: bytes of a number.
        unread: rows of heads that are left out, as the pair leaves out the amateur's.

    Returns:
        int: bytes. Rows of embeddings, activations and what is written: left out.

    Source: ours.
    """
    weights = sum(map(n_read, configs)) - unread * configs[-1].hidden_size
    caches = sum(cache_bytes(config, itemsize) for config in configs)
    return weights * itemsize + rows * context * caches


def flops_per_step(
    configs: Sequence[PreTrainedConfig], *, rows: int, context: int, unread: int = 0
) -> int:
    """Return the multiplications and additions of a step of all models.

    flops = B · sum over models (2 weights + 4 · layers · heads · head size · context)

    Args:
        configs: of expert and amateur.
        rows: B.
        context: tokens that each new one attends to.
        unread: rows of heads that are left out.

    Returns:
        int: operations; those of norms, rotations and activations are left out.

    Source: ours; the count of Kaplan et al. 2020 (2 operations a weight).
    """
    weights = sum(map(n_read, configs)) - unread * configs[-1].hidden_size
    attention = sum(
        4 * one.num_hidden_layers * one.num_attention_heads * one.head_dim for one in configs
    )
    return rows * (2 * weights + attention * context)


def least_milliseconds(
    configs: Sequence[PreTrainedConfig], *, rows: int, context: int, itemsize: int
) -> dict[str, float]:
    """Return the time that a step takes at least on each GPU whose numbers are published.

    least = max(bytes / bandwidth, operations / speed)

    Args:
        configs: of expert and amateur.
        rows: B.
        context: tokens in each row's cache.
        itemsize: bytes of a number; the published operations are those of 2.

    Returns:
        dict: name of the GPU -> milliseconds.

    Source: the datasheets that `PUBLISHED` names.
    """
    size = bytes_per_step(configs, rows=rows, context=context, itemsize=itemsize)
    work = flops_per_step(configs, rows=rows, context=context)
    return {
        name: 1000 * max(size / bandwidth, work / operations)
        for name, (bandwidth, operations) in PUBLISHED.items()
    }


def needed_bytes(
    configs: Sequence[PreTrainedConfig], *, rows: int, context: int, itemsize: int
) -> int:
    """Return the memory that decoding needs: weights, caches, and logits of both models.

    Args:
        configs: of expert and amateur.
        rows: B.
        context: tokens in each row's cache at the end.
        itemsize: bytes of a number.

    Returns:
        int: bytes; activations of the prompts are left out.

    Source: ours.
    """
    held = [n_read(one) + one.vocab_size * one.hidden_size for one in configs]  # a head apart
    caches = sum(cache_bytes(config, itemsize) for config in configs)
    logits = sum(4 * config.vocab_size for config in configs)
    return sum(held) * itemsize + rows * (context * caches + 2 * logits)


def speed(device: str) -> Speed:
    """Return what a device can do: measured for a CPU, published for a GPU.

    Args:
        device: "cpu" or "cuda".

    Returns:
        Speed: of a CPU, in float32 and with the threads that torch has now.

    Raises:
        ValueError: a GPU whose numbers are not listed.

    Source: the datasheets that `PUBLISHED` names.
    """
    if device == "cpu":
        return _measured()
    name = torch.cuda.get_device_name()
    known = [numbers for word, numbers in PUBLISHED.items() if word in name and "PCIe" not in name]
    if not known:
        raise ValueError(
            f"expected a GPU among {', '.join(PUBLISHED)} (SXM); got {name}. Add its bandwidth and "
            "operations from its datasheet to codit.limits.PUBLISHED."
        )
    numbers = dict(zip(("bytes_per_second", "flops_per_second"), known[0], strict=True))
    return Speed(device=name, source="NVIDIA's datasheet", **numbers)


def machine(device: str) -> dict[str, Any]:
    """Return what is told of the machine beside its numbers.

    Args:
        device: "cpu" or "cuda".

    Returns:
        dict: device (its name), cores, threads of torch, system.

    Source: ours.
    """
    name = torch.cuda.get_device_name() if device == "cuda" else _cpu()
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def _measured() -> Speed:
    """Time reading, copying and a product of matrices, each the best of a few."""
    source = torch.ones(BUFFER)
    copied = torch.empty_like(source)
    square = torch.ones(SIDE, SIDE)
    size = source.nbytes
    read = size / _best(source.sum)
    copy = 2 * size / _best(lambda: copied.copy_(source))
    flops = 2 * SIDE**3 / _best(lambda: square @ square)
    how = "measured here: the quicker of a sum and a copy of 1 GiB; a product of 2048 by 2048"
    return Speed(
        device=_cpu(), bytes_per_second=max(read, copy), flops_per_second=flops, source=how
    )


def _best(call: Callable[[], Any], *, times: int = 5) -> float:
    """Return the least seconds of a call; the first, which touches new memory, is not counted."""
    seconds = []
    for _ in range(times + 1):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _cpu() -> str:
    """Return the CPU's name as Linux gives it, else the system's word for it."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
