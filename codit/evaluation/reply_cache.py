"""Judgements that were paid for, in one SQLite file: a reply is stored as soon as it is there.

    attempts   one row for each reply that came: its key, state, value, text and usage

One process at a time asks into a file; another waits for it. A lock beside the file says so, which
the system frees when its holder is killed. Values and choices without a source are ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import filelock

from codit.evaluation.replies import State

logger = logging.getLogger(__name__)

VERSION = 1  # of the table
PATIENCE = 30.0  # seconds that one transaction waits for another's
TABLE = f"""
BEGIN;
CREATE TABLE IF NOT EXISTS attempts (
  key TEXT PRIMARY KEY, item TEXT NOT NULL, attempt INTEGER NOT NULL, state TEXT NOT NULL,
  value TEXT NOT NULL, note TEXT NOT NULL, reply TEXT NOT NULL, schema TEXT NOT NULL,
  model TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER, seconds REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS of_item ON attempts (item, attempt);
PRAGMA user_version = {VERSION};
COMMIT;
"""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One reply that came, good or not; it was paid for. Its fields: see `Reading`."""

    attempt: int  # from 0; the next one asks with another seed
    state: State  # never "api_error", which is not paid and not kept
    value: float | str | None = None
    note: str = ""
    reply: str = ""
    schema: str = ""
    model: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float = 0.0  # from the request to the whole reply


NAMES = tuple(field.name for field in fields(Attempt))
FIND = f"SELECT {', '.join(NAMES)} FROM attempts WHERE item = ? ORDER BY attempt"
KEEP = f"INSERT INTO attempts (key, item, {', '.join(NAMES)}) VALUES (?, ?{', ?' * len(NAMES)})"


def item_key(**asked: Any) -> str:
    """Return the name of a question, 64 hexadecimal digits, from all that may change its reply."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def attempt_key(item: str, attempt: int) -> str:
    """Return the name of one attempt at a question; its first digits seed the sampling."""
    return hashlib.sha256(f"{item} {attempt}".encode()).hexdigest()


def final(attempts: list[Attempt], *, limit: int) -> Attempt | None:
    """Return the first good attempt, or the last of `limit` failures; else None."""
    good = [attempt for attempt in attempts if attempt.state == "ok"]
    return (good or attempts[-1:])[0] if good or len(attempts) >= limit else None


class Cache:
    """An open cache; `opened` makes it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def attempts(self, item: str) -> list[Attempt]:
        """Return all replies to a question, the first one first."""
        rows = self._connection.execute(FIND, (item,))
        found = [dict(zip(NAMES, row, strict=True)) for row in rows]
        return [Attempt(**one | {"value": json.loads(one["value"])}) for one in found]

    def store(self, item: str, attempt: Attempt) -> None:
        """Keep a reply: on the disk when this returns."""
        values = asdict(attempt) | {"value": json.dumps(attempt.value)}
        self._connection.execute(KEEP, [attempt_key(item, attempt.attempt), item, *values.values()])


@contextlib.contextmanager
def opened(path: str | Path, *, is_asking: bool = True) -> Iterator[Cache]:
    """Open a cache, made with its folder where there is none, and close it.

    `-wal`, `-shm` and `.lock` lie beside the file, the last one for good. Whoever `is_asking` waits
    until no other process asks into it, and keeps others waiting. What is done with the cache may
    end in these errors too: ValueError, the file is something else, or of another version;
    OSError, it cannot be read or written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        # The thread that opens it waits while another asks: never two of them at once.
        with contextlib.closing(
            sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        ) as connection:
            is_new = _is_new(connection, path)
            with _lock(path) if is_asking else contextlib.nullcontext():
                if is_new:
                    connection.execute("PRAGMA journal_mode = WAL")  # one wait for the disk a reply
                    connection.executescript(TABLE)
                connection.execute("PRAGMA synchronous = FULL")  # it outlives a power cut too
                yield Cache(connection)
    except sqlite3.OperationalError as error:
        raise OSError(
            f"cannot use the cache of judgements {path}: {error}. Make room, or name another file; "
            "what was stored is kept."
        ) from error
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"expected a cache of judgements at {path}; {error}. Name another file."
        ) from error


def _is_new(connection: sqlite3.Connection, path: Path) -> bool:
    """Return whether a file has no table yet; raise where it is another database."""
    # In one statement: another process may be making the table at this moment.
    version, tables = connection.execute(
        "SELECT (SELECT user_version FROM pragma_user_version), count(*) FROM sqlite_master"
    ).fetchone()
    if version != VERSION and (version or tables):
        raise ValueError(
            f"expected a cache of judgements, version {VERSION}, at {path}; it is another database "
            f"or version {version}. Name another file."
        )
    return version != VERSION


def _lock(path: Path) -> AbstractContextManager[Any]:
    """Keep every other process and thread from asking into a cache; wait for one that does."""
    lock = filelock.FileLock(f"{path}.lock")
    try:
        return lock.acquire(timeout=0)
    except filelock.Timeout:
        logger.warning("another process judges into %s; this one waits for it", path)
        return lock.acquire()
