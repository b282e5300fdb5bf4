"""From a recipe to a base, an expert, responses, a student and its answers; each made once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.torch import load_file

from codit import experiments, recipes, results, store, world
from codit.experiments import Scale
from codit.recipes import Answers, File, Model, WorldPrompts
from tests import tiny


def prompts_of(recipe: WorldPrompts) -> list[str]:
    return [row["id"] for row in world.prompts(recipe)]


# -- models --------------------------------------------------------------------------------------


def test_a_named_model_is_loaded_by_its_name() -> None:
    assert results.model_path(Model(name="some/model")) == "some/model"


def test_a_base_is_pretrained_once_into_the_folder_of_its_key(micro: Scale, idle: Any) -> None:
    base = micro.pair.amateur
    folder = Path(results.model_path(base))
    assert folder == store.cache() / f"Pretraining-{recipes.key(base)}"
    assert store.read_manifest(folder)["recipe"] == recipes.describe(base)
    idle()
    assert results.model_path(base) == str(folder)


def test_the_expert_is_trained_from_the_amateur_and_shares_its_tokenizer(
    micro: Scale, idle: Any
) -> None:
    folders = [Path(results.model_path(m)) for m in (micro.pair.expert, micro.pair.amateur)]
    expert, amateur = (load_file(folder / "model.safetensors") for folder in folders)
    assert expert.keys() == amateur.keys()
    assert not all(expert[name].equal(amateur[name]) for name in expert)
    vocabularies = [json.loads((f / "tokenizer.json").read_text())["model"] for f in folders]
    assert vocabularies[0] == vocabularies[1]
    idle()
    assert results.model_path(micro.pair.expert) == str(folders[0])


def test_a_model_comes_with_the_tokenizer_of_its_folder(micro: Scale) -> None:
    model, tokenizer = results.load_model(micro.pair.amateur)
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.chat_template == world.train_tokenizer("a", micro.prompts.world).chat_template


def test_a_pair_is_made_of_its_recipes_models(micro: Scale) -> None:
    pair = results.load_pair(micro.pair)
    for part, recipe in ((pair.expert, micro.pair.expert), (pair.amateur, micro.pair.amateur)):
        weights = load_file(Path(results.model_path(recipe)) / "model.safetensors")
        assert all(part.state_dict()[name].equal(weight) for name, weight in weights.items())
    assert results.load_pair(micro.pair) is pair


# -- datasets ------------------------------------------------------------------------------------


def test_responses_answer_every_prompt_once_and_are_kept(micro: Scale, idle: Any) -> None:
    recipe = experiments.synthesis(micro, "codit")
    made = results.responses(recipe)
    assert made["id"] == prompts_of(micro.prompts)
    assert {row["alpha"] for row in made["res_metadata"]} == {micro.decoding.plausibility}
    assert any(made["is_completed"])
    idle()
    assert results.responses(recipe).to_list() == made.to_list()
    assert results.dataset(recipe).to_list() == made.to_list()


def test_an_arm_without_strength_equals_the_expert_alone(micro: Scale) -> None:
    recipe = experiments.synthesis(micro, "direct")
    model, tokenizer = results.load_model(micro.pair.expert)
    alone = results.answered(model, tokenizer, micro.prompts, recipe.decoding)
    made = results.responses(recipe)
    assert [row["response"] for row in alone] == made["response"]


def test_an_arms_noise_is_another_with_another_seed(micro: Scale) -> None:
    one, two = (results.responses(experiments.synthesis(micro, "direct", s)) for s in (0, 1))
    assert one["response"] != two["response"]


def test_the_worlds_own_answers_are_a_dataset(micro: Scale) -> None:
    recipe = Answers(prompts=micro.prompts, ideal_share=1.0)
    found = results.dataset(recipe)
    assert found.to_list() == world.answers(recipe)


def test_a_file_of_conversations_is_a_dataset(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}]}] * 2
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = results.dataset(File(path=str(path)))
    assert [row["messages"] for row in found] == [row["messages"] for row in rows]


# -- students and answers ------------------------------------------------------------------------


def test_a_student_is_its_base_trained_on_the_completed_responses_of_its_arm(
    micro: Scale, idle: Any
) -> None:
    cut = replace(micro, decoding=replace(micro.decoding, max_new_tokens=12))
    recipe = experiments.training(cut, micro.students[0], "direct")
    folder = Path(results.model_path(recipe))
    log = json.loads((folder / "training_log.json").read_text())
    completed = sum(results.dataset(recipe.data)["is_completed"])
    assert 0 < completed < micro.prompts.n
    assert (log["rows_used"], log["rows_dropped"]) == (completed, micro.prompts.n - completed)
    base = load_file(Path(results.model_path(recipe.base)) / "model.safetensors")
    trained = load_file(folder / "model.safetensors")
    assert base.keys() == trained.keys()
    assert not all(base[name].equal(trained[name]) for name in base)
    idle()
    assert results.model_path(recipe) == str(folder)


def test_answers_are_the_verdicts_on_a_models_greedy_answers_and_are_kept(
    micro: Scale, idle: Any
) -> None:
    recipe = experiments.evaluations(micro, micro.pair.expert)["test"]
    found = results.answers(recipe)
    model, tokenizer = results.load_model(micro.pair.expert)
    given = results.answered(model, tokenizer, recipe.prompts, recipe.decoding)
    table = results.verdicts(given, world.prompts(recipe.prompts))
    # JSON knows no difference between 0 and 0.0, which is all that some columns may hold.
    pd.testing.assert_frame_equal(found, table, check_dtype=False)
    assert found["id"].tolist() == prompts_of(recipe.prompts)
    idle()
    pd.testing.assert_frame_equal(results.answers(recipe), found)


def test_answers_count_their_tokens_stop_token_included(micro: Scale) -> None:
    pair, decoding = tiny.pair("llama"), replace(experiments.GREEDY, max_new_tokens=9)
    recipe = replace(micro.prompts, n=5)
    given = results.answered(pair.expert, tiny.tokenizer(), recipe, decoding)
    assert [row["id"] for row in given] == prompts_of(recipe)
    for row in given:
        assert row["tokens"] == 9 if not row["is_completed"] else row["tokens"] <= 9


# -- verdicts ------------------------------------------------------------------------------------


def test_ideal_answers_hold_everything_that_was_asked(micro: Scale) -> None:
    asked = world.prompts(micro.prompts)
    given = [
        {"id": row["id"], "response": row["ideal"], "is_completed": True, "tokens": 5}
        for row in asked
    ]
    table = results.verdicts(given, asked)
    assert table[["strict", "loose", "correct", "format"]].all(axis=None)
    assert set(table["score"]) == {10}
    assert table["family"].tolist() == [row["family"] for row in asked]


def test_verdicts_are_those_of_the_verifier_in_the_order_of_the_responses(micro: Scale) -> None:
    asked = world.prompts(micro.prompts)
    given = [
        {"id": row["id"], "response": "The lamp.", "is_completed": n % 2 == 0, "score": [0.0] * n}
        for n, row in enumerate(reversed(asked))
    ]
    table = results.verdicts(given, asked)
    assert table["id"].tolist() == [row["id"] for row in given]
    assert table["tokens"].tolist() == list(range(len(asked)))
    for (_, found), row, prompt in zip(table.iterrows(), given, reversed(asked), strict=True):
        verdict = world.verify("The lamp.", prompt, is_completed=row["is_completed"])
        assert {name: found[name] for name in vars(verdict)} == vars(verdict)
    assert not table.loc[~table["is_completed"], "format"].any()


def test_a_response_to_another_prompt_is_an_error(micro: Scale) -> None:
    given = [{"id": "somebody", "response": "a", "is_completed": True, "tokens": 1}]
    with pytest.raises(KeyError, match="somebody"):
        results.verdicts(given, world.prompts(micro.prompts))
