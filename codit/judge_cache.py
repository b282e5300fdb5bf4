"""Judgements that were paid for, in one SQLite file: a reply is stored as soon as it is there.

    attempts   one row for each reply that came: its key, state, value, text and usage
    claims     questions that a process is asking at this moment

Several runs may share a file on one machine. A run claims a question before it asks, so that no
other asks it too; the claim of a process that was killed counts no longer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from codit.judge_replies import State

VERSION = 1  # of the tables
PATIENCE = 30.0  # seconds that one transaction waits for another's (ours)
TABLES = """
CREATE TABLE IF NOT EXISTS attempts (
  key TEXT PRIMARY KEY, item TEXT NOT NULL, attempt INTEGER NOT NULL, state TEXT NOT NULL,
  value TEXT NOT NULL, note TEXT NOT NULL, reply TEXT NOT NULL, schema TEXT NOT NULL,
  model TEXT NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER, seconds REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS of_item ON attempts (item, attempt);
CREATE TABLE IF NOT EXISTS claims (item TEXT PRIMARY KEY, owner TEXT NOT NULL);
"""


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One reply that came, good or not; it was paid for.

    Args:
        attempt: its number, from 0; the next one asks with another seed.
        state: see `codit.judge_replies`; never "api_error", which is not paid and not kept.
        value: score or verdict; None unless the state is "ok".
        note: why there is no value.
        reply: the text as it came.
        schema: "honoured": the whole reply is the object asked for; "ignored": it is not;
            "rejected": the server takes no schema, so none was asked for.
        model: what the server calls the model.
        prompt_tokens: as the server counted; None where it did not.
        completion_tokens: as the server counted; None where it did not.
        seconds: from the request to the whole reply.
    """

    attempt: int
    state: State
    value: float | str | None
    note: str
    reply: str
    schema: str
    model: str
    prompt_tokens: int | None
    completion_tokens: int | None
    seconds: float


def item_key(**asked: Any) -> str:
    """Return the name of a question: judge, revision, template, prompt, parameters, sample.

    Args:
        **asked: JSON values; everything that may change a reply but the attempt's number.

    Returns:
        str: 64 hexadecimal digits.

    Source: ours.
    """
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def attempt_key(item: str, attempt: int) -> str:
    """Return the name of one attempt at a question.

    Args:
        item: from `item_key`.
        attempt: its number, from 0.

    Returns:
        str: 64 hexadecimal digits.

    Source: ours.
    """
    return hashlib.sha256(f"{item} {attempt}".encode()).hexdigest()


@contextlib.contextmanager
def opened(path: str | Path, *, patience: float = PATIENCE) -> Iterator[Cache]:
    """Open a cache, made where there is none, and close it; claims of this run end with it.

    Args:
        path: the SQLite file; its folder is made. SQLite keeps `-wal` and `-shm` files beside it
            while it is open.
        patience: seconds that a transaction waits for one of another process.

    Yields:
        Cache: to be used in the thread that opened it.

    Raises:
        ValueError: the file is something else, or was written by another version.
        OSError: it cannot be read or written.

    Source: ours.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _reported(path):
        connection = sqlite3.connect(path, timeout=patience, isolation_level=None)
    try:
        with _reported(path):
            _prepare(connection, path, patience)
        cache = Cache(connection, path)
        try:
            yield cache
        finally:
            cache.release_all()
    finally:
        connection.close()


class Cache:
    """An open cache; `opened` makes it."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path
        process = psutil.Process()
        self._owner = f"{process.pid} {process.create_time()} {uuid.uuid4().hex}"

    def final(self, item: str, *, limit: int) -> Attempt | None:
        """Return what is known of a question when nothing is left to ask.

        Args:
            item: from `item_key`.
            limit: attempts at a question, at least 1.

        Returns:
            Attempt | None: the first good one; after `limit` failures the last; else None.

        Source: ours.
        """
        with _reported(self._path):
            return _final(self._attempts(item), limit)

    def claim(self, item: str, *, limit: int) -> Attempt | int | None:
        """Take the right to ask a question, unless there is nothing to ask.

        Args:
            item: from `item_key`.
            limit: attempts at a question, at least 1.

        Returns:
            Attempt | int | None: what is known when nothing is left to ask; the number of the
            attempt to make now; None while another process asks.

        Source: ours.
        """
        with self._transaction() as connection:
            attempts = self._attempts(item)
            if (known := _final(attempts, limit)) is not None:
                return known
            row = connection.execute("SELECT owner FROM claims WHERE item = ?", (item,)).fetchone()
            if row is not None and row[0] != self._owner and _is_alive(row[0]):
                return None
            connection.execute("REPLACE INTO claims VALUES (?, ?)", (item, self._owner))
        return len(attempts)

    def store(self, item: str, attempt: Attempt) -> None:
        """Keep a reply, and give the question free.

        Args:
            item: from `item_key`.
            attempt: what came.

        Raises:
            OSError: the file cannot be written.

        Source: ours.
        """
        values = asdict(attempt) | {"value": json.dumps(attempt.value)}
        row = {"key": attempt_key(item, attempt.attempt), "item": item, **values}
        names = ", ".join(row)
        marks = ", ".join(f":{name}" for name in row)
        with self._transaction() as connection:
            # A second process may have the same number: only one that wrongly took us for dead.
            connection.execute(f"INSERT OR IGNORE INTO attempts ({names}) VALUES ({marks})", row)
            self._free(item)

    def release(self, item: str) -> None:
        """Give a question free that was not answered.

        Args:
            item: from `item_key`.

        Source: ours.
        """
        with self._transaction():
            self._free(item)

    def release_all(self) -> None:
        """Give every question free that this run still claims.

        Source: ours.
        """
        with contextlib.suppress(OSError), self._transaction() as connection:
            connection.execute("DELETE FROM claims WHERE owner = ?", (self._owner,))

    def _free(self, item: str) -> None:
        mine = (item, self._owner)
        self._connection.execute("DELETE FROM claims WHERE item = ? AND owner = ?", mine)

    def _attempts(self, item: str) -> list[Attempt]:
        cursor = self._connection.execute(
            "SELECT attempt, state, value, note, reply, schema, model, prompt_tokens, "
            "completion_tokens, seconds FROM attempts WHERE item = ? ORDER BY attempt",
            (item,),
        )
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor]
        return [Attempt(**row | {"value": json.loads(row["value"])}) for row in rows]

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Run a block as one transaction that no other process's writing comes between."""
        with _reported(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # SQLite ends one itself where room runs out
                    self._connection.execute("ROLLBACK")
                raise


def _final(attempts: list[Attempt], limit: int) -> Attempt | None:
    good = [attempt for attempt in attempts if attempt.state == "ok"]
    if good:
        return good[0]
    return attempts[-1] if len(attempts) >= limit else None


def _prepare(connection: sqlite3.Connection, path: Path, patience: float) -> None:
    """Check whose file it is, and make the tables where it is new."""
    # In one statement: another process may be making the tables at this moment.
    version, tables = connection.execute(
        "SELECT (SELECT user_version FROM pragma_user_version), count(*) FROM sqlite_master"
    ).fetchone()
    if version != VERSION and (version or tables):
        raise ValueError(
            f"expected a cache of judgements, version {VERSION}, at {path}; it is another database "
            f"or version {version}. Name another file."
        )
    deadline = time.monotonic() + patience
    while True:
        try:  # SQLite does not wait for another process that makes the same change
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous = FULL")  # what was paid outlives a power cut too
    connection.executescript(f"BEGIN IMMEDIATE;{TABLES}PRAGMA user_version = {VERSION};COMMIT;")


def _is_alive(owner: str) -> bool:
    """Return whether the process that made a claim still runs; its number may be another's now."""
    number, created, _ = owner.split(" ")
    try:
        process = psutil.Process(int(number))
        is_same = abs(process.create_time() - float(created)) < 1.0
        # Killed and not yet waited for; in a container without an init, for ever.
        return is_same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:  # it exists, and is not ours to look at
        return True


@contextlib.contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into those that say what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(
            f"cannot use the cache of judgements {path}: {error}. Make room, or name another file; "
            "what was stored is kept."
        ) from error
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"expected a cache of judgements at {path}; {error}. Name another file."
        ) from error
