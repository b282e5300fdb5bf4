"""Questions of two turns: what is asked, in which order, at which temperature, and the command."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codit import cli, decode
from codit.cli import mt_bench as commands
from codit.decode import prompt_ids
from codit.evaluation import mt_bench
from codit.recipes import Decoding
from tests import tiny
from tests.fault_server import scored, serving

QUESTIONS: list[dict[str, Any]] = [
    {"question_id": 81, "category": "writing", "turns": ["write a text", "now a longer one"]},
    {"question_id": 101, "category": "reasoning", "turns": ["who is it", "and why"]},
    {
        "question_id": 111,
        "category": "math",
        "turns": ["add 1 and 2", "and 3 to it"],
        "reference": ["3", "6"],
    },
    {"question_id": "own", "turns": ["say a thing", "say it again"]},
]
SINGLE = Decoding(strength=0.0, plausibility=0.0, max_new_tokens=10)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every call of `decode.generate`: decoding, ids, conversations and tokenizer."""
    calls: list[dict[str, Any]] = []
    real = decode.generate

    def generate(model: Any, tokenizer: Any, chats: Any, decoding: Decoding, **how: Any) -> Any:
        found = real(model, tokenizer, chats, decoding, **how)
        copied = json.loads(json.dumps(chats))
        told = {"chats": copied, "ids": how["ids"], "said": found, "tokenizer": tokenizer}
        calls.append({"decoding": decoding, **told})
        return found

    monkeypatch.setattr(decode, "generate", generate)
    return calls


def test_the_second_turn_sees_the_first_answer(asked: list[dict[str, Any]]) -> None:
    model, tokenizer = tiny.model("llama", seed=0), tiny.tokenizer()
    rows, errors = mt_bench.answer(
        model, tokenizer, QUESTIONS[:1], SINGLE, by_category=False, progress=False
    )
    assert errors == []
    first, second = asked
    assert first["chats"] == [[{"role": "user", "content": "write a text"}]]
    assert second["chats"] == [
        [
            {"role": "user", "content": "write a text"},
            {"role": "assistant", "content": first["said"][0].text},
            {"role": "user", "content": "now a longer one"},
        ]
    ]
    (row,) = rows
    assert row["responses"] == [first["said"][0].text, second["said"][0].text]
    assert row["is_completed"] == [one["said"][0].is_completed for one in asked]
    assert {k: row[k] for k in QUESTIONS[0]} == QUESTIONS[0]
    # Turns of one question do not share their noise.
    assert (first["ids"], second["ids"]) == (["81 turn 1"], ["81 turn 2"])


def test_a_category_is_asked_at_its_own_temperature(asked: list[dict[str, Any]]) -> None:
    model, tokenizer = tiny.model("llama", seed=0), tiny.tokenizer()
    mt_bench.answer(model, tokenizer, QUESTIONS, SINGLE, progress=False)
    seen = {name: call["decoding"].temperature for call in asked for name in call["ids"]}
    for turn in (1, 2):
        assert [seen[f"{row['question_id']} turn {turn}"] for row in QUESTIONS] == [0.7, 0, 0, 0.7]
    assert {replace(call["decoding"], temperature=1.0) for call in asked} == {SINGLE}


def test_mt_bench_s_eight_categories_have_temperatures() -> None:
    known = ("writing", "roleplay", "extraction", "math", "coding", "reasoning")
    assert [mt_bench.temperature({"category": c}) for c in known] == [0.7, 0.7, 0, 0, 0, 0]
    assert [mt_bench.temperature({"category": c}) for c in ("stem", "humanities")] == [0.1, 0.1]
    assert mt_bench.temperature({}) == mt_bench.temperature({"category": None}) == 0.7


@pytest.mark.parametrize("is_pair", [False, True])
def test_an_answer_depends_on_no_neighbour(is_pair: bool) -> None:
    model = tiny.pair("llama") if is_pair else tiny.model("llama", seed=0)
    decoding = replace(SINGLE, strength=1.0, plausibility=0.1) if is_pair else SINGLE
    tokenizer = tiny.tokenizer()
    whole, _ = mt_bench.answer(model, tokenizer, QUESTIONS, decoding, progress=False)
    small, _ = mt_bench.answer(model, tokenizer, QUESTIONS, decoding, batch_size=1, progress=False)
    turned, _ = mt_bench.answer(model, tokenizer, QUESTIONS[::-1], decoding, progress=False)
    assert whole == small == turned[::-1]
    assert len({str(row["responses"]) for row in whole}) > 1


