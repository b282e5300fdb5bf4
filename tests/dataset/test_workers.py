"""Many processes write the dataset of one, whatever dies, and end when they should."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from codit import synthesis
from codit.dataset import output, teacher, workers
from codit.recipes import Model, Synthesis
from codit.world.recipes import Pretraining
from tests import fake_workers, tiny

ROWS: list[dict[str, Any]] = [{"id": f"row {i}", "instruction": f"the cat {i}"} for i in range(18)]
ROWS[5:5] = [{"id": "bad"}, {"id": "long", "instruction": "word " * 600}]
ROWS += [{"instruction": "a house"}]
ENDINGS = (".jsonl", ".errors.jsonl")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    """A recipe whose pair lies in two folders."""
    return tiny.synthesis(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def whole(recipe: Synthesis, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one process."""
    out = tmp_path_factory.mktemp("whole") / "data.jsonl"
    assert run(recipe, out, workers=1)["workers"] == 1
    return made(out)


def run(recipe: Synthesis, out: Path, **how: Any) -> dict[str, Any]:
    return synthesis.write(recipe, ROWS, out, **{"batch_size": 2, "progress": False, **how})


def made(out: Path) -> dict[str, bytes]:
    return {ending: out.with_name(f"data{ending}").read_bytes() for ending in ENDINGS}


def processes() -> list[psutil.Process]:
    """The workers of this process."""
    children = psutil.Process().children()
    children = [child for child in children if child.status() != psutil.STATUS_ZOMBIE]
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


# ---- with models


@pytest.mark.long
@pytest.mark.parametrize("number", [2, 4])
def test_several_workers_write_the_bytes_of_one_process(
    number: int, recipe: Synthesis, whole: dict[str, bytes], tmp_path: Path
) -> None:
    manifest = run(recipe, tmp_path / "data.jsonl", workers=number)
    assert made(tmp_path / "data.jsonl") == whole, "every row, every byte"
    assert manifest["workers"] == number


