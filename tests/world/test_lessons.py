"""What the world's judge is taught: graded responses, comparisons, and all ways of asking."""

from __future__ import annotations

import json
from collections import Counter

import pandas as pd

from codit import world
from codit.evaluation import replies, rubric
from codit.world import judge
from codit.world.recipes import WorldPrompts

TEMPLATES = {template.name: template for template in judge.SHARES}


def test_a_judge_is_taught_the_verifiers_score_in_our_json() -> None:
    rows = judge.graded(WorldPrompts(n=300))
    asked = world.prompts(WorldPrompts(n=300))
    for row, prompt in zip(rows, asked, strict=True):
        assert row["instruction"] == prompt["instruction"]
        assert row["value"] == row["score"] == world.verify(row["response"], prompt).score
        shown = {name: row[name] for name in ("instruction", "response")}
        assert row["prompt"] == rubric.fill(rubric.SINGLE, shown)


def test_what_it_is_taught_has_every_quality_and_nearly_every_score() -> None:
    table = pd.DataFrame(judge.graded(WorldPrompts(n=1000)))
    assert set(table["quality"]) == set(judge.QUALITIES)
    assert set(table["score"]) >= {1, 3, 4, 5, 6, 7, 8, 9, 10}
    means = table.groupby("quality")["score"].mean()
    assert means["empty"] == 1
    assert means["ideal"] == 10
    assert means["ideal"] > means["partial"] > means["wrong"]


def test_a_reply_names_what_holds_and_what_does_not() -> None:
    for row in judge.graded(WorldPrompts(n=200)):
        said = json.loads(row["reply"])
        assert list(said) == ["strengths", "weaknesses", "score"]
        assert (said["score"] == 10) == (said["weaknesses"] == "none")


def test_equal_seeds_give_equal_rows_and_fewer_are_a_prefix() -> None:
    for make in (judge.graded, judge.lessons, judge.compared):
        rows = make(WorldPrompts(n=40))
        assert make(WorldPrompts(n=20)) == rows[:20]
        assert make(WorldPrompts(n=40), seed=1) != rows


def test_lessons_are_asked_in_every_way_and_every_reply_is_read_as_its_value() -> None:
    rows = judge.lessons(WorldPrompts(n=600))
    counted = Counter(row["template"] for row in rows)
    assert set(counted) == set(TEMPLATES)
    for template, share in judge.SHARES.items():
        assert abs(counted[template.name] / len(rows) - share) < 0.06
    for row in rows:
        value, is_pure, _ = replies.value_in(row["reply"], TEMPLATES[row["template"]])
        assert (value, is_pure) == (row["value"], True)


def test_the_better_of_two_wins_whichever_stands_first() -> None:
    rows = judge.compared(WorldPrompts(n=400))
    for row in rows:
        gap = row["score_first"] - row["score_second"]
        assert row["value"] == ("tie" if gap == 0 else "first" if gap > 0 else "second")
        # The reasons, then the scores, then the verdict.
        said = json.loads(row["reply"])["comparison"]
        assert said.startswith("first: has ")
        assert said.endswith(f", so {row['score_second']}")
    counted = Counter(row["value"] for row in rows)
    assert abs(counted["first"] - counted["second"]) < 60
    assert counted["tie"] > 40


def test_a_second_turn_shows_the_turn_before_it() -> None:
    rows = judge.lessons(WorldPrompts(n=200))
    asked = [prompt["instruction"] for prompt in world.prompts(WorldPrompts(n=200))]
    seen = 0
    for before, here, row in zip(asked[:-1], asked[1:], rows[1:], strict=True):
        if row["template"] == rubric.SECOND_TURN.name:
            assert row["prompt"].index(before) < row["prompt"].rindex(here)
            seen += 1
    assert seen > 5


def test_a_reference_answer_is_the_ideal_one() -> None:
    rows = judge.lessons(WorldPrompts(n=200))
    ideals = [prompt["ideal"] for prompt in world.prompts(WorldPrompts(n=200))]
    wanted = (rubric.SINGLE_REFERENCE.name, rubric.SECOND_TURN_REFERENCE.name)
    found = [
        ideal in row["prompt"]
        for ideal, row in zip(ideals, rows, strict=True)
        if row["template"] in wanted
    ]
    assert len(found) > 10
    assert all(found)
