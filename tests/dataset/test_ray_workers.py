"""Workers on a Ray cluster write the dataset of one process. The cluster is one of this machine."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from codit import files, synthesis
from codit.dataset import output, workers
from codit.recipes import Model, Synthesis
from tests import tiny
from tests.dataset.test_workers import await_lines, drive, made, recipe, run, whole

ray = pytest.importorskip("ray", reason='Ray is an extra: pip install -e ".[ray]"')

__all__ = ["recipe", "whole"]  # fixtures

# Ray Data sets options of its own that it calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.data.context")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A home of its own: Ray keeps the token of its clusters there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def shared(home: None) -> Iterator[int]:
    """A cluster of four CPUs, real or not, that every test of the module uses."""
    with contextlib.ExitStack() as stack:
        try:
            number = stack.enter_context(workers.cluster("local", 4))
        except ConnectionError as error:
            if "timed out during startup" in str(error):
                pytest.skip("Ray gives itself 30 s to start: too little on this busy machine")
            raise
        yield number
    assert not ray.is_initialized()


def actors(driver: int | None = None) -> list[psutil.Process]:
    """The workers of a driver's cluster (None: this process's) that answer, or are about to."""
    return [
        child
        for child in psutil.Process(driver).children(recursive=True)
        if child.name().startswith("ray::MapWorker") or "MapWorker" in " ".join(child.cmdline())
    ]


def sockets() -> set[str]:
    """Addresses at which this process and its children listen."""
    everyone = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return {
        connection.laddr.ip
        for process in everyone
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def test_two_ray_workers_one_of_them_killed_write_the_bytes_of_one_process(
    recipe: Synthesis,
    whole: dict[str, bytes],
    shared: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, killed = output.append, list[int]()

    def killing(*args: Any, **how: Any) -> int:
        if not killed:
            victim = actors()[0]
            killed.append(victim.pid)
            victim.kill()
        return real(*args, **how)

    monkeypatch.setattr(output, "append", killing)
    manifest = run(recipe, tmp_path / "data.jsonl", workers=2, ray_address="auto")
    assert made(tmp_path / "data.jsonl") == whole, "every row, every byte"
    assert killed
    assert manifest["workers"] == 2
    assert ray.is_initialized(), "a connection that was there is kept"


@pytest.mark.long
def test_four_ray_workers_complete_what_one_process_began(
    recipe: Synthesis,
    whole: dict[str, bytes],
    shared: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, out, calls = output.append, tmp_path / "data.jsonl", list[int]()

    def stopping(*args: Any, **how: Any) -> int:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*args, **how)

    monkeypatch.setattr(output, "append", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(recipe, out)
    manifest = run(recipe, out, ray_address="auto")
    assert made(out) == whole
    assert manifest["workers"] == 4, "one for each CPU of the cluster"


def test_what_is_wrong_with_models_is_said_as_without_workers(
    recipe: Synthesis, shared: int, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    tiny.model("llama", seed=5, vocab_size=200).save_pretrained(other)
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(other)
    wrong = replace(recipe, pair=replace(recipe.pair, amateur=Model(name=str(other))))
    said = []
    for name, more in (("a", {}), ("b", {"workers": 1, "limit": 2, "ray_address": "auto"})):
        with pytest.raises(ValueError, match="tokenizers") as caught:
            run(wrong, tmp_path / f"{name}.jsonl", **more)
        said.append(caught)
    assert str(said[0].value) == str(said[1].value)
    assert "in _loaded" in said[1].value.__notes__[0], "the worker's traceback"


def test_a_cluster_of_its_own_listens_to_this_machine_alone(shared: int) -> None:
    assert {address.removeprefix("::ffff:") for address in sockets()} <= {"127.0.0.1", "::1"}


def test_more_workers_than_the_cluster_has_room_for_are_refused(
    recipe: Synthesis, shared: int, tmp_path: Path
) -> None:
    message = "expected a cluster with 99 CPUs, one for each worker; got 4. Use fewer workers"
    with pytest.raises(ValueError, match=message):
        run(recipe, tmp_path / "data.jsonl", workers=99, ray_address="auto")
    assert not (tmp_path / "data.partial").exists()


@pytest.mark.long
def test_a_batch_that_kills_every_worker_is_one_clear_error(shared: int, tmp_path: Path) -> None:
    def load(number: int) -> Any:  # local: Ray sends it by value
        def answer(batch: Any) -> Any:
            import time

            if batch[0]["id"] == "1":
                (tmp_path / f"{time.monotonic_ns()}").touch()
                time.sleep(0.5)
                os.kill(os.getpid(), 9)
            return [{"id": batch[0]["id"]}]

        return answer

    answers = workers.ray_answers(load, [[{"id": str(i)}] for i in range(4)], workers=2)
    assert next(answers) == [{"id": "0"}], "the batch before is kept"
    message = r"expected 2 Ray workers to answer; got Actor.*: .* the same command goes on"
    with pytest.raises(ChildProcessError, match=message):
        list(answers)
    assert len(list(tmp_path.iterdir())) == 1 + workers.DEATHS


@pytest.mark.parametrize("late", [0, 2, 3])
def test_a_cluster_that_starts_slowly_is_started_again(late: int) -> None:
    fails, left = late, list[subprocess.Popen[bytes]]()

    def init(**_: object) -> str:
        nonlocal late
        late -= 1
        if late < 0:
            return "there"
        left.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]))
        raise Exception("The current node timed out during startup. This could ...")

    slow = SimpleNamespace(init=init, _private=ray._private)
    if late < workers.STARTS:
        assert workers._connect(slow, "local", 1) == "there"
    else:
        with pytest.raises(ConnectionError, match="got Exception: The current node timed out"):
            workers._connect(slow, "local", 1)
    assert len(left) == fails
    assert not any(psutil.pid_exists(one.pid) for one in left), "nothing is left running"
    for one in left:
        one.wait()


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(ValueError, match=r'expected Ray; .*: pip install -e "\.\[ray\]"'),
        workers.cluster("local", None),
    ):
        pass


def test_an_address_where_nobody_listens_is_refused_at_once() -> None:
    with socket.socket() as taken:  # bound, and not listening
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            message = f"expected a Ray cluster at {address}; got ConnectionRefusedError: .*refused"
            with pytest.raises(ConnectionError, match=message):
                workers._connect(SimpleNamespace(), address, None)


def test_a_cluster_that_is_not_there_is_one_clear_error() -> None:
    def init(**how: Any) -> None:
        raise RuntimeError("Failed to connect to GCS.\nMore lines")

    message = (
        r"expected a Ray cluster at auto; got RuntimeError: Failed to connect to GCS\. "
        r"Start one \(ray start --head\), or use the address 'local' for this machine alone\."
    )
    with pytest.raises(ConnectionError, match=message):
        workers._connect(SimpleNamespace(init=init), "auto", None)


def test_folders_of_models_are_named_from_the_root(
    recipe: Synthesis, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(recipe.pair.expert.name)
    monkeypatch.chdir(folder.parent)
    pair = replace(recipe.pair, expert=Model(name="expert"), amateur=Model(name="on/the-hub"))
    found = synthesis._anywhere(replace(recipe, pair=pair)).pair
    assert found == replace(pair, expert=Model(name=str(folder.resolve())))


@pytest.mark.long
@pytest.mark.usefixtures("home")
def test_a_cluster_of_its_own_ends_with_a_driver_that_is_killed(
    recipe: Synthesis, whole: dict[str, bytes], tmp_path: Path
) -> None:
    with drive(recipe, tmp_path, "{'ray_address': 'local'}") as driver:
        await_lines(tmp_path / "data.partial", 2, driver)
        children = psutil.Process(driver.pid).children(recursive=True)
        driver.kill()
        _, left = psutil.wait_procs(children, timeout=30)
        assert not any("Worker" in process.name() for process in left), "they end at once"
        assert psutil.wait_procs(left, timeout=120)[1] == [], "Ray's agents wait for a minute"
        assert len(children) > 4
    run(recipe, tmp_path / "data.jsonl")
    assert made(tmp_path / "data.jsonl") == whole


@pytest.mark.long
@pytest.mark.usefixtures("home")
def test_sigterm_ends_a_command_and_the_cluster_that_it_started(
    recipe: Synthesis, tmp_path: Path
) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "data.jsonl"
    files.write_lines(prompts, ({"id": str(i), "instruction": f"cat {i}"} for i in range(400)))
    command = [sys.executable, "-m", "codit.cli", "synthesize", "--prompts", str(prompts)]
    for role in ("expert", "amateur"):
        command += [f"--{role}", str(getattr(recipe.pair, role).name)]
    command += ["--max-new-tokens", "6", "--batch-size", "2", "--out"]
    ours = ["--ray-address", "local", "--workers", "2"]
    with subprocess.Popen([*command, str(out), *ours], stderr=subprocess.PIPE) as driver:
        try:  # Ray may need its three starts
            await_lines(tmp_path / "data.partial", 2, driver, seconds=900)
        except AssertionError as error:
            driver.kill()
            if "timed out during startup" in str(error):
                pytest.skip("Ray gives itself 30 s to start: too little on this busy machine")
            raise
        children = psutil.Process(driver.pid).children(recursive=True)
        answering = actors(driver.pid)
        driver.terminate()
        said = driver.communicate(timeout=60)[1].decode()
    assert driver.returncode == 143, said
    assert said.rstrip().endswith("codit: interrupted; the same command goes on from here")
    assert "Traceback" not in said
    assert len(answering) == 2 < len(children)
    assert psutil.wait_procs(children, timeout=20)[1] == [], "Ray's own processes too"
    kept = (tmp_path / "data.partial").read_bytes().count(b"\n")
    assert 2 <= kept < 400
    for path in (out, tmp_path / "whole.jsonl"):
        subprocess.run([*command, str(path)], check=True, stderr=subprocess.DEVNULL)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_the_users_environment_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("RAY_BACKEND_LOG_LEVEL", raising=False)
    with workers._environment(workers.QUIET | workers.OWN):
        assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"
        assert os.environ["RAY_BACKEND_LOG_LEVEL"] == "fatal"
    assert "RAY_BACKEND_LOG_LEVEL" not in os.environ
