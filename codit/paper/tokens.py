"""What both models and the contrast say at every token of a response, by classes of tokens.

At every step of a response each id of the vocabulary belongs to one class:

    right    spells a word of a reference: of a question for a fact, what one has to know
    wrong    spells a word of a rival, an answer that the prompt rules out
    format   is what a constraint of the prompt asks for: its word; marks of JSON, quotes or lists
             where these are asked for; any token in capitals where capitals are; the sentences
             that fill a list or a number of sentences
    filler   goes on about what nobody asked: such sentences, other facts of the world
    end      ends the turn
    other    the rest. Pieces of several words (the B of Baker and of a name) belong here, and so
             do constraints that no token shows: twice, one_word, max_words, avoids

Notation: z_E, z_A, p_E, p_A, q, plausible as in `codit.contrast`; "before" is the expert truncated
to the plausible ids (q at strength 0), "after" is q. Classes and choices are ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from codit import world
from codit.contrast import contrast, plausible
from codit.engine.chat import prompt_ids, special_token_ids, stop_ids
from codit.evaluation import intervals, quality
from codit.pair import ContrastivePair, load_tokenizer
from codit.paper import arms, make, scales, seeds, store
from codit.paper.arms import Arm, JudgedArm, ResponseStudy
from codit.paper.scales import Scale
from codit.recipes import Pair
from codit.world import constraints, facts
from codit.world.recipes import WorldPrompts

CLASSES = ("right", "wrong", "format", "filler", "end", "other")
COMMON = frozenset({*constraints.AVOIDABLE, "to", "me"})  # in answers of every kind
FILLERS = frozenset(constraints.words(" ".join(constraints.FILLERS))) - COMMON
VALUES = frozenset(value.lower() for values in facts.ATTRIBUTES.values() for value in values)
ROWS = 64  # of a teacher-forced batch
KNOWLEDGE = ("fact",)  # families whose answer is a truth of the world
TRADES = ("analogy",)  # half knowledge: the prompt gives the relation; counted as neither


@dataclass(frozen=True, kw_only=True)
class TokenStudy:
    """What both models say at every token of a teacher's responses.

    Args:
        responses: arms and seeds; the arm "direct" must be among them.
        n: prompts of each kind, the first that ask for knowledge and the first that do not.
        repeats: seeds read token by token, the first ones; whole texts are summarised for all.
    """

    responses: ResponseStudy
    n: int = 120
    repeats: int = 4
    version: ClassVar[int] = 1


def recipe(chosen: Scale) -> TokenStudy:
    """Return the study of notebook 05: the first teacher's expert alone, then every strength."""
    tried = (Arm(role="direct"), *scales.strength_arms(chosen))
    return TokenStudy(responses=scales.responses(chosen, tried))


def study(recipe: TokenStudy) -> pd.DataFrame:
    """Return the evidence at every step, one row a token of a response.

    Each arm's own responses are read under its own q (read = "own"); the direct responses under
    every arm's q too (read = "direct"), where the steps are the same at all strengths.

    Columns: read, arm, role, plausibility, strength (0 for truncated, NaN for direct), seed,
    id, family, step, length (tokens), drawn (class of the token), best_before and best_after
    (class of the arg max of p_E and of q), changed (these are two ids), gain (log p_E -
    log p_A of the token, nats), n_plausible, end_rank_before and end_rank_after (rank of the
    end of turn among all ids by p_E, and by the contrast without the plausible set; 1 is the
    arg max), and before_CLASS, after_CLASS (probability mass of the class).

    Raises:
    ValueError: no arm "direct", or prompts that are not the world's.
    """
    return store.tables(recipe, _make)["steps"]


def summaries(recipe: TokenStudy) -> pd.DataFrame:
    """Return what `quality.summarise` says of each arm's responses to all prompts.

    A row per arm and seed: columns of the arm, seed, diversity, length, repetition.
    """
    return store.tables(recipe, _make)["summaries"]


