"""May a run begin, or go on where another stopped? Settings, files and rows are compared here.

A fingerprint is a nested dict of whatever changes the rows. Two runs with equal fingerprints make
equal files, so that one may go on where the other stopped.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from codit.dataset_file import ENDINGS, Files, is_finished, read_object, writing
from codit.files import record_of, write_json

RESUME = ("never", "if_same", "always")
Name = tuple[str, int | None]  # a row's id, and its sample where there are several


def earlier_runs(
    files: Files, fingerprint: dict[str, Any], *, resume: str
) -> list[dict[str, Any]] | None:
    """Decide whether a run may begin or go on, before anything is loaded or changed.

    Args:
        files: the dataset's.
        fingerprint: of the run that asks.
        resume: "never": nothing may exist. "if_same": what exists must have this fingerprint.
            "always": an unfinished dataset may have any; a finished one is kept if made from the
            same `input`.

    Returns:
        list[dict] | None: None where the dataset is finished. Otherwise the earlier runs that made
        the rows at hand, as dicts with `fingerprint`; their rows are yet to be checked.

    Raises:
        ValueError: the files do not allow it; says which settings differ.

    Source: ours.
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


def check_apart(files: Files, source: str | Path) -> None:
    """Raise ValueError where a run would write over the prompts that it reads.

    Args:
        files: the dataset's.
        source: file of the prompts.

    Raises:
        ValueError: it is the dataset's file or one of those beside it.

    Source: ours.
    """
    own = {files.beside(ending).resolve() for ending in (".partial", *ENDINGS)}
    if Path(source).resolve() in own:
        raise ValueError(
            f"expected an out whose files are not those of the prompts; {source} is one of those "
            f"that belong to {files.out}. Give another out."
        )


def begin(
    files: Files,
    fingerprint: dict[str, Any],
    earlier: list[dict[str, Any]],
    names: Sequence[Name],
    *,
    lines_per_batch: int,
) -> tuple[int, int]:
    """Cut the unfinished dataset back to whole batches, and record what makes the next ones.

    Args:
        files: the dataset's, locked.
        fingerprint: of this run.
        earlier: from `earlier_runs`.
        names: of all lines to come, in order.
        lines_per_batch: a batch is a fixed range of that many names.

    Returns:
        (int, int): number of lines kept, a multiple of `lines_per_batch` or all, and the byte
        where they end.

    Raises:
        ValueError: the lines at hand are not the first of `names`.
        OSError: the files cannot be written.

    Source: ours.
    """
    partial = files.beside(".partial")
    kept, offset = _whole_batches(partial, names, lines_per_batch)
    with writing(files):
        files.beside(".manifest.json").unlink(missing_ok=True)
        for ending in ENDINGS:  # what a run that was killed left half-written
            name = glob.escape(files.beside(ending).name)
            for left in files.out.parent.glob(f".{name}.*.tmp"):
                left.unlink()
        if partial.exists() and partial.stat().st_size > offset:
            with partial.open("r+b") as stream:  # before the settings change, and to last
                stream.truncate(offset)
                os.fsync(stream.fileno())
        earlier = [{**run, "lines": min(kept, run.get("lines", kept))} for run in earlier if kept]
        record = {"fingerprint": fingerprint, "earlier": earlier}
        write_json(files.beside(".partial.json"), record)
        partial.touch()
    return kept, offset


def differences(old: Any, new: Any, *, name: str = "") -> list[str]:
    """Return a sentence for each value that differs between two fingerprints.

    Args:
        old: nested dicts and plain values.
        new: likewise.
        name: of the place compared, for the sentences.

    Returns:
        list[str]: such as "recipe.decoding.seed was 0, is 1"; empty for equal ones.

    Source: ours.
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


def _check_finished(
    files: Files, manifest: dict[str, Any], fingerprint: dict[str, Any], resume: str
) -> None:
    changed = differences(manifest["fingerprint"], fingerprint)
    if resume == "always":
        changed = [sentence for sentence in changed if sentence.startswith("input ")]
    if changed:
        raise ValueError(_refusal(files.out, changed))
    if resume != "always" and _sha256(files.out) != manifest["sha256"]:
        raise ValueError(
            f"{files.out} was changed after it was made. Delete it, or give another out."
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refusal(path: Path, changed: list[str]) -> str:
    more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
    return (
        f"{path} was made with other settings: {'; '.join(changed[:5])}{more}. Give another out, "
        "delete it, or, if its rows may differ so, use resume always."
    )
