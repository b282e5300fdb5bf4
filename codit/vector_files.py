"""A chat vector in any of its forms, opened: a folder, a pair of models, tensors in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from codit import chat_files, tensor_files
from codit.tensor_files import Tensors
from codit.tensor_match import matched, subtract
from codit.tensor_names import VOCABULARY, module_of

Weights: TypeAlias = Annotated[
    str | Path | Mapping[str, Tensor], "a model: folder, Hub name, name@revision, tensors by name"
]
Vector: TypeAlias = Annotated[
    str | Path | tuple[Weights, Weights] | Mapping[str, Tensor] | Tensors,
    "a folder made by `difference`; (post, pre), subtracted as they are read; tensors by name",
]

INFO = "chat_vector.json"
"""What is known of a vector; its presence marks the folder of one."""

SPECIAL = "special.safetensors"
"""theta_post's rows of special tokens: tau alone does not tell them."""


@dataclass(frozen=True)
class Opened:
    """A vector ready to be read.

    `chat` is what `codit.chat_files.read` tells of the expert, `info` what is known of the vector;
    `row(kind, id)` returns theta_post's row of a token in "embed" or "head", [D].
    """

    tensors: Tensors
    chat: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)
    row: Callable[[str, int], Tensor] | None = None


def opened(vector: Vector, *, rows: int | None = None) -> Opened:
    """Open a vector without reading its numbers.

    Args:
        vector: a folder made by `codit.chat_vector.difference`, a pair (post, pre), or tensors.
        rows: ids of the vocabulary, where a pair is matched.

    Returns:
        Opened: with chat, rows and info as far as the form of the vector has them.

    Raises:
        ValueError: a folder that holds a model instead of a vector, or what `tensor_files.opened`
            and `tensor_match.matched` refuse.

    Source: ours.
    """
    if isinstance(vector, Tensors):
        return Opened(vector)
    if isinstance(vector, tuple):
        post, pre = (tensor_files.opened(weights) for weights in vector)
        match = matched(post, pre, rows=rows)
        chat = chat_of(vector[0])
        return Opened(subtract(post, pre, match), chat, match.report(), _rows_of(post))
    tensors = tensor_files.opened(vector)
    if isinstance(vector, Mapping):
        return Opened(tensors)
    folder = tensor_files.resolve(vector)
    if not (folder / INFO).is_file():
        raise ValueError(
            f"expected a folder made by chat_vector.difference, with {INFO}; got {vector}. For two "
            "models give the pair (post, pre)."
        )
    info = json.loads((folder / INFO).read_text(encoding="utf-8"))
    return Opened(tensors, info.pop("chat"), info, _saved_rows(folder))


def chat_of(weights: Weights) -> dict[str, Any]:
    """Return what `codit.chat_files.read` tells of a model; nothing of tensors in memory.

    Args:
        weights: folder, Hub name or tensors.

    Returns:
        dict: empty where there is no tokenizer.

    Source: ours.
    """
    return {} if isinstance(weights, Mapping) else chat_files.read(tensor_files.resolve(weights))


def save_rows(post: Tensors, ids: list[int], folder: Path) -> None:
    """Write theta_post's rows of special tokens beside a vector, in float32.

    Args:
        post: the expert.
        ids: of its special tokens; those without a row are left out.
        folder: of the vector.

    Source: as Huang et al.'s code documents it; it stores the base model's.
    """
    row = _rows_of(post)
    kept: dict[str, Tensor] = {}
    for name, shape in post.shapes.items():
        kind = module_of(name)
        if kind in VOCABULARY:
            kept |= {f"{kind}.{i}": row(kind, i).float() for i in ids if i < shape[0]}
    save_file(kept, folder / SPECIAL)


def _rows_of(post: Tensors) -> Callable[[str, int], Tensor]:
    """Return a reader of a model's rows; a tied head is the embedding."""
    names = {module_of(name): name for name in post.shapes if module_of(name) in VOCABULARY}

    def row(kind: str, token: int) -> Tensor:
        name = names.get(kind) or names.get("embed")
        if name is None or not 0 <= token < post.shapes[name][0]:
            raise ValueError(
                f"expected a row of token {token} in {post.label}; there is none. Give an id of "
                "the chat model's vocabulary."
            )
        return post.read(name, (slice(token, token + 1), slice(0, post.shapes[name][1])))[0]

    return row


def _saved_rows(folder: Path) -> Callable[[str, int], Tensor]:
    """Return a reader of the rows that `save_rows` wrote."""

    def row(kind: str, token: int) -> Tensor:
        with safe_open(folder / SPECIAL, "pt") as file:
            names = set(file.keys())
            for name in (f"{kind}.{token}", f"embed.{token}"):
                if name in names:
                    return file.get_tensor(name)
        raise ValueError(
            f"expected a row of token {token} in {folder / SPECIAL}; it holds those of the chat "
            "model's special tokens. Name one of these, or give the pair (post, pre)."
        )

    return row
