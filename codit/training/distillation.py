"""A pair as the teacher of a trainer that never reads logits, such as TRL's `DistillationTrainer`.

Such a trainer multiplies the hidden states of `base_model` by the weight of the output embeddings.
At plausibility 0 a pair is such a product too, of both models' states side by side:

    z_E - beta z_A = [h_E, h_A] [W_E, -beta W_A]^T + b_E - beta b_A        q = softmax of it

A trainer that reads logits (GKDTrainer) takes the pair itself, with `pair.floor` set.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from codit.pair import ContrastivePair


class JointTeacher(nn.Module):
    """What a trainer asks of a teacher: config, `base_model`, output embeddings.

    Args:
        pair: of plausibility 0; its strength is read once, here. Its `vocab_size` must be the
            student's.

    Raises:
        ValueError: another plausibility, or logits that are more than a linear head (capped ones).
    """

    def __init__(self, pair: ContrastivePair) -> None:
        super().__init__()
        if pair.plausibility != 0:
            raise ValueError(
                "a linear head leaves no implausible id out: expected plausibility 0; got "
                f"{pair.plausibility}. Set it to 0, or use a trainer that reads logits."
            )
        self.halves = nn.ModuleList([pair.expert, pair.amateur])
        self.config = pair.config
        self.head = _joined(pair)
        probe = torch.tensor([[0, 1]], device=pair.device)
        with torch.no_grad():
            logits = self.head(self(probe).last_hidden_state).log_softmax(-1)
            expected = pair(probe).logits
        if not torch.allclose(logits.exp(), expected.exp(), atol=1e-3):
            raise ValueError(
                f"expected logits that are a linear head of hidden states; those of a "
                f"{type(pair.expert).__name__} are more. Use a trainer that reads logits."
            )

    @property
    def base_model(self) -> JointTeacher:
        """Itself: both bodies, without the head."""
        return self

    def get_output_embeddings(self) -> nn.Linear:
        """Return the joined head."""
        return self.head

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any
    ) -> BaseModelOutput:
        """Return `last_hidden_state` [B, T, D_E + D_A]."""
        how: dict[str, Any] = {"attention_mask": attention_mask, "use_cache": False}
        if attention_mask is not None:
            how["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        states = [half.base_model(input_ids, **how).last_hidden_state for half in self.halves]
        return BaseModelOutput(last_hidden_state=torch.cat(states, dim=-1))


def _joined(pair: ContrastivePair) -> nn.Linear:
    """Return the head [W_E, -beta W_A] of a pair, biases likewise."""
    heads = [half.get_output_embeddings() for half in (pair.expert, pair.amateur)]
    rows, factors = pair.vocab_size, (1.0, -pair.strength)
    weights = [by * one.weight[:rows].detach() for by, one in zip(factors, heads, strict=True)]
    biases = [
        by * one.bias[:rows].detach()
        for by, one in zip(factors, heads, strict=True)
        if one.bias is not None
    ]
    width = sum(weight.shape[1] for weight in weights)
    head = nn.Linear(width, rows, bias=bool(biases), device="meta")
    head.weight = nn.Parameter(torch.cat(weights, dim=1), requires_grad=False)
    if biases:
        head.bias = nn.Parameter(torch.stack(biases).sum(0), requires_grad=False)
    return head
