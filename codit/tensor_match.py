"""Which tensors two collections share, and the difference of two as a collection of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from codit.tensor_files import FLOATS, Block, Shape, Tensors
from codit.tensor_names import VOCABULARY, module_of


@dataclass(frozen=True)
class Match:
    """What two collections have in common: `shapes`, those of tensors that can be compared.

    `missing` are names of the second that the first lacks, `extra` those of the first alone;
    `mismatched` lists (name, first, second) where dtypes or shapes rule a comparison out; `cut`
    lists (name, rows of the first, rows of the second, rows used) of vocabularies.
    """

    shapes: dict[str, Shape]
    missing: list[str]
    extra: list[str]
    mismatched: list[tuple[str, str, str]]
    cut: list[tuple[str, int, int, int]]

    def report(self) -> dict[str, Any]:
        """Return what was not compared, as JSON can hold it."""
        lists = {name: getattr(self, name) for name in ("missing", "extra", "mismatched", "cut")}
        return lists | {"matched": len(self.shapes)}


def matched(first: Tensors, second: Tensors, *, rows: int | None = None) -> Match:
    """Return which tensors two collections share, by name and shape, and which they do not.

    Embedding and head are compared in the rows that both have: vocabularies are resized or padded.

    Args:
        first: what is compared.
        second: what it is compared with.
        rows: ids of the vocabulary, `len(tokenizer)`; rows beyond are padding. None: all rows.

    Returns:
        Match: common shapes and, reported, all that is left out.

    Raises:
        ValueError: nothing in common, or fewer than one row.

    Source: ours; Huang et al.'s chat-vector code pairs tensors by their order.
    """
    if rows is not None and rows < 1:
        raise ValueError(f"rows must be at least 1; got {rows}. Give len(tokenizer).")
    match = Match(
        {},
        sorted(second.shapes.keys() - first.shapes.keys()),
        sorted(first.shapes.keys() - second.shapes.keys()),
        [],
        [],
    )
    for name in sorted(first.shapes.keys() & second.shapes.keys()):
        a, b = first.shapes[name], second.shapes[name]
        is_float = first.dtypes[name] in FLOATS and second.dtypes[name] in FLOATS
        if is_float and a and b and a[1:] == b[1:] and module_of(name) in VOCABULARY:
            used = min(a[0], b[0], rows or a[0])
            match.shapes[name] = (used, *a[1:])
            if not a[0] == b[0] == used:
                match.cut.append((name, a[0], b[0], used))
        elif is_float and a == b:
            match.shapes[name] = a
        else:
            kinds = [f"{t.dtypes[name]} {list(t.shapes[name])}" for t in (first, second)]
            match.mismatched.append((name, kinds[0], kinds[1]))
    if not match.shapes:
        raise ValueError(
            f"{first.label} and {second.label} must share tensors of one name and shape; got "
            f"{len(match.missing)} missing, {len(match.extra)} extra, {len(match.mismatched)} "
            "of another shape. Weights can be compared or added within one architecture only."
        )
    return match


def subtract(first: Tensors, second: Tensors, match: Match) -> Tensors:
    """Return first - second as a collection that is computed when it is read.

    Args:
        first: theta_post, say.
        second: theta_pre.
        match: what they share.

    Returns:
        Tensors: float64 differences of what `match` lists.

    Source: ours.
    """

    def read(name: str, block: Block) -> Tensor:
        return first.read(name, block).double().sub_(second.read(name, block).double())

    label = f"{first.label} minus {second.label}"
    return Tensors(label, match.shapes, dict.fromkeys(match.shapes, "F64"), read)


def check_finite(numbers: Tensor, name: str) -> None:
    """Refuse NaN and infinity, which would spoil every sum they enter.

    Args:
        numbers: a part of a tensor, or what was computed from it.
        name: the tensor's, for the message.

    Raises:
        ValueError: a number that is not finite.

    Source: ours.
    """
    if not bool(numbers.isfinite().all()):
        raise ValueError(
            f"expected finite numbers in {name}; got NaN, infinity or an overflow. Check both "
            "models' weights, and the scale."
        )
