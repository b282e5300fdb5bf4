"""The arithmetic of one step: from two models' logits to the distribution the pair samples from.

Pure functions of tensors: no model, no tokenizer, no state. `contrast` holds the equation.

Notation
    B   rows of a batch              V   ids of the vocabulary
    z_E, z_A   logits of expert and amateur                    [..., V]
    p_E, p_A   their softmax, at temperature 1                 [..., V]
    alpha      plausibility, in [0, 1]
    beta       strength, at least 0
    V_head     plausible ids: p_E(v) >= alpha * max_u p_E(u)
    s          scores: log p_E(v) - beta * log p_A(v) on V_head, -inf elsewhere
    q          softmax(s), the contrastive distribution        [..., V]
Logarithms are natural, log-probabilities in nats, everything float32 whatever the models' dtype.
Leading dimensions are free: [B, V] at a step, [B, T, V] for a whole text.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from torch import Tensor

Logits = Annotated[Tensor, "float [..., V], any offset per row"]
Logprobs = Annotated[Tensor, "float32 [..., V], nats, logsumexp 0 per row"]
Ids = Annotated[Tensor, "int64 [B]"]
PerId = Annotated[Tensor, "[V]"]

FLOOR = -1e4  # smallest log p_A that is used: an amateur's -inf must not make s infinite (ours)


def contrast(
    expert_logits: Logits,
    amateur_logits: Logits | None,
    *,
    strength: float = 1.0,
    plausibility: float = 0.01,
    valid: PerId | None = None,
) -> Logprobs:
    """Return the log-probabilities of the contrastive distribution.

    s(v) = log p_E(v) - beta * log p_A(v) for v in V_head, -inf otherwise;  log q = s - logsumexp s

    Args:
        expert_logits: z_E.
        amateur_logits: z_A, same shape. None is allowed at strength 0, which does not read it.
        strength: beta. 0 samples the expert truncated to V_head, 1 is the paper's equation.
        plausibility: alpha, see `plausible`. With both numbers 0 the result is the expert's own
            log-softmax over valid ids.
        valid: bool [V], False for ids that are no token: removed from both models before
            normalising.

    Returns:
        Tensor: float32 [..., V], nats; -inf outside V_head. A row in which a model that is
        read has no finite valid logit is NaN.

    Raises:
        ValueError: a number out of range, shapes that differ, or no amateur at strength > 0.

    Source: CoDIT (arXiv 2604.13538); its equation has beta = 1.
    """
    if not 0.0 <= strength < math.inf:
        raise ValueError(
            f"strength must be a finite number of at least 0; got {strength}. 0 ignores the "
            "amateur, 1 is the paper's."
        )
    keep = plausible(expert_logits, plausibility=plausibility, valid=valid)  # V_head
    scores = _valid_float32(expert_logits, valid)  # log p_E up to a constant per row
    if strength > 0:
        penalty = strength * _amateur_logprobs(amateur_logits, expert_logits, valid)
        # A constant per row leaves q unchanged. Without it a penalty of 1e4 (the floor) would eat
        # the digits of log p_E.
        penalty = penalty - penalty.masked_fill(~keep, math.inf).amin(-1, keepdim=True)
        scores = scores.log_softmax(-1) - penalty  # the equation: s = log p_E - beta log p_A
    return scores.masked_fill(~keep, -math.inf).log_softmax(-1)  # log q = s - logsumexp s


def plausible(
    expert_logits: Logits, *, plausibility: float, valid: PerId | None = None
) -> Annotated[Tensor, "bool [..., V]"]:
    """Tell which ids the expert itself finds plausible.

    V_head = { v : p_E(v) >= alpha * max_u p_E(u) } = { v : z_E(v) >= max_u z_E(u) + log alpha }

    Args:
        expert_logits: z_E; -inf is allowed and never plausible.
        plausibility: alpha. 0 keeps every id of positive probability, 1 the largest only.
        valid: bool [V], False for ids that are no token, taken out before the maximum.

    Returns:
        Tensor: bool [..., V]. Never empty where the expert gives some valid id a finite logit.

    Raises:
        ValueError: plausibility outside [0, 1], or `valid` of another shape or dtype.

    Source: CoDIT (arXiv 2604.13538), the head set; Li et al. 2022, the plausibility constraint.
    """
    if not 0.0 <= plausibility <= 1.0:
        raise ValueError(
            f"plausibility must lie in [0, 1]; got {plausibility}. It is the share of the "
            "largest probability that a token must reach."
        )
    logits = _valid_float32(expert_logits, valid)
    keep = logits.isfinite()
    if plausibility > 0:  # log 0 is never taken
        best = logits.amax(-1, keepdim=True)
        keep &= logits >= best + math.log(plausibility)
    return keep


def sample(
    logprobs: Annotated[Tensor, "float [B, V]"], uniforms: Annotated[Tensor, "float [B] in [0, 1)"]
) -> Ids:
    """Draw one id per row by inverting the cumulative distribution.

    id = min { v : sum_{u <= v} p(u) > uniform, p(v) > 0 }

    A row's draw depends on its own numbers alone, so equal uniforms repeat a text at any batch
    size. Rows need not be normalised; -inf is never drawn.

    Raises:
        ValueError: shapes other than [B, V] and [B].
    """
    if logprobs.ndim != 2 or uniforms.shape != logprobs.shape[:1]:
        raise ValueError(
            "sample expects logprobs [B, V] and one uniform per row [B]; got "
            f"{list(logprobs.shape)} and {list(uniforms.shape)}. Take the last position's rows."
        )
    probs = logprobs.double().softmax(-1)
    cumulative = probs.cumsum(-1)
    # The last sum may round to less than 1, and a parallel sum may move where nothing is added:
    # hence the total instead of 1, and the test for a positive probability.
    threshold = uniforms.to(cumulative)[:, None] * cumulative[:, -1:]
    beyond = (cumulative > threshold) & (probs > 0)
    last = probs.shape[-1] - 1 - (probs > 0).flip(-1).int().argmax(-1)
    return torch.where(beyond.any(-1), beyond.int().argmax(-1), last)


def _amateur_logprobs(
    amateur_logits: Logits | None, expert_logits: Logits, valid: PerId | None
) -> Logprobs:
    """Return log p_A, not below the floor."""
    if amateur_logits is None:
        raise ValueError(
            "a strength above 0 needs the amateur's logits; got None. Pass them, or strength=0."
        )
    if amateur_logits.shape != expert_logits.shape:
        raise ValueError(
            "expert and amateur logits must have one shape; got "
            f"{list(expert_logits.shape)} and {list(amateur_logits.shape)}. Cut both to the "
            "tokenizer's length."
        )
    return _valid_float32(amateur_logits, valid).log_softmax(-1).clamp(min=FLOOR)


def _valid_float32(logits: Logits, valid: PerId | None) -> Logits:
    """Return float32 logits with -inf at the ids that are no token."""
    if valid is None:
        return logits.float()
    if valid.dtype != torch.bool or valid.shape != logits.shape[-1:]:
        raise ValueError(
            f"valid must be bool [{logits.shape[-1]}], one entry per logit; got {valid.dtype} "
            f"{list(valid.shape)}. Use torch.arange(V) < len(tokenizer)."
        )
    return logits.float().masked_fill(~valid, -math.inf)
