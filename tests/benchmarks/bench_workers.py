"""Rows per second of a synthesis over several workers, and how many rows are the same.

`python -m tests.benchmarks.bench_workers [--rows 1024] [--workers 1 2 4] [--json FILE]` answers
prompts of the micro world by a pair on disk: in one process, by local workers and by Ray's.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import torch
import tyro

from codit import recipes, synthesis, world
from codit.dataset import output
from codit.paper import shipped
from codit.world.recipes import WorldPrompts

EXPLAINED = """\
rows/s      from the moment when as many batches are written as there are workers (so that loading
            is left out) to the last batch
efficiency  rows/s divided by the number of workers and by rows/s of one process
identical   share of rows that are byte for byte those of one process
seconds     in all: start of the workers, of Ray and loading included
One thread of torch each on a CPU; a GPU each where there are several."""


def measure(
    recipe: recipes.Synthesis, out: Path, *, batch_size: int, workers: int, ray: bool
) -> dict[str, Any]:
    """Return seconds and rows/s of one run."""
    real, written = output.append, list[tuple[float, int]]()

    def append(files: Any, records: Any, **how: Any) -> int:
        end = real(files, records, **how)
        written.append((time.monotonic(), len(records)))
        return end

    start = time.monotonic()
    with mock.patch.object(output, "append", append):
        synthesis.write(
            recipe,
            world.prompts(recipe.prompts),
            out,
            batch_size=batch_size,
            workers=workers,
            ray_address="local" if ray else None,
        )
    seconds = time.monotonic() - start
    begun, rows = written[workers - 1][0], sum(n for _, n in written[workers:])
    speed = rows / (written[-1][0] - begun)
    return {"seconds": round(seconds, 1), "rows_per_second": round(speed, 2)}


def compare(found: dict[str, Any], first: dict[str, Any], out: Path, whole: Path) -> None:
    """Add what a run is beside that of one process."""
    lines, expected = (path.read_bytes().split(b"\n")[:-1] for path in (out, whole))
    same = sum(a == b for a, b in zip(lines, expected, strict=True))
    found["identical"] = same / len(expected)
    ratio = found["rows_per_second"] / first["rows_per_second"] / found["workers"]
    found["efficiency"] = round(ratio, 3)


def main(
    *,
    expert: str = str(shipped.folder("expert")),
    amateur: str = str(shipped.folder("amateur")),
    rows: int = 1024,
    batch_size: int = 16,
    max_new_tokens: int = 96,
    workers: tuple[int, ...] = (1, 2, 4),
    ray: bool = True,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> int:
    """Measure and print a table; status 1 where a row differs.

    Args:
        expert: folder or Hub name of the post-trained model.
        amateur: folder or Hub name of its own pre-trained counterpart.
        rows: number of prompts.
        batch_size: rows in a batch; there are more than twice as many batches as workers.
        max_new_tokens: response limit.
        workers: numbers of workers; the first is compared with.
        ray: run over Ray too.
        json_file: write the numbers to this file.
    """
    if rows < 2 * batch_size * max(workers):
        raise ValueError(f"expected at least two batches a worker; got {rows} rows. Give more.")
    torch.set_num_threads(1)
    models = {"expert": recipes.Model(name=expert), "amateur": recipes.Model(name=amateur)}
    recipe = recipes.Synthesis(
        pair=recipes.Pair(**models),
        prompts=WorldPrompts(split="test", n=rows),
        decoding=recipes.Decoding(plausibility=0.3, max_new_tokens=max_new_tokens),
    )
    table: list[dict[str, Any]] = []
    cases = [(False, n) for n in workers] + [(True, n) for n in workers if ray]
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / f"{n}-{through}.jsonl" for through, n in cases]
        for (through, n), out in zip(cases, outs, strict=True):
            found = {"how": "Ray" if through else "processes" if n > 1 else "one", "workers": n}
            found |= measure(recipe, out, batch_size=batch_size, workers=n, ray=through)
            table.append(found)
            compare(found, table[0], out, outs[0])
    shape = "{:<10} {:>7} {:>8} {:>11} {:>10} {:>8}"
    print(shape.format("through", "workers", "rows/s", "efficiency", "identical", "seconds"))
    for found in table:
        speed, share = f"{found['rows_per_second']:.2f}", f"{found['identical']:.2%}"
        more = (f"{found['efficiency']:.2f}", share, f"{found['seconds']:.1f}")
        print(shape.format(found["how"], found["workers"], speed, *more))
    where = f"{torch.cuda.device_count()} GPUs" if torch.cuda.is_available() else "no GPU"
    print(f"{rows} rows in batches of {batch_size}; {os.cpu_count()} cores, {where}\n{EXPLAINED}")
    if json_file is not None:
        machine = {"rows": rows, "batch_size": batch_size, "cores": os.cpu_count(), "gpus": where}
        json_file.write_text(json.dumps({**machine, "runs": table}, indent=2) + "\n")
    return 0 if all(found["identical"] == 1 for found in table) else 1


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