def test_what_cannot_be_answered_is_told_apart_and_the_rest_goes_on() -> None:
    model, tokenizer = tiny.model("llama", seed=0), tiny.tokenizer()
    long = " ".join(["cat"] * 600)
    bad = [
        {"question_id": 1, "category": "math", "turns": [long, "b"]},
        {"question_id": 2, "category": "math", "turns": ["a", long]},
    ]
    rows, errors = mt_bench.answer(
        model, tokenizer, [bad[0], QUESTIONS[0], bad[1]], SINGLE, progress=False
    )
    assert [row["question_id"] for row in rows] == [81]
    assert [(error["question_id"], error["turn"]) for error in errors] == [(1, 1), (2, 2)]
    for error in errors:  # told as `codit synthesize` tells it
        assert error["error"] == "the prompt is too long"
        assert error["reason"].startswith("expected at most 502 tokens")


def test_an_error_without_a_reason_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(*given: Any, ids: Any, **how: Any) -> list[decode.Response]:
        return [decode.Response(id=name, error="no answer") for name in ids]

    monkeypatch.setattr(decode, "generate", generate)
    rows, errors = mt_bench.answer(None, None, QUESTIONS[:1], SINGLE)  # type: ignore[arg-type]
    assert rows == []
    assert errors == [{"question_id": 81, "turn": 1, "error": "no answer", "reason": "no answer"}]


