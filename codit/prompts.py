"""Where prompts come from: JSON lines, rows in memory, the micro world, public chat collections.

Every source gives the same rows. What cannot be asked is set aside with a reason instead of
stopping a long run; only what makes the whole input ambiguous, repeated ids, is an exception.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from codit import input_row, recipes, world

BAD_ROW = "bad row"


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Input rows that can be asked, and those that cannot.

    Args:
        rows: dicts with `id` (text, or None where the input has none), `messages` (list of role
            and content, the last one a user's), `instruction` (the last user turn) and `line`
            (number of the input row, from 1).
        errors: dicts with `id`, `line`, `error` (what kind) and `reason` (a sentence).
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)


def load(source: Any, *, limit: int | None = None) -> Prompts:
    """Read prompts from whatever names them.

    Args:
        source: a path to JSON lines, `recipes.File`, `recipes.WorldPrompts`,
            `recipes.HubPrompts`, or rows in memory.
        limit: only the first `limit` input rows; None: all.

    Returns:
        Prompts: usable rows in input order, and the errors.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no row, ids repeat, or limit is less than 1.

    Source: ours.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1; got {limit}. Leave it out to read all rows.")
    if isinstance(source, recipes.HubPrompts):
        return check(hub(source), limit=limit)
    if isinstance(source, recipes.WorldPrompts):
        return check(world.prompts(source), limit=limit)
    if isinstance(source, recipes.File):
        source = source.path
    if isinstance(source, (str, Path)):
        return read_jsonl(source, limit=limit)
    return check(source, limit=limit)


def read_jsonl(path: str | Path, *, limit: int | None = None) -> Prompts:
    """Read prompts from a file of JSON lines, one object with `instruction` or `messages` each.

    A byte-order mark, CRLF line ends and blank lines are accepted. Lines end at newline bytes only,
    so that Unicode line separators inside a text stay there; a line may have any length.

    Args:
        path: the file, in UTF-8.
        limit: only the first `limit` rows; None: all.

    Returns:
        Prompts: usable rows in file order, and the errors; `line` counts the file's lines.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has no row, or ids repeat.

    Source: ours.
    """
    if not Path(path).is_file():
        found = "it is a folder" if Path(path).is_dir() else "there is none"
        raise FileNotFoundError(f"expected a file of JSON lines at {path}; {found}.")
    return _collect(_parse_lines(Path(path)), origin=str(path), limit=limit)


def check(rows: Iterable[Any], *, limit: int | None = None) -> Prompts:
    """Bring rows in memory into the form that `read_jsonl` gives.

    Args:
        rows: dicts with `instruction` or `messages`, and `id` where there is one. Other fields are
            left out.
        limit: only the first `limit` rows; None: all.

    Returns:
        Prompts: usable rows in the given order, and the errors; `line` counts rows from 1.

    Raises:
        ValueError: there is no row, or ids repeat.

    Source: ours.
    """
    return _collect(enumerate(rows, start=1), origin="the rows given", limit=limit)


def check_unique(ids: Iterable[str]) -> None:
    """Raise ValueError, naming them, where ids repeat: an id is a word of the noise key.

    Args:
        ids: ids as text.

    Raises:
        ValueError: names the first ten repeated ids and says how many there are.

    Source: ours.
    """
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        more = ", ..." if len(repeated) > 10 else ""
        raise ValueError(
            f"expected every id once; {len(repeated)} occur more than once: "
            f"{', '.join(repeated[:10])}{more}. Rename them, or leave all ids out."
        )


def hub(recipe: recipes.HubPrompts) -> list[dict[str, Any]]:
    """Return the first prompts of a public collection.

    Args:
        recipe: which collection, how many, at which revision.

    Returns:
        list[dict]: rows with `id` and `instruction`.

    Raises:
        ValueError: unknown collection.

    Source: ours.
    """
    loaders = {"lmsys": lmsys, "wildchat": wildchat, "dolci": dolci}
    if recipe.source not in loaders:
        raise ValueError(
            f"source must be one of {list(loaders)}; got {recipe.source!r}. Name one, or convert "
            "your prompts to JSON lines and give them as a File."
        )
    return loaders[recipe.source](revision=recipe.revision)[: recipe.n]


def lmsys(
    *,
    path: str = "lmsys/lmsys-chat-1m",
    split: str = "train",
    language: str | None = "English",
    dedupe: bool = True,
    revision: str | None = None,
) -> list[dict[str, Any]]:
    """Return the first user turn of every LMSYS-Chat-1M conversation.

    The authors name the collection; how they came to their 250,333 instructions was not found.
    The collection is gated: accept its licence on the Hub first. Names in it are masked as NAME_1.

    Args:
        path: Hub name or local folder.
        split: part of the collection.
        language: keep rows whose `language` is this; None keeps all. (ours)
        dedupe: keep the first of prompts that are equal up to surrounding white space. (ours)
        revision: commit of the collection; None is the newest.

    Returns:
        list[dict]: rows with `id` (the conversation's) and `instruction`.

    Raises:
        ValueError: a column is missing.

    Source: the paper's model cards name LMSYS-Chat-1M; first turn, language, dedupe: ours.
    """
    rows = datasets.load_dataset(path, split=split, revision=revision)
    return _first_turns(rows, "conversation_id", "conversation", language, dedupe)


