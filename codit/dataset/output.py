"""The files of a dataset that grows batch by batch and survives a kill at any moment.

Beside DATA.jsonl:

    DATA.partial         rows so far, whole batches only; DATA.partial.json: what makes them
    DATA.errors.jsonl    rows that could not be answered: id, line, error, reason
    DATA.jsonl           the dataset, in input order, all at once at the end
    DATA.README.md       dataset card
    DATA.manifest.json   last: recipe, fingerprint, counts, versions, hash of the dataset

In the order of a run: `locked`, `earlier_runs`, `begin`, `append` for each batch, `finish`. A
fingerprint is a nested dict of whatever changes the rows: where two runs have equal ones, one may
go on where the other stopped.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import pyarrow as pa
import pyarrow.json
from datasets import Dataset

from codit import recipes
from codit.dataset import card
from codit.files import line_of, record_of, replacing, sync_folder, write_json, write_lines

METADATA = {
    "temperature": pa.float64(),
    "top_p": pa.float64(),
    "max_tokens": pa.int64(),
    "contrastive_decoding": pa.bool_(),
    "alpha": pa.float64(),
    "beta": pa.float64(),
    "expert_model_id": pa.string(),
    "amateur_model_id": pa.string(),
}
SCHEMA = pa.schema(  # the fields of the paper's code, and `messages`
    {
        "id": pa.string(),
        "is_completed": pa.bool_(),
        "instruction": pa.string(),
        "response": pa.string(),
        "res_metadata": pa.struct(METADATA),
        "score": pa.list_(pa.float64()),
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})),
    }
)
ENDINGS = (".jsonl", ".partial.json", ".errors.jsonl", ".README.md", ".manifest.json")
RESUME = ("never", "if_same", "always")
Name = tuple[str, int | None]  # a row's id, and its sample where there are several


@dataclass(frozen=True)
class Files:
    """Where a dataset, `out`, and what belongs to it lie."""

    out: Path

    def __post_init__(self) -> None:
        if self.out.suffix != ".jsonl" or self.out.is_dir():
            raise ValueError(
                f"out must be a file name ending in .jsonl; got {self.out}. Rename it."
            )

    def beside(self, ending: str) -> Path:
        """Return the path of a companion, such as `.partial` or `.manifest.json`."""
        return self.out.with_name(self.out.name.removesuffix(".jsonl") + ending)

    def every(self) -> list[Path]:
        """Return the paths of all that a run may write."""
        return [self.beside(ending) for ending in (".partial", *ENDINGS)]


def read(out: str | Path) -> Dataset:
    """Return a dataset of conversations in memory; no cache is written.

    Args:
        out: JSON lines: what `finish` wrote, or any with some of its fields. For a file larger than
            memory use `datasets.load_dataset("json", ...)`.

    Returns:
        Dataset: the file's columns, with the types of `SCHEMA` where it has them; of an empty file
        all columns of `SCHEMA`. ValueError: it is not made of JSON objects.
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
    """Make the dataset's folder, and keep every other process from writing the same files.

    ValueError: another process holds the lock.
    """
    with _writing(files):
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


