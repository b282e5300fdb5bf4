"""Addition and text: the same targets, each answer once, and a refusal that says why."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd

from codit.paper import make, transfer
from codit.paper.scales import Scale
from codit.recipes import Evaluation


def small(micro: Scale) -> transfer.TransferStudy:
    return replace(transfer.recipe(micro), scales=(0.0, 1.0))


def test_a_study_holds_every_way_to_every_target_and_is_kept(micro: Scale, idle: Any) -> None:
    recipe = small(micro)
    table = transfer.study(recipe)
    ways = table.groupby(["method", "target"]).size()
    assert set(ways.index) == {
        ("none", "amateur"), ("none", "moved"), ("addition", "amateur"), ("addition", "moved"),
        ("text", "amateur"), ("text", "moved"),
    }  # fmt: skip
    tests = dict(recipe.students.tests)
    assert set(tests) == {"dev", "test", "families"}
    assert ways["addition", "moved"] == sum(prompts.n for prompts in tests.values())
    idle()
    pd.testing.assert_frame_equal(transfer.study(recipe), table)


def test_the_amateur_with_the_whole_vector_answers_as_the_expert(micro: Scale) -> None:
    table = transfer.study(small(micro))
    own = table[(table["method"] == "addition") & (table["target"] == "amateur")]
    own = own[own["split"] == "test"]
    (found,) = {
        evaluation.decoding
        for told, evaluation in transfer.evaluations(small(micro))
        if told["split"] == "test"
    }
    prompts = dict(micro.tests)["test"]
    expert = make.answers(Evaluation(model=micro.pair.expert, prompts=prompts, decoding=found))
    assert own["id"].tolist() == expert["id"].tolist()
    assert own["strict"].tolist() == expert["strict"].tolist()
    assert own["tokens"].tolist() == expert["tokens"].tolist()


def test_other_bases_are_taught_by_text_and_left_as_they_are(micro: Scale) -> None:
    other = replace(micro.students[0], architecture="llama")  # type: ignore[type-var]
    chosen = replace(micro, students=(*micro.students, other))
    told = [told for told, _ in transfer.evaluations(small(chosen))]
    ways = {(one["method"], one["target"]) for one in told if one["student"] == "llama-a"}
    assert ways == {("none", "base"), ("text", "base")}


def test_a_vector_is_not_added_to_another_architecture(micro: Scale) -> None:
    assert transfer.refusal(micro, micro.students[0]) == "added"  # type: ignore[arg-type]
    other = replace(micro.students[0], architecture="gpt_neox")  # type: ignore[type-var]
    assert "within one architecture only" in transfer.refusal(micro, other)  # type: ignore[arg-type]


def test_a_way_without_noise_is_repeated_for_the_seeds_of_the_others() -> None:
    table = pd.DataFrame(
        {"way": ["a", "a", "b"], "seed": [0, 1, 0], "id": ["x"] * 3, "strict": [1, 2, 3]}
    )
    found = transfer.repeated(table)
    assert sorted(found.loc[found["way"] == "b", "seed"]) == [0, 1]
    assert found.loc[found["way"] == "b", "strict"].tolist() == [3, 3]
    assert found.loc[found["way"] == "a", "strict"].tolist() == [1, 2]
