"""The cache of judgements: nothing is lost, one process asks at a time, and a dead one none."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codit.evaluation import reply_cache
from codit.evaluation.reply_cache import Attempt, attempt_key, final, item_key, opened

OK = Attempt(
    attempt=0, state="ok", value=8.0, note="", reply="{}", schema="honoured", model="m",
    prompt_tokens=3, completion_tokens=None, seconds=0.5,
)  # fmt: skip
BAD = replace(OK, state="parse_error", value=None, note="prose")


def test_what_is_stored_is_found_again_by_another_run(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cache.sqlite"
    with opened(path) as cache:
        assert cache.attempts("a") == []
        cache.store("a", OK)
    with opened(path) as cache:
        assert cache.attempts("a") == [OK]
    assert sorted(file.name for file in path.parent.iterdir()) == [
        "cache.sqlite", "cache.sqlite.lock",
    ]  # fmt: skip


def test_failures_use_up_attempts_and_a_higher_limit_allows_more(tmp_path: Path) -> None:
    with opened(tmp_path / "c") as cache:
        assert final(cache.attempts("a"), limit=1) is None
        for number in range(2):
            cache.store("a", replace(BAD, attempt=number))
        assert final(cache.attempts("a"), limit=2) == replace(BAD, attempt=1)
        assert final(cache.attempts("a"), limit=3) is None
        cache.store("a", replace(OK, attempt=2))
        cache.store("a", replace(BAD, attempt=3))
        for limit in (1, 3, 9):
            assert final(cache.attempts("a"), limit=limit) == replace(OK, attempt=2)


@contextlib.contextmanager
def held(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that asks into the cache."""
    code = (
        "import sys, time\nfrom codit.evaluation.reply_cache import opened\n"
        "with opened(sys.argv[1]):\n    print('held', flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


@pytest.mark.parametrize("is_waited_for", [True, False])
def test_another_process_is_waited_for_and_a_killed_one_is_not(
    is_waited_for: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def waits() -> list[Attempt]:
        with opened(tmp_path / "c") as cache:
            return cache.attempts("a")

    with held(tmp_path / "c") as process, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(waits)
        with pytest.raises(TimeoutError):
            waiting.result(timeout=0.3)
        assert caplog.messages == [
            f"another process judges into {tmp_path / 'c'}; this one waits for it"
        ]
        os.kill(process.pid, signal.SIGKILL)
        if is_waited_for:
            process.wait()
        else:  # as in a container whose first process waits for nobody
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert waiting.result(timeout=10) == []


def test_whoever_only_looks_does_not_wait(tmp_path: Path) -> None:
    with held(tmp_path / "c"), opened(tmp_path / "c", is_asking=False) as cache:
        assert cache.attempts("a") == []


def ask_all(path: Path, items: list[str], results: Any) -> None:
    mine = []
    with opened(path) as cache:
        for item in items:
            if not cache.attempts(item):
                mine.append(item)
                cache.store(item, OK)
    results.put(mine)


def test_processes_that_share_a_file_ask_each_question_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    items = [str(n) for n in range(40)]
    arguments = (tmp_path / "c", items, results)  # none has the file: all make it at once
    workers = [context.Process(target=ask_all, args=arguments) for _ in range(3)]
    for worker in workers:
        worker.start()
    asked = [item for _ in workers for item in results.get(timeout=60)]
    for worker in workers:
        worker.join()
        worker.close()
    results.close()
    results.join_thread()
    assert sorted(asked) == sorted(items)


def test_keys_tell_everything_that_may_change_a_reply() -> None:
    asked = {"model": "m", "revision": None, "template": "t", "prompt": "p", "sample": 0, "seed": 0}
    changed = [{**asked, name: f"{value}!"} for name, value in asked.items()]
    keys = [item_key(**one) for one in (asked, *changed)]
    assert len(set(keys)) == len(keys)
    assert item_key(**dict(reversed(asked.items()))) == keys[0]
    assert len({attempt_key(keys[0], n) for n in range(5)}) == 5


def test_another_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(
        "not a database, and longer than a header of one hundred bytes" * 3
    )
    with pytest.raises(ValueError, match="Name another file"), opened(tmp_path / "text"):
        pass
    connection = sqlite3.connect(tmp_path / "other")
    connection.execute("CREATE TABLE people (name TEXT)")
    connection.commit()
    connection.close()
    before = (tmp_path / "other").read_bytes()
    with pytest.raises(ValueError, match="another database"), opened(tmp_path / "other"):
        pass
    assert (tmp_path / "other").read_bytes() == before
    connection = sqlite3.connect(tmp_path / "newer")
    connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(ValueError, match="version 2"), opened(tmp_path / "newer"):
        pass


def test_a_folder_or_a_locked_file_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(OSError, match="name another file"), opened(tmp_path):
        pass
    with opened(tmp_path / "c"):
        pass
    connection = sqlite3.connect(tmp_path / "c", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(reply_cache, "PATIENCE", 0.1)
    start = time.monotonic()
    with pytest.raises(OSError, match="locked"), opened(tmp_path / "c") as cache:
        cache.store("a", OK)
    assert 0.1 <= time.monotonic() - start < 2
    connection.execute("ROLLBACK")
    connection.close()


def test_where_room_runs_out_the_error_says_so_and_what_was_stored_is_kept(tmp_path: Path) -> None:
    def overfull() -> None:
        with opened(tmp_path / "c") as cache:
            cache.store("a", OK)
            (pages,) = cache._connection.execute("PRAGMA page_count").fetchone()
            cache._connection.execute(f"PRAGMA max_page_count = {pages}")
            cache.store("b", replace(OK, reply="x" * 200_000))

    with pytest.raises(OSError, match=r"full\. Make room"):
        overfull()
    with opened(tmp_path / "c") as cache:
        assert (cache.attempts("a"), cache.attempts("b")) == ([OK], [])
