"""`codit judge --dry-run`: what it foretells is what the run then asks, and it asks nothing."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codit import cli
from codit.evaluation import client, judge
from codit.evaluation.judge import Asking, Judge, Plan
from tests.fault_server import FAULTS, Sent, Server, decided, said, scored, serving
from tests.fault_table import MANY, QUICK

ROWS = [
    {"id": f"r{p}", "sample": k, "instruction": f"ask {p}", "response": f"answer {p} {k % 2}"}
    for p in range(3)
    for k in range(3)
]
TALK = [
    {"question_id": 81, "category": "writing", "turns": ["a", "b"], "responses": ["c", "d"]},
    {"question_id": 111, "category": "math", "turns": ["1 + 1?", "Times 2?"],
     "responses": ["Two.", "Four."], "reference": ["It is 2.", "It is 4."]},
]  # fmt: skip
MODES = {
    "scores": (),
    "three draws": ("--samples", "3"),
    "two arms": ("--against", "other.jsonl"),
    "best of two": ("--best-of", "2"),
    "best of one": ("--best-of", "1"),
    "conversations": ("--conversations",),
}
NOBODY = "http://127.0.0.1:1/v1"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a dataset, another arm's, and conversations."""
    arms = {"data": ROWS, "other": [{**row, "response": "other"} for row in ROWS[1:]], "talk": TALK}
    for name, rows in arms.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*more: str, url: str = NOBODY, data: str = "data.jsonl") -> int:
    given = ["judge", "--data", data, "--out", "out.jsonl", "--model", "m", "--base-url", url]
    return cli.main([*given, "--no-progress", *more])


def numbers(shown: str) -> dict[str, list[str]]:
    """What a dry run prints: the numbers of each line."""
    lines = [line.split(maxsplit=1) for line in shown.replace("to ask", "to_ask").splitlines()]
    return {name: re.findall(r"[\d.]+", text.replace(",", "")) for name, text in lines}


def answer(request: dict[str, Any], number: int) -> Sent:
    is_pair = "verdict" in str(request["response_format"])
    return decided("first") if is_pair else scored(5)


