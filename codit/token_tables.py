"""Tables on knowledge and instruction-following: of responses, of answers, and token by token.

Pure functions of the tables of `verdicts.study` and `token_evidence.study`. Source of all: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from codit import crossed, intervals
from codit.token_classes import CLASSES

KNOWLEDGE = ("fact",)  # families whose answer is a truth of the world
TRADES = ("analogy",)  # half knowledge: the prompt gives the relation; counted as neither


def along_strength(table: pd.DataFrame, plausibility: float) -> pd.DataFrame:
    """Keep the rows of direct generation and of every strength at one plausibility.

    Args:
        table: role, plausibility, strength, as in the tables of `verdicts.study`.
        plausibility: which.

    Returns:
        DataFrame: those rows; strength is 0 where the role is truncated and NaN where direct, and
        the column `at` names both: "direct", "0", "0.5", ...

    Source: ours.
    """
    is_direct = table["role"] == "direct"
    chosen = table["role"].isin(["truncated", "codit"]) & (table["plausibility"] == plausibility)
    kept = table[is_direct | chosen].copy()
    kept.loc[kept["role"] == "truncated", "strength"] = 0.0
    kept["at"] = [f"{s:g}" if s == s else "direct" for s in kept["strength"]]
    return kept


def with_measures(table: pd.DataFrame, asked: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Add what is asked here of a response, from what the verifier found.

    Args:
        table: verdicts with columns id, correct, obeyed.
        asked: the prompts, rows of `world.prompts`.

    Returns:
        DataFrame: with family, held (share of the constraints that hold) and `correct` told apart:
        knowledge (the answer is a fact of the world) and reading (it follows from the prompt),
        each NaN where the prompt asks for the other, so that means leave it out.

    Raises:
        KeyError: a response to a prompt that is not among `asked`.

    Source: ours.
    """
    rows = {row["id"]: row for row in asked}
    family = np.array([rows[one]["family"] for one in table["id"]])
    counts = [len(rows[one]["constraints"]) for one in table["id"]]
    correct = table["correct"].astype(float)
    return table.assign(
        family=family,
        held=[int(bits).bit_count() / n for bits, n in zip(table["obeyed"], counts, strict=True)],
        knowledge=correct.where(np.isin(family, KNOWLEDGE)),
        reading=correct.where(~np.isin(family, KNOWLEDGE + TRADES)),
    )


def prompt_means(table: pd.DataFrame, column: str, by: Sequence[str]) -> pd.DataFrame:
    """Return means with 95 % t-intervals over prompts where prompts have unequally many rows.

    A prompt's rows, of any step and seed, are averaged first; so each prompt counts once.

    Args:
        table: id, `by`, `column`.
        column: numbers; rows where it is missing are left out.
        by: what tells one mean from another.

    Returns:
        DataFrame: `by`, value, low, high, prompts; groups of one prompt are left out.

    Source: ours.
    """
    known = table[table[column].notna()]
    values = known[column].astype("float64")
    per_prompt = values.groupby([known[name] for name in (*by, "id")], dropna=False, observed=True)
    rows = []
    for key, group in per_prompt.mean().groupby(level=list(by), dropna=False, sort=False):
        if len(group) > 1:
            found = crossed.difference(group.to_numpy()[None])
            key = key if isinstance(key, tuple) else (key,)
            rows.append({**dict(zip(by, key, strict=True)), **intervals.columns(found)})
            rows[-1]["prompts"] = found.prompts
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high", "prompts"])


def mass_shifts(steps: pd.DataFrame, *, open_from: float = 0.01) -> pd.DataFrame:
    """Return how much probability the contrast moves into each class where the class is open.

    shift = mean over open steps of (q mass of the class - its mass under the truncated expert);
    a step is open for a class whose truncated mass lies in [open_from, 1 - open_from].

    Args:
        steps: rows of `token_evidence.study`. Of one text the open steps are the same at every
            strength.
        open_from: least mass; 0 takes every step, and then shifts of all classes sum to 0.

    Returns:
        DataFrame: one row per response and class that is open somewhere in it: read, role,
        strength, seed, id, family, class, steps (open ones), before, after, shift (means).

    Source: ours.
    """
    names = ["read", "role", "strength", "seed", "id", "family"]
    parts = []
    for one in CLASSES:
        before, after = (steps[f"{name}_{one}"].astype("float64") for name in ("before", "after"))
        table = steps[names].assign(**{"class": one, "before": before, "after": after})
        is_open = before.between(open_from, 1 - open_from)
        groups = table[is_open].groupby([*names, "class"], dropna=False, sort=False)
        parts.append(
            groups.agg(steps=("before", "size"), before=("before", "mean"), after=("after", "mean"))
        )
    table = pd.concat(parts).reset_index()
    return table.assign(shift=table["after"] - table["before"])


def kinds(classes: pd.Series, family: pd.Series) -> pd.Series:
    """Tell knowledge from reading: name a token's class by what its prompt asks for.

    Args:
        classes: values of `CLASSES`.
        family: of the prompts.

    Returns:
        Series: "right" and "wrong" become "right fact" and "wrong fact" where the prompt asks for
        a fact of the world, else "read" and "misread"; the others stay.

    Source: ours.
    """
    knows = family.isin(KNOWLEDGE)
    asked = classes.map({"right": "right fact", "wrong": "wrong fact"}).fillna(classes)
    given = classes.map({"right": "read", "wrong": "misread"}).fillna(classes)
    return asked.where(knows, given)


def places(steps: pd.DataFrame) -> pd.Series:
    """Return where in its response each step lies, as the middle of its fifth.

    Args:
        steps: columns step (from 0) and length.

    Returns:
        Series: .1, .3, .5, .7 or .9; a response of fewer than five steps leaves some out.

    Source: ours.
    """
    middle = (steps["step"] + 0.5) / steps["length"]
    return (np.floor(middle * 5) + 0.5) / 5
