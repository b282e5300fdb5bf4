"""From a recipe to a base, an expert, responses, a student and its answers; each made once."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from codit import decode, recipes, world
from codit.paper import arms, make, scales, store
from codit.paper.arms import Arm
from codit.paper.scales import Scale
from codit.recipes import Addition, Evaluation, File, Model, Synthesis, Training
from codit.world.recipes import Answers, BestOf, Shuffled, WorldPrompts


def prompts_of(recipe: WorldPrompts) -> list[str]:
    return [row["id"] for row in world.prompts(recipe)]


# -- models --------------------------------------------------------------------------------------


def test_a_named_model_is_loaded_by_its_name() -> None:
    assert make.model_path(Model(name="some/model")) == "some/model"


def test_a_base_is_pretrained_once_into_the_folder_of_its_key(micro: Scale, idle: Any) -> None:
    base = micro.pair.amateur
    folder = Path(make.model_path(base))
    assert folder == store.cache() / f"Pretraining-{recipes.key(base)}"
    assert store.read_manifest(folder)["recipe"] == recipes.describe(base)
    idle()
    assert make.model_path(base) == str(folder)


def test_the_expert_is_trained_from_the_amateur_and_shares_its_tokenizer(
    micro: Scale, idle: Any
) -> None:
    folders = [Path(make.model_path(m)) for m in (micro.pair.expert, micro.pair.amateur)]
    expert, amateur = (load_file(folder / "model.safetensors") for folder in folders)
    assert expert.keys() == amateur.keys()
    assert not all(expert[name].equal(amateur[name]) for name in expert)
    vocabularies = [json.loads((f / "tokenizer.json").read_text())["model"] for f in folders]
    assert vocabularies[0] == vocabularies[1]
    idle()
    assert make.model_path(micro.pair.expert) == str(folders[0])


def test_a_model_comes_with_the_tokenizer_of_its_folder(micro: Scale) -> None:
    model, tokenizer = make.load_model(micro.pair.amateur)
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.chat_template == world.train_tokenizer("a", micro.prompts.world).chat_template


def test_a_pair_is_made_of_its_recipes_models(micro: Scale) -> None:
    pair = make.load_pair(micro.pair)
    for part, recipe in ((pair.expert, micro.pair.expert), (pair.amateur, micro.pair.amateur)):
        weights = load_file(Path(make.model_path(recipe)) / "model.safetensors")
        assert all(part.state_dict()[name].equal(weight) for name, weight in weights.items())
    assert make.load_pair(micro.pair) is pair


# -- datasets ------------------------------------------------------------------------------------


def test_responses_answer_every_prompt_once_and_are_kept(micro: Scale, idle: Any) -> None:
    recipe = scales.synthesis(micro, "codit")
    made = make.responses(recipe)
    assert made["id"] == prompts_of(micro.prompts)
    assert {row["alpha"] for row in made["res_metadata"]} == {micro.decoding.plausibility}
    assert any(made["is_completed"])
    idle()
    assert make.responses(recipe).to_list() == made.to_list()
    assert make.dataset(recipe).to_list() == made.to_list()


def test_an_arm_without_strength_equals_the_expert_alone(micro: Scale) -> None:
    recipe = scales.synthesis(micro, "direct")
    model, tokenizer = make.load_model(micro.pair.expert)
    asked = world.prompts(micro.prompts)
    chats = [[{"role": "user", "content": row["instruction"]}] for row in asked]
    ids = [row["id"] for row in asked]
    alone = decode.generate(model, tokenizer, chats, recipe.decoding, ids=ids)
    assert [one.text for one in alone] == make.responses(recipe)["response"]


def test_an_arms_noise_is_another_with_another_seed(micro: Scale) -> None:
    one, two = (make.responses(scales.synthesis(micro, "direct", s)) for s in (0, 1))
    assert one["response"] != two["response"]


def test_the_worlds_own_answers_are_a_dataset(micro: Scale) -> None:
    recipe = Answers(prompts=micro.prompts, ideal_share=1.0)
    found = make.dataset(recipe)
    assert found.to_list() == world.answers(recipe)


def test_a_file_of_conversations_is_a_dataset(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "a"}]}] * 2
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = make.dataset(File(path=str(path)))
    assert [row["messages"] for row in found] == [row["messages"] for row in rows]


def test_shuffled_answers_are_all_used_and_answer_other_prompts(micro: Scale) -> None:
    answers = Answers(prompts=micro.prompts, ideal_share=1.0)
    plain, dealt = make.dataset(answers), make.dataset(Shuffled(answers=answers, seed=1))
    assert dealt["instruction"] == plain["instruction"]
    assert sorted(dealt["response"]) == sorted(plain["response"])
    assert sum(a == b for a, b in zip(dealt["response"], plain["response"], strict=True)) < 6
    assert [m[-1]["content"] for m in dealt["messages"]] == dealt["response"]
    again = make.dataset(Shuffled(answers=answers, seed=2))
    assert again["response"] != dealt["response"]


def test_the_amateur_with_the_whole_chat_vector_is_the_expert(micro: Scale, idle: Any) -> None:
    recipe = Addition(target=micro.pair.amateur, vector=micro.pair)
    folder = make.model_path(recipe)
    made, tokenizer = make.load_model(recipe)
    expert, _ = make.load_model(micro.pair.expert)
    wanted = expert.state_dict()
    assert made.state_dict().keys() == wanted.keys()
    for name, weight in made.state_dict().items():
        assert torch.allclose(weight, wanted[name], atol=1e-6), name
    assert made.config.vocab_size == len(tokenizer)
    idle()
    assert make.model_path(recipe) == folder


# -- students ----------------------------------------------------------------------------------


def test_a_student_is_its_base_trained_on_the_completed_responses_of_its_arm(
    micro: Scale, idle: Any
) -> None:
    cut = replace(micro, decoding=replace(micro.decoding, max_new_tokens=12))
    data = scales.synthesis(cut, "direct")
    recipe = Training(base=micro.students[0], data=data, **micro.training)
    folder = Path(make.model_path(recipe))
    log = json.loads((folder / "training_log.json").read_text())
    completed = sum(make.dataset(recipe.data)["is_completed"])
    assert 0 < completed < micro.prompts.n
    assert (log["rows_used"], log["rows_dropped"]) == (completed, micro.prompts.n - completed)
    base = load_file(Path(make.model_path(recipe.base)) / "model.safetensors")
    trained = load_file(folder / "model.safetensors")
    assert base.keys() == trained.keys()
    assert not all(base[name].equal(trained[name]) for name in base)
    idle()
    assert make.model_path(recipe) == str(folder)


# -- best of n -----------------------------------------------------------------------------------


def pool(micro: Scale) -> Synthesis:
    return replace(scales.synthesis(micro, "direct"), n_samples=4)


def scores(micro: Scale, rows: Any) -> list[int]:
    asked = {row["id"]: row for row in world.prompts(micro.prompts)}
    return [
        world.verify(r["response"], asked[r["id"]], is_completed=r["is_completed"]).score
        for r in rows
    ]


def test_the_best_of_one_is_direct_sampling(micro: Scale) -> None:
    best = make.dataset(BestOf(pool=pool(micro), n=1))
    direct = make.responses(scales.synthesis(micro, "direct"))
    assert best["id"] == direct["id"]
    assert best["response"] == direct["response"]


def test_more_candidates_never_score_lower_and_the_best_is_chosen(micro: Scale) -> None:
    found = [scores(micro, make.dataset(BestOf(pool=pool(micro), n=n))) for n in (1, 2, 4)]
    for fewer, more in itertools.pairwise(found):
        assert all(a <= b for a, b in zip(fewer, more, strict=True))
    assert sum(found[2]) > sum(found[0])
    every = make.responses(pool(micro))
    highest: dict[str, int] = {}
    for row, score in zip(every, scores(micro, every), strict=True):
        highest[row["id"]] = max(score, highest.get(row["id"], 0))
    assert found[2] == list(highest.values())


def test_of_equal_scores_the_first_sample_is_kept(micro: Scale) -> None:
    every = make.responses(pool(micro))
    points = dict(
        zip(zip(every["id"], every["sample"], strict=True), scores(micro, every), strict=True)
    )
    for row in make.dataset(BestOf(pool=pool(micro), n=4)):
        earlier = [points[row["id"], k] for k in range(row["sample"])]
        assert all(one < points[row["id"], row["sample"]] for one in earlier)


@pytest.mark.parametrize("n", [0, 5])
def test_more_candidates_than_the_pool_holds_are_refused(micro: Scale, n: int) -> None:
    with pytest.raises(ValueError, match=f"expected n from 1 to the 4 samples.*got {n}"):
        make.dataset(BestOf(pool=pool(micro), n=n))


def test_the_verifier_judges_the_world_s_prompts_only(micro: Scale) -> None:
    foreign = replace(pool(micro), prompts=File(path="rows.jsonl"))
    with pytest.raises(ValueError, match="knows the world's prompts only; got File"):
        make.dataset(BestOf(pool=foreign, n=2))


GREEDY = arms.greedy_decoding(32)


# -- answers -------------------------------------------------------------------------------------


def test_answers_are_the_verdicts_on_a_models_greedy_answers_and_are_kept(
    micro: Scale, idle: Any
) -> None:
    recipe = Evaluation(model=micro.pair.expert, prompts=dict(micro.tests)["test"], decoding=GREEDY)
    found = make.answers(recipe)
    model, tokenizer = make.load_model(micro.pair.expert)
    asked = world.prompts(recipe.prompts)
    chats = [[{"role": "user", "content": row["instruction"]}] for row in asked]
    given = decode.generate(model, tokenizer, chats, GREEDY, ids=[row["id"] for row in asked])
    assert found["id"].tolist() == prompts_of(recipe.prompts)
    assert found["response"].tolist() == [one.text for one in given]
    assert found["tokens"].tolist() == [len(one.token_ids) for one in given]
    for (_, row), one, prompt in zip(found.iterrows(), given, asked, strict=True):
        verdict = make.verdict(one.text, prompt, is_completed=one.is_completed)
        assert {name: row[name] for name in verdict} == verdict
    idle()
    pd.testing.assert_frame_equal(make.answers(recipe), found)


def test_each_constraint_that_holds_is_a_bit(micro: Scale) -> None:
    for row in world.prompts(micro.prompts):
        found = make.verdict(row["ideal"], row)
        assert found["obeyed"] == 2 ** len(row["constraints"]) - 1
        half = make.verdict("the lamp", row)
        assert bin(half["obeyed"]).count("1") / len(row["constraints"]) == pytest.approx(
            half["held"]
        )


# -- studies -------------------------------------------------------------------------------------


def test_a_study_of_responses_has_every_arm_seed_and_prompt(micro: Scale, idle: Any) -> None:
    recipe = scales.responses(replace(micro, seeds=(0, 1)), scales.main_arms(micro))
    table = make.study(recipe)
    assert len(table) == 6 * 2 * micro.prompts.n
    ids = prompts_of(micro.prompts)
    groups = table.groupby(["arm", "seed"], sort=False)
    assert all(own["id"].tolist() == ids for _, own in groups)
    assert list(dict.fromkeys(table["arm"])) == [arm.label for arm in recipe.arms]
    made = make.dataset(arms.data(recipe, recipe.arms[-1], 1))
    expected = make.verdicts(made, world.prompts(micro.prompts))
    own = groups.get_group((recipe.arms[-1].label, 1))
    for column in make.KEPT:
        assert own[column].tolist() == expected[column].tolist(), column
    idle()
    pd.testing.assert_frame_equal(make.study(recipe), table)


def test_a_study_of_students_has_every_student_split_and_prompt(micro: Scale, idle: Any) -> None:
    recipe = scales.students(micro, (Arm(role="direct"), Arm(role="ideal")))
    table = make.study(recipe)
    for told, evaluation in arms.evaluations(recipe):
        keys = [k for k, v in told.items() if v == v]
        own = table[(table[keys] == [told[k] for k in keys]).all(axis=1)]
        answers = make.answers(evaluation)
        assert own["id"].tolist() == answers["id"].tolist()
        assert own["score"].tolist() == answers["score"].tolist()
    assert len(table) == 2 * sum(prompts.n for _, prompts in micro.tests)
    idle()
    pd.testing.assert_frame_equal(make.study(recipe), table)


def test_a_study_s_file_is_small(micro: Scale) -> None:
    recipe = scales.responses(micro, (Arm(role="direct"), Arm(role="codit")))
    table = make.study(recipe)
    folder = store.find(recipe)
    assert folder is not None
    assert (folder / "verdicts.parquet").stat().st_size < 400 * len(table)
    assert "response" not in table


def test_prompts_that_the_verifier_does_not_know_are_refused(micro: Scale) -> None:
    recipe = scales.responses(replace(micro, prompts=File(path="x.jsonl")), ())
    with pytest.raises(ValueError, match="knows the world's prompts only; got File.*'full'"):
        make._responses(recipe).__next__()  # type: ignore[attr-defined]


# -- verdicts ------------------------------------------------------------------------------------


def test_ideal_answers_hold_everything_that_was_asked(micro: Scale) -> None:
    asked = world.prompts(micro.prompts)
    given = [
        {"id": row["id"], "response": row["ideal"], "is_completed": True, "score": [0.0] * 5}
        for row in asked
    ]
    table = make.verdicts(given, asked)
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
    table = make.verdicts(given, asked)
    assert table["id"].tolist() == [row["id"] for row in given]
    assert table["tokens"].tolist() == list(range(1, len(asked) + 1))
    for (_, found), row, prompt in zip(table.iterrows(), given, reversed(asked), strict=True):
        verdict = world.verify("The lamp.", prompt, is_completed=row["is_completed"])
        assert {name: found[name] for name in vars(verdict)} == vars(verdict)
    assert not table.loc[~table["is_completed"], "format"].any()


def test_a_response_to_another_prompt_is_an_error(micro: Scale) -> None:
    given = [{"id": "somebody", "response": "a", "is_completed": True, "score": [0.0]}]
    with pytest.raises(KeyError, match="somebody"):
        make.verdicts(given, world.prompts(micro.prompts))
