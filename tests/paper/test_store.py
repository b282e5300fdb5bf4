"""Results are found by their recipe's key, made once, and complete or absent after any kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import codit
from codit import recipes
from codit.files import versions
from codit.paper import store
from codit.world.recipes import World

RECIPE = World(seed=7)

MAKER = """
import os, sys, time
from pathlib import Path
from codit.paper import store
from codit.world.recipes import World

def make(recipe, folder):
    with open(sys.argv[1], "a") as log:
        log.write(f"{os.getpid()}\\n")
    (folder / "half.txt").write_text("half")
    time.sleep(float(sys.argv[2]))
    (folder / "whole.txt").write_text("whole")

print(store.get(World(seed=7), make))
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Results of each test lie in a folder of its own."""
    monkeypatch.setenv("CODIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(recipe: Any, folder: Path) -> None:
    (folder / "text.txt").write_text(f"made from seed {recipe.seed}")


def never(recipe: Any, folder: Path) -> None:
    pytest.fail(f"made {recipe} again")


def start(log: Path, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKER, str(log), str(seconds)]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": root}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.01)


def test_a_result_is_made_once_and_then_found(cache: Path) -> None:
    folder = store.get(RECIPE, make)
    assert folder == cache / f"World-{recipes.key(RECIPE)}"
    assert (folder / "text.txt").read_text() == "made from seed 7"
    assert store.find(RECIPE) == folder
    assert store.get(RECIPE, never) == folder


def test_another_recipe_has_another_folder() -> None:
    assert store.get(RECIPE, make) != store.get(World(seed=8), make)


def test_the_manifest_says_which_recipe_made_a_result_and_with_what() -> None:
    manifest = store.read_manifest(store.get(RECIPE, make))
    assert manifest["key"] == recipes.key(RECIPE)
    assert manifest["recipe"] == recipes.describe(RECIPE)
    assert manifest["versions"] == versions()
    assert {"python", "codit", "torch"} <= set(manifest["versions"])
    assert 0 <= manifest["seconds"] < 60
    assert manifest["created"].endswith("+00:00")


def test_the_manifest_is_written_after_the_maker_has_finished() -> None:
    def look(recipe: Any, folder: Path) -> None:
        assert folder.name.endswith(".partial")
        assert list(folder.iterdir()) == []
        assert store.find(recipe) is None
        make(recipe, folder)

    assert (store.get(RECIPE, look) / "manifest.json").is_file()


def test_a_maker_that_raises_leaves_its_work_to_the_next_try() -> None:
    def fail(recipe: Any, folder: Path) -> None:
        (folder / "begun.txt").write_text("kept")
        raise RuntimeError("no power")

    def finish(recipe: Any, folder: Path) -> None:
        assert (folder / "begun.txt").read_text() == "kept"
        make(recipe, folder)

    with pytest.raises(RuntimeError, match="no power"):
        store.get(RECIPE, fail)
    assert store.find(RECIPE) is None
    assert (store.get(RECIPE, finish) / "begun.txt").is_file()


def test_fresh_makes_a_result_again_from_nothing() -> None:
    folder = store.get(RECIPE, make)
    (folder / "stale.txt").write_text("stale")

    def look(recipe: Any, partial: Path) -> None:
        assert list(partial.iterdir()) == []
        assert (folder / "stale.txt").is_file(), "the old result stays until the new is ready"
        make(recipe, partial)

    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir()
    (partial / "leftover.txt").write_text("")
    assert store.get(RECIPE, look, fresh=True) == folder
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "text.txt"]
    assert [p.name for p in folder.parent.iterdir() if p.is_dir()] == [folder.name]


def test_a_folder_that_lost_its_manifest_is_made_again() -> None:
    folder = store.get(RECIPE, make)
    (folder / "manifest.json").unlink()
    (folder / "text.txt").write_text("broken")
    assert store.find(RECIPE) is None
    assert (store.get(RECIPE, make) / "text.txt").read_text() == "made from seed 7"


def test_a_kill_between_manifest_and_rename_loses_nothing() -> None:
    folder = store.get(RECIPE, make)
    folder.rename(folder.with_name(folder.name + ".partial"))
    assert store.get(RECIPE, never) == folder
    assert (folder / "text.txt").is_file()


def test_a_kill_between_the_two_renames_of_a_fresh_result_keeps_the_new_one() -> None:
    folder = store.get(RECIPE, make)
    folder.rename(folder.with_name(f".{folder.name}.old"))
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir()
    (partial / "text.txt").write_text("new")
    store.write_manifest(partial, RECIPE)
    assert (store.get(RECIPE, never) / "text.txt").read_text() == "new"
    assert not folder.with_name(f".{folder.name}.old").exists()


@pytest.mark.parametrize("place", store.SHIPPED)
def test_a_shipped_folder_is_found_by_its_key_whatever_its_name(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "repository", lambda: tmp_path)
    for name, recipe in (("another", World(seed=1)), ("readable name", RECIPE)):
        (tmp_path / place / name).mkdir(parents=True)
        store.write_manifest(tmp_path / place / name, recipe)
    (tmp_path / place / "no manifest").mkdir()
    assert store.get(RECIPE, never) == tmp_path / place / "readable name"


def test_fresh_neither_uses_nor_changes_a_shipped_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(store, "repository", lambda: tmp_path)
    shipped = tmp_path / "data" / "models" / "world"
    shipped.mkdir(parents=True)
    store.write_manifest(shipped, RECIPE)
    assert store.get(RECIPE, make, fresh=True).parent == cache
    assert [p.name for p in shipped.iterdir()] == ["manifest.json"]


def test_what_a_kill_leaves_between_two_renames_is_not_taken_for_a_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "repository", lambda: tmp_path)
    target, made = (tmp_path / "data" / "models" / name for name in ("world", ".world.new"))
    for folder in (target, made):
        folder.mkdir(parents=True)
        store.write_manifest(folder, RECIPE)
    rename = Path.rename

    def killed(path: Path, to: Path) -> None:
        if path == made:
            raise KeyboardInterrupt
        rename(path, to)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            store.place(made, target)
    assert sorted(path.name for path in target.parent.iterdir()) == [".world.new", ".world.old"]
    assert store.find(RECIPE) is None
    assert store.place(made, target) == store.find(RECIPE) == target
    assert [path.name for path in target.parent.iterdir()] == ["world"]


@pytest.mark.parametrize(("text", "got"), [("{", "Expecting property name"), ("[1]", r"\[1\]")])
def test_a_manifest_that_cannot_be_read_is_named(text: str, got: str) -> None:
    folder = store.get(RECIPE, make)
    (folder / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=rf"expected a JSON object in .*manifest.json; got {got}"):
        store.get(RECIPE, make)


def test_an_unfinished_folder_has_no_manifest_to_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        store.read_manifest(tmp_path)


def test_results_lie_in_the_checkout_unless_relocated(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert store.cache() == tmp_path / "cache"
    monkeypatch.delenv("CODIT_CACHE")
    assert store.cache() == Path(__file__).parents[2] / "data" / "cache"


def test_a_package_without_its_repository_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(codit, "__file__", str(tmp_path / "codit" / "__init__.py"))
    (tmp_path / "codit-0.1.dist-info").mkdir()
    assert (store.get(RECIPE, make) / "text.txt").is_file(), "CODIT_CACHE is enough"
    monkeypatch.delenv("CODIT_CACHE")
    with pytest.raises(FileNotFoundError, match=r"holds no notebooks/.*or set CODIT_CACHE"):
        store.repository()


def test_shipped_results_that_cannot_be_looked_for_are_not_taken_for_absent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(codit, "__file__", str(tmp_path / "codit" / "__init__.py"))
    with pytest.raises(FileNotFoundError, match="expected the codit repository around the package"):
        store.get(RECIPE, never)


def test_a_cache_that_cannot_be_made_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CODIT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(PermissionError, match="Set CODIT_CACHE to a folder that can be written"):
        store.get(RECIPE, make)


def test_two_processes_that_ask_for_one_key_make_it_once(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    processes = [start(log, 0.5) for _ in range(2)]
    folders = [process.communicate(timeout=60)[0].strip() for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len(log.read_text().splitlines()) == 1
    assert folders == [str(store.find(RECIPE))] * 2


def test_a_maker_killed_half_way_leaves_nothing_that_looks_finished(
    tmp_path: Path, cache: Path
) -> None:
    partial = cache / f"World-{recipes.key(RECIPE)}.partial"
    process = start(tmp_path / "log.txt", 600)
    wait_for(partial / "half.txt")
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert store.find(RECIPE) is None
    assert (partial / "half.txt").is_file()
    folder = store.get(RECIPE, make)  # the dead process holds no lock
    assert sorted(p.name for p in folder.iterdir()) == ["half.txt", "manifest.json", "text.txt"]
