"""From a judge's recipe to a judge that answers, and what names a judge.

Studies of judges: what is asked, the tables, going on after a death. Students of judged Best-of-N,
and students judged: who is compared with whom, and the numbers.
"""

from __future__ import annotations

import math
import re
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from codit import recipes, world
from codit.evaluation import judge
from codit.evaluation.judge import Asking, Tally, TooManyFailures
from codit.paper import arms, judge_tables, judges, make, scales, store
from codit.paper.arms import Arm, JudgedArm, JudgedBest, Judging, LLMJudge
from codit.paper.judges import JudgeStudy
from codit.paper.scales import Scale
from codit.recipes import File, HubPrompts, Model, Pair, Synthesis
from codit.world.recipes import JUDGES, BestOf, WorldJudge, WorldPrompts
from tests.fault_server import Sent, decided, failed, said, scored, serving
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
    several: list[WorldJudge | LLMJudge] = [
        *JUDGES,
        *(WorldJudge(seed=1), WorldJudge(epochs=1.0), WorldJudge(vocabulary=512)),
        *(MODEL, replace(MODEL, temperature=1.0), replace(MODEL, max_tokens=78)),
        *(replace(MODEL, model="n"), replace(MODEL, seed=1), replace(MODEL, revision="b")),
    ]
    assert len({recipes.key(JudgedBest(pool=POOL, judge=one)) for one in several}) == len(several)
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
    monkeypatch.delenv(judges.ADDRESS, raising=False)
    with (
        pytest.raises(ValueError, match="address of a server with m in OPENAI_BASE_URL") as error,
        judges.asked(MODEL),
    ):
        pytest.fail("nobody can be asked")
    assert "\n" not in str(error.value)
    with serving(scored(6)) as server:
        monkeypatch.setenv(judges.ADDRESS, server.url)
        with judges.asked(MODEL) as one:
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
        monkeypatch.setenv(judges.ADDRESS, server.url)
        with judges.asked(recipe) as one:
            found = judge.score(ROWS[:2], one.judge, cache=tmp_path / "c", asking=one.asking)
    assert asdict(one.judge) == {**asdict(recipe), "base_url": None}
    assert found.tally.states == {"parse_error": 2}
    assert found.table["score"].isna().all()
    assert {request["temperature"] for request in server.requests} == {0.5}


def test_an_empty_address_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(judges.ADDRESS, "")
    with pytest.raises(ValueError, match="OPENAI_BASE_URL; it is not set"):
        judges.best_of(JudgedBest(pool=POOL, judge=MODEL), ROWS, cache=tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_a_judge_of_the_world_is_served_here_and_named_by_its_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = mute(tmp_path)
    monkeypatch.setattr(store, "get", lambda recipe, make: folder)
    with judges.asked(JUDGES[1]) as one:
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
        monkeypatch.setenv(judges.ADDRESS, server.url)
        for n, kept in ((1, [0, 0, 0]), (2, [1, 0, 1]), (4, [3, 0, 3])):
            recipe = JudgedBest(pool=POOL, judge=MODEL, n=n)
            rows, summary = judges.best_of(recipe, ROWS, cache=tmp_path / "c")
            assert [row["sample"] for row in rows] == kept
            assert [row["id"] for row in rows] == ["p0", "p1", "p2"]
            assert summary["n"] == 3
        # The best of four asks for two new responses a prompt only.
        assert len(server.requests) == 12


def test_a_dataset_is_not_chosen_where_too_many_judgements_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(graded([[3, 0, 0, 0], [5, 5, 2, 1], [1, 2, 3, 4]])) as server:
        monkeypatch.setenv(judges.ADDRESS, server.url)
        recipe = JudgedBest(pool=POOL, judge=MODEL)
        with pytest.raises(TooManyFailures, match=r"25\.0% of 12 judgements have no value"):
            judges.best_of(recipe, ROWS, cache=tmp_path / "c")


def test_a_choice_that_lost_its_server_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judges, "Asking", partial(Asking, tries=1, concurrency=1))
    recipe, answer = JudgedBest(pool=POOL, judge=MODEL), graded([[1, 2, 3, 4]] * 3)

    def dies(request: dict[str, Any], number: int) -> Sent:
        sent: Sent = answer(request, number) if number < 5 else failed(500)
        return sent

    with serving(dies) as server:
        monkeypatch.setenv(judges.ADDRESS, server.url)
        with pytest.raises(TooManyFailures, match=r"58\.3% of 12 .*7 api_error"):
            judges.best_of(recipe, ROWS, cache=tmp_path / "c")
    with serving(answer) as server:
        monkeypatch.setenv(judges.ADDRESS, server.url)
        rows, _ = judges.best_of(recipe, ROWS, cache=tmp_path / "c")
    assert len(server.requests) == 7
    assert [row["sample"] for row in rows] == [3, 3, 3]


