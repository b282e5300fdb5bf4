"""What HTTP's own words mean to whoever asks a judge: an address."""

from __future__ import annotations

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
