"""The cache of judgements: nothing is lost, nothing is asked by two, and a dead claim is none."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codit import judge_cache
from codit.judge_cache import Attempt, attempt_key, item_key, opened

OK = Attempt(
    attempt=0, state="ok", value=8.0, note="", reply="{}", schema="honoured", model="m",
    prompt_tokens=3, completion_tokens=None, seconds=0.5,
)  # fmt: skip
BAD = replace(OK, state="parse_error", value=None, note="prose")


def test_what_is_stored_is_found_again_by_another_run(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "cache.sqlite"
    with opened(path) as cache:
        assert cache.final("a", limit=3) is None
        assert cache.claim("a", limit=3) == 0
        cache.store("a", OK)
    with opened(path) as cache:
        assert cache.final("a", limit=1) == OK
        assert cache.claim("a", limit=1) == OK
    assert [file.name for file in path.parent.iterdir()] == ["cache.sqlite"]


def test_failures_use_up_attempts_and_a_higher_limit_allows_more(tmp_path: Path) -> None:
    with opened(tmp_path / "c") as cache:
        for number in range(2):
            assert cache.claim("a", limit=2) == number
            cache.store("a", replace(BAD, attempt=number))
        assert cache.claim("a", limit=2) == cache.final("a", limit=2) == replace(BAD, attempt=1)
        assert cache.final("a", limit=3) is None
        assert cache.claim("a", limit=3) == 2
        cache.store("a", replace(OK, attempt=2))
        assert cache.final("a", limit=1) == replace(OK, attempt=2)


def test_a_question_that_one_run_asks_no_other_asks(tmp_path: Path) -> None:
    with opened(tmp_path / "c") as one, opened(tmp_path / "c") as other:
        assert one.claim("a", limit=3) == 0
        assert other.claim("a", limit=3) is None
        assert other.claim("b", limit=3) == 0
        one.release("a")
        assert other.claim("a", limit=3) == 0
        other.store("a", OK)
        assert one.claim("a", limit=3) == OK


def test_claims_end_with_their_run(tmp_path: Path) -> None:
    with opened(tmp_path / "c") as other:
        with contextlib.suppress(RuntimeError), opened(tmp_path / "c") as one:
            assert one.claim("a", limit=3) == 0
            assert other.claim("a", limit=3) is None
            raise RuntimeError
        assert other.claim("a", limit=3) == 0


@pytest.mark.parametrize("is_waited_for", [True, False])
def test_the_claim_of_a_killed_process_counts_no_longer(
    is_waited_for: bool, tmp_path: Path
) -> None:
    code = (
        "import sys, time\nfrom codit.judge_cache import opened\n"
        "with opened(sys.argv[1]) as cache:\n"
        "    print(cache.claim('a', limit=3), flush=True)\n    time.sleep(60)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "c")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "0\n"
        with opened(tmp_path / "c") as cache:
            assert cache.claim("a", limit=3) is None
            os.kill(process.pid, signal.SIGKILL)
            if is_waited_for:
                process.wait()
            else:  # as in a container whose first process waits for nobody
                os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            assert cache.claim("a", limit=3) == 0


def test_a_process_number_that_is_another_s_now_is_no_claim(tmp_path: Path) -> None:
    assert judge_cache._is_alive(f"{os.getpid()} 12.0 x") is False


def claim_all(path: Path, items: list[str], results: Any) -> None:
    mine = []
    with opened(path) as cache:
        for item in items:
            if cache.claim(item, limit=3) == 0:
                mine.append(item)
                cache.store(item, OK)
    results.put(mine)


def test_processes_that_share_a_file_ask_each_question_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    items = [str(n) for n in range(40)]
    arguments = (tmp_path / "c", items, results)  # none has the file: all make it at once
    workers = [context.Process(target=claim_all, args=arguments) for _ in range(3)]
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


def test_a_folder_or_a_locked_file_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="name another file"), opened(tmp_path):
        pass
    with opened(tmp_path / "c"):
        pass
    connection = sqlite3.connect(tmp_path / "c", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    start = time.monotonic()
    with pytest.raises(OSError, match="locked"), opened(tmp_path / "c", patience=0.1):
        pass
    assert 0.1 <= time.monotonic() - start < 2
    connection.execute("ROLLBACK")
    connection.close()


def test_where_room_runs_out_the_error_says_so_and_what_was_stored_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path / "c") as cache:
        cache.claim("a", limit=3)
        cache.store("a", OK)
        (pages,) = cache._connection.execute("PRAGMA page_count").fetchone()
        cache._connection.execute(f"PRAGMA max_page_count = {pages}")
        cache.claim("b", limit=3)
        with pytest.raises(OSError, match=r"full\. Make room"):
            cache.store("b", replace(OK, reply="x" * 200_000))
        assert cache.final("a", limit=3) == OK
        cache.release("b")
        with opened(tmp_path / "c") as other:
            assert other.claim("b", limit=3) == 0
