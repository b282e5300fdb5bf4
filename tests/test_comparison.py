"""Arms differ in what they say and in nothing else; a study unfolds into every model and answer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from codit import recipes
from codit.paper import arms as comparison
from codit.paper.arms import Arm, ResponseStudy, StudentStudy
from codit.recipes import Decoding, File, Model, Pair, Synthesis
from codit.world.recipes import Answers, BestOf, Pretraining, Shuffled, WorldPrompts

BASE = Pretraining()
OTHER = Pretraining(architecture="llama", tokenizer="b")
DECODING = Decoding(strength=1.5, plausibility=0.6, temperature=0.7, top_k=9, max_new_tokens=20)
ARMS = tuple(Arm(role=role) for role in comparison.NAMES if role != "best-of-n")
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
    decoded = {arm.role: comparison.decoding(arm, DECODING) for arm in ARMS[:4]}
    decoded["best"] = comparison.decoding(BEST[0], DECODING)
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
    found = comparison.decoding(arm, DECODING)
    assert (found.strength, found.plausibility) == (2, 0.1)
    truncated = comparison.decoding(Arm(role="truncated", plausibility=0.9), DECODING)
    assert (truncated.strength, truncated.plausibility) == (0, 0.9)


def test_an_unknown_role_is_refused() -> None:
    with pytest.raises(ValueError, match=r"arm must be one of \['direct', .*got 'both'"):
        Arm(role="both")


def test_the_world_s_own_answers_are_not_decoded() -> None:
    with pytest.raises(ValueError, match="expected an arm that decodes; got 'ideal'"):
        comparison.decoding(Arm(role="ideal"), DECODING)


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
        made = comparison.data(RESPONSES, arm, seed=1)
        asked = made.pool if isinstance(made, BestOf) else made
        asked = asked.answers if isinstance(asked, Shuffled) else asked
        assert isinstance(asked, (Synthesis, Answers))
        assert asked.prompts == RESPONSES.prompts


def test_best_of_n_chooses_from_one_pool_of_direct_samples() -> None:
    two, four = (comparison.data(RESPONSES, arm, seed=1) for arm in BEST)
    direct = comparison.data(RESPONSES, Arm(role="direct"), seed=1)
    assert isinstance(two, BestOf)
    assert isinstance(four, BestOf)
    assert (two.n, four.n) == (2, 4)
    assert two.pool == four.pool
    assert replace(two.pool, n_samples=1) == direct


def test_a_seed_moves_the_noise_of_every_arm_that_has_some() -> None:
    moved = {
        arm.role
        for arm in RESPONSES.arms
        if comparison.data(RESPONSES, arm, 0) != comparison.data(RESPONSES, arm, 1)
    }
    assert moved == set(comparison.NAMES) - {"greedy", "ideal"}


def test_a_seed_moves_synthesis_and_training_alike() -> None:
    made = comparison.training(STUDENTS, OTHER, Arm(role="truncated"), seed=3)
    assert (made.seed, made.base, made.batch) == (3, OTHER, 4)
    assert made.data == comparison.data(RESPONSES, Arm(role="truncated"), seed=3)


def test_ideal_and_careless_answers_are_all_of_their_kind() -> None:
    shares = [comparison.data(RESPONSES, Arm(role=r)).ideal_share for r in ("ideal", "careless")]  # type: ignore[union-attr]
    assert shares == [1, 0]
    with pytest.raises(ValueError, match="only the world answers its prompts; got File"):
        comparison.data(replace(RESPONSES, prompts=File(path="x")), Arm(role="ideal"))


def test_a_study_unfolds_into_every_student_arm_seed_and_held_out_set() -> None:
    found = list(comparison.evaluations(STUDENTS))
    assert len(found) == 2 * 9 * 2 * 2
    assert len({tuple(map(str, told.values())) for told, _ in found}) == len(found)
    models = {recipes.key(one.model) for _, one in found}
    assert len(models) == 2 * 9 * 2
    told, one = found[-1]
    assert told["student"] == "llama-b"
    assert (told["split"], one.prompts) == TESTS[1]
    greedy = one.decoding
    assert (greedy.temperature, greedy.strength, greedy.plausibility) == (0, 0, 0)
    assert greedy.max_new_tokens == 20


def test_a_student_from_the_hub_is_called_by_its_name() -> None:
    assert comparison.model_label(Model(name="a/b")) == "a/b"


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
