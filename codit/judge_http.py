"""What HTTP's own words mean to whoever asks a judge: an address, a wait."""

from __future__ import annotations

import contextlib
import math
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit


def is_address(url: str) -> bool:
    """Return whether a server can be asked there; a typing error would be tried again and again.

    Args:
        url: such as http://localhost:8000/v1.

    Returns:
        bool: whether it has a scheme of the web, a host and, if any, a port in 1 to 65535.

    Source: RFC 3986.
    """
    try:
        parts = urlsplit(url)
        port = parts.port  # raises where it is none
    except ValueError:
        return False
    is_whole = not any(character.isspace() for character in url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and is_whole


def retry_after(headers: Any) -> float | None:
    """Return how long a server asks to wait.

    Args:
        headers: of an HTTP reply, by lower-case name: `retry-after-ms`, or `retry-after` in
            seconds or as a date.

    Returns:
        float | None: seconds, at least 0; None where it says nothing that can be read.

    Source: RFC 9110, section 10.2.3; milliseconds as the openai client reads them.
    """
    with contextlib.suppress(KeyError, ValueError):
        return max(0.0, float(headers["retry-after-ms"]) / 1000)
    said = headers.get("retry-after")
    if said is None:
        return None
    with contextlib.suppress(ValueError):
        seconds = float(said)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    try:
        date = parsedate_to_datetime(said)
    except (ValueError, OverflowError):  # a year or a zone of twenty digits
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())
