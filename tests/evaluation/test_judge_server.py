"""A judge behind a real server, `transformers serve`: states, the cache, the schema, its end."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from codit.evaluation import judge
from codit.evaluation.judge import Asking, Judge
from codit.world import server
from tests.judge_server import mute, serve

ROWS = [{"id": n, "instruction": f"Say {n}.", "response": f"{n}!"} for n in range(6)]
ONCE = Asking(timeout=60, tries=2, attempts=1, concurrency=2, max_failures=1.0, progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mute(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    with serve(folder) as base_url:
        yield base_url


def asked(url: str) -> Judge:
    return Judge(model="mute", base_url=url, temperature=0, max_tokens=24)


def test_every_row_ends_in_a_state_and_no_request_fails(url: str, tmp_path: Path) -> None:
    judged = judge.score(ROWS, asked(url), cache=tmp_path / "c.sqlite", asking=ONCE)
    assert len(judged.judgements) == len(judged.table) == len(ROWS)
    assert set(judged.judgements["state"]) <= {"parse_error", "empty", "truncated"}
    assert judged.tally.calls == judged.tally.replies == len(ROWS)
    assert judged.tally.unmetered == 0
    assert judged.judgements["model"].str.startswith("mute").all()


def test_a_second_run_costs_no_call(url: str, tmp_path: Path) -> None:
    first, second = (
        judge.score(ROWS, asked(url), cache=tmp_path / "c.sqlite", asking=ONCE) for _ in range(2)
    )
    assert first.tally.calls == len(ROWS)
    assert second.tally.calls == 0
    assert second.tally.cached == len(ROWS)
    assert second.judgements["reply"].tolist() == first.judgements["reply"].tolist()


def test_it_is_recorded_that_the_schema_was_asked_for_and_ignored(url: str, tmp_path: Path) -> None:
    judged = judge.score(ROWS, asked(url), cache=tmp_path / "c.sqlite", asking=ONCE)
    # This server neither rejects a schema nor enforces it, and noise is no JSON.
    assert judged.tally.schema == {"ignored": len(ROWS)}


def test_a_server_listens_on_loopback_alone_and_is_gone_after_a_failure(folder: Path) -> None:
    others = set(psutil.Process().children())
    with pytest.raises(RuntimeError, match="a test fails"), serve(folder) as base_url:  # noqa: PT012
        port = urlsplit(base_url).port or 0
        (child,) = set(psutil.Process().children()) - others
        listening = [c for c in child.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert [tuple(c.laddr) for c in listening] == [("127.0.0.1", port)]
        raise RuntimeError("a test fails")
    assert not child.is_running()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


def test_a_folder_without_a_model_is_refused_with_the_servers_words(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="its last words: .*empty"), serve(empty):
        pytest.fail("nothing to serve")
    with pytest.raises(ValueError, match="expected the folder"), serve(tmp_path / "none"):
        pytest.fail("nothing to serve")


def test_a_server_without_the_process_that_started_it_ends_by_itself() -> None:
    command = [sys.executable, "-P", "-c", server.PROGRAM, "serve", "none", "--port", "0"]
    assert subprocess.run(command, stdin=subprocess.DEVNULL, timeout=60).returncode == 0


def test_a_server_that_takes_too_long_is_stopped(folder: Path) -> None:
    others = set(psutil.Process().children())
    with pytest.raises(ValueError, match="within 0.01 s"), serve(folder, deadline=0.01):
        pytest.fail("nothing can start so fast")
    assert set(psutil.Process().children()) <= others
