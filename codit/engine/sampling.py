"""How a token is drawn, alike in every engine: the sampling rules, one step, and its noise.

`warped` is the place of the sampling rules: a new one is a field of `recipes.Decoding` and lines
there. Noise has an address: the number that draws step t of a response is a pure function of (seed,
id, sample, t). So two prompts, or two samples of one, never share noise, equal addresses repeat,
and nothing depends on batches, their order or the machine. What has no source is ours.

Notation: B rows computed at once, V ids of the vocabulary, K plausible ones at most in a row, t a
step from 0, q the model's or the pair's next-token distribution, u a uniform number in [0, 1).
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers.generation import TopKLogitsWarper, TopPLogitsWarper

from codit.contrast import contrast, sample
from codit.engine.sparse import Candidates, candidates, contrast_candidates
from codit.recipes import Decoding

GREEDY = 1e-5  # a lower temperature is the arg max, as in the engine the authors use


def warped(logq: Tensor, how: Decoding) -> Tensor:
    """Apply the sampling rules, in the authors' order, to log q [B, V or K]; -inf is never drawn.

    scores = top-p(top-k(log q / temperature))
    """
    scores = logq / how.temperature
    if how.top_k:
        scores = TopKLogitsWarper(int(how.top_k))(None, scores)
    if how.top_p < 1.0:
        scores = TopPLogitsWarper(how.top_p)(None, scores)
    return scores


@dataclass(frozen=True)
class Step:
    """The drawing of one token for each of B rows.

    Args:
        decoding: the sampling rules; for a single model also plausibility.
        vocabulary: the tokenizer's highest id + 1; later columns are padding.
        is_pair: whether scores come from a pair, which has masked and contrasted them.
        unused: ids below `vocabulary` that are no token.
    """

    decoding: Decoding
    vocabulary: int
    is_pair: bool
    unused: tuple[int, ...] = ()

    def draw(self, scores: Tensor | Candidates, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return a token of each row, int64 [B], and its log q, float32 [B].

        token = smallest id with cdf of softmax(warped(log q)) > u; arg max at temperature < 1e-5

        Scores are [B, V] as the model returns them, or log q of the plausible ids; noise is float64
        [B] in [0, 1). log q is before the sampling rules; NaN where the model gave no distribution.
        """
        if isinstance(scores, Candidates):
            logq = scores.scores
        else:
            logq = self.cut(scores).float()
            if not self.is_pair:  # a pair has done this, and more
                logq = contrast(logq, None, strength=0.0, plausibility=self.decoding.plausibility)
        if self.decoding.temperature < GREEDY:
            drawn = logq.argmax(dim=-1, keepdim=True)
        else:
            drawn = sample(warped(logq, self.decoding), noise)[:, None]
        tokens = scores.ids.gather(1, drawn) if isinstance(scores, Candidates) else drawn
        return tokens[:, 0], logq.gather(1, drawn)[:, 0]

    def force(self, scores: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores [B, V] whose arg max is the token drawn, and its log q [B]."""
        tokens, logprobs = self.draw(scores, noise)
        forced = torch.full_like(scores, float("-inf")).scatter(1, tokens[:, None], 0.0)
        return forced, logprobs

    def cut(self, logits: Tensor) -> Tensor:
        """Return logits [B, V] of tokens alone: -inf where an id is none."""
        logits = logits[:, : self.vocabulary]
        if not self.unused:
            return logits
        return logits.index_fill(1, torch.tensor(self.unused, device=logits.device), -torch.inf)

    def narrow(self, logits: Tensor) -> Tensor | Candidates:
        """Return log q of one model's plausible ids, or its logits [B, V] where these are many.

        Not within a CUDA graph: the number of plausible ids is a value, and a shape here.
        """
        logits = self.cut(logits)
        found = candidates(logits, plausibility=self.decoding.plausibility)
        return logits if found is None else contrast_candidates(found, None, strength=0.0)


def noise_key(seed: int, name: Any, sample: int) -> int:
    """Return the 64 bits (as a signed integer) that name a response's row of the noise table.

    key = BLAKE2b-64("seed/sample/id"), so two ids, samples or seeds share no noise.
    """
    words = f"{int(seed)}/{int(sample)}/{name}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.blake2b(words, digest_size=8).digest(), "little", signed=True)


def uniforms(keys: Tensor, steps: Tensor) -> Tensor:
    """Return the noise table's entries u[key, step], float64 in [0, 1), equal on every device.

    u = (mix(key + mix(step · γ)) >> 11) · 2⁻⁵³ with the mix and γ of splitmix64 (Steele, Lea, Flood
    2014). Keys are int64 `noise_key`s; steps, int64 and broadcastable to keys, tokens drawn so far.
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


def default_ids(token_ids: Sequence[Sequence[int]]) -> list[str]:
    """Return names for rows without ids: the prompt's hash and its number among equal prompts.

    Give the `prompt_ids` of all rows: equal prompts in different parts would share a name.
    """
    seen: Counter[str] = Counter()
    names = []
    for row in token_ids:
        digest = hashlib.blake2b(np.asarray(row, dtype="<i8").tobytes(), digest_size=8).hexdigest()
        names.append(f"{digest}-{seen[digest]}")
        seen[digest] += 1
    return names


class Meter:
    """A progress bar in rows, with tokens/s beside it."""

    def __init__(self, total: int, shown: bool) -> None:
        # leave=None: inside another bar, such as a synthesis's, this one goes when it is done. Only
        # a terminal can move its cursor between the two.
        how: dict[str, Any] = {"leave": None, "position": None if sys.stderr.isatty() else 0}
        self.bar = tqdm(total=total, unit="row", disable=not shown, desc="responses", **how)
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


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What an engine is asked for in one call.

    Args:
        step: how a token is drawn.
        rows: prompts as token ids, by the row's number.
        keys: the rows' noise keys.
        stops: ids that end a response.
        pad: id that fills up shorter prompts.
        size: rows computed at once. None: the engine's choice.
        meter: shows what is under way.
    """

    step: Step
    rows: Mapping[int, list[int]]
    keys: Mapping[int, int]
    stops: Sequence[int]
    pad: int
    size: int | None
    meter: Meter


Drawn = Iterator[tuple[int, list[int], list[float]]]
"""What an engine yields: a row's number, its tokens, and log q of each in nats."""
