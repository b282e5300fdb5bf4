"""Scales differ in values, arms in two numbers, and every experiment is a recipe with a key."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import islice
from typing import Any

import pytest

from codit import experiments, recipes, world
from codit.experiments import Scale
from codit.recipes import (
    Answers,
    Decoding,
    File,
    HubPrompts,
    Model,
    Pretraining,
    Training,
    WorldPrompts,
)
from codit.world.constraints import words

SCALES = experiments.scales()
OFFLINE = [name for name, chosen in SCALES.items() if "verifier" in chosen.evaluations]


# -- arms ----------------------------------------------------------------------------------------


def test_arms_differ_in_strength_and_plausibility_only() -> None:
    decoding = Decoding(strength=1.5, plausibility=0.6, temperature=0.7, top_k=9, seed=3)
    arms = {name: experiments.arm(name, decoding) for name in experiments.ARMS}
    numbers = {name: (a.strength, a.plausibility) for name, a in arms.items()}
    assert numbers == {"direct": (0, 0), "truncated": (0, 0.6), "codit": (1.5, 0.6)}
    assert {replace(a, strength=1.5, plausibility=0.6) for a in arms.values()} == {decoding}


def test_an_unknown_arm_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"arm must be one of \['direct', .*\]; got 'both'. Name one of them"
    ):
        experiments.arm("both", Decoding())


@pytest.mark.parametrize("name", SCALES)
def test_arms_answer_the_same_prompts_with_the_same_noise(name: str) -> None:
    made = [experiments.synthesis(SCALES[name], arm, seed=4) for arm in experiments.ARMS]
    assert {(one.pair, one.prompts, one.n_samples) for one in made} == {
        (SCALES[name].pair, SCALES[name].prompts, 1)
    }
    assert {one.decoding.seed for one in made} == {4}
    assert len({recipes.key(one) for one in made}) == 3


# -- scales --------------------------------------------------------------------------------------


def test_there_are_four_scales() -> None:
    assert list(SCALES) == ["micro", "full", "laptop", "paper"]


@pytest.mark.parametrize("name", SCALES)
def test_every_value_of_a_scale_has_a_key_without_a_network(name: str) -> None:
    chosen = SCALES[name]
    base = chosen.students[0]
    keys = {
        recipes.key(experiments.training(chosen, base, arm, seed))
        for arm in experiments.ARMS
        for seed in chosen.seeds
    }
    assert len(keys) == len(experiments.ARMS) * len(chosen.seeds)


@pytest.mark.parametrize("name", SCALES)
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


def test_the_expert_is_the_amateur_post_trained_on_a_mixture() -> None:
    base = experiments.amateur(seed=5)
    expert = experiments.expert(base)
    assert expert.base == base == Pretraining(architecture="qwen3", tokenizer="a", seed=5)
    assert isinstance(expert.data, Answers)
    assert 0 < expert.data.ideal_share < 1


def test_full_repeats_micro_with_more_prompts_and_seeds() -> None:
    micro, full = SCALES["micro"], SCALES["full"]
    same = {f.name for f in fields(Scale) if getattr(micro, f.name) == getattr(full, f.name)}
    assert same == {f.name for f in fields(Scale)} - {"prompts", "tests", "seeds"}
    assert len(full.seeds) > len(micro.seeds)
    assert isinstance(full.prompts, WorldPrompts)
    assert isinstance(micro.prompts, WorldPrompts)
    assert full.prompts.n > micro.prompts.n


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
    chosen = experiments.hub_scale("post", "pre", HubPrompts(n=3), 64)
    made = experiments.training(chosen, chosen.students[0], "codit")
    assert (made.base, made.template) == (Model(name="pre"), Model(name="post"))
    assert experiments.evaluations(chosen, made) == {}


# -- what a reader changes -----------------------------------------------------------------------


def test_none_leaves_the_scales_value() -> None:
    kept = experiments.scale("micro", plausibility=None, n_prompts=None, seeds=None)
    assert kept == SCALES["micro"]


@pytest.mark.parametrize(
    ("changes", "read"),
    [
        ({"plausibility": 0.2}, lambda s: s.decoding.plausibility == 0.2),
        ({"strength": 0.0}, lambda s: s.decoding.strength == 0),
        ({"max_new_tokens": 7}, lambda s: s.decoding.max_new_tokens == 7),
        ({"n_prompts": 5}, lambda s: s.prompts == replace(SCALES["micro"].prompts, n=5)),
        ({"n_test": 8}, lambda s: {p.n for _, p in s.tests} == {8}),
        ({"seeds": (0, 1)}, lambda s: s.seeds == (0, 1)),
        ({"example": "Hello?"}, lambda s: s.example == "Hello?"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_change_reaches_its_field_and_no_other(changes: dict[str, Any], read: Any) -> None:
    changed = experiments.scale("micro", **changes)
    assert read(changed)
    differing = {f.name for f in fields(Scale)} - {
        f.name
        for f in fields(Scale)
        if getattr(changed, f.name) == getattr(SCALES["micro"], f.name)
    }
    assert len(differing) == 1


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"scale must be one of \['micro', .*\]; got 'mikro'. Name one of them"
    ):
        experiments.scale("mikro")


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a scale has no \['alpha'\]; it has \['decoding', "):
        experiments.scale("micro", alpha=0.1, strength=2.0)


def test_a_value_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="plausibility must be between 0 and 1; got 1.5"):
        experiments.scale("micro", plausibility=1.5)


# -- students ------------------------------------------------------------------------------------


def test_a_seed_moves_synthesis_and_training_alike() -> None:
    chosen = SCALES["micro"]
    made = experiments.training(chosen, chosen.students[0], "truncated", seed=3)
    assert made.seed == 3
    assert made.data == experiments.synthesis(chosen, "truncated", seed=3)
    assert {name: getattr(made, name) for name in chosen.training} == chosen.training


def test_students_are_evaluated_greedily_and_alone_on_every_held_out_set() -> None:
    chosen = experiments.scale("micro", max_new_tokens=20)
    model = Model(name="student")
    found = experiments.evaluations(chosen, model)
    assert {k: e.prompts for k, e in found.items()} == dict(chosen.tests)
    assert {(e.model, e.decoding) for e in found.values()} == {
        (model, replace(experiments.GREEDY, max_new_tokens=20))
    }
    greedy = experiments.GREEDY
    assert (greedy.temperature, greedy.strength, greedy.plausibility) == (0, 0, 0)


def test_a_file_of_prompts_enters_by_its_content(tmp_path: Any) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Hello?"}\n')
    chosen = experiments.scale("micro", prompts=File(path=str(rows)))
    before = recipes.key(experiments.synthesis(chosen, "direct"))
    rows.write_text('{"instruction": "Hello!"}\n')
    assert recipes.key(experiments.synthesis(chosen, "direct")) != before