def test_a_worker_that_is_killed_ends_the_run_and_the_same_command_goes_on(
    recipe: Synthesis,
    whole: dict[str, bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, real, calls = tmp_path / "data.jsonl", output.append, list[int]()

    def stopping(*args: Any, **how: Any) -> int:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        if len(calls) == 4:  # the first batch of a worker is written: it has another
            processes()[0].kill()
        return real(*args, **how)

    monkeypatch.setattr(output, "append", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, out)
    assert out.with_name("data.partial").read_bytes().count(b"\n") == 4
    message = "expected 2 workers to answer; one died, .* the same command goes on from there"
    with pytest.raises(ChildProcessError, match=message):
        run(recipe, out, workers=2)
    assert processes() == []
    kept = len(calls) - 1
    assert out.with_name("data.partial").read_bytes().count(b"\n") == 2 * kept
    manifest = run(recipe, out, workers=4)
    assert made(out) == whole, "every row, every byte"
    assert (manifest["workers"], manifest["rows"], manifest["errors"]) == (4, 19, 2)
    assert len(calls) == 1 + 10, "what was finished is not answered again"
    assert manifest["earlier"] == [], "the number of workers is no setting that changes rows"
    assert processes() == []


DRIVER = """
import sys
from pathlib import Path
from tests.dataset import test_workers as here
from codit import recipes
from codit.world.recipes import WorldPrompts
folder, pair = Path(sys.argv[1]), Path(sys.argv[2])
models = {role: recipes.Model(name=str(pair / role)) for role in ("expert", "amateur")}
recipe = recipes.Synthesis(pair=recipes.Pair(**models), prompts=WorldPrompts(),
    decoding=recipes.Decoding(max_new_tokens=6))
if __name__ == "__main__":
    here.run(recipe, folder / "data.jsonl", workers=2, **eval(sys.argv[3]))
"""


def drive(recipe: Synthesis, folder: Path, how: str = "{}") -> subprocess.Popen[bytes]:
    """Start a run of two workers in a process group of its own."""
    command = [sys.executable, "-c", DRIVER, str(folder), str(Path(recipe.pair.expert.name).parent)]
    return subprocess.Popen([*command, how], start_new_session=True, stderr=subprocess.PIPE)


def await_lines(
    partial: Path, lines: int, process: subprocess.Popen[bytes], *, seconds: int = 300
) -> None:
    deadline = time.monotonic() + seconds
    while not partial.exists() or partial.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()[1].decode()
        time.sleep(0.005)


def test_workers_end_with_a_driver_that_is_killed_and_another_goes_on(
    recipe: Synthesis, whole: dict[str, bytes], tmp_path: Path
) -> None:
    with drive(recipe, tmp_path) as driver:
        await_lines(tmp_path / "data.partial", 2, driver)
        children = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
        assert len(children) >= 2
        assert psutil.wait_procs(children, timeout=60)[1] == []
    run(recipe, tmp_path / "data.jsonl")
    assert made(tmp_path / "data.jsonl") == whole


SLEEPING = "import time; time.sleep(60)"
STUBBORN = f"import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); {SLEEPING}"


def test_sigterm_ends_what_a_command_has_started_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    before = signal.getsignal(signal.SIGTERM)
    mine: list[subprocess.Popen[bytes]] = []

    def start(program: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)

    def work() -> None:
        mine.extend(map(start, (STUBBORN, SLEEPING)))
        assert mine[0].stdout is not None
        mine[0].stdout.readline()
        os.kill(os.getpid(), signal.SIGTERM)

    with start(SLEEPING) as other:
        with pytest.raises(SystemExit) as stopped, workers.stoppable():
            work()
        assert not any(psutil.pid_exists(process.pid) for process in mine)
        assert other.poll() is None
        for process in mine:
            process.communicate()
        other.kill()
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    assert capsys.readouterr().err == "codit: interrupted; the same command goes on from here\n"


def test_what_is_wrong_with_models_is_said_as_without_workers(
    recipe: Synthesis, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    tiny.model("llama", seed=5, vocab_size=200).save_pretrained(other)
    tokenizer = teacher.load_tokenizer(recipe.pair.amateur.name)
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(other)
    wrong = replace(recipe, pair=replace(recipe.pair, amateur=Model(name=str(other))))
    said = []
    for name, more in (("a", {}), ("b", {"workers": 2, "limit": 2})):
        with pytest.raises(ValueError, match="tokenizers") as caught:
            run(wrong, tmp_path / f"{name}.jsonl", **more)
        said.append(caught)
    assert str(said[0].value) == str(said[1].value)
    assert type(said[0].value) is type(said[1].value) is ValueError
    assert "in _loaded" in said[1].value.__notes__[0], "the worker's traceback"
    assert processes() == []


# ---- arguments


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"workers": 0}, r"workers must be at least 1; got 0\. 1 is this process alone\."),
        ({"workers": 2, "model": object()}, r"by name: each worker loads its own; got one in mem"),
        ({"workers": 2, "tokenizer": object()}, r"Save it and name its folder in the recipe"),
        ({"ray_address": "local", "model": object()}, r"use one worker and no Ray"),
    ],
)
def test_unusable_arguments_are_refused_before_anything_is_written(
    recipe: Synthesis, tmp_path: Path, how: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run(recipe, tmp_path / "new" / "data.jsonl", **how)
    assert not (tmp_path / "new").exists()


def test_models_made_here_cannot_be_loaded_by_workers(recipe: Synthesis, tmp_path: Path) -> None:
    made_here = replace(recipe, pair=replace(recipe.pair, amateur=Pretraining()))
    with pytest.raises(ValueError, match="got Model and Pretraining. Make them"):
        run(made_here, tmp_path / "data.jsonl", workers=2)


def test_each_gpu_has_a_worker_unless_the_user_places_models(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def number(**load_options: Any) -> int | None:
        return synthesis._number(None, None, None, None, load_options)

    assert number() == 1
    assert synthesis._placed({"dtype": "float32"}, 3) == {"dtype": "float32"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert number() == 4
    assert number(device_map="auto") == 1
    assert [synthesis._placed({}, k)["device_map"] for k in (0, 3, 5)] == [
        "cuda:0",
        "cuda:3",
        "cuda:1",
    ]
    assert synthesis._placed({"device_map": "cpu"}, 3) == {"device_map": "cpu"}


# ---- what crosses a process boundary


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no"), ValueError("no")),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), ValueError("'utf-8' codec can't")),
        (FileNotFoundError(2, "No such file", "a"), OSError("[Errno 2] No such file: 'a'")),
        (OSError("not a model"), OSError("not a model")),
        (torch.OutOfMemoryError("CUDA"), RuntimeError("CUDA")),
        (KeyError("a"), RuntimeError("KeyError: 'a'")),
        (ValueError(), ValueError("ValueError")),
    ],
)
def test_an_exception_is_told_in_plain_values(error: Exception, expected: Exception) -> None:
    told = json.loads(json.dumps(workers._failure(error)))
    with pytest.raises(type(expected)) as caught:
        workers._records(told)
    assert type(caught.value) is type(expected)
    assert str(caught.value).startswith(str(expected))
    assert type(error).__name__ in caught.value.__notes__[0]


# ---- the protocol, without models


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Any]:
    """Answer batches of one row by workers that need no model; leaves no process behind."""
    (tmp_path / "marks").mkdir()
    load = partial(fake_workers.load, str(tmp_path / "marks"))

    def answers(
        rows: list[dict[str, Any]], *, number: int, load: workers.Load = load
    ) -> Iterator[list[dict[str, Any]]]:
        return workers.answers(load, [[row] for row in rows], workers=number)

    yield answers
    assert processes() == []


