"""Judges that answer, and what they say of the arms' responses and of students, over a real server.

The world's judges are served here, others elsewhere. Of responses a study asks every judge five
things: a score for each response of the arms; a score for each of several direct responses
(Best-of-N chooses by it); which of two arms is better, in both orders; the same of a response and
itself; and scores under budgets too small for some replies. Every reply is kept while the study is
made, and everything is asked twice: the second time must cost nothing. Students' answers are scored
from 1 to 10 (as WildBench's) and compared with those of direct sampling (as AlpacaEval's). The
verifier's word on the same texts stands beside. Values and choices without a source are ours.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from datasets import Dataset

from codit import recipes, world
from codit.dataset import output
from codit.evaluation import intervals, judge
from codit.evaluation.intervals import Scores
from codit.evaluation.judge import Asking, Judge, Judged
from codit.files import write_json, write_lines
from codit.paper import arms, scales, store, tables
from codit.paper import make as makers
from codit.paper.arms import Arm, JudgedArm, JudgedBest, LLMJudge, ResponseStudy, StudentStudy
from codit.paper.make import dataset
from codit.paper.scales import Scale
from codit.recipes import File
from codit.world import judge as world_judge
from codit.world.recipes import WorldJudge, WorldPrompts

CACHE_TOKENS = 16_384  # of a served judge: 64 questions of the world at the same time
AT_ONCE = 64
ADDRESS = "OPENAI_BASE_URL"
JUDGEMENTS = "judgements.sqlite"  # of every judge that a recipe asks
REPLIES = "replies.sqlite"  # of a study, while it is made
TABLES = ("scores", "comparisons", "costs")
SAME = "itself"
MEASURES = ("strict", "correct")
BASELINE = "direct"  # role of the arm that the others are compared with
VERIFIER = "verifier"

Rows = list[dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A judge that answers, and how it is asked: failures are counted and never end a run."""

    judge: Judge
    asking: Asking


@contextlib.contextmanager
def asked(recipe: WorldJudge | LLMJudge) -> Iterator[Asked]:
    """Make a judge answer, for a `with` block.

    The world's judge is made where there is none and served on this machine; it answers greedily.
    Any other is asked where OPENAI_BASE_URL says; ValueError where it says nothing.
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

    Rows of the pool; of equal scores the first sample; what is missing is made. Every reply is kept
    in the store's `judgements.sqlite` and paid for once, whichever recipe asks.
    """

    def make(recipe: JudgedBest, folder: Path) -> None:
        pool = list(makers.responses(recipe.pool))
        rows, summary = best_of(recipe, pool, cache=store.cache() / JUDGEMENTS)
        write_lines(folder / "responses.jsonl", rows)
        write_json(folder / "summary.json", summary)

    return output.read(store.get(recipe, make) / "responses.jsonl")