def along_strength(table: pd.DataFrame, plausibility: float) -> pd.DataFrame:
    """Keep the rows of direct generation and of every strength at one plausibility.

    Strength is 0 where the role is truncated and NaN where direct; the new column `at` names both:
    "direct", "0", "0.5", ...
    """
    is_direct = table["role"] == "direct"
    chosen = table["role"].isin(["truncated", "codit"]) & (table["plausibility"] == plausibility)
    kept = table[is_direct | chosen].copy()
    kept.loc[kept["role"] == "truncated", "strength"] = 0.0
    kept["at"] = [f"{s:g}" if s == s else "direct" for s in kept["strength"]]
    return kept


def with_measures(table: pd.DataFrame, asked: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Add what is asked here of a response, from the verdicts' columns id, correct, obeyed.

    `asked` are rows of `world.prompts`. Columns: family, held (share of the constraints that hold),
    and `correct` told apart: knowledge (the answer is a fact of the world) and reading (it follows
    from the prompt), each NaN where the prompt asks for the other, so that means leave it out.
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

    A prompt's rows, of any step and seed, are averaged first, so each prompt counts once. Groups of
    one prompt are left out. Columns: `by`, value, low, high, prompts.
    """
    known = table[table[column].notna()]
    values = known[column].astype("float64")
    per_prompt = values.groupby([known[name] for name in (*by, "id")], dropna=False, observed=True)
    rows = []
    for key, group in per_prompt.mean().groupby(level=list(by), dropna=False, sort=False):
        if len(group) > 1:
            found = seeds.difference(group.to_numpy()[None])
            place = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
            rows.append({**place, **intervals.columns(found), "prompts": found.prompts})
    return pd.DataFrame(rows, columns=[*by, "value", "low", "high", "prompts"])


def mass_shifts(steps: pd.DataFrame, *, open_from: float = 0.01) -> pd.DataFrame:
    """Return how much probability the contrast moves into each class where the class is open.

    shift = mean over open steps of (q mass of the class - its mass under the truncated expert);
    a step is open for a class whose truncated mass lies in [open_from, 1 - open_from]. From 0 on
    every step is open, and shifts of all classes sum to 0. A row per response and class that is
    open somewhere in it: read, role, strength, seed, id, family, class, steps (open ones), before,
    after, shift (means).
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
    """Name a token's class by what its prompt asks for: knowledge or reading.

    "right" and "wrong" become "right fact" and "wrong fact" where the prompt asks for a fact of
    the world, else "read" and "misread"; the others stay.
    """
    knows = family.isin(KNOWLEDGE)
    asked = classes.map({"right": "right fact", "wrong": "wrong fact"}).fillna(classes)
    given = classes.map({"right": "read", "wrong": "misread"}).fillna(classes)
    return asked.where(knows, given)


def places(steps: pd.DataFrame) -> pd.Series:
    """Return where in its response each step lies, the middle of one of five bins in (0, 1)."""
    middle = (steps["step"] + 0.5) / steps["length"]
    return (np.floor(middle * 5) + 0.5) / 5


def teacher_forced(
    pair: ContrastivePair, prompts: Sequence[list[int]], answers: Sequence[list[int]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield z_E and z_A, float32 [T, V], at the tokens of each answer, at least one, in order."""
    for first in range(0, len(prompts), ROWS):
        parts = range(first, min(first + ROWS, len(prompts)))
        width = max(len(prompts[i]) + len(answers[i]) for i in parts)
        ids = torch.zeros(len(parts), width, dtype=torch.long, device=pair.device)
        mask = torch.zeros_like(ids)
        for k, i in enumerate(parts):
            text = torch.tensor([*prompts[i], *answers[i]], device=ids.device)
            ids[k, : len(text)], mask[k, : len(text)] = text, 1
        both = pair.both_logits(ids, mask)
        for k, i in enumerate(parts):
            start = len(prompts[i]) - 1  # position t holds the logits of token t + 1
            expert, amateur = (z[k, start : start + len(answers[i])] for z in both)
            yield expert, amateur


def id_classes(
    tokenizer: PreTrainedTokenizerBase, asked: dict[str, Any], stops: Sequence[int]
) -> np.ndarray[Any, Any]:
    """Return the class of every id of the vocabulary under a prompt, its place in `CLASSES`: [V].

    What spells words of several of filler, wrong, right and the rest of the prompt is other;
    format and end come before these. `stops` are ids that end a turn.
    """
    wanted = {c["kind"]: c["value"] for c in asked["constraints"]}
    right, wrong = (set(constraints.words(" ".join(asked[k]))) for k in ("references", "rivals"))
    right, wrong = right - wrong - COMMON, wrong - COMMON
    named = set(constraints.words(asked["instruction"])) - right - wrong
    is_filling = bool({"sentences", "numbered"} & set(wanted))
    spoken = {wanted[k] for k in ("begins", "ends", "contains") if k in wanted}
    spoken |= {"answer"} if "json" in wanted else set()
    spoken |= FILLERS - right - wrong - named if is_filling else set()
    asides = (VALUES if is_filling else VALUES | FILLERS) - right - wrong - named - spoken
    claims = [_pieces(tokenizer, w) for w in (asides, wrong, right, named | COMMON)]
    shared = {i for i, times in Counter(i for ids in claims for i in ids).items() if times > 1}
    found = np.full(len(tokenizer), CLASSES.index("other"))
    for name, ids in (
        ("filler", claims[0] - shared),
        ("wrong", claims[1] - shared),
        ("right", claims[2] - shared),
        ("format", _pieces(tokenizer, spoken).difference(*claims)),
        ("format", _marks(tokenizer, set(wanted))),
        ("other", set(special_token_ids(tokenizer))),
        ("end", set(stops)),
    ):
        found[sorted(ids)] = CLASSES.index(name)
    return found


def step_table(
    expert: Tensor,
    amateur: Tensor,
    answer: Sequence[int],
    *,
    strength: float,
    plausibility: float,
    classes: np.ndarray[Any, Any],
) -> pd.DataFrame:
    """Return the evidence at each of the T tokens of one answer, z_E and z_A being [T, V].

    `classes` are those of `id_classes`. Columns: logp_expert, logp_amateur, logq (nats, of the
    token; as in `decode.token_table`) and those of `study` from `step` on.
    """
    token = torch.tensor(list(answer), device=expert.device)[:, None]
    before = contrast(expert, None, strength=0.0, plausibility=plausibility)
    logq = contrast(expert, amateur, strength=strength, plausibility=plausibility)
    logp = [z.float().log_softmax(-1).gather(1, token)[:, 0].tolist() for z in (expert, amateur)]
    best, best_q = expert.argmax(-1), logq.argmax(-1)
    kinds = torch.as_tensor(classes)
    ends = kinds == CLASSES.index("end")
    columns: dict[str, Any] = {
        "logp_expert": logp[0],
        "logp_amateur": logp[1],
        "logq": logq.gather(1, token)[:, 0].tolist(),
        "step": range(len(answer)),
        "length": len(answer),
        "drawn": [CLASSES[kinds[i]] for i in answer],
        "best_before": [CLASSES[k] for k in kinds[best]],
        "best_after": [CLASSES[k] for k in kinds[best_q]],
        "changed": (best != best_q).tolist(),
        "gain": np.subtract(*logp),
        "n_plausible": plausible(expert, plausibility=plausibility).sum(-1).tolist(),
    }
    one_hot = torch.nn.functional.one_hot(kinds, len(CLASSES)).float()
    anywhere = contrast(expert, amateur, strength=strength, plausibility=0.0)
    for name, scores in (("before", expert), ("after", anywhere)):
        top = scores[:, ends].amax(-1, keepdim=True)
        columns[f"end_rank_{name}"] = (1 + (scores > top).sum(-1)).tolist()
    for name, logprobs in (("before", before), ("after", logq)):
        masses = (logprobs.exp() @ one_hot).T.tolist()
        columns |= {f"{name}_{one}": mass for one, mass in zip(CLASSES, masses, strict=True)}
    return pd.DataFrame(columns)


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
            **arms.columns(arm),
            "seed": seed,
            **quality.summarise(make.dataset(arms.data(made, arm, seed))),
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
    for arm in made.arms:
        readers = made.arms if arm.role == "direct" else (arm,)
        under = [(one, arms.decoding(one, made.decoding)) for one in readers]
        for seed in made.seeds[: recipe.repeats]:
            rows = make.dataset(arms.data(made, arm, seed))
            given = [(row, _answer(tokenizer, row)) for row in rows if row["id"] in asked]
            given = [(row, answer) for row, answer in given if answer]
            prompts = [prompt_ids(tokenizer, row["messages"][:-1]) for row, _ in given]
            both = teacher_forced(pair, prompts, [answer for _, answer in given])
            for (row, answer), logits in zip(given, both, strict=True):
                for one, how in under:
                    numbers = {"strength": how.strength, "plausibility": how.plausibility}
                    table = step_table(*logits, answer, classes=classes[row["id"]], **numbers)
                    kept = table.drop(columns=["logp_expert", "logp_amateur", "logq"])
                    told = {
                        "read": "own" if one == arm else "direct",
                        **_columns(one),
                        "seed": seed,
                        "id": row["id"],
                        "family": asked[row["id"]]["family"],
                    }
                    yield pd.concat([pd.DataFrame(told, index=kept.index), kept], axis=1)


def _columns(arm: Arm | JudgedArm) -> dict[str, Any]:
    found = arms.columns(arm)
    strength = 0.0 if arm.role == "truncated" else found["strength"]
    return {name: found[name] for name in ("arm", "role", "plausibility")} | {"strength": strength}


def _asked(recipe: TokenStudy) -> dict[str, dict[str, Any]]:
    """Return the prompts that are read: the first that ask for knowledge, the first of others."""
    made = recipe.responses
    if not isinstance(made.prompts, WorldPrompts) or Arm(role="direct") not in made.arms:
        raise ValueError(
            "expected responses to the world's prompts with the arm 'direct'; got "
            f"{type(made.prompts).__name__} and {[arm.label for arm in made.arms]}. Use a scale of "
            "the micro world and recipe."
        )
    rows = world.prompts(made.prompts)
    knowing = [row for row in rows if row["family"] in KNOWLEDGE]
    reading = [row for row in rows if row["family"] not in KNOWLEDGE + TRADES]
    return {row["id"]: row for row in knowing[: recipe.n] + reading[: recipe.n]}


def _teacher(recipe: Pair) -> tuple[ContrastivePair, PreTrainedTokenizerBase]:
    revision = getattr(recipe.expert, "revision", None)
    tokenizer = load_tokenizer(make.model_path(recipe.expert), revision=revision)
    return make.load_pair(recipe), tokenizer


def _answer(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> list[int]:
    """Return a response's ids: its text tokenised again, and the stop token where it stopped.

    Datasets keep texts. A text can be spelled in several ways; of the micro teacher's responses
    at least 99 of 100 are drawn as the tokenizer spells them.
    """
    ids: list[int] = tokenizer(row["response"], add_special_tokens=False).input_ids
    return ids + [tokenizer.eos_token_id] * bool(row["is_completed"])


def _pieces(tokenizer: PreTrainedTokenizerBase, words: Iterable[str]) -> set[int]:
    """Return the ids that spell any of these words, capitalised or not, at a start or within."""
    spellings = {
        f"{gap}{w}" for word in words for w in (word, word.capitalize()) for gap in ("", " ")
    }
    encoded = tokenizer(sorted(spellings), add_special_tokens=False).input_ids if spellings else []
    blank = tokenizer(" ", add_special_tokens=False).input_ids
    return {i for ids in encoded for i in ids} - set(blank)


def _marks(tokenizer: PreTrainedTokenizerBase, kinds: set[str]) -> set[int]:
    """Return the ids of the marks that constraints of these kinds ask for."""
    asks: dict[str, Callable[[str], bool]] = {
        "json": lambda t: bool(set(t) & set('{}":')),
        "quoted": lambda t: '"' in t and not set(t) & set("{}:"),
        "numbered": lambda t: t.strip().isdecimal() or "\n" in t,
        "capitals": lambda t: t != t.lower() and t == t.upper(),
    }
    wanted = [asks[kind] for kind in sorted(kinds & set(asks))]
    texts = [tokenizer.decode([i]) for i in range(len(tokenizer))] if wanted else []
    return {i for i, text in enumerate(texts) if any(is_asked(text) for is_asked in wanted)}
