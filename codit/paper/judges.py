"""Judges that answer, and what they say of the arms' responses and of students, over a real server.

The world's judges are served here, others elsewhere. Of responses a study asks every judge five
things: a score for each response of the arms; a score for each of several direct responses
(Best-of-N chooses by it); which of two arms is better, in both orders; the same of a response and
itself; and scores under budgets too small for some replies. Every reply is kept while the study is
made, and everything is asked twice: the second time must cost nothing. Students' answers are scored
from 1 to 10 (as WildBench's) and compared with those of direct sampling (as AlpacaEval's). The
verifier's word on the same texts stands beside.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from datasets import Dataset

from codit import recipes, world
from codit.dataset import output
from codit.evaluation import intervals, judge
from codit.evaluation.judge import Asking, Judge, Judged
from codit.files import line_of, replacing, write_json
from codit.paper import arms as comparison
from codit.paper import make as results
from codit.paper import scales, store
from codit.paper import tables as evidence
from codit.paper.arms import (
    POOL,
    Arm,
    JudgedArm,
    JudgedBest,
    LLMJudge,
    ResponseStudy,
    StudentStudy,
    check_names,
    judge_label,
)
from codit.paper.make import dataset, responses
from codit.paper.scales import Scale
from codit.recipes import File
from codit.world import judge as world_judge
from codit.world.recipes import WorldJudge, WorldPrompts

CACHE_TOKENS = 16_384  # of a served judge: 64 questions of the world at the same time (ours)
AT_ONCE = 64  # ours
ADDRESS = "OPENAI_BASE_URL"
JUDGEMENTS = "judgements.sqlite"  # of every judge that a recipe asks
REPLIES = "replies.sqlite"  # of a study, while it is made
TABLES = ("scores", "comparisons", "costs")
SAME = "itself"
MEASURES = ("strict", "correct")
BASELINE = "direct"  # role of the arm that the others are compared with
VERIFIER = "verifier"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A judge that answers.

    Args:
        judge: whom to ask.
        asking: how; failures are counted and never end a run.
    """

    judge: Judge
    asking: Asking


@contextlib.contextmanager
def asked(recipe: WorldJudge | LLMJudge) -> Iterator[Asked]:
    """Make a judge answer, for a `with` block.

    The world's judge is made where there is none and served on this machine; it answers greedily.
    Any other is asked where OPENAI_BASE_URL says.

    Args:
        recipe: which judge.

    Yields:
        Asked: for `judge.score` and its sisters.

    Raises:
        ValueError: a served judge that does not start, or no address of another.

    Source: ours.
    """
    if isinstance(recipe, LLMJudge):
        if not os.environ.get(ADDRESS):
            raise ValueError(
                f"expected the address of a server with {recipe.model} in {ADDRESS}; it is not "
                "set. Start one (`vllm serve ...`) and set it, such as http://127.0.0.1:8000/v1."
            )
        yield Asked(judge=Judge(**asdict(recipe)), asking=Asking(max_failures=1.0))
        return
    folder = store.get(recipe, world_judge.make)
    with world_judge.serve(folder, cache_tokens=CACHE_TOKENS) as url:
        yield Asked(
            judge=Judge(
                model=folder.name,
                base_url=url,
                revision=recipes.key(recipe),
                temperature=0.0,
                max_tokens=world_judge.REPLY_TOKENS,
            ),
            asking=Asking(concurrency=AT_ONCE, max_failures=1.0),
        )


def judged_best(recipe: JudgedBest) -> Dataset:
    """Return, for each prompt, that of the first n responses which a judge scores highest.

    Args:
        recipe: the pool of responses, the judge, n; what is missing is made.

    Returns:
        Dataset: rows of the pool; of equal scores the first sample. Every reply is kept in the
        store's `judgements.sqlite` and paid for once, whichever recipe asks.

    Raises:
        ValueError: see `best_of`.

    Source: Best-of-N is a baseline of CoDIT (arXiv 2604.13538); N and ties: ours.
    """

    def make(recipe: JudgedBest, folder: Path) -> None:
        pool = list(responses(recipe.pool))
        rows, summary = best_of(recipe, pool, cache=store.cache() / JUDGEMENTS)
        with replacing(folder / "responses.jsonl") as stream:
            stream.writelines(line_of(row).encode() for row in rows)
        write_json(folder / "summary.json", summary)

    return output.read(store.get(recipe, make) / "responses.jsonl")


