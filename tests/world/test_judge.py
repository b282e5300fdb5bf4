"""The world's judge: its lessons, its tokenizer, its training, and its word over HTTP."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from transformers import GenerationConfig

from codit import recipes, world
from codit.engine.models import load_tokenizer
from codit.evaluation import judge, replies, rubric
from codit.evaluation.judge import Asking, Judge
from codit.paper import store
from codit.world import judge as world_judge
from codit.world.recipes import World, WorldJudge, WorldPrompts
from tests.judge_server import serve

WORLD = World(people=32)
TINY = WorldJudge(
    prompts=WorldPrompts(world=WORLD, n=300, seed=4),
    hidden_size=64,
    layers=1,
    vocabulary=400,
    epochs=8.0,
    batch=16,
    learning_rate=1e-2,
)
HELD_OUT = WorldPrompts(world=WORLD, split="dev", n=24)
ASKING = Asking(timeout=60, tries=2, attempts=1, concurrency=2, max_failures=1.0, progress=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A judge made in seconds: it knows the form of a reply and little else."""
    made = tmp_path_factory.mktemp("judge") / "tiny"
    made.mkdir()
    world_judge.make(TINY, made)
    return made


def test_a_judge_is_taught_the_verifiers_score_in_our_json() -> None:
    rows = world_judge.graded(WorldPrompts(n=300))
    asked = world.prompts(WorldPrompts(n=300))
    for row, prompt in zip(rows, asked, strict=True):
        assert row["instruction"] == prompt["instruction"]
        assert row["value"] == row["score"] == world.verify(row["response"], prompt).score
        shown = {name: row[name] for name in ("instruction", "response")}
        assert row["prompt"] == rubric.fill(rubric.SINGLE, shown)


def test_what_it_is_taught_has_every_quality_and_nearly_every_score() -> None:
    table = pd.DataFrame(world_judge.graded(WorldPrompts(n=1000)))
    assert set(table["quality"]) == set(world_judge.QUALITIES)
    assert set(table["score"]) >= {1, 3, 4, 5, 6, 7, 8, 9, 10}
    means = table.groupby("quality")["score"].mean()
    assert means["empty"] == 1
    assert means["ideal"] == 10
    assert means["ideal"] > means["partial"] > means["wrong"]


def test_a_reply_names_what_holds_and_what_does_not() -> None:
    for row in world_judge.graded(WorldPrompts(n=200)):
        said = json.loads(row["reply"])
        assert list(said) == ["strengths", "weaknesses", "score"]
        assert (said["score"] == 10) == (said["weaknesses"] == "none")


def test_equal_seeds_give_equal_rows_and_fewer_are_a_prefix() -> None:
    for make in (world_judge.graded, world_judge.lessons, world_judge.compared):
        rows = make(WorldPrompts(n=40))
        assert make(WorldPrompts(n=20)) == rows[:20]
    assert world_judge.lessons(WorldPrompts(n=40), seed=1) != world_judge.lessons(
        WorldPrompts(n=40)
    )


def test_lessons_are_asked_in_every_way_and_every_reply_is_read_as_its_value() -> None:
    rows = world_judge.lessons(WorldPrompts(n=600))
    counted = Counter(row["template"] for row in rows)
    assert set(counted) == set(world_judge.TEMPLATES)
    for template, share in world_judge.SHARES.items():
        assert abs(counted[template.name] / len(rows) - share) < 0.06
    for row in rows:
        value, is_pure, _ = replies.value_in(row["reply"], world_judge.TEMPLATES[row["template"]])
        assert (value, is_pure) == (row["value"], True)


def test_the_better_of_two_wins_whichever_stands_first() -> None:
    rows = world_judge.compared(WorldPrompts(n=400))
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
    rows = world_judge.lessons(WorldPrompts(n=200))
    asked = [prompt["instruction"] for prompt in world.prompts(WorldPrompts(n=200))]
    seen = 0
    for before, here, row in zip(asked[:-1], asked[1:], rows[1:], strict=True):
        if row["template"] == rubric.SECOND_TURN.name:
            assert row["prompt"].index(before) < row["prompt"].rindex(here)
            seen += 1
    assert seen > 5


def test_a_reference_answer_is_the_ideal_one() -> None:
    rows = world_judge.lessons(WorldPrompts(n=200))
    ideals = [prompt["ideal"] for prompt in world.prompts(WorldPrompts(n=200))]
    wanted = (rubric.SINGLE_REFERENCE.name, rubric.SECOND_TURN_REFERENCE.name)
    found = [
        ideal in row["prompt"]
        for ideal, row in zip(ideals, rows, strict=True)
        if row["template"] in wanted
    ]
    assert len(found) > 10
    assert all(found)


