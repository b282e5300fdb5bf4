"""How fast a pair is decoded, beside two plain models, other ways to decode it, and the limits.

Machines are noisy and differ, so nothing here is one timing: what is compared is measured in turn,
A B A B ..., and the ratio of each round is kept. Reported are the median ratio and its quartiles.
Source of goals and method: ours.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from codit import decode, limits, random_pairs, step_times, store, transport
from codit.files import versions, write_json
from codit.recipes import Decoding
from codit.step_times import Case

FILE = "measured.json"
GOALS = {  # at most (ours; the issue that asked for speed)
    ("step", "qwen3-0.6b"): 0.85,
    ("step", None): 1.0,
    ("arithmetic", "qwen3-0.6b"): 0.005,
    ("arithmetic", "small"): 0.03,
}


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """What a measurement measures; on which machine is written beside the numbers.

    Args:
        cases: shapes and batch sizes.
        transports: (rows, vocabulary) of the authors' transport.
        moves: steps of each.
        lengths: (rows, rows at once, median tokens) of long-tailed lengths; none leaves them out.
        rounds: of the two engines in turn.
        device: "cpu" or "cuda".
    """

    cases: tuple[Case, ...]
    transports: tuple[tuple[int, int], ...] = ((8, 151_936), (200, 151_936))
    moves: int = 20
    lengths: tuple[int, ...] = (256, 64, 33)
    rounds: int = 5
    device: str = "cpu"
    version: ClassVar[int] = 1


def recipe(scale: str, *, rounds: int | None = None) -> Throughput:
    """Return what is measured at a scale.

    Args:
        scale: "micro" (the embedded pair's shape, seconds), "full" (every CPU shape, a quarter of
            an hour), "laptop" (Qwen3-0.6B's alone), "paper" (a GPU's).
        rounds: of everything. None: the scale's.

    Returns:
        Throughput: the recipe.

    Raises:
        ValueError: unknown scale.

    Source: ours.
    """
    shape = random_pairs.shapes()
    micro = Case(shape=shape["micro"], rows=64, tokens=15, rounds=5)
    qwen = Case(shape=shape["qwen3-0.6b"], tokens=9, rounds=5)
    small = Case(shape=shape["small"], tokens=15, rounds=7)
    llama = Case(shape=shape["llama-small"], tokens=15, rounds=7)
    many = replace(micro, rounds=15)
    large = [
        Case(shape=shape[name], rows=rows, prompt=64, tokens=65, ways=("naive",))
        for name, most in (("qwen3-8b", 256), ("gemma3-27b", 16))
        for rows in (1, 4, 16, 64, 256)
        if rows <= most
    ]
    cases = (qwen, small, replace(small, rows=1), llama, replace(llama, rows=32))
    known = {
        "micro": Throughput(
            cases=(micro,), transports=((8, 151_936),), moves=5, lengths=(48, 16, 12), rounds=3
        ),
        "full": Throughput(cases=(*cases, many)),
        "laptop": Throughput(cases=(qwen,)),
        "paper": Throughput(cases=tuple(large), lengths=(), device="cuda"),
    }
    if scale not in known:
        raise ValueError(f"expected one of the scales {', '.join(known)}; got {scale!r}. Name one.")
    chosen = known[scale]
    if rounds is not None:
        same = tuple(replace(case, rounds=rounds) for case in chosen.cases)
        chosen = replace(chosen, cases=same, rounds=rounds)
    return chosen


def study(recipe: Throughput) -> dict[str, Any]:
    """Return a measurement from the store, measuring where there is none.

    Args:
        recipe: what is measured.

    Returns:
        dict: see `measure`.

    Source: ours.
    """
    return read(store.get(recipe, make) / FILE)


def make(recipe: Throughput, folder: Path) -> None:
    """Measure, and write the numbers: what the store calls.

    Args:
        recipe: what is measured.
        folder: gets `measured.json`.

    Source: ours.
    """
    write(measure(recipe), folder / FILE)


def write(found: dict[str, Any], path: Path) -> None:
    """Write a measurement.

    Args:
        found: see `measure`.
        path: of a JSON file.

    Source: ours.
    """
    rows = found["rows"].astype(object).where(found["rows"].notna(), None)
    write_json(path, {**found, "rows": rows.to_dict("records")})


def read(path: Path) -> dict[str, Any]:
    """Return a measurement that was written.

    Args:
        path: of `measured.json`.

    Returns:
        dict: see `measure`.

    Source: ours.
    """
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {**found, "rows": pd.DataFrame(found["rows"]).astype({"goal": float})}


def measure(
    recipe: Throughput, report: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Measure everything that a recipe names, on this machine.

    Args:
        recipe: what is measured.
        report: called with a line before each part.

    Returns:
        dict: `machine`, `versions`, `date`, `seconds`, and `rows`, a DataFrame: quantity ("step",
        "arithmetic", "rate", "transport", ...), shape, batch (B), way, value (median), low, high
        (quartiles), unit, goal, rounds.

    Source: ours.
    """
    start = time.perf_counter()
    report("the device's limits")
    speed = limits.speed(recipe.device)
    rows = []
    for case in recipe.cases:
        if not step_times.fits(case, recipe.device):
            report(f"{case.shape.name}, B = {case.rows}: does not fit, left out")
            continue
        report(f"{case.shape.name}, B = {case.rows}")
        rows += step_times.measured(case, recipe.device, speed)
    for size in recipe.transports:
        report(f"transport, B = {size[0]}, V = {size[1]:,}")
        rows += transport_rows(*size, steps=recipe.moves)
    if recipe.lengths:
        report("engines with long-tailed lengths")
        rows += engine_rows(recipe.lengths, rounds=recipe.rounds)
    seconds = round(time.perf_counter() - start, 1)
    about: dict[str, Any] = {"machine": limits.machine(recipe.device), "speed": asdict(speed)}
    about |= {"versions": versions(), "seconds": seconds}
    about |= {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    table = pd.DataFrame(rows)
    keys = zip(table["quantity"], table["shape"], table["way"], strict=True)
    return {**about, "rows": table.assign(goal=[goal(*key) for key in keys])}


def goal(quantity: str, shape: str | None, way: str) -> float | None:
    """Return what a ratio of ours should be at most.

    Args:
        quantity: "step" or "arithmetic"; others have no goal.
        shape: name of the shape.
        way: only "ours" has goals.

    Returns:
        float | None: the goal of this shape, else of any shape.

    Source: ours.
    """
    return GOALS.get((quantity, shape), GOALS.get((quantity, None))) if way == "ours" else None


def transport_rows(rows: int, vocabulary: int, *, steps: int) -> Iterator[dict[str, Any]]:
    """Yield milliseconds and bytes of a step of the authors' transport, and of ours.

    Args:
        rows: B.
        vocabulary: V.
        steps: that are timed.

    Yields:
        dict: as `measure` returns them.

    Source: `codit.transport`; ours moves nothing: one process holds both models.
    """
    seconds, moved = transport.seconds_per_step(rows, vocabulary, steps=steps)
    about = {"quantity": "transport", "shape": f"V = {vocabulary:,}", "batch": rows}
    about |= {"rounds": steps}
    found = step_times.quartiles([1000 * one for one in seconds])
    yield {**about, "way": "authors'", **found, "unit": "ms per step"}
    for way, count in (("authors'", moved), ("ours", 0)):
        same = step_times.alone(float(count))
        yield {**about, "way": way, **same, "unit": "bytes per step"}


def lengths(rows: int, median: float, *, most: int) -> list[int]:
    """Return long-tailed lengths of responses, log-normal with sigma 1.

    Args:
        rows: how many.
        median: tokens.
        most: longer ones are cut to this.

    Returns:
        list[int]: tokens, the stop token included; equal arguments give equal lengths.

    Source: ours.
    """
    drawn = np.random.default_rng(0).lognormal(np.log(median), 1.0, rows)
    return [int(one) for one in drawn.clip(2, most).round()]


def engine_rows(sizes: tuple[int, ...], *, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield how the static engine's tokens/s compare with the continuous one's, long tail.

    Args:
        sizes: rows, rows at once, median tokens.
        rounds: of the two in turn.

    Yields:
        dict: as `measure` returns them; `lengths` describes the distribution.

    Source: ours. A pair that counts down: `random_pairs.countdown`.
    """
    rows, at_once, median = sizes
    shape = random_pairs.shapes()["micro"]
    asked = lengths(rows, median, most=shape.vocabulary - 1)
    pair, tokenizer = random_pairs.countdown(shape), random_pairs.tokenizer(shape.vocabulary)
    # Unequal first words: rows with equal prompts are told apart by nothing else.
    chats = [random_pairs.chat([1 + row, 7, 7, length]) for row, length in enumerate(asked)]
    decoding = Decoding(max_new_tokens=max(asked))

    def run(engine: str) -> dict[str, float]:
        start = time.perf_counter()
        options: dict[str, Any] = {"engine": engine, "batch_size": at_once, "progress": False}
        made = decode.generate(pair, tokenizer, chats, decoding, **options)
        assert [len(one.token_ids) for one in made] == asked, "the pair counts down"
        return {engine: time.perf_counter() - start}

    ways = {engine: partial(run, engine) for engine in ("static", "continuous")}
    times = step_times.in_turn(ways, rounds=rounds)
    about = {"shape": shape.name, "batch": at_once, "rounds": rounds}
    found = step_times.ratio(times, "continuous", "static")
    unit = "times the continuous engine's tokens/s"
    yield {**about, "quantity": "engines", "way": "static", **found, "unit": unit}
    tail = {**about, "quantity": "lengths", "unit": f"tokens, {rows} rows"}
    yield {**tail, "way": "middle half", **step_times.quartiles(asked)}
    yield {**tail, "way": "longest", **step_times.alone(float(max(asked)))}
