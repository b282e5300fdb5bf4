"""One key-value cache for two models: the expert's layers first, the amateur's after them.

A generation loop knows one model, one config and one cache. The config of `joint_config` has the
layers of both models, so the loop allocates, grows, reorders and crops the keys of both; each model
is then handed a view of its own half. Views share the cache's layers and copy nothing, and no model
is changed, so both still work alone. What has no source is ours.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, get_layer_types_and_kwargs
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.utils import (
    find_head_dim,
    find_num_key_value_heads,
)
from transformers.masking_utils import create_masks_for_generate

# What the library calls a model's cache: `past_key_values`, or since 5.24 `cache`, as ever for
# paged ones.
IS_RENAMED = "cache" in inspect.signature(create_masks_for_generate).parameters
CACHE = "cache" if IS_RENAMED else "past_key_values"
# Their attention hands on too little for a paged cache since then.
UNPAGED = ("bloom", "ctrl", "falcon", "gpt_neox", "gpt_neox_japanese") if IS_RENAMED else ()


def takes(model: type[PreTrainedModel]) -> frozenset[str]:
    """Return the names of a forward's arguments; "kwargs" where it takes any."""
    given = inspect.signature(model.forward).parameters.values()
    return frozenset("kwargs" if one.kind is one.VAR_KEYWORD else one.name for one in given)


def cache_name(model: type[PreTrainedModel]) -> str:
    """Return the argument by which a forward takes its cache: code from elsewhere has its own."""
    return next((name for name in ("cache", "past_key_values") if name in takes(model)), CACHE)


def joint_config(
    expert: PreTrainedConfig, amateur: PreTrainedConfig, *, vocab_size: int | None = None
) -> PreTrainedConfig:
    """Return a config from which a cache for both models can be made.

    Its layers are the expert's, then the amateur's; all else is the expert's (of a model that reads
    images, its text part's). vocab_size: number of ids that are tokens, at most the narrower
    model's logits (None: that). Models that cannot share a cache are refused.
    """
    if type(expert) is not type(amateur):
        raise ValueError(
            "expert and amateur must have one architecture; got "
            f"{expert.model_type} and {amateur.model_type}. Take the model that the expert was "
            "trained from."
        )
    kinds: list[str] = []
    windows: set[int] = set()
    for half in (expert, amateur):
        types, arguments = get_layer_types_and_kwargs(half.get_text_config(decoder=True))
        kinds += types
        windows |= {values["sliding_window"] for values in arguments if "sliding_window" in values}
    width = shared_width(expert, amateur)
    vocab_size = width if vocab_size is None else vocab_size
    _check(kinds, windows, vocab_size, width)
    joint = copy.deepcopy(expert.get_text_config(decoder=True))
    joint.name_or_path = expert.name_or_path
    joint.vocab_size, joint.num_hidden_layers = vocab_size, len(kinds)
    joint.layer_types = kinds
    return joint


def n_layers(config: PreTrainedConfig) -> int:
    """Return the number of layers of the part of a model that writes text."""
    return config.get_text_config(decoder=True).num_hidden_layers


def halves(cache: Cache, *, first: int, total: int, both: bool) -> tuple[Cache, Cache]:
    """Return the expert's and the amateur's view of a cache.

    The expert's are the `first` layers of `total`, the amateur's the rest, numbered from 0. `both`
    says that the amateur is about to be run as well: then both must have read the same tokens.
    """
    if cache.layer_class_to_replicate is not None:  # DynamicCache() adds layers as it is used
        while len(cache.layers) < total:
            cache.layers.append(cache.layer_class_to_replicate())
    if len(cache.layers) != total:
        raise ValueError(
            f"a pair's cache has the layers of both models, {total}; got {len(cache.layers)}. "
            "Make it with DynamicCache(config=pair.config), or let generate make it."
        )
    if cache.offloading:
        raise ValueError(
            "a pair's two views cannot share an offloaded cache. Use cache_implementation "
            "'dynamic' or 'static'."
        )
    expert, amateur = Cache(layers=cache.layers[:first]), Cache(layers=cache.layers[first:])
    if both and _length(expert) != _length(amateur):
        raise ValueError(
            "the cache holds tokens that the amateur has not read: it was filled at strength 0. "
            "Start with an empty cache."
        )
    return expert, amateur