def best_of(
    recipe: JudgedBest, pool: list[dict[str, Any]], *, cache: str | Path
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return, of the first n responses to each prompt, the one that a judge scores highest.

    Args:
        recipe: judge and n.
        pool: rows of the pool's dataset, n or more to an id.
        cache: SQLite file of every reply.

    Returns:
        tuple: the kept rows; the summary of `judge.best_of`.

    Raises:
        ValueError: fewer than n responses to an id, as `asked`, or more failed judgements than
            `Asking` allows by default: a dataset must not be chosen by accident.

    Source: Best-of-N is a baseline of CoDIT (arXiv 2604.13538), judged by its judge; N: ours.
    """
    with asked(recipe.judge) as one:
        asking = replace(one.asking, max_failures=Asking().max_failures)
        kept = judge.best_of(pool, one.judge, cache=cache, n=recipe.n, asking=asking)
    return kept.rows, kept.summary


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


def studies(chosen: Scale) -> dict[str, JudgeStudy]:
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
    told = chosen.judging
    if not told.judges or isinstance(chosen.prompts, File):
        raise ValueError("expected a scale with judges, whose prompts are drawn. Give judges.")
    arms = (Arm(role="direct"), *scales.contrast_arms(chosen.decoding.plausibility))
    sets = {"known": chosen.prompts, "unknown": dict(chosen.tests).get("test")}
    found: dict[str, JudgeStudy] = {}
    for name, prompts in sets.items():
        if prompts is not None:
            asked_of = replace(prompts, n=min(prompts.n, told.n_prompts))
            found[name] = JudgeStudy(
                responses=scales.responses(chosen, arms, prompts=asked_of, seeds=(0,)),
                judges=told.judges,
                n_pairs=told.n_prompts // 2,
                budgets=() if found else told.budgets,
                n_budget=told.n_prompts // 2,
            )
    return found


def study(recipe: JudgeStudy | JudgedStudents) -> dict[str, pd.DataFrame]:
    """Return what every judge says; whatever does not exist yet is made.

    Args:
        recipe: responses, or students' answers, and the judges.

    Returns:
        dict: of responses "scores": judge, part ("arms", "pool" or "budget"), arm (its role), id,
        sample, budget (tokens), length (characters), score (NaN without one), state, and of the
        verifier score, strict and correct as `verifier`, `strict`, `correct` (NaN where it knows
        nothing); "comparisons": judge, part ("arms" or "itself"), one, other, id, sample, order,
        value, state, length_one, length_other, verifier_one, verifier_other; "costs": judge, of
        ("scores" or "comparisons"), part, arm or one and other, run (1 or 2), the counts of
        `judge.Tally`, honoured, ignored, rejected (of the schema), ok. Of students see `judged`.

    Raises:
        ValueError: see `asked`; or a server fell silent, see `check_heard`.
    """
    return store.tables(recipe, make)


def make(recipe: JudgeStudy | JudgedStudents, folder: Path) -> dict[str, pd.DataFrame]:
    """Ask the judges; the folder keeps replies, which are not asked for again after a kill."""
    if isinstance(recipe, JudgedStudents):
        return _of_students(recipe, folder)
    return _of_responses(recipe, folder)


def _of_responses(recipe: JudgeStudy, folder: Path) -> dict[str, pd.DataFrame]:
    """Ask every judge everything, twice."""
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


@dataclass(frozen=True, kw_only=True)
class JudgedStudents:
    """Judges on students' answers to held-out prompts.

    Args:
        students: arms, seeds and the prompts of one held-out set.
        judges: who is asked.
        n_prompts: the first so many prompts are scored.
        n_pairs: and so many compared with the answers of direct sampling, in both orders.
    """

    students: StudentStudy
    judges: tuple[WorldJudge | LLMJudge, ...]
    n_prompts: int
    n_pairs: int
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_names(self.judges)


def students_recipe(chosen: Scale) -> StudentStudy:
    """Return the study of Best-of-N as an arm: chosen by a judge, by the verifier, not at all.

    Args:
        chosen: the scale.

    Returns:
        StudentStudy: the first student; the seeds of `chosen.judging`; test prompts.

    Source: Best-of-N is a baseline of CoDIT (arXiv 2604.13538); the comparison of judges: ours.
    """
    arms: tuple[Arm | JudgedArm, ...] = (Arm(role="direct"), Arm(role="best-of-n", n=4))
    arms += tuple(JudgedArm(judge=one, n=4) for one in chosen.judging.judges[:1])
    arms += scales.contrast_arms(chosen.decoding.plausibility)[1:]
    study = scales.students(chosen, (), tests=chosen.tests[:1], students=chosen.students[:1])
    responses = replace(study.responses, arms=arms, seeds=chosen.judging.seeds)
    return replace(study, responses=responses)


def answers(chosen: Scale) -> pd.DataFrame:
    """Return the verdicts on the students of `students_recipe`.

    Args:
        chosen: the scale.

    Returns:
        DataFrame: see `results.study`; without rows where no verifier knows the prompts.

    Source: ours.
    """
    if "verifier" in chosen.evaluations:
        return students(students_recipe(chosen))
    return pd.DataFrame(columns=["arm", "role", "seed", "id", *MEASURES])


def students(recipe: StudentStudy) -> pd.DataFrame:
    """Return the verdicts on students of whom some learn from what a judge chose."""

    def make(recipe: StudentStudy) -> pd.DataFrame:
        _choose(recipe)
        return results.verdict_table(recipe)

    return store.table(recipe, make, "verdicts")


def _choose(recipe: StudentStudy) -> None:
    """Let judges choose what students of theirs learn from, where they have yet to."""
    for arm in recipe.responses.arms:
        for seed in recipe.responses.seeds:
            data = comparison.data(recipe.responses, arm, seed)
            if isinstance(data, JudgedBest):
                judged_best(data)


def gains(answers: pd.DataFrame) -> pd.DataFrame:
    """Return what judged Best-of-N gives students, beside the others.

    Args:
        answers: of `answers`.

    Returns:
        DataFrame: one, other, measure ("strict", "correct"), estimate, low, high, text, holds (see
        `evidence.differences`): judged less direct, judged less the verifier's choice, CoDIT less
        judged. Without rows where there are no answers.

    Source: ours.
    """
    kept = ["one", "other", "measure", "estimate", "low", "high", "text", "holds"]
    named = dict(zip(answers["role"], answers["arm"], strict=True))
    if JudgedArm.role not in named:
        return pd.DataFrame(columns=kept)
    judged = named[JudgedArm.role]
    pairs = [(judged, named["direct"]), (judged, named["best-of-n"]), (named["codit"], judged)]
    return evidence.differences(answers, pairs, list(MEASURES))[kept]


def judged_recipe(chosen: Scale) -> JudgedStudents:
    """Return the study of notebook 08's judged students.

    Args:
        chosen: the scale.

    Returns:
        JudgedStudents: the students of `students_recipe`, by the scale's judges.

    Source: students on WildBench and AlpacaEval 2: CoDIT, results table; in this world: ours.
    """
    n = chosen.judging.n_prompts
    return JudgedStudents(
        students=students_recipe(chosen), judges=chosen.judging.judges, n_prompts=n, n_pairs=n // 2
    )


def judged(chosen: Scale) -> dict[str, pd.DataFrame]:
    """Return what judges say of students' answers; whatever does not exist yet is made.

    Args:
        chosen: the scale.

    Returns:
        dict: "scores": judge, arm, role, seed, id, score (NaN without one), verifier;
        "comparisons": judge, arm, seed, id, preference (for the arm over direct sampling; NaN
        without one), verifier (its preference), length, length_baseline (characters). Without rows
        where no verifier knows the prompts.

    Source: ours.
    """
    if "verifier" not in chosen.evaluations:
        return {
            "scores": pd.DataFrame(columns=["judge", "arm", "seed", "id", "score", "verifier"]),
            "comparisons": pd.DataFrame(columns=["judge", "arm", "seed", "id", "preference"]),
        }
    return study(judged_recipe(chosen))


def _of_students(recipe: JudgedStudents, folder: Path) -> dict[str, pd.DataFrame]:
    """Ask every judge about every student."""
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES[:2]}
    _choose(recipe.students)
    given = list(_answers(recipe))
    for one in recipe.judges:
        with asked(one) as whom:
            for name, table in _ask_students(recipe, given, whom, folder / REPLIES):
                found[name].append(table.assign(judge=judge_label(one)))
    return {name: pd.concat(tables, ignore_index=True) for name, tables in found.items()}


def _answers(recipe: JudgedStudents) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield each student and its answers, with the prompts' texts."""
    ((_, prompts),) = recipe.students.tests
    texts = {row["id"]: row["instruction"] for row in world.prompts(prompts)}
    for told, evaluation in comparison.evaluations(recipe.students):
        table = results.answers(evaluation).iloc[: recipe.n_prompts]
        named = {name: told[name] for name in ("arm", "role", "seed")}
        yield named, table.assign(instruction=table["id"].map(texts))


def _ask_students(
    recipe: JudgedStudents,
    given: list[tuple[dict[str, Any], pd.DataFrame]],
    whom: Asked,
    cache: Path,
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield a judge's scores, then its comparisons with direct sampling of the same seed."""
    how: dict[str, Any] = {"cache": cache, "asking": whom.asking}
    rows = [table[["id", "instruction", "response"]].to_dict("records") for _, table in given]
    for (told, table), own in zip(given, rows, strict=True):
        judged = judge.score(own, whom.judge, **how)
        check_heard(judged.judgements["state"])
        found = judged.table
        truth = table["score"].astype("float64").to_numpy()
        yield "scores", found[["id", "score"]].assign(verifier=truth, **told)
    baseline = {told["seed"]: k for k, (told, _) in enumerate(given) if told["role"] == BASELINE}
    for (told, table), own in zip(given, rows, strict=True):
        other = baseline[told["seed"]]
        if told["role"] == BASELINE:
            continue
        few, base = (part[: recipe.n_pairs] for part in (own, rows[other]))
        judged = judge.compare(few, base, whom.judge, **how)
        check_heard(judged.judgements["state"])
        found = judged.table
        gap = table["score"].astype("float64") - given[other][1]["score"].astype("float64")
        truth = ((gap > 0) + 0.5 * (gap == 0)).to_numpy()[: recipe.n_pairs]
        kept = found[["id", "preference", "length", "length_baseline"]]
        yield "comparisons", kept.assign(verifier=truth, **told)


def score_gains(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return what each arm's students gain in score over those of direct sampling.

    Args:
        tables: of `judged`.

    Returns:
        DataFrame: who, arm, role, value, low, high, text, holds (see `evidence.differences`).

    Source: ours.
    """
    rows = []
    for who, own in _by(tables["scores"], "score"):
        roles = dict(zip(own["arm"], own["role"], strict=True))
        (base,) = (arm for arm, role in roles.items() if role == BASELINE)
        pairs = [(arm, base) for arm in roles if arm != base]
        found = evidence.differences(own, pairs, ["score"]).assign(who=who)
        rows.append(found.assign(role=found["one"].map(roles)))
    columns = ["who", "arm", "role", "value", "low", "high", "text", "holds"]
    if not rows:
        return pd.DataFrame(columns=columns)
    return pd.concat(rows).rename(columns={"one": "arm", "estimate": "value"})[columns]


def wins(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return win rates over direct sampling, raw and length-controlled, by judge and verifier.

    Args:
        tables: of `judged`. Seeds of a prompt are averaged first.

    Returns:
        DataFrame: who, arm, role, kind ("raw" or "length-controlled"), value, low, high, prompts.

    Source: AlpacaEval 2 (arXiv 2404.04475), on this world's prompts: ours.
    """
    rows: list[dict[str, Any]] = []
    for who, own in _by(tables["comparisons"], "preference"):
        for arm, table in own.groupby("arm", sort=False):
            raw = intervals.mean_interval(table.groupby("id")["preference"].mean().to_numpy())
            fitted = judge.length_controlled(table)  # NaN where nothing can be fitted
            controlled = (fitted[k] for k in ("length_controlled", "lc_low", "lc_high"))
            told = {"who": who, "arm": arm, "role": table["role"].iloc[0]}
            told["prompts"] = table["id"].nunique()
            rows.append({**told, "kind": "raw", **intervals.columns(raw)})
            ends = dict(zip(("value", "low", "high"), controlled, strict=True))
            rows.append({**told, "kind": "length-controlled", **ends})
    columns = ["who", "arm", "role", "kind", "value", "low", "high", "prompts"]
    return pd.DataFrame(rows, columns=columns)


def _by(table: pd.DataFrame, column: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the verifier's and each judge's values of a column.

    What a judge could not judge in one seed or arm is left out of all: differences are paired.
    """
    names = list(dict.fromkeys(table["judge"]))
    for who in [VERIFIER, *names] if names else []:
        own = table[table["judge"] == (names[0] if who == VERIFIER else who)]
        own = own.assign(**{column: own[VERIFIER]}) if who == VERIFIER else own
        yield who, own[~own["id"].isin(own.loc[own[column].isna(), "id"])]
