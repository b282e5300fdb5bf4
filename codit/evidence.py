"""Tables that notebooks read: verdicts per arm, paired differences, one step looked at closely.

Results come from `codit.results` through the store; nothing is drawn and nothing decided here.
Source of all tables: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from codit import decode, recipes, statistics, world
from codit.chat import Conversation
from codit.contrast import contrast
from codit.decode import Response
from codit.experiments import ARMS, GREEDY, Scale, arm, evaluations, synthesis, training
from codit.pair import ContrastivePair
from codit.recipes import Decoding, Model, Pretraining, WorldPrompts
from codit.results import answered, answers, load_model, responses, verdicts


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


def dataset_verdicts(chosen: Scale, seed: int = 0) -> pd.DataFrame:
    """Return every arm's responses with the verifier's verdicts, one row a response and arm.

    Args:
        chosen: the scale, with the verifier among its evaluations.
        seed: of the noise.

    Returns:
        DataFrame: role (the arm) and the columns of `results.verdicts`.

    Raises:
        ValueError: the scale names no verifier.
    """
    prompts = world.prompts(_verifiable(chosen))
    tables = [
        verdicts(responses(synthesis(chosen, name, seed)), prompts).assign(role=name)
        for name in ARMS
    ]
    return pd.concat(tables, ignore_index=True)


def student_verdicts(chosen: Scale, base: Model | Pretraining) -> pd.DataFrame:
    """Return the verified answers of a base's students, one row a prompt, arm and seed.

    Args:
        chosen: the scale, with the verifier among its evaluations.
        base: which of its students.

    Returns:
        DataFrame: role (the arm), seed, split and the columns of `results.verdicts`.

    Raises:
        ValueError: the scale names no verifier.
    """
    _verifiable(chosen)
    tables = []
    for seed in chosen.seeds:
        for name in ARMS:
            student_recipe = training(chosen, base, name, seed)
            for split, evaluation in evaluations(chosen, student_recipe).items():
                table = answers(evaluation)
                tables.append(table.assign(role=name, seed=seed, split=split))
    return pd.concat(tables, ignore_index=True)


def greedy_verdicts(folder: str | Path, prompts: WorldPrompts) -> pd.DataFrame:
    """Return a model folder's greedy answers with their verdicts.

    Args:
        folder: model and tokenizer.
        prompts: what is asked.

    Returns:
        DataFrame: see `results.verdicts`.
    """
    model, tokenizer = load_model(Model(name=str(folder)))
    return verdicts(answered(model, tokenizer, prompts, GREEDY), world.prompts(prompts))


def paired(table: pd.DataFrame, column: str, one: str, other: str) -> statistics.Interval:
    """Return the mean difference of two roles in a column, over prompts, with its interval.

    Args:
        table: columns id, role and `column`; several seeds of a prompt are averaged first.
        column: a score or a yes-or-no column.
        one: the role that is compared...
        other: ...with this one.

    Returns:
        Interval: above 0 where `one` is larger; in the unit of the column.

    Raises:
        KeyError: a role or column that is not in the table.
        ValueError: fewer than two prompts, or one that a role did not answer.
    """
    wide = table.astype({column: float}).pivot_table(index="id", columns="role", values=column)
    return statistics.difference_interval(wide[one].to_numpy(), wide[other].to_numpy())


def bar_table(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return means over prompts with their 95 % bootstrap intervals, as `plots.bars` draws them.

    Args:
        table: columns id, role and `columns`; several seeds of a prompt are averaged first.
        columns: scores or yes-or-no columns.

    Returns:
        DataFrame: role, measure, value, low, high, n (prompts).

    Raises:
        ValueError: fewer than two prompts.
    """
    bars = []
    for column in columns:
        for role, group in table.groupby("role", sort=False):
            means = group.astype({column: float}).groupby("id")[column].mean()
            found = statistics.mean_interval(means.to_numpy())
            ends = {"value": found.estimate, "low": found.low, "high": found.high}
            bars.append({"role": role, "measure": column, **ends, "n": found.n})
    return pd.DataFrame(bars)


def difference_text(found: statistics.Interval) -> str:
    """Return an interval as one reads it: +0.120 [+0.080, +0.160].

    Args:
        found: an interval of a difference.

    Returns:
        str: estimate, then both ends, each with its sign and three decimals.
    """
    return f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def decided(found: statistics.Interval) -> bool | None:
    """Tell whether an interval of a difference decides it.

    Args:
        found: an interval of a difference.

    Returns:
        bool | None: True where it lies above 0, False where below, None where it holds 0.
    """
    return None if found.low <= 0 <= found.high else found.low > 0


def _verifiable(chosen: Scale) -> WorldPrompts:
    """Return the scale's prompts, which the verifier can score; or raise ValueError."""
    if "verifier" not in chosen.evaluations or not isinstance(chosen.prompts, WorldPrompts):
        raise ValueError(
            f"expected a scale that the verifier can score; got evaluations {chosen.evaluations}. "
            "Use a scale of the micro world: 'micro' or 'full'."
        )
    return chosen.prompts


def by_constraint(table: pd.DataFrame, prompts: WorldPrompts) -> pd.DataFrame:
    """Return how often each role obeys each kind of constraint, whatever else was asked.

    Args:
        table: columns id, role, response.
        prompts: what was asked.

    Returns:
        DataFrame: kind by role, shares in 0..1; column n: prompts that ask for the kind.

    Raises:
        KeyError: a response to a prompt that is not among `prompts`.
    """
    asked = {row["id"]: row["constraints"] for row in world.prompts(prompts)}
    found = [
        (one["kind"], row.role, row.id, world.obeys(row.response, world.Constraint(**one)))
        for row in table.itertuples()
        for one in asked[row.id]
    ]
    held = pd.DataFrame(found, columns=["kind", "role", "id", "held"])
    roles = list(dict.fromkeys(table["role"]))
    shares = held.pivot_table(index="kind", columns="role", values="held", aggfunc="mean")[roles]
    return shares.assign(n=held.groupby("kind")["id"].nunique())


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
            drawn = replace(arm(name, decoding), sample=number)
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
    logq = contrast(expert, amateur, strength=pair.strengths(), plausibility=pair.plausibility)
    best = expert[0].topk(n).indices
    columns: dict[str, Any] = {"token": [tokenizer.decode([int(i)]) for i in best]}
    for name, logprobs in (("p_expert", expert), ("p_amateur", amateur), ("q", logq)):
        columns[name] = logprobs[0].softmax(-1)[best].tolist()
    return pd.DataFrame(columns)
