"""Continuous batching: rows that end make room for the next, over the library's paged cache.

The loop is the library's. One logits processor of ours draws each row's token by inverting the
distribution function at the row's uniform number, and forces it. What has no source is ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.requests import FutureRequestState
from transformers.generation.continuous_batching.utils import WorkloadHints

from codit.engine.memory import fewer_rows, is_exhausted
from codit.engine.sampling import Batch, Drawn, Step, uniforms

ROWS_ON_A_CPU = 64  # at once, unless the caller says otherwise
MEMORY = 0.8  # share of a GPU's free memory that pages take
MOST_ROWS = 256  # what is halved first where the library chose how many


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


def continuous(model: PreTrainedModel, batch: Batch) -> Drawn:
    """Yield what continuous batching draws, each row when it ends.

    A size of None is as many rows as fit. Where memory runs out, the rows that have not ended begin
    again, half as many at once; RuntimeError if one row does not fit or the loop stopped otherwise.
    """
    waiting, at_once, share = dict(batch.rows), batch.size, MEMORY
    while waiting:
        exhausted = False
        try:
            rest = replace(batch, rows=dict(waiting), size=at_once)
            for i, drawn, logprobs in _batched(model, rest, share):
                del waiting[i]
                yield i, drawn, logprobs
        except RuntimeError as error:
            tried = min(at_once or MOST_ROWS, len(waiting))
            if not is_exhausted(error) or tried == 1:
                raise
            exhausted = True
        if exhausted:  # here, for the error holds on to what failed
            at_once, share = fewer_rows(tried), 0.75 * share


def _batched(model: PreTrainedModel, batch: Batch, share: float) -> Drawn:
    """Yield what one run of the library's loop draws."""
    order, keys = list(batch.rows), [batch.keys[i] for i in batch.rows]
    lengths = [len(prompt) for prompt in batch.rows.values()]
    sampler = PagedSampler(batch.step, lengths, keys, model.device)
    with _manager(model, sampler, batch, share) as manager:
        for row, prompt in enumerate(batch.rows.values()):
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
                ) from manager.background_thread_status.fatal_error


@contextmanager
def _manager(
    model: PreTrainedModel, sampler: PagedSampler, batch: Batch, share: float
) -> Iterator[Any]:
    """Run the library's continuous batching with one processor, and leave the model as it was."""
    hints = WorkloadHints(max(sampler.lengths), sampler.size, len(sampler.lengths))
    attention = model.config._attn_implementation
    manager = model.init_continuous_batching(
        # Not the model's own, which may hold penalties, temperatures and limits.
        GenerationConfig(
            max_new_tokens=sampler.size,
            do_sample=False,  # the draw is ours, so its arg max is the token
            eos_token_id=list(batch.stops),
            pad_token_id=batch.pad,
        ),
        continuous_batching_config=_paging(model, hints, batch.size, share),
        workload_hints=hints,
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
    model: PreTrainedModel, hints: WorkloadHints, rows: int | None, share: float
) -> ContinuousBatchingConfig:
    """Return the cache's size: what the GPU has left, or on a CPU what the rows need."""
    config = ContinuousBatchingConfig(max_requests_per_batch=rows, max_memory_percent=share)
    if model.device.type != "cuda":
        at_once = min(rows or ROWS_ON_A_CPU, hints.num_requests)
        length = hints.max_prompt_length + hints.max_generated_length
        config.page_size = 32
        config.num_blocks = at_once * (length // config.page_size + 2)
        config.max_requests_per_batch = at_once
        config.max_batch_tokens = max(256, at_once)
    return config
