"""Weights laid out as a CPU's matrix kernels read them, for as long as texts are drawn.

A step of a few rows multiplies them with every weight of a model. The kernel that takes weights as
torch keeps them was written for many rows: on the CPU where it was measured (float32, weights of a
million numbers and more) oneDNN's layout took 1 / 1.2 to 1 / 2.4 of its time for 4 to 64 rows, and
more than its time for one or two. The copy is made once for a call and given back after it. When to
use it is ours, measured.
"""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from codit.engine.memory import free_bytes
from codit.engine.sparse import is_large, is_plain

logger = logging.getLogger(__name__)

LEAST_ROWS = 4  # multiplied at once, in float32
LEAST_TOKENS = 16  # of a response: making the copy takes about three steps
SHARE = 0.4  # of the free memory, at most
MACHINES = ("x86_64", "AMD64")  # where it was measured


def weights_to_pack(model: PreTrainedModel, *, rows: int, tokens: int) -> list[nn.Linear]:
    """Return a model's linear layers for which another layout is worth its copy.

    None on a GPU, for few rows, for few tokens to be drawn, or where memory is short; never a head
    whose rows `head_rows` gathers.
    """
    if rows < LEAST_ROWS or tokens < LEAST_TOKENS or model.device.type != "cpu":
        return []
    if platform.machine() not in MACHINES or not torch.backends.mkldnn.is_available():
        return []
    is_idle = hasattr(model, "amateur") and not model.needs_amateur
    gathered = model.amateur.get_output_embeddings() if getattr(model, "gathers_head", 0) else None
    layers = [
        layer
        for layer in (model.expert if is_idle else model).modules()
        if is_plain(layer) and layer is not gathered and is_large(layer.weight)
        if layer.weight.dtype == torch.float32
    ]
    needed = sum(layer.weight.nbytes for layer in layers)
    return layers if needed <= SHARE * free_bytes(model.device) else []


@contextmanager
def packed_weights(model: PreTrainedModel, *, rows: int, tokens: int) -> Iterator[int]:
    """Compute a model's large linear layers from packed copies, for the length of a `with` block.

    The same products, added in another order; weights must not change meanwhile. Yields the number
    of layers packed; 0 also inside another block of the same model.
    """
    layers = weights_to_pack(model, rows=rows, tokens=tokens)
    try:
        for layer in layers:
            layer.forward = _packed(layer)
        if layers:
            logger.info("weights of %d layers packed for the CPU", len(layers))
        yield len(layers)
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _packed(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    """Return a layer's forward pass from a copy of its weights in the kernel's own layout."""
    weight, bias = layer.weight.detach(), layer.bias
    copy = torch.ops.mkldnn._reorder_linear_weight(weight, LEAST_ROWS)

    def forward(hidden: Tensor) -> Tensor:
        if hidden.requires_grad or hidden.numel() < LEAST_ROWS * hidden.shape[-1]:
            return nn.functional.linear(hidden, weight, bias)
        made: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, copy, bias, "none", [], "")
        return made

    return forward
