"""How tokens are drawn: one step, and the two engines that repeat it.

The loop around a step is the library's, `generate` or continuous batching over a paged cache. One
logits processor of ours draws each row's token by inverting the distribution function at the
row's uniform number, and forces it.

Notation: B rows computed at once, V ids of the vocabulary, t a step from 0, q the model's or the
pair's next-token distribution, u a uniform number in [0, 1).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import (
    ContinuousBatchingConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.generation import TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.requests import FutureRequestState
from transformers.generation.continuous_batching.utils import WorkloadHints

from codit.contrast import contrast, sample
from codit.noise import uniforms
from codit.recipes import Decoding

Drawn = Iterator[tuple[int, list[int], list[float]]]  # row, tokens, log q of each in nats

GREEDY = 1e-5  # a lower temperature is the arg max, as in the engine the authors use
STATIC_ROWS = 64  # rows of a static batch unless the caller says otherwise (ours)


class Meter:
    """A progress bar in rows, with tokens/s beside it.

    Args:
        total: rows to come.
        shown: False keeps it silent.
    """

    def __init__(self, total: int, shown: bool) -> None:
        # leave=None: inside another bar, such as a synthesis's, this one goes when it is done.
        self.bar = tqdm(total=total, unit="row", disable=not shown, desc="responses", leave=None)
        self.tokens, self.start, self.shown_at = 0, time.monotonic(), 0.0

    def add(self, *, rows: int, tokens: int = 0) -> None:
        """Count finished rows and their tokens."""
        self.tokens += tokens
        self.bar.set_postfix_str(self._rate(), refresh=False)
        self.bar.update(rows)

    def show(self, note: str) -> None:
        """Write a note behind the rate, at most twice a second."""
        if not self.bar.disable and time.monotonic() - self.shown_at > 0.5:
            self.bar.set_postfix_str(f"{self._rate()}, {note}")
            self.shown_at = time.monotonic()

    def _rate(self) -> str:
        rate = self.tokens / max(time.monotonic() - self.start, 1e-9)
        return f"{self.tokens} tokens, {rate:.0f} tokens/s"


@dataclass(frozen=True)
class Step:
    """The drawing of one token for each of B rows.

    Args:
        decoding: temperature, top_k, top_p; for a single model also plausibility.
        vocabulary: number of ids the tokenizer knows; later columns are padding.
        is_pair: whether scores come from a pair, which has masked and contrasted them.
    """

    decoding: Decoding
    vocabulary: int
    is_pair: bool

    def draw(self, scores: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a token from each row of next-token scores.

        log q = scores of a pair, or contrast(scores; strength 0, plausibility) of one model;
        s = top-p(top-k(log q / temperature));
        token = smallest id with cdf of softmax(s) > u, or the arg max at temperature < 1e-5.

        Args:
            scores: [B, V] as the model returns them.
            noise: float64 [B], uniform in [0, 1).

        Returns:
            (int64 [B], float32 [B]): tokens, and log q of each in nats.

        Source: the authors' order (their sampler's, given contrastive scores).
        """
        how, logq = self.decoding, scores[:, : self.vocabulary].float()
        if not self.is_pair:  # a pair has done this, and more
            logq = contrast(logq, None, strength=0.0, plausibility=how.plausibility)
        if how.temperature < GREEDY:
            tokens = logq.argmax(dim=-1)
        else:
            warped = logq / how.temperature
            if how.top_k:
                warped = TopKLogitsWarper(int(how.top_k))(None, warped)
            if how.top_p < 1.0:
                warped = TopPLogitsWarper(how.top_p)(None, warped)
            tokens = sample(warped, noise)
        return tokens, logq.gather(1, tokens[:, None])[:, 0]

    def force(self, scores: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores [B, V] whose arg max is the token drawn, and its log q [B]."""
        tokens, logprobs = self.draw(scores, noise)
        forced = torch.full_like(scores, float("-inf")).scatter(1, tokens[:, None], 0.0)
        return forced, logprobs


class StaticSampler(LogitsProcessor):
    """Forces the tokens drawn for a left-padded batch; its step is the length of the ids."""

    def __init__(self, step: Step, keys: Tensor, width: int, meter: Meter) -> None:
        self.step, self.keys, self.width, self.meter = step, keys, width, meter
        self.logprobs: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return scores [B, V] that leave no choice but the tokens drawn."""
        t = input_ids.shape[1] - self.width
        self.meter.show(f"step {t + 1} of {self.step.decoding.max_new_tokens}")
        noise = uniforms(self.keys, torch.full_like(self.keys, t))
        forced, logprobs = self.step.force(scores, noise)
        self.logprobs.append(logprobs)
        return forced


def static(
    model: PreTrainedModel,
    step: Step,
    rows: Mapping[int, list[int]],
    keys: Mapping[int, int],
    batch_size: int | None,
    meter: Meter,
) -> Drawn:
    """Yield what `generate` draws, batch by batch; the plan is a pure function of the rows."""
    order = sorted(rows, key=lambda i: len(rows[i]))
    size = batch_size or STATIC_ROWS
    pad = model.generation_config.pad_token_id
    for batch in (order[start : start + size] for start in range(0, len(order), size)):
        width = len(rows[batch[-1]])
        ids = torch.tensor([[pad] * (width - len(rows[i])) + rows[i] for i in batch])
        mask = torch.tensor([[0] * (width - len(rows[i])) + [1] * len(rows[i]) for i in batch])
        key = torch.tensor([keys[i] for i in batch], device=model.device)
        sampler = StaticSampler(step, key, width, meter)
        drawn = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=model.generation_config,
            logits_processor=LogitsProcessorList([sampler]),
        )
        logprobs = torch.stack(sampler.logprobs, dim=1).tolist()
        yield from zip(batch, drawn[:, width:].tolist(), logprobs, strict=True)


