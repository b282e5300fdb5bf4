"""From a recipe to its result through the store: models, students, datasets, and their verdicts.

Whatever exists is read, whatever does not is made: who asks for a student gets its dataset made on
the way, and a study that was killed goes on. Which recipes there are is `codit.paper.scales`.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset
from transformers import PreTrainedModel

from codit import chat_vector, contrastive_tuning, recipes, student, synthesis, world
from codit.dataset import output
from codit.engine.models import read_model
from codit.pair import ContrastivePair, TwoViews, load_tokenizer
from codit.paper import arms, real, store
from codit.paper.arms import JudgedBest, ResponseStudy, StudentStudy
from codit.recipes import Addition, Evaluation, Model, Pair, Synthesis, Training, Tuning, View
from codit.world import pretraining
from codit.world.recipes import Answers, BestOf, Pretraining, Shuffled, WorldPrompts

# Of a verdict, what tables over many models keep: text and shares follow from the prompts.
KEPT = (
    "strict", "loose", "correct", "format", "repeats", "obeyed", "score", "tokens", "is_completed"
)  # fmt: skip
QUIET_BELOW = 2000  # prompts: seconds of work, which hundreds of bars would hide

_asked = functools.lru_cache(maxsize=8)(world.prompts)


def study(recipe: ResponseStudy | StudentStudy) -> pd.DataFrame:
    """Return every verdict of a study, one row a response or answer, without the texts.

    Columns: arm, role, plausibility, strength, n, seed, id, those of `KEPT`, and both; of students
    also student and split. ValueError: prompts that the verifier does not know.
    """
    return readable(store.table(recipe, verdict_table, "verdicts"))


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """Return kept verdicts with `both`, right and every instruction obeyed, and students' names."""
    if "student" in table:  # a kept table may call them by architecture and tokenizer
        table = table.assign(student=table["student"].replace(arms.STUDENTS))
    return table.assign(both=table["strict"] & table["correct"])


def verdict_table(recipe: ResponseStudy | StudentStudy) -> pd.DataFrame:
    """Make what `study` returns."""
    parts = _students if isinstance(recipe, StudentStudy) else _responses
    return compact(parts(recipe))


def compact(parts: Iterable[tuple[dict[str, Any], pd.DataFrame]]) -> pd.DataFrame:
    """Join tables, each with the columns that tell it from the others, in small types.

    Of verdicts that is about a byte and a half per row on disk.
    """
    table = pd.concat([t.assign(**told) for told, t in parts], ignore_index=True)
    small = {"obeyed": "int8", "score": "int8", "tokens": "int16", "seed": "int16"}
    return table.astype({n: kind for n, kind in small.items() if n in table})


def model_path(recipe: Model | Pretraining | Training | Addition | arms.Packaged) -> str:
    """Return what `from_pretrained` loads; a model of ours that does not exist yet is made.

    That is a name, or the folder of a base, of a student, of a model with a chat vector added.
    """
    if isinstance(recipe, Model):
        return recipe.name
    if isinstance(recipe, Addition):
        return str(store.get(recipe, _add))
    if isinstance(recipe, arms.Packaged):
        return real.model_path(recipe)
    make = make_base if isinstance(recipe, Pretraining) else make_student
    return str(store.get(recipe, make))


def load_model(
    recipe: Model | Pretraining | Training | Addition | arms.Packaged,
) -> tuple[PreTrainedModel, Any]:
    """Return one model, in the dtype of its checkpoint, and its tokenizer."""
    path = model_path(recipe)
    revision = getattr(recipe, "revision", None)
    model = read_model(path, revision=revision, dtype="auto")
    return model, load_tokenizer(path, revision=revision)


def views_of(recipe: View, asked: Sequence[Mapping[str, Any]]) -> tuple[TwoViews, Any]:
    """Return a model under two views, for these rows of `world.prompts`, and its tokenizer.

    What a wording changes is their constraints; the task stays.
    """
    model, tokenizer = _loaded(recipe.base)
    if recipe.prefix is not None:
        folder = store.get(recipe.prefix, make_prefix)
        how = {"second_alone": recipe.alone}
        return contrastive_tuning.two_views(model, tokenizer, folder, **how), tokenizer
    chats = [[{"role": "user", "content": row["instruction"]}] for row in asked]
    told = [[world.Constraint(**one).text() for one in row["constraints"]] for row in asked]
    views = contrastive_tuning.instructive(
        model,
        tokenizer,
        chats,
        recipe.wording,
        definitions=[" ".join(texts) for texts in told],
        seed=recipe.seed,
    )
    return views, tokenizer


