"""Arms differ in what they say and in nothing else; a study unfolds into every model and answer.

Names of judges and of what they choose: keys, labels, and judged Best-of-N as an arm.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest

from codit import recipes
from codit.paper import arms, judges, scales, shipped, store
from codit.paper.arms import (
    NOBODY,
    Arm,
    JudgedArm,
    JudgedBest,
    Judging,
    LLMJudge,
    ResponseStudy,
    StudentStudy,
    judge_label,
    judged_by,
)
from codit.recipes import Decoding, File, HubPrompts, Model, Pair, Synthesis
from codit.world.recipes import (
    JUDGES,
    Answers,
    BestOf,
    Pretraining,
    Shuffled,
    WorldJudge,
    WorldPrompts,
)

BASE = Pretraining()
OTHER = Pretraining(architecture="llama", tokenizer="b")
DECODING = Decoding(strength=1.5, plausibility=0.6, temperature=0.7, top_k=9, max_new_tokens=20)
ARMS = tuple(Arm(role=role) for role in arms.NAMES if role != "best-of-n")
BEST = (Arm(role="best-of-n", n=2), Arm(role="best-of-n", n=4))
RESPONSES = ResponseStudy(
    pair=Pair(expert=Model(name="post"), amateur=BASE),
    prompts=WorldPrompts(n=5),
    decoding=DECODING,
    arms=(*ARMS, *BEST),
    seeds=(0, 1),
)
TESTS = (("test", WorldPrompts(split="test", n=3)), ("families", WorldPrompts(split="families")))
STUDENTS = StudentStudy(
    responses=RESPONSES, students=(BASE, OTHER), training=(("batch", 4),), tests=TESTS
)


def test_arms_decode_with_the_same_values_but_their_own() -> None:
    decoded = {arm.role: arms.decoding(arm, DECODING) for arm in ARMS[:4]}
    decoded["best"] = arms.decoding(BEST[0], DECODING)
    numbers = {k: (d.strength, d.plausibility, d.temperature) for k, d in decoded.items()}
    assert numbers == {
        "direct": (0, 0, 0.7),
        "best": (0, 0, 0.7),
        "greedy": (0, 0, 0),
        "truncated": (0, 0.6, 0.7),
        "codit": (1.5, 0.6, 0.7),
    }
    same = {"strength": 1.5, "plausibility": 0.6, "temperature": 0.7}
    assert {replace(d, **same) for d in decoded.values()} == {DECODING}


def test_an_arm_s_own_numbers_come_before_the_study_s() -> None:
    arm = Arm(role="codit", plausibility=0.1, strength=2.0)
    found = arms.decoding(arm, DECODING)
    assert (found.strength, found.plausibility) == (2, 0.1)
    truncated = arms.decoding(Arm(role="truncated", plausibility=0.9), DECODING)
    assert (truncated.strength, truncated.plausibility) == (0, 0.9)


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValueError, match=r"arm must be one of \['direct', .*got 'both'"):
        Arm(role="both")


def test_the_world_s_own_answers_are_not_decoded() -> None:
    with pytest.raises(ValueError, match="expected an arm that decodes; got 'ideal'"):
        arms.decoding(Arm(role="ideal"), DECODING)


def test_labels_tell_arms_apart() -> None:
    arms = [
        *RESPONSES.arms,
        Arm(role="codit", plausibility=0.1),
        Arm(role="codit", plausibility=0.1, strength=2.0),
        Arm(role="codit", plausibility=0.1, strength=1.5),
        Arm(role="truncated", plausibility=0.1),
    ]
    labels = [arm.label for arm in arms]
    assert len(set(labels)) == len(arms)
    assert labels[-4:] == ["CoDIT .1", "CoDIT .1 × 2", "CoDIT .1 × 1.5", "Truncated .1"]
    assert "Best of 4" in labels


def test_every_arm_answers_the_study_s_prompts() -> None:
    for arm in RESPONSES.arms:
        made = arms.data(RESPONSES, arm, seed=1)
        asked = made.pool if isinstance(made, BestOf) else made
        asked = asked.answers if isinstance(asked, Shuffled) else asked
        assert isinstance(asked, (Synthesis, Answers))
        assert asked.prompts == RESPONSES.prompts


def test_best_of_n_chooses_from_one_pool_of_direct_samples() -> None:
    two, four = (arms.data(RESPONSES, arm, seed=1) for arm in BEST)
    direct = arms.data(RESPONSES, Arm(role="direct"), seed=1)
    assert isinstance(two, BestOf)
    assert isinstance(four, BestOf)
    assert (two.n, four.n) == (2, 4)
    assert two.pool == four.pool
    assert replace(two.pool, n_samples=1) == direct


def test_a_seed_moves_the_noise_of_every_arm_that_has_some() -> None:
    moved = {
        arm.role
        for arm in RESPONSES.arms
        if arms.data(RESPONSES, arm, 0) != arms.data(RESPONSES, arm, 1)
    }
    assert moved == set(arms.NAMES) - {"greedy", "ideal"}


def test_a_seed_moves_synthesis_and_training_alike() -> None:
    made = arms.training(STUDENTS, OTHER, Arm(role="truncated"), seed=3)
    assert (made.seed, made.base, made.batch) == (3, OTHER, 4)
    assert made.data == arms.data(RESPONSES, Arm(role="truncated"), seed=3)


def test_ideal_and_careless_answers_are_all_of_their_kind() -> None:
    shares = [arms.data(RESPONSES, Arm(role=r)).ideal_share for r in ("ideal", "careless")]  # type: ignore[union-attr]
    assert shares == [1, 0]
    with pytest.raises(ValueError, match="only the world answers its prompts; got File"):
        arms.data(replace(RESPONSES, prompts=File(path="x")), Arm(role="ideal"))


def test_a_study_unfolds_into_every_student_arm_seed_and_held_out_set() -> None:
    found = list(arms.evaluations(STUDENTS))
    assert len(found) == 2 * 9 * 2 * 2
    assert len({tuple(map(str, told.values())) for told, _ in found}) == len(found)
    models = {recipes.key(one.model) for _, one in found}
    assert len(models) == 2 * 9 * 2
    told, one = found[-1]
    assert told["student"] == "other tokenizer"
    assert (told["split"], one.prompts) == TESTS[1]
    greedy = one.decoding
    assert (greedy.temperature, greedy.strength, greedy.plausibility) == (0, 0, 0)
    assert greedy.max_new_tokens == 20


def test_a_student_from_the_hub_is_called_by_its_name() -> None:
    assert arms.model_label(Model(name="a/b")) == "a/b"


def test_the_key_of_a_study_changes_with_each_of_its_parts() -> None:
    changes = (
        {},
        {"students": (BASE,)},
        {"training": (("batch", 8),)},
        {"tests": TESTS[:1]},
        {"responses": replace(RESPONSES, arms=ARMS)},
        {"responses": replace(RESPONSES, seeds=(0,))},
        {"responses": replace(RESPONSES, decoding=replace(DECODING, top_k=1))},
    )
    keys = {recipes.key(replace(STUDENTS, **change)) for change in changes}  # type: ignore[arg-type]
    assert len(keys) == len(changes)


MODEL = LLMJudge(model="m")
POOL = Synthesis(
    pair=Pair(expert=Model(name="e"), amateur=Model(name="a")),
    prompts=WorldPrompts(n=2),
    n_samples=4,
)
FULL = scales.scale("full")
STUDY = scales.responses(FULL, ())


def another(value: Any) -> Any:
    """A value that a field does not have."""
    if isinstance(value, (LLMJudge, WorldJudge)):
        return replace(value, seed=value.seed + 1)
    if isinstance(value, WorldPrompts):
        return replace(value, n=value.n + 1)
    if isinstance(value, Synthesis):
        return replace(value, n_samples=value.n_samples + 1)
    if isinstance(value, (int, float)):
        return value + 1
    return f"{value}x"  # text, or None


RECIPES = [
    WorldJudge(),
    MODEL,
    JudgedBest(pool=POOL, judge=MODEL),
    JudgedArm(judge=JUDGES[0]),
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda one: type(one).__name__)
def test_every_field_is_part_of_the_key(recipe: Any) -> None:
    others = [replace(recipe, **{f.name: another(getattr(recipe, f.name))}) for f in fields(recipe)]
    assert len({recipes.key(one) for one in (recipe, *others)}) == len(fields(recipe)) + 1


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda one: type(one).__name__)
def test_equal_recipes_have_one_key_and_another_version_has_another(
    recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = recipes.key(recipe)
    assert recipes.key(replace(recipe)) == before
    monkeypatch.setattr(type(recipe), "version", 99)
    assert recipes.key(recipe) != before


def test_tables_without_a_judge_are_found_whatever_becomes_of_judges(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for kind in (WorldJudge, LLMJudge, JudgedBest, JudgedArm):
        monkeypatch.setattr(kind, "version", 99)
    for name, recipe in scales.plan(replace(FULL, judging=NOBODY)).items():
        assert recipes.key(recipe) == recipes.key(scales.plan(FULL)[name])
        assert store.find(recipe) == shipped.folder(name)
    for name, judged in judges.studies(FULL).items():
        told = store.read_manifest(shipped.folder(f"judged-{name}"))
        assert told["key"] != recipes.key(judged)  # those do depend on who judges


# -- labels --------------------------------------------------------------------------------------


def test_a_judge_is_called_by_its_architecture_or_its_model() -> None:
    assert [judge_label(one) for one in (*JUDGES, MODEL)] == ["llama judge", "gpt_neox judge", "m"]
    assert JudgedArm(judge=JUDGES[1]).label == "Best of 4, gpt_neox judge"
    assert JudgedArm(judge=MODEL, n=2).label == "Best of 2, m"


def test_no_arm_is_called_like_another() -> None:
    tried: list[Any] = [Arm(role="best-of-n", n=n) for n in (2, 4)]
    tried += [JudgedArm(judge=one, n=n) for one in (*JUDGES, MODEL) for n in (2, 4)]
    assert len({arm.label for arm in tried}) == 8
    assert JudgedArm.role not in arms.NAMES


def test_other_judges_take_the_place_of_a_scales_and_its_budgets_go() -> None:
    given = Judging(judges=JUDGES, n_prompts=7, budgets=(3,), seeds=(1, 2))
    found = judged_by(given, "one, two")
    assert found == judged_by(given, ["one", "two"])
    assert found.judges == (LLMJudge(model="one"), LLMJudge(model="two"))
    assert (found.n_prompts, found.budgets, found.seeds) == (7, (), (1, 2))


@pytest.mark.parametrize("bad", ["", "a,,b", "a, ", [], ["a", ""], ["a", 1]])
def test_a_judge_without_a_name_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match="expected names of models that judge; got"):
        judged_by(Judging(), bad)


# -- judged Best-of-N as an arm ------------------------------------------------------------------


@pytest.mark.parametrize("judge", [*JUDGES, MODEL], ids=judge_label)
def test_every_judge_and_the_verifier_choose_from_the_same_responses(
    judge: WorldJudge | LLMJudge,
) -> None:
    verified = arms.data(STUDY, Arm(role="best-of-n", n=4), 3)
    assert isinstance(verified, BestOf)
    for n in (2, 4):
        judged = arms.data(STUDY, JudgedArm(judge=judge, n=n), 3)
        assert judged == JudgedBest(pool=verified.pool, judge=judge, n=n)
    other = arms.data(STUDY, JudgedArm(judge=judge), 4)
    assert isinstance(other, JudgedBest)
    assert (verified.pool.decoding.seed, other.pool.decoding.seed) == (3, 4)


def test_its_responses_are_drawn_from_the_expert_alone() -> None:
    base = replace(STUDY.decoding, temperature=0.7, seed=5)
    found = arms.decoding(JudgedArm(judge=MODEL), base)
    assert found == replace(base, strength=0.0, plausibility=0.0)


def test_a_judge_chooses_among_responses_that_no_verifier_knows() -> None:
    hub = replace(STUDY, prompts=HubPrompts(source="wildchat", n=3))
    found = arms.data(hub, JudgedArm(judge=MODEL))
    assert isinstance(found, JudgedBest)
    assert found.pool.prompts == hub.prompts


def test_it_has_the_columns_of_other_arms() -> None:
    found = arms.columns(JudgedArm(judge=MODEL, n=2))
    assert list(found) == list(arms.columns(Arm(role="direct")))
    assert (found["arm"], found["role"], found["n"]) == ("Best of 2, m", "best-of-n-judged", 2)
    assert math.isnan(found["plausibility"])
    assert math.isnan(found["strength"])


def test_students_are_trained_on_what_a_judge_chose() -> None:
    arm = JudgedArm(judge=MODEL)
    plan = scales.students(FULL, (Arm(role="direct"),), students=FULL.students[:1])
    plan = replace(plan, responses=replace(plan.responses, arms=(arm,), seeds=(0, 1)))
    found = list(arms.evaluations(plan))
    assert len(found) == 2 * len(FULL.tests)
    for told, evaluation in found:
        assert told["arm"] == arm.label
        model: Any = evaluation.model
        assert model.data == arms.data(plan.responses, arm, told["seed"])
    assert len({recipes.key(evaluation) for _, evaluation in found}) == len(found)
