"""Best-of-N as an arm of students: chosen by a judge, by the verifier, and not at all."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from codit import evidence, studies, verdicts
from codit.comparison import Arm, StudentStudy
from codit.experiments import Scale
from codit.judge_recipes import JudgedArm

MEASURES = ("strict", "correct")


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
    arms += studies.contrast_arms(chosen.decoding.plausibility)[1:]
    study = studies.students(chosen, (), tests=chosen.tests[:1], students=chosen.students[:1])
    responses = replace(study.responses, arms=arms, seeds=chosen.judging.seeds)
    return replace(study, responses=responses)


def answers(chosen: Scale) -> pd.DataFrame:
    """Return the verdicts on the students of `recipe`.

    Args:
        chosen: the scale.

    Returns:
        DataFrame: see `verdicts.study`; without rows where no verifier knows the prompts.

    Source: ours.
    """
    if "verifier" in chosen.evaluations:
        return verdicts.study(recipe(chosen))
    return pd.DataFrame(columns=["arm", "role", "seed", "id", *MEASURES])


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
