"""The arithmetic of `codit.contrast` on the plausible ids alone, where they are few.

q is zero outside the plausible set, and normalisers cancel inside it:

    log q(v) = z_E(v) - beta z_A(v) + const    for z_E(v) >= max_u z_E(u) + log alpha

So a step needs two passes over the expert's logits, one for the largest and one for the mask; all
else is done on the few ids that are left, and the amateur's logits are needed at these ids only.

Notation
    B   rows      V   ids of the vocabulary      K   plausible ids of the row that has most
    z_E, z_A, alpha, beta, q   as in `codit.contrast`

A head (a model's output projection) is its last large product, and for a small model with a large
vocabulary a third of its work. What follows it in a model's own code, a soft cap or a scale say,
acts on each logit alone, so the model may be run with a head of the rows of some ids only.

A bfloat16 logit between 16 and 32 is rounded to a step of 1/8 nat, and a contrast is a difference
of two. So the sum of a head's product is not rounded. What has no source is ours.
"""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

SHARE = 0.25  # of all entries: where more are plausible, full vectors are as quick
TOLERANCE = 1e-4  # largest difference, in nats per unit of size, that rounding explains
LEAST_NUMBERS = 2**19  # of a weight that a step waits for; a smaller one stays in the caches
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Candidates:
    """The plausible ids of each row, in ascending order, and a number for each.

    Args:
        ids: int64 [B, K]; 0 where a row has fewer than K.
        scores: float32 [B, K]; -inf where a row has fewer than K. NaN in all of a row whose logits
            are not finite numbers.
        rows: int64 [n], the row of each of the n plausible ids, row by row.
        places: int64 [n], its column in `ids`.
    """

    ids: Tensor
    scores: Tensor
    rows: Tensor
    places: Tensor

    def at(self, values: Tensor) -> Tensor:
        """Return [n], the entries of a [B, K] that belong to an id."""
        return values[self.rows, self.places]

    def dense(self, width: int) -> Tensor:
        """Return the scores as float32 [B, width], -inf at all other ids."""
        full = self.scores.new_full((len(self.ids), width), -math.inf)
        full[self.rows, self.at(self.ids)] = self.at(self.scores)
        return full.masked_fill_(self.scores[:, :1].isnan(), math.nan)


def candidates(logits: Tensor, *, plausibility: float) -> Candidates | None:
    """Find the plausible ids of each row of z_E [B, V], with z_E as their scores.

    V_head = { v : z(v) >= max_u z(u) + log alpha }

    None where more than a quarter of all entries are plausible, or where alpha is 0:
    `contrast.contrast` serves these.
    """
    if plausibility <= 0:
        return None
    best = logits.amax(-1, keepdim=True).float()
    rows, ids = _at_least(logits, best + math.log(plausibility))
    if len(ids) > SHARE * logits.numel():
        return None
    counts = rows.bincount(minlength=len(logits))
    places = torch.arange(len(ids), device=ids.device) - (counts.cumsum(0) - counts)[rows]
    width = max(1, int(counts.max())) if len(counts) else 1
    table = ids.new_zeros(len(logits), width)
    table[rows, places] = ids
    scores = best.new_full((len(logits), width), -math.inf)
    scores[rows, places] = logits[rows, ids].float()
    # NaN is its own maximum, and then nothing is kept; +inf keeps what has no distribution.
    scores = scores.masked_fill_(~best.isfinite(), math.nan)
    return Candidates(ids=table, scores=scores, rows=rows, places=places)


