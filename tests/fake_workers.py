"""Workers that answer without a model: they start in a moment. What a row says, they do."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from codit.dataset.workers import Records, Row


def load(folder: str, number: int) -> Callable[[Sequence[Row]], Records]:
    """Return what answers; each batch leaves a mark in a folder."""
    return partial(answer, folder, number)


def answer(folder: str, number: int, rows: Sequence[Row]) -> Records:
    for row in rows:
        (Path(folder) / f"{row['id']}.{time.monotonic_ns()}").touch()
        if row.get("dies"):
            time.sleep(0.5)  # others answer meanwhile
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(row.get("seconds", 0))
    return [{"id": row["id"], "pid": os.getpid(), "number": number} for row in rows]


def die(number: int) -> Callable[[Sequence[Row]], Records]:
    """Die while loading."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def fail(number: int) -> Callable[[Sequence[Row]], Records]:
    """Fail as a worker does whose models cannot be loaded."""
    raise ValueError("these do not belong together")


def wait(number: int) -> Callable[[Sequence[Row]], Records]:
    """Answer nothing."""
    time.sleep(600)
    raise AssertionError
