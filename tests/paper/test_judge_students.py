"""Students of judged Best-of-N, and students judged: who is compared with whom, and the numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from codit import world
from codit.paper import judges
from codit.paper.arms import Judging, LLMJudge
from codit.paper.scales import Scale
from tests.fault_server import failed, serving
from tests.paper.test_judges import grade

A, B = LLMJudge(model="a", temperature=0.0), LLMJudge(model="b", temperature=0.0)
LABELS = ["Direct", "Best of 4", "Best of 4, a", "CoDIT .3"]


@pytest.fixture
def chosen(micro: Scale) -> Scale:
    asked = Judging(judges=(A, B), n_prompts=6)
    return replace(micro, judging=asked, evaluations=("verifier", "judge"))


def test_students_of_judged_best_of_n_stand_beside_the_others(
    chosen: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = judges.students_recipe(chosen)
    assert [arm.label for arm in study.responses.arms] == LABELS
    assert study.responses.seeds == chosen.judging.seeds
    with serving(grade) as server:
        monkeypatch.setenv(judges.ADDRESS, server.url)
        table = judges.answers(chosen)
    assert list(dict.fromkeys(table["arm"])) == LABELS
    gains = judges.gains(table)
    pairs = list(dict.fromkeys(zip(gains["one"], gains["other"], strict=True)))
    assert pairs == [
        ("Best of 4, a", "Direct"), ("Best of 4, a", "Best of 4"), ("CoDIT .3", "Best of 4, a"),
    ]  # fmt: skip
    means = table.groupby("arm")["strict"].mean()
    (first,) = gains[(gains["measure"] == "strict") & (gains["other"] == "Direct")]["estimate"]
    assert first == pytest.approx(means["Best of 4, a"] - means["Direct"])


def test_without_a_verifier_there_are_no_students_to_compare(chosen: Scale) -> None:
    table = judges.answers(replace(chosen, evaluations=("judge",)))
    assert len(table) == 0
    assert len(judges.gains(table)) == 0


def test_students_are_scored_and_compared_with_direct_ones(
    chosen: Scale, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = judges.judged_recipe(chosen)
    assert (recipe.n_prompts, recipe.n_pairs) == (6, 3)
    with serving(grade) as server:
        monkeypatch.setenv(judges.ADDRESS, server.url)
        found = judges.judged(chosen)
    monkeypatch.delenv(judges.ADDRESS)
    again = judges.judged(chosen)  # of the store: nobody is asked
    for name in judges.TABLES[:2]:
        pd.testing.assert_frame_equal(found[name], again[name])
    scores, pairs = found["scores"], found["comparisons"]
    assert scores.groupby(["judge", "arm"]).size().to_dict() == {
        (who, arm): 6 for who in ("a", "b") for arm in LABELS
    }
    assert pairs.groupby(["judge", "arm"]).size().to_dict() == {
        (who, arm): 3 for who in ("a", "b") for arm in LABELS[1:]
    }
    given = {told["arm"]: table for told, table in judges._answers(recipe)}
    asked = {row["id"]: row for row in world.prompts(dict(chosen.tests)["test"])}
    for arm, table in given.items():
        own = scores[(scores["judge"] == "a") & (scores["arm"] == arm)]
        texts = table.set_index("id")["response"]
        assert own["score"].tolist() == [1 + len(texts[name]) % 10 for name in own["id"]]
        told = [
            world.verify(row["response"], asked[row["id"]], is_completed=row["is_completed"]).score
            for row in table.to_dict("records")
        ]
        assert own["verifier"].tolist() == told


def test_a_server_that_falls_silent_ends_the_study_and_its_replies_are_kept(
    chosen: Scale, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = replace(judges.judged_recipe(chosen), judges=(B,))
    with serving(grade) as server:  # of judged Best-of-N, which is made on the way
        monkeypatch.setenv(judges.ADDRESS, server.url)
        list(judges._answers(recipe))
    with serving(failed(403)) as server:
        monkeypatch.setenv(judges.ADDRESS, server.url)
        with pytest.raises(ValueError, match=r"expected replies; 100\.0% of 6 judgements"):
            judges.make(recipe, tmp_path)
    assert (tmp_path / judges.REPLIES).exists()
    assert not list(tmp_path.glob("*.parquet"))


def test_two_judges_of_one_name_are_refused(chosen: Scale) -> None:
    with pytest.raises(ValueError, match="judges of different names"):
        replace(judges.judged_recipe(chosen), judges=(A, replace(A, seed=1)))


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


def test_where_nothing_is_known_nothing_is_said(chosen: Scale) -> None:
    nothing: dict[str, Any] = judges.judged(replace(chosen, evaluations=("judge",)))
    table = judges.score_gains(nothing)
    assert table.empty
    assert {"who", "arm", "value"} <= set(table)
    assert {"who", "kind", "role"} <= set(judges.wins(nothing))
