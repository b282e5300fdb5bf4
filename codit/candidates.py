"""The arithmetic of `codit.contrast` on the plausible ids alone, where they are few.

q is zero outside the plausible set, and normalisers cancel inside it:

    log q(v) = z_E(v) - beta z_A(v) + const    for z_E(v) >= max_u z_E(u) + log alpha

So a step needs two passes over the expert's logits, one for the largest and one for the mask; all
else is done on the few ids that are left, and the amateur's logits are needed at these ids only.

Notation
    B   rows      V   ids of the vocabulary      K   plausible ids of the row that has most
    z_E, z_A, alpha, beta, q   as in `codit.contrast`
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

SHARE = 0.25
"""Of all entries: where more are plausible, full vectors are as quick. (ours)"""


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
    """Find the plausible ids of each row.

    V_head = { v : z(v) >= max_u z(u) + log alpha }

    Args:
        logits: float [B, V], z_E.
        plausibility: alpha in (0, 1].

    Returns:
        Candidates | None: scores are z_E. None where more than a quarter of all entries are
        plausible, or where alpha is 0: `contrast.contrast` serves these.

    Source: CoDIT (arXiv 2604.13538), the head set; keeping its ids instead of a mask: ours.
    """
    if plausibility <= 0:
        return None
    best = logits.amax(-1, keepdim=True).float()
    rows, ids = _at_least(logits, best + math.log(plausibility))
    if len(ids) > SHARE * logits.numel():
        return None
    counts = torch.zeros_like(best[:, 0], dtype=torch.long).index_add_(
        0, rows, torch.ones_like(rows)
    )
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

    Args:
        found: with z_E as scores.
        amateur_logits: float [B, K], z_A at `found.ids`; what stands at other places is ignored.
            None: strength 0, which does not read it.
        strength: beta.

    Returns:
        Candidates: the same ids; scores are log q, nats, logsumexp 0 per row. A row in which a
        model has no finite number is NaN. The floor of `contrast.contrast` is not applied: an
        amateur's logit of -inf has to be sent there.

    Source: CoDIT (arXiv 2604.13538), its equation without the normalisers: they cancel.
    """
    scores = found.scores.double()  # few: digits cost nothing here
    if amateur_logits is not None:
        beyond = scores == -math.inf  # the row has fewer ids
        amateur = amateur_logits.double().masked_fill(beyond, 0.0)
        scores = scores - strength * amateur
    return replace(found, scores=scores.log_softmax(-1).float())
