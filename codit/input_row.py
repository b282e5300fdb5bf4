"""What an input row must be: an id, and an instruction or a conversation that can be asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ROLES = ("system", "user", "assistant")
LONGEST = 14_000  # bits of an integer id; Python writes no more than 4,300 digits
SHOWN = 60  # characters of a value in a reason


def name_of(row: Any) -> str | None:
    """Return a row's id as text, or None where it has none that could name it.

    Args:
        row: any value.

    Returns:
        str | None: of a non-empty text or an integer; 7 and "7" are the same name.

    Source: ours.
    """
    value = row.get("id") if isinstance(row, Mapping) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if value.bit_length() <= LONGEST else None
    return value if isinstance(value, str) and value.strip() and _is_encodable(value) else None


def messages_of(row: Any) -> list[dict[str, str]]:
    """Return a row's conversation, its last turn a user's.

    Args:
        row: an object with `instruction` (text: one user turn) or `messages` (role and content of
            each turn; other fields of a turn are left out). A ValueError in its place is raised.

    Returns:
        list[dict]: `role` and `content` of each turn.

    Raises:
        ValueError: the reason why the row cannot be asked.

    Source: ours.
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
