"""Named tensors of any size, read and written a block at a time: no model has to fit into memory.

A checkpoint is a folder of safetensors files, one or several with an index. Files are opened
anew for each block: the pages of a file that stays mapped count as memory until it is closed, and
opening takes about a millisecond. Numbers without a source are ours.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import filelock
import huggingface_hub
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.modeling_utils import _get_resolved_checkpoint_files

from codit.engine.models import incomplete
from codit.files import write_json
from codit.weights.names import VOCABULARY, module_of

Block: TypeAlias = tuple[slice, ...]
Shape: TypeAlias = tuple[int, ...]

BLOCK = 2**21
"""Numbers in a block at most: 16 MB of float64."""

SHARD = 4 * 2**30
"""Bytes of a file that is written at most, unless one tensor has more."""

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The dtypes that arithmetic is defined for, in the words of safetensors."""


@dataclass(frozen=True)
class Tensors:
    """A named collection of tensors, of which `read(name, block)` returns a part.

    `dtypes` are the words of safetensors; `label` names the collection in messages. `stored` are
    names in the files where these differ. `unloaded` are tensors that transformers leaves in the
    files: old checkpoints' buffers, parts for other programs.
    """

    label: str
    shapes: Mapping[str, Shape]
    dtypes: Mapping[str, str]
    read: Callable[[str, Block], Tensor]
    stored: Mapping[str, str] = field(default_factory=dict)
    unloaded: Collection[str] = ()


def resolve(name: str | Path) -> Path:
    """Return the folder of a checkpoint; of a Hub name, or name@revision, one with what it needs.

    ValueError: neither a folder nor a name that can be downloaded.
    """
    if Path(name).is_dir():
        return Path(name)
    repo, _, revision = str(name).partition("@")
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo,
                revision=revision or None,
                allow_patterns=list(WANTED),
                ignore_patterns=["*/*", "consolidated*"],
            )
        )
    except (OSError, ValueError) as error:
        raise ValueError(
            f"expected a folder or a model of the Hub; got {name}: there is no such folder, and "
            f"the download failed ({type(error).__name__}). Check the name and the network."
        ) from error


def opened(source: str | Path | Mapping[str, Tensor]) -> Tensors:
    """Return the tensors of a checkpoint, or of a mapping in memory, without reading them.

    `source` is what `resolve` takes, or tensors by name. Files and names are those that
    transformers loads, so that a name is the same with and without the base model's prefix; in a
    folder without a config, or of a model that it does not know, those of the files. A head that is
    tied to the embedding is left out where a file holds it too: it is one tensor.

    ValueError: no such model, no safetensors in it, an index that does not fit its files, or not
    all weights of the model.
    """
    if isinstance(source, Mapping):
        tensors, words = dict(source), {dtype: word for word, dtype in FLOATS.items()}
        return Tensors(
            "tensors in memory",
            {name: tuple(tensor.shape) for name, tensor in tensors.items()},
            {name: words.get(t.dtype, str(t.dtype)) for name, t in tensors.items()},
            lambda name, block: tensors[name].detach()[block].cpu(),
        )
    folder = resolve(source)
    model = _skeleton(folder)
    files, shapes, dtypes = _headers(folder, model)
    for name in [n for n in shapes if module_of(n) == "head"] if _is_tied(folder) else []:
        if any(module_of(other) == "embed" for other in shapes):
            del shapes[name], dtypes[name]

    loaded = (
        dict(zip(shapes, shapes, strict=True)) if model is None else _loaded(model, shapes, folder)
    )
    stored = {loaded.get(name, name): name for name in shapes}
    if len(stored) < len(shapes):
        twice = sorted(shapes.keys() - stored.values())[0]
        raise ValueError(f"expected every weight once in {folder}; got another {twice}. Remove it.")

    def read(name: str, block: Block) -> Tensor:
        name = stored[name]
        with safe_open(files[name], "pt") as file:
            return file.get_slice(name)[block] if block else file.get_tensor(name)

    return Tensors(
        str(source),
        {name: shapes[own] for name, own in stored.items()},
        {name: dtypes[own] for name, own in stored.items()},
        read,
        stored,
        shapes.keys() - loaded.keys(),
    )