def test_a_file_is_read_as_it_stands(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", QUESTIONS)
    assert mt_bench.read(path) == QUESTIONS
    for lacking in (None, ["3", ""]):  # as MT-Bench's own file has the second
        row = {**QUESTIONS[2], "reference": lacking}
        assert mt_bench.read(write(tmp_path / "r.jsonl", [row])) == [row]
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert mt_bench.read(path) == QUESTIONS


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "expected one JSON object"),
        ("[" * 100_000, "expected one JSON object"),
        ('{"question_id": 1, "turns": ["a", "b"], "weight": NaN}', "NaN is not JSON"),
        ('{"question_id": 1, "turns": ["a", "b"], "weight": 1e999}', "JSON in UTF-8"),
        ('{"question_id": 1, "turns": ["a", "\\ud800"]}', "JSON in UTF-8"),
        ("[1]", "expected an object; got list"),
        ('{"question_id": 1, "turns": ["a"]}', "`turns`, two texts"),
        ('{"question_id": 1, "turns": ["a", 2]}', "`turns`, two texts"),
        ('{"question_id": 1, "turns": ["a", " "]}', "`turns`, two texts"),
        ('{"turns": ["a", "b"]}', "expected a question_id"),
        ('{"question_id": true, "turns": ["a", "b"]}', "expected a question_id"),
        ('{"question_id": " ", "turns": ["a", "b"]}', "expected a question_id"),
        ('{"question_id": 1, "category": ["math"], "turns": ["a", "b"]}', "a text as category"),
        ('{"question_id": 1, "turns": ["a", "b"], "reference": "ab"}', "two texts as reference"),
        ('{"question_id": 1, "turns": ["a", "b"], "reference": ["c"]}', "two texts as reference"),
        ('{"question_id": 81, "turns": ["a", "b"]}', "every question_id once; got '81' again"),
    ],
)
def test_a_line_that_is_no_question_is_named(line: str, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", QUESTIONS[:1])
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(ValueError, match="line 2 of .*q.jsonl") as error:
        mt_bench.read(path)
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_the_command_s_file_is_judged_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expert, amateur = tiny.save_pair(tmp_path, "llama")
    questions, out = write(tmp_path / "q.jsonl", QUESTIONS), tmp_path / "new" / "answers.jsonl"
    given = ["mt-bench", "--model", str(expert), "--questions", str(questions), "--out", str(out)]
    given += ["--max-new-tokens", "8", "--seed", "3"]
    assert cli.main([*given, "--amateur", str(amateur), "--plausibility", "0.2"]) == 0
    assert "4 of 4 conversations" in capsys.readouterr().out
    manifest = json.loads((out.parent / "answers.manifest.json").read_text())
    assert manifest["decoding"]["plausibility"] == 0.2
    assert manifest["temperature"] == "by category"
    assert "date" not in manifest, "the template writes none"
    assert manifest["data"] == [hashlib.sha256(questions.read_bytes()).hexdigest()]
    assert (manifest["answered"], manifest["errors"]) == (4, 0)
    assert not (out.parent / "answers.errors.jsonl").exists()
    pair = out.read_text()
    assert cli.main(given) == 0
    assert out.read_text() != pair
    with serving(scored(7)) as server:
        command = ["judge", "--data", str(out), "--out", str(tmp_path / "scores.jsonl")]
        command += ["--conversations", "--model", "m", "--base-url", server.url, "--no-progress"]
        assert cli.main([*command, "--reference-categories", "math"]) == 0
    shown = capsys.readouterr().out
    assert "4 of 4 scored, mean 7" in shown
    assert "turn 1 7.00, turn 2 7.00" in shown
    assert len(server.requests) == 8


def test_a_temperature_of_zero_and_a_date_are_recorded_as_what_they_are(
    tmp_path: Path,
    asked: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expert, _ = tiny.save_pair(tmp_path, "llama")
    (expert / "chat_template.jinja").write_text(tiny.DATED_TEMPLATE)
    monkeypatch.setattr(commands, "datetime", tiny.Day)
    monkeypatch.setattr(tiny.Day, "day", "2001-02-03")
    questions, out = write(tmp_path / "q.jsonl", QUESTIONS), tmp_path / "a.jsonl"
    given = ["mt-bench", "--model", str(expert), "--questions", str(questions), "--out", str(out)]
    given += ["--max-new-tokens", "4", "--temperature", "0"]
    assert cli.main(given) == 2
    assert "Add --one-temperature, or leave the temperature out." in capsys.readouterr().err
    assert cli.main([*given, "--one-temperature"]) == 0
    assert [call["decoding"].temperature for call in asked] == [0, 0]
    manifest = json.loads((tmp_path / "a.manifest.json").read_text())
    assert manifest["temperature"] == manifest["decoding"]["temperature"] == 0
    assert manifest["date"] == "2001-02-03T00:00:00"
    texts = [
        call["tokenizer"].decode(prompt_ids(call["tokenizer"], call["chats"][0])) for call in asked
    ]
    assert all(text.startswith("03 Feb 2001") for text in texts), "whatever day it is now"


def test_a_failed_question_is_written_beside_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expert, _ = tiny.save_pair(tmp_path, "llama")
    bad = {"question_id": 5, "category": "math", "turns": [" ".join(["cat"] * 600), "b"]}
    questions, out = write(tmp_path / "q.jsonl", [bad, *QUESTIONS]), tmp_path / "a.jsonl"
    given = ["mt-bench", "--model", str(expert), "--questions", str(questions), "--out", str(out)]
    assert cli.main([*given, "--max-new-tokens", "4"]) == 1
    assert "1 without answers" in capsys.readouterr().out
    error = json.loads((tmp_path / "a.errors.jsonl").read_text())
    assert (error["question_id"], error["turn"]) == (5, 1)
    assert len(out.read_text().splitlines()) == 4


def test_bad_input_is_said_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = write(tmp_path / "q.jsonl", QUESTIONS)
    for model, file, out in (
        ("none", questions, tmp_path / "a.jsonl"),
        ("none", tmp_path / "no.jsonl", tmp_path / "a.jsonl"),
        ("none", questions, questions),
        ("none", questions, tmp_path / "a.txt"),
        ("none", write(tmp_path / "c.errors.jsonl", QUESTIONS), tmp_path / "c.jsonl"),
    ):
        given = ["--model", str(tmp_path / model), "--questions", str(file), "--out", str(out)]
        assert cli.main(["mt-bench", *given]) == 2
        said = capsys.readouterr().err
        assert said.startswith("codit: ")
        assert said.count("\n") == 1
    assert mt_bench.read(questions) == QUESTIONS
    assert mt_bench.read(tmp_path / "c.errors.jsonl") == QUESTIONS


def test_what_is_said_of_a_pair_is_not_passed_over_without_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = write(tmp_path / "q.jsonl", QUESTIONS)
    given = ["--model", "none", "--questions", str(questions), "--out", str(tmp_path / "a.jsonl")]
    assert cli.main(["mt-bench", *given, "--strength", "2", "--amateur-revision", "main"]) == 2
    said = capsys.readouterr().err
    assert "expected --strength, --amateur-revision with a pair; got no amateur" in said


def test_help_imports_no_model() -> None:
    code = "import sys; from codit import cli\ntry: cli.main(['mt-bench', '--help'])\n"
    code += "except SystemExit: pass\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_published_questions_are_read(prompts_dir: Path) -> None:
    rows = mt_bench.read(prompts_dir / "mt_bench_question.jsonl")
    assert len(rows) == 80
    assert {row["category"] for row in rows} <= set(mt_bench.TEMPERATURES)
