"""Students of judged Best-of-N, and students judged as the paper judges them.

Best-of-N is chosen by a judge, by the verifier, and not at all. Students' answers are scored from 1
to 10 (as WildBench's) and compared with those of direct sampling (as AlpacaEval's), beside the
verifier's word on the same answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from codit import (
    comparison,
    evidence,
    experiments,
    intervals,
    judge,
    results,
    store,
    world,
)
from codit.comparison import (
    Arm,
    JudgedArm,
    JudgedBest,
    LLMJudge,
    StudentStudy,
    check_names,
    judge_label,
)
from codit.experiments import Scale
from codit.judge_recipes import WorldJudge
from codit.judge_study import REPLIES, check_heard
from codit.judging import Asked, asked, judged_best

MEASURES = ("strict", "correct")
TABLES = ("scores", "comparisons")
BASELINE = "direct"  # role of the arm that the others are compared with
VERIFIER = "verifier"


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


def recipe(chosen: Scale) -> StudentStudy:
    """Return the study of Best-of-N as an arm: chosen by a judge, by the verifier, not at all.

    Args:
        chosen: the scale.

    Returns:
        StudentStudy: the first student; the seeds of `chosen.judging`; test prompts.

    Source: Best-of-N is a baseline of CoDIT (arXiv 2604.13538); the comparison of judges: ours.
    """
    arms: tuple[Arm | JudgedArm, ...] = (Arm(role="direct"), Arm(role="best-of-n", n=4))
    arms += tuple(JudgedArm(judge=one, n=4) for one in chosen.judging.judges[:1])
    arms += experiments.contrast_arms(chosen.decoding.plausibility)[1:]
    study = experiments.students(chosen, (), tests=chosen.tests[:1], students=chosen.students[:1])
    responses = replace(study.responses, arms=arms, seeds=chosen.judging.seeds)
    return replace(study, responses=responses)


def answers(chosen: Scale) -> pd.DataFrame:
    """Return the verdicts on the students of `recipe`.

    Args:
        chosen: the scale.

    Returns:
        DataFrame: see `results.study`; without rows where no verifier knows the prompts.

    Source: ours.
    """
    if "verifier" in chosen.evaluations:
        return students(recipe(chosen))
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
        JudgedStudents: the students of `recipe`, by the scale's judges.

    Source: students on WildBench and AlpacaEval 2: CoDIT, results table; in this world: ours.
    """
    n = chosen.judging.n_prompts
    return JudgedStudents(
        students=recipe(chosen), judges=chosen.judging.judges, n_prompts=n, n_pairs=n // 2
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


def study(recipe: JudgedStudents) -> dict[str, pd.DataFrame]:
    """Return the tables of `judged`, made where they do not exist yet.

    Args:
        recipe: whose answers, who judges.

    Returns:
        dict: see `judged`.

    Source: ours.
    """
    return store.tables(recipe, make)


def make(recipe: JudgedStudents, folder: Path) -> dict[str, pd.DataFrame]:
    """Ask every judge about every student, and return the tables of `judged`.

    Args:
        recipe: which study.
        folder: holds every reply so far, which is not asked again after a kill.

    Raises:
        ValueError: a server fell silent; see `judge_study.check_heard`.

    Source: ours.
    """
    found: dict[str, list[pd.DataFrame]] = {name: [] for name in TABLES}
    _choose(recipe.students)
    given = list(_answers(recipe))
    for one in recipe.judges:
        with asked(one) as whom:
            for name, table in _ask(recipe, given, whom, folder / REPLIES):
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


def _ask(
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
            both = {
                "raw": (raw.estimate, raw.low, raw.high),
                "length-controlled": [
                    fitted[k] for k in ("length_controlled", "lc_low", "lc_high")
                ],
            }
            for kind, rate in both.items():
                ends = dict(zip(("value", "low", "high"), rate, strict=True))
                told = {"who": who, "arm": arm, "role": table["role"].iloc[0], "kind": kind}
                rows.append({**told, **ends, "prompts": table["id"].nunique()})
    return pd.DataFrame(
        rows, columns=["who", "arm", "role", "kind", "value", "low", "high", "prompts"]
    )


def _by(table: pd.DataFrame, column: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the verifier's and each judge's values of a column.

    What a judge could not judge in one seed or arm is left out of all: differences are paired.
    """
    names = list(dict.fromkeys(table["judge"]))
    for who in [VERIFIER, *names] if names else []:
        own = table[table["judge"] == (names[0] if who == VERIFIER else who)]
        own = own.assign(**{column: own[VERIFIER]}) if who == VERIFIER else own
        yield who, own[~own["id"].isin(own.loc[own[column].isna(), "id"])]
