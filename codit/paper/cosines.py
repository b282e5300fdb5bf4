"""Do students move along the teacher's chat vector? Cosines of their updates, and nulls.

Only students of the teacher's own architecture have weights that can be compared with the vector.
Everything goes through the store: students are those of the other studies, and a trajectory is a
training repeated and looked at on its way. Granularity, nulls and intervals are ours.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from torch import Tensor
from transformers import PreTrainedModel

from codit import chat_vector, student
from codit.engine.models import read_model
from codit.evaluation import intervals
from codit.paper import arms, make, scales, seeds, store
from codit.paper.arms import Arm, StudentStudy
from codit.paper.scales import Scale
from codit.recipes import Pair, Training

GLOBAL = ("all", "body")


@dataclass(frozen=True, kw_only=True)
class AlignmentStudy:
    """Cosines of the updates of students with chat vectors.

    Args:
        students: arms and seeds; their base is the amateur of every teacher.
        others: further teachers, whose chat vectors are nulls.
        watched: roles whose students are also looked at during training.
        every: optimiser steps between two looks.
    """

    students: StudentStudy
    others: tuple[Pair, ...] = ()
    watched: tuple[str, ...] = ()
    every: int = 4
    version: ClassVar[int] = 1


def recipe(chosen: Scale) -> AlignmentStudy:
    """Return the study of notebook 04: main arms, the world's own answers and unrelated ones.

    Of students of the teacher's amateur. Source: CoDIT, Figures 3 and 7.
    """
    tried = (*scales.main_arms(chosen), *(Arm(role=role) for role in arms.OWN))
    base: Any = chosen.pair.amateur
    return AlignmentStudy(
        students=scales.students(chosen, tried, tests=(), students=(base,)),
        others=chosen.rivals,
        watched=("direct", "truncated", "codit"),
    )


def study(recipe: AlignmentStudy) -> pd.DataFrame:
    """Return every cosine of a study, made where it does not exist yet.

    Columns: arm, role, plausibility, strength, n_candidates, seed; vector ("own", "permuted",
    "teacher B", ...); step (NaN: the finished student); and those of `chat_vector.cosines`. Of
    nulls and of trajectories, global cosines only. ValueError: a student's base is not the
    teacher's amateur.
    """
    return store.table(recipe, lambda recipe: make.compact(_rows(recipe)), "cosines")


def update(model: PreTrainedModel, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what training has added to the weights `base`, in float64; a tied head stands once."""
    return {
        name: weight.detach().double() - base[name].double()
        for name, weight in model.named_parameters()
    }


def seed_table(table: pd.DataFrame, *, by: tuple[str, ...] = ("arm",)) -> pd.DataFrame:
    """Return mean cosines with their 95 % t-intervals over seeds.

    `table` has one row of `study` per seed and `by`. Columns: `by`, role, value, low, high, seeds.
    """
    rows = []
    for key, own in table.groupby(list(by), sort=False):
        found = seed_interval(own["cosine"])
        told = {"role": own["role"].iloc[0], **dict(zip(by, key, strict=True))}
        rows.append({**told, **intervals.columns(found), "seeds": found.prompts})
    return pd.DataFrame(rows)


def seed_difference(table: pd.DataFrame, one: str, other: str) -> seeds.Difference:
    """Return the mean difference of two arms' cosines, paired by seed; see `seed_interval`."""
    wide = table.pivot_table(index="seed", columns="arm", values="cosine")
    return seed_interval(wide[one] - wide[other])


def seed_interval(values: pd.Series) -> seeds.Difference:
    """Return the mean of one number per seed with its 95 % t-interval.

    The `prompts` of the result are the seeds: the only sample there is. One alone bounds nothing.
    """
    if len(values) == 1:
        mean = float(values.iloc[0])
        return seeds.Difference(mean, -math.inf, math.inf, math.nan, 1, 1)
    return seeds.difference(values.to_numpy()[None])


def _rows(recipe: AlignmentStudy) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    plan = recipe.students
    pair = plan.responses.pair
    (base,) = plan.students
    if base != pair.amateur:
        raise ValueError(
            "expected students whose base is the teacher's amateur, for only their updates can be "
            f"compared with its chat vector; got {arms.model_label(base)}. Choose that base."
        )
    before = make.model_path(base)
    vectors: dict[str, Any] = {"own": (make.model_path(pair.expert), before)}
    vectors |= {
        f"teacher {name}": (make.model_path(other.expert), make.model_path(other.amateur))
        for name, other in zip("BCD", recipe.others, strict=False)
    }
    vectors["permuted"] = chat_vector.permuted(vectors["own"], seed=0)
    for arm in plan.responses.arms:
        for seed in plan.responses.seeds:
            trained = arms.training(plan, base, arm, seed)
            told = {**arms.columns(arm), "seed": seed}
            told["n_candidates"] = told.pop("n")
            after = make.model_path(trained)
            for name, vector in vectors.items():
                found = chat_vector.cosines((after, before), vector)
                yield {**told, "vector": name}, found if name == "own" else _globally(found)
            if arm.role in recipe.watched:
                for step, found in _trajectory(trained, before, vectors["own"], recipe.every):
                    yield {**told, "vector": "own", "step": step}, _globally(found)


def _globally(found: pd.DataFrame) -> pd.DataFrame:
    return found[found["group"] == "global"]


def _trajectory(
    trained: Training, before: str, vector: Any, every: int
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Train a student again and yield its global cosines on the way."""
    model = read_model(before, dtype="auto")
    base = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    seen: list[tuple[int, pd.DataFrame]] = []

    def look(step: int, model: PreTrainedModel) -> None:
        if step:  # before the first step there is no direction
            seen.append((step, chat_vector.cosines(update(model, base), vector)))

    with tempfile.TemporaryDirectory() as folder:
        data = make.dataset(trained.data)
        student.train(trained, data, folder, base=before, watch=(look, every))
    yield from seen
