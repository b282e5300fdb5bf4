"""What judges say of the arms' responses, over a real server, beside what the verifier says.

A study asks every judge five things: a score for each response of the arms; a score for each of
several direct responses (Best-of-N chooses by it); which of two arms is better, in both orders;
the same of a response and itself; and scores under budgets too small for some replies. Every reply
is kept while the study is made, and everything is asked twice: the second time must cost nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from codit import comparison, experiments, judge, results, store, world
from codit.comparison import POOL, Arm, JudgedArm, LLMJudge, ResponseStudy, check_names, judge_label
from codit.experiments import Scale
from codit.judge import Judged
from codit.judge_recipes import WorldJudge
from codit.judging import Asked, asked
from codit.recipes import File, WorldPrompts
from codit.results import dataset

TABLES = ("scores", "comparisons", "costs")
REPLIES = "replies.sqlite"
SAME = "itself"


@dataclass(frozen=True, kw_only=True)
class JudgeStudy:
    """Judges on the responses of arms to the same prompts.

    Args:
        responses: the arms, one seed of the noise each. Prompts that stood in the lessons of a
            judge of the world are left out.
        judges: who is asked.
        pairs: roles compared with each other, as (one, other).
        n_pairs: prompts on which they are compared.
        budgets: limits of a reply in tokens that are tried; 0 is a judge's own.
        n_budget: prompts on which they are tried, with the responses of the last arm.
    """

    responses: ResponseStudy
    judges: tuple[WorldJudge | LLMJudge, ...]
    pairs: tuple[tuple[str, str], ...] = (("codit", "direct"), ("codit", "truncated"))
    n_pairs: int = 400
    budgets: tuple[int, ...] = ()
    n_budget: int = 200
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_names(self.judges)


def recipes(chosen: Scale) -> dict[str, JudgeStudy]:
    """Return the studies of notebook 08 by what their prompts are to a judge.

    Args:
        chosen: the scale.

    Returns:
        dict: "known": the datasets' own prompts; of the micro world they are about people of whom
        its judges have read. "unknown", where the scale has a test set: about people of whom they
        have not, so that they cannot know what is right. Budgets are tried on the first alone.

    Raises:
        ValueError: a scale without judges, or whose prompts are a file.

    Source: judged datasets: CoDIT, Figures 2 and 4; all else ours.
    """
    judging = chosen.judging
    if not judging.judges or isinstance(chosen.prompts, File):
        raise ValueError("expected a scale with judges, whose prompts are drawn. Give judges.")
    arms = (Arm(role="direct"), *experiments.contrast_arms(chosen.decoding.plausibility))
    sets = {"known": chosen.prompts, "unknown": dict(chosen.tests).get("test")}
    found: dict[str, JudgeStudy] = {}
    for name, prompts in sets.items():
        if prompts is not None:
            asked_of = replace(prompts, n=min(prompts.n, judging.n_prompts))
            found[name] = JudgeStudy(
                responses=experiments.responses(chosen, arms, prompts=asked_of, seeds=(0,)),
                judges=judging.judges,
                n_pairs=judging.n_prompts // 2,
                budgets=() if found else judging.budgets,
                n_budget=judging.n_prompts // 2,
            )
    return found


def study(recipe: JudgeStudy) -> dict[str, pd.DataFrame]:
    """Return what every judge says; whatever does not exist yet is made.

    Args:
        recipe: arms, judges, comparisons, budgets.

    Returns:
        dict: "scores": judge, part ("arms", "pool" or "budget"), arm (its role), id, sample, budget
        (tokens), length (characters), score (NaN without one), state, and of the verifier score,
        strict and correct as `verifier`, `strict`, `correct` (NaN where it knows nothing);
        "comparisons": judge, part ("arms" or "itself"), one, other, id, sample, order, value,
        state, length_one, length_other, verifier_one, verifier_other;
        "costs": judge, of ("scores" or "comparisons"), part, arm or one and other, run (1 or 2),
        the counts of `judge.Tally`, honoured, ignored, rejected (of the schema), ok.

    Raises:
        ValueError: see `judging.asked` and `make`.

    Source: ours.
    """
    return store.tables(recipe, make)


def make(recipe: JudgeStudy, folder: Path) -> dict[str, pd.DataFrame]:
    """Ask every judge everything, twice, and return the tables of `study`.

    Args:
        recipe: which study.
        folder: holds every reply so far, which is not asked again after a kill.

    Raises:
        ValueError: the server gave no reply to more questions than `Asking` lets fail by default.

    Source: ours.
    """
    seen = lessons(recipe)
    arms = {arm.role: _rows(recipe, arm, seen) for arm in recipe.responses.arms}
    pool = _rows(recipe, Arm(role="best-of-n", n=POOL), seen)
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for one in recipe.judges:
        with asked(one) as whom:
            for run in (1, 2):
                for name, table in _ask(recipe, arms, pool, whom, folder / REPLIES):
                    if run == 1 or name == "costs":
                        found[name].append(table.assign(judge=judge_label(one), run=run))
                check_heard(pd.concat([t["state"] for n in TABLES[:2] for t in found[n]]))
    known = _verifier(recipe, arms, pool)
    scores = pd.concat(found["scores"], ignore_index=True).drop(columns="run")
    scores = scores.merge(known, on=["arm", "id", "sample"], how="left", validate="many_to_one")
    pairs = _both(pd.concat(found["comparisons"], ignore_index=True).drop(columns="run"), known)
    costs = pd.concat(found["costs"], ignore_index=True)
    return {"scores": scores, "comparisons": pairs, "costs": costs}


def check_heard(states: pd.Series[str]) -> None:
    """Raise where a server fell silent: what lacks its replies must not be kept as finished.

    Args:
        states: of judgements.

    Raises:
        ValueError: more have no reply than `Asking` lets fail by default.

    Source: ours.
    """
    share = float((states == "api_error").mean())
    if share > judge.Asking().max_failures:
        raise ValueError(
            f"expected replies; {share:.1%} of {len(states)} judgements have none. Look at the "
            "server and ask again: what was replied is kept."
        )


def lessons(recipe: JudgeStudy) -> frozenset[str]:
    """Return the instructions that judges of a study were trained on.

    Args:
        recipe: which study.

    Returns:
        frozenset: texts; empty where all judges come from elsewhere.

    Source: ours.
    """
    taught = {one.prompts for one in recipe.judges if isinstance(one, WorldJudge)}
    return frozenset(text for prompts in taught for text in _texts(prompts))


@functools.lru_cache(maxsize=2)
def _texts(prompts: WorldPrompts) -> tuple[str, ...]:
    return tuple(row["instruction"] for row in world.prompts(prompts))


def _rows(recipe: JudgeStudy, arm: Arm | JudgedArm, seen: frozenset[str]) -> list[dict[str, Any]]:
    """Return an arm's responses as a judge takes them; of Best-of-N all that compete."""
    data: Any = comparison.data(recipe.responses, arm, recipe.responses.seeds[0])
    found = dataset(data.pool if arm.role == "best-of-n" else data)
    names = ("id", "instruction", "response", "is_completed", "sample")
    new = [row for row in found if row["instruction"] not in seen]
    return [{name: row[name] for name in names if name in row} for row in new]