def check_paged(expert: PreTrainedConfig, amateur: PreTrainedConfig) -> None:
    """Refuse two models whose keys differ in shape, and those that the library cannot page.

    One paged cache has pages of one shape; dynamic and static caches hold such a pair, layer by
    layer.
    """
    if expert.model_type in UNPAGED:
        raise ValueError(
            f"transformers {transformers.__version__} cannot page a {expert.model_type}'s cache. "
            "Use generate, or engine='static'."
        )
    shapes = [paged_shape(config) for config in (expert, amateur)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "continuous batching needs keys of one shape (heads, head size); got "
            f"{shapes[0]} and {shapes[1]}. Use generate for this pair."
        )


def paged_shape(config: PreTrainedConfig) -> tuple[int, int]:
    """Return the shape (key heads, head size) of a token's keys in one layer."""
    text = config.get_text_config(decoder=True)
    return find_num_key_value_heads(text), find_head_dim(text)


def engines(device: torch.device, *configs: PreTrainedConfig) -> tuple[str, ...]:
    """Return the engines of `decode` for models in this process, the quicker one first.

    Continuous batching on a GPU where all keys have one shape; elsewhere static batches, which were
    quicker on a CPU. Static batches alone where the installed transformers cannot page a model.
    """
    if {config.get_text_config(decoder=True).model_type for config in configs} & {*UNPAGED}:
        return ("static",)
    paged = device.type == "cuda" and len({paged_shape(config) for config in configs}) == 1
    return ("continuous", "static") if paged else ("static", "continuous")


def shared_width(*configs: PreTrainedConfig) -> int:
    """Return how many ids all of these models have logits for."""
    return min(config.get_text_config(decoder=True).vocab_size for config in configs)


def reach(*configs: PreTrainedConfig) -> int | None:
    """Return how many tokens all of these models can read; None where no config names a limit."""
    texts = [config.get_text_config(decoder=True) for config in configs]
    limits = [getattr(text, "max_position_embeddings", None) for text in texts]
    return min((limit for limit in limits if limit), default=None)


class GrowingLayer(DynamicLayer):
    """Keys and values of a layer in room made ahead, so that a step writes one token.

    The library's own layer copies all keys and values at each step. `keys` and `values` are views
    of a room, so whatever shortens or replaces them works as it does there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.keys: Any = None
        self.values: Any = None
        self.rooms: dict[str, Tensor] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Store keys and values [B, heads, T, size], and return those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[-2]
        for name, states in (("keys", key_states), ("values", value_states)):
            held = getattr(self, name)
            room = self.rooms.get(name)
            if room is None or not _fits(held, room, after):
                room = states.new_empty(
                    (*states.shape[:-2], after + after // 4 + 32, states.shape[-1])
                )
                if before:
                    room[..., :before, :] = held
                self.rooms[name] = room
            room[..., before:after, :] = states
            setattr(self, name, room[..., :after, :])
        return self.keys, self.values


def _fits(held: Tensor, room: Tensor, tokens: int) -> bool:
    """Return whether so many tokens fit into a room that holds the present ones."""
    same = held.data_ptr() == room.data_ptr() and held.shape[0] == room.shape[0]
    return same and room.shape[-2] >= tokens


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """Return the library's empty cache with `GrowingLayer`s as its layers of full attention."""
    cache = DynamicCache(config=config)
    for i, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[i] = GrowingLayer()
    return cache


class PagedHalf(PagedAttentionCache):
    """The amateur's view of both models' paged cache: its layers come after the `first` ones."""

    def __init__(self, whole: PagedAttentionCache, *, first: int) -> None:
        self.whole, self.first = whole, first  # super().__init__ would allocate a second cache

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Store and return the keys and values of the amateur's layer `layer_idx`."""
        return self.whole.update(key_states, value_states, self.first + layer_idx, kwargs)


def _length(view: Cache) -> int:
    """Return the tokens in a view; -1 for a filled static one, whose tensor would cost a stall."""
    length = view.get_seq_length()
    return -1 if isinstance(length, Tensor) else length


def _check(kinds: list[str], windows: set[int], vocab_size: int, width: int) -> None:
    """Raise ValueError unless all layers can live in one cache and all ids have logits."""
    if others := set(kinds) - {"full_attention", "sliding_attention"}:
        raise ValueError(
            "a pair shares a cache of full and sliding attention; got layers of kind "
            f"{', '.join(sorted(others))}. Such an architecture cannot be paired."
        )
    if len(windows) > 1:
        raise ValueError(
            f"all sliding layers of a pair need one window; got {sorted(windows)}. Give both "
            "configs the same sliding_window."
        )

    if not 0 < vocab_size <= width:
        raise ValueError(
            f"vocab_size must lie in 1..{width}, the narrower model's logits; got {vocab_size}. "
            "A tokenizer with more ids than a model has logits does not belong to it."
        )
