"""Tables that notebooks read: recipes, means, paired differences, gains, with intervals.

Verdicts come from `codit.paper.make`; nothing is made, trained or drawn here.
Source of all tables: ours.

One prompt looked at closely: several answers, and what the contrast does at one step.

Source of all tables: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from codit import decode, recipes
from codit.contrast import contrast
from codit.decode import Response
from codit.engine.models import Conversation
from codit.evaluation import intervals
from codit.pair import ContrastivePair
from codit.paper import scales
from codit.paper import seeds as crossed
from codit.paper.scales import Scale
from codit.recipes import Decoding

SCORES = range(1, 11)
LEVEL = 0.05  # below it a corrected p-value counts as a finding


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
            found = _interval(wide.to_numpy(), seeds)
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
                level = 0.0 if gain else float(group.loc[group["arm"] == base, column].mean())
                found = {
                    name: level + end
                    for name, end in intervals.columns(_interval(wide, seeds)).items()
                }
                place = dict(zip(by, key, strict=True))
                rows.append({**place, "arm": label, **told, "measure": column, **found})
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
    bad = table[~table["score"].isin(SCORES)]
    if len(bad):
        raise ValueError(
            f"expected whole scores from 1 to 10; got {len(bad)} others, the first "
            f"{bad['score'].iloc[0]!r}. Drop the unscored rows and report their number."
        )
    columns = {str(score): table["score"] == score for score in SCORES}
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
    found = {
        (one, other, measure): _interval(crossed.table(table, measure, one, other, by=by), seeds)
        for one, other in pairs
        for measure in measures
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


def best(bars: pd.DataFrame) -> pd.DataFrame:
    """Return the row of the highest value per teacher and role; of equal values the first."""
    return bars.loc[bars.groupby(["teacher", "role"], sort=False)["value"].idxmax()]


def rivals(table: pd.DataFrame, role: str) -> pd.DataFrame:
    """Return the best plausibility of a role beside every other one of its curve.

    Args:
        table: columns id, seed, arm, role, plausibility, strict, of one teacher and split.
        role: "codit" or "truncated".

    Returns:
        DataFrame: role, best, plausibility (the other), lead (best - other) with its interval as
        text, and tied: the interval holds 0.

    Raises:
        ValueError: fewer than two plausibilities of the role.
    """
    own = table[table["role"] == role]
    means = own.groupby(["plausibility", "arm"])["strict"].mean()
    if len(means) < 2:
        raise ValueError(
            f"expected two plausibilities of {role!r} or more; got {len(means)}. Try several."
        )
    top, winner = means.idxmax()
    rows = []
    for value, other in means.index:
        if other != winner:
            found = crossed.difference(crossed.table(own, "strict", winner, other, by="arm"))
            text, tied = difference_text(found), decided(found) is None
            rows.append({"role": role, "best": top, "plausibility": value, "lead": text})
            rows[-1]["tied"] = tied
    return pd.DataFrame(rows)


def gains(table: pd.DataFrame, *, measure: str = "strict", seeds: bool = True) -> pd.DataFrame:
    """Return CoDIT's gain at every plausibility and student, over direct and over truncation.

    Args:
        table: columns id, seed, student, arm, role, plausibility, `measure`, of one teacher and
            split; truncation at CoDIT's plausibilities.
        measure: what is compared.
        seeds: see `bar_table`.

    Returns:
        DataFrame: student, plausibility, against ("direct" or "truncated", the latter at the same
        plausibility), estimate, low, high, p, p_holm (corrected for all rows), text.

    Raises:
        ValueError: an arm is missing; see `crossed.table`.
    """
    found: dict[int, crossed.Difference] = {}
    rows: list[dict[str, Any]] = []
    for student, own in table.groupby("student", sort=False):
        roles = own.drop_duplicates("arm").set_index("role")
        for arm, value in roles.loc[["codit"], ["arm", "plausibility"]].itertuples(index=False):
            same = own[(own["role"] == "truncated") & (own["plausibility"] == value)]["arm"]
            for against, other in (("direct", roles.loc["direct", "arm"]), ("truncated", same)):
                name = other if isinstance(other, str) else str(other.iloc[0])
                wide = crossed.table(own, measure, arm, name, by="arm")
                found[len(rows)] = one = _interval(wide, seeds)
                rows.append({"student": student, "plausibility": value, "against": against})
                rows[-1] |= {"estimate": one.estimate, "low": one.low, "high": one.high}
                rows[-1] |= {"p": one.p, "text": difference_text(one)}
    corrected = crossed.holm(found)
    return pd.DataFrame(rows).assign(p_holm=[corrected[place] for place in found])


def gains_text(gained: pd.DataFrame) -> str:
    """Return in words how many of several gains are found, and the least of them.

    Args:
        gained: rows of `gains`.

    Returns:
        str: "15 of 18 gains (corrected p < .05), 0 losses; least +0.012 [-0.004, +0.028]".
    """
    sure = gained[gained["p_holm"] < LEVEL]
    up, down = int((sure["estimate"] > 0).sum()), int((sure["estimate"] < 0).sum())
    least = gained.loc[gained["estimate"].idxmin(), "text"]
    return (
        f"{up} of {len(gained)} gains (corrected p < {LEVEL:g}), {down} losses; least {least}"
    ).replace("0.05", ".05")


def all_gain(gained: pd.DataFrame) -> bool | None:
    """Tell whether every one of several gains is found.

    Args:
        gained: rows of `gains`.

    Returns:
        bool | None: True where all are above 0 with corrected p below .05, False where one is
        below 0 so surely, else None.
    """
    sure = gained["p_holm"] < LEVEL
    if bool((sure & (gained["estimate"] < 0)).any()):
        return False
    return True if bool(sure.all()) else None


def _interval(values: np.ndarray[Any, Any], seeds: bool) -> crossed.Difference:
    return crossed.difference(values if seeds else values.mean(0, keepdims=True))


def samples(
    pair: ContrastivePair,
    tokenizer: PreTrainedTokenizerBase,
    chat: Conversation,
    decoding: Decoding,
    *,
    n: int,
) -> pd.DataFrame:
    """Return several answers to one prompt, direct beside CoDIT, with the same noise.

    Args:
        pair: the teacher.
        tokenizer: the expert's.
        chat: the conversation that asks.
        decoding: CoDIT's.
        n: answers per arm; answer k is drawn with sample number k.

    Returns:
        DataFrame: sample, direct, codit; texts.

    Raises:
        ValueError: see `decode.generate`.
    """
    columns: dict[str, list[str]] = {"direct": [], "codit": []}
    for name, texts in columns.items():
        for number in range(n):
            drawn = replace(scales.arm(name, decoding), sample=number)
            (one,) = decode.generate(pair, tokenizer, [chat], drawn, ids=["0"], progress=False)
            texts.append(one.text)
    return pd.DataFrame(columns).rename_axis("sample").reset_index()


def disagreement(tokens: pd.DataFrame) -> int:
    """Return the step at which the contrast has most to choose.

    Among steps with more than one plausible token, the one of the largest
    |log p_expert - log p_amateur|; without such a step, the first.

    Args:
        tokens: a `decode.token_table`.

    Returns:
        int: the step, 0 for the first token.
    """
    gain = (tokens["logp_expert"] - tokens["logp_amateur"]).abs()
    open_ = gain[tokens["n_plausible"] > 1]
    return int(open_.idxmax()) if len(open_) else 0


@torch.no_grad()
def step_table(
    pair: ContrastivePair,
    tokenizer: PreTrainedTokenizerBase,
    chat: Conversation,
    response: Response,
    step: int,
    *,
    n: int = 8,
) -> pd.DataFrame:
    """Return the next-token probabilities of expert, amateur and contrast at one step.

    Args:
        pair: the teacher.
        tokenizer: the expert's.
        chat: the conversation that asks.
        response: whose first `step` tokens stand before the step.
        step: 0 is the first token.
        n: tokens shown, by the expert's probability; at most the vocabulary.

    Returns:
        DataFrame: token, p_expert, p_amateur, q (0 outside the plausible set); most likely first.

    Source: ours; q as in `contrast.contrast`.
    """
    ids = decode.prompt_ids(tokenizer, chat) + response.token_ids[:step]
    expert, amateur = pair.both_logits(torch.tensor([ids]))
    expert, amateur = expert[:, -1].float(), amateur[:, -1].float()
    logq = contrast(expert, amateur, strength=pair.strength, plausibility=pair.plausibility)
    best = expert[0].topk(n).indices
    columns: dict[str, Any] = {"token": [tokenizer.decode([int(i)]) for i in best]}
    for name, logprobs in (("p_expert", expert), ("p_amateur", amateur), ("q", logq)):
        columns[name] = logprobs[0].softmax(-1)[best].tolist()
    return pd.DataFrame(columns)
