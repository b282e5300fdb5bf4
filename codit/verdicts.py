"""What the world's verifier says of responses and of students' answers, as tables.

Whatever exists is read from the store and the rest is made, so a study that was killed goes on.
Which studies there are is `codit.studies`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from codit import comparison, store, student, world
from codit.comparison import ResponseStudy, StudentStudy
from codit.files import replacing
from codit.recipes import Evaluation, WorldPrompts
from codit.results import dataset, load_model

# Of a verdict, what tables over many models keep: text and shares follow from the prompts.
KEPT = (
    "strict", "loose", "correct", "format", "repeats", "obeyed", "score", "tokens", "is_completed"
)  # fmt: skip
TABLE = "verdicts.parquet"
QUIET_BELOW = 2000  # prompts: seconds of work, which hundreds of bars would hide (ours)

_asked = functools.lru_cache(maxsize=8)(world.prompts)


def answers(recipe: Evaluation) -> pd.DataFrame:
    """Return a model's answers to held-out prompts with their verdicts, one row a prompt.

    Args:
        recipe: model, prompts of the world and decoding.

    Returns:
        DataFrame: id, response, is_completed, tokens, error and the columns of `verdict`; in the
        order of the prompts. A prompt that could not be answered has its error and no verdict.

    Source: ours.
    """

    def make(recipe: Evaluation, folder: Path) -> None:
        model, tokenizer = load_model(recipe.model)
        asked = _asked(recipe.prompts)
        table = student.evaluate(
            model, tokenizer, asked, verdict, recipe.decoding, progress=len(asked) > QUIET_BELOW
        ).rename(columns={"n_tokens": "tokens"})
        table.to_json(folder / "answers.jsonl", orient="records", lines=True)

    return pd.read_json(
        store.get(recipe, make) / "answers.jsonl", orient="records", lines=True, dtype=False
    )


def verdict(text: str, prompt: Mapping[str, Any], *, is_completed: bool = True) -> dict[str, Any]:
    """Return the world's verdict on a response as a row of a table.

    Args:
        text: the response.
        prompt: a row of `world.prompts`.
        is_completed: False where the response was cut.

    Returns:
        dict: family, the fields of `world.Verdict`, and obeyed: bit k is set iff constraint k of
        the prompt holds literally.

    Source: ours.
    """
    row = dict(prompt)
    asked = [world.Constraint(c["kind"], c["value"]) for c in row["constraints"]]
    obeyed = sum(world.obeys(text, c) << k for k, c in enumerate(asked))
    found = world.verify(text, row, is_completed=is_completed)
    return {"family": row["family"], **vars(found), "obeyed": obeyed}


def verdicts(given: Iterable[Any], asked: list[dict[str, Any]]) -> pd.DataFrame:
    """Join the responses of a dataset with the verifier's verdicts on them.

    Args:
        given: rows with id, response, is_completed, and score where known (a list, one per token).
        asked: rows of `world.prompts`, which hold what to check.

    Returns:
        DataFrame: id, response, tokens, is_completed and the columns of `verdict`, in the order of
        `given`.

    Raises:
        KeyError: a response to a prompt that is not among `asked`.

    Source: ours.
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


def study(recipe: ResponseStudy | StudentStudy) -> pd.DataFrame:
    """Return every verdict of a study, one row a response or answer.

    Args:
        recipe: arms, seeds and, of students, bases and held-out sets. Whatever exists of it is
            read, the rest made: a study that was killed goes on.

    Returns:
        DataFrame: arm, role, plausibility, strength, n, seed, id and the columns `KEPT`; of
        students also student and split. Sorted by those, without the texts.

    Raises:
        ValueError: prompts that the verifier does not know.

    Source: ours.
    """

    def make(recipe: ResponseStudy | StudentStudy, folder: Path) -> None:
        parts = _students if isinstance(recipe, StudentStudy) else _responses
        table = pd.concat([t.assign(**told) for told, t in parts(recipe)], ignore_index=True)
        write(table, folder / TABLE)

    return read(store.get(recipe, make) / TABLE)


def write(table: pd.DataFrame, path: Path) -> None:
    """Write a table of verdicts in little space: about a byte and a half per row.

    Args:
        table: the columns `KEPT`, and texts and numbers that tell rows apart.
        path: a Parquet file, replaced at once.

    Source: ours.
    """
    small = {"obeyed": "int8", "score": "int8", "tokens": "int16", "seed": "int16"}
    write_table(table.astype({n: kind for n, kind in small.items() if n in table}), path)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write any table in little space; `read` reads it.

    Args:
        table: its texts become categories.
        path: a Parquet file, replaced at once.

    Source: ours.
    """
    texts = [c for c in table if table[c].dtype in ("object", "str")]
    with replacing(path) as stream:
        kinds = dict.fromkeys(texts, "category")
        table.astype(kinds).to_parquet(stream, index=False, compression="zstd")


def read(path: Path) -> pd.DataFrame:
    """Return a table that `write` wrote.

    Args:
        path: a Parquet file.

    Returns:
        DataFrame: with texts as text.

    Source: ours.
    """
    found = pd.read_parquet(path)
    texts = [c for c in found if found[c].dtype == "category"]
    return found.astype(dict.fromkeys(texts, "str"))


def _responses(recipe: Any) -> Iterable[tuple[dict[str, Any], pd.DataFrame]]:
    if not isinstance(recipe.prompts, WorldPrompts):
        raise ValueError(
            f"the verifier knows the world's prompts only; got {type(recipe.prompts).__name__}. "
            "Use a scale of the micro world: 'micro' or 'full'."
        )
    asked = _asked(recipe.prompts)
    for arm in recipe.arms:
        for seed in recipe.seeds:
            table = verdicts(dataset(comparison.data(recipe, arm, seed)), asked)
            yield {**comparison.columns(arm), "seed": seed}, table[["id", *KEPT]]


def _students(recipe: Any) -> Iterable[tuple[dict[str, Any], pd.DataFrame]]:
    for told, evaluation in comparison.evaluations(recipe):
        yield told, answers(evaluation)[["id", *KEPT]]
