"""Static batches: rows of similar length, left-padded, decoded together until all have ended.

Rows that have ended are taken out once they are a share of the batch (compaction), so the longest
responses are computed among few. The plan is a pure function of the rows, unless memory is short.
What has no source is ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel

from codit.engine.cache import cache_name, growing_cache, takes
from codit.engine.memory import fewer_rows, is_exhausted, rows_that_fit
from codit.engine.packed import packed_weights
from codit.engine.sampling import Batch, Drawn, uniforms
from codit.engine.sparse import Candidates

ROWS = 64  # of a batch unless the caller says otherwise
PREFILL_TOKENS = 16_384  # of a batch's prompts, read at once: bounds the activations
ENDED = 0.125  # share of a batch's rows: that many have ended, and they are taken out


def static(model: PreTrainedModel, batch: Batch) -> Drawn:
    """Yield what is drawn for each row, batch by batch, shortest prompts first.

    A size of None is 64 rows, or fewer where memory is short. Where it runs out, the batch is
    halved and computed again, and so are those that follow; RuntimeError if one row does not fit.
    """
    rows, longest = batch.rows, int(batch.step.decoding.max_new_tokens)
    order = sorted(rows, key=lambda i: len(rows[i]))
    most, start = batch.size or ROWS, 0
    with packed_weights(model, rows=len(rows), tokens=longest):
        while start < len(order):
            some = order[start : start + most]
            if batch.size is None:
                some = some[: rows_that_fit(model, len(rows[some[-1]]) + longest, most=most)]
            try:
                drawn = _decode(model, batch, some)
            except (RuntimeError, MemoryError) as error:
                if not is_exhausted(error):
                    raise
                drawn = None
                if len(some) == 1:
                    raise RuntimeError(
                        f"expected room for one row of {len(rows[some[0]])} prompt tokens and up "
                        f"to {longest} new ones; the memory of {model.device} ran out. Lower "
                        "max_new_tokens, leave the row out, or take a larger device."
                    ) from error
            if drawn is None:  # here, for the error holds on to what failed
                most = fewer_rows(len(some))
                continue
            yield from ((i, *row) for i, row in zip(some, drawn, strict=True))
            start += len(some)


@torch.inference_mode()
def _decode(
    model: PreTrainedModel, batch: Batch, rows: list[int]
) -> list[tuple[list[int], list[float]]]:
    """Decode some rows of a batch to the end of the longest."""
    step, most = batch.step, int(batch.step.decoding.max_new_tokens)
    key = torch.tensor([batch.keys[i] for i in rows], device=model.device)
    stops = torch.tensor(batch.stops, device=model.device)
    runner = model.runner(batch) if hasattr(model, "runner") else Runner(model, batch)
    scores = runner.prompts([batch.rows[i] for i in rows])
    drawn: list[tuple[list[int], list[float]]] = [([], []) for _ in rows]
    places = list(range(len(rows)))  # of those still computed among `rows`
    going = [True] * len(rows)
    for t in range(most):
        batch.meter.show(f"step {t + 1} of {most}, {sum(going)} rows")
        noise = uniforms(key, torch.full_like(key, t))
        tokens, logprobs = step.draw(scores, noise.to(_device(scores)))
        ended = (torch.isin(tokens, stops.to(tokens.device)) | logprobs.isnan()).tolist()
        for row, (token, logprob) in enumerate(
            zip(tokens.tolist(), logprobs.tolist(), strict=True)
        ):
            if going[row]:
                drawn[places[row]][0].append(token)
                drawn[places[row]][1].append(logprob)
                going[row] = not ended[row]
        if not any(going) or t + 1 == most:
            break
        tokens = tokens.to(model.device)
        if sum(going) <= (1 - ENDED) * len(going):
            kept = [row for row, goes in enumerate(going) if goes]
            index = torch.tensor(kept, device=model.device)
            runner.keep(index)
            tokens, key = tokens[index], key[index]
            places, going = [places[row] for row in kept], [True] * len(kept)
        scores = runner.tokens(tokens)
    return drawn


class Runner:
    """A model, its cache and its mask, fed the prompts once and then a token of each row."""

    def __init__(self, model: PreTrainedModel, batch: Batch) -> None:
        self.model, self.step, self.pad = model, batch.step, batch.pad
        self.cache: Cache = growing_cache(model.config)
        self.mask: Tensor | None = None
        self.position = torch.empty(0, dtype=torch.long)
        self.takes, self.cache_name = takes(type(model)), cache_name(type(model))

    def prompts(self, prompts: list[list[int]]) -> Tensor | Candidates:
        """Read left-padded prompts in chunks, and return what `Step.draw` takes."""
        device, width, pad = self.model.device, max(map(len, prompts)), self.pad
        ids = torch.tensor([[pad] * (width - len(row)) + row for row in prompts], device=device)
        lengths = torch.tensor([len(row) for row in prompts], device=device)
        place = torch.arange(width, device=device)
        first = width - lengths[:, None]
        positions = (place - first).clamp(min=0)
        padded = min(map(len, prompts)) < width
        mask = (place >= first).long() if padded else None  # no mask: the quickest attention
        is_whole = getattr(self.model, "reads_whole", False)  # something acts on its last position
        chunk = width if is_whole else max(1, PREFILL_TOKENS // len(prompts))
        for start in range(0, width, chunk):
            end = min(start + chunk, width)
            seen = None if mask is None else mask[:, :end]
            outputs = self._run(ids[:, start:end], seen, positions[:, start:end])
        self.mask, self.position = mask, lengths[:, None]
        if (kept := self.cache.get_seq_length()) != width:
            raise RuntimeError(
                f"expected a {type(self.model).__name__} to keep the {width} tokens that it read; "
                f"its cache holds {kept}. Use a model whose forward fills the cache it is given."
            )
        return self._scores(outputs)

    def tokens(self, tokens: Tensor) -> Tensor | Candidates:
        """Read one more token of each row, int64 [B], and return what `Step.draw` takes."""
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
        outputs = self._run(tokens[:, None], self.mask, self.position)
        self.position = self.position + 1
        return self._scores(outputs)

    def keep(self, index: Tensor) -> None:
        """Go on with the rows of `index` only."""
        for layer in self.cache.layers:
            layer.batch_select_indices(index)
        self.position = self.position[index]
        if self.mask is not None:
            self.mask = self.mask[index]

    def _run(self, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Any:
        inputs: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": True}
        inputs[self.cache_name] = self.cache
        if self.step.is_pair:
            inputs["sparse"] = True
        # Some forwards do without: they take positions from the mask, and return all logits.
        spare = {"position_ids": positions, "logits_to_keep": 1}
        inputs |= {k: v for k, v in spare.items() if {k, "kwargs"} & self.takes}
        return self.model(**inputs)

    def _scores(self, outputs: Any) -> Tensor | Candidates:
        if self.step.is_pair:
            found = outputs.candidates
            return outputs.logits[:, -1] if found is None else found
        return self.step.narrow(outputs.logits[:, -1])


def _device(scores: Tensor | Candidates) -> torch.device:
    """Return where scores lie: with a device map, where the model's last layer is."""
    return scores.ids.device if isinstance(scores, Candidates) else scores.device