@pytest.mark.parametrize("mode", MODES)
def test_what_is_foretold_is_what_the_run_asks(
    mode: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = "talk.jsonl" if mode == "conversations" else "data.jsonl"
    before = sorted(place.iterdir())
    assert run("--dry-run", *MODES[mode], data=data) == 0
    assert sorted(place.iterdir()) == before
    told = numbers(capsys.readouterr().out)
    with serving(answer) as server:
        assert run(*MODES[mode], url=server.url, data=data) == 0
        sent = [request["messages"][0]["content"] for request in server.requests]
    (judged,) = re.findall(r"^(\d+) judgements: 0 from", capsys.readouterr().out, re.M)
    assert told["judgements"] == [judged]
    assert int(told["to_ask"][0]) == len(sent)
    assert int(told["prompts"][0]) == sum(-(-len(prompt) // 4) for prompt in sent)
    assert int(told["replies"][0]) == 8192 * len(sent)
    assert "cost" not in told
    assert run("--dry-run", *MODES[mode], data=data) == 0
    told = numbers(capsys.readouterr().out)
    assert (told["judgements"], told["to_ask"], told["replies"]) == ([judged], ["0"], ["0"])


def test_equal_questions_are_foretold_once(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--dry-run") == 0  # of three responses to a prompt two are equal
    told = numbers(capsys.readouterr().out)
    assert (told["judgements"], told["to_ask"]) == (["9"], ["6"])


def test_the_cost_at_most_is_that_of_full_replies(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    priced = ("--price-in", "2", "--price-out", "10", "--max-tokens", "50")
    assert run("--dry-run", *priced) == 0
    told = numbers(capsys.readouterr().out)
    cost = (int(told["prompts"][0]) * 2 + 6 * 50 * 10) / 1e6
    assert told["replies"] == ["300"]
    assert float(told["cost"][0]) == pytest.approx(cost, rel=1e-3)
    assert told["failures"] == ["3"]
    assert run("--dry-run", *priced, "--attempts", "1") == 0
    assert "failures" not in numbers(capsys.readouterr().out)


BAD = {
    "no such file": ((), "no.jsonl", None),
    "no such arm": (("--against", "no.jsonl"), "data.jsonl", None),
    "two modes": (("--best-of", "2", "--conversations"), "data.jsonl", None),
    "too few responses": (("--best-of", "4"), "data.jsonl", None),
    "no turns": (("--conversations",), "data.jsonl", None),
    "draws of a greedy judge": (("--samples", "2", "--temperature", "0"), "data.jsonl", None),
    "categories without conversations": (("--reference-categories", "a"), "data.jsonl", None),
    "another arm's prompts": (("--against", "bad.jsonl"), "data.jsonl",
                              {"id": "r0", "sample": 0, "instruction": "x", "response": "y"}),
    "no common id": (("--against", "bad.jsonl"), "data.jsonl",
                     {"instruction": "x", "response": "y"}),
    "no response": ((), "bad.jsonl", {"instruction": "x"}),
    "no prompt": ((), "bad.jsonl", {"response": "x"}),
    "a list": ((), "bad.jsonl", [1]),
    "no reference": (("--conversations",), "bad.jsonl", {**TALK[1], "reference": None}),
    "the cache is another file": (("--cache", "bad.jsonl"), "data.jsonl", {"x": "y" * 200}),
    "the cache is a folder": (("--cache", "."), "data.jsonl", None),
    "the cache is out": (("--cache", "./out.jsonl"), "data.jsonl", None),
    "the cache is the manifest": (("--cache", "out.manifest.json"), "data.jsonl", None),
    "out without .jsonl": (("--out", "out.csv"), "data.jsonl", None),
    "out is the data": (("--out", "./data.jsonl"), "data.jsonl", None),
    "out is the other arm": (("--out", "other.jsonl", "--against", "other.jsonl"), "data.jsonl",
                             None),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_the_run_refuses_is_refused_in_the_same_words(
    case: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more, data, row = BAD[case]
    if row is not None:
        Path("bad.jsonl").write_text(json.dumps(row) + "\n")
    before = {path: path.read_bytes() for path in place.iterdir()}
    with serving(answer) as server:
        statuses = [run(*more, *dry, url=server.url, data=data) for dry in ((), ("--dry-run",))]
        assert server.requests == []
    said_so = capsys.readouterr().err.splitlines()
    assert statuses == [2, 2]
    assert len(said_so) == 2
    assert said_so[0] == said_so[1]
    assert {path: path.read_bytes() for path in place.iterdir()} == before


def test_a_dry_run_opens_no_connection(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(0.2)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/v1"
        assert run("--dry-run", url=url) == 0
        with pytest.raises(TimeoutError):
            listening.accept()


def score(server: Server, cache: Path, asking: Asking = QUICK) -> None:
    judge.score(MANY, Judge(model="m", base_url=server.url), cache=cache, asking=asking)


def plan(cache: Path, asking: Asking = QUICK, **more: Any) -> Plan:
    asked = judge.questions(MANY)
    return judge.plan(asked, Judge(model="m", **more), cache=cache, asking=asking)


def test_failed_replies_are_known_until_more_attempts_are_allowed(tmp_path: Path) -> None:
    with serving(said("prose")) as server:
        score(server, tmp_path / "c")
    assert plan(tmp_path / "c").to_ask == 0
    assert plan(tmp_path / "c", replace(QUICK, attempts=3)).to_ask == 12


def test_questions_without_a_reply_are_to_be_asked(tmp_path: Path) -> None:
    with serving(lambda r, n: FAULTS["500"] if n < 8 else scored(5)) as server:
        score(server, tmp_path / "c", replace(QUICK, concurrency=1))
    assert plan(tmp_path / "c").to_ask == 4


def test_another_judge_has_nothing_in_the_cache(tmp_path: Path) -> None:
    with serving(scored(5)) as server:
        score(server, tmp_path / "c")
    assert plan(tmp_path / "c").to_ask == 0
    assert plan(tmp_path / "c", seed=1).to_ask == 12
    assert plan(tmp_path / "none").to_ask == 12
    assert not (tmp_path / "none").exists()


def test_without_settings_a_plan_has_the_run_s(tmp_path: Path) -> None:
    found = judge.plan(judge.questions(MANY), Judge(model="m"), cache=tmp_path / "c")
    assert (found.cost, found.questions, found.to_ask) == (None, 12, 12)


def test_a_question_s_name_does_not_tell_where_the_judge_stands() -> None:
    question = client.Question(template=judge.questions(MANY)[0].template, prompt="p", sample=0)
    here, there = (Judge(model="m", base_url=url) for url in (NOBODY, None))
    assert client.item_of(here, question) == client.item_of(there, question)
    assert client.item_of(here, question) != client.item_of(here, replace(question, sample=1))
