"""A scale's values and the way from a recipe to its result: models, responses, students, answers.

`micro` is the embedded default (offline, CPU, minutes), `full` the micro world with every seed.
`laptop` and `paper` name Hub pairs. They differ in values only; no function asks which one it is.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedModel

from codit import decode, pretraining, recipes, store, student, world
from codit import synthesis as synthesiser
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

GREEDY = Decoding(strength=0, plausibility=0, temperature=0, max_new_tokens=96)  # students (ours)
ARMS = ("direct", "truncated", "codit")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Every value that an experiment needs, for one size of experiment.

    Args:
        pair: the teacher.
        prompts: what the teacher answers.
        tests: name of a held-out set -> its prompts; nothing is chosen on these.
        decoding: CoDIT's decoding; the other arms change strength and plausibility only.
        students: base models that are trained.
        training: how; `base` and `data` are filled in per student and arm.
        evaluations: what scores a response; "verifier" needs the micro world.
        seeds: how often an experiment is repeated; a seed moves synthesis and training alike.
        example: an instruction to look at token by token.
    """

    pair: Pair
    prompts: WorldPrompts | recipes.File
    tests: tuple[tuple[str, WorldPrompts], ...]
    decoding: Decoding
    students: tuple[Model | Pretraining, ...]
    training: dict[str, Any]
    evaluations: tuple[str, ...]
    seeds: tuple[int, ...]
    example: str


def amateur(seed: int = 0) -> Pretraining:
    """Return the recipe of the micro teacher's amateur, which is also the first student base."""
    return Pretraining(architecture="qwen3", tokenizer="a", seed=seed)


def expert(base: Pretraining) -> Training:
    """Return the recipe of the micro teacher's expert: half ideal, half careless answers (ours).

    Real post-trained models keep pre-trained behaviour; trained on ideal answers alone, nothing
    would be left to suppress.
    """
    return Training(base=base, data=Answers(prompts=WorldPrompts(n=6000, seed=1)), **MICRO_TRAINING)


MICRO_TRAINING: dict[str, Any] = {  # all ours
    "learning_rate": 1e-3,
    "epochs": 3.0,
    "batch": 64,
    "max_length": 512,
    "warmup": 0.03,
}


def scales() -> dict[str, Scale]:
    """Return every scale by name."""
    base = amateur()
    micro = Scale(
        pair=Pair(expert=expert(base), amateur=base),
        prompts=WorldPrompts(n=1500, seed=2),
        tests=(
            ("test", WorldPrompts(split="test", n=400)),
            ("families", WorldPrompts(split="families", n=200)),
        ),
        decoding=Decoding(plausibility=0.6, max_new_tokens=96),
        students=(base,),
        training=MICRO_TRAINING,
        evaluations=("verifier",),
        seeds=(0,),
        example="Which pet does Puto have? Begin with the word indeed. Say it twice.",
    )
    return {"micro": micro}


def scale(name: str, **changes: Any) -> Scale:
    """Return a scale, with the values that a reader changed.

    Args:
        name: "micro", "full", "laptop" or "paper".
        changes: fields of `Scale`, of its decoding (`plausibility`, `strength`, ...), or
            `n_prompts` and `n_test`; None leaves the scale's value.

    Raises:
        ValueError: unknown scale or field.
    """
    known = scales()
    if name not in known:
        raise ValueError(f"scale must be one of {list(known)}; got {name!r}. Name one of them.")
    chosen = known[name]
    changes = {k: v for k, v in changes.items() if v is not None}
    decoding = {k: changes.pop(k) for k in tuple(changes) if k in _names(Decoding)}
    chosen = replace(chosen, decoding=replace(chosen.decoding, **decoding))
    if "n_prompts" in changes:
        chosen = replace(chosen, prompts=replace(chosen.prompts, n=changes.pop("n_prompts")))
    if "n_test" in changes:
        n = changes.pop("n_test")
        chosen = replace(chosen, tests=tuple((k, replace(p, n=n)) for k, p in chosen.tests))
    unknown = set(changes) - _names(Scale)
    if unknown:
        raise ValueError(f"a scale has no {sorted(unknown)}; it has {sorted(_names(Scale))}.")
    return replace(chosen, **changes)


def _names(kind: type) -> set[str]:
    return {f.name for f in fields(kind)}


def arm(name: str, decoding: Decoding) -> Decoding:
    """Return the decoding of an arm: everything as in `decoding` but strength and plausibility.

    direct: the expert alone. truncated: the expert within CoDIT's plausible set, which isolates
    truncation (min-p) from contrast. codit: as given.

    Raises:
        ValueError: unknown arm.
    """
    arms = {
        "direct": replace(decoding, strength=0.0, plausibility=0.0),
        "truncated": replace(decoding, strength=0.0),
        "codit": decoding,
    }
    if name not in arms:
        raise ValueError(f"arm must be one of {list(arms)}; got {name!r}. Name one of them.")
    return arms[name]


def synthesis(chosen: Scale, name: str, seed: int = 0) -> Synthesis:
    """Return the recipe of an arm's dataset."""
    decoding = replace(arm(name, chosen.decoding), seed=seed)
    return Synthesis(pair=chosen.pair, prompts=chosen.prompts, decoding=decoding)