@pytest.mark.parametrize("template", world_judge.SHARES, ids=lambda one: one.name)
def test_every_fixed_part_of_a_prompt_costs_one_token(template: rubric.Template) -> None:
    rows = world_judge.lessons(WorldPrompts(n=200))
    tokenizer = world_judge.tokenizer(rows, vocabulary=400)
    names = rubric.PLACEHOLDER.findall(template.text)
    empty = rubric.fill(template, dict.fromkeys(names, ""))
    assert len(tokenizer(empty).input_ids) == len(names) + 1
    for row in rows[:20]:
        for text in (row["prompt"], row["reply"]):
            assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_every_value_of_a_recipe_names_another_judge() -> None:
    others = [replace(TINY, seed=1), replace(TINY, prompts=HELD_OUT), replace(TINY, epochs=1.0)]
    assert len({recipes.key(recipe) for recipe in (TINY, *others)}) == 4


def test_a_folder_holds_what_a_server_wants(folder: Path) -> None:
    names = {path.name for path in folder.iterdir()}
    assert names >= {"model.safetensors", "chat_template.jinja", "generation_config.json"}
    assert not {path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")}
    tokenizer = load_tokenizer(str(folder))
    drawn = GenerationConfig.from_pretrained(folder)
    assert drawn.do_sample is True
    assert drawn.top_k == 0
    assert drawn.eos_token_id == tokenizer.convert_tokens_to_ids("<|end|>")
    log = json.loads((folder / "training_log.json").read_text())
    assert log["losses"][-1]["loss"] < log["losses"][0]["loss"] / 4


def test_equal_recipes_make_equal_weights(folder: Path, tmp_path: Path) -> None:
    short = replace(TINY, prompts=replace(TINY.prompts, n=32), epochs=1.0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        world_judge.make(short, tmp_path / name)
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert first == second


def test_a_judge_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CODIT_CACHE", str(tmp_path))
    made = []

    def make(recipe: WorldJudge, target: Path) -> None:
        made.append(recipe)

    monkeypatch.setattr(world_judge, "make", make)
    assert store.get(TINY, world_judge.make) == store.get(TINY, pytest.fail)
    assert made == [TINY]


def test_reliability_counts_what_does_not_parse_and_never_scores_it() -> None:
    table = pd.DataFrame({"id": list("abcd"), "said": [1.0, 5.0, None, 9.0], "value": [1, 6, 8, 9]})
    found = world_judge.reliability(table)
    assert found["parses"].estimate == 0.75
    assert found["equal"].estimate == 0.5
    assert found["spearman"].estimate == 1.0


@pytest.mark.parametrize("cache_tokens", [None, 2048])
def test_a_judges_word_is_the_same_over_http_and_here(
    cache_tokens: int | None, folder: Path, tmp_path: Path
) -> None:
    rows = world_judge.graded(HELD_OUT)
    here = world_judge.judged(folder, rows)
    assert here["said"].notna().mean() > 0.8
    assert here["value"].tolist() == [row["score"] for row in rows]
    with serve(folder, cache_tokens=cache_tokens) as url:
        whom = Judge(model=folder.name, base_url=url, temperature=0, max_tokens=96)
        asked = [{name: row[name] for name in ("id", "instruction", "response")} for row in rows]
        first, second = (
            judge.score(asked, whom, cache=tmp_path / "c.sqlite", asking=ASKING) for _ in range(2)
        )
    assert first.judgements["reply"].tolist() == here["reply"].tolist()
    told = here["said"].astype("float64").rename("score")
    pd.testing.assert_series_equal(first.table["score"], told)
    # The server enforces no schema; the judge keeps to it by itself wherever it parses.
    n_ok = int(here["said"].notna().sum())
    assert first.tally.schema["honoured"] == first.tally.states["ok"] == n_ok
    assert second.tally.calls == 0


def test_a_judge_compares_in_our_json_too(folder: Path) -> None:
    rows = world_judge.compared(HELD_OUT)
    here = world_judge.judged(folder, rows)
    assert set(here["said"].dropna()) <= set(rubric.VERDICTS)
    assert here["template"].tolist() == ["pairwise"] * len(rows)
    assert here["said"].notna().mean() > 0.5
