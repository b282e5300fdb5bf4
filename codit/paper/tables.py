"""Tables that notebooks read: recipes, means, paired differences, gains, and one prompt closely.

Verdicts come from `codit.paper.make`; nothing is trained here. Intervals are over prompts and
seeds. In tables of verdicts `columns` and measures are scores or yes-or-no columns, `base`, `one`
and `other` labels of arms, `by` columns that tell rows apart. `seeds` says what a seed moves. True:
all answers together, as a student's training does. False: each prompt's noise alone, as in a
teacher's responses, so that seeds are averaged first. Values and choices are ours.
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
from codit.engine.chat import Conversation
from codit.evaluation import intervals
from codit.pair import ContrastivePair
from codit.paper import scales
from codit.paper.scales import Scale
from codit.paper.seeds import Difference, difference, standard_error
from codit.paper.seeds import table as paired
from codit.recipes import Decoding

SCORES = range(1, 11)
MEASURES = {"strict": "obeyed", "correct": "right", "both": "both"}  # and what readers call them
MARGIN = 0.02  # in "correct": what is lost by less is kept
LEVEL = 0.05  # below it a corrected p-value counts as a finding


def recipe_table(chosen: Scale) -> pd.DataFrame:
    """Return the values of a scale for reading: value, with `field` as its index.

    Of nested recipes the values that differ from their defaults.
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
    """Return a recipe in one line: kind and values that are no defaults, "WorldPrompts(n=7)"."""
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
    """Return means with their 95 % intervals, as plots draw them.

    Several students of a seed are averaged. Columns: `by`, role (of the first row), measure, value,
    low, high, seeds, prompts; in order of appearance. ValueError: fewer than two prompts, or some
    that were not answered in every seed.
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
    tell the arm from the base. The base's own interval is its mean. `gain` gives the differences
    themselves. Columns: `by`, arm, role, plausibility, strength, measure, value, low, high.
    """
    rows = []
    groups = table.groupby(list(by), sort=False) if by else [((), table)]
    for key, group in groups:
        for label, own in group.groupby("arm", sort=False):
            told = {c: own[c].iloc[0] for c in ("role", "plausibility", "strength")}
            for column in columns:
                wide = paired(group, column, str(label), base, by="arm")
                level = 0.0 if gain else float(group.loc[group["arm"] == base, column].mean())
                found = {
                    name: level + end
                    for name, end in intervals.columns(_interval(wide, seeds)).items()
                }
                place = dict(zip(by, key, strict=True))
                rows.append({**place, "arm": label, **told, "measure": column, **found})
    return pd.DataFrame(rows)


def plane(table: pd.DataFrame, *, by: Sequence[str] = ()) -> pd.DataFrame:
    """Return each arm's place in the plane of obeyed and right, as `plots.frontier` draws it.

    Columns: `by`, arm, role, plausibility, strict, correct, and the ends of their 95 % intervals:
    strict_low, strict_high, correct_low, correct_high.
    """
    keys = [*by, "arm"]
    bars = bar_table(table, ["strict", "correct"], by=keys)
    ends = {"value": "", "low": "_low", "high": "_high"}
    wide = bars.pivot(index=keys, columns="measure", values=list(ends))
    wide.columns = pd.Index([f"{measure}{ends[end]}" for end, measure in wide.columns])
    return table.drop_duplicates(keys)[[*keys, "role", "plausibility"]].merge(
        wide.reset_index(), on=keys, validate="one_to_one"
    )


def seed_points(
    table: pd.DataFrame, column: str, base: str, *, by: Sequence[str] = ()
) -> pd.DataFrame:
    """Return each seed's difference of every arm to a base arm, as `plots.forest` draws points.

    Columns: `by`, arm, role, seed, value.
    """
    keys = [*by, "arm", "role", "seed"]
    means = table.groupby(keys, sort=False)[column].mean().rename("value").reset_index()
    level = means[means["arm"] == base].set_index([*by, "seed"])["value"]
    place = pd.MultiIndex.from_frame(means[[*by, "seed"]]) if by else means["seed"]
    return means.assign(value=means["value"] - level.reindex(place).to_numpy())


def score_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return how often a teacher's responses received each score, with 95 % intervals.

    Columns: role, score, value (share of responses), low, high, seeds, prompts; scores that nobody
    received included. ValueError: a score is missing or outside the range: what could not be scored
    is counted by the caller, never plotted as a number.
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
    """Return paired differences of arms, named by the column `by`, with 95 % intervals.

    Several students of a seed are averaged. Of pairs (one, other): positive where `one` is higher.
    Columns: one, other, measure, estimate, low, high, p (two-sided), p_holm (corrected for all rows
    of this table), text (as `difference_text`), holds (as `decided`).
    """
    rows = []
    for one, other in pairs:
        for measure in measures:
            found = _interval(paired(table, measure, one, other, by=by), seeds)
            told = {"one": one, "other": other, "measure": measure, **vars(found)}
            said = {"text": difference_text(found), "holds": decided(found)}
            rows.append({**told, "p_holm": found.p, **said})
    made = pd.DataFrame(rows).drop(columns=["seeds", "prompts"])
    made["p_holm"] = intervals.holm(made["p"])  # in its place among the columns
    return made


def difference_text(found: intervals.Ends) -> str:
    """Return an interval as one reads it: +0.120 [+0.080, +0.160]."""
    return intervals.text(found.estimate, found.low, found.high)


def kept(found: intervals.Ends) -> bool | None:
    """Tell whether a difference loses less than `MARGIN` (True), surely more (False), or either."""
    return None if found.low <= -MARGIN <= found.high else found.low > -MARGIN


def corrected(row: Any) -> bool | None:
    """Tell what a row of `differences` decides after correction: as `decided`, or None."""
    return decided(row) if row.p_holm < LEVEL else None


