"""Time of the decoder: ratios beside two forward passes, other ways to decode, and the limits.

`python -m tests.benchmarks.bench_decoder [--shapes small micro] [--json FILE] [--threads 2]`
measures pairs of random weights on this machine and prints medians of paired ratios with their
quartiles, goals beside them. `--quick` does it in less than a minute, `--device cuda` measures
larger shapes in bfloat16 on a GPU. `--commit` puts the numbers of a full run on a CPU into
`data/results/throughput`, from which notebook 21 draws.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
import tyro

from codit import shipped, store, throughput
from codit.throughput import Throughput

EXPLAINED = """\
Weights are random; the expert's last norm is scaled until tens of ids are plausible at .01, the
number found in the text drawn is the row "plausible".
step        seconds of one step (a token for each row) over those of two plain forward passes with
            caches of their own and whole heads; ours through decode.generate, engine "static":
            (time of n tokens - time of 1) / (n - 1), no stop tokens; unpacked: with weights as
            torch keeps them (the copy for the CPU's kernels is timed apart: "packing")
arithmetic  contrast and draw alone, logits given, over our step; naive: two log-softmaxes, mask,
            softmax and cumulative sum in float64, over the whole vocabulary
rate        our tokens/s over those of `generate` with the amateur in a logits processor, uncached
            on the whole prefix or with a cache, prompts included
limit       bytes or operations of a step over what the device can do, as a share of our step
transport   the authors' two log-prob matrices in fp16 over two loopback TCP hops
engines     static over continuous, long-tailed lengths (row "lengths"), total tokens/s
Values are medians; low and high are quartiles of the rounds' own ratios."""


def chosen(device: str, names: tuple[str, ...], *, quick: bool) -> Throughput:
    """Return what is measured; raise ValueError for a shape that a device's plan has not."""
    plan = throughput.recipe("paper" if device == "cuda" else "full")
    known = list(dict.fromkeys(case.shape.name for case in plan.cases))
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"expected shapes among {known}; got {unknown}. Name some of them.")
    cases = [case for case in plan.cases if not names or case.shape.name in names]
    if not quick:
        return replace(plan, cases=tuple(cases))
    if not names:
        small = [case for case in cases if case.shape.vocabulary < 100_000 and case.rows != 32]
        cases = small or cases[:1]
    few = tuple(replace(case, tokens=min(case.tokens, 9), rounds=3) for case in cases)
    lengths = throughput.recipe("micro").lengths if plan.lengths else ()
    return replace(plan, cases=few, moves=5, lengths=lengths, rounds=3)


def table(rows: pd.DataFrame) -> str:
    """Return the measured rows as text."""
    numbers = ["value", "low", "high", "goal"]
    text = {name: [f"{one:.4g}" if one == one else "" for one in rows[name]] for name in numbers}
    shown = ["quantity", "shape", "batch", "way", *numbers, "unit", "rounds"]
    told: str = rows.assign(**text)[shown].to_string(index=False)
    return told


def main(
    *,
    shapes: tuple[str, ...] = (),
    device: Literal["cpu", "cuda"] = "cpu",
    threads: int | None = None,
    quick: bool = False,
    commit: bool = False,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> int:
    """Measure and print a table; status 1 where a goal is missed by the whole middle half.

    Args:
        shapes: names of shapes; none means all of the device's.
        device: where the models are.
        threads: of torch. None: as many as it takes itself.
        quick: fewer rounds, small shapes, less than a minute.
        commit: keep the numbers in data/results/throughput; of everything on a CPU only.
        json_file: where to write the numbers.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    plan, start = chosen(device, shapes, quick=quick), time.perf_counter()
    if commit and plan != throughput.recipe("full"):
        raise ValueError("--commit keeps a full run on a CPU; got --quick, --shapes or --device.")

    def report(line: str) -> None:
        print(f"{time.perf_counter() - start:6.0f} s  {line}", file=sys.stderr, flush=True)

    found = throughput.measure(plan, report)
    rows = found["rows"]
    print(table(rows))
    print(EXPLAINED)
    about = {**found["machine"], **found["speed"], "seconds": found["seconds"]}
    print("\n".join(f"{name:<17} {value}" for name, value in about.items()))
    if json_file is not None:
        command = " ".join(["python -m tests.benchmarks.bench_decoder", *sys.argv[1:]])
        throughput.write({**found, "command": command}, json_file)
    if commit:
        keep(plan, found)
    return int((rows["low"] > rows["goal"]).any())


def keep(plan: Throughput, found: dict[str, Any]) -> None:
    """Put numbers into data/results/throughput, in place of those there."""
    target = shipped.folder("throughput")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".throughput.") as folder:
        made = Path(folder) / "made"
        made.mkdir()
        throughput.write(found, made / throughput.FILE)
        store.write_manifest(made, plan, seconds=found["seconds"])
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    print(f"kept in {target}")


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
