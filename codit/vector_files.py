"""A chat vector in any of its forms, opened: a folder, a pair of models, tensors in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from torch import Tensor

from codit import chat_files, tensor_files
from codit.tensor_files import Tensors
from codit.tensor_match import matched, subtract

Weights: TypeAlias = Annotated[
    str | Path | Mapping[str, Tensor], "a model: folder, Hub name, name@revision, tensors by name"
]
Vector: TypeAlias = Annotated[
    str | Path | tuple[Weights, Weights] | Mapping[str, Tensor] | Tensors,
    "a folder made by `difference`; (post, pre), subtracted as they are read; tensors by name",
]

INFO = "chat_vector.json"
"""What is known of a vector; its presence marks the folder of one."""


@dataclass(frozen=True)
class Opened:
    """A vector ready to be read.

    `chat` is what `codit.chat_files.read` tells of the expert, `info` what is known of the vector.
    """

    tensors: Tensors
    chat: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)


def opened(vector: Vector, *, rows: int | None = None) -> Opened:
    """Open a vector without reading its numbers.

    Args:
        vector: a folder made by `codit.chat_vector.difference`, a pair (post, pre), or tensors.
        rows: ids of the vocabulary, where a pair is matched.

    Returns:
        Opened: with chat and info as far as the form of the vector has them.

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
        return Opened(subtract(post, pre, match), chat, match.report())
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
    return Opened(tensors, info.pop("chat"), info)


def chat_of(weights: Weights) -> dict[str, Any]:
    """Return what `codit.chat_files.read` tells of a model; nothing of tensors in memory.

    Args:
        weights: folder, Hub name or tensors.

    Returns:
        dict: empty where there is no tokenizer.

    Source: ours.
    """
    return {} if isinstance(weights, Mapping) else chat_files.read(tensor_files.resolve(weights))