def wildchat(
    *,
    path: str = "allenai/WildChat-1M",
    split: str = "train",
    language: str | None = "English",
    dedupe: bool = True,
    revision: str | None = None,
) -> list[dict[str, Any]]:
    """Return the first user turn of every WildChat-1M conversation.

    Args:
        path: Hub name or local folder.
        split: part of the collection.
        language: keep rows whose `language` is this; None keeps all. (ours)
        dedupe: keep the first of prompts that are equal up to surrounding white space. (ours)
        revision: commit of the collection; None is the newest.

    Returns:
        list[dict]: rows with `id` (the conversation's hash) and `instruction`.

    Raises:
        ValueError: a column is missing.

    Source: the paper's example file is taken from WildChat-1M; all choices are ours.
    """
    rows = datasets.load_dataset(path, split=split, revision=revision)
    return _first_turns(rows, "conversation_hash", "conversation", language, dedupe)


def dolci(
    *,
    path: str = "allenai/Dolci-Instruct-SFT",
    split: str = "train",
    dedupe: bool = True,
    revision: str | None = None,
) -> list[dict[str, Any]]:
    """Return the first user turn of every row of Dolci-Instruct-SFT, system turns left out.

    The authors' Olmo scripts read 100,000 of its rows; which ones was not found.

    Args:
        path: Hub name or local folder.
        split: part of the collection.
        dedupe: keep the first of prompts that are equal up to surrounding white space. (ours)
        revision: commit of the collection; None is the newest.

    Returns:
        list[dict]: rows with `id` and `instruction`.

    Raises:
        ValueError: a column is missing.

    Source: the paper's Olmo scripts name the collection; all choices are ours.
    """
    rows = datasets.load_dataset(path, split=split, revision=revision)
    return _first_turns(rows, "id", "messages", None, dedupe)


def _first_turns(
    rows: datasets.Dataset, id_column: str, column: str, language: str | None, dedupe: bool
) -> list[dict[str, Any]]:
    wanted = [id_column, column, *(["language"] if language else [])]
    if missing := [name for name in wanted if name not in rows.column_names]:
        raise ValueError(
            f"expected the columns {wanted}; missing {missing} among {rows.column_names}. "
            "Is this another collection, or another version of it?"
        )
    seen: set[str] = set()
    kept = []
    for row in rows.select_columns(wanted):
        turns = (turn["content"] for turn in row[column] if turn["role"] == "user")
        text = next(turns, None)
        if not text or not text.strip() or (language and row["language"] != language):
            continue
        if dedupe and text.strip() in seen:
            continue
        seen.add(text.strip())
        kept.append({"id": row[id_column], "instruction": text})
    return kept


def _parse_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield each line's number and its value, or the exception that says why it has none."""
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            try:
                text = line.rstrip(b"\r\n").decode("utf-8")
                yield number, json.loads(text, object_pairs_hook=_object)
            except UnicodeDecodeError as error:
                yield number, ValueError(f"expected UTF-8; {error.reason} at byte {error.start}")
            except (ValueError, RecursionError) as error:
                yield number, ValueError(f"expected one JSON object; {error}")


def _object(fields: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; one that says two things of one field is none."""
    value = dict(fields)
    if len(value) < len(fields):
        twice = next(name for name, n in Counter(name for name, _ in fields).items() if n > 1)
        raise ValueError(f"the field {twice!r:.60} stands there twice")
    return value


def _collect(numbered: Iterable[tuple[int, Any]], *, origin: str, limit: int | None) -> Prompts:
    prompts = Prompts()
    for count, (line, value) in enumerate(numbered):
        if count == limit:
            break
        name = input_row.name_of(value)
        try:
            messages = input_row.messages_of(value)
        except (ValueError, RecursionError) as error:
            reason = {"error": BAD_ROW, "reason": str(error)}
            prompts.errors.append({"id": name, "line": line, **reason})
        else:
            row = {"id": name, "instruction": messages[-1]["content"], "messages": messages}
            prompts.rows.append({**row, "line": line})
    if not prompts.rows and not prompts.errors:
        raise ValueError(f"expected at least one prompt; {origin} is empty.")
    check_unique(row["id"] for row in prompts.rows if row["id"] is not None)
    return prompts
