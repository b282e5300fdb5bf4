"""Files of JSON: lines that every reader takes for one, a strict reader, files replaced at once."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import codit

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "trl", "accelerate", "numpy", "vllm")
MARK = b"\xef\xbb\xbf"  # byte-order mark, with which some programs begin a file
GZIP = b"\x1f\x8b"
SCORE = b'"score": ['  # never inside a text: quotes are escaped there
NUMBERS = b"-+0123456789., e"


def check_apart(written: Iterable[str | Path], read: Iterable[str | Path]) -> None:
    """Raise ValueError where a file that is to be written is one of those that are read."""
    taken = {Path(path).resolve() for path in written}
    for path in read:
        if Path(path).resolve() in taken:
            raise ValueError(
                f"expected an output that takes no input's place; {path} is read, and would be "
                "replaced. Give another out."
            )


def read_lines(path: str | Path, *, keep_bad: bool = False) -> Iterator[tuple[int, Any]]:
    """Yield number and object of each line of a file of JSON lines, one in memory at a time.

    A byte-order mark, CRLF line ends and blank lines are accepted. Lines end at newline bytes only,
    so that Unicode line separators inside a text stay there; a line may have any length.

    Args:
        path: the file, in UTF-8.
        keep_bad: yield the ValueError that says what is wrong with a line in place of its object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: as `parse`, with the number of the line, unless `keep_bad`. The file is a JSON
            array, or compressed.
    """
    path = Path(path)
    if not path.is_file():
        found = "it is a folder" if path.is_dir() else "there is none"
        if path.exists() and not path.is_dir():
            found = "it is a pipe, which can be read only once. Write it to a file first"
        raise FileNotFoundError(f"expected a file of JSON lines at {path}; {found}.")
    is_first = True
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            line = line.removeprefix(MARK) if number == 1 else line
            if not line.strip():
                continue
            if number == 1 and line.startswith(GZIP):
                raise ValueError(f"expected JSON lines in {path}; it is compressed. gunzip it.")
            if is_first and re.match(rb"\s*\[\s*(\{|$)", line):
                raise ValueError(
                    f"expected an object in each line of {path}; the file is one JSON array. "
                    "Write its objects a line each: jq -c '.[]'."
                )
            is_first = False
            value: Any
            try:
                value = parse(line)
            except ValueError as error:
                if not keep_bad:
                    raise ValueError(f"line {number} of {path}: {error}.") from None
                value = error
            yield number, value


def parse(line: bytes) -> dict[str, Any]:
    """Return a line's JSON object; ValueError for another value, a key that is there twice, NaN."""
    try:
        text = line.rstrip(b"\r\n").decode()
        value = json.loads(text, parse_constant=no_constant, object_pairs_hook=once)
    except UnicodeDecodeError as error:
        raise ValueError(f"expected UTF-8; {error.reason} at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected one JSON object; {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"expected an object; got {type(value).__name__}")
    return value


def no_constant(name: str) -> None:
    """Refuse NaN and infinity, which Python's JSON has and JSON has not (`parse_constant`)."""
    raise ValueError(f"{name} is not JSON")


def once(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; one that says two things of one field is none (`object_pairs_hook`)."""
    value = dict(fields)
    if len(value) < len(fields):
        twice = next(name for name, n in Counter(name for name, _ in fields).items() if n > 1)
        raise ValueError(f"the field {twice!r:.60} stands there twice")
    return value


def line_of(record: dict[str, Any]) -> str:
    """Return a record as one line, newline included, that every reader takes for one.

    Python's splitlines and others end lines at U+0085, U+2028 and U+2029 too. A record with NaN or
    infinity is a ValueError.
    """
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(
            f"expected finite numbers in the record of row {record.get('id')!r}; got NaN or "
            "infinity. Are the weights of both models whole?"
        ) from error
    for separator in "\x85\u2028\u2029":
        text = text.replace(separator, f"\\u{ord(separator):04x}")
    return text + "\n"


def record_of(line: bytes) -> dict[str, Any] | None:
    """Return the record of a line that `line_of` made, or None where the line is not whole.

    In place of `score`, which is most of a line, it has their number, `tokens`: they are counted
    without being read one by one.
    """
    before, key, rest = line.partition(SCORE)
    scores, end, after = rest.partition(b"]")
    if not line.endswith(b"\n") or scores.translate(None, NUMBERS):
        return None
    try:
        record = json.loads((before + key + end + after).decode())
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    record.pop("score", None)
    return {**record, "tokens": scores.count(b",") + 1 if scores else 0}


def write_lines(path: str | Path, records: Iterable[dict[str, Any]]) -> Path:
    """Write a file of JSON lines at once, each as `line_of` makes it, and return its path."""
    with replacing(path) as stream:
        stream.writelines(line_of(record).encode() for record in records)
    return Path(path)


def write_json(path: str | Path, value: Any) -> Path:
    """Write a JSON file at once and return its path; a value with NaN is a ValueError."""
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as stream:
        stream.write(text.encode())
    return Path(path)


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Any]:
    """Open a binary stream whose content takes the place of `path` at once, when all is written.

    A reader sees the old content or the new, never a part. What is written goes to a temporary file
    beside `path`, removed when the block raises.
    """
    path = Path(path)
    descriptor, name = tempfile.mkstemp(".tmp", f".{path.name}.", path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)  # mkstemp's 0600 would hide results from one's group
        os.replace(name, path)
    finally:
        Path(name).unlink(missing_ok=True)


def sync_folder(folder: str | Path) -> None:
    """Wait until the disk has a folder's list of names: renames outlive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems sync no folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def versions() -> dict[str, str]:
    """Return the versions that a result may depend on, without importing the packages."""
    found = {"python": platform.python_version(), "codit": codit.__version__}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
