"""From a recipe to a base, an expert, responses, a student and its answers; each made once."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from codit import decode, experiments, recipes, results, store, world
from codit.experiments import Scale
from codit.recipes import (
    Addition,
    Answers,
    BestOf,
    File,
    Model,
    Shuffled,
    Synthesis,
    Training,
    WorldPrompts,
)


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
    asked = world.prompts(micro.prompts)
    chats = [[{"role": "user", "content": row["instruction"]}] for row in asked]
    ids = [row["id"] for row in asked]
    alone = decode.generate(model, tokenizer, chats, recipe.decoding, ids=ids)
    assert [one.text for one in alone] == results.responses(recipe)["response"]


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


def test_shuffled_answers_are_all_used_and_answer_other_prompts(micro: Scale) -> None:
    answers = Answers(prompts=micro.prompts, ideal_share=1.0)
    plain, dealt = results.dataset(answers), results.dataset(Shuffled(answers=answers, seed=1))
    assert dealt["instruction"] == plain["instruction"]
    assert sorted(dealt["response"]) == sorted(plain["response"])
    assert sum(a == b for a, b in zip(dealt["response"], plain["response"], strict=True)) < 6
    assert [m[-1]["content"] for m in dealt["messages"]] == dealt["response"]
    again = results.dataset(Shuffled(answers=answers, seed=2))
    assert again["response"] != dealt["response"]


def test_the_amateur_with_the_whole_chat_vector_is_the_expert(micro: Scale, idle: Any) -> None:
    recipe = Addition(target=micro.pair.amateur, vector=micro.pair)
    folder = results.model_path(recipe)
    made, tokenizer = results.load_model(recipe)
    expert, _ = results.load_model(micro.pair.expert)
    wanted = expert.state_dict()
    assert made.state_dict().keys() == wanted.keys()
    for name, weight in made.state_dict().items():
        assert torch.allclose(weight, wanted[name], atol=1e-6), name
    assert made.config.vocab_size == len(tokenizer)
    idle()
    assert results.model_path(recipe) == folder


# -- students ----------------------------------------------------------------------------------


def test_a_student_is_its_base_trained_on_the_completed_responses_of_its_arm(
    micro: Scale, idle: Any
) -> None:
    cut = replace(micro, decoding=replace(micro.decoding, max_new_tokens=12))
    data = experiments.synthesis(cut, "direct")
    recipe = Training(base=micro.students[0], data=data, **micro.training)
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


# -- best of n -----------------------------------------------------------------------------------


def pool(micro: Scale) -> Synthesis:
    return replace(experiments.synthesis(micro, "direct"), n_samples=4)


def scores(micro: Scale, rows: Any) -> list[int]:
    asked = {row["id"]: row for row in world.prompts(micro.prompts)}
    return [
        world.verify(r["response"], asked[r["id"]], is_completed=r["is_completed"]).score
        for r in rows
    ]


def test_the_best_of_one_is_direct_sampling(micro: Scale) -> None:
    best = results.dataset(BestOf(pool=pool(micro), n=1))
    direct = results.responses(experiments.synthesis(micro, "direct"))
    assert best["id"] == direct["id"]
    assert best["response"] == direct["response"]


def test_more_candidates_never_score_lower_and_the_best_is_chosen(micro: Scale) -> None:
    found = [scores(micro, results.dataset(BestOf(pool=pool(micro), n=n))) for n in (1, 2, 4)]
    for fewer, more in itertools.pairwise(found):
        assert all(a <= b for a, b in zip(fewer, more, strict=True))
    assert sum(found[2]) > sum(found[0])
    every = results.responses(pool(micro))
    highest: dict[str, int] = {}
    for row, score in zip(every, scores(micro, every), strict=True):
        highest[row["id"]] = max(score, highest.get(row["id"], 0))
    assert found[2] == list(highest.values())


def test_of_equal_scores_the_first_sample_is_kept(micro: Scale) -> None:
    every = results.responses(pool(micro))
    points = dict(
        zip(zip(every["id"], every["sample"], strict=True), scores(micro, every), strict=True)
    )
    for row in results.dataset(BestOf(pool=pool(micro), n=4)):
        earlier = [points[row["id"], k] for k in range(row["sample"])]
        assert all(one < points[row["id"], row["sample"]] for one in earlier)


@pytest.mark.parametrize("n", [0, 5])
def test_more_candidates_than_the_pool_holds_are_refused(micro: Scale, n: int) -> None:
    with pytest.raises(ValueError, match=f"expected n from 1 to the 4 samples.*got {n}"):
        results.dataset(BestOf(pool=pool(micro), n=n))


def test_the_verifier_judges_the_world_s_prompts_only(micro: Scale) -> None:
    foreign = replace(pool(micro), prompts=File(path="rows.jsonl"))
    with pytest.raises(ValueError, match="knows the world's prompts only; got File"):
        results.dataset(BestOf(pool=foreign, n=2))
