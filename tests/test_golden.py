"""The embedded pair answers as recorded; what was recorded, with what, stands in tests/golden/."""

from __future__ import annotations

import copy
import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from codit import recipes
from codit.files import versions
from codit.paper import make, scales
from codit.paper.scales import Scale
from codit.recipes import Synthesis
from codit.world.recipes import Pretraining
from tests import golden


@pytest.mark.parametrize(
    ("name", "engine"), [*((name, "auto") for name in scales.ARMS), ("codit", "continuous")]
)
def test_the_embedded_pair_answers_as_recorded(name: str, engine: str) -> None:
    recipe = golden.watched()[name]
    made = golden.rows(recipe, engine=engine)
    found = golden.difference(made, golden.recorded(golden.FOLDER, name, recipe))
    # Another processor rounds otherwise; a draw at the border of two tokens then falls otherwise.
    assert found.equal >= 0.95
    assert found.largest <= 1e-3
    assert found.mean <= 1e-4


def test_the_recorded_arms_are_those_of_the_package_and_differ() -> None:
    files = sorted(path.stem for path in golden.FOLDER.glob("*.json"))
    assert files == sorted(scales.ARMS)
    texts = {
        tuple(row["text"] for row in golden.recorded(golden.FOLDER, name, recipe))
        for name, recipe in golden.watched().items()
    }
    assert len(texts) == len(scales.ARMS)


# -- recording, with the pair of tests/micro.py --------------------------------------------------


@pytest.fixture
def wanted(micro: Scale, monkeypatch: pytest.MonkeyPatch) -> dict[str, Synthesis]:
    monkeypatch.setattr(golden, "PROMPTS", 6)
    made = golden.watched(micro)
    for model in (micro.pair.expert, micro.pair.amateur):
        make.model_path(model)
    return made


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clone in small: one commit, nothing changed since."""
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "code.py").write_text("1\n")
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    commands = ["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "one"]
    for arguments in commands:
        subprocess.run(["git", *arguments], cwd=root, check=True)
    return root


def test_what_is_recorded_is_found_again(
    wanted: dict[str, Synthesis], checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = checkout / "tests" / "golden"
    golden.record(wanted, folder, root=checkout)
    assert "codit: 6 answers recorded" in capsys.readouterr().out
    for name, recipe in wanted.items():
        rows = golden.recorded(folder, name, recipe)
        assert golden.difference(golden.rows(recipe), rows) == golden.Difference(1, 0, 0)
    golden.record(wanted, folder, root=checkout)  # its own files do not make a checkout dirty


def test_a_file_says_which_recipe_and_environment_made_it(
    wanted: dict[str, Synthesis], checkout: Path
) -> None:
    golden.record({"codit": wanted["codit"]}, checkout / "golden", root=checkout)
    found = json.loads((checkout / "golden" / "codit.json").read_text())
    assert found["config"] == {
        "key": recipes.key(wanted["codit"]),
        "recipe": recipes.describe(wanted["codit"]),
    }
    here = found["environment"]
    assert len(here["commit"]) == 40
    assert here["changed"] == []
    assert here["versions"] == versions()
    assert {"machine", "threads", "cores", "instructions", "recorded"} <= set(here)
    assert all(len(row["tokens"]) == 16 and row["logprobs"] for row in found["rows"])


def test_a_dirty_checkout_is_not_recorded_unless_asked_for(
    wanted: dict[str, Synthesis], checkout: Path
) -> None:
    (checkout / "code.py").write_text("2\n")
    folder = checkout / "tests" / "golden"
    with pytest.raises(
        RuntimeError, match="clean working tree, .* got changes in code.py. .* with --dirty"
    ):
        golden.record(wanted, folder, root=checkout)
    assert not folder.exists()
    golden.record({"codit": wanted["codit"]}, folder, root=checkout, dirty=True)
    found = json.loads((folder / "codit.json").read_text())
    assert found["environment"]["changed"] == ["code.py"]


def test_nothing_is_recorded_outside_a_checkout(
    wanted: dict[str, Synthesis], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="expected a git checkout with a commit .* in a clone"):
        golden.record(wanted, tmp_path / "golden", root=tmp_path)


def test_a_golden_file_of_another_recipe_says_what_to_run(
    wanted: dict[str, Synthesis], tmp_path: Path, checkout: Path
) -> None:
    golden.record({"codit": wanted["codit"]}, tmp_path, root=checkout)
    other = replace(wanted["codit"], decoding=replace(wanted["codit"].decoding, strength=1.25))
    with pytest.raises(
        ValueError,
        match=f"recorded with recipe {recipes.key(wanted['codit'])}; the recipe is now "
        f"{recipes.key(other)}. .* run `make golden`",
    ):
        golden.recorded(tmp_path, "codit", other)
    with pytest.raises(ValueError, match=r"file direct.json; there is none. Run `make golden`"):
        golden.recorded(tmp_path, "direct", wanted["direct"])


def test_models_that_were_never_made_are_asked_for_and_not_trained(micro: Scale) -> None:
    unmade = Pretraining(world=micro.prompts.world, seed=99)
    recipe = golden.watched(replace(micro, pair=replace(micro.pair, amateur=unmade)))["codit"]
    make.model_path(micro.pair.expert)
    with pytest.raises(
        FileNotFoundError, match=f"made by {recipes.key(unmade)}; there is none. Run `make models`"
    ):
        golden.rows(recipe)


# -- comparing -----------------------------------------------------------------------------------


ROWS: list[dict[str, Any]] = [
    {"id": str(i), "text": f"text {i}", "tokens": f"hash {i}", "logprobs": [-1.0, -2.0]}
    for i in range(4)
]


def changed(**values: Any) -> list[dict[str, Any]]:
    """The rows, the second with other values."""
    rows = copy.deepcopy(ROWS)
    rows[1] |= values
    return rows


def test_equal_rows_do_not_differ() -> None:
    assert golden.difference(changed(), ROWS) == golden.Difference(equal=1, largest=0, mean=0)


@pytest.mark.parametrize("values", [{"text": "another"}, {"tokens": "another"}])
def test_a_row_of_another_text_or_other_tokens_is_not_compared_further(
    values: dict[str, str],
) -> None:
    found = golden.difference(changed(**values, logprobs=[-9.0]), ROWS)
    assert found == golden.Difference(equal=0.75, largest=0, mean=0)


def test_one_large_and_many_small_differences_are_told_apart() -> None:
    one = golden.difference(changed(logprobs=[-1.0, -2.5]), ROWS)
    assert (one.equal, one.largest, one.mean) == (1, 0.5, 0.0625)
    drifted = [row | {"logprobs": [-1.25, -2.25]} for row in ROWS]
    many = golden.difference(drifted, ROWS)
    assert (many.largest, many.mean) == (0.25, 0.25)


def test_rows_that_all_differ_leave_nothing_to_compare() -> None:
    found = golden.difference([row | {"text": "another"} for row in ROWS], ROWS)
    assert found.equal == 0
    assert not found.largest <= 1e-3


def test_other_prompts_are_refused() -> None:
    with pytest.raises(ValueError, match="holds other prompts. Run `make golden`"):
        golden.difference(ROWS[:2], ROWS)
