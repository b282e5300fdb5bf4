"""The texts that are compared for overlap: benchmarks' prompts, a dataset's fields, their words.

A text is compared by its words: Unicode compatibility forms, case folded, punctuation left out, and
each Chinese or Japanese character a word of its own.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from codit.files import record_of
from codit.prompts import load

IDS = ("id", "question_id", "key")  # of benchmarks' rows
FIELDS = ("instruction", "response", "earlier turns")
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
ASCII_WORD = re.compile("[0-9a-z]+")
WORD = re.compile(f"[{UNSPACED}]|[^\\W_{UNSPACED}]+")


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's prompts.

    Args:
        name: what to call it.
        prompts: text by id; every turn of a conversation is a prompt.
        left_out: rows or turns without a usable prompt.
    """

    name: str
    prompts: Mapping[str, str]
    left_out: int = 0


def words(text: str) -> list[str]:
    """Return a text's words as they are compared.

    Args:
        text: any text.

    Returns:
        list[str]: in order; letters and digits only.

    Source: ours.
    """
    if text.isascii():  # the same words, in half the time
        return ASCII_WORD.findall(text.lower())
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def read_benchmark(path: str | Path, *, name: str | None = None) -> Benchmark:
    """Read a benchmark's prompts from JSON lines.

    Args:
        path: rows with `instruction`, `prompt`, `messages` (role and content; the user's turns
            count) or `turns` (texts), and `id`, `question_id` or `key` where there is one.
        name: what to call it. Default: the file's name without its ending.

    Returns:
        Benchmark: the turns after the first are named ID#2, ID#3, ...

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no JSON object, ids repeat, or no row has a usable prompt.

    Source: ours.
    """
    asked: list[dict[str, Any]] = []
    for number, row in enumerate(read_rows(path), start=1):
        own = next((str(row[key]) for key in IDS if row.get(key) is not None), str(number))
        turns = _turns(row) or [None]  # a row without a prompt is one that cannot be used
        asked += [
            {"id": own if place == 1 else f"{own}#{place}", "instruction": turn}
            for place, turn in enumerate(turns, start=1)
        ]
    usable = load(asked).rows if asked else []
    texts = {row["id"]: row["instruction"] for row in usable if words(row["instruction"])}
    if not texts:
        raise ValueError(
            f"expected rows with instruction, prompt, messages or turns in {path}; got "
            f"{len(asked)} without. Rename the column."
        )
    return Benchmark(name or Path(path).stem, texts, len(asked) - len(texts))


def read_rows(path: str | Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines, one in memory at a time.

    Args:
        path: the file, in UTF-8. The numbers of `score`, most of a dataset's bytes, are not read.

    Yields:
        dict: a row; blank lines are passed over.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no JSON object.

    Source: ours.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"expected a file of JSON lines at {path}; there is none.")
    with Path(path).open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
            if not line.strip():
                continue
            try:
                row = record_of(line) or json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"expected a JSON object in line {number} of {path}; {error}."
                ) from error
            if not isinstance(row, dict):
                raise ValueError(f"expected an object in line {number} of {path}; got {row!r:.60}.")
            yield row


def texts_of(row: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the texts of a dataset's row by field.

    Args:
        row: `instruction` and `response`, or `messages`, whose last user turn is the instruction
            and whose last turn, an assistant's, is the response; or both.

    Returns:
        dict: "instruction" and "response", each one text or none, and "earlier turns", all that
        `messages` holds before the last user turn.

    Raises:
        ValueError: the row has none of these, or a text is none.

    Source: ours.
    """
    turns = row.get("messages") or []
    if not all(isinstance(turn, Mapping) and {"role", "content"} <= turn.keys() for turn in turns):
        raise ValueError(f"expected messages with role and content; got {turns!r:.60}.")
    asked = [place for place, turn in enumerate(turns) if turn["role"] == "user"]
    last = asked[-1] if asked else len(turns)
    found: dict[str, list[Any]]
    found = {"instruction": [row.get("instruction")], "response": [row.get("response")]}
    if found["instruction"] == [None]:
        found["instruction"] = [turns[place]["content"] for place in asked[-1:]]
    if found["response"] == [None]:
        found["response"] = [turn["content"] for turn in turns[last + 1 :]]
    found["earlier turns"] = [turn["content"] for turn in turns[:last]]
    if not found["instruction"] + found["response"]:
        raise ValueError(
            f"expected instruction, response or messages in row {row.get('id')!r:.60}; got the "
            f"fields {[*row]}. Rename them: what is not read is not checked."
        )
    if any(not isinstance(text, str) for texts in found.values() for text in texts):
        raise ValueError(f"expected texts in row {row.get('id')!r:.60}; got something else.")
    return found


def _turns(row: Mapping[str, Any]) -> list[Any]:
    """Return the prompts of a benchmark's row, unchecked."""
    if isinstance(row.get("turns"), list):
        return list(row["turns"])
    if isinstance(row.get("messages"), list):
        turns = [turn for turn in row["messages"] if isinstance(turn, Mapping)]
        return [turn.get("content") for turn in turns if turn.get("role") == "user"]
    return [row[key] for key in ("instruction", "prompt") if row.get(key) is not None][:1]
