"""The tables that ship with the repository: made once at scale `full`, read by `make figures`.

`python -m codit.committed` makes what is missing (hours the first time; killed, it goes on) and
puts every table into `data/results/`, where the store finds it by its recipe's key.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro

from codit import (
    alignment,
    engine_study,
    experiments,
    figures,
    judge_students,
    judge_study,
    results,
    store,
    studies,
    throughput,
    token_evidence,
    transfer,
)
from codit.experiments import Scale

Made = tuple[Any, Callable[[Any], object]]  # a recipe and what makes its table through the store
TOO_LARGE = 3_000_000  # bytes of one table; a clone should stay quick (ours)


def tables(chosen: Scale) -> dict[str, Made]:
    """Return every table that the notebooks of a scale read.

    Args:
        chosen: the scale, with the verifier among its evaluations.

    Returns:
        dict: a name, which is its folder's in `data/results/`, to the recipe and its maker.

    Source: ours.
    """
    named: dict[str, Made] = {k: (r, results.study) for k, r in studies.plan(chosen).items()}
    named["alignment"] = (alignment.recipe(chosen), alignment.study)
    named["tokens"] = (token_evidence.recipe(chosen), token_evidence.study)
    named["transfer"] = (transfer.recipe(chosen), transfer.study)
    judged = judge_study.recipes(chosen) if chosen.judging.judges else {}
    named |= {f"judged-{k}": (recipe, judge_study.study) for k, recipe in judged.items()}
    if judged:
        named["judged-students"] = (judge_students.recipe(chosen), judge_students.students)
        named["judged-answers"] = (judge_students.judged_recipe(chosen), judge_students.study)
    # A measurement of a machine, not of a scale's models: one is kept.
    named["throughput"] = (throughput.recipe(figures.COMMITTED), throughput.study)
    named["engines"] = (engine_study.recipe(figures.COMMITTED), engine_study.study)
    return named


def folder(name: str) -> Path:
    """Return where a committed table lies.

    Args:
        name: one of `tables`.

    Returns:
        Path: absolute, `data/results/NAME` of the checkout.

    Source: ours.
    """
    return store.repository() / "data" / "results" / name


def commit(name: str, made: Made) -> Path:
    """Make a table where it is missing and put it into `data/results/`.

    Args:
        name: of its folder, which is replaced at once.
        made: its recipe and maker.

    Returns:
        Path: the folder.

    Raises:
        ValueError: it is too large to be committed.

    Source: ours.
    """
    recipe, make = made
    target = folder(name)
    make(recipe)
    found = store.find(recipe)
    assert found is not None, "a maker goes through the store"
    if found == target:
        return target
    size = sum(path.stat().st_size for path in found.rglob("*"))
    if size > TOO_LARGE:
        raise ValueError(
            f"expected at most {TOO_LARGE:,} bytes of {name}; got {size:,}. Keep fewer columns or "
            "rows."
        )
    staged = target.with_name(f".{name}.new")
    shutil.rmtree(staged, ignore_errors=True)
    staged.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(found, staged)
    shutil.rmtree(target, ignore_errors=True)
    staged.rename(target)
    return target


def main(
    only: Annotated[tuple[str, ...], tyro.conf.Positional] = (), *, scale: str = "full"
) -> None:
    """Make the committed tables.

    Args:
        only: names; none means all.
        scale: whose tables.

    Raises:
        ValueError: unknown name.

    Source: ours.
    """
    known = tables(experiments.scale(scale))
    unknown = sorted(set(only) - set(known))
    if unknown:
        raise ValueError(f"expected names among {list(known)}; got {unknown}. Name a table.")
    for name in only or known:
        print(f"{name}: {commit(name, known[name])}", flush=True)


if __name__ == "__main__":
    tyro.cli(main)
