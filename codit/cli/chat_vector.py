"""`codit chat-vector extract`, `cosine` and `add`: flags and what they print.

The method is Huang et al.'s Chat Vector (2023); cosines: the paper's Figs 3 and 7.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from codit.cli.flags import Repeated


def extract(
    *, post: str, pre: str, out: Path, rows: int | None = None, partial: bool = False
) -> int:
    """Write the chat vector of a pair, expert minus amateur, in float32.

    Args:
        post: folder, Hub name or name@revision of the post-trained model.
        pre: folder, Hub name or name@revision of its own pre-trained counterpart.
        out: a new folder.
        rows: ids of the vocabulary, len(tokenizer); rows beyond are padding. Default: those that
            both models have.
        partial: go on without tensors of the body that only one has or that differ in shape.
    """
    from codit import chat_vector
    from codit.weights import vector as vector_files

    chat_vector.difference(post, pre, out, rows=rows, partial=partial)
    info = json.loads((out / vector_files.INFO).read_text(encoding="utf-8"))
    print(
        f"{out}: {info['numbers']} numbers, {info['zeros']:.2%} exactly zero; adding it to {pre} "
        f"gives back {info['restored']:.2%} exactly; {_left_out(info)}"
    )
    return 0


def cosine(
    *,
    update: str | None = None,
    after: str | None = None,
    before: str | None = None,
    vector: str | None = None,
    post: str | None = None,
    pre: str | None = None,
    rows: int | None = None,
    partial: bool = False,
    group: Annotated[
        tuple[Literal["tensor", "layer", "module", "expert", "global"], ...], Repeated
    ] = (),
    out: Path | None = None,
) -> int:
    """Compare a student's update with a chat vector: cosines by module and as a whole.

    Args:
        update: the update, a folder made by extract; or else after and before.
        after: folder or Hub name of the student after training.
        before: folder or Hub name of the student before training.
        vector: the chat vector, a folder made by extract; or else post and pre.
        post: folder or Hub name of the post-trained model.
        pre: folder or Hub name of its own pre-trained counterpart.
        rows: ids of the vocabulary, len(tokenizer). Default: those that all have.
        partial: go on without tensors of the body that not all have, or not in one shape.
        group: what to show; may be repeated. Default: module and global.
        out: write the whole table, every tensor and layer too, to this .csv file.
    """
    sides = (
        _either("update", update, {"after": after, "before": before}),
        _either("vector", vector, {"post": post, "pre": pre}),
    )
    if out is not None and out.suffix != ".csv":
        raise ValueError(f"out must be a file name ending in .csv; got {out}.")
    from codit import chat_vector

    table = chat_vector.cosines(*sides, rows=rows, partial=partial)
    shown = table[table["group"].isin(group or ("module", "global"))]
    print(shown.to_string(index=False))
    chance = chat_vector.chance(int(table["n"].max()))
    print(
        f"\nchance, independent directions: {chance:.2g}; cosine undefined in "
        f"{len(table.attrs['zero_norm'])} tensors; {_left_out(table.attrs)}"
    )
    if out is not None:
        table.to_csv(out, index=False)
        print(out)
    return 0


def add(
    *,
    target: str,
    vector: Annotated[tuple[str, ...], Repeated],
    out: Path,
    scale: Annotated[tuple[float, ...], Repeated] = (),
    skip_embed: bool = False,
) -> int:
    """Write a model whose weights are a target's plus chat vectors.

    Args:
        target: folder, Hub name or name@revision of the model to add to.
        vector: a folder made by extract; may be repeated.
        out: a new folder for the model.
        scale: how much of each vector is added, in their order. Default: 1 of each.
        skip_embed: leave embedding and head as they are, for a target with another vocabulary.
    """
    scales = scale or (1.0,) * len(vector)
    if not vector or len(scales) != len(vector):
        raise ValueError(
            f"expected one scale for each vector; got {len(scales)} scales and {len(vector)} "
            "vectors. Repeat --scale as often as --vector, or leave it out."
        )
    from codit import chat_vector

    terms: list[tuple[Any, float]] = list(zip(vector, scales, strict=True))
    chat_vector.add(target, terms, out, skip_embed=skip_embed)
    info = json.loads((out / chat_vector.ADDITION).read_text(encoding="utf-8"))
    left = "; ".join(_left_out(part) for part in info["vectors"]) or "scale 0, nothing was added"
    print(f"{out}: {info['changes']} numbers changed, {info['lost']:.2%} rounded away; {left}")
    return 0


Action = (
    Annotated[int, tyro.conf.subcommand("extract", constructor=extract)]
    | Annotated[int, tyro.conf.subcommand("cosine", constructor=cosine)]
    | Annotated[int, tyro.conf.subcommand("add", constructor=add)]
)


def command(action: Annotated[Action, tyro.conf.arg(name="")]) -> int:
    """Extract a chat vector, compare it with a student's update, or add it to a model.

    Args:
        action: what to do.
    """
    return action


def _either(name: str, folder: str | None, pair: dict[str, str | None]) -> Any:
    """Return a vector's folder, or the pair it is the difference of."""
    given = [value for value in pair.values() if value is not None]
    if (folder is None) == (len(given) == 2) and len(given) != 1:
        return tuple(given) if folder is None else folder
    flags = " and ".join(f"--{flag}" for flag in pair)
    raise ValueError(f"expected --{name}, or else {flags}; got not exactly one of these. Give one.")


def _left_out(report: Any) -> str:
    """Say how many tensors were matched and how many not."""
    from codit.weights.vector import KINDS

    parts = [f"{report['matched']} tensors matched"]
    parts += [f"{len(report[k])} {k}" for k in KINDS]
    return ", ".join(parts)
