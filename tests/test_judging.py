"""From a judge's recipe to a judge that answers, and what names a judge."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from codit import recipes
from codit.evaluation import judge
from codit.evaluation.judge import Asking, TooManyFailures
from codit.paper import arms, scales
from codit.paper import judges as judging
from codit.paper.arms import Arm, JudgedArm, JudgedBest, LLMJudge
from codit.recipes import Model, Pair, Synthesis
from codit.world import judge as world_judge
from codit.world.recipes import JUDGES, BestOf, WorldJudge, WorldPrompts
from tests.fault_server import Sent, failed, said, scored, serving
from tests.judge_server import mute

MODEL = LLMJudge(model="m", temperature=0.0, max_tokens=77, reasoning_effort="low")
POOL = Synthesis(
    pair=Pair(expert=Model(name="e"), amateur=Model(name="a")),
    prompts=WorldPrompts(n=2),
    n_samples=4,
)
ROWS = [
    {"id": f"p{p}", "sample": k, "instruction": f"ask {p}", "response": f"answer {p} {k}"}
    for p in range(3)
    for k in range(4)
]


def graded(grades: list[list[int]]) -> Any:
    """A judge that gives response k to prompt p the score grades[p][k]."""

    def answer(request: dict[str, Any], number: int) -> Sent:
        found = re.search(r"answer (\d) (\d)", request["messages"][0]["content"])
        assert found is not None
        score = grades[int(found[1])][int(found[2])]
        return scored(score) if score else said("I cannot say")

    return answer


# -- names ---------------------------------------------------------------------------------------


def test_everything_that_may_change_a_judgement_changes_the_key() -> None:
    judges: list[WorldJudge | LLMJudge] = [
        *JUDGES,
        *(WorldJudge(seed=1), WorldJudge(epochs=1.0), WorldJudge(vocabulary=512)),
        *(MODEL, replace(MODEL, temperature=1.0), replace(MODEL, max_tokens=78)),
        *(replace(MODEL, model="n"), replace(MODEL, seed=1), replace(MODEL, revision="b")),
    ]
    assert len({recipes.key(JudgedBest(pool=POOL, judge=one)) for one in judges}) == len(judges)
    assert len({recipes.key(JudgedBest(pool=POOL, judge=MODEL, n=n)) for n in (1, 2, 4)}) == 3


def test_studies_without_a_judge_keep_the_keys_of_their_committed_results() -> None:
    from codit.paper import shipped, store

    full = scales.scale("full")
    for name in ("students", "responses-a", "alpha-a"):
        recipe = scales.plan(full)[name]
        assert store.read_manifest(shipped.folder(name))["key"] == recipes.key(recipe)


def test_a_judged_arm_draws_as_direct_and_is_told_apart_by_its_judge() -> None:
    study = scales.responses(scales.scale("micro"), ())
    arm = JudgedArm(judge=JUDGES[0], n=2)
    direct = Arm(role="direct")
    assert arms.decoding(arm, study.decoding) == arms.decoding(direct, study.decoding)
    made, verified = (arms.data(study, one, 3) for one in (arm, Arm(role="best-of-n", n=2)))
    assert isinstance(made, JudgedBest)
    assert isinstance(verified, BestOf)
    assert (made.pool, made.n, made.judge) == (verified.pool, 2, JUDGES[0])
    told = arms.columns(arm)
    assert (told["arm"], told["role"], told["n"]) == ("Best of 2, llama judge", arm.role, 2)
    assert JudgedArm(judge=MODEL).label == "Best of 4, m"


# -- answering -----------------------------------------------------------------------------------


def test_a_judge_elsewhere_is_asked_where_the_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(judging.ADDRESS, raising=False)
    with (
        pytest.raises(ValueError, match="address of a server with m in OPENAI_BASE_URL") as error,
        judging.asked(MODEL),
    ):
        pytest.fail("nobody can be asked")
    assert "\n" not in str(error.value)
    with serving(scored(6)) as server:
        monkeypatch.setenv(judging.ADDRESS, server.url)
        with judging.asked(MODEL) as one:
            found = judge.score(ROWS[:2], one.judge, cache=tmp_path / "c", asking=one.asking)
    assert found.table["score"].tolist() == [6, 6]
    sent = server.requests[0]
    assert (sent["model"], sent["temperature"], sent["max_tokens"]) == ("m", 0, 77)
    assert sent["reasoning_effort"] == "low"


def test_all_that_a_recipe_says_reaches_the_judge_and_no_failure_ends_a_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(MODEL, temperature=0.5, revision="r", seed=3)
    with serving(said("I cannot say")) as server:
        monkeypatch.setenv(judging.ADDRESS, server.url)
        with judging.asked(recipe) as one:
            found = judge.score(ROWS[:2], one.judge, cache=tmp_path / "c", asking=one.asking)
    assert asdict(one.judge) == {**asdict(recipe), "base_url": None}
    assert found.tally.states == {"parse_error": 2}
    assert found.table["score"].isna().all()
    assert {request["temperature"] for request in server.requests} == {0.5}


def test_an_empty_address_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(judging.ADDRESS, "")
    with pytest.raises(ValueError, match="OPENAI_BASE_URL; it is not set"):
        judging.best_of(JudgedBest(pool=POOL, judge=MODEL), ROWS, cache=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_judge_of_the_world_is_served_here_and_named_by_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mute(tmp_path)
    monkeypatch.setattr(world_judge, "get", lambda recipe: folder)
    with judging.asked(JUDGES[1]) as one:
        assert one.judge.revision == recipes.key(JUDGES[1])
        assert (one.judge.model, one.judge.temperature) == ("mute", 0)
        assert str(one.judge.base_url).startswith("http://127.0.0.1:")
        # Noise is no JSON: all fail, and a study goes on.
        found = judge.score(ROWS[:3], one.judge, cache=tmp_path / "c", asking=one.asking)
    assert len(found.table) == 3
    assert found.tally.states.get("api_error", 0) == 0


# -- Best-of-N -----------------------------------------------------------------------------------


def test_the_response_that_scores_highest_is_kept_of_equals_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grades = [[3, 9, 9, 10], [5, 5, 2, 1], [1, 2, 3, 4]]
    with serving(graded(grades)) as server:
        monkeypatch.setenv(judging.ADDRESS, server.url)
        for n, kept in ((1, [0, 0, 0]), (2, [1, 0, 1]), (4, [3, 0, 3])):
            recipe = JudgedBest(pool=POOL, judge=MODEL, n=n)
            rows, summary = judging.best_of(recipe, ROWS, cache=tmp_path / "c")
            assert [row["sample"] for row in rows] == kept
            assert [row["id"] for row in rows] == ["p0", "p1", "p2"]
            assert summary["n"] == 3
        # The best of four asks for two new responses a prompt only.
        assert len(server.requests) == 12


def test_a_dataset_is_not_chosen_where_too_many_judgements_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(graded([[3, 0, 0, 0], [5, 5, 2, 1], [1, 2, 3, 4]])) as server:
        monkeypatch.setenv(judging.ADDRESS, server.url)
        recipe = JudgedBest(pool=POOL, judge=MODEL)
        with pytest.raises(TooManyFailures, match=r"25\.0% of 12 judgements have no value"):
            judging.best_of(recipe, ROWS, cache=tmp_path / "c")


def test_a_choice_that_lost_its_server_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "Asking", partial(Asking, tries=1, concurrency=1))
    recipe, answer = JudgedBest(pool=POOL, judge=MODEL), graded([[1, 2, 3, 4]] * 3)

    def dies(request: dict[str, Any], number: int) -> Sent:
        sent: Sent = answer(request, number) if number < 5 else failed(500)
        return sent

    with serving(dies) as server:
        monkeypatch.setenv(judging.ADDRESS, server.url)
        with pytest.raises(TooManyFailures, match=r"58\.3% of 12 .*7 api_error"):
            judging.best_of(recipe, ROWS, cache=tmp_path / "c")
    with serving(answer) as server:
        monkeypatch.setenv(judging.ADDRESS, server.url)
        rows, _ = judging.best_of(recipe, ROWS, cache=tmp_path / "c")
    assert len(server.requests) == 7
    assert [row["sample"] for row in rows] == [3, 3, 3]


@pytest.mark.parametrize("n", [0, 5])
def test_as_many_responses_must_compete_as_there_are(
    n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(judging.ADDRESS, "http://127.0.0.1:9/v1")  # nobody is asked
    recipe = JudgedBest(pool=POOL, judge=MODEL, n=n)
    with pytest.raises(ValueError, match=f"as many responses to every id; got n = {n}"):
        judging.best_of(recipe, ROWS, cache=tmp_path / "c")
