"""Tables that notebooks read: recipes, means and paired differences with their intervals.

Verdicts come from `codit.verdicts`; nothing is made, drawn or decided here.
Source of all tables: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import pandas as pd

from codit import crossed, intervals, recipes
from codit.experiments import Scale


def recipe_table(chosen: Scale) -> pd.DataFrame:
    """Return the resolved values of a scale for reading, one row a field.

    Args:
        chosen: the scale.

    Returns:
        DataFrame: value, with `field` as its index; of nested recipes the values that differ from
        their defaults.
    """
    flat: dict[str, str] = {}
    for name in [f.name for f in fields(Scale)]:
        value = getattr(chosen, name)
        if isinstance(value, dict) or name == "decoding":
            parts = value if isinstance(value, dict) else recipes.describe(value)
            told = {k: v for k, v in parts.items() if k not in ("recipe", "version")}
            flat |= {f"{name}.{part}": str(inner) for part, inner in told.items()}
        elif isinstance(value, tuple):
            flat[name] = ", ".join(map(recipe_text, value))
        else:
            flat[name] = recipe_text(value)
    return pd.DataFrame({"value": dict(sorted(flat.items()))}).rename_axis("field")


def recipe_text(value: Any) -> str:
    """Return a recipe in one line: its kind and the values that differ from the defaults.

    Args:
        value: a recipe, a tuple of such, or a plain value.

    Returns:
        str: such as "WorldPrompts(n=7)".
    """
    if isinstance(value, tuple):
        return " ".join(map(recipe_text, value))
    if not is_dataclass(value):
        return str(value)
    told = [
        f"{f.name}={recipe_text(getattr(value, f.name))}"
        for f in fields(value)
        if getattr(value, f.name) != f.default
    ]
    return f"{type(value).__name__}({', '.join(told)})"


def bar_table(
    table: pd.DataFrame,
    columns: Sequence[str],
    *,
    by: Sequence[str] = ("role",),
    seeds: bool = True,
) -> pd.DataFrame:
    """Return means with their 95 % intervals over prompts and seeds, as plots draw them.

    Args:
        table: columns id, seed, `by` and `columns`; several students of a seed are averaged.
        columns: scores or yes-or-no columns.
        by: what tells one mean from another; "role" is copied where it is not among them.
        seeds: a seed moves all answers together, as a student's training does. False: it moves
            each prompt's noise alone, as in a teacher's responses, so seeds are averaged first.

    Returns:
        DataFrame: `by`, role, measure, value, low, high, seeds, prompts; in order of appearance.

    Raises:
        ValueError: fewer than two prompts, or some that were not answered in every seed.
    """
    by, bars = list(by), []
    for key, group in table.groupby(by, sort=False, dropna=False):
        for column in columns:
            wide = group.assign(**{column: group[column].astype(float)}).pivot_table(
                index="seed", columns="id", values=column
            )
            values = wide.to_numpy() if seeds else wide.to_numpy().mean(0, keepdims=True)
            found = crossed.difference(values)
            told = {"role": group["role"].iloc[0], **dict(zip(by, key, strict=True))}
            sizes = {"seeds": len(wide), "prompts": found.prompts}
            bars.append({**told, "measure": column, **intervals.columns(found), **sizes})
    return pd.DataFrame(bars)


def paired_table(
    table: pd.DataFrame,
    columns: Sequence[str],
    base: str,
    *,
    by: Sequence[str] = (),
    seeds: bool = True,
    gain: bool = False,
) -> pd.DataFrame:
    """Return each arm's mean with the 95 % interval of its paired difference to a base arm.

    What makes a prompt hard for every arm cancels: an interval that holds the base's mean does not
    tell the arm from the base. The base's own interval is its mean.

    Args:
        table: columns id, seed, arm, role, plausibility, strength, `by` and `columns`.
        columns: scores or yes-or-no columns.
        base: label of the arm that the others are compared with.
        by: what is told apart beside the arms: teacher, student.
        seeds: see `bar_table`.
        gain: give the differences themselves instead of means.

    Returns:
        DataFrame: `by`, arm, role, plausibility, strength, measure, value, low, high.

    Raises:
        ValueError: see `crossed.table`.
    """
    rows = []
    groups = table.groupby(list(by), sort=False) if by else [((), table)]
    for key, group in groups:
        for label, own in group.groupby("arm", sort=False):
            told = {c: own[c].iloc[0] for c in ("role", "plausibility", "strength")}
            for column in columns:
                wide = crossed.table(group, column, str(label), base, by="arm")
                found = crossed.difference(wide if seeds else wide.mean(0, keepdims=True))
                level = 0.0 if gain else float(group.loc[group["arm"] == base, column].mean())
                ends = {name: level + end for name, end in intervals.columns(found).items()}
                told_of = {**dict(zip(by, key, strict=True)), "arm": label, **told}
                rows.append({**told_of, "measure": column, **ends})
    return pd.DataFrame(rows)


def seed_points(
    table: pd.DataFrame, column: str, base: str, *, by: Sequence[str] = ()
) -> pd.DataFrame:
    """Return each seed's difference of every arm to a base arm, as `plots.forest` draws points.

    Args:
        table: columns id, seed, arm, role, `by` and `column`.
        column: a score or yes-or-no column.
        base: label of the arm that the others are compared with.
        by: what is told apart beside the arms.

    Returns:
        DataFrame: `by`, arm, role, seed, value.
    """
    keys = [*by, "arm", "role", "seed"]
    means = table.groupby(keys, sort=False)[column].mean().rename("value").reset_index()
    level = means[means["arm"] == base].set_index([*by, "seed"])["value"]
    place = pd.MultiIndex.from_frame(means[[*by, "seed"]]) if by else means["seed"]
    return means.assign(value=means["value"] - level.reindex(place).to_numpy())


def score_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return how often a teacher's responses received each score, with 95 % intervals over prompts.

    Args:
        table: columns id, seed, role, score.

    Returns:
        DataFrame: role, score, value (share of responses), low, high, seeds, prompts; one row per
        role and score, scores nobody received included.

    Raises:
        ValueError: a score is missing or outside the range: what could not be scored is counted by
            the caller, never plotted as a number.
    """
    scores = range(1, 11)
    bad = table[~table["score"].isin(scores)]
    if len(bad):
        raise ValueError(
            f"expected whole scores from 1 to 10; got {len(bad)} others, the first "
            f"{bad['score'].iloc[0]!r}. Drop the unscored rows and report their number."
        )
    columns = {str(score): table["score"] == score for score in scores}
    shares = bar_table(table.assign(**columns), list(columns), seeds=False)
    return shares.rename(columns={"measure": "score"})


