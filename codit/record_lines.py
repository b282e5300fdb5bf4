"""A dataset's record as a line of a file, and back."""

from __future__ import annotations

import json
from typing import Any

SCORE = b'"score": ['  # never inside a text: quotes are escaped there
NUMBERS = b"-+0123456789., e"


def line_of(record: dict[str, Any]) -> str:
    """Return a record as one line that every reader takes for one.

    Python's splitlines and others end lines at U+0085, U+2028 and U+2029 too.

    Args:
        record: JSON values; `score` in it, if any, is a list of numbers.

    Returns:
        str: ends with a newline and holds no other.

    Raises:
        ValueError: a value is NaN or infinite.

    Source: ours.
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
    """Return a line's record, with `tokens` in place of `score`.

    Args:
        line: as `line_of` made it, or what is left of one.

    Returns:
        dict | None: the record with the number of its scores, which are not read one by one: they
        are most of a line. None where the line is not whole.

    Source: ours.
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


def is_finished(record: dict[str, Any]) -> bool:
    """Return whether a record is an answered row, or says why there is no answer.

    Args:
        record: from `record_of`.

    Returns:
        bool: False for an object that this program did not write.

    Source: ours.
    """
    if "error" in record:
        return isinstance(record.get("line"), int)
    return isinstance(record.get("is_completed"), bool)
