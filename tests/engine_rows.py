"""Rows that engines decode, and what they draw for them."""

from __future__ import annotations

import torch

from codit.engine.sampling import Batch, Meter, Step, noise_key
from codit.recipes import Decoding
from tests import tiny

PROMPTS = {4: [7, 8, 9], 0: [5] * 9, 2: [6, 5], 9: [9, 9, 9, 9]}
KEYS = {row: noise_key(0, row, 0) for row in PROMPTS}


def scores(rows: int, *, width: int = 40, seed: int = 0) -> torch.Tensor:
    """Random next-token scores."""
    return 3 * torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def step(width: int = 40, *, is_pair: bool = False, **decoding: float) -> Step:
    """A step over `width` ids that draws as `decoding` says."""
    values = {"strength": 0.0, "plausibility": 0.0, "max_new_tokens": 8} | decoding
    return Step(Decoding(**values), width, is_pair=is_pair)


def model_and_step(**decoding: float) -> tuple[object, Step]:
    """A tiny model, and a step of 12 tokens."""
    return tiny.model("llama", seed=3, scale=4.0), step(280, max_new_tokens=12, **decoding)


def batch(how: Step, size: int | None = None, rows=PROMPTS, keys=KEYS, stops=(-1,)) -> Batch:
    """What an engine is asked for; no token stops it unless some are named."""
    meter = Meter(len(rows), shown=False)
    return Batch(step=how, rows=rows, keys=keys, stops=stops, pad=0, size=size, meter=meter)


def drawn_by(engine, batch_size: int | None = None, prompts=None) -> dict[int, tuple]:
    """What an engine draws, by row."""
    model, how = model_and_step()
    rows = engine(model, batch(how, batch_size, PROMPTS if prompts is None else prompts))
    return {row: (tokens, logprobs) for row, tokens, logprobs in rows}
