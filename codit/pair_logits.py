"""From the expert's logits to log q: on few ids where few are plausible, else on all.

The amateur is run here, because what it has to compute depends on what the expert found plausible.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from codit.candidates import Candidates, candidates, contrast_candidates
from codit.contrast import contrast
from codit.head_rows import float32_logits, head_rows


@dataclass
class PairOutput(CausalLMOutputWithPast):
    """What a pair returns: `logits`, `past_key_values`, and `candidates` in place of logits."""

    candidates: Candidates | None = None


@dataclass(frozen=True)
class Amateur:
    """An amateur that is yet to be run.

    Args:
        model: the amateur.
        inputs: of its forward pass; run once, for its cache grows.
        gathers_head: whether its output projection may be computed for some ids only.
    """

    model: PreTrainedModel
    inputs: dict[str, Any]
    gathers_head: bool


def logits_of(model: PreTrainedModel, inputs: dict[str, Any]) -> Tensor:
    """Return a model's logits [B, T, V] of inputs that may lie on another device.

    Args:
        model: a causal LM.
        inputs: of its forward pass.

    Returns:
        Tensor: [B, T, V], on the device where the model left them; on a GPU float32 also of
        half-precision models, see `head_rows.float32_logits`.

    Source: ours.
    """
    device = model.device  # looked up once: it walks through the parameters
    if device.type != "meta":  # offloaded: its hooks move them
        inputs = {
            name: value.to(device) if isinstance(value, Tensor) else value
            for name, value in inputs.items()
        }
    with float32_logits(model):
        return model(**inputs).logits


def contrasted(
    expert_logits: Tensor,
    amateur: Amateur | None,
    *,
    strength: float,
    plausibility: float,
    fixed_shapes: bool,
) -> tuple[Tensor | None, Candidates | None]:
    """Run the amateur and contrast.

    log q = contrast(z_E, z_A; strength, plausibility)

    Args:
        expert_logits: [B, T, V], z_E.
        amateur: None: strength 0, which does not read it.
        strength: beta.
        plausibility: alpha in [0, 1].
        fixed_shapes: compute all ids, whatever their number: shapes that depend on values fit into
            no graph, and gradients are kept whole.

    Returns:
        (Tensor, None): log q of all ids, float32 [B, T, V], nats; or (None, Candidates): log q of
        the plausible ones, B · T rows, where these are few.

    Source: CoDIT (arXiv 2604.13538); computing no more than is read: ours.
    """
    width = expert_logits.shape[-1]
    found = None
    if not fixed_shapes:
        found = candidates(expert_logits.flatten(0, -2), plausibility=plausibility)
    logits = at_ids = None
    if amateur is not None and found is not None and amateur.gathers_head:
        at_ids = _at_candidates(amateur, found)
    elif amateur is not None:
        logits = logits_of(amateur.model, amateur.inputs)[..., :width].to(expert_logits.device)
        if found is not None:
            at_ids = logits.flatten(0, -2).gather(1, found.ids)
            if at_ids.isneginf().any():  # the floor of `contrast` has to mend it
                found = None
    if found is not None:
        return None, contrast_candidates(found, at_ids, strength=strength)
    return contrast(expert_logits, logits, strength=strength, plausibility=plausibility), None


def _at_candidates(amateur: Amateur, found: Candidates) -> Tensor:
    """Run an amateur with the rows of its head that some row needs: z_A [B, K], 0 elsewhere."""
    some, place = found.at(found.ids).unique(return_inverse=True)
    with head_rows(amateur.model, some):
        logits = logits_of(amateur.model, amateur.inputs).flatten(0, -2).to(found.ids.device)
    at_ids = torch.zeros_like(found.scores)
    at_ids[found.rows, found.places] = logits[found.rows, place].float()
    return at_ids
