"""What ships is what its recipes and their recorded evaluations say."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors import safe_open
from transformers import AutoConfig

from codit import recipes, world
from codit.engine.models import load_tokenizer
from codit.paper import make, run, scales, shipped, store, tables
from codit.paper.arms import Arm
from codit.paper.scales import Scale
from codit.recipes import Training
from codit.world.recipes import Pretraining, WorldJudge
from tests import micro as small

MODELS = store.repository() / "data" / "models"
RECIPES = shipped.models()
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
    measured = shipped.text_loss(MODELS / name, base)
    assert measured == pytest.approx(evaluation(MODELS / name)["text_loss"], abs=1e-3)


@pytest.mark.parametrize("name", FINE_TUNED)
def test_a_shipped_model_follows_instructions_as_well_as_recorded(name: str) -> None:
    recorded = evaluation(MODELS / name)
    measured = shipped.evaluate(MODELS / name, RECIPES[name])
    assert measured.keys() == recorded.keys() >= {"strict", "correct", "is_completed"}
    for measure, value in measured.items():
        # Greedy answers to the same prompts: rounding may tip one or two of a hundred.
        assert value == pytest.approx(recorded[measure], abs=0.02)


@pytest.mark.parametrize("name", JUDGES)
def test_a_shipped_judge_judges_as_well_as_recorded(name: str) -> None:
    recorded = evaluation(MODELS / name)
    measured = shipped.evaluate(MODELS / name, RECIPES[name])
    assert measured.keys() == recorded.keys() == {"equal", "spearman", "verdicts", "parses"}
    for measure, value in measured.items():
        assert value == pytest.approx(recorded[measure], abs=0.02)


# -- making them, with the models of tests/micro.py ----------------------------------------------


@pytest.fixture
def repository(micro: Scale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose embedded models are the small ones, and none shipped yet."""
    made = {"amateur": small.BASE, "expert": small.EXPERT}
    for recipe in made.values():
        make.model_path(recipe)
    monkeypatch.setattr(shipped, "models", lambda: made)
    monkeypatch.setattr(shipped, "DOCUMENTS", 4)
    monkeypatch.setattr(shipped, "PROMPTS", 5)
    monkeypatch.setattr(store, "repository", lambda: tmp_path)
    return tmp_path


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_embedded_model_is_found_instead_of_made(repository: Path) -> None:
    cached = store.get(small.BASE, pytest.fail)
    folder = shipped.embed("amateur")
    assert folder == repository / "data" / "models" / "amateur"
    assert store.get(small.BASE, pytest.fail) == folder != cached
    weights = "model.safetensors"
    assert files(folder)[weights] == files(cached)[weights]
    before = files(folder)
    assert {"README.md", "evaluation.json", "manifest.json", "training_log.json"} <= set(before)
    assert store.read_manifest(folder)["seconds"] == store.read_manifest(cached)["seconds"]
    assert [path.name for path in folder.parent.iterdir()] == ["amateur"]
    assert shipped.embed("amateur") == folder
    assert files(folder) == before


def test_a_base_is_measured_on_text_and_an_expert_on_answers_too(repository: Path) -> None:
    base, expert = (evaluation(shipped.embed(name)) for name in ("amateur", "expert"))
    assert set(base) == {"text_loss"}
    assert set(expert) == {"text_loss", "strict", "correct", "is_completed"}
    assert all(0 <= expert[name] <= 1 for name in ("strict", "correct", "is_completed"))
    folder = repository / "data" / "models" / "expert"
    assert expert["text_loss"] == pytest.approx(shipped.text_loss(folder, small.BASE), abs=1e-5)
    card = (folder / "README.md").read_text()
    assert card.startswith("---\n")
    assert f"recipe: `Training(base=Pretraining(world=World(people={small.WORLD.people})" in card


def test_the_text_that_measures_was_never_trained_on(repository: Path) -> None:
    trained = {recipe.seed for recipe in RECIPES.values()}
    assert shipped.HELD_OUT_TEXT not in trained
    first = next(world.documents(small.WORLD, shipped.HELD_OUT_TEXT))
    assert first != next(world.documents(small.WORLD, small.BASE.seed))


