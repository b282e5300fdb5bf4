"""The committed tables are those that the notebooks of scale `full` ask for, and small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from codit import committed, experiments, recipes, results, store, studies
from codit.comparison import Arm
from codit.experiments import Scale

FULL = committed.tables(experiments.scale("full"))
RESULTS = store.repository() / "data" / "results"


def test_every_table_has_a_folder_and_every_folder_a_table() -> None:
    assert {path.name for path in RESULTS.iterdir() if path.is_dir()} == set(FULL)


@pytest.mark.parametrize("name", FULL)
def test_the_store_finds_a_committed_table_by_its_recipe_s_key(name: str) -> None:
    recipe, make = FULL[name]
    assert store.find(recipe) == committed.folder(name)
    manifest = store.read_manifest(committed.folder(name))
    assert manifest["key"] == recipes.key(recipe)
    assert len(make(recipe)) > 0  # type: ignore[arg-type]


def test_all_tables_together_are_small_enough_for_a_clone() -> None:
    size = sum(path.stat().st_size for path in RESULTS.rglob("*") if path.is_file())
    assert 0 < size < 15e6


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(store, "repository", lambda: tmp_path)
    return tmp_path


def test_a_table_is_made_put_in_its_place_and_found_there(
    micro: Scale, repository: Path, idle: Any
) -> None:
    recipe = studies.responses(micro, (Arm(role="direct"),))
    target = committed.commit("a", (recipe, results.study))
    assert target == repository / "data" / "results" / "a"
    idle()
    assert store.find(recipe) == target
    assert committed.commit("a", (recipe, results.study)) == target
    assert [path.name for path in target.parent.iterdir()] == ["a"]


def test_a_table_that_is_too_large_is_refused(
    micro: Scale, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committed, "TOO_LARGE", 10)
    recipe = studies.responses(micro, (Arm(role="codit"),))
    with pytest.raises(ValueError, match="expected at most 10 bytes of b; got"):
        committed.commit("b", (recipe, results.study))
    assert not (repository / "data").exists()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="expected names among .*got .'nobody'"):
        committed.main(("nobody",))
