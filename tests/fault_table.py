"""What becomes of every fault of a judge's server: the table of tests/tables/faults.md.

`python -m tests.fault_table` prints it; with `--commit` it replaces the committed one.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from codit.evaluation import judge
from codit.evaluation.judge import Asking, Judge, Judged
from tests.fault_server import FAULTS, TEXT, Sent, said, serving

TABLE = Path(__file__).parent / "tables" / "faults.md"
QUICK = Asking(timeout=20, tries=2, attempts=2, max_failures=1.0, progress=False)
SLOW = ("hangs", "slow drip")  # given up after a third of a second
ONE = [{"id": "a", "instruction": "Say hi.", "response": "Hi."}]
MANY = [{"id": n, "instruction": f"Say {n}.", "response": f"{n}!"} for n in range(12)]
AT_ONCE, KEPT = 2, 5  # of the run that is killed: questions at a time, replies before the kill
KILLED = """
import json, sys
from codit.evaluation import judge
url, cache, rows, at_once = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), int(sys.argv[4])
asking = judge.Asking(concurrency=at_once, progress=False)
judge.score(rows, judge.Judge(model="a-judge", base_url=url), cache=cache, asking=asking)
"""


class Outcome(NamedTuple):
    """What a fault ends in: state, value, note; requests, paid replies; requests of another run."""

    state: str
    value: float | None
    sent: int
    paid: int
    again: int
    note: str


class Crash(NamedTuple):
    """A run killed in the middle and started again: how often each question was paid for."""

    kept: int
    under_way: int
    sent: int
    once: int
    twice: int


def ask(rows: list[dict[str, Any]], url: str, cache: Path, asking: Asking = QUICK) -> Judged:
    return judge.score(rows, Judge(model="a-judge", base_url=url), cache=cache, asking=asking)


def outcome(fault: str, folder: Path) -> Outcome:
    """Ask a server that does nothing but this, twice."""
    asking = replace(QUICK, timeout=0.3) if fault in SLOW else QUICK
    with serving(FAULTS[fault]) as server:
        first, second = (ask(ONE, server.url, folder / "c", asking) for _ in range(2))
    only = first.judgements.iloc[0]
    value = None if pd.isna(only["value"]) else only["value"]
    tally = first.tally
    return Outcome(
        only["state"], value, tally.calls, tally.replies, second.tally.calls, only["note"]
    )


def crash(folder: Path) -> Crash:
    """Kill a run with SIGKILL after so many replies, others under way, and start it again."""
    cache, paid = folder / "c", Counter[str]()

    def answer(request: dict[str, Any], number: int) -> Sent:
        if is_first and number >= KEPT:
            return Sent(is_hanging=True)
        paid[request["messages"][0]["content"]] += 1
        return said(TEXT)

    def stored() -> int:
        if not cache.exists():
            return 0
        connection = sqlite3.connect(cache)
        try:
            return int(connection.execute("SELECT count(*) FROM attempts").fetchone()[0])
        except sqlite3.OperationalError:  # no tables yet
            return 0
        finally:
            connection.close()

    is_first = True
    with serving(answer) as server:
        given = [server.url, str(cache), json.dumps(MANY), str(AT_ONCE)]
        with subprocess.Popen([sys.executable, "-c", KILLED, *given]) as process:
            try:
                deadline = time.monotonic() + 60
                while stored() < KEPT or len(server.requests) < KEPT + AT_ONCE:
                    assert time.monotonic() < deadline, "the run never came so far"
                    time.sleep(0.005)
            finally:
                process.kill()  # SIGKILL; or leaving the block would wait for it
        under_way, is_first = len(server.requests) - stored(), False
        server.requests.clear()
        kept = stored()
        last = ask(MANY, server.url, cache)
        assert last.summary["n_ok"] == len(MANY)
        counts = Counter(paid.values())
        twice = sum(n for times, n in counts.items() if times > 1)
        return Crash(kept, under_way, len(server.requests), counts[1], twice)


def does(sent: Sent) -> str:
    """Say what a server does."""
    if sent.is_hanging:
        return "takes the request and says nothing"
    if sent.is_cut:
        return "closes the connection"
    text = sent.body.decode()
    headers = "".join(f", {name}: {value}" for name, value in sent.headers.items())
    try:
        body = json.loads(text)
        choice = body["choices"][0]
    except (ValueError, TypeError, LookupError):
        body, shown = {}, f"`{text if len(text) < 80 else f'{text[:40]} ... {text[-12:]}'}`"
    else:
        message = {k: v for k, v in choice["message"].items() if k not in ("role", "content")}
        content = choice["message"]["content"]
        content = content if content and content.strip() else json.dumps(content)
        if choice["finish_reason"] != "stop":
            message["finish_reason"] = choice["finish_reason"]
        if "usage" not in body:
            message["usage"] = "none"
        more = "".join(f", {name}: {value}" for name, value in message.items())
        shown = f"a completion, content: `{content}`{more}"
    dripping = f", a byte every {sent.drip:g} s" if sent.drip else ""
    return f"{sent.status}{headers}: {shown}{dripping}"


def written(folder: Path) -> str:
    """Return the table as Markdown."""
    return "\n".join(_lines(folder)) + "\n"


def _lines(folder: Path) -> Iterator[str]:
    found = {}
    for number, fault in enumerate(FAULTS):
        (folder / str(number)).mkdir()
        found[fault] = outcome(fault, folder / str(number))
    states = ", ".join(f"{n} {s}" for s, n in Counter(o.state for o in found.values()).items())
    numbers = sum(one.value is not None for one in found.values())
    yield "# Faults of a judge's server"
    yield ""
    yield (
        f"{len(found)} servers, each with one fault, asked one question by `judge.score`: at most "
        f"{QUICK.attempts} paid replies to a question, {QUICK.tries} requests for each while there "
        "is no reply. *Asked again*: requests of a second run with the same cache; what got a "
        "reply is never paid for again. `python -m tests.fault_table --commit` writes this table, "
        "and a test compares it with what happens."
    )
    yield ""
    yield f"**With a number: {numbers} of {len(found)}.** {states}."
    yield ""
    yield "| fault | the server | state | value | sent | paid | asked again | note |"
    yield "| --- | --- | --- | --- | --- | --- | --- | --- |"
    for fault, one in found.items():
        value = "none" if one.value is None else f"{one.value:g}"
        cells = [fault, does(FAULTS[fault]), one.state, value, one.sent, one.paid, one.again]
        yield "| " + " | ".join(_cell(cell) for cell in [*cells, one.note]) + " |"
    yield ""
    yield from _crash_lines(crash(folder))


def _crash_lines(found: Crash) -> Iterator[str]:
    yield "## A run killed in the middle"
    yield ""
    yield (
        f"{len(MANY)} questions, {AT_ONCE} at a time; SIGKILL after {KEPT} replies, then the same "
        "run again. A question that was under way has no reply and is asked again: nothing was "
        "paid for it here. A server that goes on writing for a client that is gone may charge for "
        "that, at most once for each of the questions that are asked at a time."
    )
    yield ""
    yield "| stored at the kill | under way | sent by the second run | paid once | paid twice |"
    yield "| --- | --- | --- | --- | --- |"
    yield "| " + " | ".join(str(cell) for cell in found) + " |"


def _cell(cell: object) -> str:
    return " ".join(str(cell).split()).replace("|", "\\|")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        text = written(Path(place))
    if "--commit" in sys.argv:
        TABLE.write_text(text, encoding="utf-8")
    print(text, end="")
