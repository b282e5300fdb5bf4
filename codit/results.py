"""From a recipe to its result through the store: models, responses, students, answers.

Whatever exists is read, whatever does not is made; a notebook that asks for answers gets its
student trained and its dataset made on the way. Which recipes there are is `codit.experiments`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel

from codit import (
    dataset_file,
    decode,
    pretraining,
    recipes,
    store,
    student,
    synthesis,
    world,
)
from codit.pair import ContrastivePair, load_tokenizer
from codit.recipes import (
    Answers,
    Decoding,
    Evaluation,
    Model,
    Pair,
    Pretraining,
    Synthesis,
    Training,
    WorldPrompts,
)


def model_path(recipe: Model | Pretraining | Training) -> str:
    """Return what `from_pretrained` loads; a model of ours that does not exist yet is made.

    Args:
        recipe: a named model, a base or a student.

    Returns:
        str: a name, or the folder of a model made here.

    Raises:
        ValueError: it cannot be trained as its recipe says; see `pretraining` and `student`.

    Source: ours.
    """
    if isinstance(recipe, Model):
        return recipe.name
    make = make_base if isinstance(recipe, Pretraining) else make_student
    return str(store.get(recipe, make))


def make_base(recipe: Pretraining, folder: Path) -> None:
    """Pre-train a base model on the world's text; see `pretraining.pretrain`.

    Args:
        recipe: which base.
        folder: where model, tokenizer and log go; a training that was killed there goes on.

    Source: ours.
    """
    tokenizer = world.train_tokenizer(recipe.tokenizer, recipe.world)
    texts = world.documents(recipe.world, recipe.seed)
    pretraining.pretrain(recipe, texts, tokenizer, folder)


def make_student(recipe: Training, folder: Path) -> None:
    """Fine-tune `recipe.base` on `recipe.data`; see `student.train`.

    Args:
        recipe: which student; its base and its data are made where they do not exist yet.
        folder: where model, tokenizer and log go; a training that was killed there goes on.

    Source: ours.
    """
    student.train(recipe, dataset(recipe.data), folder, base=model_path(recipe.base))


def dataset(recipe: Synthesis | Answers | recipes.File) -> Dataset:
    """Return the rows that a recipe names; responses that do not exist yet are made.

    Args:
        recipe: a teacher's responses, the world's own answers, or a file of JSON lines.

    Returns:
        Dataset: rows with `messages`, ready for `student.train`.

    Source: ours.
    """
    if isinstance(recipe, Synthesis):
        return responses(recipe)
    if isinstance(recipe, Answers):
        return Dataset.from_list(world.answers(recipe))
    return dataset_file.read(recipe.path)


def responses(recipe: Synthesis) -> Dataset:
    """Return a teacher's responses, made and kept in the store where they do not exist yet.

    Args:
        recipe: pair, prompts and decoding.

    Returns:
        Dataset: as `synthesis.synthesize` returns it.

    Raises:
        ValueError: prompts or pair do not allow it; see `synthesis.synthesize`.

    Source: ours.
    """

    def make(recipe: Synthesis, folder: Path) -> None:
        teacher = load_pair(recipe.pair)
        synthesis.synthesize(recipe, recipe.prompts, folder / "responses.jsonl", model=teacher)

    return dataset_file.read(store.get(recipe, make) / "responses.jsonl")


@functools.lru_cache(maxsize=2)
def load_pair(recipe: Pair) -> ContrastivePair:
    """Return a teacher ready to decode; the last two stay loaded.

    Args:
        recipe: expert and amateur, made where they do not exist yet.

    Returns:
        ContrastivePair: with its default strength and plausibility; `Decoding` overrides them.

    Raises:
        ValueError: the two do not make a pair; see `ContrastivePair.from_pretrained`.

    Source: ours.
    """
    return ContrastivePair.from_pretrained(
        model_path(recipe.expert),
        model_path(recipe.amateur),
        expert_revision=getattr(recipe.expert, "revision", None),
        amateur_revision=getattr(recipe.amateur, "revision", None),
        allow_renamed=recipe.allow_renamed,
        dtype=getattr(recipe.expert, "dtype", "auto"),
    )


def load_model(recipe: Model | Pretraining | Training) -> tuple[PreTrainedModel, Any]:
    """Return one model and its tokenizer.

    Args:
        recipe: a named model, a base or a student, made where it does not exist yet.

    Returns:
        (PreTrainedModel, PreTrainedTokenizerBase): in the dtype of the checkpoint.

    Source: ours.
    """
    path = model_path(recipe)
    revision = getattr(recipe, "revision", None)
    model = AutoModelForCausalLM.from_pretrained(path, revision=revision, dtype="auto")
    return model, load_tokenizer(path, revision=revision)


def answers(recipe: Evaluation) -> pd.DataFrame:
    """Return a model's answers to held-out prompts with their verdicts, one row a prompt.

    Args:
        recipe: model, prompts of the world and decoding.

    Returns:
        DataFrame: id, family, response, tokens, is_completed, strict, loose, correct, format,
        repeats, held, score; in the order of the prompts.

    Source: ours.
    """

    def make(recipe: Evaluation, folder: Path) -> None:
        model, tokenizer = load_model(recipe.model)
        given = answered(model, tokenizer, recipe.prompts, recipe.decoding)
        table = verdicts(given, world.prompts(recipe.prompts))
        table.to_json(folder / "answers.jsonl", orient="records", lines=True)

    return pd.read_json(
        store.get(recipe, make) / "answers.jsonl", orient="records", lines=True, dtype=False
    )


def answered(
    model: PreTrainedModel, tokenizer: Any, recipe: WorldPrompts, decoding: Decoding
) -> list[dict[str, Any]]:
    """Return a model's answers to prompts.

    Args:
        model: a causal LM or a pair.
        tokenizer: its own, with a chat template.
        recipe: which prompts.
        decoding: how tokens are drawn.

    Returns:
        list[dict]: rows of id, response, is_completed and tokens (their number, the stop token
        included), in the order of the prompts.

    Raises:
        ValueError: see `decode.generate`.

    Source: ours.
    """
    asked = world.prompts(recipe)
    chats = [[{"role": "user", "content": row["instruction"]}] for row in asked]
    made = decode.generate(model, tokenizer, chats, decoding, ids=[row["id"] for row in asked])
    return [
        {
            "id": one.id,
            "response": one.text,
            "is_completed": one.is_completed,
            "tokens": len(one.token_ids),
        }
        for one in made
    ]


def verdicts(given: Iterable[Any], asked: list[dict[str, Any]]) -> pd.DataFrame:
    """Join responses with the verifier's verdicts on them.

    Args:
        given: rows with id, response, is_completed, and tokens or score (a list, one per token).
        asked: rows of `world.prompts`, which hold what to check.

    Returns:
        DataFrame: id, family, response, tokens, is_completed and the fields of `world.Verdict`, in
        the order of `given`.

    Raises:
        KeyError: a response to a prompt that is not among `asked`.

    Source: ours.
    """
    by_id = {row["id"]: row for row in asked}
    table = []
    for row in given:
        prompt = by_id[row["id"]]
        verdict = world.verify(row["response"], prompt, is_completed=row["is_completed"])
        tokens = row["tokens"] if "tokens" in row else len(row["score"])
        table.append({
            "id": row["id"], "family": prompt["family"], "response": row["response"],
            "tokens": tokens, "is_completed": row["is_completed"], **vars(verdict),
        })  # fmt: skip
    return pd.DataFrame(table)
