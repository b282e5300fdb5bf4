"""The chat vector added in parameter space, beside distilled through text.

Addition needs a target of the vector's own architecture; text does not. Two kinds of target: the
amateur itself, for which adding the whole vector gives the expert, and the amateur after
fine-tuning on careless answers: weights that have moved since the vector was made. Targets
and scales are ours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from codit import chat_vector
from codit.paper import arms, make, scales, store
from codit.paper.arms import Arm, StudentStudy
from codit.paper.scales import Scale
from codit.recipes import Addition, Evaluation, Model, Training
from codit.world.recipes import Pretraining

SCALES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)  # of the vector
CARELESS = Arm(role="careless")
ROLES = {"addition": "chat-vector", "none": "amateur"}  # the colour of a way that is no text


@dataclass(frozen=True, kw_only=True)
class TransferStudy:
    """Verdicts on what addition and text make of the same targets.

    `students` holds the teacher, the arms of the text, the bases (first the amateur), seeds and
    prompts; `scales` are of the added vector.
    """

    students: StudentStudy
    scales: tuple[float, ...] = SCALES
    version: ClassVar[int] = 1


def recipe(chosen: Scale) -> TransferStudy:
    """Return the study of notebook 07: targets are bases, of which the first is the amateur.

    Direct and CoDIT text; dev prompts, on which the scale is chosen, and the held-out sets.
    Source: Chat Vector (Huang et al. 2023) for addition.
    """
    direct, *_, codit = scales.main_arms(chosen)
    tests = (("dev", chosen.dev), *chosen.tests) if chosen.dev else chosen.tests
    return TransferStudy(students=scales.students(chosen, (direct, codit), tests=tests))


def study(recipe: TransferStudy) -> pd.DataFrame:
    """Return every verdict of a study, one row an answer.

    Columns: method ("addition"; "text", with its arm and role; "none": the target as it is), target
    ("amateur" or "moved" of the teacher's architecture, else "base"), student (the architecture),
    scale (of an addition), seed, split, id and those of `make.study`. ValueError: the first base is
    not of the vector's architecture.
    """
    return make.readable(store.table(recipe, _verdicts, "verdicts"))


def _verdicts(recipe: TransferStudy) -> pd.DataFrame:
    return make.compact(
        (told, make.answers(evaluation)[["id", *make.KEPT]])
        for told, evaluation in evaluations(recipe)
    )


def evaluations(recipe: TransferStudy) -> Iterator[tuple[dict[str, Any], Evaluation]]:
    """Yield every evaluation of a study with what tells it from the others, as columns."""
    plan = recipe.students
    greedy = arms.greedy_decoding(plan.responses.decoding.max_new_tokens)
    for told, model in _models(recipe):
        for split, prompts in plan.tests:
            evaluation = Evaluation(model=model, prompts=prompts, decoding=greedy)
            yield {**told, "split": split}, evaluation


def _models(recipe: TransferStudy) -> Iterator[tuple[dict[str, Any], Any]]:
    plan = recipe.students
    amateur, *others = plan.students
    for base in others:
        yield _told("none", "base", base, 0), base
    moved = {s: arms.training(plan, amateur, CARELESS, s) for s in plan.responses.seeds}
    targets = [("amateur", 0, amateur), *(("moved", seed, one) for seed, one in moved.items())]
    for name, seed, target in targets:
        for scale in recipe.scales:
            added = Addition(target=target, vector=plan.responses.pair, scale=scale)
            method = "addition" if scale else "none"
            yield _told(method, name, amateur, seed, scale=scale), added if scale else target
    for arm in plan.responses.arms:
        told = {"arm": arm.label, "role": arm.role}
        for seed, target in moved.items():
            for base in plan.students:
                name = "amateur" if base == amateur else "base"
                trained = arms.training(plan, base, arm, seed)
                yield _told("text", name, base, seed, **told), trained
            again = arms.training(plan, target, arm, seed)
            yield _told("text", "moved", amateur, seed, **told), again


def _told(
    method: str, target: str, base: Model | Pretraining | Training, seed: int, **more: Any
) -> dict[str, Any]:
    none = {"arm": "", "role": "", "scale": float("nan")}
    student = arms.model_label(base)
    return {"method": method, "target": target, "student": student, "seed": seed, **none, **more}


def refusal(chosen: Scale, target: Model | Pretraining) -> str:
    """Return the error of adding the teacher's chat vector to a base, or "added"."""
    vector = (make.model_path(chosen.pair.expert), make.model_path(chosen.pair.amateur))
    with tempfile.TemporaryDirectory() as folder:
        try:
            chat_vector.add(make.model_path(target), vector, Path(folder) / "model")
        except ValueError as error:
            return str(error)
    return "added"


def repeated(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table in which a way without noise stands once per seed of the others.

    A target as it is, or with the vector added, gives one answer per prompt whatever the seed of
    the text that it is compared with. Columns: way, seed, id, of one student and target.
    """
    seeds = sorted(set(table["seed"]))
    parts = []
    for _, own in table.groupby("way", sort=False):
        alone = own["seed"].nunique() == 1
        parts += [own.assign(seed=s) for s in seeds] if alone else [own]
    return pd.concat(parts, ignore_index=True)
