"""Which heads carry an instruction of the micro world, and what their vector does in its stead.

A kind of instruction is one constraint with a fixed argument, asked of tasks of every family. Maps:
what putting one head's mean output back gives of the answer, where the instruction was removed or
is another. Intervention: the vector of the best heads added while the model answers the bare task;
how many heads, which layer and how much are chosen on dev tasks and reported on test tasks. Method:
`codit.instruction_vector`. Values and choices are ours.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from codit import decode, student, world
from codit import instruction_vector as iv
from codit.engine.chat import prompt_ids
from codit.evaluation import intervals
from codit.paper import arms, make, store
from codit.paper.scales import Scale
from codit.recipes import Decoding, Pair
from codit.world import constraints, instructions
from codit.world.recipes import WorldPrompts

VALUES = {"sentences": "2", "numbered": "2", "max_words": "4"}  # of kinds that have an argument
NAMES = {
    "capitals": "capitals",
    "json": "JSON",
    "quoted": "quotes",
    "numbered": "numbered list",
    "one_word": "one word",
    "max_words": "four words",
    "twice": "said twice",
    "sentences": "two sentences",
}
TRIES = 6  # ideal answers written before a task and a kind count as impossible together
TOGETHER = (1, 3, 5)  # best heads written into together
GREEDY: Decoding = arms.greedy_decoding(48)
POOL = 2000  # prompts whose tasks are tried, in their order
SHOWN = 3  # texts kept of each kind and way
MEASURES = ("first", "answer")
RANDOM = (0, 1, 2)  # seeds of vectors of no meaning
WAYS = {
    "asked": "with the instruction",
    "plain": "without",
    "vector": "without, + γ θc",
    "other": "without, + θc of another kind",
    "random": "without, + random vector",
}


@dataclass(frozen=True, kw_only=True)
class HeadStudy:
    """Indirect effects of every head, of each teacher's expert and of the amateur.

    Args:
        teachers: pairs of one amateur. Tasks and answers are those that the first one's expert
            answers as told, for all models alike.
        prompts: tasks are theirs; their own constraints are left out.
        kinds: of instructions.
        n: tasks of each kind.
        how: what is done to a head, of `instruction_vector.HOW`.
        corruptions: of `instruction_vector.CORRUPTIONS`.
    """

    teachers: tuple[Pair, ...]
    prompts: WorldPrompts
    kinds: tuple[str, ...]
    n: int
    how: str = "replace"
    corruptions: tuple[str, ...] = ("removed", "mismatched")
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class InterventionStudy:
    """Answers of the first teacher's expert to bare tasks, with vectors added.

    Args:
        heads: whose means and maps are used; choices are made on its prompts.
        test: prompts whose tasks are reported on.
        n: test tasks of each kind.
        sizes: numbers of heads that are tried.
        gammas: amounts that are tried, at every layer. 1: function vectors (Todd et al. 2023).
        least: heads are chosen by the first token where the instruction raises its probability by
            as much, else by the whole answer.
    """

    heads: HeadStudy
    test: WorldPrompts
    n: int
    sizes: tuple[int, ...] = (1, 5)
    gammas: tuple[float, ...] = (1.0, 2.0, 4.0)
    least: float = 0.1
    version: ClassVar[int] = 1


def recipe(chosen: Scale) -> HeadStudy:
    """Return the study of notebook 42: for each kind a sixteenth of the scale's dev prompts."""
    if chosen.dev is None:
        raise ValueError("expected a scale with dev prompts; got none. Use micro or full.")
    return HeadStudy(
        teachers=tuple(chosen.teachers.values()),
        prompts=WorldPrompts(world=chosen.dev.world, split="dev", n=POOL),
        kinds=chosen.kinds,
        n=max(2, chosen.dev.n // 16),
    )


def intervention_recipe(chosen: Scale) -> InterventionStudy:
    """Return the study of notebook 43: for each kind a sixteenth of the scale's test prompts."""
    test = dict(chosen.tests)["test"]
    return InterventionStudy(
        heads=recipe(chosen),
        test=WorldPrompts(world=test.world, split="test", n=POOL),
        n=max(2, test.n // 16),
    )


def study(recipe: HeadStudy) -> dict[str, pd.DataFrame]:
    """Return a study's tables.

    effects: a row per model, kind, corruption, measure ("first": probability, "answer": nats per
    token) and task: asked and bare (the measure with and without the instruction), one column
    LAYER.HEAD for each head's indirect effect, and top_N: N best heads of the other half of the
    tasks written into together. overlap: cosine of theta_c (three best heads) with what
    post-training changed in the residual stream at the last prompt token: teacher, kind, layer.
    """
    return store.tables(recipe, _maps)


def intervention(recipe: InterventionStudy) -> dict[str, pd.DataFrame]:
    """Return a study's tables.

    choices: strict and correct (means over dev tasks) of every kind, size, layer, gamma. verdicts:
    a row per kind, way (of `WAYS`), seed and test task: `make.KEPT`. chosen: kind, measure, heads,
    size, layer, gamma. texts: prompt and response of a few tasks.
    """
    return store.tables(recipe, _interventions)


@functools.lru_cache(maxsize=64)
def tasks(prompts: WorldPrompts, kind: str, n: int) -> list[dict[str, Any]]:
    """Return n prompts that ask for one kind of instruction, as rows of `world.prompts`; and task.

    Texts of their own split only, and only those that an answer can meet. ValueError: too few.
    """
    asked = world.Constraint(kind, VALUES.get(kind, ""))
    draw, rows = Random(f"{kind} {prompts.split}"), dict[str, dict[str, Any]]()
    for one in instructions.instructions(prompts):
        text = f"{one.task.text} {asked.text()}"
        if text in rows or instructions.reserved_for(text) != prompts.split:
            continue
        ideals = [constraints.write(one.task, [asked], draw) for _ in range(TRIES)]
        fits = (i for i in ideals if world.obeys(i, asked))
        right = (one.task.required, one.task.rivals)
        if ideal := next((i for i in fits if instructions.is_correct(i, *right)), None):
            told = instructions.Instruction(one.task, (asked,), ideal)
            row = {"id": f"{kind}-{len(rows):04d}", "instruction": text, "task": one.task.text}
            rows[text] = {**row, "family": one.task.family, **told.checked}
        if len(rows) == n:
            return list(rows.values())
    raise ValueError(
        f"expected {n} tasks for {kind!r} among {prompts.n} prompts; got {len(rows)}. "
        "Ask for fewer."
    )


def _ids(tokenizer: Any, chats: Sequence[Any]) -> list[list[int]]:
    return [prompt_ids(tokenizer, chat) for chat in chats]


def _asked(row: dict[str, Any]) -> iv.Asked:
    task = row["task"]
    return iv.Asked(task=task, instruction=row["instruction"].removeprefix(task).strip())


def _followed(recipe: HeadStudy) -> dict[str, list[tuple[dict[str, Any], list[int]]]]:
    """Return, by kind, tasks with the first expert's own answers, where these are as told."""
    model, tokenizer = make.load_model(recipe.teachers[0].expert)
    found = {}
    for kind in recipe.kinds:
        rows = tasks(recipe.prompts, kind, 3 * recipe.n)
        chats = [_asked(row).chat() for row in rows]
        answers = decode.generate(model, tokenizer, chats, GREEDY, progress=False)
        kept = [
            (row, answer.token_ids)
            for row, answer in zip(rows, answers, strict=True)
            if answer.is_completed and make.verdict(answer.text, row)["strict"]
        ]
        found[kind] = kept[: recipe.n]
    return found


def _models(recipe: HeadStudy) -> dict[str, Any]:
    experts = {f"expert {n}": p.expert for n, p in zip("ABCDEFGH", recipe.teachers, strict=False)}
    return {**experts, "amateur": recipe.teachers[0].amateur}


def _maps(recipe: HeadStudy, folder: Path) -> dict[str, pd.DataFrame]:
    followed = _followed(recipe)
    amateur, _ = make.load_model(recipe.teachers[0].amateur)
    parts, overlaps = [], []
    for name, one in _models(recipe).items():
        model, tokenizer = make.load_model(one)
        for kind, rows in followed.items():
            prompts = _ids(tokenizer, [_asked(row).chat() for row, _ in rows])
            means = iv.head_outputs(model, prompts).mean(0)
            for corruption in recipe.corruptions:
                bare = _ids(tokenizer, _corrupted(followed, kind, corruption))
                answers = [ids for _, ids in rows]
                table, best = _effects(model, prompts, bare, answers, means, recipe.how)
                told = {"model": name, "kind": kind, "corruption": corruption}
                parts.append(table.assign(**told, id=[r["id"] for r, _ in rows] * len(MEASURES)))
                if corruption == "removed" and name != "amateur":
                    theta = iv.vector(model, means, best).theta
                    overlaps += _overlap(model, amateur, prompts, theta, teacher=name, kind=kind)
    return {"effects": pd.concat(parts, ignore_index=True), "overlap": pd.DataFrame(overlaps)}


def _corrupted(followed: Any, kind: str, how: str) -> list[Any]:
    """Return the conversations of a kind without it; a mismatched one is another kind's."""
    mine = [_asked(row) for row, _ in followed[kind]]
    others = [_asked(row) for k, rows in followed.items() if k != kind for row, _ in rows[:1]]
    turned = [[one, *others[n % len(others) :], *others] for n, one in enumerate(mine)]
    return [iv.corrupted(group if how == "mismatched" else group[:1], how)[0] for group in turned]


def _effects(
    model: Any, prompts: Any, bare: Any, answers: Any, means: Tensor, how: str
) -> tuple[pd.DataFrame, list[iv.Head]]:
    """Return the effects of one model and kind, and its three best heads by the first token."""
    found = iv.indirect_effects(model, bare, answers, means, how=how)
    n, half = len(bare), np.arange(len(bare)) % 2
    sizes = [size for size in TOGETHER if size <= means.shape[0] * means.shape[1]]
    together = torch.zeros(len(MEASURES), n, len(sizes))
    for side in (0, 1):
        mine, other = (np.flatnonzero(half == s) for s in (side, 1 - side))
        for number, effects in enumerate(found):
            sets = [iv.top(effects[other], size) for size in sizes]
            picked = ([x[i] for i in mine] for x in (bare, answers))
            together[number, mine] = iv.effects(model, *picked, means, sets, how=how)[number]
    ends = []
    for ids in (prompts, bare):
        logp = iv.answer_logprobs(model, ids, answers)
        ends.append([[p[0].exp().item() for p in logp], [p.mean().item() for p in logp]])
    tables = []
    for number, measure in enumerate(MEASURES):
        heads = {
            f"{layer}.{head}": found[number][:, layer, head]
            for layer in range(means.shape[0])
            for head in range(means.shape[1])
        }
        best = {f"top_{size}": together[number, :, i] for i, size in enumerate(sizes)}
        told = {"asked": ends[0][number], "bare": ends[1][number], **heads, **best}
        table = pd.DataFrame({k: np.asarray(v, dtype="float32") for k, v in told.items()})
        tables.append(table.astype("float16").assign(measure=measure))
    return pd.concat(tables, ignore_index=True), iv.top(found.first, min(3, sizes[-1]))


@torch.no_grad()
def _overlap(
    model: Any, amateur: Any, prompts: Any, theta: Tensor, **told: str
) -> Iterator[dict[str, Any]]:
    """Yield the cosine of theta_c with expert - amateur in the residual stream, layer by layer."""
    sums = []
    for one in (model, amateur):
        seen = torch.zeros(one.config.num_hidden_layers + 1, one.config.hidden_size)
        for ids in prompts:
            hidden = one(torch.tensor([ids]), output_hidden_states=True).hidden_states
            seen += torch.stack([h[0, -1].float() for h in hidden])
        sums.append(seen / len(prompts))
    for layer, change in enumerate((sums[0] - sums[1])[1:-1]):  # the last is normalised already
        cosine = torch.cosine_similarity(change, theta, dim=0).item()
        yield {**told, "layer": layer, "cosine": cosine}


# ---- intervention


def _interventions(recipe: InterventionStudy, folder: Path) -> dict[str, pd.DataFrame]:
    effects = study(recipe.heads)["effects"]
    model, tokenizer = make.load_model(recipe.heads.teachers[0].expert)
    vectors, choices, chosen = {}, [], []
    for kind, rows in _followed(recipe.heads).items():
        measure = telling(effects, recipe.least)[kind]
        found = _measured(effects, kind, measure)
        prompts = _ids(tokenizer, [_asked(row).chat() for row, _ in rows])
        means = iv.head_outputs(model, prompts).mean(0)
        sizes = {n: iv.vector(model, means, iv.top(found, n)) for n in recipe.sizes}
        tried = _tried(recipe, model, tokenizer, kind, sizes)
        order = {"strict": False, "correct": False, "gamma": True}
        best = tried.sort_values([*order], ascending=[*order.values()], kind="stable").iloc[0]
        size, layer = int(best["size"]), int(best["layer"])
        vectors[kind] = (sizes[size], layer, float(best["gamma"]))
        heads = " ".join(f"({h.layer},{h.head})" for h in sizes[size].heads)
        told = {"kind": kind, "measure": measure, "heads": heads, "size": size}
        chosen.append({**told, "layer": layer, "gamma": best["gamma"]})
        choices.append(tried.assign(kind=kind))
    reported = [
        ({"kind": kind, **told}, table)
        for kind in vectors
        for told, table in _reported(recipe, model, tokenizer, kind, vectors)
    ]
    shown = ["prompt", "response", "strict", "correct"]
    texts = [table[shown].head(SHOWN).assign(**told) for told, table in reported]
    return {
        "choices": pd.concat(choices, ignore_index=True),
        "verdicts": make.compact((told, t[["id", *make.KEPT]]) for told, t in reported),
        "chosen": pd.DataFrame(chosen),
        "texts": pd.concat(texts, ignore_index=True),
    }


def telling(effects: pd.DataFrame, least: float = 0.1) -> dict[str, str]:
    """Return by which measure each kind is judged.

    "first" where removing the instruction costs the first expert `least` of the first token's
    probability or more, else "answer": the first token is then the same with and without it.
    """
    own = effects[(effects["model"] == effects["model"].iloc[0]) & (effects["measure"] == "first")]
    own = own[own["corruption"] == "removed"]
    gaps = (own["asked"] - own["bare"]).groupby(own["kind"], sort=False).mean()
    return {str(kind): "first" if gap >= least else "answer" for kind, gap in gaps.items()}


def _measured(effects: pd.DataFrame, kind: str, measure: str) -> Tensor:
    """Return the effects of the first expert's heads where the kind was removed, [N, L, H]."""
    told = {"model": effects["model"].iloc[0], "kind": kind, "measure": measure}
    own = effects[effects["corruption"] == "removed"]
    for column, value in told.items():
        own = own[own[column] == value]
    columns = [c for c in effects if "." in c]
    shape = tuple(int(part) + 1 for part in columns[-1].split("."))
    return torch.from_numpy(own[columns].to_numpy("float32")).unflatten(1, shape)


def _tried(
    recipe: InterventionStudy, model: Any, tokenizer: Any, kind: str, sizes: dict[int, Any]
) -> pd.DataFrame:
    rows = _bare(tasks(recipe.heads.prompts, kind, recipe.heads.n))
    found = []
    for size, theta in sizes.items():
        for layer in range(model.config.num_hidden_layers):
            for gamma in recipe.gammas:
                with iv.intervene(model, theta, layer=layer, gamma=gamma):
                    table = _answered(model, tokenizer, rows)
                told = {"size": size, "layer": layer, "gamma": gamma}
                means = {m: float(table[m].mean()) for m in ("strict", "correct")}
                found.append({**told, **means})
    return pd.DataFrame(found)


def _reported(
    recipe: InterventionStudy, model: Any, tokenizer: Any, kind: str, vectors: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield the answers to test tasks in every way, each with what tells it from the others."""
    asked = tasks(recipe.test, kind, recipe.n)
    vector, layer, gamma = vectors[kind]
    length = vector.theta.norm()
    kinds = list(vectors)
    other = vectors[kinds[(kinds.index(kind) + 1) % len(kinds)]][0].theta
    added = {("vector", 0): vector.theta, ("other", 0): other * length / other.norm()}
    for seed in RANDOM:
        noise = torch.randn(len(vector.theta), generator=torch.Generator().manual_seed(seed))
        added["random", seed] = noise * length / noise.norm()
    yield {"way": "asked", "seed": 0}, _answered(model, tokenizer, asked)
    yield {"way": "plain", "seed": 0}, _answered(model, tokenizer, _bare(asked))
    for (way, seed), theta in added.items():
        with iv.intervene(model, theta, layer=layer, gamma=gamma):
            yield {"way": way, "seed": seed}, _answered(model, tokenizer, _bare(asked))


def _bare(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**row, "instruction": row["task"]} for row in rows]


def _answered(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> pd.DataFrame:
    table = student.evaluate(model, tokenizer, rows, make.verdict, GREEDY, progress=False)
    table = table.rename(columns={"n_tokens": "tokens"})
    return table.assign(prompt=[row["instruction"] for row in rows])


# ---- what notebooks read of them


def head_map(effects: pd.DataFrame, **where: str) -> pd.DataFrame:
    """Return mean indirect effects as layers by heads, of the rows whose columns are as `where`."""
    own = effects
    for column, value in where.items():
        own = own[own[column] == value]
    means = own[[c for c in effects if "." in c]].astype("float64").mean()
    places = pd.MultiIndex.from_tuples([c.split(".") for c in means.index], names=["layer", "head"])
    return pd.Series(means.to_numpy(), index=places).unstack()


def map_table(effects: pd.DataFrame) -> pd.DataFrame:
    """Return every head's mean effect as `plots.head_maps` draws it, each kind by its measure.

    Columns: model, kind (its name, with the measure where that is the whole answer), layer, head,
    value.
    """
    parts = []
    for model in dict.fromkeys(effects["model"]):
        for kind, measure in telling(effects).items():
            where = {"model": model, "kind": kind, "measure": measure, "corruption": "removed"}
            values = head_map(effects, **where).stack().rename("value").reset_index()
            name = NAMES[kind] + ("" if measure == "first" else " (nats)")
            parts.append(values.assign(model=model, kind=name))
    return pd.concat(parts, ignore_index=True)


def shares(effects: pd.DataFrame) -> pd.DataFrame:
    """Return how much of what was lost the best heads give back, for each model, kind, measure.

    share = mean effect of the heads / mean loss (asked - bare), 95 % bootstrap interval over tasks,
    for every top_N. Columns: model, kind, corruption, measure, heads, value, low, high, gap, n.
    """
    rows = []
    keys = ["model", "kind", "corruption", "measure"]
    for key, own in effects.groupby(keys, sort=False):
        gap = (own["asked"] - own["bare"]).to_numpy("float64")
        for column in (c for c in effects if c.startswith("top_")):
            written = own[column].to_numpy("float64")

            def share(places: Any, written: Any = written, gap: Any = gap) -> float:
                return float(written[places].sum() / gap[places].sum())

            found = intervals.statistic_interval(share, range(len(gap)))
            told = dict(zip(keys, key, strict=True)) | {"heads": int(column.removeprefix("top_"))}
            rows.append({**told, **intervals.columns(found), "gap": gap.mean(), "n": len(gap)})
    return pd.DataFrame(rows)


def agreement(effects: pd.DataFrame, one: str, other: str, **where: str) -> pd.DataFrame:
    """Return, by kind, how alike two models' maps are: correlation, and best three heads shared."""
    rows = []
    for kind in dict.fromkeys(effects["kind"]):
        maps = [
            head_map(effects, model=m, kind=kind, **where).to_numpy().ravel() for m in (one, other)
        ]
        best = [set(np.argsort(-m, kind="stable")[:3]) for m in maps]
        correlation = float(np.corrcoef(*maps)[0, 1])
        rows.append({"kind": kind, "correlation": correlation, "shared": len(best[0] & best[1])})
    return pd.DataFrame(rows)
