"""The files of a dataset that grows batch by batch and survives a kill at any moment.

Beside DATA.jsonl:

    DATA.partial         rows so far, whole batches only; DATA.partial.json: what makes them
    DATA.errors.jsonl    rows that could not be answered: id, line, error, reason
    DATA.jsonl           the dataset, in input order, all at once at the end
    DATA.README.md       dataset card
    DATA.manifest.json   last: recipe, fingerprint, counts, versions, hash of the dataset
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.json
from datasets import Dataset

from codit import dataset_card, store

SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "is_completed": pa.bool_(),
        "instruction": pa.string(),
        "response": pa.string(),
        "res_metadata": pa.struct(
            {
                "temperature": pa.float64(),
                "top_p": pa.float64(),
                "max_tokens": pa.int64(),
                "contrastive_decoding": pa.bool_(),
                "alpha": pa.float64(),
                "beta": pa.float64(),
                "expert_model_id": pa.string(),
                "amateur_model_id": pa.string(),
            }
        ),
        "score": pa.list_(pa.float64()),
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
    }
)

ENDINGS = (".jsonl", ".partial.json", ".errors.jsonl", ".README.md", ".manifest.json")


@dataclass(frozen=True)
class Files:
    """Where a dataset and what belongs to it lie.

    Args:
        out: the dataset, ending in .jsonl.
    """

    out: Path

    def __post_init__(self) -> None:
        if self.out.suffix != ".jsonl" or self.out.is_dir():
            raise ValueError(
                f"out must be a file name ending in .jsonl; got {self.out}. Rename it."
            )

    def beside(self, ending: str) -> Path:
        """Return the path of a companion, such as `.partial` or `.manifest.json`."""
        return self.out.with_name(self.out.name.removesuffix(".jsonl") + ending)


def read(out: str | Path) -> Dataset:
    """Return a dataset of conversations in memory; no cache is written.

    Args:
        out: JSON lines: what `finish` wrote, or any with some of its fields. For a file larger than
            memory use `datasets.load_dataset("json", ...)`.

    Returns:
        Dataset: the file's columns, with the types of `SCHEMA` where it has them; of an empty file
        all columns of `SCHEMA`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not made of JSON objects.

    Source: columns: the paper's code, and `messages`; the rest: ours.
    """
    if not Path(out).is_file():
        raise FileNotFoundError(f"expected a file of JSON lines at {out}; there is none.")
    with Path(out).open("rb") as stream:
        first = stream.readline()
        longest = max([len(first), *map(len, stream)])
    if not longest:
        return Dataset(SCHEMA.empty_table())
    try:
        row = json.loads(first)
        # Others number their rows; here ids are texts.
        numbered = isinstance(row.get("id"), int)
        fields = [f for f in SCHEMA if f.name in row and not (numbered and f.name == "id")]
        table = pyarrow.json.read_json(
            str(out),
            read_options=pyarrow.json.ReadOptions(block_size=max(2 * longest, 1 << 20)),
            parse_options=pyarrow.json.ParseOptions(explicit_schema=pa.schema(fields)),
        )
        if numbered:
            place = table.column_names.index("id")
            table = table.set_column(place, "id", table["id"].cast(pa.string()))
    except (AttributeError, ValueError, TypeError) as error:  # ArrowInvalid is a ValueError
        raise ValueError(f"expected JSON objects, one a line, in {out}; {error}") from error
    return Dataset(table)


@contextlib.contextmanager
def locked(files: Files) -> Iterator[None]:
    """Keep every other process from writing the same dataset.

    Args:
        files: the dataset's; its folder is made.

    Raises:
        ValueError: another process holds the lock.

    Source: ours.
    """
    with writing(files):
        files.out.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(files.out.with_name(f".{files.out.name}.lock"), timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise ValueError(
                f"another process is writing {files.out}. Wait for it, or give another out."
            ) from error
    try:
        yield
    finally:
        lock.release()


def append(files: Files, records: Iterable[dict[str, Any]]) -> None:
    """Add one batch of records and wait until the disk has it.

    Args:
        files: the dataset's, locked and begun.
        records: rows, or with a field `error` what becomes of rows without an answer.

    Raises:
        OSError: they cannot be written.

    Source: ours.
    """
    data = "".join(map(_line, records)).encode()
    with writing(files), files.beside(".partial").open("ab") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def finish(
    files: Files, recipe: Any, *, errors: Iterable[dict[str, Any]], **extra: Any
) -> dict[str, Any]:
    """Turn the complete lines into the dataset, its errors, its card and, last, its manifest.

    Args:
        files: the dataset's, locked, with every line appended.
        recipe: what made it; for the manifest.
        errors: input rows that were set aside before anything was decoded.
        extra: further values of the manifest, among them what the card names:
            `expert_model_id` and `amateur_model_id`.

    Returns:
        dict: the manifest.

    Raises:
        OSError: the files cannot be written. Calling it again is safe.

    Source: ours.
    """
    failed = list(errors)
    counts, digest = Counter(rows=0, completed=0, tokens=0), hashlib.sha256()
    partial, state = files.beside(".partial"), files.beside(".partial.json")
    with writing(files):
        with partial.open("rb") as lines, store.replacing(files.out) as stream:
            for line in lines:
                record = json.loads(line)
                if "error" in record:
                    failed.append(record)
                    continue
                counts.update(rows=1, completed=record["is_completed"], tokens=len(record["score"]))
                digest.update(line)
                stream.write(line)
        _write_errors(files, failed)
        counted = {**counts, "errors": len(failed), "sha256": digest.hexdigest()}
        manifest = store.manifest(recipe, **read_object(state), **counted, **extra)
        with store.replacing(files.beside(".README.md")) as stream:
            stream.write(dataset_card.card(manifest, files.out.name).encode())
        store.write_json(files.beside(".manifest.json"), manifest)
        partial.unlink()
        state.unlink()
    return manifest


def _line(record: dict[str, Any]) -> str:
    """Return a record as one line that every reader takes for one.

    Python's splitlines and others end lines at U+0085, U+2028 and U+2029 too.
    """
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    for separator in "\x85\u2028\u2029":
        text = text.replace(separator, f"\\u{ord(separator):04x}")
    return text + "\n"


def _write_errors(files: Files, failed: list[dict[str, Any]]) -> None:
    path = files.beside(".errors.jsonl")
    if not failed:
        path.unlink(missing_ok=True)
        return
    with store.replacing(path) as stream:
        for record in sorted(failed, key=lambda record: record["line"]):
            stream.write(_line(record).encode())


def read_object(path: Path) -> dict[str, Any]:
    """Return a JSON file that says what made the rows beside it.

    Args:
        path: the manifest, or the state of an unfinished dataset.

    Returns:
        dict: its content.

    Raises:
        ValueError: there is none, or it has no fingerprint.

    Source: ours.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        value = error
    if not isinstance(value, dict) or "fingerprint" not in value:
        raise ValueError(
            f"expected {path} to say what made the rows beside it; got {value}. Delete the rows, "
            "or give another out."
        )
    return value


@contextlib.contextmanager
def writing(files: Files) -> Iterator[None]:
    """Say which dataset could not be written, and that nothing complete is lost.

    Args:
        files: the dataset's.

    Raises:
        OSError: in place of one that the block raises, with the same number.

    Source: ours.
    """
    try:
        yield
    except OSError as error:
        raise OSError(
            error.errno,
            f"cannot write {files.out} and its companions: {error.strerror or error}. Make room or "
            "give another out; finished batches are kept, and the same command goes on from there",
        ) from error
