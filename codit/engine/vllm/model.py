"""The pair as an ordinary vLLM model: both models in one engine, whatever their architecture.

vLLM asks a model for hidden states, picks the last position of each request, and asks for logits.
Here a hidden state is the expert's and the amateur's side by side, and logits are log q. So its
scheduler, paged cache, sampler and server serve a pair as they serve any model, unpatched:

    vllm serve EXPERT --hf-overrides '{"architectures": ["ContrastivePairForCausalLM"],
        "codit": {"amateur": AMATEUR, "strength": 1.0, "plausibility": 0.01}}'

`codit.engine.vllm.engine.overrides` writes that JSON and checks the two models first. What has no
source is ours.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from vllm.compilation.backends import set_model_tag
from vllm.config import VllmConfig
from vllm.config.utils import replace
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.transformers_utils.config import get_config

from codit.contrast import contrast
from codit.engine.vllm.plugin import Settings

# Nats between the best id and the implausible ones, which keep the expert's order; probability 0 in
# float32. They are not -inf, because a grammar or a list of forbidden ids may leave none of the
# plausible ones: then the expert's best of the rest is taken, not NaN.
BELOW = 1e4
TAG = "codit_amateur"  # of the amateur's compiled code
AMATEUR = "amateur."  # before the names of the amateur's weights


class ContrastivePairForCausalLM(nn.Module):
    """Expert and amateur of vLLM's own classes; logits are log q of `contrast.contrast`.

    Args:
        vllm_config: of the expert, with `codit` among its `hf_overrides`: see `Settings`.
        prefix: vLLM's name for this module.

    Raises:
        ValueError: settings that are missing or out of range, an expert that is no text model,
            two classes of models, or features that a pair has not: see README.
    """

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        model = vllm_config.model_config
        self.settings = Settings.of(getattr(model.hf_config, "codit", None))
        _refuse(vllm_config)
        expert, own = _own_config(model)
        self.expert = init_vllm_registered_model(
            vllm_config, prefix=maybe_prefix(prefix, "expert"), hf_config=expert, architectures=own
        )
        self.width: int = expert.hidden_size
        self.amateur: nn.Module | None = None
        self.secondary_weights: list[Any] = []
        widths = [expert.vocab_size]
        if self.settings.needs_amateur:
            amateur = _amateur_config(self.settings, model, expert)
            # Two caches of compiled code. The names of a half's attention layers, and so its part
            # of the key-value cache, are in it, and the engine tells files apart by tag or by hash
            # of the config, which is one where both halves have one shape.
            with set_model_tag(TAG):
                self.amateur = init_vllm_registered_model(
                    _marked(vllm_config),
                    prefix=maybe_prefix(prefix, "amateur"),
                    hf_config=amateur,
                    architectures=own,
                )
            self.secondary_weights = [_source(self.settings)]
            widths.append(amateur.vocab_size)
        self.ids: int = min(self.settings.vocab_size or min(widths), *widths)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Return the expert's embeddings; vLLM asks for the method, a pair reads ids."""
        embedded: Tensor = self.expert.embed_input_ids(input_ids)
        return embedded

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Return both models' hidden states side by side, [T, both widths], for T tokens."""
        hidden: Tensor = self.expert(input_ids, positions)
        if self.amateur is None:
            return hidden
        return torch.cat([hidden, self.amateur(input_ids, positions)], dim=-1)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Return log q, float32 [N, V], of the next token of the N positions that are asked for.

        BELOW and less where an id is not plausible, -inf where it is no token, NaN in a row without
        finite numbers. None on the ranks of tensor parallelism that gather no logits.
        """
        expert = self.expert.compute_logits(hidden_states[:, : self.width])
        amateur = None
        if self.amateur is not None:  # on all ranks: it is a collective
            amateur = self.amateur.compute_logits(hidden_states[:, self.width :])
        if expert is None:
            return None
        cut = expert[:, : self.ids].float()
        theirs = None if amateur is None else amateur[:, : self.ids]
        how = self.settings
        if how.unused:
            cut[:, list(how.unused)] = -torch.inf
        logq = contrast(cut, theirs, strength=how.strength, plausibility=how.plausibility)
        rest = cut - cut.amax(-1, keepdim=True) - BELOW
        made = rest.new_full(expert.shape, -torch.inf)
        made[:, : self.ids] = torch.where(logq.isneginf(), rest, logq)
        return made

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Give each model its own weights, the amateur's named "amateur. ...", and name them."""
        loaded: set[str] = set()
        for theirs, group in itertools.groupby(weights, lambda one: one[0].startswith(AMATEUR)):
            half, start = (self.amateur, len(AMATEUR)) if theirs else (self.expert, 0)
            assert half is not None
            found = half.load_weights((name[start:], tensor) for name, tensor in group)
            loaded |= {f"{'amateur' if theirs else 'expert'}.{name}" for name in found or ()}
        return loaded


def _own_config(model: Any) -> tuple[PretrainedConfig, list[str]]:
    """Return the expert's config and its own architectures, which the overrides replaced."""
    raw, _ = PretrainedConfig.get_config_dict(
        model.model, revision=model.revision, trust_remote_code=model.trust_remote_code
    )
    if not raw.get("architectures"):
        raise ValueError(
            f"expected the expert's architecture in its config.json; got none in {model.model}. "
            "Name the folder of a causal language model."
        )
    config = copy.deepcopy(model.hf_config)
    del config.codit
    return config, list(raw["architectures"])


def _amateur_config(settings: Settings, model: Any, expert: PretrainedConfig) -> PretrainedConfig:
    """Return the amateur's config, or refuse one that is not of the expert's kind."""
    config = get_config(
        settings.amateur,
        trust_remote_code=model.trust_remote_code,
        revision=settings.amateur_revision,
    )
    if config.model_type != expert.model_type:
        raise ValueError(
            "expert and amateur must have one architecture; got "
            f"{expert.model_type} and {config.model_type}. Take the model that the expert was "
            "trained from."
        )
    ways = [getattr(one, "quantization_config", None) for one in (expert, config)]
    if ways[0] != ways[1]:  # the engine has one way for all its layers
        raise ValueError(
            f"expert and amateur must be quantised alike; got {ways[0]} and {ways[1]}. Take both "
            "as they were published, or let vLLM quantise both (--quantization)."
        )
    if hasattr(expert, "head_dtype"):
        config.head_dtype = expert.head_dtype
    return config


def _marked(vllm_config: VllmConfig) -> VllmConfig:
    """Return the same config with a hash of its own."""
    more = vllm_config.additional_config
    if not isinstance(more, dict):
        raise ValueError(
            f"expected additional_config as a dict; got a {type(more).__name__}. Give a dict."
        )
    return replace(vllm_config, additional_config={**more, "codit": TAG})


def _source(settings: Settings) -> Any:
    return DefaultModelLoader.Source(
        settings.amateur, revision=settings.amateur_revision, prefix=AMATEUR
    )


def _refuse(vllm_config: VllmConfig) -> None:
    """Raise ValueError for what a pair cannot do; LoRA and pipeline stages vLLM refuses itself."""
    if vllm_config.speculative_config is not None:
        raise ValueError(
            "a pair drafts no tokens: its hidden states are two models'. Leave speculative "
            "decoding out."
        )
    model = vllm_config.model_config
    if model.hf_config is not model.hf_text_config:
        raise ValueError(
            f"expected a text model; got {model.hf_config.model_type}, which reads more than text. "
            "Save its language model alone and name that folder."
        )
