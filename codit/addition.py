"""A model plus chat vectors, as a collection of tensors that is computed when it is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from codit.tensor_files import FLOATS, Block, Shape, Tensors
from codit.tensor_match import Match, check_finite, matched
from codit.tensor_names import VOCABULARY, module_of
from codit.vector_files import Opened


@dataclass(frozen=True)
class Addition:
    """The new weights, and how each vector matched the old ones.

    As the tensors are read, `count` counts "changes", the numbers that a vector moves, and "lost",
    those of them that the target's dtype rounds back to where they were.
    """

    tensors: Tensors
    matches: list[Match]
    count: Counter[str]


def plus(
    base: Tensors,
    parts: Sequence[tuple[Opened, float]],
    *,
    skip_embed: bool,
) -> Addition:
    """Return theta' = theta + sum_i r_i tau_i, in the dtypes of theta.

    What no vector touches keeps its bytes, and so does a number where the change is zero.

    Args:
        base: theta.
        parts: every vector and its r_i.
        skip_embed: see `codit.chat_vector.add`.

    Returns:
        Addition: nothing has been read yet.

    Raises:
        ValueError: another architecture; when read, a result that is not finite.

    Source: Huang et al. 2023, Chat Vector; float64 sums: ours.
    """
    matches = [_addable(part.tensors, base, skip_embed) for part, _ in parts]
    count: Counter[str] = Counter()

    def read(name: str, block: Block) -> Tensor:
        old = base.read(name, block)
        used = [(p, r, m) for (p, r), m in zip(parts, matches, strict=True) if name in m.shapes]
        if not used:
            return old
        change = torch.zeros(old.shape, dtype=torch.float64)
        for part, r, match in used:
            _accumulate(change, part.tensors, name, block, match.shapes[name], r)
        new = torch.where(change == 0, old, (old.double() + change).to(old.dtype))
        check_finite(new, name)
        count["changes"] += int((change != 0).sum())
        count["lost"] += int(((change != 0) & (new == old)).sum())
        return new

    return Addition(replace(base, read=read), matches, count)


def _addable(tau: Tensors, base: Tensors, skip_embed: bool) -> Match:
    """Match a vector with what it is added to; a part of an architecture is not enough."""
    if skip_embed:
        tau, base = (
            replace(t, shapes={n: s for n, s in t.shapes.items() if module_of(n) not in VOCABULARY})
            for t in (tau, base)
        )
    match = matched(tau, base)
    if match.mismatched:
        name, got, expected = match.mismatched[0]
        raise ValueError(
            f"expected {expected} of {name}, as {base.label} has it; got {got}, and "
            f"{len(match.mismatched)} tensors of another shape or dtype. A chat vector fits its "
            "own architecture only; for another vocabulary pass skip_embed=True."
        )
    kinds = {**tau.dtypes, **base.dtypes}
    alone = [
        name
        for name in (*match.missing, *match.extra)
        if module_of(name) not in VOCABULARY and kinds[name] in FLOATS
    ]
    if alone:
        raise ValueError(
            f"expected {base.label} to have the tensors of {tau.label}; got {len(alone)} that only "
            f"one of them has, such as {alone[0]}. A chat vector can be added within one "
            "architecture only."
        )
    return match


def _accumulate(
    change: Tensor, tau: Tensors, name: str, block: Block, shape: Shape, r: float
) -> None:
    """Add r times the vector's part of a block, whose last rows the vector may lack."""
    common = tuple(slice(b.start, min(b.stop, n)) for b, n in zip(block, shape, strict=True))
    if all(part.start < part.stop for part in common):
        inside = tuple(slice(0, part.stop - part.start) for part in common)
        change[inside] += r * tau.read(name, common).double()
