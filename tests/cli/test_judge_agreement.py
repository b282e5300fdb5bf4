"""`codit judge-agreement`: the files that two judges wrote, compared; one line for a fault."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from codit import cli
from tests.fault_server import Answer, decided, scored, serving

ROWS = [{"id": f"r{n}", "instruction": f"ask {n}", "response": f"answer {n}"} for n in range(8)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, rows: list[Any]) -> None:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def scores(*values: float | None, **more: Any) -> list[dict[str, Any]]:
    return [{"id": f"r{n}", "sample": 0, "score": v, **more} for n, v in enumerate(values)]


def compare(*more: str) -> int:
    return cli.main(["judge-agreement", "--first", "a.jsonl", "--second", "b.jsonl", *more])


def shown(capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in lines}


def test_two_files_of_scores_are_compared(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write("a.jsonl", scores(4, 5, 6, 7, 8, 9, 10, None, None, 3))
    write("b.jsonl", scores(1, 2, 3, 4, 5, 6, 7, 5, None, None)[::-1])
    assert compare() == 0
    found = shown(capsys)
    assert found["rows"] == (
        "7 judged by both, 1 by the first alone, 1 by the second alone, 1 by neither"
    )
    assert found["Spearman"].startswith("1.000 [1.000, 1.000]")
    assert found["kappa"].startswith("-0.089 [")  # 1 - 1 / (1 - 4 / 49)
    assert found["weighted"].startswith("0.471 [")  # 1 - 9 / 17
    assert found["equal"] == "0.0%: the same score"


def in_turn(low: int, is_pair: bool) -> Answer:
    """A judge that says one thing after the other, whatever it is asked."""
    words = ["first", "second", "second", "first", "tie", "tie"]
    return lambda request, n: decided(words[n % len(words)]) if is_pair else scored(low + n % 5)


def test_what_codit_judge_writes_is_what_is_read(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("data.jsonl", ROWS)
    write("other.jsonl", [{**row, "response": "other"} for row in ROWS])
    talks = [{"turns": ["a", f"{n}"], "responses": ["c", "d"]} for n in range(4)]
    write("talk.jsonl", talks)
    modes = {"data": [], "against": ["--against", "other.jsonl"], "talk": ["--conversations"]}
    told = {"data": "8", "against": "8", "talk": "8"}  # two turns of four conversations
    for name, mode in modes.items():
        is_pair = name == "against"
        for out, low in (("a", 1), ("b", 3)):
            data = "talk.jsonl" if name == "talk" else "data.jsonl"
            given = ["judge", "--data", data, "--out", f"{out}.jsonl", "--model", out, *mode]
            given += ["--no-progress", "--concurrency", "1"]
            with serving(in_turn(low, is_pair)) as server:
                assert cli.main([*given, "--base-url", server.url]) == 0
        capsys.readouterr()
        assert compare() == 0
        found = shown(capsys)
        assert found["rows"].startswith(f"{told[name]} judged by both, 0 by")
        assert found["Spearman"].startswith("1.000")
        assert found["equal"].startswith("100.0%: the same winner" if is_pair else "0.0%")
        assert found["kappa"].startswith("1.000") == is_pair
        for out in ("a", "b"):
            Path(f"{out}.cache.sqlite").unlink()


def test_judges_that_never_differ_have_no_correlation(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("a.jsonl", scores(5, 5, 5))
    write("b.jsonl", scores(5, 5, 5))
    assert compare() == 0
    found = shown(capsys)
    assert [found[name].split(":")[0].split(" (")[0] for name in ("Spearman", "kappa")] == [
        "undefined", "undefined",
    ]  # fmt: skip
    assert found["equal"].startswith("100.0%")


GOOD = scores(1, 2, 3)
WINS = [{"id": f"r{n}", "sample": 0, "preference": 0.5} for n in range(3)]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "expected a file of JSON lines at b.jsonl; there is none"),
        ([], "at least one row"),
        ([1], "line 1 of b.jsonl: expected an object; got int"),
        (WINS, "expected two files of one kind; a.jsonl holds scores, b.jsonl preferences"),
        (ROWS, "in every row of b.jsonl; got others"),
        ([{"score": 1}], "expected `id` and one of"),
        ([*GOOD, WINS[0]], "in every row of b.jsonl; got others"),
        ([{**GOOD[0], "preference": 0.5}], "in every row of b.jsonl; got others"),
        ([{**GOOD[0], "score": [-0.1, -2.3]}], "numbers or null in `score` of b.jsonl"),
        (scores(True, False), "numbers or null in `score`"),
        ([*GOOD, GOOD[0]], "some repeat"),
        ([{**row, "id": "x" + row["id"]} for row in GOOD], "got 0 of 6"),
    ],
)
def test_a_file_that_cannot_be_compared_is_one_line_and_status_two(
    rows: list[Any] | None, message: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write("a.jsonl", GOOD)
    if rows is not None:
        write("b.jsonl", rows)
    assert compare() == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.count("\n") == 1
    assert told.out == ""


def test_preferences_outside_their_range_are_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(name, [{**WINS[0], "preference": 2}, WINS[1]])
    assert compare() == 2
    assert "[0, 1]" in capsys.readouterr().err


def test_its_help_loads_neither_torch_nor_pandas() -> None:
    lean = "import sys; from codit import cli\ntry: cli.main(['judge-agreement', '--help'])\n"
    lean += "except SystemExit: print([n for n in ('torch', 'pandas') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", lean], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "--first" in done.stdout
