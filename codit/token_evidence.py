"""The study of what both models say at every token of a teacher's responses, kept in the store.

Classes of tokens: `codit.token_classes`. What is computed from the study: `codit.token_tables`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from codit import comparison, quality, results, store, studies, world
from codit.chat import prompt_ids
from codit.comparison import Arm, ResponseStudy
from codit.contrast import strength_per_id
from codit.experiments import Scale
from codit.judge_recipes import JudgedArm
from codit.pair import ContrastivePair, load_tokenizer
from codit.recipes import Pair, WorldPrompts
from codit.token_classes import id_classes, step_table, teacher_forced
from codit.token_tables import KNOWLEDGE, TRADES
from codit.vocabulary import special_token_ids, stop_ids


@dataclass(frozen=True, kw_only=True)
class TokenStudy:
    """What both models say at every token of a teacher's responses.

    Args:
        responses: arms and seeds; the arm "direct" must be among them.
        n: prompts of each kind, the first that ask for knowledge and the first that do not.
        repeats: seeds that are read token by token, the first ones; whole texts are summarised
            for all.
    """

    responses: ResponseStudy
    n: int = 120
    repeats: int = 4
    version: ClassVar[int] = 1


def recipe(chosen: Scale) -> TokenStudy:
    """Return the study of notebook 05: the expert alone, then every strength of the scale.

    Args:
        chosen: the scale; plausibility is its decoding's.

    Returns:
        TokenStudy: of its first teacher.

    Source: ours.
    """
    arms = (Arm(role="direct"), *studies.strength_arms(chosen))
    return TokenStudy(responses=studies.responses(chosen, arms))


def study(recipe: TokenStudy) -> pd.DataFrame:
    """Return the evidence at every step, one row a token of a response.

    Each arm's own responses are read under its own q (read = "own"); the direct responses under
    every arm's q too (read = "direct"), where the steps are the same at all strengths.

    Args:
        recipe: whatever exists of it is read, the rest made.

    Returns:
        DataFrame: read, arm, role, plausibility, strength (0 for truncated, NaN for direct), seed,
        id, family, step, length (tokens), drawn (class of the token), best_before and best_after
        (class of the arg max of p_E and of q), changed (these are two ids), gain (log p_E -
        log p_A of the token, nats), n_plausible, end_rank_before and end_rank_after (rank of the
        end of turn among all ids by p_E, and by the contrast without the plausible set; 1 is the
        arg max), and before_CLASS, after_CLASS (probability mass of the class).

    Raises:
        ValueError: no arm "direct", or prompts that are not the world's.

    Source: ours.
    """
    return store.tables(recipe, _make)["steps"]


def summaries(recipe: TokenStudy) -> pd.DataFrame:
    """Return what `quality.summarise` says of each arm's responses to all prompts.

    Args:
        recipe: as for `study`, in whose folder this table lies.

    Returns:
        DataFrame: a row per arm and seed: columns of the arm, seed, diversity, length, repetition.

    Source: ours.
    """
    return store.tables(recipe, _make)["summaries"]


def _make(recipe: TokenStudy, _: Path) -> dict[str, pd.DataFrame]:
    """Return both tables, in small types: masses to three decimals."""
    steps = pd.concat(_steps(recipe), ignore_index=True)
    masses = [c for c in steps if c.startswith(("before_", "after_"))]
    steps[masses] = steps[masses].round(3)
    small: dict[str, str] = dict.fromkeys(["gain", *masses], "float16")
    small |= {c: "int16" for c in steps if steps[c].dtype == "int64"}
    return {"steps": steps.astype(small), "summaries": _summaries(recipe)}


def _summaries(recipe: TokenStudy) -> pd.DataFrame:
    made = recipe.responses
    return pd.DataFrame(
        {
            **comparison.columns(arm),
            "seed": seed,
            **quality.summarise(results.dataset(comparison.data(made, arm, seed))),
        }
        for arm in made.arms
        for seed in made.seeds
    )


def _steps(recipe: TokenStudy) -> Iterator[pd.DataFrame]:
    """Yield the steps of one response after another."""
    made, asked = recipe.responses, _asked(recipe)
    pair, tokenizer = _teacher(made.pair)
    stops = stop_ids(tokenizer, pair.generation_config)
    classes = {id_: id_classes(tokenizer, row, stops) for id_, row in asked.items()}
    special = torch.tensor(special_token_ids(tokenizer), device=pair.device)
    for arm in made.arms:
        under = [(one, comparison.decoding(one, made.decoding)) for one in made.arms]
        under = under if arm.role == "direct" else [pair for pair in under if pair[0] == arm]
        for seed in made.seeds[: recipe.repeats]:
            rows = results.dataset(comparison.data(made, arm, seed))
            given = [(row, _answer(tokenizer, row)) for row in rows if row["id"] in asked]
            given = [(row, answer) for row, answer in given if answer]
            prompts = [prompt_ids(tokenizer, row["messages"][:-1]) for row, _ in given]
            both = teacher_forced(pair, prompts, [answer for _, answer in given])
            for (row, answer), logits in zip(given, both, strict=True):
                for one, how in under:
                    beta = strength_per_id(
                        how.strength, how.special_strength, special_ids=special, size=len(tokenizer)
                    )
                    numbers = {"strength": beta, "plausibility": how.plausibility}
                    table = step_table(*logits, answer, classes=classes[row["id"]], **numbers)
                    told = {
                        "read": "own" if one == arm else "direct",
                        **_columns(one),
                        "seed": seed,
                    }
                    yield _told(table, **told, id=row["id"], family=asked[row["id"]]["family"])


def _told(table: pd.DataFrame, **told: Any) -> pd.DataFrame:
    kept = table.drop(columns=["logp_expert", "logp_amateur", "logq"])
    return pd.concat([pd.DataFrame(told, index=kept.index), kept], axis=1)


def _columns(arm: Arm | JudgedArm) -> dict[str, Any]:
    found = comparison.columns(arm)
    strength = 0.0 if arm.role == "truncated" else found["strength"]
    return {name: found[name] for name in ("arm", "role", "plausibility")} | {"strength": strength}


def _asked(recipe: TokenStudy) -> dict[str, dict[str, Any]]:
    """Return the prompts that are read: the first that ask for knowledge, the first of others."""
    made = recipe.responses
    if not isinstance(made.prompts, WorldPrompts) or Arm(role="direct") not in made.arms:
        raise ValueError(
            "expected responses to the world's prompts with the arm 'direct'; got "
            f"{type(made.prompts).__name__} and {[arm.label for arm in made.arms]}. Use a scale of "
            "the micro world and token_evidence.recipe."
        )
    rows = world.prompts(made.prompts)
    knowing = [row for row in rows if row["family"] in KNOWLEDGE]
    reading = [row for row in rows if row["family"] not in KNOWLEDGE + TRADES]
    return {row["id"]: row for row in knowing[: recipe.n] + reading[: recipe.n]}


def _teacher(recipe: Pair) -> tuple[ContrastivePair, PreTrainedTokenizerBase]:
    revision = getattr(recipe.expert, "revision", None)
    tokenizer = load_tokenizer(results.model_path(recipe.expert), revision=revision)
    return results.load_pair(recipe), tokenizer


def _answer(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> list[int]:
    """Return a response's ids: its text tokenised again, and the stop token where it stopped.

    Datasets keep texts. A text can be spelled in several ways; of the micro teacher's responses
    at least 99 of 100 are drawn as the tokenizer spells them.
    """
    ids: list[int] = tokenizer(row["response"], add_special_tokens=False).input_ids
    return ids + [tokenizer.eos_token_id] * bool(row["is_completed"])
