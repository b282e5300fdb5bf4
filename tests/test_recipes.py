"""Keys: what changes them, what does not, and what a recipe refuses."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from codit import recipes
from codit import recipes as content
from codit.world.recipes import Answers, Pretraining, World, WorldPrompts

TRAINING = recipes.Training(base=Pretraining(), data=Answers())


@dataclass(frozen=True, kw_only=True)
class Loose:
    """A recipe that holds anything."""

    value: Any
    version: ClassVar[int] = 1


def decodings() -> st.SearchStrategy[recipes.Decoding]:
    return st.builds(
        recipes.Decoding,
        strength=st.floats(0, 5),
        plausibility=st.floats(0, 1),
        top_k=st.integers(0, 9),
        seed=st.integers(0, 9),
    )


@settings(deadline=None)
@given(decodings(), decodings())
def test_keys_are_equal_exactly_when_recipes_are(
    one: recipes.Decoding, other: recipes.Decoding
) -> None:
    assert (recipes.key(one) == recipes.key(other)) == (one == other)


def test_a_key_is_sixteen_hexadecimal_digits_and_the_same_in_every_process() -> None:
    key = recipes.key(TRAINING)
    assert re.fullmatch("[0-9a-f]{16}", key)
    program = "from codit.recipes import *;from codit.world.recipes import *;"
    program += "print(key(Training(base=Pretraining(), data=Answers())))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == key


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(recipes.Decoding)])
def test_every_field_of_a_decoding_enters_its_key(name: str) -> None:
    other = {"top_p": 0.5}.get(name, 1)
    if getattr(recipes.Decoding(), name) == other:
        other = 0
    changed = dataclasses.replace(recipes.Decoding(), **{name: other})
    assert recipes.key(changed) != recipes.key(recipes.Decoding())


def test_a_change_far_upstream_changes_the_key() -> None:
    world = World(seed=1)
    data = Answers(prompts=WorldPrompts(world=world))
    assert recipes.key(dataclasses.replace(TRAINING, data=data)) != recipes.key(TRAINING)


def test_recipes_of_two_kinds_with_equal_fields_have_two_keys() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Other:
        value: Any
        version: ClassVar[int] = 1

    assert recipes.key(Other(value=1)) != recipes.key(Loose(value=1))


def test_a_raised_version_changes_the_key_of_everything_downstream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = recipes.key(TRAINING)
    monkeypatch.setattr(Pretraining, "version", Pretraining.version + 1)
    assert recipes.key(TRAINING) != before


@dataclass(frozen=True, kw_only=True)
class Before:
    """A recipe as it was."""

    kept: float = 1.0
    dropped: int | None = None
    version: ClassVar[int] = 3


@dataclass(frozen=True, kw_only=True)
class After:
    """The same under another name, with a field more and one less."""

    kept: float = 1.0
    added: str = "plain"
    version: ClassVar[int] = 3
    NAME: ClassVar[str] = "Before"
    LATE: ClassVar[dict[str, Any]] = {"added": "plain"}
    GONE: ClassVar[dict[str, Any]] = {"dropped": None}


def test_a_recipe_that_changed_its_form_keeps_its_keys() -> None:
    assert recipes.key(After(kept=2.5)) == recipes.key(Before(kept=2.5))
    assert recipes.key(Loose(value=(After(),))) == recipes.key(Loose(value=(Before(),)))
    new = {recipes.key(After()), recipes.key(After(added="other")), recipes.key(After(kept=2))}
    assert len(new) == 3
    assert recipes.key(Before(dropped=1)) not in new


def test_equal_numbers_are_equal_however_they_are_written() -> None:
    assert recipes.key(recipes.Decoding(strength=1)) == recipes.key(recipes.Decoding(strength=1.0))
    assert recipes.key(Loose(value=(1, 2))) == recipes.key(Loose(value=[1.0, 2]))


def test_a_boolean_is_not_the_number_one() -> None:
    assert recipes.key(Loose(value=True)) != recipes.key(Loose(value=1))


def test_a_file_enters_by_content_and_not_by_path(tmp_path: Path) -> None:
    one, other = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    one.write_text("same")
    other.write_text("same")
    key = recipes.key(recipes.File(path=str(one)))
    assert recipes.key(recipes.File(path=str(other))) == key
    other.write_text("different")
    assert recipes.key(recipes.File(path=str(other))) != key


def test_a_local_model_enters_by_the_content_and_names_of_its_files(tmp_path: Path) -> None:
    def model(name: str, file: str, content: str) -> recipes.Model:
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(content)
        return recipes.Model(name=str(tmp_path / name))

    first = recipes.key(model("first", "weights", "1"))
    assert recipes.key(model("copy", "weights", "1")) == first
    assert recipes.key(model("retrained", "weights", "2")) != first
    assert recipes.key(model("renamed", "config", "1")) != first


def test_a_model_of_the_hub_enters_by_name_and_revision() -> None:
    key = recipes.key(recipes.Model(name="org/model"))
    assert recipes.key(recipes.Model(name="org/model", revision="abc")) != key
    assert recipes.key(recipes.Model(name="org/other")) != key


def test_an_input_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent.jsonl"
    with pytest.raises(FileNotFoundError) as error:
        recipes.key(recipes.File(path=str(path)))
    assert str(error.value) == f"expected an input file or folder at {path}; there is none."


@pytest.mark.parametrize("value", [{"a": 1}, {1}, Path("x"), len])
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    kind = type(value).__name__
    with pytest.raises(ValueError, match=rf"numbers, strings, tuples and recipes; got {kind}"):
        recipes.key(Loose(value=value))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_json_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        recipes.key(Loose(value=value))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "strength",
            -0.5,
            "strength must be between 0 and 1e+06; got -0.5. Give a value in that range.",
        ),
        ("strength", float("nan"), "strength must be between 0 and 1e+06; got nan."),
        ("plausibility", 1.5, "plausibility must be between 0 and 1; got 1.5."),
        ("temperature", -1.0, "temperature must be between 0 and 1e+06; got -1.0."),
        ("top_p", 0.0, "top_p must lie in (0, 1]; got 0.0. Use 1 to keep all."),
        ("top_k", -1, "top_k must be at least 0; got -1."),
        ("max_new_tokens", 0, "max_new_tokens must be at least 1; got 0."),
    ],
)
def test_a_decoding_refuses_values_outside_their_range(
    field: str, value: float, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        recipes.Decoding(**{field: value})


def test_a_description_is_plain_and_holds_every_nested_value() -> None:
    described = recipes.describe(TRAINING)
    assert described["recipe"] == "Training"
    assert described["data"]["prompts"]["world"]["people"] == World().people
    assert described["adam_betas"] == list(TRAINING.adam_betas)
    assert json.loads(json.dumps(described)) == described


def test_recipes_inside_a_tuple_are_described_too() -> None:
    described = recipes.describe(Loose(value=(World(seed=3), 1)))
    assert described["value"] == [recipes.describe(World(seed=3)), 1]


def test_the_hash_of_a_folder_sees_moved_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    (tmp_path / "b").write_text("2")
    before = content.sha256(tmp_path)
    (tmp_path / "a").write_text("2")
    (tmp_path / "b").write_text("1")
    assert content.sha256(tmp_path) != before