def best_of(recipe: JudgedBest, pool: Rows, *, cache: str | Path) -> tuple[Rows, dict[str, Any]]:
    """Return the rows of a pool that a judge chooses, and the summary of `judge.best_of`.

    ValueError with fewer than n responses to an id, or more failed judgements than `Asking` allows
    by default: a dataset must not be chosen by accident. Best-of-N is a baseline of CoDIT
    (arXiv 2604.13538), judged by its judge.
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
        arms.check_names(self.judges)


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
        arms.check_names(self.judges)


def studies(chosen: Scale) -> dict[str, JudgeStudy]:
    """Return a scale's studies of responses by what their prompts are to a judge.

    "known": the datasets' own prompts; of the micro world they are about people of whom its judges
    have read. "unknown", where the scale has a test set: about people of whom they have not, so
    that they cannot know what is right. Budgets are tried on the first alone. ValueError for a
    scale without judges, or whose prompts are a file. Judged datasets: CoDIT, Figures 2 and 4.
    """
    told = chosen.judging
    if not told.judges or isinstance(chosen.prompts, File):
        raise ValueError("expected a scale with judges, whose prompts are drawn. Give judges.")
    compared = (Arm(role="direct"), *scales.contrast_arms(chosen.decoding.plausibility))
    sets = {"known": chosen.prompts, "unknown": dict(chosen.tests).get("test")}
    found: dict[str, JudgeStudy] = {}
    for name, prompts in sets.items():
        if prompts is not None:
            few = replace(prompts, n=min(prompts.n, told.n_prompts))
            found[name] = JudgeStudy(
                responses=scales.responses(chosen, compared, prompts=few, seeds=(0,)),
                judges=told.judges,
                n_pairs=told.n_prompts // 2,
                budgets=() if found else told.budgets,
                n_budget=told.n_prompts // 2,
            )
    return found


def students_recipe(chosen: Scale) -> StudentStudy:
    """Return the study of Best-of-N as an arm: chosen by a judge, by the verifier, not at all.

    The first student, the seeds of `chosen.judging`, test prompts.
    """
    compared: tuple[Arm | JudgedArm, ...] = (Arm(role="direct"), Arm(role="best-of-n", n=4))
    compared += tuple(JudgedArm(judge=one, n=4) for one in chosen.judging.judges[:1])
    compared += scales.contrast_arms(chosen.decoding.plausibility)[1:]
    found = scales.students(chosen, (), tests=chosen.tests[:1], students=chosen.students[:1])
    responses = replace(found.responses, arms=compared, seeds=chosen.judging.seeds)
    return replace(found, responses=responses)


def judged_recipe(chosen: Scale) -> JudgedStudents:
    """Return the study of the students of `students_recipe`, by the scale's judges.

    Students on WildBench and AlpacaEval 2: CoDIT, results table.
    """
    n = chosen.judging.n_prompts
    return JudgedStudents(
        students=students_recipe(chosen), judges=chosen.judging.judges, n_prompts=n, n_pairs=n // 2
    )


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


def judged(chosen: Scale) -> dict[str, pd.DataFrame]:
    """Return what judges say of students' answers; whatever does not exist yet is made.

    Args:
        chosen: the scale.

    Returns:
        dict: "scores": judge, arm, role, seed, id, score (NaN without one), verifier;
        "comparisons": judge, arm, seed, id, preference (for the arm over direct sampling; NaN
        without one), verifier (its preference), length, length_baseline (characters). Without rows
        where no verifier knows the prompts.
    """
    if VERIFIER in chosen.evaluations:
        return study(judged_recipe(chosen))
    columns = ["judge", "arm", "seed", "id"]
    return {
        "scores": pd.DataFrame(columns=[*columns, "score", VERIFIER]),
        "comparisons": pd.DataFrame(columns=[*columns, "preference"]),
    }


def answers(chosen: Scale) -> pd.DataFrame:
    """Return the verdicts on the students of `students_recipe`, as `make.study` does.

    Without rows where no verifier knows the prompts.
    """
    if VERIFIER in chosen.evaluations:
        return students(students_recipe(chosen))
    return pd.DataFrame(columns=["arm", "role", "seed", "id", *tables.MEASURES])


def students(recipe: StudentStudy) -> pd.DataFrame:
    """Return the verdicts on students of whom some learn from what a judge chose."""

    def make(recipe: StudentStudy) -> pd.DataFrame:
        _choose(recipe)
        return makers.verdict_table(recipe)

    return makers.readable(store.table(recipe, make, "verdicts"))


def gains(answers: pd.DataFrame) -> pd.DataFrame:
    """Return what judged Best-of-N gives students, beside the others.

    Args:
        answers: of `answers`.

    Returns:
        DataFrame: one, other, measure (of `tables.MEASURES`), estimate, low, high, text, holds (see
        `tables.differences`): judged less direct, judged less the verifier's choice, CoDIT less
        judged. Without rows where there are no answers.
    """
    kept = ["one", "other", "measure", "estimate", "low", "high", "text", "holds"]
    named = dict(zip(answers["role"], answers["arm"], strict=True))
    if JudgedArm.role not in named:
        return pd.DataFrame(columns=kept)
    judged = named[JudgedArm.role]
    pairs = [(judged, named["direct"]), (judged, named["best-of-n"]), (named["codit"], judged)]
    return tables.differences(answers, pairs, list(tables.MEASURES))[kept]


def score_gains(judged: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return what each arm's students gain in score over those of direct sampling.

    Args:
        judged: of `judged`.

    Returns:
        DataFrame: who, arm, role, value, low, high, text, holds (see `tables.differences`).
    """
    columns = ["who", "arm", "role", "value", "low", "high", "text", "holds"]
    found = []
    for who, own in _by(judged["scores"], "score"):
        roles = dict(zip(own["arm"], own["role"], strict=True))
        (base,) = (arm for arm, role in roles.items() if role == BASELINE)
        pairs = [(arm, base) for arm in roles if arm != base]
        gained = tables.differences(own, pairs, ["score"])
        found.append(gained.assign(who=who, role=gained["one"].map(roles)))
    if not found:
        return pd.DataFrame(columns=columns)
    return pd.concat(found).rename(columns={"one": "arm", "estimate": "value"})[columns]


