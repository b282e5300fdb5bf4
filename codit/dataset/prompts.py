"""Where prompts come from: JSON lines, rows in memory, public chat collections.

Every source gives the same rows. What cannot be asked is set aside with a reason instead of
stopping a long run; only what makes the whole input ambiguous, repeated ids, is an exception.
Values and choices without a source are ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from codit import recipes
from codit.files import read_lines

BAD_ROW = "bad row"
ROLES = ("system", "user", "assistant")
LONGEST = 14_000  # bits of an integer id; Python writes no more than 4,300 digits
SHOWN = 60  # characters of a value in a reason

Rows = str | Path | recipes.File | recipes.HubPrompts | Iterable[Mapping[str, Any]]


class Collection(NamedTuple):
    """A public collection of conversations: its name on the Hub and the columns that are read."""

    repository: str
    id: str
    turns: str
    language: str | None  # of the rows that are kept; None: there is no such column


# Of every conversation the first user turn is taken, and the first of equal prompts.
COLLECTIONS = {
    # Named by the paper's model cards; how the authors came to their 250,333 instructions was not
    # found. It is gated: accept its licence on the Hub first. Names in it are masked as NAME_1.
    "lmsys": Collection("lmsys/lmsys-chat-1m", "conversation_id", "conversation", "English"),
    # The paper's example file is taken from it.
    "wildchat": Collection("allenai/WildChat-1M", "conversation_hash", "conversation", "English"),
    # The paper's Olmo scripts read 100,000 of its rows; which ones was not found.
    "dolci": Collection("allenai/Dolci-Instruct-SFT", "id", "messages", None),
}


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Input rows that can be asked, and those that cannot.

    `rows` are dicts with `id` (text, or None where the input has none), `messages` (role and
    content, the last one a user's), `instruction` (the last user turn) and `line` (of the input,
    from 1); `errors` are dicts with `id`, `line`, `error` (what kind) and `reason` (a sentence).
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)


def load(source: Rows, *, limit: int | None = None) -> Prompts:
    """Read prompts from whatever names them.

    Args:
        source: a path to JSON lines, `recipes.File`, `recipes.HubPrompts`, or rows in memory: dicts
            with `instruction` or `messages`, and `id` where there is one; other fields are left
            out.
        limit: only the first `limit` input rows; None: all.

    Returns:
        Prompts: usable rows in input order, and the errors; `line` counts the file's lines, or the
        rows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no row, ids repeat, or limit is less than 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1; got {limit}. Leave it out to read all rows.")
    if isinstance(source, recipes.HubPrompts):
        source = hub(source)
    path = source.path if isinstance(source, recipes.File) else source
    if isinstance(path, (str, Path)):
        return _collect(read_lines(path, keep_bad=True), origin=str(path), limit=limit)
    if not isinstance(path, Iterable):
        raise ValueError(
            f"expected a file of prompts, rows or HubPrompts; got {type(path).__name__}. Give its "
            "rows; those of the micro world are codit.world.prompts(recipe)."
        )
    return _collect(enumerate(path, start=1), origin="the rows given", limit=limit)


def check_unique(ids: Iterable[str]) -> None:
    """Raise ValueError, naming them, where ids repeat: an id is a word of the noise key."""
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        more = ", ..." if len(repeated) > 10 else ""
        raise ValueError(
            f"expected every id once; {len(repeated)} occur more than once: "
            f"{', '.join(repeated[:10])}{more}. Rename them, or leave all ids out."
        )


def hub(recipe: recipes.HubPrompts) -> list[dict[str, Any]]:
    """Return the first prompts of a public collection, as rows with `id` and `instruction`."""
    import datasets  # takes seconds

    if recipe.source not in COLLECTIONS:
        raise ValueError(
            f"source must be one of {list(COLLECTIONS)}; got {recipe.source!r}. Name one, or "
            "convert your prompts to JSON lines and give them as a File."
        )
    repository, name, turns, language = COLLECTIONS[recipe.source]
    rows = datasets.load_dataset(repository, split="train", revision=recipe.revision)
    wanted = [name, turns, *(["language"] if language else [])]
    if missing := [column for column in wanted if column not in rows.column_names]:
        raise ValueError(
            f"expected the columns {wanted}; missing {missing} among {rows.column_names}. "
            "Is this another collection, or another version of it?"
        )
    found: dict[str, dict[str, Any]] = {}  # by what is asked, white space around it left out
    for row in rows.select_columns(wanted):
        text = next((turn["content"] for turn in row[turns] if turn["role"] == "user"), None) or ""
        if text.strip() and (language is None or row["language"] == language):
            found.setdefault(text.strip(), {"id": row[name], "instruction": text})
    return list(found.values())[: recipe.n]


def name_of(row: Any) -> str | None:
    """Return a row's id as text, or None where it has none that could name it.

    A name is a text that is not empty, or an integer; 7 and "7" are the same.
    """
    value = row.get("id") if isinstance(row, Mapping) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if value.bit_length() <= LONGEST else None
    return value if isinstance(value, str) and value.strip() and _is_encodable(value) else None


def messages_of(row: Any) -> list[dict[str, str]]:
    """Return a row's conversation, role and content of each turn, the last one a user's.

    It is the row's `messages`, or its `instruction` as one user turn. ValueError: the reason why
    the row cannot be asked; a ValueError in place of a row is raised.
    """
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object; got {type(row).__name__}")
    if row.get("id") is not None and name_of(row) is None:
        raise ValueError(f"id must be non-empty text or an integer; got {_shown(row['id'])}")
    messages, instruction = row.get("messages"), row.get("instruction")
    if messages is None and instruction is None:
        raise ValueError(f"expected `instruction` or `messages`; got the fields {_shown([*row])}")
    if messages is None:
        return [{"role": "user", "content": _text(instruction, "instruction")}]
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)) or not messages:
        raise ValueError(f"messages must be a non-empty list; got {_shown(messages)}")
    turns = [_message(turn, place) for place, turn in enumerate(messages)]
    if turns[-1]["role"] != "user":
        raise ValueError(f"the last message must be a user's; got role {turns[-1]['role']!r}")
    if instruction is not None and instruction != turns[-1]["content"]:
        raise ValueError("instruction differs from the last user message; give one of the two")
    return turns


def _collect(numbered: Iterable[tuple[int, Any]], *, origin: str, limit: int | None) -> Prompts:
    prompts = Prompts()
    for count, (line, value) in enumerate(numbered):
        if count == limit:
            break
        name = name_of(value)
        try:
            messages = messages_of(value)
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


def _message(turn: Any, place: int) -> dict[str, str]:
    """Return role and content of one turn."""
    if not isinstance(turn, Mapping):
        raise ValueError(f"messages[{place}] must be an object; got {type(turn).__name__}")
    role = turn.get("role")
    if role not in ROLES:
        raise ValueError(f"messages[{place}] has role {_shown(role)}; known are {', '.join(ROLES)}")
    if role == "system" and place > 0:
        raise ValueError(f"messages[{place}] is a system message; only the first may be one")
    return {"role": role, "content": _text(turn.get("content"), f"messages[{place}].content")}


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text; got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{name} is empty")
    if not _is_encodable(value):
        raise ValueError(f"{name} holds half of a surrogate pair, which is no character")
    return value


def _shown(value: Any) -> str:
    """Return the beginning of what a value looks like."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # too many digits, too deep
        text = f"{type(value).__name__} that cannot be shown"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _is_encodable(value: str) -> bool:
    """Return whether a text can be written: JSON's escapes can make half characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
