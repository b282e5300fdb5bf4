"""Do students move along the teacher's chat vector? Cosines of their updates, and nulls.

Only students of the teacher's own architecture have weights that can be compared with the vector.
Everything goes through the store: students are those of the other studies, and a trajectory is a
training repeated and looked at on its way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pandas as pd
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from codit import chat_vector, student
from codit.evaluation import intervals
from codit.paper import arms as comparison
from codit.paper import make as results
from codit.paper import scales, seeds, store
from codit.paper.arms import Arm, StudentStudy
from codit.paper.scales import Scale
from codit.recipes import Model, Pair, Training
from codit.world.recipes import Pretraining

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
    """Return the study of notebook 04.

    Args:
        chosen: a scale whose first student is the teacher's amateur.

    Returns:
        AlignmentStudy: the main arms, the world's own answers and unrelated ones.

    Source: CoDIT, Figures 3 and 7; granularity, nulls and intervals ours.
    """
    own = tuple(Arm(role=role) for role in comparison.OWN)
    arms = (*scales.main_arms(chosen), *own)
    base = (chosen.pair.amateur,)
    assert isinstance(base[0], (Model, Pretraining))
    return AlignmentStudy(
        students=scales.students(chosen, arms, tests=(), students=base),
        others=chosen.rivals,
        watched=("direct", "truncated", "codit"),
    )


def study(recipe: AlignmentStudy) -> pd.DataFrame:
    """Return every cosine of a study, made where it does not exist yet.

    Args:
        recipe: students, teachers, whom to watch.

    Returns:
        DataFrame: arm, role, plausibility, strength, n_candidates, seed; vector ("own", "permuted",
        "teacher B", ...); step (NaN: the finished student); and the columns of
        `chat_vector.cosines`. Of nulls and of trajectories, global cosines only.

    Raises:
        ValueError: a student's base is not the teacher's amateur.

    Source: ours.
    """

    def make(recipe: AlignmentStudy) -> pd.DataFrame:
        return results.compact(pd.concat(_rows(recipe), ignore_index=True))

    return store.table(recipe, make, "cosines")


def update(model: PreTrainedModel, base: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what training has added to a model so far.

    Args:
        model: the student.
        base: weights before, by name.

    Returns:
        dict: name to float64 tensor; a tied head is not repeated.

    Source: ours.
    """
    now = {name: weight.detach().double() for name, weight in model.named_parameters()}
    return {name: weight - base[name].double() for name, weight in now.items()}


def seed_table(table: pd.DataFrame, *, by: tuple[str, ...] = ("arm",)) -> pd.DataFrame:
    """Return mean cosines with their 95 % t-intervals over seeds.

    Args:
        table: rows of `study`, one per seed and `by`; at least two seeds.
        by: what tells one mean from another.

    Returns:
        DataFrame: `by`, role, value, low, high, seeds.

    Raises:
        ValueError: fewer than two seeds.

    Source: ours.
    """
    rows = []
    for key, own in table.groupby(list(by), sort=False):
        found = seeds.difference(own["cosine"].to_numpy()[None])
        told = {"role": own["role"].iloc[0], **dict(zip(by, key, strict=True))}
        rows.append({**told, **intervals.columns(found), "seeds": found.prompts})
    return pd.DataFrame(rows)


def seed_difference(table: pd.DataFrame, one: str, other: str) -> seeds.Difference:
    """Return the mean difference of two arms' cosines, paired by seed, with its t-interval.

    Args:
        table: rows of `study`, one per arm and seed.
        one: label of the arm that is compared...
        other: ...with this one.

    Returns:
        Difference: its `prompts` are the seeds, the only sample there is.

    Raises:
        ValueError: fewer than two seeds.

    Source: ours.
    """
    wide = table.pivot_table(index="seed", columns="arm", values="cosine")
    return seed_interval(wide[one] - wide[other])


def seed_interval(values: pd.Series) -> seeds.Difference:
    """Return the mean of one number per seed with its 95 % t-interval.

    Args:
        values: one per seed, at least two.

    Returns:
        Difference: its `prompts` are the seeds, the only sample there is.

    Raises:
        ValueError: fewer than two seeds.

    Source: ours.
    """
    return seeds.difference(values.to_numpy()[None])


def _rows(recipe: AlignmentStudy) -> Iterator[pd.DataFrame]:
    plan = recipe.students
    pair = plan.responses.pair
    (base,) = plan.students
    if base != pair.amateur:
        raise ValueError(
            "expected students whose base is the teacher's amateur, for only their updates can be "
            f"compared with its chat vector; got {comparison.model_label(base)}. Choose that base."
        )
    before = results.model_path(base)
    vectors: dict[str, Any] = {"own": (results.model_path(pair.expert), before)}
    vectors |= {
        f"teacher {name}": (results.model_path(other.expert), results.model_path(other.amateur))
        for name, other in zip("BCD", recipe.others, strict=False)
    }
    vectors["permuted"] = chat_vector.permuted(vectors["own"], seed=0)
    for arm in plan.responses.arms:
        for seed in plan.responses.seeds:
            trained = comparison.training(plan, base, arm, seed)
            told = {**comparison.columns(arm), "seed": seed}
            told["n_candidates"] = told.pop("n")
            after = results.model_path(trained)
            for name, vector in vectors.items():
                found = chat_vector.cosines((after, before), vector)
                found = found if name == "own" else found[found["group"] == "global"]
                yield found.assign(**told, vector=name)
            if arm.role in recipe.watched:
                for step, found in _trajectory(trained, before, vectors["own"], recipe.every):
                    kept = found[found["group"] == "global"]
                    yield kept.assign(**told, vector="own", step=step)


def _trajectory(
    trained: Training, before: str, vector: Any, every: int
) -> Iterator[tuple[int, pd.DataFrame]]:
    """Train a student again and yield its global cosines on the way."""
    model = AutoModelForCausalLM.from_pretrained(before, dtype="auto")
    base = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    seen: list[tuple[int, pd.DataFrame]] = []

    def look(step: int, model: PreTrainedModel) -> None:
        if step:  # before the first step there is no direction
            seen.append((step, chat_vector.cosines(update(model, base), vector)))

    with tempfile.TemporaryDirectory() as folder:
        data = results.dataset(trained.data)
        student.train(trained, data, folder, base=before, watch=(look, every))
    yield from seen
