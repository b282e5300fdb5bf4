"""Which arms and studies a scale asks for: what notebooks compare with what.

Recipes only; `codit.results.study` makes them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from codit.comparison import Arm, ResponseStudy, StudentStudy
from codit.experiments import Scale
from codit.recipes import WorldPrompts


def main_arms(chosen: Scale) -> tuple[Arm, ...]:
    """Return the arms that every table compares, at the scale's plausibility and strength.

    Args:
        chosen: the scale.

    Returns:
        tuple: direct, greedy, the better of two, the best of four, truncated, codit.

    Source: direct, Best-of-N and codit: CoDIT (arXiv 2604.13538); N, greedy, truncated: ours.
    """
    return (
        Arm(role="direct"),
        Arm(role="greedy"),
        Arm(role="best-of-n", n=2),
        Arm(role="best-of-n", n=4),
        *contrast_arms(chosen.decoding.plausibility, chosen.decoding.strength),
    )


def contrast_arms(plausibility: float, strength: float = 1.0) -> tuple[Arm, Arm]:
    """Return truncation and contrast at one plausibility.

    Args:
        plausibility: of both.
        strength: of the contrast.

    Returns:
        (Arm, Arm): truncated, codit.

    Source: ours.
    """
    truncated = Arm(role="truncated", plausibility=plausibility)
    return truncated, Arm(role="codit", plausibility=plausibility, strength=strength)


def plausibility_arms(chosen: Scale) -> tuple[Arm, ...]:
    """Return truncation and contrast at each plausibility of the scale.

    Args:
        chosen: the scale.

    Returns:
        tuple: truncated and codit, by rising plausibility.

    Source: ours; the paper's grid was not found.
    """
    strength = chosen.decoding.strength
    return tuple(a for p in chosen.plausibilities for a in contrast_arms(p, strength))


def strength_arms(chosen: Scale) -> tuple[Arm, ...]:
    """Return the contrast at each strength of the scale, at its plausibility.

    Args:
        chosen: the scale.

    Returns:
        tuple: strength 0 as "truncated", the others as "codit".

    Source: ours; the paper has strength 1 only.
    """
    plausibility = chosen.decoding.plausibility
    return tuple(contrast_arms(plausibility, s)[s > 0] for s in chosen.strengths)


def responses(
    chosen: Scale, arms: tuple[Arm, ...], teacher: str = "A", **changes: Any
) -> ResponseStudy:
    """Return the study of a teacher's responses.

    Args:
        chosen: the scale.
        arms: ways of answering.
        teacher: a name of `chosen.teachers`.
        changes: other values of the study's fields.

    Returns:
        ResponseStudy: the scale's prompts, every arm, every seed.

    Source: ours.
    """
    study = ResponseStudy(
        pair=chosen.teachers[teacher],
        prompts=chosen.prompts,
        decoding=chosen.decoding,
        arms=arms,
        seeds=chosen.seeds,
    )
    return replace(study, **changes)


def students(
    chosen: Scale,
    arms: tuple[Arm, ...],
    teacher: str = "A",
    *,
    tests: tuple[tuple[str, WorldPrompts], ...] | None = None,
    **changes: Any,
) -> StudentStudy:
    """Return the study of the students of a teacher's responses.

    Args:
        chosen: the scale.
        arms: what students are trained on.
        teacher: a name of `chosen.teachers`.
        tests: held-out sets; None: the scale's.
        changes: other values of the study's fields.

    Returns:
        StudentStudy: every arm, student, seed and held-out set.

    Source: ours.
    """
    study = StudentStudy(
        responses=responses(chosen, arms, teacher),
        students=chosen.students,
        training=tuple(sorted(chosen.training.items())),
        tests=chosen.tests if tests is None else tests,
    )
    return replace(study, **changes)


def datasets(chosen: Scale, teacher: str = "A") -> ResponseStudy:
    """Return the study of notebook 01: every arm's responses.

    Args:
        chosen: the scale.
        teacher: a name of `chosen.teachers`.

    Returns:
        ResponseStudy: the main arms, then every plausibility; of the first every strength.

    Source: CoDIT, Figures 2 and 4; intervals and ablations ours.
    """
    arms = (*main_arms(chosen), *plausibility_arms(chosen))
    arms += strength_arms(chosen) if teacher == "A" else ()
    return responses(chosen, tuple(dict.fromkeys(arms)), teacher)


def alpha(chosen: Scale, teacher: str = "A") -> StudentStudy:
    """Return the study of notebook 02: students over plausibility, and over strength.

    Args:
        chosen: the scale.
        teacher: a name of `chosen.teachers`; strength is varied for the first only.

    Returns:
        StudentStudy: direct, every plausibility, every strength; on dev and test prompts.

    Source: CoDIT, Figures 5 and 6; intervals and ablations ours.
    """
    arms = (Arm(role="direct"), *plausibility_arms(chosen))
    arms += strength_arms(chosen) if teacher == "A" else ()
    tests = (("dev", chosen.dev), *chosen.tests[:1]) if chosen.dev else chosen.tests[:1]
    return students(chosen, tuple(dict.fromkeys(arms)), teacher, tests=tests)


def table(chosen: Scale) -> StudentStudy:
    """Return the study of notebook 03: the results table.

    Args:
        chosen: the scale.

    Returns:
        StudentStudy: the main arms; truncation at the plausibility that is best for truncation
        itself; ceiling and floor; on every held-out set.

    Source: CoDIT, results table; baselines, ceiling and floor ours.
    """
    own = Arm(role="truncated", plausibility=chosen.truncation)
    ends = (Arm(role="ideal"), Arm(role="careless"))
    return students(chosen, tuple(dict.fromkeys((*main_arms(chosen), own, *ends))))


def plan(chosen: Scale) -> dict[str, ResponseStudy | StudentStudy]:
    """Return every table of verdicts that the notebooks of a scale read.

    Args:
        chosen: the scale, with the verifier among its evaluations.

    Returns:
        dict: a name, which is its folder's in `data/results/`, to the study.

    Source: ours.
    """
    named: dict[str, ResponseStudy | StudentStudy] = {}
    for teacher in chosen.teachers:
        named[f"responses-{teacher.lower()}"] = datasets(chosen, teacher)
        named[f"alpha-{teacher.lower()}"] = alpha(chosen, teacher)
    return {**named, "students": table(chosen)}