def decided(found: intervals.Ends) -> bool | None:
    """Tell whether an interval lies above 0 (True), below (False), or holds it (None)."""
    return None if found.low <= 0 <= found.high else found.low > 0


def choice(table: pd.DataFrame, role: str, *, measure: str = "both") -> pd.DataFrame:
    """Return what a role gives at each plausibility, and which one is taken.

    Of one teacher and split. Columns: role, arm, plausibility, value (mean of the measure), behind
    (how far below the best), error (standard error of that paired difference), tied (behind by no
    more than it), taken (the largest of the tied). Source of the rule: data/PLAN.md.
    """
    own = table[table["role"] == role]
    means = own.groupby(["plausibility", "arm"])[measure].mean()
    _, first = means.idxmax()
    found = means.rename("value").reset_index().assign(role=role)
    lost = [paired(own, measure, first, arm, by="arm") for arm in found["arm"]]
    found["behind"], found["error"] = [d.mean() for d in lost], [*map(standard_error, lost)]
    found["tied"] = found["behind"] <= found["error"]
    last = found.loc[found["tied"], "plausibility"].max()
    return found.assign(taken=found["plausibility"] == last)


def gains(table: pd.DataFrame, *, measure: str = "strict", seeds: bool = True) -> pd.DataFrame:
    """Return CoDIT's gain at every plausibility and student, over direct and over truncation.

    Of one teacher and split, with truncation at CoDIT's plausibilities. Columns: student,
    plausibility, against ("direct" or "truncated", the latter at the same plausibility), estimate,
    low, high, p, p_holm (corrected for all rows), text.
    """
    parts = []
    for student, own in table.groupby("student", sort=False):
        arms = own.drop_duplicates("arm").set_index("role")
        direct = arms.loc["direct", "arm"]
        truncated = arms.loc[["truncated"]].set_index("plausibility")["arm"]
        for arm, value in arms.loc[["codit"], ["arm", "plausibility"]].itertuples(index=False):
            against = {"direct": direct, "truncated": truncated[value]}
            pairs = [(arm, other) for other in against.values()]
            found = differences(own, pairs, [measure], seeds=seeds)
            parts.append(found.assign(student=student, plausibility=value, against=list(against)))
    gained = pd.concat(parts, ignore_index=True)
    gained["p_holm"] = intervals.holm(gained["p"])
    told = ["student", "plausibility", "against", "estimate", "low", "high", "p", "p_holm", "text"]
    return gained[told]


def gains_text(gained: pd.DataFrame) -> str:
    """Return in words how many of the rows of `gains` are found, where all are, and the least.

    "7 of 9 gains (corrected p < .05; all at .03, .1), 0 losses; least +0.012 [-0.004, +0.028]"
    """
    sure = gained["p_holm"] < LEVEL
    found, lost = sure & (gained["estimate"] > 0), sure & (gained["estimate"] < 0)
    full = found.groupby(gained["plausibility"]).all()
    values = ", ".join(f"{value:g}".lstrip("0") for value in full.index[full])
    at = f"all at {values}" if values else "at no value all"
    least = gained.loc[gained["estimate"].idxmin(), "text"]
    level = f"{LEVEL:g}".lstrip("0")
    return (
        f"{found.sum()} of {len(gained)} gains (corrected p < {level}; {at}), "
        f"{lost.sum()} losses; least {least}"
    )


def all_gain(gained: pd.DataFrame) -> bool | None:
    """Tell whether all rows of `gains` are above 0 with corrected p below .05.

    False where one is below 0 so surely, else None.
    """
    sure = gained["p_holm"] < LEVEL
    if bool((sure & (gained["estimate"] < 0)).any()):
        return False
    return True if bool(sure.all()) else None


def samples(
    pair: ContrastivePair,
    tokenizer: PreTrainedTokenizerBase,
    chat: Conversation,
    decoding: Decoding,
    *,
    n: int,
) -> pd.DataFrame:
    """Return n answers to one prompt, direct beside CoDIT, with the same noise.

    Answer k is drawn with sample number k. Columns: sample, direct, codit.
    """
    columns: dict[str, list[str]] = {"direct": [], "codit": []}
    for name, texts in columns.items():
        for number in range(n):
            drawn = replace(scales.arm(name, decoding), sample=number)
            (one,) = decode.generate(pair, tokenizer, [chat], drawn, ids=["0"], progress=False)
            texts.append(one.text)
    return pd.DataFrame(columns).rename_axis("sample").reset_index()


@torch.no_grad()
def moving_steps(
    pair: ContrastivePair,
    tokenizer: PreTrainedTokenizerBase,
    chat: Conversation,
    response: Response,
    *,
    n: int = 2,
) -> list[int]:
    """Return the n steps of a response, in order, at which contrast moves most probability.

    Beside truncation at the pair's plausibility: the sum of |q - p| over the vocabulary.
    """
    before = decode.prompt_ids(tokenizer, chat)
    expert, amateur = (
        one[0, len(before) - 1 : -1].float()
        for one in pair.both_logits(torch.tensor([before + response.token_ids]))
    )
    q, p = (
        contrast(expert, amateur, strength=strength, plausibility=pair.plausibility).exp()
        for strength in (pair.strength, 0.0)
    )
    moved = (q - p).abs().sum(-1)
    return sorted(moved.topk(min(n, len(moved))).indices.tolist())


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

    It follows the first `step` tokens of the response; `n` tokens are shown, by the expert's
    probability. Columns: token, p_expert, p_amateur, q (0 outside the plausible set).
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


def _interval(values: np.ndarray[Any, Any], seeds: bool) -> Difference:
    return difference(values if seeds else values.mean(0, keepdims=True))