def blocks(shape: Sequence[int]) -> Iterator[Block]:
    """Yield slices that cover a tensor once, in the order of its memory; `BLOCK` numbers each."""
    whole = tuple(slice(0, size) for size in shape)
    inner = math.prod(shape[1:])
    if 0 < math.prod(shape) <= BLOCK:
        yield whole
    elif 0 < inner <= BLOCK:
        rows = BLOCK // inner
        for start in range(0, shape[0], rows):
            yield (slice(start, min(start + rows, shape[0])), *whole[1:])
    elif inner:  # one row is more than a block: the experts of a layer in one tensor
        for row in range(shape[0]):
            for rest in blocks(shape[1:]):
                yield (slice(row, row + 1), *rest)


def write(tensors: Tensors, folder: Path, *, shard_bytes: int = SHARD) -> None:
    """Write a collection into a folder: safetensors files and their index.

    safetensors' own writer wants a whole file's tensors in memory; this one a block. The format is
    a length, a JSON header and the numbers.

    `read` may return any dtype, `dtypes` decide where they are floats. Only a tensor that is larger
    exceeds `shard_bytes` of a file.
    """
    sizes = {n: math.prod(s) * _width(tensors.dtypes[n], n) for n, s in tensors.shapes.items()}
    shards: list[list[str]] = []
    room = 0
    # Wide numbers first: then every tensor begins at a multiple of its numbers' size.
    for name in sorted(sizes, key=lambda n: (-_width(tensors.dtypes[n], n), n)):
        if not shards or sizes[name] > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append(name)
        room -= sizes[name]
    where: dict[str, str] = {}
    with tqdm(total=sum(sizes.values()), unit="B", unit_scale=True, disable=None) as bar:
        for number, names in enumerate(shards, 1):
            file = folder / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            _write_shard(tensors, names, sizes, file, bar)
            where |= {tensors.stored.get(name, name): file.name for name in names}
    index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": where}
    write_json(folder / INDEX, index)