def _at_least(logits: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and column, int64 [n] each, of all entries of [B, V] that reach their row's."""
    if logits.device.type != "cpu" or logits.dtype != torch.float32:
        return (logits >= threshold).nonzero(as_tuple=True)
    # On a CPU numpy's comparison and search take a fifth of torch's time (V = 151,936).
    flat = torch.from_numpy(np.flatnonzero(logits.detach().numpy() >= threshold.detach().numpy()))
    rows = flat // logits.shape[1]
    return rows, flat - rows * logits.shape[1]


def contrast_candidates(
    found: Candidates, amateur_logits: Tensor | None, *, strength: float
) -> Candidates:
    """Return log q of each plausible id.

    log q(v) = s(v) - logsumexp s,  s(v) = z_E(v) - beta z_A(v)

    `found` has z_E as scores; `amateur_logits` [B, K] are z_A at its ids (None: strength 0). A row
    in which a model has no finite number is NaN. The floor of `contrast.contrast` is not applied:
    an amateur's logit of -inf has to be sent there.
    """
    scores = found.scores.double()  # few: digits cost nothing here
    if amateur_logits is not None:
        beyond = scores == -math.inf  # the row has fewer ids
        amateur = amateur_logits.double().masked_fill(beyond, 0.0)
        scores = scores - strength * amateur
    return replace(found, scores=scores.log_softmax(-1).float())


_suffices: weakref.WeakKeyDictionary[PreTrainedModel, bool] = weakref.WeakKeyDictionary()


def pays(model: PreTrainedModel) -> bool:
    """Tell whether gathering is quicker: measured on a CPU, for all but small heads."""
    head = model.get_output_embeddings()
    return is_plain(head) and head.weight.device.type == "cpu" and is_large(head.weight)


def is_large(weight: Tensor) -> bool:
    """Tell whether a weight is so large that a step of a few rows waits for it, on a CPU."""
    return weight.numel() >= LEAST_NUMBERS


def can_gather(model: PreTrainedModel) -> bool:
    """Tell whether some rows of a model's head give the same logits as all of them.

    Tried once per model, on two positions of its own: so a model whose code does more than a linear
    head and functions of one logit is found out, whatever its architecture.
    """
    head = model.get_output_embeddings()
    if not is_plain(head):
        return False
    if model not in _suffices:
        _suffices[model] = _agrees(model, head)
    return _suffices[model]


@contextmanager
def head_rows(model: PreTrainedModel, ids: Tensor) -> Iterator[None]:
    """Make a model compute the logits of some ids [U] only: logits[..., j] = z(ids[j])."""
    head = model.get_output_embeddings()
    ids = ids.to(head.weight.device)
    weight = head.weight.index_select(0, ids)
    bias = None if head.bias is None else head.bias.index_select(0, ids)
    with _replaced(head, weight, bias):
        yield


def logits_at(model: PreTrainedModel, found: Candidates, run: Callable[[], Tensor]) -> Tensor:
    """Return z [B, K] at each row's plausible ids, from the rows of a head that some row needs."""
    some, place = found.at(found.ids).unique(return_inverse=True)
    with head_rows(model, some):
        logits = run().flatten(0, -2).to(found.ids.device)
    at_ids = torch.zeros_like(found.scores)
    at_ids[found.rows, found.places] = logits[found.rows, place].float()
    return at_ids


@contextmanager
def float32_logits(model: PreTrainedModel) -> Iterator[None]:
    """Make a model of half precision sum its logits in float32, for the length of a `with` block.

    Left as it is: a head that is not plain; any head while a graph is compiled or gradients are
    wanted; and on a device without a product that sums and returns in float32, as a CPU, where
    turning the whole weight would cost twelvefold. The authors' scripts round to bfloat16.
    """
    free = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    head: Any = model.get_output_embeddings() if free else None
    if is_plain(head) and head.weight.dtype in HALF and _widens(*_kind(head.weight)):
        with _replaced(head, head.weight, head.bias):
            yield
    else:
        yield


def linear_float32(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return a linear layer's output in float32: hidden [..., D], weight [U, D], bias [U].

    On a GPU by a product that sums and returns in float32; elsewhere the weight is turned to it.
    """
    if _widens(*_kind(hidden)):
        flat = hidden.reshape(-1, hidden.shape[-1])
        wide = torch.mm(flat, weight.t(), out_dtype=torch.float32)
        out = wide.view(*hidden.shape[:-1], weight.shape[0])
    else:
        out = nn.functional.linear(hidden.float(), weight.float())
    return out if bias is None else out + bias.float()


def _kind(tensor: Tensor) -> tuple[torch.device, torch.dtype]:
    return tensor.device, tensor.dtype


@functools.cache
def _widens(device: torch.device, dtype: torch.dtype) -> bool:
    """Tell whether a device has the product whose sum is not rounded; tried once."""
    if device.type == "meta":
        return False
    small = torch.zeros(8, 8, device=device, dtype=dtype)
    try:
        return torch.mm(small, small, out_dtype=torch.float32).dtype == torch.float32
    except (RuntimeError, TypeError):  # an older torch, another backend
        return False


@contextmanager
def _replaced(head: nn.Linear, weight: Tensor, bias: Tensor | None) -> Iterator[None]:
    """Give a head another weight, and float32 outputs where its own are half, for a block."""
    is_half = weight.dtype in HALF and not torch.is_grad_enabled()
    product = linear_float32 if is_half else nn.functional.linear
    head.forward = lambda hidden: product(hidden, weight, bias)
    try:
        yield
    finally:
        del head.forward


def is_plain(head: Any) -> bool:
    """Tell whether a module is a linear layer: not quantised, hooked, offloaded or replaced."""
    return (
        type(head) is nn.Linear
        and "forward" not in vars(head)
        and not head._forward_hooks
        and not head._forward_pre_hooks
        and type(head.weight) is nn.Parameter
        and head.weight.device.type != "meta"
    )


@torch.no_grad()
def _agrees(model: PreTrainedModel, head: nn.Linear) -> bool:
    """Return whether a few gathered rows give the logits of the whole head."""
    if head.bias is not None and not head.bias.isfinite().all():
        return False  # an id that is excluded wants the floor of `contrast`
    device, rows = model.device, head.weight.shape[0]
    text = torch.tensor([[0, min(1, rows - 1)]], device=device)
    ids = torch.tensor(sorted({0, rows // 3, rows // 2, rows - 1}), device=device)
    inputs = {"input_ids": text, "attention_mask": torch.ones_like(text), "use_cache": False}
    whole = model(**inputs).logits.float()
    expected = whole[..., ids.to(whole.device)]
    try:
        with head_rows(model, ids):
            made = model(**inputs).logits.float()
    except RuntimeError:  # shapes that do not fit: something else reads all logits
        return False
    size = float(expected.abs().max())
    limit = TOLERANCE * max(1.0, size) if head.weight.dtype == torch.float32 else 0.02 * size
    return made.shape == expected.shape and bool(((made - expected).abs() <= limit).all())
