"""A run killed at any moment leaves what the same command completes to the same bytes."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from codit import cli
from tests import kills
from tests.kills import PHASES, Kill, Moment

TABLE = Path(__file__).parent / "tables" / "kills.md"
SHARES = {"loading": 20, "decoding": 30, "writing": 20, "finishing": 30}  # of a hundred kills


class Whole(NamedTuple):
    """A run that nothing interrupted: its command, its files, what it did."""

    arguments: list[str]
    files: dict[str, bytes]
    events: list[kills.Event]


@pytest.fixture(scope="module")
def server() -> Iterator[kills.Server]:
    with kills.serving() as server:
        yield server


@pytest.fixture(scope="module")
def whole(server: kills.Server, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("kills")
    arguments = kills.prepare(folder)
    for name in ("first", "whole"):  # the first run of a server imports what was not yet needed
        run = server.start(arguments, folder / name / "data.jsonl")
        assert run.wait() == 0, run.log.read_text()
    assert {event.phase for event in run.events()} == set(PHASES)
    files = kills.kept(run.out)
    assert set(files) == {
        ".data.jsonl.lock",
        "data.jsonl",
        "data.errors.jsonl",
        "data.manifest.json",
        "data.README.md",
    }
    return Whole(arguments, files, run.events())


def killed(
    server: kills.Server, whole: Whole, out: Path, moments: list[Moment]
) -> list[Kill | None]:
    """Kill one run after the other at these moments, and let the last one end."""
    found = [server.start(whole.arguments, out).kill(moment) for moment in moments]
    last = server.start(whole.arguments, out)
    assert last.wait() == 0, last.log.read_text()
    return found


@pytest.mark.parametrize("number", range(2))
@pytest.mark.parametrize("phase", PHASES)
def test_a_run_killed_at_a_random_moment_is_completed_to_the_same_bytes(
    phase: str, number: int, server: kills.Server, whole: Whole, tmp_path: Path
) -> None:
    for moment in kills.moments(whole.events, phase, 20, seed=number):
        out = tmp_path / f"{moment}" / "data.jsonl"
        (kill,) = killed(server, whole, out, [moment])
        assert kills.faults(out, whole.files) == []
        if kill is not None:  # else a machine that others use was quicker: the run had ended
            return
    pytest.fail(f"expected a kill while {phase}; twenty runs had ended before")


@pytest.mark.parametrize("seed", range(2))
def test_a_run_killed_again_and_again_is_completed_to_the_same_bytes(
    seed: int, server: kills.Server, whole: Whole, tmp_path: Path
) -> None:
    draw, out = random.Random(seed), tmp_path / "run" / "data.jsonl"
    ends = whole.events[-1].seconds
    moments = [Moment(0, draw.uniform(0.4, 0.9) * ends) for _ in range(4)]
    # One waits for what the run does: at the others a quicker run may have ended.
    moments = [*kills.moments(whole.events, "decoding", 1, seed=seed), *moments]
    found = killed(server, whole, out, moments)
    assert found[0] is not None
    assert kills.faults(out, whole.files) == []


def test_half_a_line_after_a_kill_is_written_again(
    server: kills.Server, whole: Whole, tmp_path: Path
) -> None:
    out = tmp_path / "run" / "data.jsonl"
    for number in (0, 1):
        (moment,) = kills.moments(whole.events, "decoding", 1, seed=number)
        server.start(whole.arguments, out).kill(moment)
        with out.with_suffix(".partial").open("a") as stream:
            stream.write('{"id": "row 9", "is_comp')
    assert killed(server, whole, out, []) == []
    assert kills.faults(out, whole.files) == []


def test_a_finished_run_that_is_started_again_changes_nothing(
    server: kills.Server, whole: Whole, tmp_path: Path
) -> None:
    out = tmp_path / "run" / "data.jsonl"
    killed(server, whole, out, [])
    before = {path: path.stat().st_mtime_ns for path in out.parent.glob("data.*")}
    killed(server, whole, out, [])
    assert before == {path: path.stat().st_mtime_ns for path in out.parent.glob("data.*")}


def test_a_clock_that_runs_backwards_changes_no_byte(
    whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = itertools.count(2_000_000_000, -1000)
    monkeypatch.setattr(time, "time", lambda: float(next(seconds)))
    out = tmp_path / "run" / "data.jsonl"
    assert cli.main([*whole.arguments, "--out", str(out)]) == 0
    assert kills.faults(out, whole.files) == []


@pytest.mark.long
def test_a_hundred_runs_killed_at_random_moments_are_completed_to_the_same_bytes(
    server: kills.Server, whole: Whole, tmp_path: Path
) -> None:
    table = []
    for phase, n in SHARES.items():
        found: list[tuple[Kill, list[str]]] = []
        for number, moment in enumerate(kills.moments(whole.events, phase, 2 * n, seed=100)):
            out = tmp_path / f"{phase} {number}" / "data.jsonl"
            (kill,) = killed(server, whole, out, [moment])
            if kill is not None:  # else a machine that others use was quicker: it had ended
                found.append((kill, kills.faults(out, whole.files)))
            if len(found) == n:
                break
        table += found
    assert len(table) == sum(SHARES.values())
    TABLE.write_text(written(table))
    assert [wrong for _, wrong in table if wrong] == []


# ---- workers

WORKERS = {
    "processes": ["--workers", "2"],
    "ray": ["--workers", "2", "--ray-address", "local"],
}


@pytest.fixture(scope="module", params=WORKERS)
def shared(request: pytest.FixtureRequest, server: kills.Server, whole: Whole) -> Whole:
    """A run of two workers that nothing interrupted."""
    out = Path(whole.arguments[whole.arguments.index("--prompts") + 1]).parent / request.param / "o"
    asked = server.start(["synthesize", "--help"], out)
    asked.wait()
    if "--workers" not in asked.log.read_text():
        pytest.skip("codit synthesize has no --workers here")
    if request.param == "ray":
        pytest.importorskip("ray", reason="Ray is an extra: pip install -e .[ray]")
    arguments = [*whole.arguments, *WORKERS[request.param]]
    run = server.start(arguments, out.with_name("data.jsonl"))
    status = run.wait()
    if "timed out during startup" in run.log.read_text():
        pytest.skip("Ray gives itself 30 s to start: too little on this busy machine, three times")
    assert status == 0, run.log.read_text()
    files = kills.kept(run.out)
    rows = ("data.jsonl", "data.errors.jsonl")  # the manifest tells how many workers there were
    assert [files[name] == whole.files[name] for name in rows] == [True, True]
    return Whole(arguments, files, run.events())


def check_workers(
    server: kills.Server, shared: Whole, folder: Path, numbers: Sequence[int]
) -> list[tuple[Kill | None, list[str]]]:
    """Kill runs of two workers, most often the driver, and complete each."""
    found = []
    for number in numbers:
        phase = "decoding" if number % 4 else "loading"  # the others take no time beside these
        (moment,) = kills.moments(shared.events, phase, 1, seed=number)
        out = folder / str(number) / "data.jsonl"
        run = server.start(shared.arguments, out)
        kill = run.kill(moment, whom="driver" if number % 10 else "worker")
        last = server.start(shared.arguments, out)
        check_ended(last)
        found.append((kill, kills.faults(out, shared.files)))
    return found


def check_ended(run: kills.Run) -> None:
    """Assert that a run ended well; skip where Ray could not start in the 30 s it gives itself."""
    status = run.wait()
    if "timed out during startup" in run.log.read_text():
        pytest.skip("Ray gives itself 30 s to start: too little on this busy machine, three times")
    assert status == 0, run.log.read_text()


@pytest.mark.long  # test_workers.py and test_ray_workers.py kill one at a moment of their choice
def test_two_workers_killed_at_random_moments_are_completed_to_the_same_bytes(
    server: kills.Server, shared: Whole, tmp_path: Path
) -> None:
    found = check_workers(server, shared, tmp_path, (9, 10))
    assert [wrong for _, wrong in found] == [[], []]


@pytest.mark.long
def test_two_workers_killed_twenty_times_are_completed_to_the_same_bytes(
    server: kills.Server, shared: Whole, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    found: list[tuple[Kill | None, list[str]]] = []
    for number in range(101, 161):
        found += check_workers(server, shared, tmp_path, [number])
        if sum(kill is not None for kill, _ in found) == 20:  # the others had ended before
            break
    kind = request.node.callspec.params["shared"]
    at_work = [(kill, wrong) for kill, wrong in found if kill is not None]
    TABLE.with_name(f"kills_{kind}.md").write_text(written(at_work, how=WORKERS[kind]))
    assert len(at_work) == 20
    assert [wrong for _, wrong in found if wrong] == []


# ---- the table


def written(table: list[tuple[Kill, list[str]]], how: Sequence[str] = ()) -> str:
    """Return the table of kills as Markdown."""
    command = " ".join(["codit synthesize", *how])
    same = sum(not wrong for _, wrong in table)
    counts = Counter(kill.phase for kill, _ in table)
    lines = [
        "# Kills",
        "",
        f"`{command}` over {len(kills.ROWS)} rows, in batches of 2, killed with SIGKILL at "
        "random moments and started again: is the dataset that of a run that nothing interrupted, "
        "byte for byte, without leftovers? `make test-long` writes this table.",
        "",
        f"**Identical: {same} / {len(table)}.** Killed while "
        + ", ".join(f"{phase}: {counts[phase]}" for phase in PHASES)
        + ".",
        "",
        "| | after | while | the last thing it did to a file | lines there | identical |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for number, (kill, wrong) in enumerate(table, start=1):
        event = re.sub(r"\.[a-z0-9_]{8}\.tmp", ".*.tmp", kill.event)
        lines.append(
            f"| {number} | {kill.seconds:.3f} s | {kill.phase} | {event} | {kill.lines} | "
            f"{'; '.join(wrong) or 'yes'} |"
        )
    return "\n".join(lines) + "\n"


def test_the_committed_table_holds_a_hundred_kills_without_a_fault() -> None:
    text = TABLE.read_text()
    assert "**Identical: 100 / 100.**" in text
    assert len(re.findall(r"^\| \d+ \| .* \| yes \|$", text, re.M)) == 100
