"""Workers that answer without a model: they start in a moment. What a row says, they do."""

from __future__ import annotations

import os
import signal
import threading
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


def serve(work: Any, k: int, connection: Connection) -> None:
    """Stand in for `workers._serve`; `work` names a folder where batches leave a mark."""
    connection.send(("ready", None))
    while True:
        try:
            rows = connection.recv()
        except EOFError:
            return
        for row in rows:
            _do(work, row)
        connection.send(("records", [{"id": row["id"], "pid": os.getpid()} for row in rows]))


def end_with_driver(work: Any, k: int, connection: Connection) -> None:
    """Answer nothing, and watch the driver as real workers do."""
    from codit import workers

    threading.Thread(target=workers._end_with_driver, daemon=True).start()
    connection.send(("ready", None))
    time.sleep(600)


def die(work: Any, k: int, connection: Connection) -> None:
    """Die while loading."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail(work: Any, k: int, connection: Connection) -> None:
    """Fail as a worker does whose models cannot be loaded."""
    connection.send(("failed", work))


def _do(folder: str, row: dict[str, Any]) -> None:
    mark = Path(folder) / f"{row['id']}.{time.monotonic_ns()}"
    mark.touch()
    times = len(list(mark.parent.glob(f"{row['id']}.*")))
    if times <= row.get("deaths", 0):
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(row.get("seconds", 0))
