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
import errno
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

from codit import dataset_card, recipes
from codit.files import line_of, record_of, replacing, sync_folder, write_json

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
        path = files.out.with_name(f".{files.out.name}.lock")
        path.touch()  # or a folder that takes no files would look like a lock that is held
        lock = filelock.FileLock(path, timeout=0)
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


def append(files: Files, records: Iterable[dict[str, Any]], *, at: int) -> int:
    """Add one batch of records at the end of the partial file, and wait until the disk has it.

    Args:
        files: the dataset's, locked and begun.
        records: rows, or with a field `error` what becomes of rows without an answer.
        at: byte where the file ends: what `resumption.begin` or the call before returned.

    Returns:
        int: byte where the file ends now.

    Raises:
        ValueError: the file is gone or ends elsewhere: another program removed or changed it.
        OSError: the records cannot be written. The file is cut back to `at`.

    Source: ours.
    """
    data = "".join(map(line_of, records)).encode()
    partial = files.beside(".partial")
    with writing(files):
        size = partial.stat().st_size if partial.is_file() else "no file"
        if size != at:
            raise ValueError(_changed(partial, f"{at} bytes", size))
        with partial.open("r+b", buffering=0) as stream:
            stream.seek(at)
            try:
                left = memoryview(data)
                while left:
                    left = left[stream.write(left) :]
                os.fsync(stream.fileno())
            except OSError:
                with contextlib.suppress(OSError):
                    stream.truncate(at)
                raise
        if at == 0:  # the first batch: the names of a new dataset's files are to last too
            sync_folder(partial.parent)
    return at + len(data)


def finish(
    files: Files, recipe: Any, *, lines: int, errors: Iterable[dict[str, Any]], **extra: Any
) -> dict[str, Any]:
    """Turn the complete lines into the dataset, its errors, its card and, last, its manifest.

    Args:
        files: the dataset's, locked, with every line appended.
        recipe: what made it; for the manifest.
        lines: how many lines were appended in all.
        errors: input rows that were set aside before anything was decoded.
        extra: further values of the manifest, among them what the card names:
            `expert_model_id` and `amateur_model_id`.

    Returns:
        dict: the manifest.

    Raises:
        ValueError: the partial file is gone, or holds another number of lines or a broken one:
            another program removed or changed it. No dataset is written.
        OSError: the files cannot be written. Calling it again is safe.

    Source: ours.
    """
    partial, state = files.beside(".partial"), files.beside(".partial.json")
    with writing(files):
        try:
            with replacing(files.out) as stream:
                failed, counted = _copy_rows(partial, stream, lines)
        except FileNotFoundError as error:
            raise ValueError(_changed(partial, f"{lines} lines", "no file")) from error
        failed = [*errors, *failed]
        _write_errors(files, failed)
        counted |= {"errors": len(failed)}
        manifest = recipes.manifest(recipe, **read_object(state), **counted, **extra)
        with replacing(files.beside(".README.md")) as stream:
            stream.write(dataset_card.card(manifest, files.out.name).encode())
        write_json(files.beside(".manifest.json"), manifest)
        sync_folder(files.out.parent)
        partial.unlink()
        state.unlink()
    return manifest


def _copy_rows(
    partial: Path, stream: Any, lines: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Copy the answered rows, and return the others, and counts and hash of what was copied."""
    counts, digest = Counter(rows=0, completed=0, tokens=0), hashlib.sha256()
    failed, number = [], 0
    with partial.open("rb") as source:
        for number, line in enumerate(source, start=1):
            record = record_of(line)
            if record is None or not is_finished(record):
                raise ValueError(_changed(partial, f"{lines} lines", f"a broken line {number}"))
            if "error" in record:
                failed.append(json.loads(line))
                continue
            counts.update(rows=1, completed=record["is_completed"], tokens=record["tokens"])
            digest.update(line)
            stream.write(line)
    if number != lines:
        raise ValueError(_changed(partial, f"{lines} lines", number))
    return failed, {**counts, "sha256": digest.hexdigest()}


def is_finished(record: dict[str, Any]) -> bool:
    """Return whether this program wrote a record: an answered row, or why there is no answer."""
    if "error" in record:
        return isinstance(record.get("line"), int)
    return isinstance(record.get("is_completed"), bool)


def _changed(partial: Path, expected: str, got: str | int) -> str:
    return (
        f"expected {partial} to hold {expected}, as this run left it; got {got}. Another program "
        "removed or changed it. Run the same command again: it goes on from the whole batches "
        "that are there."
    )


def _write_errors(files: Files, failed: list[dict[str, Any]]) -> None:
    path = files.beside(".errors.jsonl")
    if not failed:
        path.unlink(missing_ok=True)
        return
    with replacing(path) as stream:
        for record in sorted(failed, key=lambda record: record["line"]):
            stream.write(line_of(record).encode())


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
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        remedy = "Make room or give another out" if full else "Give another out or mend the cause"
        raise OSError(
            error.errno,
            f"cannot write {files.out} and its companions: {error.strerror or error}. {remedy}; "
            "finished batches are kept, and the same command goes on from there",
        ) from error