_loaded = functools.lru_cache(maxsize=1)(load_model)  # one after another under many views


@functools.lru_cache(maxsize=2)
def load_pair(recipe: Pair) -> ContrastivePair:
    """Return a teacher ready to decode; the last two stay loaded.

    Its strength and plausibility are the defaults, which a `Decoding` overrides. ValueError: it is
    a model without a pair.
    """
    if recipe.amateur is None:
        raise ValueError(
            "expected a pair; got one model without its amateur, which has nothing to contrast "
            "with. Use a scale that has a pair."
        )
    return ContrastivePair.from_pretrained(
        model_path(recipe.expert),
        model_path(recipe.amateur),
        expert_revision=getattr(recipe.expert, "revision", None),
        amateur_revision=getattr(recipe.amateur, "revision", None),
        allow_renamed=recipe.allow_renamed,
        dtype=getattr(recipe.expert, "dtype", "auto"),
    )


def dataset(
    recipe: Synthesis | BestOf | JudgedBest | Answers | Shuffled | recipes.File,
) -> Dataset:
    """Return the rows that a recipe names, ready for `student.train`; what is missing is made.

    FileNotFoundError: responses that a judge chooses, and has not.
    """
    if isinstance(recipe, Synthesis):
        return responses(recipe)
    if isinstance(recipe, BestOf):
        return Dataset.from_list(best_of(recipe))
    if isinstance(recipe, JudgedBest):
        if (folder := store.find(recipe)) is None:
            raise FileNotFoundError(
                "expected responses that a judge has chosen; it has not. Call judges.judged_best."
            )
        return output.read(folder / "responses.jsonl")
    if isinstance(recipe, Answers):
        return Dataset.from_list(world.answers(recipe))
    if isinstance(recipe, Shuffled):
        return Dataset.from_list(shuffled(recipe))
    return output.read(recipe.path)


def responses(recipe: Synthesis) -> Dataset:
    """Return a teacher's responses, made and kept in the store where they do not exist yet."""

    def make(recipe: Synthesis, folder: Path) -> None:
        teacher = load_pair(recipe.pair)
        prompts = recipe.prompts
        asked = world.prompts(prompts) if isinstance(prompts, WorldPrompts) else prompts
        synthesis.write(recipe, asked, folder / "responses.jsonl", model=teacher)

    return output.read(store.get(recipe, make) / "responses.jsonl")


def best_of(recipe: BestOf) -> list[dict[str, Any]]:
    """Return, for each prompt, that of the first n responses which the verifier scores highest.

    Of equal scores the first sample. ValueError: n is below 1 or above the samples of the pool, or
    its prompts are not the world's.

    Source: Best-of-N is a baseline of CoDIT (arXiv 2604.13538); N, judge and ties: ours.
    """
    if not 1 <= recipe.n <= recipe.pool.n_samples:
        raise ValueError(
            f"expected n from 1 to the {recipe.pool.n_samples} samples of the pool; got "
            f"{recipe.n}. Raise n_samples or lower n."
        )
    asked = {row["id"]: row for row in _checkable(recipe.pool.prompts)}
    competing: dict[str, list[dict[str, Any]]] = {}
    for row in responses(recipe.pool):
        if row.get("sample", 0) < recipe.n:
            competing.setdefault(row["id"], []).append(row)

    def score(row: dict[str, Any]) -> int:
        found = world.verify(row["response"], asked[row["id"]], is_completed=row["is_completed"])
        return found.score

    return [max(rows, key=score) for rows in competing.values()]


def shuffled(recipe: Shuffled) -> list[dict[str, Any]]:
    """Return prompts with the answers to others of them: a training that is related to nothing."""
    rows = world.answers(recipe.answers)
    dealt = [row["response"] for row in rows]
    random.Random(f"shuffled {recipe.seed}").shuffle(dealt)
    return [
        {
            **row,
            "response": text,
            "messages": [row["messages"][0], {**row["messages"][1], "content": text}],
        }
        for row, text in zip(rows, dealt, strict=True)
    ]


