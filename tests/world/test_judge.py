"""The world's judge: its tokenizer, its training, and its word over HTTP."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from transformers import GenerationConfig

from codit import recipes
from codit.engine.models import load_tokenizer
from codit.evaluation import judge, rubric
from codit.evaluation.judge import Asking, Judge
from codit.paper import store
from codit.world import judge as world_judge
from codit.world import judge as world_lessons
from codit.world.judge import WorldJudge
from codit.world.recipes import World, WorldPrompts
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


@pytest.mark.parametrize("template", world_lessons.SHARES, ids=lambda one: one.name)
def test_every_fixed_part_of_a_prompt_costs_one_token(template: rubric.Template) -> None:
    rows = world_lessons.lessons(WorldPrompts(n=200))
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
    rows = world_lessons.graded(HELD_OUT)
    here = world_judge.judged(folder, rows)
    assert here["said"].notna().mean() > 0.8
    assert here["value"].tolist() == [row["score"] for row in rows]
    with serve(folder, cache_tokens=cache_tokens) as url:
        whom = Judge(model=folder.name, base_url=url, temperature=0, max_tokens=96)
        first, second = (
            judge.score(rows, whom, cache=tmp_path / "c.sqlite", asking=ASKING) for _ in range(2)
        )
    assert first.judgements["reply"].tolist() == here["reply"].tolist()
    told = here["said"].astype("float64").rename("score")
    pd.testing.assert_series_equal(first.table["score"], told)
    # The server enforces no schema; the judge keeps to it by itself wherever it parses.
    n_ok = int(here["said"].notna().sum())
    assert first.tally.schema["honoured"] == first.tally.states["ok"] == n_ok
    assert second.tally.calls == 0


def test_a_judge_compares_in_our_json_too(folder: Path) -> None:
    rows = world_lessons.compared(HELD_OUT)
    here = world_judge.judged(folder, rows)
    assert set(here["said"].dropna()) <= set(rubric.VERDICTS)
    assert here["template"].tolist() == ["pairwise"] * len(rows)
    assert here["said"].notna().mean() > 0.5