class PagedSampler(ContinuousBatchingLogitsProcessor):
    """Forces the tokens drawn in a paged batch, where every request is at a step of its own.

    A request's argument is its cell, row · max_new_tokens + step: one 32-bit number from which
    the noise is computed, and where log q is kept. The last cell takes what nobody reads: warm-up
    requests, padding, and the step an asynchronous loop computes after a response's end.
    """

    supported_kwargs: ClassVar[dict[str, type]] = {}
    ignored_kwargs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, step: Step, lengths: list[int], keys: list[int], device: Any) -> None:
        self.step, self.lengths, self.size = step, lengths, int(step.decoding.max_new_tokens)
        self.nowhere = len(keys) * self.size
        if self.nowhere >= 2**31:
            raise ValueError(
                f"expected fewer than {2**31 // self.size} rows at {self.size} new tokens each; "
                f"got {len(keys)}. Decode them in parts, with ids that stay unique."
            )
        self.keys = torch.tensor([*keys, 0], device=device)
        self.logprobs = torch.empty(self.nowhere + 1, device=device)  # read where written
        self.width = 0

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Fill the arguments of rows that are no request."""
        int32_tensor.fill_(self.nowhere)

    def prepare_tensor_args(self, requests_with_new_token: list[FutureRequestState]) -> Tensor:
        """Return the cells, int32, of a batch's requests in their order."""
        cells = [self._cell(request.state) for request in requests_with_new_token]
        # The library keeps the arguments of earlier, larger batches: overwrite them.
        self.width = max(self.width, len(cells))
        cells += [self.nowhere] * (self.width - len(cells))
        return torch.tensor(cells, dtype=torch.int32)

    def _cell(self, state: Any) -> int:
        """Return the cell of a request; its position is already advanced to this step's."""
        if not state.request_id.isdecimal():
            return self.nowhere
        row = int(state.request_id)
        t = state.position_offset - self.lengths[row]
        return row * self.size + t if 0 <= t < self.size else self.nowhere

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """Return scores [B, V] that leave no choice but the tokens drawn; keep their log q."""
        cells = tensor_arg[: scores.shape[0]].long()
        noise = uniforms(self.keys[cells // self.size], cells % self.size)
        forced, logprobs = self.step.force(scores, noise)
        self.logprobs[cells] = logprobs
        return forced


def continuous(
    model: PreTrainedModel,
    step: Step,
    rows: Mapping[int, list[int]],
    keys: Mapping[int, int],
    batch_size: int | None,
    meter: Meter,
) -> Drawn:
    """Yield what continuous batching draws, each row when it ends."""
    order = list(rows)
    if not order:
        return
    prompts = [rows[i] for i in order]
    sampler = PagedSampler(
        step, [len(prompt) for prompt in prompts], [keys[i] for i in order], model.device
    )
    with _manager(model, sampler, prompts, batch_size) as manager:
        for row, prompt in enumerate(prompts):
            manager.add_request(prompt, request_id=str(row))
        waiting = set(range(len(order)))
        while waiting:
            result = manager.get_result(timeout=1)
            if result is not None and result.error is None:
                row, drawn = int(result.request_id), result.generated_tokens
                waiting.remove(row)
                cells = slice(row * sampler.size, row * sampler.size + len(drawn))
                yield order[row], drawn, sampler.logprobs[cells].tolist()
            elif result is not None or not manager.is_running():
                raise RuntimeError(
                    f"expected {len(order)} responses; continuous batching stopped with "
                    f"{len(waiting)} to come: {result.error if result else 'no reason given'}. "
                    "Lower batch_size, or use engine='static'."
                )


@contextmanager
def _manager(
    model: PreTrainedModel, sampler: PagedSampler, prompts: list[list[int]], rows: int | None
) -> Iterator[Any]:
    """Run the library's continuous batching with one processor, and leave the model as it was."""
    longest = max(len(prompt) for prompt in prompts)
    hints = WorkloadHints(longest, sampler.size, len(prompts))
    attention = model.config._attn_implementation
    manager = model.init_continuous_batching(
        continuous_batching_config=_paging(model, hints, rows), workload_hints=hints
    )
    processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([sampler]))
    processors.tensors_required = 1  # counted by the library for processors it converts itself
    manager.logit_processor = processors
    try:
        manager.warmup()
        manager.start()
        yield manager
    finally:
        manager.stop(block=True, hard_stop=True)
        manager.destroy()
        if model.config._attn_implementation != attention:
            model.set_attn_implementation(attention)


def _paging(
    model: PreTrainedModel, hints: WorkloadHints, rows: int | None
) -> ContinuousBatchingConfig:
    """Return the cache's size: what the GPU has left, or on a CPU what the rows need."""
    config = ContinuousBatchingConfig(max_requests_per_batch=rows, max_memory_percent=0.8)
    if model.device.type != "cuda":
        at_once = min(rows or STATIC_ROWS, hints.num_requests)
        length = hints.max_prompt_length + hints.max_generated_length
        config.page_size = 32
        config.num_blocks = at_once * (length // config.page_size + 2)
        config.max_requests_per_batch = at_once
        config.max_batch_tokens = max(256, at_once)
    return config
