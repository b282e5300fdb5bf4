"""Scales differ in values, arms in two numbers, and every experiment is a recipe with a key."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import islice
from typing import Any

import pytest

from codit import recipes, world
from codit.paper import arms, make, run, scales
from codit.paper.arms import Arm, LLMJudge
from codit.paper.scales import Scale
from codit.recipes import Decoding, File, HubPrompts, Model, Training
from codit.world.constraints import words
from codit.world.recipes import Answers, Pretraining, WorldPrompts

SCALES = scales.scales()
PAIRS = [name for name, chosen in SCALES.items() if chosen.pair.amateur is not None]
OFFLINE = [name for name, chosen in SCALES.items() if "verifier" in chosen.evaluations]


# -- arms ----------------------------------------------------------------------------------------


def test_arms_differ_in_strength_and_plausibility_only() -> None:
    decoding = Decoding(strength=1.5, plausibility=0.6, temperature=0.7, top_k=9, seed=3)
    arms = {name: scales.arm(name, decoding) for name in scales.ARMS}
    numbers = {name: (a.strength, a.plausibility) for name, a in arms.items()}
    assert numbers == {"direct": (0, 0), "truncated": (0, 0.6), "codit": (1.5, 0.6)}
    assert {replace(a, strength=1.5, plausibility=0.6) for a in arms.values()} == {decoding}


def test_an_unknown_arm_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"arm must be one of \['direct', .*\]; got 'both'. Name one of them"
    ):
        scales.arm("both", Decoding())


@pytest.mark.parametrize("name", PAIRS)
def test_arms_answer_the_same_prompts_with_the_same_noise(name: str) -> None:
    made = [scales.synthesis(SCALES[name], arm, seed=4) for arm in scales.ARMS]
    assert {(one.pair, one.prompts, one.n_samples) for one in made} == {
        (SCALES[name].pair, SCALES[name].prompts, 1)
    }
    assert {one.decoding.seed for one in made} == {4}
    assert len({recipes.key(one) for one in made}) == 3


# -- scales --------------------------------------------------------------------------------------


def test_there_are_five_scales_and_every_help_text_names_them() -> None:
    assert list(SCALES) == ["micro", "full", "laptop", "paper", "real"]
    for told in (scales.scale.__doc__, scales.__doc__, run.command.__doc__):
        assert told is not None
        assert [name for name in SCALES if name not in told] == []


def test_a_scale_without_a_pair_has_a_model_alone_and_says_so() -> None:
    assert set(SCALES) - set(PAIRS) == {"real"}
    chosen = SCALES["real"]
    assert (chosen.decoding.strength, chosen.students, chosen.tests) == (0, (), ())
    with pytest.raises(ValueError, match="expected a pair; got one model without its amateur"):
        make.load_pair(chosen.pair)


@pytest.mark.parametrize("name", PAIRS)
def test_every_value_of_a_scale_has_a_key_without_a_network(name: str) -> None:
    chosen = SCALES[name]
    keys = {
        recipes.key(scales.synthesis(chosen, arm, seed))
        for arm in scales.ARMS
        for seed in chosen.seeds
    }
    assert len(keys) == len(scales.ARMS) * len(chosen.seeds)


@pytest.mark.parametrize("name", PAIRS)
def test_the_first_student_is_the_teachers_own_amateur(name: str) -> None:
    chosen = SCALES[name]
    assert chosen.students[0] == chosen.pair.amateur
    assert "base" not in chosen.training
    assert "data" not in chosen.training


@pytest.mark.parametrize("name", OFFLINE)
def test_nothing_is_tested_on_prompts_that_a_model_was_trained_on(name: str) -> None:
    chosen = SCALES[name]
    trained, tested = [chosen.prompts], [prompts for _, prompts in chosen.tests]
    assert isinstance(chosen.pair.expert, Training)
    assert isinstance(chosen.pair.expert.data, Answers)
    trained.append(chosen.pair.expert.data.prompts)
    assert {p.split for p in trained} == {"train"}
    # dev is where plausibility was chosen
    assert {p.split for p in tested} == {"test", "families"}
    assert chosen.dev is not None
    assert chosen.dev.split == "dev"


def test_the_expert_is_the_amateur_post_trained_on_a_mixture() -> None:
    base = replace(scales.bases()["amateur"], seed=5)
    expert = scales.expert(base)
    assert expert.base == base == Pretraining(architecture="qwen3", tokenizer="a", seed=5)
    assert isinstance(expert.data, Answers)
    assert 0 < expert.data.ideal_share < 1


def test_full_is_micro_with_another_teacher_and_more_students_values_seeds_and_prompts() -> None:
    micro, full = SCALES["micro"], SCALES["full"]
    same = {f.name for f in fields(Scale) if getattr(micro, f.name) == getattr(full, f.name)}
    more = {"others", "students", "plausibilities", "strengths", "seeds", "kinds"}
    own = {"prompts", "dev", "tests", "judging", "tuning"}
    assert same == {f.name for f in fields(Scale)} - more - own
    for name in more - {"others"}:
        assert set(getattr(full, name)) > set(getattr(micro, name))
    assert micro.dev is not None
    assert full.dev is not None
    assert full.dev.n > micro.dev.n


@pytest.mark.parametrize("name", OFFLINE)
def test_the_scale_s_own_plausibilities_are_among_those_tried(name: str) -> None:
    chosen = SCALES[name]
    assert chosen.decoding.plausibility in chosen.plausibilities
    assert chosen.decoding.strength in chosen.strengths
    assert chosen.truncation in SCALES["full"].plausibilities


def test_teachers_share_their_amateur_and_differ_in_post_training() -> None:
    teachers = SCALES["full"].teachers
    assert list(teachers) == ["A", "B"]
    assert teachers["A"] == SCALES["full"].pair
    assert len({pair.amateur for pair in teachers.values()}) == 1
    experts = [pair.expert for pair in teachers.values()]
    shares = [one.data.ideal_share for one in experts]  # type: ignore[union-attr]
    assert len(set(shares)) == 2
    assert list(SCALES["micro"].teachers) == ["A"]


@pytest.mark.parametrize("name", OFFLINE)
def test_the_example_speaks_the_worlds_language(name: str) -> None:
    chosen = SCALES[name]
    assert isinstance(chosen.prompts, WorldPrompts)
    texts = islice(world.documents(chosen.prompts.world), 4000)
    known = {word for text in texts for word in words(text)}
    assert [word for word in words(chosen.example) if word not in known] == []


def test_paper_holds_the_authors_values() -> None:
    paper = SCALES["paper"]
    assert (paper.decoding.strength, paper.decoding.plausibility) == (1, 0.01)
    assert paper.decoding.max_new_tokens == 4096
    assert isinstance(paper.prompts, HubPrompts)
    assert (paper.prompts.source, paper.prompts.n) == ("lmsys", 250_333)


def test_a_hub_scale_trains_the_amateur_with_the_experts_template() -> None:
    chosen = scales.hub_scale("post", "pre", HubPrompts(n=3), 64)
    study = scales.students(chosen, (Arm(role="codit"),))
    made = arms.training(study, chosen.students[0], Arm(role="codit"))
    assert (made.base, made.template) == (Model(name="pre"), Model(name="post"))
    assert list(arms.evaluations(study)) == []


# -- what a reader changes -----------------------------------------------------------------------


def test_none_leaves_the_scales_value() -> None:
    kept = scales.scale("micro", plausibility=None, n_prompts=None, seeds=None)
    assert kept == SCALES["micro"]


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({"plausibility": 0.2}, lambda s: s.decoding.plausibility == 0.2),
        ({"strength": 0.0}, lambda s: s.decoding.strength == 0),
        ({"max_new_tokens": 7}, lambda s: s.decoding.max_new_tokens == 7),
        ({"n_prompts": 5}, lambda s: s.prompts == replace(SCALES["micro"].prompts, n=5)),
        ({"plausibilities": [0.5]}, lambda s: s.plausibilities == (0.5,)),
        ({"students": 1}, lambda s: s.students == SCALES["micro"].students[:1]),
        ({"seeds": (0, 5)}, lambda s: s.seeds == (0, 5)),
        ({"example": "Hello?"}, lambda s: s.example == "Hello?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_change_reaches_its_field_and_no_other(changes: dict[str, Any], read: Any) -> None:
    changed = scales.scale("micro", **changes)
    assert read(changed)
    differing = {f.name for f in fields(Scale)} - {
        f.name
        for f in fields(Scale)
        if getattr(changed, f.name) == getattr(SCALES["micro"], f.name)
    }
    assert len(differing) == 1


def test_n_test_is_the_number_of_prompts_of_every_set_that_is_not_trained_on() -> None:
    changed = scales.scale("micro", n_test=8)
    assert {prompts.n for _, prompts in changed.tests} == {8}
    assert changed.dev == replace(SCALES["micro"].dev, n=8)  # type: ignore[type-var]
    assert changed.prompts == SCALES["micro"].prompts


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"scale must be one of \['micro', .*\]; got 'mikro'. Name one of them"
    ):
        scales.scale("mikro")


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a scale has no \['alpha'\]; it has \['decoding', "):
        scales.scale("micro", alpha=0.1, strength=2.0)


def test_a_value_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="plausibility must be between 0 and 1; got 1.5"):
        scales.scale("micro", plausibility=1.5)


def test_a_file_of_prompts_enters_by_its_content(tmp_path: Any) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Hello?"}\n')
    chosen = scales.scale("micro", prompts=File(path=str(rows)))
    before = recipes.key(scales.synthesis(chosen, "direct"))
    rows.write_text('{"instruction": "Hello!"}\n')
    assert recipes.key(scales.synthesis(chosen, "direct")) != before


def test_judges_may_be_models_of_a_reader_s_own() -> None:
    own = scales.scale("micro", judging=["one", "two"])
    assert [one.model for one in own.judging.judges if isinstance(one, LLMJudge)] == ["one", "two"]
    assert own.judging.n_prompts == SCALES["micro"].judging.n_prompts
    assert own.judging.budgets == ()  # those are made for the judges that the scale had
    assert scales.scale("micro", judging=None) == SCALES["micro"]
    assert scales.scale("micro", judging="one,two") == own
    for bad in ([], [""], [3], "", "one,"):
        with pytest.raises(ValueError, match="names of models that judge"):
            scales.scale("micro", judging=bad)


FULL = scales.scale("full", plausibility=0.3)


def labels(arms: tuple[Arm, ...]) -> list[str]:
    return [arm.label for arm in arms]


def test_main_arms_are_the_paper_s_baselines_and_the_ablation() -> None:
    assert labels(scales.main_arms(FULL)) == [
        "Direct", "Greedy", "Best of 2", "Best of 4", "Truncated .3", "CoDIT .3",
    ]  # fmt: skip


def test_truncation_is_tried_wherever_contrast_is() -> None:
    arms = scales.plausibility_arms(FULL)
    tried = {
        role: [a.plausibility for a in arms if a.role == role] for role in ("truncated", "codit")
    }
    assert tried["truncated"] == tried["codit"] == list(FULL.plausibilities)
    assert {a.strength for a in arms if a.role == "codit"} == {1}


def test_strength_0_is_truncation_at_the_same_plausibility() -> None:
    arms = scales.strength_arms(FULL)
    assert [a.strength for a in arms] == [None, 0.25, 0.5, 1, 1.5, 2]
    assert {a.plausibility for a in arms} == {0.3}
    assert arms[0].role == "truncated"


def test_the_same_arm_is_one_arm_in_every_study() -> None:
    (paper,) = {a for s in plan_arms() for a in s if a.label == "CoDIT .3"}
    assert (paper.plausibility, paper.strength) == (0.3, 1)


def plan_arms() -> list[tuple[Arm, ...]]:
    parts = scales.plan(FULL).values()
    return [getattr(study, "responses", study).arms for study in parts]


def test_no_arm_comes_twice_in_a_study() -> None:
    for tried in plan_arms():
        assert len(set(tried)) == len(tried)


def test_plausibility_is_chosen_on_dev_and_results_are_reported_elsewhere() -> None:
    assert [name for name, _ in scales.alpha(FULL).tests] == ["dev", "test"]
    assert [name for name, _ in scales.table(FULL).tests] == ["test", "families"]


def test_the_results_table_has_a_tuned_baseline_a_ceiling_and_a_floor() -> None:
    arms = scales.table(replace(FULL, truncation=0.6)).responses.arms
    assert {"Truncated .6", "Ideal answers", "Careless answers"} <= set(labels(arms))


def test_the_plan_holds_both_teachers_under_names_of_folders() -> None:
    plan = scales.plan(FULL)
    assert set(plan) == {"responses-a", "responses-b", "alpha-a", "alpha-b", "students"}
    assert len({recipes.key(study) for study in plan.values()}) == len(plan)
    assert set(scales.plan(scales.scale("micro"))) == {
        "responses-a",
        "alpha-a",
        "students",
    }
