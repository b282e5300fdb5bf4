"""The checkpoints that ship with the repository: made by recipes, evaluated, described.

`python -m codit.embedded` trains them again (about 20 minutes of one CPU core each for the bases)
and puts them into `data/models/`, where the store finds them by their recipe's key.
"""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import torch
import tyro
from huggingface_hub import ModelCard, ModelCardData
from transformers import AutoModelForCausalLM

from codit import (
    comparison,
    evidence,
    experiments,
    judge_recipes,
    results,
    store,
    student,
    world,
    world_judge,
    world_lessons,
)
from codit.judge_recipes import WorldJudge
from codit.pretraining import encoded
from codit.recipes import Model, Pretraining, Training, WorldPrompts
from codit.vocabulary import load_tokenizer

HELD_OUT_TEXT = 1_000_000  # seed of documents that no recipe trains on (ours)
DOCUMENTS = 100
PROMPTS = 100
GREEDY_TOKENS = 96
JUDGED = 200


Recipe: TypeAlias = Pretraining | Training | WorldJudge


def models() -> dict[str, Recipe]:
    """Return the recipe of every embedded model by the name of its folder.

    Returns:
        dict: in an order in which each base comes before what is trained from it.

    Source: ours.
    """
    bases = experiments.bases()
    base = bases["amateur"]
    experts = {"expert": experiments.expert(base), "expert-b": experiments.second_expert(base)}
    judges = dict(zip(("judge", "judge-b"), judge_recipes.JUDGES, strict=True))
    return {**bases, **experts, **judges}


def folder(name: str) -> Path:
    """Return where an embedded model lies, whether it has been made or not.

    Args:
        name: one of `models`.

    Returns:
        Path: absolute, `data/models/NAME` of the checkout.

    Raises:
        ValueError: unknown name.

    Source: ours.
    """
    if name not in models():
        raise ValueError(f"expected one of {list(models())}; got {name!r}. Name an embedded model.")
    return store.repository() / "data" / "models" / name


def embed(name: str, *, fresh: bool = False) -> Path:
    """Make an embedded model, evaluate it, and put it into `data/models/`.

    Args:
        name: one of `models`.
        fresh: train it even where a result of its recipe exists.

    Returns:
        Path: its folder: model, tokenizer, training log, `evaluation.json`, model card, manifest.

    Raises:
        ValueError: unknown name.

    Source: ours.
    """
    target = folder(name)
    recipe = models()[name]
    makers: dict[type, Any] = {
        Pretraining: results.make_base,
        Training: results.make_student,
        WorldJudge: world_judge.make,
    }
    make = makers[type(recipe)]
    staged = target.with_name(f".{name}.new")
    shutil.rmtree(staged, ignore_errors=True)  # of a killed try, which the store might find
    made = store.get(recipe, make, fresh=fresh)
    if made == target:
        return target
    shutil.copytree(made, staged, ignore=shutil.ignore_patterns(store.MANIFEST))
    store.write_json(staged / "evaluation.json", evaluate(staged, recipe))
    card(name, recipe, staged).save(staged / "README.md")
    seconds = store.read_manifest(made).get("seconds")
    store.write_manifest(staged, recipe, seconds=seconds)
    shutil.rmtree(target, ignore_errors=True)
    staged.rename(target)
    return target


