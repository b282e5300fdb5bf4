"""Addressed noise: the uniform number of every step of every response, without a state.

The number that draws step t of a response is a pure function of (seed, id, sample, t). So two
prompts, or two samples of one prompt, never share noise, equal addresses repeat, and nothing
depends on batches, their order or the machine that draws them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor


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