def differences(
    table: pd.DataFrame,
    pairs: Sequence[tuple[str, str]],
    measures: Sequence[str],
    *,
    by: str = "arm",
    seeds: bool = True,
) -> pd.DataFrame:
    """Return paired differences of arms with 95 % intervals over prompts and seeds.

    Args:
        table: columns id, seed, `by` and `measures`; several students of a seed are averaged.
        pairs: (one, other): positive where `one` is higher.
        measures: scores or yes-or-no columns.
        by: column that names the arms.
        seeds: see `bar_table`.

    Returns:
        DataFrame: one, other, measure, estimate, low, high, p (two-sided), p_holm (corrected for
        all rows of this table), text (as `difference_text`), holds (as `decided`).

    Raises:
        ValueError: see `crossed.table`.
    """
    wide = {
        (one, other, measure): crossed.table(table, measure, one, other, by=by)
        for one, other in pairs
        for measure in measures
    }
    found = {
        key: crossed.difference(values if seeds else values.mean(0, keepdims=True))
        for key, values in wide.items()
    }
    corrected = crossed.holm(found)
    return pd.DataFrame(
        {
            "one": key[0],
            "other": key[1],
            "measure": key[2],
            "estimate": one.estimate,
            "low": one.low,
            "high": one.high,
            "p": one.p,
            "p_holm": corrected[key],
            "text": difference_text(one),
            "holds": decided(one),
        }
        for key, one in found.items()
    )


def difference_text(found: intervals.Ends) -> str:
    """Return an interval as one reads it: +0.120 [+0.080, +0.160].

    Args:
        found: an interval of a difference.

    Returns:
        str: estimate, then both ends, each with its sign and three decimals.
    """
    return intervals.text(found.estimate, found.low, found.high)


def decided(found: intervals.Ends) -> bool | None:
    """Tell whether an interval of a difference decides it.

    Args:
        found: an interval of a difference.

    Returns:
        bool | None: True where it lies above 0, False where below, None where it holds 0.
    """
    return None if found.low <= 0 <= found.high else found.low > 0
