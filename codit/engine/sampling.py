"""Addressed noise: the uniform number of every step of every response, without a state.

The number that draws step t of a response is a pure function of (seed, id, sample, t). So two
prompts, or two samples of one prompt, never share noise, equal addresses repeat, and nothing
depends on batches, their order or the machine that draws them.

What every engine shares: how one token is drawn, what a call asks for, the bar that counts.

Notation: B rows computed at once, V ids of the vocabulary, K plausible ones at most in a row, t a
step from 0, q the model's or the pair's next-token distribution, u a uniform number in [0, 1).
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.generation import TopKLogitsWarper, TopPLogitsWarper

from codit.contrast import contrast, sample
from codit.engine.sparse import Candidates, candidates, contrast_candidates
from codit.recipes import Decoding


def default_ids(token_ids: Sequence[Sequence[int]]) -> list[str]:
    """Return names for rows without ids: the prompt's hash and its number among equal prompts.

    Args:
        token_ids: `prompt_ids` of every row of the input. Of a part of it, equal prompts in
            different parts would share a name.

    Returns:
        list[str]: 16 hexadecimal digits, "-", the occurrence from 0. No two are equal.

    Source: ours.
    """
    seen: Counter[str] = Counter()
    names = []
    for row in token_ids:
        digest = hashlib.blake2b(np.asarray(row, dtype="<i8").tobytes(), digest_size=8).hexdigest()
        names.append(f"{digest}-{seen[digest]}")
        seen[digest] += 1
    return names


def noise_key(seed: int, name: Any, sample: int) -> int:
    """Return the 64 bits (as a signed integer) that name a response's row of the noise table.

    key = BLAKE2b-64("seed/sample/id"), so two ids, samples or seeds share no noise.

    Source: ours.
    """
    words = f"{int(seed)}/{int(sample)}/{name}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little", signed=True)


def uniforms(keys: Tensor, steps: Tensor) -> Tensor:
    """Return the noise table's entries u[key, step].

    u = (mix(key + mix(step · γ)) >> 11) · 2⁻⁵³ with the mix and γ of splitmix64.

    Args:
        keys: int64, `noise_key`s.
        steps: int64, broadcastable to keys; tokens drawn so far.

    Returns:
        float64 in [0, 1), the shape of both broadcast: equal on every device.

    Source: Steele, Lea, Flood 2014 (splitmix64); its use as a table: ours.
    """
    golden = 0x9E3779B97F4A7C15 - 2**64  # γ as a signed number; products wrap around
    mixed = _mix(keys + _mix((steps + 1) * golden))
    return _shift(mixed, 11).double() * 2.0**-53


def _mix(bits: Tensor) -> Tensor:
    """Return splitmix64's finalizer of int64 numbers."""
    bits = (bits ^ _shift(bits, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    bits = (bits ^ _shift(bits, 27)) * (0x94D049BB133111EB - 2**64)
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, by: int) -> Tensor:
    """Return a logical shift to the right: torch's copies the sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


Drawn = Iterator[tuple[int, list[int], list[float]]]  # row, tokens, log q of each in nats

GREEDY = 1e-5  # a lower temperature is the arg max, as in the engine the authors use


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

    def narrow(self, logits: Tensor) -> Tensor | Candidates:
        """Return log q of a single model's plausible ids, or its logits where these are many.

        Not within a CUDA graph: the number of plausible ids is a value, and a shape here.

        Args:
            logits: [B, V] as the model returns them.

        Returns:
            Candidates | Tensor: what `draw` takes.

        Source: ours.
        """
        logits = logits[:, : self.vocabulary]
        found = candidates(logits, plausibility=self.decoding.plausibility)
        return logits if found is None else contrast_candidates(found, None, strength=0.0)

    def draw(self, scores: Tensor | Candidates, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a token from each row of next-token scores.

        log q = scores of a pair, or contrast(scores; strength 0, plausibility) of one model;
        s = top-p(top-k(log q / temperature));
        token = smallest id with cdf of softmax(s) > u, or the arg max at temperature < 1e-5.

        Args:
            scores: [B, V] as the model returns them, or log q of the plausible ids.
            noise: float64 [B], uniform in [0, 1).

        Returns:
            (int64 [B], float32 [B]): tokens, and log q of each in nats; NaN where the model gave
            no distribution.

        Source: the authors' order (their sampler's, given contrastive scores).
        """
        how = self.decoding
        if isinstance(scores, Candidates):
            logq = scores.scores
        else:
            logq = scores[:, : self.vocabulary].float()
            if not self.is_pair:  # a pair has done this, and more
                logq = contrast(logq, None, strength=0.0, plausibility=how.plausibility)
        if how.temperature < GREEDY:
            drawn = logq.argmax(dim=-1)
        else:
            warped = logq / how.temperature
            if how.top_k:
                warped = TopKLogitsWarper(int(how.top_k))(None, warped)
            if how.top_p < 1.0:
                warped = TopPLogitsWarper(how.top_p)(None, warped)
            drawn = sample(warped, noise)
        drawn = drawn[:, None]
        tokens = scores.ids.gather(1, drawn) if isinstance(scores, Candidates) else drawn
        return tokens[:, 0], logq.gather(1, drawn)[:, 0]

    def force(self, scores: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores [B, V] whose arg max is the token drawn, and its log q [B]."""
        tokens, logprobs = self.draw(scores, noise)
        forced = torch.full_like(scores, float("-inf")).scatter(1, tokens[:, None], 0.0)
        return forced, logprobs


@dataclass(frozen=True)
class Batch:
    """What an engine is asked for in one call.

    Args:
        step: how a token is drawn.
        rows: prompts as token ids, by the row's number.
        keys: the rows' noise keys.
        size: rows computed at once. None: the engine's choice.
        meter: shows what is under way.
    """

    step: Step
    rows: Mapping[int, list[int]]
    keys: Mapping[int, int]
    size: int | None
    meter: Meter


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off for a `with` block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


@contextmanager
def undisturbed(
    model: PreTrainedModel,
    decoding: Decoding,
    tokenizer: PreTrainedTokenizerBase,
    stops: Sequence[int],
) -> Iterator[None]:
    """Keep dropout and a checkpoint's own generation config out of what is drawn in a block."""
    pad = tokenizer.pad_token_id
    before = model.generation_config
    # It may hold penalties, temperatures and limits, which `generate` would mix in. The draw is
    # ours, so its arg max is the token.
    model.generation_config = GenerationConfig(
        max_new_tokens=int(decoding.max_new_tokens),
        do_sample=False,
        eos_token_id=list(stops),
        pad_token_id=min(stops) if pad is None else pad,
    )
    try:
        with evaluating(model):
            yield
    finally:
        model.generation_config = before