@pytest.mark.parametrize("n", [0, 5])
def test_as_many_responses_must_compete_as_there_are(
    n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(judges.ADDRESS, "http://127.0.0.1:9/v1")  # nobody is asked
    recipe = JudgedBest(pool=POOL, judge=MODEL, n=n)
    with pytest.raises(ValueError, match=f"as many responses to every id; got n = {n}"):
        judges.best_of(recipe, ROWS, cache=tmp_path / "c")


A, B = LLMJudge(model="a", temperature=0.0), LLMJudge(model="b", temperature=0.0)
TIGHT = 5  # a budget that the fake judge's reply exceeds


def grade(request: dict[str, Any], number: int) -> Sent:
    """A judge whose score follows from the response, and that prefers the longer of two."""
    text = request["messages"][0]["content"]
    if "first response begins" in text:
        first, second = (_shown(text, f"{name} response") for name in ("first", "second"))
        winner = "tie" if len(first) == len(second) else "first"
        return decided(winner if len(first) >= len(second) else "second")
    if request["max_tokens"] == TIGHT:
        return said('{"strengths": "cl', finish="length")
    return scored(1 + len(_shown(text, "response")) % 10)


def _shown(text: str, name: str) -> str:
    found = re.search(rf"{name} begins -----\n(.*)\n----- {name} ends", text, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def chosen(micro: Scale) -> Scale:
    judging_of = Judging(judges=(A, B), n_prompts=8, budgets=(TIGHT,))
    return replace(micro, judging=judging_of, evaluations=("verifier", "judge"))


@pytest.fixture
def recipe(chosen: Scale) -> JudgeStudy:
    return judges.studies(chosen)["known"]


def made(
    recipe: JudgeStudy, folder: Path, monkeypatch: pytest.MonkeyPatch, answer: Any = grade
) -> tuple[dict[str, pd.DataFrame], list[dict[str, Any]]]:
    """Make a study in a folder, and return its tables and the requests that it took."""
    folder.mkdir(exist_ok=True)
    with serving(answer) as server:
        monkeypatch.setenv(judges.ADDRESS, server.url)
        tables = judges.make(recipe, folder)
    return tables, server.requests


ONCE: dict[str, Any] = {}  # made by the first test that asks, read by the others


@pytest.fixture
def study(
    recipe: JudgeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, pd.DataFrame], list[dict[str, Any]]]:
    """The tables of the study and the requests that it took."""
    if not ONCE:
        ONCE["made"] = made(recipe, tmp_path / "s", monkeypatch)
    found: tuple[dict[str, pd.DataFrame], list[dict[str, Any]]] = ONCE["made"]
    return found


def asked_of(recipe: JudgeStudy) -> WorldPrompts:
    assert isinstance(recipe.responses.prompts, WorldPrompts)
    return recipe.responses.prompts


def test_every_judge_scores_every_response_beside_the_verifier(
    recipe: JudgeStudy, study: Any
) -> None:
    scores = study[0]["scores"]
    n = asked_of(recipe).n
    parts = scores.groupby(["judge", "part"], observed=True).size().to_dict()
    for name in ("a", "b"):
        assert parts[name, "arms"] == 3 * n
        assert parts[name, "pool"] == 4 * n
        assert parts[name, "budget"] == recipe.n_budget == 4
    asked = {row["id"]: row for row in world.prompts(asked_of(recipe))}
    responses = {
        (role, row["id"]): row
        for role in ("direct", "truncated", "codit")
        for row in make.dataset(_data(recipe, role))
    }
    arms = scores[scores["part"] == "arms"]
    for row in arms.to_dict("records"):
        response = responses[row["arm"], row["id"]]
        text, is_completed = response["response"], response["is_completed"]
        assert row["score"] == 1 + len(text) % 10
        assert row["length"] == len(text)
        told = world.verify(text, asked[row["id"]], is_completed=is_completed)
        assert row["verifier"] == told.score
    assert set(arms["state"]) == {"ok"}


def _data(recipe: JudgeStudy, role: str) -> Any:
    arm = next(arm for arm in recipe.responses.arms if arm.role == role)
    return arms.data(recipe.responses, arm, 0)


def test_tables_have_the_columns_that_are_promised(study: Any) -> None:
    scores, pairs, costs = (study[0][name] for name in judges.TABLES)
    assert set(scores) == {
        "judge", "part", "arm", "id", "sample", "budget", "length", "score", "state",
        "verifier", "strict", "correct",
    }  # fmt: skip
    assert set(pairs) == {
        "judge", "part", "one", "other", "id", "sample", "order", "value", "state",
        "length_one", "length_other", "verifier_one", "verifier_other",
    }  # fmt: skip
    counts = {f.name for f in fields(Tally)} - {"states", "schema"}
    told = {"judge", "of", "part", "arm", "one", "other", "run", "ok"}
    assert set(costs) == told | counts | {"honoured", "ignored", "rejected"}
    by_run = costs.groupby(["judge", "run"], observed=True)["questions"].sum()
    assert set(by_run) == {len(scores) / 2 + len(pairs) / 2}  # two judges, every question twice


def test_of_the_pool_every_sample_has_its_own_verdict(recipe: JudgeStudy, study: Any) -> None:
    scores = study[0]["scores"]
    own = scores[(scores["part"] == "pool") & (scores["judge"] == "a")]
    asked = {row["id"]: row for row in world.prompts(asked_of(recipe))}
    best: Any = arms.data(recipe.responses, Arm(role="best-of-n", n=4), 0)
    rows = list(make.dataset(best.pool))
    assert list(zip(own["id"], own["sample"], strict=True)) == [
        (row["id"], row["sample"]) for row in rows
    ]
    for told, row in zip(own.to_dict("records"), rows, strict=True):
        true = world.verify(row["response"], asked[row["id"]], is_completed=row["is_completed"])
        assert (told["verifier"], told["strict"], told["correct"]) == (
            true.score, true.strict, true.correct,
        )  # fmt: skip
        assert told["score"] == 1 + len(row["response"]) % 10
    assert own["verifier"].nunique() > 1


def test_pairs_are_compared_in_both_orders_and_one_arm_with_itself(
    recipe: JudgeStudy, study: Any
) -> None:
    pairs = study[0]["comparisons"]
    for (one, other), own in pairs.groupby(["one", "other"], observed=True):
        assert len(own) == 2 * 2 * recipe.n_pairs  # judges, orders
        assert set(own["part"]) == ({"itself"} if one == other else {"arms"})
    assert set(zip(pairs["one"], pairs["other"], strict=True)) == {
        ("codit", "direct"), ("codit", "truncated"), ("codit", "codit"),
    }  # fmt: skip
    assert set(pairs.loc[pairs["part"] == "itself", "value"]) == {"tie"}
    forward = pairs[pairs["order"] == "forward"]
    longer = forward["length_one"] > forward["length_other"]
    assert (forward.loc[longer, "value"] == "first").all()
    assert forward["verifier_one"].notna().all()


def test_the_second_time_nothing_is_asked(study: Any) -> None:
    tables, requests = study
    costs = tables["costs"]
    first, second = (costs[costs["run"] == run] for run in (1, 2))
    assert second["calls"].sum() == 0
    assert (second["cached"] == second["questions"]).all()
    # A call that never reached the server, on a busy machine, is made again and counted too.
    assert first["replies"].sum() == len(requests) <= first["calls"].sum()


def test_a_reply_that_is_cut_has_no_score(study: Any) -> None:
    tables, requests = study
    cut = tables["scores"][tables["scores"]["budget"] == TIGHT]
    assert set(cut["state"]) == {"truncated"}
    assert cut["score"].isna().all()
    assert {request["max_tokens"] for request in requests} == {TIGHT, A.max_tokens}


def test_a_study_that_died_goes_on_and_pays_nothing_twice(
    recipe: JudgeStudy, study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, requests = study
    real, calls = judges._ask, 0

    def dies(*given: Any) -> Any:
        nonlocal calls
        for one in real(*given):
            calls += 1
            if calls == 5:
                raise KeyboardInterrupt
            yield one

    with monkeypatch.context() as patch, serving(grade) as before:
        patch.setenv(judges.ADDRESS, before.url)
        patch.setattr(judges, "_ask", dies)
        (tmp_path / "died").mkdir()
        with pytest.raises(KeyboardInterrupt):
            judges.make(recipe, tmp_path / "died")
    assert (tmp_path / "died" / judges.REPLIES).exists()
    again, after = made(recipe, tmp_path / "died", monkeypatch)
    assert 0 < len(before.requests) < len(requests)
    assert len(before.requests) + len(after) == len(requests)
    for name in ("scores", "comparisons"):
        pd.testing.assert_frame_equal(again[name], whole[name])


def test_a_study_whose_server_went_away_is_not_finished_and_goes_on(
    recipe: JudgeStudy, study: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, requests = study
    one = replace(recipe, judges=(A,), budgets=())
    paid, folder = 30, tmp_path / "lost"

    def dies(request: dict[str, Any], number: int) -> Sent:
        return grade(request, number) if number < paid else failed(500)

    with monkeypatch.context() as patch:
        patch.setattr(judges, "Asking", partial(Asking, tries=1))
        with pytest.raises(ValueError, match="expected replies; .* judgements have none"):
            made(one, folder, patch, dies)
    assert not list(folder.glob("*.parquet"))
    assert (folder / judges.REPLIES).exists()
    again, after = made(one, folder, monkeypatch)
    needed = [r for r in requests if r["model"] == "a" and r["max_tokens"] != TIGHT]
    assert len(after) == len(needed) - paid
    for name in ("scores", "comparisons"):
        table = whole[name]
        expected = table[(table["judge"] == "a") & (table["part"] != "budget")]
        pd.testing.assert_frame_equal(
            texts(again[name]), texts(expected).reset_index(drop=True), check_like=True
        )


def texts(table: pd.DataFrame) -> pd.DataFrame:
    """A table with its categories as text, as `store.tables` gives it."""
    return table.astype({name: "str" for name in table if table[name].dtype == "category"})


def test_two_judges_of_one_name_are_refused(recipe: JudgeStudy, few: Scale) -> None:
    for twins in ((A, replace(A, seed=1)), (WorldJudge(), WorldJudge(seed=1))):
        for of in (recipe, judges.judged_recipe(few)):
            with pytest.raises(ValueError, match="expected judges of different names; got"):
                replace(of, judges=twins)


def test_of_prompts_that_no_verifier_knows_only_judges_speak(
    recipe: JudgeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = HubPrompts(source="wildchat", n=4)
    hub = replace(recipe, responses=replace(recipe.responses, prompts=prompts), budgets=(TIGHT,))
    hub = replace(hub, n_pairs=4, n_budget=2)

    def rows(data: Any) -> list[dict[str, Any]]:
        assert data.prompts == prompts
        size = 1 + (data.n_samples > 1) + 3 * (data.decoding.strength > 0)
        named = [(f"h{k}", sample) for k in range(4) for sample in range(data.n_samples)]
        return [
            {"id": name, "instruction": f"Ask {name}.", "sample": sample, "is_completed": True}
            | {"response": "so " * (size + sample + k % 3)}
            for k, (name, sample) in enumerate(named)
        ]

    monkeypatch.setattr(judges, "dataset", rows)
    tables, _ = made(hub, tmp_path / "s", monkeypatch)
    scores, pairs = texts(tables["scores"]), texts(tables["comparisons"])
    assert scores[["verifier", "strict", "correct"]].isna().all(axis=None)
    assert pairs[["verifier_one", "verifier_other"]].isna().all(axis=None)
    assert scores.loc[scores["budget"] == 0, "score"].notna().all()
    who = {"a", "b"}
    assert set(judge_tables.arms(scores)["who"]) == who
    assert set(judge_tables.differences(scores, hub.pairs)["who"]) == who
    assert set(judge_tables.reliability(scores)["other"]) == {"b"}
    assert judge_tables.best_of(scores).empty
    assert set(judge_tables.wins(pairs)["who"]) == who
    assert set(judge_tables.length(scores)["who"]) == who
    assert (judge_tables.failures(scores)["failed"] == 1).all()


def test_prompts_of_a_judges_lessons_are_left_out(
    recipe: JudgeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = world.prompts(asked_of(recipe))
    taught = WorldPrompts(world=asked_of(recipe).world, n=3, seed=2)
    assert judges.lessons(recipe) == frozenset()
    more = (*recipe.judges, WorldJudge(prompts=taught))
    seen = judges.lessons(replace(recipe, judges=more))
    assert seen == {row["instruction"] for row in asked[:3]}
    monkeypatch.setattr(judges, "lessons", lambda recipe: seen)
    scores = made(recipe, tmp_path / "s", monkeypatch)[0]["scores"]
    assert set(scores["id"]) == {row["id"] for row in asked[3:]}


def test_the_store_makes_a_study_once(chosen: Scale, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = judges.studies(chosen)["unknown"]
    assert recipe.budgets == ()
    with serving(grade) as server:
        monkeypatch.setenv(judges.ADDRESS, server.url)
        first = judges.study(recipe)
    monkeypatch.delenv(judges.ADDRESS)
    second = judges.study(recipe)
    for name in judges.TABLES:
        pd.testing.assert_frame_equal(first[name], second[name])
    folder = store.find(recipe)
    assert folder is not None
    kept = [f"{name}.parquet" for name in judges.TABLES]  # replies only while it is made
    assert sorted(path.name for path in folder.iterdir()) == sorted(["manifest.json", *kept])


@pytest.mark.parametrize("name", ["micro", "full", "laptop", "paper"])
def test_every_scale_asks_its_judges(name: str) -> None:
    chosen = scales.scale(name)
    assert "judge" in chosen.evaluations
    found = judges.studies(chosen)
    assert list(found) == (["known", "unknown"] if chosen.tests else ["known"])
    for one in found.values():
        assert one.judges == chosen.judging.judges
        assert not isinstance(one.responses.prompts, File)
        assert one.responses.prompts.n <= chosen.judging.n_prompts
        assert 1 <= one.n_pairs <= chosen.judging.n_prompts
    assert recipes.key(found["known"]) == recipes.key(judges.studies(chosen)["known"])


def test_a_scale_without_judges_is_refused(micro: Scale) -> None:
    with pytest.raises(ValueError, match="a scale with judges"):
        judges.studies(micro)


# -- Best-of-N as an arm -------------------------------------------------------------------------


def test_judged_best_of_n_is_a_dataset_of_the_store(
    recipe: JudgeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    responses = recipe.responses
    best = [arms.data(responses, JudgedArm(judge=A, n=n), 1) for n in (4, 2)]
    assert isinstance(best[0], JudgedBest)
    with serving(grade) as server:
        monkeypatch.setenv(judges.ADDRESS, server.url)
        four = list(judges.judged_best(best[0]))
        asked = len(server.requests)
        two = list(judges.judged_best(best[1]))
        assert len(server.requests) == asked  # the pool's replies are shared
    assert 0 < asked <= 4 * asked_of(recipe).n
    pool: dict[str, list[str]] = {}
    for row in make.responses(best[0].pool):
        pool.setdefault(row["id"], []).append(row["response"])
    for rows, n in ((four, 4), (two, 2)):
        assert [row["id"] for row in rows] == list(pool)
        for row in rows:
            lengths = [len(text) % 10 for text in pool[row["id"]][:n]]
            assert row["response"] == pool[row["id"]][lengths.index(max(lengths))]
            assert row["messages"][-1]["content"] == row["response"]
    monkeypatch.delenv(judges.ADDRESS)
    assert list(judges.judged_best(best[0])) == four
    assert (store.cache() / judges.JUDGEMENTS).exists()


def test_the_judges_of_the_world_are_two_and_differ() -> None:
    assert len({recipes.key(one) for one in JUDGES}) == 2
    assert Arm(role="best-of-n", n=4).label != JudgedArm(judge=JUDGES[0]).label


def test_best_of_four_asks_only_for_what_best_of_two_did_not(
    recipe: JudgeStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = LLMJudge(model="c", temperature=0.0)  # whom no other test asks
    two, four = (arms.data(recipe.responses, JudgedArm(judge=own, n=n), 1) for n in (2, 4))
    assert isinstance(four, JudgedBest)
    pool = make.responses(four.pool)
    few, all_ = (
        {(row["instruction"], row["response"]) for row in pool if row["sample"] < n} for n in (2, 4)
    )
    with serving(grade) as server:
        monkeypatch.setenv(judges.ADDRESS, server.url)
        judges.judged_best(two)
        assert len(server.requests) == len(few)
        judges.judged_best(four)
        assert len(server.requests) == len(all_) > len(few)


# -- students ------------------------------------------------------------------------------------

LABELS = ["Direct", "Best of 4", "Best of 4, a", "CoDIT .3"]


@pytest.fixture
def few(micro: Scale) -> Scale:
    asked = Judging(judges=(A, B), n_prompts=6)
    return replace(micro, judging=asked, evaluations=("verifier", "judge"))


def test_students_of_judged_best_of_n_stand_beside_the_others(
    few: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = judges.students_recipe(few)
    assert [arm.label for arm in study.responses.arms] == LABELS
    assert study.responses.seeds == few.judging.seeds
    with serving(grade) as server:
        monkeypatch.setenv(judges.ADDRESS, server.url)
        table = judges.answers(few)
    assert list(dict.fromkeys(table["arm"])) == LABELS
    gains = judges.gains(table)
    pairs = list(dict.fromkeys(zip(gains["one"], gains["other"], strict=True)))
    assert pairs == [
        ("Best of 4, a", "Direct"), ("Best of 4, a", "Best of 4"), ("CoDIT .3", "Best of 4, a"),
    ]  # fmt: skip
    means = table.groupby("arm")["strict"].mean()
    (first,) = gains[(gains["measure"] == "strict") & (gains["other"] == "Direct")]["estimate"]
    assert first == pytest.approx(means["Best of 4, a"] - means["Direct"])


def test_without_a_verifier_there_are_no_students_to_compare(few: Scale) -> None:
    table = judges.answers(replace(few, evaluations=("judge",)))
    assert len(table) == 0
    assert len(judges.gains(table)) == 0


def test_students_are_scored_and_compared_with_direct_ones(
    few: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = judges.judged_recipe(few)
    assert (recipe.n_prompts, recipe.n_pairs) == (6, 3)
    with serving(grade) as server:
        monkeypatch.setenv(judges.ADDRESS, server.url)
        known = list(judges._answers(recipe))
        # One student says nothing, another one leaves out its first answer.
        given = {told["arm"]: table.assign(response="Ida." + table["id"]) for told, table in known}
        given["Best of 4"]["response"] = ""
        given["Direct"].loc[given["Direct"].index[0], "response"] = " "
        monkeypatch.setattr(
            judges, "_answers", lambda _: [(told, given[told["arm"]]) for told, _ in known]
        )
        found = judges.judged(few)
    monkeypatch.delenv(judges.ADDRESS)
    again = judges.judged(few)  # of the store: nobody is asked
    for name in judges.TABLES[:2]:
        pd.testing.assert_frame_equal(found[name], again[name])
    scores, pairs = found["scores"], found["comparisons"]
    assert scores.groupby(["judge", "arm"]).size().to_dict() == {
        (who, arm): 6 for who in ("a", "b") for arm in LABELS
    }
    assert pairs.groupby(["judge", "arm"])["preference"].agg(["size", "count"]).T.to_dict(
        "list"
    ) == {(who, arm): [3, 0 if arm == "Best of 4" else 2] for who in "ab" for arm in LABELS[1:]}
    asked = {row["id"]: row for row in world.prompts(dict(few.tests)["test"])}
    for told, table in known:
        own = scores[(scores["judge"] == "a") & (scores["arm"] == told["arm"])]
        texts = given[told["arm"]].set_index("id")["response"].str.strip()
        expected = [1 + len(texts[n]) % 10 if texts[n] else math.nan for n in own["id"]]
        np.testing.assert_equal(own["score"].tolist(), expected)
        verified = [
            world.verify(row["response"], asked[row["id"]], is_completed=row["is_completed"]).score
            for row in table.to_dict("records")
        ]
        assert own["verifier"].tolist() == verified


def test_a_server_that_falls_silent_ends_the_study_and_its_replies_are_kept(
    few: Scale, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(judges.judged_recipe(few), judges=(B,))
    with serving(grade) as server:  # of judged Best-of-N, which is made on the way
        monkeypatch.setenv(judges.ADDRESS, server.url)
        list(judges._answers(recipe))
    with serving(failed(403)) as server:
        monkeypatch.setenv(judges.ADDRESS, server.url)
        with pytest.raises(ValueError, match=r"expected replies; 100\.0% of 6 judgements"):
            judges.make(recipe, tmp_path)
    assert (tmp_path / judges.REPLIES).exists()
    assert not list(tmp_path.glob("*.parquet"))


def tables() -> dict[str, pd.DataFrame]:
    """Four prompts, two seeds: by A CoDIT's answers score one more, by the verifier the same."""
    scores, pairs = [], []
    for seed in range(2):
        for k in range(8):
            for role, arm in (("direct", "Direct"), ("codit", "CoDIT")):
                told = {"judge": "A", "arm": arm, "role": role, "seed": seed, "id": f"p{k}"}
                gain = float(role == "codit")
                scores.append({**told, "score": 4 + k % 3 + gain, "verifier": 5.0 + k % 2})
            pair = {"judge": "A", "arm": "CoDIT", "role": "codit", "seed": seed, "id": f"p{k}"}
            pair |= {"preference": float(k % 4 != 0), "verifier": 0.5}
            pairs.append({**pair, "length": 10 + k, "length_baseline": 12})
    return {"scores": pd.DataFrame(scores), "comparisons": pd.DataFrame(pairs)}


def test_gains_are_by_everyone_who_scores() -> None:
    means = {
        w: t.groupby("arm")["score"].mean() for w, t in judges._by(tables()["scores"], "score")
    }
    assert means["A"]["CoDIT"] - means["A"]["Direct"] == pytest.approx(1)
    assert means["verifier"]["CoDIT"] == means["verifier"]["Direct"] == 5.5
    gains = judges.score_gains(tables()).set_index("who")
    assert gains["value"].to_dict() == {"verifier": 0.0, "A": pytest.approx(1.0)}
    assert gains.loc["A", "holds"]
    assert gains.loc["A", "role"] == "codit"


def test_both_win_rates_are_given_for_everyone() -> None:
    found = judges.wins(tables()).set_index(["who", "kind"])
    assert found.loc[("A", "raw"), "value"] == 0.75
    assert found.loc[("verifier", "raw"), "value"] == 0.5
    assert (found["prompts"] == 8).all()
    assert found["value"].between(found["low"], found["high"]).all()


def test_a_prompt_that_a_judge_could_not_judge_once_is_left_out_of_its_pairs() -> None:
    given = tables()
    scores = given["scores"]
    hole = (scores["id"] == "p0") & (scores["arm"] == "CoDIT") & (scores["seed"] == 1)
    given["scores"] = scores.assign(score=np.where(hole, np.nan, scores["score"]))
    gains = judges.score_gains(given).set_index("who")
    assert gains.loc["A", "value"] == pytest.approx(1.0)
    means = {w: t.groupby("arm")["score"].mean() for w, t in judges._by(given["scores"], "score")}
    rest = [4 + k % 3 for k in range(1, 8)]
    assert means["A"]["Direct"] == pytest.approx(np.mean(rest))
    assert means["verifier"]["Direct"] == 5.5


def test_where_nothing_is_known_nothing_is_said(few: Scale) -> None:
    nothing: dict[str, Any] = judges.judged(replace(few, evaluations=("judge",)))
    table = judges.score_gains(nothing)
    assert table.empty
    assert {"who", "arm", "value"} <= set(table)
    assert {"who", "kind", "role"} <= set(judges.wins(nothing))
