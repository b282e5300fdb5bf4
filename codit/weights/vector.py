"""A chat vector in any of its forms, opened; what two models share; a chat model's own files.

What has no source is ours.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from torch import Tensor
from transformers import GenerationConfig

from codit.engine.chat import stop_ids
from codit.engine.models import load_tokenizer
from codit.files import write_json
from codit.weights import tensors as tensor_files
from codit.weights.names import VOCABULARY, module_of
from codit.weights.tensors import FLOATS, Block, Shape, Tensors

Weights: TypeAlias = Annotated[
    str | Path | Mapping[str, Tensor], "a model: folder, Hub name, name@revision, tensors by name"
]
Vector: TypeAlias = Annotated[
    str | Path | tuple[Weights, Weights] | Mapping[str, Tensor] | Tensors,
    "a folder made by `difference`; (post, pre), subtracted as they are read; tensors by name",
]

KINDS = ("missing", "extra", "mismatched", "cut", "unloaded")
"""Why a tensor was not compared, or not whole."""

INFO = "chat_vector.json"
"""What is known of a vector; its presence marks the folder of one."""

GENERATION = "generation_config.json"
TOKENIZER = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
COPIED = [GENERATION, "config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json"]
COPIED += ["vocab.*", "merges.txt", "*.model", "chat_template*", "*processor_config.json"]
"""Files that belong to a model whatever its weights; manifests, logs and cards do not."""


@dataclass(frozen=True)
class Opened:
    """A vector to be read, what `read_chat` tells of its expert, and what is known of itself."""

    tensors: Tensors
    chat: dict[str, Any] = field(default_factory=dict)
    info: dict[str, Any] = field(default_factory=dict)


def opened(vector: Vector, *, rows: int | None = None, partial: bool = False) -> Opened:
    """Open a vector without reading its numbers; `rows`, `partial`: those of `matched`, for a pair.

    ValueError: a model in place of a vector, or what `tensors.opened` and `matched` refuse.
    """
    if isinstance(vector, Tensors):
        return Opened(vector)
    if isinstance(vector, tuple):
        post, pre = (tensor_files.opened(weights) for weights in vector)
        match = matched(post, pre, rows=rows, partial=partial)
        return Opened(subtract(post, pre, match), read_chat(vector[0]), match.report())
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


@dataclass(frozen=True)
class Match:
    """What two collections have in common: `shapes`, those of tensors that can be compared.

    `missing` are names of the second that the first lacks, `extra` those of the first alone;
    `mismatched` lists (name, first, second) where dtypes or shapes rule a comparison out; `cut`
    lists (name, rows of the first, rows of the second, rows used) of vocabularies; `unloaded` are
    tensors of either that transformers does not load. `lost` are names outside the vocabulary that
    are missing, extra or mismatched.
    """

    shapes: dict[str, Shape]
    missing: list[str]
    extra: list[str]
    mismatched: list[tuple[str, str, str]]
    cut: list[tuple[str, int, int, int]]
    unloaded: list[str]
    lost: list[str] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """Return what was not compared, as JSON can hold it."""
        return {name: getattr(self, name) for name in KINDS} | {"matched": len(self.shapes)}


def matched(
    first: Tensors, second: Tensors, *, rows: int | None = None, partial: bool = False
) -> Match:
    """Return which tensors two collections share, by name and shape, and which they do not.

    Embedding and head are compared in the rows that both have: vocabularies are resized or padded.
    `rows` is `len(tokenizer)`: rows beyond are padding. (Huang et al. pair tensors by their order.)

    ValueError: nothing in common, or fewer than one row; without `partial` anything lost.
    """
    if rows is not None and rows < 1:
        raise ValueError(f"rows must be at least 1; got {rows}. Give len(tokenizer).")
    unloaded = {*first.unloaded, *second.unloaded}
    ours, theirs = (t.shapes.keys() - unloaded for t in (first, second))
    match = Match({}, sorted(theirs - ours), sorted(ours - theirs), [], [], sorted(unloaded))
    for name in sorted(ours & theirs):
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
    dtypes = {**first.dtypes, **second.dtypes}
    alone = [name for name in (*match.missing, *match.extra) if dtypes[name] in FLOATS]
    differing = [name for name, _, _ in match.mismatched]
    match.lost.extend(n for n in (*alone, *differing) if module_of(n) not in VOCABULARY)
    if match.lost and not partial:
        raise ValueError(
            f"expected one body in {first.label} and {second.label}; got {len(alone)} tensors that "
            f"only one has and {len(differing)} of another shape or dtype, such as "
            f"{match.lost[0]}. Name models of one architecture, or pass partial=True for what both "
            "have."
        )
    return match


def subtract(first: Tensors, second: Tensors, match: Match) -> Tensors:
    """Return first - second, in float64, as a collection that is computed when it is read."""

    def read(name: str, block: Block) -> Tensor:
        return first.read(name, block).double().sub_(second.read(name, block).double())

    label = f"{first.label} minus {second.label}"
    return Tensors(label, match.shapes, dict.fromkeys(match.shapes, "F64"), read)


def check_finite(numbers: Tensor, name: str) -> None:
    """Raise ValueError where a part of a tensor holds NaN or infinity: they spoil every sum."""
    if not bool(numbers.isfinite().all()):
        raise ValueError(
            f"expected finite numbers in {name}; got NaN, infinity or an overflow. Check both "
            "models' weights, and the scale."
        )


def copy_files(source: Path, target: Path) -> None:
    """Copy config, generation config, tokenizer and template of a checkpoint."""
    for pattern in COPIED:
        for file in source.glob(pattern):
            shutil.copyfile(file, target / file.name)


def read_chat(weights: Weights) -> dict[str, Any]:
    """Return `chat_template`, `eos_token` and `stop_tokens` (names) of a chat model.

    Nothing without a tokenizer, and of tensors in memory.
    """
    if isinstance(weights, Mapping):
        return {}
    folder = tensor_files.resolve(weights)
    if not (folder / TOKENIZER).is_file():
        return {}
    tokenizer = load_tokenizer(folder)
    has_config = (folder / GENERATION).is_file()
    config = GenerationConfig.from_pretrained(folder) if has_config else None
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name: for tools, for retrieval
        template = template.get("default")
    return {
        "chat_template": template,
        "eos_token": tokenizer.eos_token,
        "stop_tokens": tokenizer.convert_ids_to_tokens(stop_ids(tokenizer, config)),
    }


def write_chat(folder: Path, chat: dict[str, Any]) -> list[str]:
    """Give a checkpoint another one's chat template and stop tokens, as Huang et al.'s code does.

    Tokens are matched by name: in another vocabulary they have other ids. Returns those that the
    folder's tokenizer does not know. Without a tokenizer, or a chat, the folder is left alone.
    """
    if not chat or not (folder / TOKENIZER).is_file():
        return []
    if chat["chat_template"] is not None:
        (folder / TEMPLATE).write_text(chat["chat_template"], encoding="utf-8")
    ids = load_tokenizer(folder).get_vocab()
    stops = sorted(ids[token] for token in chat["stop_tokens"] if token in ids)
    if stops:
        _update(folder / GENERATION, eos_token_id=stops)
    if chat["eos_token"] in ids:
        for name in (TOKENIZER, "special_tokens_map.json"):
            if (folder / name).is_file():
                _update(folder / name, eos_token=chat["eos_token"])
    return [token for token in chat["stop_tokens"] if token not in ids]


def _update(file: Path, **values: Any) -> None:
    """Change values of a JSON file."""
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    write_json(file, content | values)