def training(chosen: Scale, base: Model | Pretraining, name: str, seed: int = 0) -> Training:
    """Return the recipe of a student: a base trained on an arm's dataset."""
    return Training(base=base, data=synthesis(chosen, name, seed), seed=seed, **chosen.training)


def evaluations(chosen: Scale, model: Model | Pretraining | Training) -> dict[str, Evaluation]:
    """Return the recipes of a model's answers to every held-out set, greedily decoded."""
    greedy = replace(GREEDY, max_new_tokens=chosen.decoding.max_new_tokens)
    return {k: Evaluation(model=model, prompts=p, decoding=greedy) for k, p in chosen.tests}


def model_path(recipe: Model | Pretraining | Training) -> str:
    """Return what `from_pretrained` loads: a Hub name, or the folder of a model made here."""
    if isinstance(recipe, Model):
        return recipe.name
    make = make_base if isinstance(recipe, Pretraining) else make_student
    return str(store.get(recipe, make))


def make_base(recipe: Pretraining, folder: Path) -> None:
    """Pre-train a base model into `folder`; see `pretraining.pretrain`."""
    tokenizer = world.train_tokenizer(recipe.tokenizer, recipe.world)
    texts = world.documents(recipe.world, recipe.seed)
    pretraining.pretrain(recipe, texts, tokenizer, folder)


def make_student(recipe: Training, folder: Path) -> None:
    """Fine-tune `recipe.base` on `recipe.data` into `folder`; see `student.train`."""
    student.train(recipe, dataset(recipe.data), folder, base=model_path(recipe.base))


def dataset(recipe: Synthesis | Answers | recipes.File) -> Dataset:
    """Return the rows that a recipe names; responses that do not exist yet are made."""
    if isinstance(recipe, Synthesis):
        return responses(recipe)
    if isinstance(recipe, Answers):
        return Dataset.from_list(world.answers(recipe))
    return Dataset.from_json(recipe.path)


def responses(recipe: Synthesis) -> Dataset:
    """Return a teacher's responses, made and kept in the store where they do not exist yet."""

    def make(recipe: Synthesis, folder: Path) -> None:
        teacher = load_pair(recipe.pair)
        synthesiser.synthesize(
            recipe, rows(recipe.prompts), folder / "responses.jsonl", model=teacher
        )

    return Dataset.from_json(str(store.get(recipe, make) / "responses.jsonl"))


def rows(recipe: WorldPrompts | recipes.File) -> Any:
    """Return prompts as rows, or the path of a file of them."""
    return world.prompts(recipe) if isinstance(recipe, WorldPrompts) else recipe.path


@functools.lru_cache(maxsize=2)
def load_pair(recipe: Pair) -> ContrastivePair:
    """Return a teacher ready to decode."""
    return ContrastivePair.from_pretrained(
        model_path(recipe.expert),
        model_path(recipe.amateur),
        expert_revision=getattr(recipe.expert, "revision", None),
        amateur_revision=getattr(recipe.amateur, "revision", None),
        dtype=getattr(recipe.expert, "dtype", "auto"),
    )


def load_model(recipe: Model | Pretraining | Training) -> tuple[PreTrainedModel, Any]:
    """Return one model and its tokenizer."""
    path = model_path(recipe)
    revision = getattr(recipe, "revision", None)
    model = AutoModelForCausalLM.from_pretrained(path, revision=revision, dtype="auto")
    return model, load_tokenizer(path, revision=revision)


def answers(recipe: Evaluation) -> pd.DataFrame:
    """Return a model's answers to held-out prompts with their verdicts, one row a prompt.

    Returns:
        DataFrame: id, family, response, tokens, is_completed, strict, loose, correct, format,
        repeats, held, score.
    """

    def make(recipe: Evaluation, folder: Path) -> None:
        model, tokenizer = load_model(recipe.model)
        given = answered(model, tokenizer, recipe.prompts, recipe.decoding)
        table = verdicts(given, world.prompts(recipe.prompts))
        table.to_json(folder / "answers.jsonl", orient="records", lines=True)

    return pd.read_json(store.get(recipe, make) / "answers.jsonl", orient="records", lines=True)


def answered(
    model: PreTrainedModel, tokenizer: Any, prompts: WorldPrompts, decoding: Decoding
) -> list[dict[str, Any]]:
    """Return a model's answers to prompts: id, response, is_completed, tokens."""
    asked = world.prompts(prompts)
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


def verdicts(given: Iterable[Any], prompts: list[dict[str, Any]]) -> pd.DataFrame:
    """Join responses with the verifier's verdicts on them.

    Args:
        given: rows with id, response, is_completed, and tokens or score (a list, one per token).
        prompts: the world's prompts, which hold what to check.

    Returns:
        DataFrame: id, family, response, tokens, is_completed and the fields of `world.Verdict`.

    Raises:
        KeyError: a response to a prompt that is not among `prompts`.
    """
    by_id = {p["id"]: p for p in prompts}
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
