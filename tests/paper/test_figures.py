"""Figures: bytes, provenance, roles and what `save` refuses."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from codit import recipes
from codit.paper import figures, store
from codit.world.recipes import WorldPrompts

DATA = pd.DataFrame({"role": ["direct", "codit"], "value": [0.25, 1 / 3]})
CLAIM = figures.Claim(
    statement="CoDIT scores higher", source="CoDIT, Figure 2", ours="", holds=True
)
STUDENTS = [
    recipes.Evaluation(model=recipes.Model(name="org/model"), prompts=WorldPrompts(seed=s))
    for s in (7, 8)
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CODIT_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("CODIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "figures"


def draw() -> Figure:
    figures.theme()
    figure, axes = pyplot.subplots()
    axes.bar(DATA["role"], DATA["value"])
    axes.set_title("α and 95 %")
    pyplot.close(figure)
    return figure


def save(**changes: Any) -> Path:
    given = {"data": DATA, "recipes": {"students": STUDENTS}, "claims": [CLAIM], **changes}
    return figures.save(draw(), given.pop("name", "01_scores"), **given)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_figure_is_four_files_and_nothing_else(folder: Path) -> None:
    assert save() == folder / "01_scores.png"
    names = {"01_scores.pdf", "01_scores.png", "01_scores.csv", "01_scores.json"}
    assert set(content(folder)) == names


def test_the_table_holds_the_plotted_numbers(folder: Path) -> None:
    save()
    text = (folder / "01_scores.csv").read_text()
    assert text == "role,value\ndirect,0.25\ncodit,0.33333333\n"


def test_the_same_figure_gives_the_same_bytes_at_another_time_in_another_process(
    folder: Path,
) -> None:
    program = "from tests.paper import test_figures as t; t.save()"
    save()
    before = content(folder)
    environment = {**os.environ, "PYTHONHASHSEED": "1"}  # of the hashes that order sets
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert content(folder) == before


def test_pictures_hold_no_date(folder: Path) -> None:
    save()
    assert b"CreationDate" not in (folder / "01_scores.pdf").read_bytes()
    assert b"tEXt" not in (folder / "01_scores.png").read_bytes()


def test_a_reader_s_own_matplotlib_settings_change_nothing(folder: Path) -> None:
    save()
    before = content(folder)
    pyplot.rcParams.update({"font.size": 30, "lines.linewidth": 9, "figure.figsize": (1, 1)})
    save()
    assert content(folder) == before


def test_the_provenance_says_what_the_numbers_came_from(folder: Path) -> None:
    save(parameters={"scale": "micro"})
    record = json.loads((folder / "01_scores.json").read_text())
    assert record["parameters"] == {"scale": "micro"}
    assert [one["key"] for one in record["results"]["students"]] == list(map(recipes.key, STUDENTS))
    assert record["results"]["students"][1]["recipe"] == recipes.describe(STUDENTS[1])
    assert record["seeds"] == [0, 7, 8]
    assert record["versions"]["torch"].startswith("2.")
    assert record["claims"][0]["holds"] is True
    assert 0 < record["minutes"] < 600


def test_the_provenance_knows_what_making_a_result_cost(folder: Path) -> None:
    recipe = WorldPrompts(n=3)
    made = store.get(recipe, lambda _, out: (out / "rows").write_text("x"))
    store.write_manifest(made, recipe, seconds=12.5)
    save(recipes={"prompts": recipe})
    record = json.loads((folder / "01_scores.json").read_text())
    assert record["results"]["prompts"][0]["seconds"] == 12.5


@pytest.fixture
def saved(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, bool]]:
    """Save the figure at a commit, and tell which commit stands beside it then."""

    def at(commit: str, dirty: bool, **change: Any) -> tuple[str, bool]:
        monkeypatch.setattr(figures, "_commit", lambda: {"commit": commit, "dirty": dirty})
        save(**change)
        record = json.loads((folder / "01_scores.json").read_text())
        return record["commit"], record["dirty"]

    return at


def test_an_unchanged_result_keeps_the_commit_at_which_it_first_came_out(saved: Any) -> None:
    assert saved("first", False) == ("first", False)
    assert saved("second", False) == ("first", False)
    changed = DATA.assign(value=[0.25, 0.5])
    assert saved("third", True, data=changed) == ("third", True)


@pytest.mark.parametrize(
    "change",
    [
        {"claims": []},
        {"recipes": {"students": STUDENTS[:1]}},
        {"parameters": {"prompt": "another"}},
        {"data": DATA.head(1)},
    ],
)
def test_a_changed_result_has_a_new_provenance(saved: Any, change: dict[str, Any]) -> None:
    saved("first", False)
    assert saved("second", False, **change) == ("second", False)


def test_a_clean_commit_takes_the_place_of_a_dirty_one(saved: Any) -> None:
    saved("first", True)
    assert saved("second", True) == ("first", True)
    assert saved("third", False) == ("third", False)


def test_a_provenance_cut_in_half_is_written_again(folder: Path) -> None:
    save()
    (folder / "01_scores.json").write_text('{"commit": ')
    save()
    assert json.loads((folder / "01_scores.json").read_text())["seeds"] == [0, 7, 8]


def git(folder: Path, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_dirty_when_a_file_differs_that_is_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "figures").mkdir(parents=True)
    monkeypatch.setattr(store, "repository", lambda: checkout)
    (checkout / "code.py").write_text("1")
    git(tmp_path, "init", "-q", str(checkout))
    git(checkout, "add", "-A")
    git(checkout, "commit", "-q", "-m", "first")
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / "figures" / "01_scores.png").write_text("new")
    assert figures._commit() == {"commit": commit, "dirty": False}
    (checkout / "code.py").write_text("2")
    assert figures._commit() == {"commit": commit, "dirty": True}


def test_outside_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "repository", lambda: tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert figures._commit() == {"commit": None, "dirty": None}


def test_figures_lie_in_the_checkout_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("CODIT_FIGURES")
    assert figures.folder() == store.repository() / "figures"
    assert figures.folder("micro") == store.repository() / "figures" / "micro"


def test_pictures_of_other_scales_leave_the_committed_ones_alone(folder: Path) -> None:
    save()
    before = content(folder)
    assert save(scale="micro") == folder / "micro" / "01_scores.png"
    assert json.loads((folder / "micro" / "01_scores.json").read_text())["parameters"] == {
        "scale": "micro"
    }
    assert {name: before[name] for name in before} == {
        path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()
    }


@pytest.mark.parametrize("name", ["scores", "1_scores", "01-scores", "01_Scores", "../01_scores"])
def test_a_name_without_the_notebook_s_number_is_refused(name: str) -> None:
    message = f"01b_by_family; got {name!r}. Begin with the notebook's number."
    with pytest.raises(ValueError, match=re.escape(message)):
        save(name=name)


def test_a_figure_without_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"plotted numbers of 01_scores; got an empty table. Pass"):
        save(data=DATA.head(0))


@pytest.mark.parametrize("given", [{}, {"students": []}])
def test_a_figure_without_recipes_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected the recipes behind 01_scores; got .* Pass"):
        save(recipes=given)


@pytest.mark.parametrize("claim", ["CoDIT wins", figures.Claim(**{**vars(CLAIM), "holds": "yes"})])
def test_a_claim_of_another_form_is_refused(claim: Any) -> None:
    with pytest.raises(ValueError, match=r"holds True, False or None; got .*holds=bool"):
        save(claims=[claim])


def test_nothing_is_written_when_something_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="expected claims"):
        save(claims=["CoDIT wins"])
    assert not folder.exists()


def test_every_role_has_a_label() -> None:
    assert figures.LABELS.keys() == figures.COLOURS.keys()


# Viénot, Brettel & Mollon 1999, on linear RGB: what readers without one kind of cone see.
VISION = {
    "full": np.eye(3),
    "protanopia": np.array([[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]]),
    "deuteranopia": np.array(
        [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]]
    ),
}


def lab(colour: str, vision: str) -> np.ndarray[Any, Any]:
    """CIELAB of a colour as seen with a kind of vision."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    seen = np.clip(VISION[vision] @ linear, 0, 1)
    xyz_of_rgb = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(np.array(xyz_of_rgb) @ seen / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_any_two_roles_look_different_to_every_reader(vision: str) -> None:
    seen = {role: lab(colour, vision) for role, colour in figures.COLOURS.items()}
    for one, other in itertools.combinations(seen, 2):
        assert np.linalg.norm(seen[one] - seen[other]) > 12, f"{one} and {other} look alike"