def answers(recipe: Evaluation) -> pd.DataFrame:
    """Return a model's answers to held-out prompts with their verdicts, one row a prompt, in order.

    Columns: id, response, is_completed, tokens, error and those of `verdict`. A prompt that could
    not be answered has its error and no verdict.
    """

    def make(recipe: Evaluation, folder: Path) -> None:
        asked = _asked(recipe.prompts)
        views = isinstance(recipe.model, View)
        model, tokenizer = views_of(recipe.model, asked) if views else load_model(recipe.model)
        table = student.evaluate(
            model, tokenizer, asked, verdict, recipe.decoding, progress=len(asked) > QUIET_BELOW
        ).rename(columns={"n_tokens": "tokens"})
        table.to_json(folder / "answers.jsonl", orient="records", lines=True)

    return pd.read_json(
        store.get(recipe, make) / "answers.jsonl", orient="records", lines=True, dtype=False
    )


def verdict(text: str, prompt: Mapping[str, Any], *, is_completed: bool = True) -> dict[str, Any]:
    """Return the world's verdict on a response to a row of `world.prompts`.

    That is family, the fields of `world.Verdict`, and obeyed: bit k is set iff constraint k of the
    prompt holds literally.
    """
    row = dict(prompt)
    asked = [world.Constraint(c["kind"], c["value"]) for c in row["constraints"]]
    obeyed = sum(world.obeys(text, c) << k for k, c in enumerate(asked))
    found = world.verify(text, row, is_completed=is_completed)
    return {"family": row["family"], **vars(found), "obeyed": obeyed}


def verdicts(given: Iterable[Any], asked: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the responses of a dataset with the verifier's verdicts on them, in its order.

    `given` has id, response, is_completed, and score where known (a list, one per token); `asked`
    are rows of `world.prompts`. Columns: id, response, tokens, is_completed and those of `verdict`.
    """
    by_id = {row["id"]: row for row in asked}
    return pd.DataFrame(
        {
            "id": row["id"],
            "response": row["response"],
            "tokens": len(row.get("score") or row["response"].split()),
            "is_completed": row["is_completed"],
            **verdict(row["response"], by_id[row["id"]], is_completed=row["is_completed"]),
        }
        for row in given
    )


def make_base(recipe: Pretraining, folder: Path) -> None:
    """Pre-train a base model on the world's text; a training that was killed there goes on."""
    tokenizer = world.train_tokenizer(recipe.tokenizer, recipe.world)
    texts = world.documents(recipe.world, recipe.seed)
    pretraining.pretrain(recipe, texts, tokenizer, folder)


def make_student(recipe: Training, folder: Path) -> None:
    """Fine-tune `recipe.base` on `recipe.data`; a training that was killed there goes on."""
    student.train(recipe, dataset(recipe.data), folder, base=model_path(recipe.base))


def make_prefix(recipe: Tuning, folder: Path) -> None:
    """Tune a soft prefix of `recipe.base`; a tuning that was killed there goes on."""
    rows = dataset(recipe.data)
    contrastive_tuning.tune(
        recipe, rows, folder, base=model_path(recipe.base), rows_per_pass=recipe.batch
    )


def _add(recipe: Addition, folder: Path) -> None:
    vector = (model_path(recipe.vector.expert), model_path(recipe.vector.amateur))
    chat_vector.add(model_path(recipe.target), vector, folder, scale=recipe.scale)


def _checkable(prompts: Any) -> list[dict[str, Any]]:
    """Return the rows of prompts that the verifier knows, or raise ValueError."""
    if not isinstance(prompts, WorldPrompts):
        raise ValueError(
            f"the verifier knows the world's prompts only; got {type(prompts).__name__}. "
            "Use a scale of the micro world: 'micro' or 'full'."
        )
    return _asked(prompts)


def _responses(recipe: Any) -> Iterable[tuple[dict[str, Any], pd.DataFrame]]:
    asked = _checkable(recipe.prompts)
    for arm in recipe.arms:
        for seed in recipe.seeds:
            table = verdicts(dataset(arms.data(recipe, arm, seed)), asked)
            yield {**arms.columns(arm), "seed": seed}, table[["id", *KEPT]]


def _students(recipe: Any) -> Iterable[tuple[dict[str, Any], pd.DataFrame]]:
    for told, evaluation in arms.evaluations(recipe):
        yield told, answers(evaluation)[["id", *KEPT]]