def _ask(
    recipe: JudgeStudy,
    arms: dict[str, list[dict[str, Any]]],
    pool: list[dict[str, Any]],
    whom: Asked,
    cache: Path,
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield a judge's tables, part by part, each with its costs."""
    score = functools.partial(judge.score, cache=cache, asking=whom.asking)
    compare = functools.partial(judge.compare, cache=cache, asking=whom.asking)
    for role, rows in {**arms, "pool": pool}.items():
        part = {"part": "pool" if role == "pool" else "arms", "arm": role, "budget": 0}
        yield from _told("scores", score(rows, whom.judge), part)
    few = {role: rows[: recipe.n_pairs] for role, rows in arms.items()}
    wanted = [(a, b) for a, b in recipe.pairs if a in few and b in few]
    for one, other in [*wanted, *((role, role) for role in list(few)[-1:])]:
        part = {"part": SAME if one == other else "arms", "one": one, "other": other}
        yield from _told("comparisons", compare(few[one], few[other], whom.judge), part)
    last = list(arms)[-1]
    for budget in recipe.budgets:
        tight = replace(whom.judge, max_tokens=budget)
        part = {"part": "budget", "arm": last, "budget": budget}
        yield from _told("scores", score(arms[last][: recipe.n_budget], tight), part)


def _told(name: str, judged: Judged, part: dict[str, Any]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield what was said and what it cost."""
    table = judged.table if name == "scores" else judged.judgements
    kept = ["id", "sample", "length", "score", "state", "length_baseline", "order", "value"]
    table = table[[column for column in kept if column in table]]
    yield name, table.assign(**part)
    tally = asdict(judged.tally)
    schema, states = tally.pop("schema"), tally.pop("states")
    counts = {name: schema.get(name, 0) for name in ("honoured", "ignored", "rejected")}
    costs = {**tally, **counts, "ok": states.get("ok", 0), "of": name}
    yield "costs", pd.DataFrame([{**costs, **{k: v for k, v in part.items() if k != "budget"}}])


def _verifier(
    recipe: JudgeStudy, arms: dict[str, list[dict[str, Any]]], pool: list[dict[str, Any]]
) -> pd.DataFrame:
    """Return what the verifier says of every response; NaN where it does not know the prompts."""
    prompts, parts = recipe.responses.prompts, {**arms, "pool": pool}
    names = {"score": "verifier", "strict": "strict", "correct": "correct"}
    asked_of = world.prompts(prompts) if isinstance(prompts, WorldPrompts) else []
    tables = []
    for role, rows in parts.items():
        told = pd.DataFrame({"id": [row["id"] for row in rows], "arm": role})
        told["sample"] = [row.get("sample", 0) for row in rows]
        if asked_of:
            said = results.verdicts(rows, asked_of)
            told = told.assign(**{to: said[name].astype("float64") for name, to in names.items()})
        else:
            told = told.assign(**dict.fromkeys(names.values(), float("nan")))
        tables.append(told)
    return pd.concat(tables, ignore_index=True)


def _both(pairs: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """Return comparisons with the verifier's scores of both responses."""
    known = known[["arm", "id", "sample", "verifier"]]
    for side in ("one", "other"):
        own = known.rename(columns={"arm": side, "verifier": f"verifier_{side}"})
        pairs = pairs.merge(own, on=[side, "id", "sample"], how="left", validate="many_to_one")
    return pairs.rename(columns={"length": "length_one", "length_baseline": "length_other"})
