"""The shipped models are what their recipes and their recorded evaluations say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoConfig

from codit import embedded, recipes, results, store, world
from codit.experiments import Scale
from codit.judge_recipes import WorldJudge
from codit.recipes import Pretraining, Training
from codit.vocabulary import load_tokenizer
from tests import micro as small

MODELS = store.repository() / "data" / "models"
RECIPES = embedded.models()
FINE_TUNED = [name for name, recipe in RECIPES.items() if isinstance(recipe, Training)]
JUDGES = [name for name, recipe in RECIPES.items() if isinstance(recipe, WorldJudge)]
SPEAKERS = [name for name in RECIPES if name not in JUDGES]


def evaluation(folder: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((folder / "evaluation.json").read_text())
    return found


# -- what ships ----------------------------------------------------------------------------------


def test_every_recipe_has_a_folder_and_every_folder_a_recipe() -> None:
    assert {path.name for path in MODELS.iterdir() if path.is_dir()} == set(RECIPES)


def test_all_models_together_are_small_enough_for_a_clone() -> None:
    size = sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file())
    assert 0 < size <= 40e6


def test_a_base_comes_before_what_is_trained_from_it() -> None:
    order = list(RECIPES.values())
    for recipe in RECIPES.values():
        if isinstance(recipe, Training):
            assert order.index(recipe.base) < order.index(recipe)


@pytest.mark.parametrize("name", RECIPES)
def test_the_store_finds_a_shipped_model_by_the_key_of_its_recipe(name: str) -> None:
    manifest = store.read_manifest(MODELS / name)
    assert manifest["key"] == recipes.key(RECIPES[name])
    assert manifest["recipe"] == recipes.describe(RECIPES[name])
    assert manifest["seconds"] > 0
    assert store.find(RECIPES[name]) == MODELS / name


@pytest.mark.parametrize("name", RECIPES)
def test_weights_are_few_and_float32_and_never_pickled(name: str) -> None:
    (file,) = MODELS.joinpath(name).glob("*.safetensors")
    assert not [p for p in MODELS.joinpath(name).iterdir() if p.suffix in (".bin", ".pt", ".pth")]
    with safe_open(file, framework="pt") as tensors:
        slices = [tensors.get_slice(key) for key in tensors.keys()]  # noqa: SIM118
    assert {part.get_dtype() for part in slices} == {"F32"}
    parameters = sum(math.prod(part.get_shape()) for part in slices)
    assert 0 < parameters <= 1_500_000
    log = json.loads((MODELS / name / "training_log.json").read_text())
    assert log["parameters"] == parameters


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_reads_8192_tokens_by_rotary_positions(name: str) -> None:
    config = AutoConfig.from_pretrained(MODELS / name)
    assert config.max_position_embeddings >= 8192
    assert config.rope_parameters["rope_theta"] > 0


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_is_of_its_recipe(name: str) -> None:
    recipe = RECIPES[name]
    assert isinstance(recipe, WorldJudge)
    config = AutoConfig.from_pretrained(MODELS / name)
    assert (config.model_type, config.hidden_size) == (recipe.architecture, recipe.hidden_size)
    assert config.vocab_size == len(load_tokenizer(str(MODELS / name))) > recipe.vocabulary


@pytest.mark.parametrize("name", SPEAKERS)
def test_architecture_and_tokenizer_are_the_recipes(name: str) -> None:
    recipe = RECIPES[name]
    base = recipe.base if isinstance(recipe, Training) else recipe
    assert isinstance(base, Pretraining)
    config = AutoConfig.from_pretrained(MODELS / name)
    assert config.model_type == base.architecture
    tokenizer = load_tokenizer(str(MODELS / name))
    assert config.vocab_size == len(tokenizer) == world.tokens.VOCABULARY[base.tokenizer]
    assert "{% generation %}" in tokenizer.chat_template


@pytest.mark.parametrize("name", RECIPES)
def test_a_model_card_says_what_it_is_and_under_which_licence(name: str) -> None:
    card = ModelCard.load(MODELS / name / "README.md")
    assert card.data.license == "apache-2.0"
    log = json.loads((MODELS / name / "training_log.json").read_text())
    assert f"# codit micro world: {name}" in card.text
    assert "licence: Apache-2.0" in card.text
    assert f"parameters: {log['parameters']:,}, float32" in card.text
    for measure, value in evaluation(MODELS / name).items():
        assert f"| {measure} | {value:g} |" in card.text


# -- recorded against measured -------------------------------------------------------------------


@pytest.mark.parametrize("name", SPEAKERS)
def test_a_shipped_model_predicts_text_as_well_as_recorded(name: str) -> None:
    recipe = RECIPES[name]
    base = recipe.base if isinstance(recipe, Training) else recipe
    assert isinstance(base, Pretraining)
    measured = embedded.text_loss(MODELS / name, base)
    assert measured == pytest.approx(evaluation(MODELS / name)["text_loss"], abs=1e-3)


@pytest.mark.parametrize("name", FINE_TUNED)
def test_a_shipped_model_follows_instructions_as_well_as_recorded(name: str) -> None:
    recorded = evaluation(MODELS / name)
    measured = embedded.evaluate(MODELS / name, RECIPES[name])
    assert measured.keys() == recorded.keys() >= {"strict", "correct", "is_completed"}
    for measure, value in measured.items():
        # Greedy answers to the same prompts: rounding may tip one or two of a hundred.
        assert value == pytest.approx(recorded[measure], abs=0.02)


@pytest.mark.parametrize("name", JUDGES)
def test_a_shipped_judge_judges_as_well_as_recorded(name: str) -> None:
    recorded = evaluation(MODELS / name)
    measured = embedded.evaluate(MODELS / name, RECIPES[name])
    assert measured.keys() == recorded.keys() == {"equal", "spearman", "verdicts", "parses"}
    for measure, value in measured.items():
        assert value == pytest.approx(recorded[measure], abs=0.02)


# -- making them, with the models of tests/micro.py ----------------------------------------------


@pytest.fixture
def repository(micro: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose embedded models are the small ones, and none shipped yet."""
    made = {"amateur": small.BASE, "expert": small.EXPERT}
    for recipe in made.values():
        results.model_path(recipe)
    monkeypatch.setattr(embedded, "models", lambda: made)
    monkeypatch.setattr(embedded, "DOCUMENTS", 4)
    monkeypatch.setattr(embedded, "PROMPTS", 5)
    monkeypatch.setattr(store, "repository", lambda: tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_embedded_model_is_found_instead_of_made(repository: Path) -> None:
    cached = store.get(small.BASE, pytest.fail)
    folder = embedded.embed("amateur")
    assert folder == repository / "data" / "models" / "amateur"
    assert store.get(small.BASE, pytest.fail) == folder != cached
    weights = "model.safetensors"
    assert files(folder)[weights] == files(cached)[weights]
    before = files(folder)
    assert {"README.md", "evaluation.json", "manifest.json", "training_log.json"} <= set(before)
    assert store.read_manifest(folder)["seconds"] == store.read_manifest(cached)["seconds"]
    assert [path.name for path in folder.parent.iterdir()] == ["amateur"]
    assert embedded.embed("amateur") == folder
    assert files(folder) == before


def test_a_base_is_measured_on_text_and_an_expert_on_answers_too(repository: Path) -> None:
    base, expert = (evaluation(embedded.embed(name)) for name in ("amateur", "expert"))
    assert set(base) == {"text_loss"}
    assert set(expert) == {"text_loss", "strict", "correct", "is_completed"}
    assert all(0 <= expert[name] <= 1 for name in ("strict", "correct", "is_completed"))
    folder = repository / "data" / "models" / "expert"
    assert expert["text_loss"] == pytest.approx(embedded.text_loss(folder, small.BASE), abs=1e-5)
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert f"recipe: `Training(base=Pretraining(world=World(people={small.WORLD.people})" in card


def test_the_text_that_measures_was_never_trained_on(repository: Path) -> None:
    trained = {recipe.seed for recipe in RECIPES.values()}
    assert embedded.HELD_OUT_TEXT not in trained
    first = next(world.documents(small.WORLD, embedded.HELD_OUT_TEXT))
    assert first != next(world.documents(small.WORLD, small.BASE.seed))


def test_a_fresh_model_takes_the_place_of_the_shipped_one(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = embedded.embed("amateur")
    shipped, made = files(folder), []

    def make(recipe: Any, into: Path) -> None:
        made.append(recipe)
        for name in set(shipped) - {"README.md", "evaluation.json", "manifest.json"}:
            (into / name).write_bytes(shipped[name])
        (into / "training_log.json").write_text('{"parameters": 1234}')

    monkeypatch.setattr(results, "make_base", make)
    monkeypatch.setenv("CODIT_CACHE", str(tmp_path / "cache"))
    assert embedded.embed("amateur") == folder
    assert made == []
    assert embedded.embed("amateur", fresh=True) == folder
    assert made == [small.BASE]
    assert "parameters: 1,234, float32" in (folder / "README.md").read_text()
    assert files(folder)["evaluation.json"] == shipped["evaluation.json"]


def test_an_unknown_model_is_refused(repository: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"expected one of \['amateur', 'expert'\]; got 'base'. Name an embedded model",
    ):
        embedded.embed("base")


def test_the_command_says_where_each_model_lies(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    embedded.main(("amateur",))
    assert capsys.readouterr().out == f"amateur: {repository}/data/models/amateur\n"