def evaluate(folder: Path, recipe: Recipe) -> dict[str, float]:
    """Return what is recorded of an embedded model, so that a test can tell that it is the same.

    Args:
        folder: model and tokenizer.
        recipe: a base is measured on text, a fine-tuned model on dev prompts too, a judge on
            graded responses to dev prompts and on pairs of them.

    Returns:
        dict: `text_loss` (nats per token of held-out documents); for a fine-tuned model `strict`,
        `correct` and `is_completed` of greedy answers to dev prompts (shares). For a judge
        `equal` (share of scores that are the verifier's), `spearman`, `verdicts` (share of pairs
        on which it says what the verifier's scores say), `parses` (share of all replies).

    Source: ours.
    """
    if isinstance(recipe, WorldJudge):
        return _judged(folder, recipe)
    base = recipe.base if isinstance(recipe, Training) else recipe
    assert isinstance(base, Pretraining)
    found = {"text_loss": round(text_loss(folder, base), 5)}
    if isinstance(recipe, Training):
        prompts = WorldPrompts(world=base.world, split="dev", n=PROMPTS)
        model, tokenizer = results.load_model(Model(name=str(folder)))
        greedy = comparison.greedy_decoding(GREEDY_TOKENS)
        asked = world.prompts(prompts)
        table = student.evaluate(model, tokenizer, asked, results.verdict, greedy)
        found |= {m: float(table[m].mean()) for m in ("strict", "correct", "is_completed")}
    return found


def _judged(folder: Path, recipe: WorldJudge) -> dict[str, float]:
    prompts = WorldPrompts(world=recipe.prompts.world, split="dev", n=JUDGED)
    scores = world_judge.judged(folder, world_lessons.graded(prompts))
    pairs = world_judge.judged(folder, world_lessons.compared(prompts))
    found = world_judge.reliability(scores)
    replies = [*scores["said"], *pairs["said"]]
    return {
        "equal": found["equal"].estimate,
        "spearman": round(found["spearman"].estimate, 4),
        "verdicts": float((pairs["said"] == pairs["value"]).mean()),
        "parses": sum(value is not None for value in replies) / len(replies),
    }


@torch.no_grad()
def text_loss(folder: Path, recipe: Pretraining) -> float:
    """Return a model's mean loss on held-out documents of its world, in nats per token.

    Args:
        folder: model and tokenizer.
        recipe: whose world speaks.

    Returns:
        float: mean over the tokens of 100 documents, each read alone.

    Source: ours.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = load_tokenizer(str(folder))
    total, count = 0.0, 0
    for text in itertools.islice(world.documents(recipe.world, HELD_OUT_TEXT), DOCUMENTS):
        (ids,) = encoded([text], tokenizer)
        rows = torch.tensor([ids])
        total += model(input_ids=rows, labels=rows).loss.item() * (len(ids) - 1)
        count += len(ids) - 1
    return total / count


def card(name: str, recipe: Recipe, folder: Path) -> ModelCard:
    """Return the model card of an embedded model.

    Args:
        name: of its folder.
        recipe: that made it.
        folder: holds `training_log.json` and `evaluation.json`.

    Returns:
        ModelCard: with metadata; to be saved as README.md.

    Source: ours.
    """
    log = json.loads((folder / "training_log.json").read_text(encoding="utf-8"))
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    data = ModelCardData(language="en", license="apache-2.0", pipeline_tag="text-generation")
    measures = "\n".join(f"| {measure} | {value:g} |" for measure, value in found.items())
    return ModelCard(
        f"---\n{data.to_yaml()}\n---\n\n# codit micro world: {name}\n\n"
        "An embedded checkpoint of the codit repository: an instrument for measuring contrastive\n"
        "decoding offline, of no use outside its artificial world (`data/README.md`).\n\n"
        f"- recipe: `{evidence.recipe_text(recipe)}`\n"
        f"- parameters: {log.get('parameters', 0):,}, float32\n"
        "- trained on: text made by `codit/world/`; nothing else\n"
        "- licence: Apache-2.0\n\n"
        "| held-out measure | value |\n| --- | --- |\n" + measures + "\n"
    )


def main(
    only: Annotated[tuple[str, ...], tyro.conf.Positional] = (), *, fresh: bool = False
) -> None:
    """Train the embedded models.

    Args:
        only: names; none means all.
        fresh: train them even where a result of the same recipe exists.

    Raises:
        ValueError: unknown name.

    Source: ours.
    """
    for name in only or models():
        print(f"{name}: {embed(name, fresh=fresh)}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
