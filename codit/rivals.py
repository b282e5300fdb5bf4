"""Ways to decode a pair: ours, and those that one would write first, which it is timed against.

Notation: B rows, T tokens of a prompt, V ids, n new tokens, z_E and z_A the models' logits.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from codit import decode, random_pairs
from codit.noise import noise_key, uniforms
from codit.pair import ContrastivePair
from codit.recipes import Decoding

PLAUSIBILITY = 0.01  # the authors' scripts
Choose = Callable[[Tensor, Tensor, int], Tensor]  # z_E, z_A [B, V] and the step -> ids [B]


def ours(
    pair: ContrastivePair, tokenizer: PreTrainedTokenizerBase, prompts: Tensor, n: int
) -> tuple[list[list[int]], float]:
    """Decode with `decode.generate`, static engine, and time the whole call.

    Args:
        pair: of `random_pairs`.
        tokenizer: of as many ids.
        prompts: int64 [B, T].
        n: tokens of each row.

    Returns:
        (list, float): tokens of each row; seconds.

    Source: ours.
    """
    chats = [random_pairs.chat(row) for row in prompts.tolist()]
    decoding = Decoding(plausibility=PLAUSIBILITY, max_new_tokens=n)
    options: dict[str, Any] = {"engine": "static", "batch_size": len(chats), "progress": False}
    start = now(prompts.device)
    drawn = decode.generate(pair, tokenizer, chats, decoding, ids=names(len(chats)), **options)
    return [one.token_ids for one in drawn], now(prompts.device) - start


def names(rows: int) -> list[str]:
    """Return the ids of rows, from which their noise comes."""
    return [str(row) for row in range(rows)]


def keys(prompts: Tensor) -> Tensor:
    """Return the noise keys, int64 [B], that `ours` gives its rows."""
    found = [noise_key(Decoding().seed, name, Decoding().sample) for name in names(len(prompts))]
    return torch.tensor(found, device=prompts.device)


def naive_scores(expert_logits: Tensor, amateur_logits: Tensor, *, plausibility: float) -> Tensor:
    """Return contrastive scores over the whole vocabulary, as the equation is written.

    s(v) = log p_E(v) - log p_A(v) where p_E(v) >= alpha max p_E, -inf elsewhere

    Args:
        expert_logits: [B, V].
        amateur_logits: [B, V].
        plausibility: alpha in (0, 1].

    Returns:
        Tensor: float32 [B, V].

    Source: CoDIT (arXiv 2604.13538), its equation and its scripts.
    """
    log_expert = expert_logits.float().log_softmax(-1)
    log_amateur = amateur_logits.float().log_softmax(-1)
    best = log_expert.amax(-1, keepdim=True)
    implausible = log_expert < best + math.log(plausibility)
    return (log_expert - log_amateur).masked_fill(implausible, -math.inf)


def naive_draw(scores: Tensor, noise: Tensor) -> Tensor:
    """Draw an id per row: softmax and cumulative sum of the whole vocabulary in float64.

    Args:
        scores: [B, V].
        noise: float64 [B], uniform in [0, 1).

    Returns:
        Tensor: int64 [B], the smallest id whose cumulative probability exceeds the noise.

    Source: inverse transform sampling.
    """
    cumulative = scores.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, noise[:, None], right=True)[:, 0]


def naive_choice(keys: Tensor, *, plausibility: float) -> Choose:
    """Return how the naive pair chooses its tokens, with the noise that ours has.

    Args:
        keys: int64 [B], the rows' noise keys.
        plausibility: alpha in (0, 1].

    Returns:
        Callable: takes z_E, z_A and the step, returns ids [B].

    Source: ours.
    """

    def choose(expert_logits: Tensor, amateur_logits: Tensor, step: int) -> Tensor:
        scores = naive_scores(expert_logits, amateur_logits, plausibility=plausibility)
        return naive_draw(scores, uniforms(keys, torch.full_like(keys, step)))

    return choose


def no_choice(expert_logits: Tensor, amateur_logits: Tensor, step: int) -> Tensor:
    """Return the same id for every row: what is left of a step is two forward passes.

    Args:
        expert_logits: [B, V].
        amateur_logits: not read.
        step: its number.

    Returns:
        Tensor: int64 [B].

    Source: ours.
    """
    return torch.full((len(expert_logits),), 1 + step, device=expert_logits.device)


@torch.inference_mode()
def two_forwards(
    models: tuple[PreTrainedModel, PreTrainedModel], prompts: Tensor, n: int, choose: Choose
) -> tuple[Tensor, float]:
    """Decode with two models, each with its own cache and its whole head, one after the other.

    Args:
        models: expert and amateur.
        prompts: int64 [B, T].
        n: tokens of each row.
        choose: what is done with both models' logits.

    Returns:
        (int64 [B, n], float): the tokens; seconds of a step after the first, the mean of n - 1.

    Source: ours.
    """
    caches = [DynamicCache(config=one.config) for one in models]
    given, drawn, start = prompts, [], 0.0
    for step in range(n):
        logits = []
        for one, cache in zip(models, caches, strict=True):
            read = one(input_ids=given, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits.append(read.logits[:, -1])
        drawn.append(choose(logits[0], logits[1], step))
        given = drawn[-1][:, None]
        if step == 0:
            start = now(given.device)
    return torch.stack(drawn, 1), (now(given.device) - start) / max(n - 1, 1)


def now(device: torch.device) -> float:
    """Return the time in seconds when a device has done all it was given.

    Args:
        device: a CPU or a GPU, whose queue is waited for.

    Returns:
        float: of a monotonic clock.

    Source: ours.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


class AmateurProcessor(LogitsProcessor):
    """The amateur inside `generate` of the expert: what people write first.

    Args:
        amateur: the other model.
        plausibility: alpha in (0, 1].
        cached: False runs the amateur on the whole prefix at each step, as a processor that is
            given ids alone does; True keeps a cache between the steps of one `generate`.
    """

    def __init__(self, amateur: PreTrainedModel, *, plausibility: float, cached: bool) -> None:
        self.amateur, self.plausibility = amateur, plausibility
        self.cache = DynamicCache(config=amateur.config) if cached else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return contrastive scores [B, V] of the next token."""
        inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
        if self.cache is not None:
            unread = input_ids[:, self.cache.get_seq_length() :]
            inputs = {"input_ids": unread, "use_cache": True, "past_key_values": self.cache}
        logits = self.amateur(**inputs, logits_to_keep=1).logits[:, -1]
        return naive_scores(scores, logits, plausibility=self.plausibility)


def with_processor(
    models: tuple[PreTrainedModel, PreTrainedModel],
    prompts: Tensor,
    n: int,
    *,
    plausibility: float,
    cached: bool,
) -> tuple[Tensor, float]:
    """Sample with `generate` of the expert and the amateur in a logits processor.

    Args:
        models: expert and amateur.
        prompts: int64 [B, T], without padding.
        n: tokens of each row; nothing stops earlier.
        plausibility: alpha in (0, 1].
        cached: see `AmateurProcessor`.

    Returns:
        (int64 [B, n], float): the tokens; seconds of the whole call.

    Source: transformers' `guidance_scale` is the nearest thing that ships (and keeps a cache).
    """
    expert, amateur = models
    processor = AmateurProcessor(amateur, plausibility=plausibility, cached=cached)
    start = now(prompts.device)
    made = expert.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        logits_processor=LogitsProcessorList([processor]),
        do_sample=True,
        max_new_tokens=n,
        min_new_tokens=n,
    )
    return made[:, prompts.shape[1] :], now(prompts.device) - start
