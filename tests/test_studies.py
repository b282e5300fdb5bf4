"""Studies ask for the arms that their notebooks compare, at the scale's values."""

from __future__ import annotations

from dataclasses import replace

from codit import experiments, recipes, studies
from codit.comparison import Arm

FULL = experiments.scale("full", plausibility=0.3)


def labels(arms: tuple[Arm, ...]) -> list[str]:
    return [arm.label for arm in arms]


def test_main_arms_are_the_paper_s_baselines_and_the_ablation() -> None:
    assert labels(studies.main_arms(FULL)) == [
        "Direct", "Greedy", "Best of 2", "Best of 4", "Truncated .3", "CoDIT .3",
    ]  # fmt: skip


def test_truncation_is_tried_wherever_contrast_is() -> None:
    arms = studies.plausibility_arms(FULL)
    tried = {
        role: [a.plausibility for a in arms if a.role == role] for role in ("truncated", "codit")
    }
    assert tried["truncated"] == tried["codit"] == list(FULL.plausibilities)
    assert {a.strength for a in arms if a.role == "codit"} == {1}


def test_strength_0_is_truncation_at_the_same_plausibility() -> None:
    arms = studies.strength_arms(FULL)
    assert [a.strength for a in arms] == [None, 0.25, 0.5, 1, 1.5, 2]
    assert {a.plausibility for a in arms} == {0.3}
    assert arms[0].role == "truncated"


def test_the_same_arm_is_one_arm_in_every_study() -> None:
    (paper,) = {a for s in plan_arms() for a in s if a.label == "CoDIT .3"}
    assert (paper.plausibility, paper.strength) == (0.3, 1)


def plan_arms() -> list[tuple[Arm, ...]]:
    parts = studies.plan(FULL).values()
    return [getattr(study, "responses", study).arms for study in parts]


def test_no_arm_comes_twice_in_a_study() -> None:
    for arms in plan_arms():
        assert len(set(arms)) == len(arms)


def test_plausibility_is_chosen_on_dev_and_results_are_reported_elsewhere() -> None:
    assert [name for name, _ in studies.alpha(FULL).tests] == ["dev", "test"]
    assert [name for name, _ in studies.table(FULL).tests] == ["test", "families"]


def test_the_results_table_has_a_tuned_baseline_a_ceiling_and_a_floor() -> None:
    arms = studies.table(replace(FULL, truncation=0.6)).responses.arms
    assert {"Truncated .6", "Ideal answers", "Careless answers"} <= set(labels(arms))


def test_the_plan_holds_both_teachers_under_names_of_folders() -> None:
    plan = studies.plan(FULL)
    assert set(plan) == {"responses-a", "responses-b", "alpha-a", "alpha-b", "students"}
    assert len({recipes.key(study) for study in plan.values()}) == len(plan)
    assert set(studies.plan(experiments.scale("micro"))) == {"responses-a", "alpha-a", "students"}
