"""Heads of the micro world: tasks of one kind, maps that are kept, shares and choices by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from codit import world
from codit.paper import heads, scales
from codit.world import instructions
from codit.world.recipes import WorldPrompts

MICRO = scales.scale("micro", kinds=["capitals", "json"])
DEV = WorldPrompts(split="dev", n=heads.POOL)


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> heads.HeadStudy:
    """A study of the embedded models on four tasks of two kinds."""
    return replace(heads.recipe(MICRO), n=4)


@pytest.fixture
def store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "heads"
    monkeypatch.setenv("CODIT_CACHE", str(folder))
    return folder


@pytest.mark.parametrize("kind", heads.NAMES)
def test_a_task_of_a_kind_is_asked_for_it_alone_and_was_never_trained_on(kind: str) -> None:
    rows = heads.tasks(DEV, kind, 6)
    assert len({row["instruction"] for row in rows}) == 6
    for row in rows:
        (asked,) = row["constraints"]
        sentence = world.Constraint(**asked).text()
        assert asked["kind"] == kind
        assert row["instruction"] == f"{row['task']} {sentence}"
        assert heads._asked(row).instruction == sentence
        assert instructions.reserved_for(row["instruction"]) == "dev"


def test_too_few_tasks_are_said() -> None:
    with pytest.raises(ValueError, match="expected 9 tasks for 'json' among 20 prompts; got"):
        heads.tasks(replace(DEV, n=20), "json", 9)


def test_a_mismatched_prompt_asks_for_another_kind() -> None:
    followed = {k: [(row, [1]) for row in heads.tasks(DEV, k, 3)] for k in heads.NAMES}
    for kind, rows in followed.items():
        own = rows[0][0]["instruction"].removeprefix(rows[0][0]["task"]).strip()
        texts = [chat[-1]["content"] for chat in heads._corrupted(followed, kind, "mismatched")]
        for (row, _), text in zip(rows, texts, strict=True):
            assert text.startswith(row["task"])
            assert not text.endswith(own)
        bare = heads._corrupted(followed, kind, "removed")
        assert [chat[-1]["content"] for chat in bare] == [row["task"] for row, _ in rows]


def test_maps_are_made_once_and_find_the_heads_of_json(
    few: heads.HeadStudy, store: Path, idle: Any
) -> None:
    found = heads.study(few)
    effects = found["effects"]
    assert effects.groupby(["model", "kind", "corruption", "measure"]).size().unique() == [4]
    assert set(effects["model"]) == {"expert A", "amateur"}
    first = effects[(effects["measure"] == "first") & (effects["model"] == "expert A")]
    assert (first["asked"] - first["bare"]).mean() > 0.2, "the instruction is worth something"
    where = {"model": "expert A", "kind": "json", "corruption": "removed", "measure": "first"}
    table = heads.head_map(effects, **where)
    assert table.shape == (4, 4)
    assert table.stack().idxmax() == ("2", "2")
    assert heads.telling(effects) == {"capitals": "first", "json": "first"}
    read = heads._measured(effects, "json", "first").mean(0).numpy()
    np.testing.assert_allclose(read, table.to_numpy(), atol=1e-4)
    assert len(heads.map_table(effects)) == 2 * 2 * 16
    assert set(found["overlap"]["layer"]) == {0, 1, 2}
    idle()
    pd.testing.assert_frame_equal(heads.study(few)["effects"], effects)


def test_vectors_are_chosen_on_dev_tasks_and_reported_on_others(
    few: heads.HeadStudy, store: Path
) -> None:
    recipe = replace(
        heads.intervention_recipe(MICRO), heads=few, n=4, sizes=(1,), gammas=(1.0, 4.0)
    )
    found = heads.intervention(recipe)
    choices, chosen = found["choices"], found["chosen"].set_index("kind")
    assert len(choices) == 2 * 4 * 2
    for kind, own in choices.groupby("kind"):
        best = own[own["strict"] == own["strict"].max()]
        assert chosen.loc[kind, "layer"] in set(best["layer"])
    verdicts = found["verdicts"]
    counts = verdicts.groupby(["kind", "way"]).size().unstack()
    assert counts[["asked", "plain", "vector", "other"]].to_numpy().tolist() == [[4] * 4] * 2
    assert counts["random"].tolist() == [12, 12], "of three seeds"
    means = verdicts.groupby(["kind", "way"])["strict"].mean().unstack()
    assert means.loc["capitals", "asked"] > means.loc["capitals", "plain"]
    assert means.loc["capitals", "vector"] > means.loc["capitals", "random"]
    dev = {row["task"] for row in heads.tasks(DEV, "json", 12)}
    assert not dev & set(found["texts"].query("kind == 'json'")["prompt"])


# ---- by hand


def effects(**columns: Any) -> pd.DataFrame:
    told = {"model": "expert A", "kind": "json", "corruption": "removed", "measure": "first"}
    return pd.DataFrame({**told, "asked": 1.0, "bare": [0.0, 0.5], **columns})


def test_a_share_is_what_came_back_of_what_was_lost() -> None:
    table = effects(**{"0.0": [0.1, 0.1], "top_1": [0.5, 0.1], "top_3": [1.0, 0.5]})
    found = heads.shares(table).set_index("heads")
    assert found["value"].tolist() == pytest.approx([0.4, 1.0])
    assert found.loc[3, ["low", "high"]].tolist() == pytest.approx([1.0, 1.0])
    assert found.loc[1, "low"] == pytest.approx(0.2)
    assert found["gap"].tolist() == [0.75, 0.75]


def test_maps_agree_where_their_heads_do() -> None:
    one = effects(**{"0.0": 0.0, "0.1": 1.0, "1.0": 2.0, "1.1": 3.0})
    weaker = one.assign(model="amateur", **{c: one[c] / 2 for c in ("0.1", "1.0", "1.1")})
    other = one.assign(model="B", **{"0.1": 3.0, "0.0": 2.0, "1.0": 1.0, "1.1": 0.0})
    table = pd.concat([one, weaker, other], ignore_index=True)
    alike = heads.agreement(table, "expert A", "amateur", measure="first")
    assert alike[["correlation", "shared"]].to_numpy().tolist() == [[pytest.approx(1.0), 3]]
    unlike = heads.agreement(table, "expert A", "B", measure="first")
    assert unlike["correlation"].iloc[0] == pytest.approx(
        np.corrcoef([0, 1, 2, 3], [2, 3, 1, 0])[0, 1]
    )
    assert unlike["shared"].iloc[0] == 2


def test_a_kind_whose_first_token_tells_nothing_is_judged_by_the_whole_answer() -> None:
    table = pd.concat([effects(), effects(kind="twice", bare=[0.95, 1.0])], ignore_index=True)
    assert heads.telling(table) == {"json": "first", "twice": "answer"}