def rows(n: int, **first: Any) -> list[dict[str, Any]]:
    return [{"id": "0", **first}, *({"id": str(i)} for i in range(1, n))]


def test_answers_come_in_order_from_no_more_workers_than_batches(fake: Any) -> None:
    found = [record for batch in fake(rows(3, seconds=0.3), number=5) for record in batch]
    assert [record["id"] for record in found] == ["0", "1", "2"]
    assert len({record["pid"] for record in found}) <= 3
    assert list(fake([], number=2)) == []


def test_one_slow_batch_lets_the_others_run_ahead_only_so_far(fake: Any, tmp_path: Path) -> None:
    answers = fake(rows(40, seconds=1.5), number=2)
    next(answers)
    begun = len(list((tmp_path / "marks").iterdir()))
    assert begun <= 2 * workers.AHEAD + 2
    assert len(list(answers)) == 39


def test_a_worker_that_dies_is_one_clear_error(fake: Any, tmp_path: Path) -> None:
    found = []
    message = (
        r"expected 2 workers to answer; one died, .*for want of memory\. Use fewer workers or a "
        r"smaller batch size; finished batches are kept, and the same command goes on from there\."
    )
    with pytest.raises(ChildProcessError, match=message):
        found += fake([*rows(9), {"id": "dies", "dies": True}, *rows(9)], number=2)
    assert len(list((tmp_path / "marks").glob("dies.*"))) == 1, "it is not tried again"


def test_workers_that_die_while_they_load_are_one_clear_error(fake: Any) -> None:
    with pytest.raises(ChildProcessError, match="expected 2 workers to answer; one died"):
        list(fake(rows(3), number=2, load=fake_workers.die))


def test_a_failure_ends_all_workers(fake: Any) -> None:
    with pytest.raises(ValueError, match="these do not belong together"):
        next(fake(rows(4), number=2, load=fake_workers.fail))


def test_workers_have_numbers_of_their_own(fake: Any) -> None:
    found = [record for batch in fake(rows(4, seconds=0.5), number=2) for record in batch]
    assert {record["number"] for record in found} <= {0, 1}
    assert len({(record["pid"], record["number"]) for record in found}) <= 2


def test_closing_early_ends_the_workers(fake: Any) -> None:
    answers = fake(rows(9), number=2)
    next(answers)
    assert len(processes()) == 2
    answers.close()


INTERRUPTED = """
import signal, sys
from codit.dataset import workers
from tests import fake_workers
if __name__ == "__main__":
    # A shell that starts its commands in the background has them ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        print("begun", flush=True)
        next(workers.answers(fake_workers.wait, [[{"id": "0"}]] * 2, workers=2))
    except KeyboardInterrupt:
        sys.exit(130)
"""


def test_an_interruption_ends_driver_and_workers_without_a_traceback() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "begun\n"
        process, deadline = psutil.Process(driver.pid), time.monotonic() + 60
        while len(process.children()) < 3:  # the workers, and multiprocessing's resource tracker
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.5)  # they are starting: Ctrl-C reaches all of the group
        children = process.children()
        os.killpg(driver.pid, signal.SIGINT)
        _, errors = driver.communicate(timeout=60)
        assert psutil.wait_procs(children, timeout=60)[1] == []
    assert driver.returncode == 130
    assert errors == ""


@pytest.mark.long
def test_an_interrupted_run_of_real_workers_keeps_what_is_finished(
    recipe: Synthesis, whole: dict[str, bytes], tmp_path: Path
) -> None:
    with drive(recipe, tmp_path) as driver:
        await_lines(tmp_path / "data.partial", 2, driver)
        children = psutil.Process(driver.pid).children(recursive=True)
        os.killpg(driver.pid, signal.SIGINT)
        _, errors = driver.communicate(timeout=60)
        assert psutil.wait_procs(children, timeout=60)[1] == []
    assert errors.decode().count("Traceback") <= 1, "the driver's own"
    run(recipe, tmp_path / "data.jsonl", workers=2)
    assert made(tmp_path / "data.jsonl") == whole