def earlier_runs(
    files: Files, fingerprint: dict[str, Any], *, resume: str
) -> list[dict[str, Any]] | None:
    """Decide whether a run may begin or go on, before anything is loaded or changed.

    `resume` "never": nothing may exist. "if_same": what exists must have this fingerprint.
    "always": an unfinished dataset may have any; a finished one is kept if made from the same
    `input`. What is not allowed is a ValueError that says which settings differ.

    Returns None where the dataset is finished. Otherwise the earlier runs that made the rows at
    hand, as dicts with `fingerprint`; their rows are yet to be checked.
    """
    partial, state, manifest = map(files.beside, (".partial", ".partial.json", ".manifest.json"))
    if resume not in RESUME:
        raise ValueError(f"resume must be one of {', '.join(RESUME)}; got {resume!r}.")
    if resume == "never" and (found := [p for p in (files.out, partial) if p.exists()]):
        raise ValueError(f"resume is never, but {found[0]} exists. Delete it or give another out.")
    if files.out.exists() and manifest.exists():
        _check_finished(files, read_object(manifest), fingerprint, resume)
        partial.unlink(missing_ok=True)  # a kill after the manifest left them
        state.unlink(missing_ok=True)
        return None
    if not partial.exists():
        if files.out.exists():
            raise ValueError(
                f"{files.out} exists without {manifest.name}: another program made it. Give "
                "another out, or move it away."
            )
        return []
    if not files.out.exists() and partial.stat().st_size == 0:
        return []  # whatever the settings were, they made no row
    before = read_object(state)
    if changed := differences(before["fingerprint"], fingerprint):
        if resume != "always":
            raise ValueError(_refusal(partial, changed))
        return [*before["earlier"], {"fingerprint": before["fingerprint"]}]
    return list(before["earlier"])


def begin(
    files: Files,
    fingerprint: dict[str, Any],
    earlier: list[dict[str, Any]],
    names: Sequence[Name],
    *,
    lines_per_batch: int,
    date: str | None = None,
) -> tuple[int, int]:
    """Cut the unfinished dataset back to whole batches, and record what makes the next ones.

    `date` is the one that the chat template writes, if it writes any; see `date_of`.
    `names` are those of all lines to come, in order; ValueError: the lines at hand are not the
    first of them. Returns the number of lines kept, a multiple of `lines_per_batch` or all, and the
    byte where they end.
    """
    partial = files.beside(".partial")
    kept, offset = _whole_batches(partial, names, lines_per_batch)
    with _writing(files):
        files.beside(".manifest.json").unlink(missing_ok=True)
        for path in files.every():  # what a run that was killed left half-written
            for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
                left.unlink()
        if partial.exists() and partial.stat().st_size > offset:
            with partial.open("r+b") as stream:  # before the settings change, and to last
                stream.truncate(offset)
                os.fsync(stream.fileno())
        earlier = [{**run, "lines": min(kept, run.get("lines", kept))} for run in earlier if kept]
        record = {"fingerprint": fingerprint, "earlier": earlier}
        record |= {} if date is None else {"date": date}
        write_json(files.beside(".partial.json"), record)
        partial.touch()
    return kept, offset


def date_of(files: Files) -> str | None:
    """Return the date that prompts of an unfinished dataset hold, where rows of it are there."""
    partial = files.beside(".partial")
    if not partial.exists() or not partial.stat().st_size:
        return None
    return read_object(files.beside(".partial.json")).get("date")


def append(files: Files, records: Iterable[dict[str, Any]], *, at: int) -> int:
    """Add one batch of records at the end of the partial file, and wait until the disk has it.

    A record is a row, or with a field `error` what becomes of one without an answer. `at` is the
    byte where the file ends, of `begin` or the call before; returned is where it ends now.

    ValueError: the file ends elsewhere. OSError: not written; the file is cut back to `at`.
    """
    data = "".join(map(line_of, records)).encode()
    partial = files.beside(".partial")
    with _writing(files):
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

    `lines` were appended in all; `errors` are input rows that were set aside before. `extra` are
    further values of the manifest, among them `expert_model_id` and `amateur_model_id`, which the
    card names. Returns the manifest; calling it again after an error is safe.

    ValueError: the partial file holds another number of lines or a broken one: nothing is written.
    """
    partial, state = files.beside(".partial"), files.beside(".partial.json")
    with _writing(files):
        try:
            with replacing(files.out) as stream:
                failed, counted = _copy_rows(partial, stream, lines)
        except FileNotFoundError as error:
            raise ValueError(_changed(partial, f"{lines} lines", "no file")) from error
        failed = sorted([*errors, *failed], key=lambda record: record["line"])
        if failed:
            write_lines(files.beside(".errors.jsonl"), failed)
        else:
            files.beside(".errors.jsonl").unlink(missing_ok=True)
        counted |= {"errors": len(failed)}
        manifest = recipes.manifest(recipe, **read_object(state), **counted, **extra)
        with replacing(files.beside(".README.md")) as stream:
            stream.write(card.card(manifest, files.out.name).encode())
        write_json(files.beside(".manifest.json"), manifest)
        sync_folder(files.out.parent)
        partial.unlink()
        state.unlink()
    return manifest


def read_object(path: Path) -> dict[str, Any]:
    """Return the manifest, or the state of an unfinished dataset: what made the rows beside it.

    ValueError: there is none, or it has no fingerprint.
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


