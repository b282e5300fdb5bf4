"""CTD's study: its ways, what a seed moves, what is scored, and the tokens that change."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from codit import world
from codit.paper import ctd, figures, make, scales
from codit.recipes import Tuning, View

SMALL = {"n": 8, "prompts": 4, "learning_rate": 1e-2, "epochs": 1.0, "batch": 4, "max_length": 512}
MICRO = scales.scale("micro", tuning=SMALL)


def some(*names: str) -> ctd.ViewStudy:
    study = ctd.results(MICRO)
    return replace(study, ways=tuple(way for way in study.ways if way.name in names))


def test_a_prefix_is_tuned_on_the_expert_s_own_rows_or_on_ideal_ones() -> None:
    model: Any = MICRO.pair.expert
    own, ideal = ctd.tuning(MICRO, model), ctd.tuning(MICRO, model, ideal=1.0, n=5)
    assert own.data == replace(model.data, prompts=replace(model.data.prompts, n=8))
    assert (ideal.data.ideal_share, ideal.data.prompts.n) == (1.0, 5)
    rows, all_rows = (
        world.answers(own.data),
        world.answers(replace(own.data, prompts=model.data.prompts)),
    )
    assert rows == all_rows[:8], "the model has been trained on them"


def test_the_rate_is_chosen_on_dev_and_nothing_is_reported_there() -> None:
    full = scales.scale("full")
    assert [name for name, _ in ctd.rates(full).tests] == ["dev"]
    for study in (ctd.results(full), ctd.results(full, "B"), ctd.training(full)):
        assert [name for name, _ in study.tests] == ["test", "families"]
        assert study.seeds == (0, 1, 2)
    rates = [w.view.prefix.learning_rate for w in ctd.rates(full).ways if w.view]
    assert full.tuning["learning_rate"] in rates


def test_a_seed_moves_what_is_tuned_and_drawn_and_nothing_else() -> None:
    study = replace(ctd.results(MICRO), seeds=(0, 1))
    found: dict[str, set[Any]] = {}
    for told, evaluation in ctd.evaluations(study):
        found.setdefault(told["way"], set()).add(evaluation.model)
    still = {way for way, models in found.items() if len(models) == 1}
    assert still == {"OD", "ID opposite", "ID none"}


def test_every_way_has_a_colour_and_a_name_of_its_own() -> None:
    for study in (ctd.results(MICRO), ctd.training(MICRO), ctd.rates(MICRO)):
        names = [way.name for way in study.ways]
        assert len(set(names)) == len(names)
        assert {ctd.role(name) for name in names} <= figures.COLOURS.keys()
    assert ctd.role("CTD kept scale 0.5") == "kept-scale"
    assert ctd.role("second view") == "ctd"


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CODIT_CACHE", str(tmp_path_factory.mktemp("cache")))
        return ctd.verdicts(some("OD", "ID none", "CTD 0.3"))


def test_a_study_scores_each_answer_of_each_way(verdicts: pd.DataFrame) -> None:
    assert verdicts.groupby(["arm", "split"]).size().to_dict() == {
        (way, split): 4 for way in ("OD", "ID none", "CTD 0.3") for split in ("test", "families")
    }
    first = next(e for told, e in ctd.evaluations(some("OD")) if told["split"] == "test")
    plain = make.answers(first)
    own = verdicts[(verdicts["arm"] == "OD") & (verdicts["split"] == "test")]
    assert own["response"].tolist() == plain["response"].tolist()
    assert own["strict"].tolist() == plain["strict"].tolist()
    assert (verdicts["both"] == (verdicts["strict"] & verdicts["correct"])).all()
    ideal = {row["id"]: row["ideal"] for _, t in some().tests for row in world.prompts(t)}
    same = verdicts[verdicts["response"] == verdicts["id"].map(ideal)]
    assert len(same)
    assert same["exact"].all()
    assert (same["rouge"] == 1).all()
    assert verdicts.loc[~verdicts["exact"], "rouge"].min() < 1


def test_ways_of_one_model_answer_differently(verdicts: pd.DataFrame) -> None:
    texts = verdicts.pivot(index=["split", "id"], columns="arm", values="response")
    assert (texts["ID none"] != texts["OD"]).any()


def test_tokens_are_changed_where_the_model_alone_would_say_another(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODIT_CACHE", str(tmp_path))
    steps = ctd.steps(ctd.TokenStudy(study=some("OD", "ID none", "CTD 0.3")))
    changed = steps.groupby("way")["changed"].sum()
    assert changed["OD"] == 0
    assert changed["ID none"] > 0
    assert (steps["changed"] == (steps["before"] != steps["after"])).all()
    assert steps["top"].between(0, 1).all()
    firsts = steps[steps["step"] == 0].groupby("way").size()
    assert firsts.to_dict() == {"OD": 4, "ID none": 4, "CTD 0.3": 4}


def test_families_are_won_tied_and_lost() -> None:
    rows = [("OD", "a", 0.5), ("OD", "b", 0.5), ("OD", "c", 0.5), ("OD", "d", 0.5)]
    rows += [("X", "a", 0.6), ("X", "b", 0.5), ("X", "c", 0.4), ("X", "d", 0.9)]
    table = pd.DataFrame(rows, columns=["arm", "family", "rouge"])
    (found,) = ctd.won(table, ["X"], "OD", measure="rouge").to_dict("records")
    assert found == {"arm": "X", "won": 0.5, "tied": 0.25, "lost": 0.25}


def test_a_view_of_the_world_leaves_the_task_and_takes_the_instructions() -> None:
    asked = world.prompts(scales.scale("micro").dev)[:6]
    model: Any = MICRO.pair.expert
    two, tokenizer = make.views_of(View(base=model, wording="none"), asked)
    for row in asked:
        chat = [{"role": "user", "content": row["instruction"]}]
        ids = make.contrastive_tuning.prompt_ids(tokenizer, chat)
        seen = tokenizer.decode(two.view(ids))
        told = [world.Constraint(**one).text() for one in row["constraints"]]
        assert all(text not in seen for text in told)
        assert row["instruction"].split(told[0])[0].strip() in seen if told else True


def test_a_tuning_is_made_once_and_found_again(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CODIT_CACHE", str(tmp_path))
    recipe: Tuning = ctd.tuning(MICRO, MICRO.pair.expert)
    first = make.store.get(recipe, make.make_prefix)
    monkeypatch.setattr(make.contrastive_tuning, "tune", None)
    assert make.store.get(recipe, make.make_prefix) == first