def test_a_fresh_model_takes_the_place_of_the_shipped_one(
    repository: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = shipped.embed("amateur")
    before, made = files(folder), []

    def train(recipe: Any, into: Path) -> None:
        made.append(recipe)
        for name in set(before) - {"README.md", "evaluation.json", "manifest.json"}:
            (into / name).write_bytes(before[name])
        (into / "training_log.json").write_text('{"parameters": 1234}')

    monkeypatch.setattr(make, "make_base", train)
    monkeypatch.setenv("CODIT_CACHE", str(tmp_path / "cache"))
    assert shipped.embed("amateur") == folder
    assert made == []
    assert shipped.embed("amateur", fresh=True) == folder
    assert made == [small.BASE]
    assert "parameters: 1,234, float32" in (folder / "README.md").read_text()
    assert files(folder)["evaluation.json"] == before["evaluation.json"]


def test_an_unknown_model_is_refused(repository: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"expected names among \['amateur', 'expert'\]; got \['base'\]. Name one of them",
    ):
        shipped.embed("base")


def test_the_command_says_where_each_model_lies(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped.make_models(("amateur",))
    assert capsys.readouterr().out == f"amateur: {repository}/data/models/amateur\n"


FULL = scales.scale("full")
TABLES = shipped.tables(FULL)
RESULTS = store.repository() / "data" / "results"


def test_every_table_has_a_folder_and_every_folder_a_table() -> None:
    assert {path.name for path in RESULTS.iterdir() if path.is_dir()} == set(TABLES)


@pytest.mark.parametrize("name", TABLES)
def test_the_store_finds_a_committed_table_by_its_recipe_s_key(name: str) -> None:
    recipe, make = TABLES[name]
    assert store.find(recipe) == shipped.folder(name)
    manifest = store.read_manifest(shipped.folder(name))
    assert manifest["key"] == recipes.key(recipe)
    assert len(make(recipe)) > 0  # type: ignore[arg-type]


def test_all_tables_together_are_small_enough_for_a_clone() -> None:
    size = sum(path.stat().st_size for path in RESULTS.rglob("*") if path.is_file())
    assert 0 < size < 15e6


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setattr(store, "repository", lambda: tmp_path)
    return tmp_path


def test_a_table_is_made_put_in_its_place_and_found_there(
    micro: Scale, empty: Path, idle: Any
) -> None:
    recipe = scales.responses(micro, (Arm(role="direct"),))
    target = shipped.commit("a", (recipe, make.study))
    assert target == empty / "data" / "results" / "a"
    idle()
    assert store.find(recipe) == target
    assert shipped.commit("a", (recipe, make.study)) == target
    assert [path.name for path in target.parent.iterdir()] == ["a"]


def test_a_table_that_is_too_large_is_refused(
    micro: Scale, empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "TOO_LARGE", 10)
    recipe = scales.responses(micro, (Arm(role="codit"),))
    with pytest.raises(ValueError, match="expected at most 10 bytes of b; got"):
        shipped.commit("b", (recipe, make.study))
    assert not (empty / "data").exists()


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ValueError, match="expected names among .*got .'nobody'"):
        shipped.make_tables(("nobody",))


ROOT = store.repository()
README = (ROOT / "README.md").read_text(encoding="utf-8")
SIDECARS = shipped.sidecars()
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
KEYS = {recipes.key(recipe) for recipe, _ in TABLES.values()}


def test_what_pages_say_of_figures_is_what_stands_beside_the_committed_ones() -> None:
    assert shipped.readme(README) == README, "run `python -m codit.paper.shipped claims`"
    assert shipped.claims_page() == (ROOT / "figures" / "README.md").read_text(encoding="utf-8")


def test_every_committed_figure_is_declared_by_a_notebook_and_every_declared_one_committed() -> (
    None
):
    declared = [name for path in NOTEBOOKS for name in run.declared_figures(path)]
    assert sorted(declared) == sorted(SIDECARS)


@pytest.mark.parametrize("name", SIDECARS)
def test_a_committed_figure_is_of_scale_full_at_a_clean_commit(name: str) -> None:
    record = SIDECARS[name]
    assert record["parameters"]["scale"] == "full"
    assert record["dirty"] is False
    assert re.fullmatch(r"[0-9a-f]{40}", record["commit"])


@pytest.mark.parametrize("name", SIDECARS)
def test_a_committed_figure_is_made_from_today_s_recipes(name: str) -> None:
    parts = [one for group in SIDECARS[name]["results"].values() for one in group]
    assert parts
    studies = {"ResponseStudy", "StudentStudy", "AlignmentStudy", "TokenStudy", "TransferStudy"}
    assert FULL.dev is not None
    known = KEYS | {recipes.key(part) for part in (FULL.pair, FULL.decoding)}
    known |= {recipes.key(replace(FULL.dev, n=n)) for n in (100, FULL.dev.n)}
    known |= {recipes.key(scales.arm(arm, FULL.decoding)) for arm in scales.ARMS}
    known.add(recipes.key(recipes.File(path=str(RESULTS / "throughput.json"))))
    for part in parts:
        assert part["key"] in known, "make the figures again: `make figures`"
        if part["recipe"]["recipe"] in studies:
            assert part["key"] in KEYS


@pytest.mark.parametrize("name", SIDECARS)
def test_a_verdict_agrees_with_the_interval_it_is_read_from(name: str) -> None:
    for claim in SIDECARS[name]["claims"]:
        found = re.match(r"^[^\[]*[+−-][\d.]+ \[([+-][\d.]+), ([+-][\d.]+)\]", claim["ours"])
        if found and claim["source"] != "ours (share)":
            low, high = map(float, found.groups())
            least = -tables.MARGIN if "but for .02" in claim["statement"] else 0.0
            expected = None if low <= least <= high else low > least
            # An end that rounds to the limit may have been on either side of it.
            if least not in (low, high):
                assert claim["holds"] in (expected, None), claim


def test_a_verdict_on_speed_agrees_with_the_goal_and_the_quartiles_beside_it() -> None:
    checked = 0
    for claim in SIDECARS["21_throughput"]["claims"]:
        goal = re.search(r"at most ([\d.]+)(%?) of", claim["statement"])
        found = re.fullmatch(r"[\d.e-]+ \[([\d.e-]+), ([\d.e-]+)\]", claim["ours"])
        if goal and found:
            most = float(goal[1]) / (100 if goal[2] else 1)
            low, high = map(float, found.groups())
            if most not in (low, high):  # an end that was rounded may have been on either side
                assert claim["holds"] is (None if low < most < high else high < most), claim
                checked += 1
    assert checked


def test_the_readme_s_table_counts_the_verdicts_on_what_the_paper_says() -> None:
    rows = shipped.figure_table().splitlines()[2:]
    assert len(rows) == len(shipped.PAPER)
    for row, (said, name, begins) in zip(rows, shipped.PAPER, strict=True):
        claims = [c for c in SIDECARS[name]["claims"] if c["statement"].startswith(begins)]
        assert row.startswith(f"| {said} | ")
        assert all(claim["ours"] in row for claim in claims)
        for holds, word in shipped.WORDS.items():
            n = sum(claim["holds"] is holds for claim in claims)
            assert (f"**{word}** {n} of {len(claims)}" in row) == (n > 0)
        assert all(claim["source"].startswith("CoDIT") for claim in claims)


def test_a_row_of_the_readme_s_table_without_a_claim_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row = ("Nothing", "03_student_sft", "Nobody says this")
    monkeypatch.setattr(shipped, "PAPER", (row,))
    with pytest.raises(ValueError, match="expected a claim of 03_student_sft that begins with"):
        shipped.figure_table()


def test_a_missing_mark_is_an_error() -> None:
    with pytest.raises(ValueError, match="expected `<!-- figures"):
        shipped.readme("# codit")


def test_the_table_of_figures_is_written_between_its_marks_and_the_claims_beside_the_figures(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "figure_table", lambda: "| table |")
    begin, end = shipped.MARKS
    page = empty / "README.md"
    page.write_text(f"above\n{begin}\nOUTDATED\n{end}\nbelow\n", encoding="utf-8")
    (empty / "figures").mkdir()
    record = SIDECARS["03_student_sft"]
    (empty / "figures" / "03_student_sft.json").write_text(json.dumps(record))
    for _ in range(2):
        shipped.write_claims()
        assert page.read_text(encoding="utf-8") == f"above\n{begin}\n| table |\n{end}\nbelow\n"
    claims = (empty / "figures" / "README.md").read_text(encoding="utf-8")
    assert claims.startswith("# Figures and claims\n")
    assert claims.count("| [03](03_student_sft.png) |") == len(record["claims"])
    assert all(
        f"| {claim['statement']} | {claim['source']} |" in claims for claim in record["claims"]
    )
