"""Verdicts are the verifier's; a study holds all of them, small, and is made once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from codit import comparison, decode, results, store, studies, verdicts, world
from codit.comparison import Arm
from codit.experiments import Scale
from codit.recipes import Evaluation, File, WorldPrompts

GREEDY = comparison.greedy_decoding(32)


def prompts_of(recipe: WorldPrompts) -> list[str]:
    return [row["id"] for row in world.prompts(recipe)]


# -- answers -------------------------------------------------------------------------------------


def test_answers_are_the_verdicts_on_a_models_greedy_answers_and_are_kept(
    micro: Scale, idle: Any
) -> None:
    recipe = Evaluation(model=micro.pair.expert, prompts=dict(micro.tests)["test"], decoding=GREEDY)
    found = verdicts.answers(recipe)
    model, tokenizer = results.load_model(micro.pair.expert)
    asked = world.prompts(recipe.prompts)
    chats = [[{"role": "user", "content": row["instruction"]}] for row in asked]
    given = decode.generate(model, tokenizer, chats, GREEDY, ids=[row["id"] for row in asked])
    assert found["id"].tolist() == prompts_of(recipe.prompts)
    assert found["response"].tolist() == [one.text for one in given]
    assert found["tokens"].tolist() == [len(one.token_ids) for one in given]
    for (_, row), one, prompt in zip(found.iterrows(), given, asked, strict=True):
        verdict = verdicts.verdict(one.text, prompt, is_completed=one.is_completed)
        assert {name: row[name] for name in verdict} == verdict
    idle()
    pd.testing.assert_frame_equal(verdicts.answers(recipe), found)


def test_each_constraint_that_holds_is_a_bit(micro: Scale) -> None:
    for row in world.prompts(micro.prompts):
        found = verdicts.verdict(row["ideal"], row)
        assert found["obeyed"] == 2 ** len(row["constraints"]) - 1
        half = verdicts.verdict("the lamp", row)
        assert bin(half["obeyed"]).count("1") / len(row["constraints"]) == pytest.approx(
            half["held"]
        )


# -- studies -------------------------------------------------------------------------------------


def test_a_study_of_responses_has_every_arm_seed_and_prompt(micro: Scale, idle: Any) -> None:
    recipe = studies.responses(replace(micro, seeds=(0, 1)), studies.main_arms(micro))
    table = verdicts.study(recipe)
    assert len(table) == 6 * 2 * micro.prompts.n
    ids = prompts_of(micro.prompts)
    groups = table.groupby(["arm", "seed"], sort=False)
    assert all(own["id"].tolist() == ids for _, own in groups)
    assert list(dict.fromkeys(table["arm"])) == [arm.label for arm in recipe.arms]
    made = results.dataset(comparison.data(recipe, recipe.arms[-1], 1))
    expected = verdicts.verdicts(made, world.prompts(micro.prompts))
    own = groups.get_group((recipe.arms[-1].label, 1))
    for column in verdicts.KEPT:
        assert own[column].tolist() == expected[column].tolist(), column
    idle()
    pd.testing.assert_frame_equal(verdicts.study(recipe), table)


def test_a_study_of_students_has_every_student_split_and_prompt(micro: Scale, idle: Any) -> None:
    arms = (Arm(role="direct"), Arm(role="ideal"))
    recipe = studies.students(micro, arms)
    table = verdicts.study(recipe)
    for told, evaluation in comparison.evaluations(recipe):
        keys = [k for k, v in told.items() if v == v]
        own = table[(table[keys] == [told[k] for k in keys]).all(axis=1)]
        answers = verdicts.answers(evaluation)
        assert own["id"].tolist() == answers["id"].tolist()
        assert own["score"].tolist() == answers["score"].tolist()
    assert len(table) == 2 * sum(prompts.n for _, prompts in micro.tests)
    idle()
    pd.testing.assert_frame_equal(verdicts.study(recipe), table)


def test_a_study_s_file_is_small(micro: Scale) -> None:
    recipe = studies.responses(micro, (Arm(role="direct"), Arm(role="codit")))
    table = verdicts.study(recipe)
    folder = store.find(recipe)
    assert folder is not None
    assert (folder / verdicts.TABLE).stat().st_size < 400 * len(table)
    assert "response" not in table


def test_prompts_that_the_verifier_does_not_know_are_refused(micro: Scale) -> None:
    recipe = studies.responses(replace(micro, prompts=File(path="x.jsonl")), ())
    with pytest.raises(ValueError, match="knows the world's prompts only; got File.*'full'"):
        verdicts._responses(recipe).__next__()  # type: ignore[attr-defined]


# -- verdicts ------------------------------------------------------------------------------------


def test_ideal_answers_hold_everything_that_was_asked(micro: Scale) -> None:
    asked = world.prompts(micro.prompts)
    given = [
        {"id": row["id"], "response": row["ideal"], "is_completed": True, "score": [0.0] * 5}
        for row in asked
    ]
    table = verdicts.verdicts(given, asked)
    assert table[["strict", "loose", "correct", "format"]].all(axis=None)
    assert set(table["score"]) == {10}
    assert table["family"].tolist() == [row["family"] for row in asked]


def test_verdicts_are_those_of_the_verifier_in_the_order_of_the_responses(micro: Scale) -> None:
    asked = world.prompts(micro.prompts)
    given = [
        {
            "id": row["id"],
            "response": "The lamp.",
            "is_completed": n % 2 == 0,
            "score": [0.0] * (n + 1),
        }
        for n, row in enumerate(reversed(asked))
    ]
    table = verdicts.verdicts(given, asked)
    assert table["id"].tolist() == [row["id"] for row in given]
    assert table["tokens"].tolist() == list(range(1, len(asked) + 1))
    for (_, found), row, prompt in zip(table.iterrows(), given, reversed(asked), strict=True):
        verdict = world.verify("The lamp.", prompt, is_completed=row["is_completed"])
        assert {name: found[name] for name in vars(verdict)} == vars(verdict)
    assert not table.loc[~table["is_completed"], "format"].any()


def test_a_response_to_another_prompt_is_an_error(micro: Scale) -> None:
    given = [{"id": "somebody", "response": "a", "is_completed": True, "score": [0.0]}]
    with pytest.raises(KeyError, match="somebody"):
        verdicts.verdicts(given, world.prompts(micro.prompts))
