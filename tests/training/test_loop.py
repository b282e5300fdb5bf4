"""What a killed training leaves behind, and what the next one makes of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from codit import recipes
from codit.training.loop import LOG, STATE, UNFINISHED, claim, last_checkpoint
from codit.world.recipes import Pretraining

RECIPE = Pretraining()
OTHER = Pretraining(seed=1)


def checkpoint(out: Path, step: int, state: str = '{"global_step": 1}') -> Path:
    folder = out / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / STATE).write_text(state)
    return folder


def test_the_newest_complete_checkpoint_is_taken_by_number_not_by_name(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    checkpoint(tmp_path, 90)
    newest = checkpoint(tmp_path, 100)
    checkpoint(tmp_path, 110, state='{"global_st')
    (tmp_path / "checkpoint-120").mkdir()
    assert last_checkpoint(tmp_path) == str(newest)


def test_a_folder_may_be_claimed_again_by_the_same_training(tmp_path: Path) -> None:
    out = tmp_path / "new" / "folder"
    claim(out, RECIPE, b"data")
    checkpoint(out, 10)
    claim(out, RECIPE, b"data")
    assert [path.name for path in out.iterdir() if path.is_file()] == [UNFINISHED]
    assert json.loads((out / UNFINISHED).read_text())["key"] == recipes.key(RECIPE)


@pytest.mark.parametrize(("recipe", "data"), [(OTHER, b"data"), (RECIPE, b"other")])
def test_another_recipe_or_other_data_may_not_go_on_from_a_checkpoint(
    tmp_path: Path, recipe: Pretraining, data: bytes
) -> None:
    claim(tmp_path, RECIPE, b"data")
    claim(tmp_path, recipe, data)  # nothing was begun yet
    claim(tmp_path, RECIPE, b"data")
    checkpoint(tmp_path, 10)
    message = "holds an unfinished training with another recipe or other data; expected the same."
    with pytest.raises(ValueError, match=re.escape(message)):
        claim(tmp_path, recipe, data)


def test_a_finished_training_is_kept_and_no_other_takes_its_place(tmp_path: Path) -> None:
    assert not claim(tmp_path, RECIPE, b"data")
    made_of = json.loads((tmp_path / UNFINISHED).read_text())
    (tmp_path / "config.json").write_text("{}")  # killed while the model was written
    assert not claim(tmp_path, RECIPE, b"data")
    (tmp_path / LOG).write_text(json.dumps({"made_of": made_of}))
    assert claim(tmp_path, RECIPE, b"data")
    assert not (tmp_path / UNFINISHED).exists()
    for recipe, data in ((OTHER, b"data"), (RECIPE, b"other")):
        with pytest.raises(ValueError, match="holds a finished model, made with other settings"):
            claim(tmp_path, recipe, data)


def test_the_base_is_never_overwritten(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    with pytest.raises(ValueError, match="holds the base, which would be overwritten"):
        claim(link, RECIPE, b"data", base=str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_checkpoint_that_nobody_claimed_is_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path, 10)
    with pytest.raises(ValueError, match="Give another folder, or delete this one"):
        claim(tmp_path, RECIPE, b"data")