def is_finished(record: dict[str, Any]) -> bool:
    """Return whether this program wrote a record: an answered row, or why there is no answer."""
    if "error" in record:
        return isinstance(record.get("line"), int)
    return isinstance(record.get("is_completed"), bool)


def differences(old: Any, new: Any, *, name: str = "") -> list[str]:
    """Return a sentence for each value that differs between two fingerprints.

    Such as "recipe.decoding.seed was 0, is 1"; `name` is that of the place compared.
    """
    if isinstance(old, dict) and isinstance(new, dict):
        prefix = f"{name}." if name else ""
        return [
            sentence
            for field in sorted({*old, *new})
            for sentence in differences(old.get(field), new.get(field), name=prefix + field)
        ]
    return [] if old == new else [f"{name} was {old}, is {new}"]


def _whole_batches(partial: Path, names: Sequence[Name], size: int) -> tuple[int, int]:
    """Return the lines that form whole batches, and where they end in the file.

    Reading stops at the first line that is not whole: what was being written when the power went.
    """
    lines = offset = kept = end = 0
    if not partial.exists():
        return 0, 0
    with partial.open("rb") as stream:
        for line in stream:
            record = record_of(line)
            if record is None:
                break
            name = str(record.get("id")), record.get("sample")
            if lines == len(names) or name != names[lines]:
                raise ValueError(
                    f"{partial} holds other rows: its line {lines + 1} is of {name[0]!r}, which is "
                    "not what these prompts have there. Delete it, or give another out."
                )
            if not is_finished(record):
                break
            lines, offset = lines + 1, offset + len(line)
            if lines % size == 0 or lines == len(names):
                kept, end = lines, offset
    return kept, end


def _copy_rows(
    partial: Path, stream: Any, lines: int
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Copy the answered rows, and return the others, and counts and hash of what was copied."""
    counts, digest = Counter(rows=0, completed=0, empty=0, tokens=0), hashlib.sha256()
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
            counts.update(empty=not record["response"].strip())
            digest.update(line)
            stream.write(line)
    if number != lines:
        raise ValueError(_changed(partial, f"{lines} lines", number))
    return failed, {**counts, "sha256": digest.hexdigest()}


def _check_finished(
    files: Files, manifest: dict[str, Any], fingerprint: dict[str, Any], resume: str
) -> None:
    changed = differences(manifest["fingerprint"], fingerprint)
    if resume == "always":
        changed = [sentence for sentence in changed if sentence.startswith("input ")]
    if changed:
        raise ValueError(_refusal(files.out, changed))
    if resume == "always":
        return
    with files.out.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != manifest["sha256"]:
        raise ValueError(
            f"{files.out} was changed after it was made. Delete it, or give another out."
        )


@contextlib.contextmanager
def _writing(files: Files) -> Iterator[None]:
    """Say which dataset could not be written, and that nothing complete is lost."""
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


def _changed(partial: Path, expected: str, got: str | int) -> str:
    return (
        f"expected {partial} to hold {expected}, as this run left it; got {got}. Another program "
        "removed or changed it. Run the same command again: it goes on from the whole batches "
        "that are there."
    )


def _refusal(path: Path, changed: list[str]) -> str:
    more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
    return (
        f"{path} was made with other settings: {'; '.join(changed[:5])}{more}. Give another out, "
        "delete it, or, if its rows may differ so, use resume always."
    )
