"""The commands, driven as a user drives them: arguments, files, kills, and one line for a fault."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import psutil
import pytest

import codit
from codit import cli, recipes, world
from codit.cli import flags
from codit.paper import shipped
from codit.world.recipes import WorldPrompts
from tests import tiny

ROWS = [{"id": f"row {n}", "instruction": f"the cat number {n}"} for n in range(48)]
ROWS += [{"id": "bad"}, {"id": "long", "instruction": "word " * 600}, {"instruction": "a house"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pair and a file of prompts."""
    folder = tmp_path_factory.mktemp("cli")
    tiny.save_pair(folder, "llama")
    lines = [json.dumps(row) for row in ROWS]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def arguments(place: Path, out: Path, *more: str) -> list[str]:
    given = {"expert": place / "expert", "amateur": place / "amateur"}
    given |= {"prompts": place / "in.jsonl", "out": out}
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return ["synthesize", *flags, "--max-new-tokens", "12", "--batch-size", "3", *more]


def run(arguments: list[str]) -> tuple[int, str, str]:
    """Run the command in a process of its own, from the start."""
    command = [sys.executable, "-m", "codit.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def whole(place: Path) -> bytes:
    """The dataset of a run that nothing interrupted."""
    status, output, errors = run(arguments(place, place / "whole.jsonl"))
    assert status == 0, errors
    counts = r"whole\.jsonl: 49 responses, \d+ complete, \d+ tokens; 2 rows without an answer\n$"
    assert re.search(counts, output)
    assert "tokens/s" in errors
    return (place / "whole.jsonl").read_bytes()


# Importing torch takes seconds: one process does it, and forks a copy of itself for every command.
READY = """
import json, os, sys
from codit import cli, student, synthesis
for line in sys.stdin:
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)
        os._exit(cli.main(json.loads(line)))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def ready() -> Iterator[subprocess.Popen[str]]:
    """A process that runs each command it reads as a process, and prints its id and status."""
    command = [sys.executable, "-c", READY]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def ask(ready: subprocess.Popen[str], arguments: list[str]) -> int:
    """Start a command and return its process id."""
    assert ready.stdin is not None
    assert ready.stdout is not None
    ready.stdin.write(json.dumps(arguments) + "\n")
    ready.stdin.flush()
    return int(ready.stdout.readline())


def status_of(ready: subprocess.Popen[str]) -> int:
    assert ready.stdout is not None
    return int(ready.stdout.readline())


def lines_when_killed(
    ready: subprocess.Popen[str], lines: int, arguments: list[str], partial: Path
) -> int:
    """Start a command, kill it -9 once the partial file has so many lines, and count them."""
    child = ask(ready, arguments)
    deadline = time.monotonic() + 300
    while not partial.exists() or partial.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    assert status_of(ready) == -signal.SIGKILL
    return partial.read_bytes().count(b"\n")


@pytest.mark.parametrize("lines", [0, 1, 3, 6, 12, 18, 24, 30, 36, 42])
def test_a_run_killed_at_this_moment_ends_in_the_same_bytes(
    lines: int, place: Path, whole: bytes, ready: subprocess.Popen[str], tmp_path: Path
) -> None:
    asked, partial = arguments(place, tmp_path / "data.jsonl"), tmp_path / "data.partial"
    killed_at = lines_when_killed(ready, lines, asked, partial)
    assert lines <= killed_at < 50
    ask(ready, asked)
    assert status_of(ready) == 0
    assert (tmp_path / "data.jsonl").read_bytes() == whole
    assert not partial.exists()


def test_real_benchmark_prompts_run_through_the_embedded_pair(
    prompts_dir: Path, tmp_path: Path
) -> None:
    lines = (prompts_dir / "mt_bench_question.jsonl").read_text().splitlines()
    asked = [{"id": q["question_id"], "instruction": q["turns"][0]} for q in map(json.loads, lines)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    flags = {name: shipped.folder(name) for name in ("expert", "amateur")}
    flags |= {"prompts": tmp_path / "in.jsonl", "out": tmp_path / "out.jsonl"}
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    assert cli.main(["synthesize", *given, "--max-new-tokens", "32"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [str(row["id"]) for row in asked]


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
def test_the_embedded_pair_killed_at_ten_random_moments_ends_in_the_same_bytes(
    seed: int, ready: subprocess.Popen[str], tmp_path: Path
) -> None:
    models = {name: shipped.folder(name) for name in ("expert", "amateur")}
    rows = world.prompts(WorldPrompts(split="test", n=200))
    text = "".join(json.dumps({k: r[k] for k in ("id", "instruction")}) + "\n" for r in rows)
    (tmp_path / "in.jsonl").write_text(text)
    flags = {**models, "prompts": tmp_path / "in.jsonl", "max-new-tokens": 96, "batch-size": 8}
    asked = ["synthesize", *(part for k, v in flags.items() for part in (f"--{k}", str(v)))]
    ask(ready, [*asked, "--out", str(tmp_path / "whole.jsonl")])
    assert status_of(ready) == 0
    draw, out, partial = random.Random(seed), tmp_path / "cut.jsonl", tmp_path / "cut.partial"
    seen = []
    for aim in sorted(draw.randint(0, 190) for _ in range(10)):
        child = ask(ready, [*asked, "--out", str(out)])
        while not partial.exists() or partial.read_bytes().count(b"\n") < aim:
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 0.05))
        os.kill(child, signal.SIGKILL)
        assert status_of(ready) == -signal.SIGKILL
        seen.append(partial.read_bytes().count(b"\n"))
    ask(ready, [*asked, "--out", str(out)])
    assert status_of(ready) == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes(), f"killed at lines {seen}"


def test_a_run_killed_again_and_half_way_through_a_line_ends_in_the_same_bytes(
    place: Path, whole: bytes, ready: subprocess.Popen[str], tmp_path: Path
) -> None:
    asked, partial = arguments(place, tmp_path / "data.jsonl"), tmp_path / "data.partial"
    for lines in (3, 18, 33):
        assert lines <= lines_when_killed(ready, lines, asked, partial) < 50
        with partial.open("a") as stream:
            stream.write('{"id": "row 9", "is_comp')
    ask(ready, asked)
    assert status_of(ready) == 0
    assert (tmp_path / "data.jsonl").read_bytes() == whole


def test_what_is_finished_is_done_at_once(
    place: Path, whole: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(place, place / "whole.jsonl")) == 0
    assert "49 responses" in capsys.readouterr().out
    assert (place / "whole.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--seed", "3"], r"made with other settings: recipe\.decoding\.seed was 0, is 3\."),
        (["--batch-size", "4"], r"other settings: batch_size was 3, is 4\."),
        (["--limit", "3"], r"other settings: input was \w+, is \w+\."),
        (["--resume", "never"], r"resume is never, but .*whole\.jsonl exists\."),
        (["--plausibility", "3"], r"plausibility must be between 0 and 1; got 3\.0\."),
        (["--out", "data.txt"], r"must be a file name ending in \.jsonl; got data\.txt\."),
        (["--limit", "0"], r"limit must be at least 1; got 0\."),
        (["--workers", "0"], r"workers must be at least 1; got 0\. 1 is this process alone\."),
        (["--prompts", "no.jsonl"], r"expected a file of JSON lines at no\.jsonl; there is none"),
    ],
)
@pytest.mark.usefixtures("whole")
def test_what_a_user_can_mend_is_one_line_and_status_two(
    place: Path, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(place, place / "whole.jsonl", *more)) == 2
    errors = capsys.readouterr().err
    assert re.match(rf"codit: .*{message}", errors)
    assert errors.count("\n") == 1


def test_a_model_that_does_not_exist_is_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = arguments(place, tmp_path / "data.jsonl", "--expert", str(tmp_path / "no model"))
    assert cli.main(asked) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("codit: ")
    assert "no model" in errors
    assert errors.count("\n") == 1


def test_repeated_ids_are_named(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "in.jsonl"
    prompts.write_text('{"id": 1, "instruction": "a"}\n{"id": "1", "instruction": "b"}\n')
    asked = arguments(place, tmp_path / "data.jsonl", "--prompts", str(prompts))
    assert cli.main(asked) == 2
    assert "expected every id once; 1 occur more than once: 1." in capsys.readouterr().err


def test_no_answer_at_all_is_no_success(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = arguments(place, tmp_path / "data.jsonl", "--max-new-tokens", "600", "--limit", "2")
    assert cli.main(asked) == 1
    errors = capsys.readouterr().err
    assert "codit: no row was answered; the first: expected at most 0 tokens" in errors


def test_an_interruption_says_how_to_go_on(
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from codit import synthesis

    def interrupt(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(synthesis, "write", interrupt)
    assert cli.main(arguments(place, tmp_path / "data.jsonl")) == 130
    assert capsys.readouterr().err == "codit: interrupted; the same command goes on from here\n"


@pytest.mark.long
def test_sigterm_ends_workers_and_keeps_what_is_answered(
    place: Path, ready: subprocess.Popen[str], tmp_path: Path
) -> None:
    out = tmp_path / "data.jsonl"
    more = ["--workers", "2", "--plausibility", "1"]
    long = [part.replace("12", "48") for part in arguments(place, out, *more)]
    child = ask(ready, long)
    partial = out.with_name("data.partial")
    while not (partial.exists() and partial.stat().st_size):
        time.sleep(0.01)
    children = psutil.Process(child).children(recursive=True)
    os.kill(child, signal.SIGTERM)
    assert status_of(ready) == 143
    assert len(children) >= 2
    assert psutil.wait_procs(children, timeout=10)[1] == []
    assert len(out.with_name("data.partial").read_bytes().splitlines()) >= 3
    assert not out.exists()


def test_a_dry_run_shows_what_is_needed_and_writes_nothing(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(place, tmp_path / "data.jsonl", "--dry-run")) == 0
    shown = capsys.readouterr().out
    assert re.search(r"^rows +49 \(2 more are bad\)$", shown, re.M)
    assert [line.split("  ")[0] for line in shown.splitlines()] == [
        "rows",
        "responses",
        "prompt tokens",
        "response tokens",
        "memory",
        "cost",
    ]
    assert list(tmp_path.iterdir()) == []


def test_a_preview_shows_both_answers_and_writes_nothing(
    place: Path, tmp_path: Path, whole: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(place, tmp_path / "data.jsonl", "--preview", "2")) == 0
    shown = capsys.readouterr().out
    assert re.findall(r"^== (.*)$", shown, re.M) == [
        "row 0: the cat number 0",
        "row 1: the cat number 1",
    ]
    assert shown.count("-- direct\n") == shown.count("-- codit\n") == 2
    for line in whole.splitlines()[:2]:
        assert f"-- codit\n{json.loads(line)['response']}\n" in shown
    assert list(tmp_path.iterdir()) == []


def test_compare_answers_one_prompt_twice(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pair = ["--expert", str(place / "expert"), "--amateur", str(place / "amateur")]
    asked = ["compare", *pair, "--prompt", "the cat", "--max-new-tokens", "4", "--seed", "1"]
    assert cli.main(asked) == 0
    assert re.search(r"== \w+-0: the cat\n-- direct\n.*-- codit\n", capsys.readouterr().out, re.S)


def test_models_go_where_the_user_says_or_to_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    for available, default in ((False, {}), (True, {"device_map": "cuda"})):
        monkeypatch.setattr(torch.cuda, "is_available", lambda available=available: available)
        assert flags.Placing().here() == default
        assert flags.Placing(device_map="cpu").here() == {"device_map": "cpu"}
    told = flags.Placing(device_map="cpu", attn_implementation="eager").given()
    assert told == {"device_map": "cpu", "attn_implementation": "eager"}


@pytest.mark.parametrize("command", ["synthesize", "compare"])
def test_every_decoding_value_is_a_flag_with_its_own_words(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main([command, "--help"])
    assert stopped.value.code == 0
    shown = " ".join(re.sub("[│╭╮╰╯─]", " ", capsys.readouterr().out).split())
    for field in fields(recipes.Decoding):
        assert f"--{field.name.replace('_', '-')} " in shown
    assert "keep a token iff p_expert >= plausibility * max p_expert (alpha)" in shown


@pytest.mark.parametrize("flags", [[], ["nonsense"], ["synthesize"], ["synthesize", "--no-such"]])
def test_unknown_or_missing_arguments_are_status_two(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cli.main(flags)
    assert stopped.value.code == 2
    assert "codit" in capsys.readouterr().err


def test_a_student_is_trained_from_the_dataset(
    place: Path, whole: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**json.loads(line), "is_completed": True} for line in whole.splitlines()]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {
        "base": place / "expert",
        "data": tmp_path / "data.jsonl",
        "out": tmp_path / "student",
        "batch": 8,
        "epochs": 1,
        "max-length": 64,
        "learning-rate": 1e-3,
    }
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    assert cli.main(["train", *given]) == 0
    said = capsys.readouterr().out
    assert said.strip().endswith("student: 49 rows trained on, 0 left out, 0 of them empty")
    assert list((tmp_path / "student").glob("*.safetensors"))


def test_a_training_that_is_killed_goes_on_to_the_same_weights(
    place: Path, whole: bytes, ready: subprocess.Popen[str], tmp_path: Path
) -> None:
    rows = [{**json.loads(line), "is_completed": True} for line in whole.splitlines()]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["train", "--base", str(place / "expert"), "--data", str(tmp_path / "data.jsonl")]
    asked += ["--batch", "4", "--epochs", "3", "--max-length", "64", "--save-every", "5"]
    ask(ready, [*asked, "--out", str(tmp_path / "uninterrupted")])
    assert status_of(ready) == 0
    out = tmp_path / "killed"
    child, deadline = ask(ready, [*asked, "--out", str(out)]), time.monotonic() + 300
    while not list(out.glob("checkpoint-*/trainer_state.json")):
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    assert status_of(ready) == -signal.SIGKILL
    assert list(out.glob("checkpoint-*"))
    assert not (out / "model.safetensors").exists()
    ask(ready, [*asked, "--out", str(out)])
    assert status_of(ready) == 0
    files = sorted(path.name for path in (tmp_path / "uninterrupted").iterdir())
    assert sorted(path.name for path in out.iterdir()) == files
    for name in files:
        assert (out / name).read_bytes() == (tmp_path / "uninterrupted" / name).read_bytes(), name


def test_a_base_without_a_chat_template_takes_the_teachers(
    place: Path, whole: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{**json.loads(line), "is_completed": True} for line in whole.splitlines()[:8]]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    base = shutil.copytree(place / "amateur", tmp_path / "base")
    (base / "chat_template.jinja").unlink(missing_ok=True)
    asked = ["train", "--base", str(base), "--data", str(tmp_path / "data.jsonl")]
    asked += ["--batch", "8", "--epochs", "1", "--max-length", "64", "--out", str(tmp_path / "s")]
    assert cli.main(asked) == 2
    assert "expected a base model with a chat template" in capsys.readouterr().err
    assert cli.main([*asked, "--template", str(place / "expert")]) == 0
    learnt = (tmp_path / "s" / "chat_template.jinja").read_text()
    assert learnt == (place / "expert" / "chat_template.jinja").read_text()


def test_missing_training_data_is_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["train", "--base", str(place / "expert"), "--data", "no.jsonl"]
    assert cli.main([*asked, "--out", str(tmp_path / "student")]) == 2
    expected = "codit: expected a file of JSON lines at no.jsonl; there is none.\n"
    assert capsys.readouterr().err == expected


HEAVY = {"torch", "transformers", "scipy", "pandas", "matplotlib"}


def test_the_version_comes_at_once() -> None:
    assert run(["--version"]) == (0, f"codit {codit.__version__}\n", "")


def test_version_and_help_load_no_heavy_library() -> None:
    lean = (
        "import sys; from codit import cli\n"
        "for asked in (['--version'], ['--help'], ['synthesize', '--help'], ['serve', '--help']):\n"
        "    try: cli.main(asked)\n    except SystemExit: pass\n"
        f"print({HEAVY} & set(sys.modules))"
    )
    command = [sys.executable, "-c", lean]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
    assert shown.stdout.splitlines()[-1] == "set()"


def test_an_error_of_the_system_is_one_line_with_its_file() -> None:
    error = FileNotFoundError(2, "No such file or directory", "a.jsonl")
    assert cli._one_line(error) == "No such file or directory: a.jsonl"
    assert cli._one_line(ValueError("two\n  lines")) == "two lines"
    assert cli._one_line(OSError()) == "OSError"