@contextlib.contextmanager
def staged(out: str | Path) -> Iterator[Path]:
    """Give a folder to write into that becomes `out` at once, when all is written.

    It lies beside `out` and is removed when the block raises; one that a killed process left is
    removed by the next. ValueError: `out` exists and is not empty.
    """
    out = Path(out).absolute()
    _check_free(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, lock = (out.with_name(f".{out.name}.{end}") for end in ("partial", "lock"))
    with filelock.FileLock(lock):
        _check_free(out)  # another process may have made it while this one waited
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        try:
            yield partial
            os.replace(partial, out)
            lock.unlink(missing_ok=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _check_free(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(
            f"out must be a new or an empty folder; {out} exists. Remove it or name another."
        )


def _skeleton(folder: Path) -> PreTrainedModel | None:
    """Return a checkpoint's causal LM without numbers; None where transformers knows none."""
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError, StrictDataclassError):
        return None


def _loaded(model: PreTrainedModel, stored: Collection[str], folder: Path) -> dict[str, str]:
    """Return the tensors of a file that transformers loads into a model: by stored name, its own.

    What it merges or splits, the experts of a layer say, keeps its stored name. ValueError: weights
    of the body are in no file.
    """
    changes, own = get_model_conversion_mapping(model), model.state_dict()
    renamings = [change for change in changes if isinstance(change, WeightRenaming)]
    converters = [change for change in changes if isinstance(change, WeightConverter)]
    by_pattern = {pattern: c.target_patterns for c in converters for pattern in c.source_patterns}
    names, absent = {}, {name for name in own if module_of(name) not in VOCABULARY}
    for old in stored:
        new, pattern = rename_source_key(
            old,
            renamings,
            converters,
            base_model_prefix=model.base_model_prefix,
            meta_state_dict=own,
        )
        if new not in own and old in own:
            new, pattern = old, None
        if new in own:
            first, *others = by_pattern.get(pattern, [""])
            absent -= {new, *(new.replace(first, other) for other in others)}
            names[old] = new if pattern is None else old
    report = SimpleNamespace(missing_keys=absent, unexpected_keys=set())
    model._adjust_missing_and_unexpected_keys(report)  # the library's own exceptions
    if report.missing_keys:
        raise incomplete(model, folder, {"missing in the files": sorted(report.missing_keys)})
    return names


def _headers(
    folder: Path, model: PreTrainedModel | None
) -> tuple[dict[str, Path], dict[str, Shape], dict[str, str]]:
    """Return file, shape and dtype of every tensor in the files that transformers would load."""
    try:
        paths, index = _get_resolved_checkpoint_files(
            str(folder),
            variant=None,
            gguf_file=None,
            use_safetensors=True,
            user_agent=None,
            is_remote_code=False,
            transformers_explicit_filename=getattr(
                model and model.config, "transformers_weights", None
            ),
        )
    except OSError as error:
        raise ValueError(
            f"expected {SINGLE} in {folder}; there is none. {_remedy(folder)}"
        ) from error
    listed = None if index is None else index["weight_map"]
    files: dict[str, Path] = {}
    shapes: dict[str, Shape] = {}
    dtypes: dict[str, str] = {}
    for path in map(Path, paths or ()):
        if not path.is_file():
            raise ValueError(f"expected {path.name} in {folder}; there is none. {_remedy(folder)}")
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 (no dict: it cannot be iterated over)
                    view = file.get_slice(name)
                    files[name] = path
                    shapes[name], dtypes[name] = tuple(view.get_shape()), view.get_dtype()
        except SafetensorError as error:
            raise ValueError(
                f"expected a safetensors file at {path}; got {error}. Fetch or write it again."
            ) from error
    if listed is not None and listed.keys() != files.keys():
        raise ValueError(
            f"the index of {folder} must name the tensors of its files; "
            f"{sorted(listed.keys() ^ files.keys())[:3]} differ. Fetch or write the folder again."
        )
    return files, shapes, dtypes


def _remedy(folder: Path) -> str:
    """Say what the weights of a folder lack."""
    if (folder / "adapter_config.json").is_file():
        return "It is an adapter: merge it into its base (peft: merge_and_unload) and save that."
    if any(folder.glob("*.bin")):
        return "Load the model with transformers and save it again: that writes safetensors."
    return "Name a checkpoint in safetensors format."


def _is_tied(folder: Path) -> bool:
    """Tell whether a checkpoint's config makes head and embedding one tensor."""
    if not (folder / "config.json").is_file():
        return False
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    inner = config.get("text_config", {}).get("tie_word_embeddings", False)
    return bool(config.get("tie_word_embeddings", inner))


def _width(dtype: str, name: str) -> int:
    """Return the bytes of one number of a dtype in the words of safetensors."""
    bits = 8 if dtype == "BOOL" else int((re.findall(r"\d+", dtype) or [0])[0])
    if bits < 8:
        raise ValueError(
            f"expected tensors of whole bytes; got {dtype} in {name}. Use the weights before "
            "quantisation."
        )
    return bits // 8


def _write_shard(
    tensors: Tensors, names: Sequence[str], sizes: Mapping[str, int], file: Path, bar: Any
) -> None:
    """Write one safetensors file, block by block."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        end = start + sizes[name]
        shape = list(tensors.shapes[name])
        about = {"dtype": tensors.dtypes[name], "shape": shape, "data_offsets": [start, end]}
        header[tensors.stored.get(name, name)] = about
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            for block in blocks(tensors.shapes[name]):
                part = tensors.read(name, block)
                part = part.to(FLOATS.get(tensors.dtypes[name], part.dtype)).contiguous()
                stream.write(part.reshape(-1).view(torch.uint8).numpy())
                bar.update(part.nbytes)
        assert stream.tell() == 8 + len(text) + start
        stream.flush()
        os.fsync(stream.fileno())