def wins(judged: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Return win rates over direct sampling, raw and length-controlled, by judge and verifier.

    Args:
        judged: of `judged`. Seeds of a prompt are averaged first.

    Returns:
        DataFrame: who, arm, role, kind ("raw" or "length-controlled"), value, low, high, prompts.
    """
    rows: Rows = []
    for who, own in _by(judged["comparisons"], "preference"):
        for arm, table in own.groupby("arm", sort=False):
            told = {"who": who, "arm": arm, "role": table["role"].iloc[0]}
            raw = table.groupby("id")["preference"].mean()
            rows += [{**told, **rate, "prompts": len(raw)} for rate in rates(raw.to_numpy(), table)]
    columns = ["who", "arm", "role", "kind", "value", "low", "high", "prompts"]
    return pd.DataFrame(rows, columns=columns)


def rates(raw: Scores, table: pd.DataFrame) -> Rows:
    """Return both win rates as columns kind, value, low, high; NaN where nothing can be fitted.

    `raw`: a preference for each prompt; `table`: see `win_rates`. AlpacaEval 2 (arXiv 2404.04475).
    """
    fitted = judge.length_controlled(table)
    names = {"value": "length_controlled", "low": "lc_low", "high": "lc_high"}
    controlled = {end: fitted[name] for end, name in names.items()}
    return [
        {"kind": "raw", **intervals.columns(intervals.mean_interval(raw))},
        {"kind": "length-controlled", **controlled},
    ]


def check_heard(states: pd.Series[str]) -> None:
    """Raise ValueError where a server fell silent: that is not to be kept as finished."""
    share = float((states == "api_error").mean())
    if share > Asking().max_failures:
        raise ValueError(
            f"expected replies; {share:.1%} of {len(states)} judgements have none. Look at the "
            "server and ask again: what was replied is kept."
        )


def lessons(recipe: JudgeStudy) -> frozenset[str]:
    """Return the instructions that the world's judges of a study were trained on."""
    taught = {one.prompts for one in recipe.judges if isinstance(one, WorldJudge)}
    return frozenset(text for prompts in taught for text in _texts(prompts))


@functools.lru_cache(maxsize=2)
def _texts(prompts: WorldPrompts) -> tuple[str, ...]:
    return tuple(row["instruction"] for row in world.prompts(prompts))


# -- of responses --------------------------------------------------------------------------------


def _of_responses(recipe: JudgeStudy, folder: Path) -> dict[str, pd.DataFrame]:
    """Ask every judge everything, twice."""
    seen = lessons(recipe)
    given = {arm.role: _rows(recipe, arm, seen) for arm in recipe.responses.arms}
    pool = _rows(recipe, Arm(role="best-of-n", n=arms.POOL), seen)
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    for one in recipe.judges:
        with asked(one) as whom:
            for run in (1, 2):
                for name, table in _ask(recipe, given, pool, whom, folder / REPLIES):
                    if run == 1 or name == "costs":
                        found[name].append(table.assign(judge=arms.judge_label(one), run=run))
                check_heard(pd.concat([t["state"] for n in TABLES[:2] for t in found[n]]))
    known = _verifier(recipe, {**given, "pool": pool})
    scores, pairs, costs = (pd.concat(found[name], ignore_index=True) for name in TABLES)
    scores = scores.drop(columns="run")
    scores = scores.merge(known, on=["arm", "id", "sample"], how="left", validate="many_to_one")
    return {
        "scores": scores,
        "comparisons": _both(pairs.drop(columns="run"), known),
        "costs": costs,
    }


def _rows(recipe: JudgeStudy, arm: Arm | JudgedArm, seen: frozenset[str]) -> Rows:
    """Return an arm's responses as a judge takes them; of Best-of-N all that compete."""
    data: Any = arms.data(recipe.responses, arm, recipe.responses.seeds[0])
    found = dataset(data.pool if arm.role == "best-of-n" else data)
    names = ("id", "instruction", "response", "is_completed", "sample")
    new = [row for row in found if row["instruction"] not in seen]
    return [{name: row[name] for name in names if name in row} for row in new]


def _ask(
    recipe: JudgeStudy, given: dict[str, Rows], pool: Rows, whom: Asked, cache: Path
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield a judge's tables, part by part, each with its costs."""
    score = functools.partial(judge.score, cache=cache, asking=whom.asking)
    compare = functools.partial(judge.compare, cache=cache, asking=whom.asking)
    for role, rows in {**given, "pool": pool}.items():
        part = {"part": "pool" if role == "pool" else "arms", "arm": role, "budget": 0}
        yield from _told("scores", score(rows, whom.judge), part)
    few = {role: rows[: recipe.n_pairs] for role, rows in given.items()}
    last = list(given)[-1]
    for one, other in (*recipe.pairs, (last, last)):
        if one in few and other in few:
            part = {"part": SAME if one == other else "arms", "one": one, "other": other}
            yield from _told("comparisons", compare(few[one], few[other], whom.judge), part)
    for budget in recipe.budgets:
        tight = replace(whom.judge, max_tokens=budget)
        part = {"part": "budget", "arm": last, "budget": budget}
        yield from _told("scores", score(given[last][: recipe.n_budget], tight), part)


def _told(name: str, judged: Judged, part: dict[str, Any]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield what was said and what it cost."""
    table = judged.table if name == "scores" else judged.judgements
    kept = ["id", "sample", "length", "score", "state", "length_baseline", "order", "value"]
    yield name, table[[column for column in kept if column in table]].assign(**part)
    tally = asdict(judged.tally)
    schema, states = tally.pop("schema"), tally.pop("states")
    counts = {name: schema.get(name, 0) for name in ("honoured", "ignored", "rejected")}
    costs = {**tally, **counts, "ok": states.get("ok", 0), "of": name, **part}
    costs.pop("budget", None)
    yield "costs", pd.DataFrame([costs])


def _verifier(recipe: JudgeStudy, given: dict[str, Rows]) -> pd.DataFrame:
    """Return what the verifier says of every response; NaN where it does not know the prompts."""
    prompts, measures = recipe.responses.prompts, ["score", *MEASURES]
    asked_of = world.prompts(prompts) if isinstance(prompts, WorldPrompts) else []
    found = []
    for role, rows in given.items():
        said = pd.DataFrame(index=range(len(rows)), columns=measures)
        said = makers.verdicts(rows, asked_of)[measures] if asked_of else said
        ids, samples = [row["id"] for row in rows], [row.get("sample", 0) for row in rows]
        found.append(said.astype("float64").assign(arm=role, id=ids, sample=samples))
    return pd.concat(found, ignore_index=True).rename(columns={"score": VERIFIER})


def _both(pairs: pd.DataFrame, known: pd.DataFrame) -> pd.DataFrame:
    """Return comparisons with the verifier's scores of both responses."""
    known = known[["arm", "id", "sample", VERIFIER]]
    for side in ("one", "other"):
        own = known.rename(columns={"arm": side, VERIFIER: f"verifier_{side}"})
        pairs = pairs.merge(own, on=[side, "id", "sample"], how="left", validate="many_to_one")
    return pairs.rename(columns={"length": "length_one", "length_baseline": "length_other"})


# -- of students ---------------------------------------------------------------------------------


def _choose(recipe: StudentStudy) -> None:
    """Let judges choose what students of theirs learn from, where they have yet to."""
    for arm in recipe.responses.arms:
        for seed in recipe.responses.seeds:
            data = arms.data(recipe.responses, arm, seed)
            if isinstance(data, JudgedBest):
                judged_best(data)


def _of_students(recipe: JudgedStudents, folder: Path) -> dict[str, pd.DataFrame]:
    """Ask every judge about every student."""
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES[:2]}
    _choose(recipe.students)
    given = list(_answers(recipe))
    for one in recipe.judges:
        with asked(one) as whom:
            for name, table in _ask_students(recipe, given, whom, folder / REPLIES):
                found[name].append(table.assign(judge=arms.judge_label(one)))
    return {name: pd.concat(parts, ignore_index=True) for name, parts in found.items()}


def _answers(recipe: JudgedStudents) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Yield each student and its answers, with the prompts' texts."""
    ((_, prompts),) = recipe.students.tests
    texts = {row["id"]: row["instruction"] for row in world.prompts(prompts)}
    for told, evaluation in arms.evaluations(recipe.students):
        table = makers.answers(evaluation).iloc[: recipe.n_prompts]
        named = {name: told[name] for name in ("arm", "role", "seed")}
        yield named, table.assign(instruction=table["id"].map(texts))


def _ask_students(
    recipe: JudgedStudents,
    given: list[tuple[dict[str, Any], pd.DataFrame]],
    whom: Asked,
    cache: Path,
) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield a judge's scores, then its comparisons with direct sampling of the same seed.

    An empty answer is never asked about: its score is NaN, and so is a pair's preference.
    """
    how: dict[str, Any] = {"cache": cache, "asking": whom.asking}
    answers = [table.assign(verifier=table["score"].astype("float64")) for _, table in given]
    rows = [table[["id", "instruction", "response"]].to_dict("records") for table in answers]
    for (told, _), table, own in zip(given, answers, rows, strict=True):
        heard = _heard(judge.score, [own], whom, how, "score")
        known = table[["id", "verifier"]].merge(heard, "left", "id", validate="one_to_one")
        yield "scores", known[["id", "score", "verifier"]].assign(**told)
    baseline = {told["seed"]: k for k, (told, _) in enumerate(given) if told["role"] == BASELINE}
    for (told, _), table, own in zip(given, answers, rows, strict=True):
        if told["role"] == BASELINE:
            continue
        other = baseline[told["seed"]]
        both = [one[: recipe.n_pairs] for one in (own, rows[other])]
        heard = _heard(judge.compare, both, whom, how, "preference")
        gap = table["verifier"].to_numpy() - answers[other]["verifier"].to_numpy()
        sizes = {
            "length": table["response"].str.len(),
            "length_baseline": answers[other]["response"].str.len().to_numpy(),
        }
        known = table.assign(verifier=(gap > 0) + 0.5 * (gap == 0), **sizes)[: recipe.n_pairs]
        known = known.merge(heard, "left", "id", validate="one_to_one")
        yield "comparisons", known[["id", "preference", *sizes, "verifier"]].assign(**told)


def _heard(
    ask: Callable[..., Judged],
    rows: list[Rows],
    whom: Asked,
    how: dict[str, Any],
    column: str,
) -> pd.DataFrame:
    """Return what a judge says by id; ids without a text to judge are missing."""
    texts = zip(*([row["response"].strip() for row in one] for one in rows), strict=True)
    if not any(map(all, texts)):
        return pd.DataFrame({"id": pd.Series(dtype=str), column: pd.Series(dtype="float64")})
    said = ask(*rows, whom.judge, **how)
    check_heard(said.judgements["state"])
    return said.table[["id", column]]


def _by(table: pd.DataFrame, column: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the verifier's and each judge's values of a column.

    What a judge could not judge in one seed or arm is left out of all: differences are paired.
    """
    names = list(dict.fromkeys(table["judge"]))
    for who in [VERIFIER, *names] if names else []:
        own = table[table["judge"] == (names[0] if who == VERIFIER else who)]
        own = own.assign(**{column: own[VERIFIER]}) if who == VERIFIER else own
        yield who, own[~own["id"].isin(own.loc[own[column].isna(), "id"])]
