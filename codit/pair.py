"""Expert and amateur as one causal language model.

`ContrastivePair` holds both models and answers like one Hugging Face causal LM whose logits are
the contrastive log-probabilities, so whatever takes a causal LM takes a pair: `generate` (dynamic
or static cache, beams), `generate_batch` (continuous batching), `pipeline("text-generation")`,
evaluation harnesses. Both models read the same token ids at every step, by construction.

`pair.expert` and `pair.amateur` remain ordinary models: `pair.expert.generate(...)` samples the
expert alone. At strength 0 the amateur is not run at all.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.generation.continuous_batching import PagedAttentionCache
from transformers.masking_utils import create_masks_for_generate
from transformers.modeling_outputs import CausalLMOutputWithPast

from codit.contrast import contrast
from codit.engine import sparse as few
from codit.engine.cache import (
    CACHE,
    PagedHalf,
    cache_name,
    check_paged,
    engines,
    halves,
    joint_config,
    reach,
    shared_width,
)
from codit.engine.chat import check_stops, stop_ids
from codit.engine.models import evaluating, read_pair, write_pair
from codit.engine.models import load_tokenizer as load_tokenizer
from codit.engine.sampling import Batch
from codit.engine.static import Runner
from codit.recipes import Decoding


@dataclass
class PairOutput(CausalLMOutputWithPast):
    """What a pair returns: `logits`, its cache, and `candidates` in place of logits."""

    candidates: few.Candidates | None = None

    @property
    def last_hidden_state(self) -> Tensor:
        """Refuse: two models have two."""
        raise ValueError(
            "a pair has no hidden state of its own. Give a trainer that reads hidden states a "
            "codit.training.distillation.JointTeacher(pair)."
        )


class ContrastivePair(PreTrainedModel, GenerationMixin):
    """Two models that behave as one causal LM; its logits are log q of `contrast.contrast`.

    `strength` and `plausibility` are attributes and may be set at any time; for one call use
    `with pair.override(...)`. `floor` is the smallest log q that is returned, -inf unless it is
    set: for trainers that compute with implausible ids (TRL's GKDTrainer: -1e4, whose exp is 0).

    Args:
        expert: post-trained model; its generation config, stop ids included, becomes the pair's.
        amateur: its pre-trained counterpart, of the same architecture.
        strength: beta, weight of the amateur's log-probability, at least 0.
        plausibility: alpha in [0, 1]: keep v iff p_E(v) >= alpha max p_E.
        vocab_size: the tokenizer's highest id + 1. Both models' logits are cut to it: rows that pad
            an embedding can never be drawn. None: the narrower model's width.
        unused: ids below it that are no token, never drawn either.

    Raises:
        ValueError: models that cannot share a cache, a number out of range, or a stop id of the
            generation config that cannot be drawn.
    """

    is_contrast = True

    def __init__(
        self,
        expert: PreTrainedModel,
        amateur: PreTrainedModel,
        *,
        strength: float = 1.0,
        plausibility: float = 0.01,
        vocab_size: int | None = None,
        unused: Sequence[int] = (),
    ) -> None:
        for flag in ("_supports_sdpa", "_supports_flash_attn", "_supports_flex_attn"):
            setattr(self, flag, getattr(expert, flag))  # read by the next line's checks
        super().__init__(joint_config(expert.config, amateur.config, vocab_size=vocab_size))
        self.vocab_size = self.config.vocab_size
        valid = torch.ones(self.vocab_size, dtype=torch.bool)
        valid[list(unused)] = False
        self.register_buffer("valid", valid if unused else None, persistent=False)
        self.unused = list(unused)
        self.expert_layers = expert.config.get_text_config(decoder=True).num_hidden_layers
        self.expert, self.amateur = expert, amateur
        self.cache_names = [cache_name(type(model)) for model in (expert, amateur)]
        self.generation_config = copy.deepcopy(expert.generation_config)
        for name in {"hf_quantizer", "quantization_method", "hf_device_map"} & set(vars(expert)):
            setattr(self, name, getattr(expert, name))  # they restrict moving and compiling
        self.strength, self.plausibility = strength, plausibility
        self.floor: float | None = None
        self.gather_head: bool | None = None  # None: where it was measured to pay
        self.check_values()
        check_stops(stop_ids(None, self.generation_config), self.vocab_size, self.unused)
        self.eval()

    @contextmanager
    def override(self, **values: Any) -> Iterator[ContrastivePair]:
        """Give the pair another strength, plausibility or both for a `with` block, and yield it.

        Not seen by CUDA graphs that a persistent manager of `generate_batch` captured before.
        """
        if unknown := ", ".join(sorted(set(values) - {"strength", "plausibility"})):
            raise ValueError(
                f"override takes strength and plausibility; got {unknown}. Name these only."
            )
        before = {name: getattr(self, name) for name in values}
        try:
            self.__dict__.update(values)
            self.check_values()
            yield self
        finally:
            self.__dict__.update(before)

    @property
    def context(self) -> int | None:
        """How many tokens both models can read."""
        return reach(self.expert.config, self.amateur.config)

    @property
    def engines(self) -> tuple[str, ...]:
        """The engines of `decode.generate` for this pair, the quicker one first."""
        return engines(self.device, self.expert.config, self.amateur.config)

    @contextmanager
    def deciding(self, decoding: Decoding) -> Iterator[ContrastivePair]:
        """Contrast as `decoding` says, without dropout, for the length of a `with` block."""
        numbers = {"strength": decoding.strength, "plausibility": decoding.plausibility}
        with self.override(**numbers), evaluating(self):
            yield self

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | dict[str, Tensor] | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | PagedAttentionCache | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        sparse: bool = False,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> PairOutput:
        """Run both models on the same ids and contrast their logits.

        logits = log q = contrast(z_E, z_A; strength, plausibility)

        Where no gradient is asked for and few ids are plausible, all after the expert's logits is
        done on these alone, the amateur's output projection too if `gather_head` allows it: the
        same numbers up to rounding.

        Args:
            input_ids: int64 [B, T].
            attention_mask: [B, past + T], 0 for padding; or what a generation loop prepared.
            position_ids: int64 [B, T]. None: counted from the cache's length, padding included.
            cache: the pair's, such as DynamicCache(config=pair.config).
            use_cache: return a cache. None: as the config says.
            logits_to_keep: number of last positions (0: all), or an index of positions.
            sparse: where few ids are plausible, return them as `candidates` in place of logits.
            past_key_values: what `cache` was called before transformers 5.24.
            **kwargs: handed to both models.

        Returns:
            PairOutput: logits float32 [B, T or kept, vocab_size], nats; the cache. With `sparse`,
            one of logits and candidates is None; candidates have B · (T or kept) rows.
        """
        given = [name for name in ("inputs_embeds", "labels") if kwargs.get(name) is not None]
        if input_ids is None or given:
            raise ValueError(
                "a pair reads token ids, which each model embeds its own way, and is not trained; "
                f"got {' and '.join(given) or 'no input_ids'}. Pass input_ids and a mask alone."
            )
        use_cache = self.config.use_cache if use_cache is None else use_cache
        if cache is not None and past_key_values is not None:
            raise ValueError("expected one cache; got cache and past_key_values. Pass cache alone.")
        cache = past_key_values if cache is None else cache
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        paged = isinstance(cache, PagedAttentionCache)
        views: tuple[Any, Any] = (None, None) if cache is None else self._halves(cache)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs}
        inputs |= {"position_ids": position_ids, "use_cache": use_cache, "return_dict": True}
        inputs |= {"logits_to_keep": logits_to_keep}
        names = ("cache", "cache") if paged else self.cache_names
        expert_logits = self._masked(self._logits(self.expert, **inputs, **{names[0]: views[0]}))
        # Shapes that depend on values fit into no graph, and gradients are kept whole.
        fixed = paged or torch.is_grad_enabled() or torch.compiler.is_compiling()
        run = partial(self._logits, self.amateur, **inputs, **{names[1]: views[1]})
        logits, found = self._contrasted(expert_logits, run, fixed_shapes=fixed)
        if found is not None and not sparse:
            logits, found = found.dense(self.vocab_size).view(expert_logits.shape), None
        if logits is not None and self.floor is not None:
            logits = logits.clamp(min=self.floor)
        return PairOutput(logits=logits, candidates=found, **{CACHE: cache})

    def _contrasted(
        self, expert_logits: Tensor, run: Callable[[], Tensor], *, fixed_shapes: bool
    ) -> tuple[Tensor | None, few.Candidates | None]:
        """Contrast, on the plausible ids alone where they are few, else on all.

        The amateur is run here, because what it has to compute depends on what is plausible.
        """
        found = amateur_logits = at_ids = None
        if not fixed_shapes:
            found = few.candidates(expert_logits.flatten(0, -2), plausibility=self.plausibility)
        if self.needs_amateur and found is not None and self.gathers_head:
            at_ids = few.logits_at(self.amateur, found, run)
        elif self.needs_amateur:
            amateur_logits = run().to(expert_logits.device)
            if found is not None:
                at_ids = amateur_logits.flatten(0, -2).gather(1, found.ids)
                if at_ids.isneginf().any():  # the floor of `contrast` has to mend it
                    found = None
        if found is not None:
            return None, few.contrast_candidates(found, at_ids, strength=self.strength)
        return self._contrast(expert_logits, amateur_logits), None

    def _contrast(self, expert_logits: Tensor, amateur_logits: Tensor | None) -> Tensor:
        numbers = {"strength": self.strength, "plausibility": self.plausibility}
        return contrast(expert_logits, amateur_logits, **numbers)

    @torch.no_grad()
    def both_logits(
        self, input_ids: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return each model's own logits for a given text, by one pass of each without a cache.

        Args:
            input_ids: int64 [B, T].
            attention_mask: [B, T], 0 for padding on either side. None: no padding.

        Returns:
            (Tensor, Tensor): z_E and z_A, float32 [B, T, vocab_size], whatever the strength.
            Position t holds the logits of token t + 1.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        inputs = {"input_ids": input_ids, "attention_mask": mask, "use_cache": False}
        inputs |= {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
        both = (self._logits(half, **inputs) for half in (self.expert, self.amateur))
        ours, theirs = (self._masked(logits).float() for logits in both)
        return ours, theirs.to(ours.device)

    def check_values(self) -> None:
        """Raise ValueError unless strength and plausibility are in range."""
        self._contrast(torch.zeros(1, 1), torch.zeros(1, 1))

    @property
    def gathers_head(self) -> bool:
        """Whether the amateur's output projection is computed for plausible ids only."""
        wanted = few.pays(self.amateur) if self.gather_head is None else self.gather_head
        return wanted and few.can_gather(self.amateur)

    @property
    def needs_amateur(self) -> bool:
        """Whether the present strength reads the amateur at all."""
        return self.strength != 0

    def _logits(self, model: PreTrainedModel, **inputs: Any) -> Tensor:
        """Run one model, on its own device, and cut its logits to the ids that are tokens."""
        device = model.device  # looked up once: it walks through the parameters
        if device.type != "meta":  # offloaded: its hooks move them
            tensors = {name: v for name, v in inputs.items() if isinstance(v, Tensor)}
            inputs |= {name: tensor.to(device) for name, tensor in tensors.items()}
        with few.float32_logits(model):
            return model(**inputs).logits[..., : self.vocab_size]

    def _masked(self, logits: Tensor) -> Tensor:
        """Give the ids that are no token no probability."""
        if self.valid is None:
            return logits
        return logits.masked_fill(~self.valid.to(logits.device), -torch.inf)

    def _halves(self, cache: Cache | PagedAttentionCache) -> tuple[Any, Any]:
        """Return the expert's and the amateur's view of a cache."""
        if isinstance(cache, PagedAttentionCache):
            return cache, PagedHalf(cache, first=self.expert_layers)
        sizes = {"first": self.expert_layers, "total": self.config.num_hidden_layers}
        return halves(cache, **sizes, both=self.needs_amateur)

    def create_masks_for_generate(self, config: PreTrainedConfig, **kwargs: Any) -> Any:
        """Return the masks of a static cache, as the expert makes them; they serve both models."""
        make = getattr(self.expert, "create_masks_for_generate", create_masks_for_generate)
        kwargs[CACHE], _ = self._halves(kwargs[CACHE])
        return make(config=self.expert.config, **kwargs)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Return a manager of continuous batching, or refuse models whose keys differ in shape."""
        check_paged(self.expert.config, self.amateur.config)
        return super().init_continuous_batching(*args, **kwargs)

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        """Answer for transformers, which would read this file for its own decorator."""
        return True

    def set_experts_implementation(self, experts_implementation: str | dict[str, Any]) -> None:
        """Choose how both models compute a mixture of experts, if they have one."""
        self.expert.set_experts_implementation(experts_implementation)
        self.amateur.set_experts_implementation(experts_implementation)

    def get_experts_implementation(self) -> dict[str, str | None]:
        """Return how the expert computes a mixture of experts."""
        return self.expert.get_experts_implementation()

    @classmethod
    def from_pretrained(
        cls,
        expert: str | Path,
        amateur: str | Path | None = None,
        *,
        strength: float | None = None,
        plausibility: float | None = None,
        expert_revision: str | None = None,
        amateur_revision: str | None = None,
        allow_renamed: bool = False,
        **load: Any,
    ) -> ContrastivePair:
        """Load both models, check that their tokenizers agree, and join them.

        Args:
            expert: Hub name or folder; without `amateur`, a folder that `save_pretrained` wrote.
            amateur: Hub name or folder of its pre-trained counterpart.
            strength: beta. None: the saved pair's, otherwise 1 (the paper's).
            plausibility: alpha. None: the saved pair's, otherwise .01 (the authors' scripts).
            expert_revision: commit, tag or branch.
            amateur_revision: likewise.
            allow_renamed: see `check_tokenizers`.
            **load: for both models: dtype, device_map, quantization_config,
                attn_implementation, trust_remote_code (False), ...

        Returns:
            ContrastivePair: its stop ids are the expert's, tokenizer and generation config united.

        Raises:
            ValueError: no such pair, tokenizers that disagree, or a number out of range.
        """
        load |= {"revisions": (expert_revision, amateur_revision), "allow_renamed": allow_renamed}
        *models, values = read_pair(expert, amateur, **load)
        given = {"strength": strength, "plausibility": plausibility}
        values |= {name: value for name, value in given.items() if value is not None}
        return cls(*models, **values)

    def save_pretrained(
        self, folder: str | Path, *, tokenizer: Tokenizer | None = None, **save: Any
    ) -> None:
        """Write folder/expert, folder/amateur (safetensors) and, last, folder/pair.json.

        Args:
            folder: made if missing.
            tokenizer: the expert's, written beside both models for `load_tokenizer(folder)`.
            **save: handed to both models' `save_pretrained`.
        """
        names = ("strength", "plausibility", "vocab_size", "unused")
        values = {name: getattr(self, name) for name in names}
        write_pair(folder, self, values, tokenizer=tokenizer, **save)


class TwoViews:
    """One causal LM that reads every prompt twice: as it is, and as a second view of it.

    s = z - beta z~, with z the logits after the prompt and z~ those after the second view; both go
    on with the tokens drawn. A `decode.Decoder`: one forward pass of the doubled batch a step.

    Args:
        model: any causal LM.
        view: what the second view reads: the token ids of a prompt -> token ids. None: the prompt
            behind the soft prefix.
        prefix: float [n, D], input embeddings that stand before the prompt in the second view.
        longer: most ids that a view has more than its prompt; the context is that much shorter.
        vocab_size: the tokenizer's highest id + 1; later logits are never drawn. None: all.

    Raises:
        ValueError: neither view nor prefix or both, or a prefix of another width or too long.

    Source: CTD (its decoding, with a prefix) and instructive decoding (with another prompt).
    """

    is_contrast = True
    engines = ("static",)

    def __init__(
        self,
        model: PreTrainedModel,
        view: Callable[[list[int]], list[int]] | None = None,
        *,
        prefix: Tensor | None = None,
        longer: int = 0,
        vocab_size: int | None = None,
    ) -> None:
        if (view is None) == (prefix is None):
            raise ValueError("expected a view or a soft prefix; got both or neither. Give one.")
        self.model, self.prefix, self.generation_config = model, prefix, model.generation_config
        self.view = view or self._behind_prefix
        self.longer = longer if prefix is None else len(prefix)
        self.vocab_size = vocab_size or shared_width(model.config)
        self.config = joint_config(model.config, model.config)  # two caches' worth of memory
        if prefix is not None:
            prefixed(model, prefix)  # or why not
        if self.context is not None and self.context < 1:
            raise ValueError(
                f"expected a view that fits into the model's context of {reach(model.config)} "
                f"tokens; it adds {self.longer}. Take a shorter one."
            )

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["model"], name)  # what an engine asks of a model

    @property
    def context(self) -> int | None:
        """How many tokens a prompt and its response may have."""
        limit = reach(self.model.config)
        return None if limit is None else limit - self.longer

    @contextmanager
    def deciding(self, decoding: Decoding) -> Iterator[TwoViews]:
        """See `decode.Decoder`."""
        self.strength, self.plausibility = decoding.strength, decoding.plausibility
        before = self.model.get_input_embeddings()
        try:
            if self.prefix is not None:
                self.model.set_input_embeddings(prefixed(self.model, self.prefix))
            with evaluating(self.model):
                yield self
        finally:
            self.model.set_input_embeddings(before)

    def runner(self, batch: Batch) -> Runner:
        """Return what the static engine runs for a batch of prompts."""
        return _TwoRows(self, batch)

    def _behind_prefix(self, ids: list[int]) -> list[int]:
        rows = shared_width(self.model.config)
        return [*range(rows, rows + self.longer), *ids]


class _TwoRows(Runner):
    """A model that is fed each row twice: rows [0, B) as they are, [B, 2B) in the other view."""

    def __init__(self, two: TwoViews, batch: Batch) -> None:
        super().__init__(two.model, replace(batch, step=replace(batch.step, is_pair=False)))
        self.two = two

    def prompts(self, prompts: list[list[int]]) -> Tensor:
        seen = [self.two.view(prompt) for prompt in prompts]
        if seen == prompts and self.two.strength >= 1:
            raise ValueError(
                f"expected a strength below 1 where both views are equal; got {self.two.strength}: "
                "no token would score above another. Give another view."
            )
        return super().prompts([*prompts, *seen])

    def tokens(self, tokens: Tensor) -> Tensor:
        return super().tokens(tokens.repeat(2))

    def keep(self, index: Tensor) -> None:
        super().keep(torch.cat([index, index + len(self.position) // 2]))

    def _scores(self, outputs: Any) -> Tensor:
        first, second = self.step.cut(outputs.logits[:, -1]).chunk(2)
        numbers = {"strength": self.two.strength, "plausibility": self.two.plausibility}
        return contrast(first, second, **numbers)


class Prefixed(nn.Module):
    """An input embedding with further rows: ids from `rows` on are a soft prefix.

    `embedding` stays the model's own module, tied to its head or not.
    """

    def __init__(self, embedding: nn.Module, prefix: Tensor, rows: int) -> None:
        super().__init__()
        self.embedding, self.prefix, self.rows = embedding, prefix, rows

    def forward(self, ids: Tensor) -> Tensor:
        """Return embeddings [B, T, D] of ids int64 [B, T]."""
        own = self.embedding(ids.clamp(max=self.rows - 1))
        added = self.prefix[(ids - self.rows).clamp(min=0)].to(own)
        return torch.where((ids >= self.rows)[..., None], added, own)


def prefixed(model: PreTrainedModel, prefix: Tensor) -> Prefixed:
    """Return a model's input embedding with a soft prefix behind its ids.

    ValueError: the model has no input embedding, or the prefix another width.
    """
    embedding = model.get_input_embeddings()
    width = getattr(embedding, "embedding_dim", None)
    if embedding is None or prefix.ndim != 2 or prefix.shape[1] != width:
        raise ValueError(
            f"expected a soft prefix [n, {width}], as wide as the input embedding of a "
            f"{type(model).__name__}; got {list(prefix.shape)}. Take the model it was tuned for."
        )
    return Prefixed(embedding, prefix.to(model.device), shared_width(model.config))
