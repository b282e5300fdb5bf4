"""Cosines of students with the chat vector: the store's, paired by seed, beside their nulls."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from codit import chat_vector
from codit.paper import arms, cosines, make, seeds, tables
from codit.paper.arms import Arm
from codit.paper.scales import Scale


def small(micro: Scale) -> cosines.AlignmentStudy:
    made = cosines.recipe(replace(micro, rivals=(micro.pair,)))
    arms = (Arm(role="direct"), Arm(role="ideal"), Arm(role="unrelated"))
    responses = replace(made.students.responses, arms=arms)
    return replace(made, students=replace(made.students, responses=responses), every=2)


def test_a_study_holds_every_cosine_and_is_kept(micro: Scale, idle: Any) -> None:
    recipe = small(micro)
    table = cosines.study(recipe)
    final = table[table["step"].isna()]
    assert set(final["vector"]) == {"own", "permuted", "teacher B"}
    assert set(final.loc[final["vector"] == "own", "group"]) == {
        "tensor", "layer", "module", "global",
    }  # fmt: skip
    plan = recipe.students
    trained = arms.training(plan, plan.students[0], Arm(role="ideal"), 0)
    before = make.model_path(micro.pair.amateur)
    vector = (make.model_path(micro.pair.expert), before)
    expected = chat_vector.cosines((make.model_path(trained), before), vector)
    own = final[(final["arm"] == "Ideal answers") & (final["vector"] == "own")]
    assert own["cosine"].tolist() == pytest.approx(expected["cosine"].tolist())
    one = final[(final["arm"] == "Direct") & (final["name"] == "all")].set_index("vector")["cosine"]
    assert one["teacher B"] == pytest.approx(one["own"]), "here the other teacher is the same"
    idle()
    pd.testing.assert_frame_equal(cosines.study(recipe), table)


def test_a_trajectory_ends_where_the_student_is(micro: Scale) -> None:
    recipe = small(micro)
    table = cosines.study(recipe)
    watched = table[table["step"].notna()]
    assert set(watched["arm"]) == {"Direct"}
    whole = watched[watched["name"] == "all"]
    assert whole["step"].is_monotonic_increasing
    assert whole["step"].iloc[0] == 2
    final = table[table["step"].isna() & (table["arm"] == "Direct") & (table["vector"] == "own")]
    end = final.loc[final["name"] == "all", "cosine"].item()
    assert whole["cosine"].iloc[-1] == pytest.approx(end, abs=1e-6)


def test_an_update_is_what_training_added(micro: Scale) -> None:
    model, _ = make.load_model(micro.pair.expert)
    base = load_file(Path(make.model_path(micro.pair.amateur)) / "model.safetensors")
    found = cosines.update(model, base)
    assert set(found) == set(base)
    expert = load_file(Path(make.model_path(micro.pair.expert)) / "model.safetensors")
    for name, weight in found.items():
        assert torch.equal(weight, expert[name].double() - base[name].double())


def test_only_students_of_the_amateur_can_be_compared(micro: Scale) -> None:
    recipe = small(micro)
    other = replace(micro.students[0], architecture="llama")  # type: ignore[type-var]
    with pytest.raises(ValueError, match="expected students whose base is the teacher's amateur"):
        next(cosines._rows(replace(recipe, students=replace(recipe.students, students=(other,)))))


COSINES = pd.DataFrame(
    {
        "arm": ["Direct"] * 3 + ["CoDIT"] * 3,
        "role": ["direct"] * 3 + ["codit"] * 3,
        "seed": [0, 1, 2] * 2,
        "cosine": [0.1, 0.2, 0.3, 0.2, 0.32, 0.38],
    }
)


def test_differences_are_paired_by_seed() -> None:
    found = cosines.seed_difference(COSINES, "CoDIT", "Direct")
    expected = seeds.difference(torch.tensor([[0.1, 0.12, 0.08]], dtype=torch.float64).numpy())
    assert found.estimate == pytest.approx(expected.estimate)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_one_seed_decides_nothing() -> None:
    found = cosines.seed_difference(COSINES[COSINES["seed"] == 0], "CoDIT", "Direct")
    assert (found.estimate, found.low, found.high) == (pytest.approx(0.1), -math.inf, math.inf)
    assert tables.decided(found) is None


def test_means_have_intervals_over_seeds() -> None:
    table = cosines.seed_table(COSINES).set_index("arm")
    assert table.loc["Direct", "value"] == pytest.approx(0.2)
    assert table.loc["Direct", "low"] < 0.2 < table.loc["Direct", "high"]
    assert table["seeds"].tolist() == [3, 3]
    assert table["role"].tolist() == ["direct", "codit"]
