"""A full judged dataset of the micro world over a real server: speed, cost, and a second run.

`python -m tests.benchmarks.bench_judge [--commit]` lets the world's judge score the scale's CoDIT
dataset with `codit judge`, served by `transformers serve` in two ways: one request after another,
and from a paged cache. Each is asked twice; the second run must find every reply in the cache.
`--commit` writes `tests/tables/judge.md`.
"""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import tyro

from codit import cli
from codit.files import replacing
from codit.paper import make, scales, store
from codit.world import judge as world_judge
from codit.world.recipes import JUDGES

TABLE = Path(__file__).parents[1] / "tables" / "judge.md"
WAYS = {"one after another": (None, 1), "paged cache": (16_384, 64)}  # cache tokens, concurrency
GOAL = 3.0  # times the judgements per second (ours)


def write_dataset(path: Path, rows: int | None) -> int:
    """Write the CoDIT arm's responses of scale micro, and return how many."""
    found = make.dataset(scales.synthesis(scales.scale("micro"), "codit"))
    kept = list(found)[:rows]
    with path.open("w", encoding="utf-8") as stream:
        for row in kept:
            named = {name: row[name] for name in ("id", "instruction", "response")}
            stream.write(json.dumps(named) + "\n")
    return len(kept)


def judged(data: Path, out: Path, url: str, name: str, concurrency: int) -> tuple[float, str]:
    """Run `codit judge` and return its seconds and what it printed."""
    command = ["judge", "--data", str(data), "--out", str(out), "--model", name]
    command += ["--base-url", url, "--temperature", "0", "--max-tokens", "96"]
    command += ["--concurrency", str(concurrency), "--no-progress"]
    command += ["--price-in", "1", "--price-out", "4"]
    said = io.StringIO()
    start = time.monotonic()
    with contextlib.redirect_stdout(said):
        status = cli.main(command)
    assert status == 0, said.getvalue()
    return time.monotonic() - start, said.getvalue().replace(str(out), "scores.jsonl").strip()


def measure(rows: int | None) -> dict[str, Any]:
    """Judge the dataset in every way, twice each."""
    judge = store.get(JUDGES[0], world_judge.make)
    found: dict[str, Any] = {"ways": {}}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data.jsonl"
        found["rows"] = write_dataset(data, rows)
        for way, (cache_tokens, concurrency) in WAYS.items():
            out = Path(folder) / f"{concurrency}.jsonl"
            with world_judge.serve(judge, cache_tokens=cache_tokens) as url:
                runs = [judged(data, out, url, judge.name, concurrency) for _ in range(2)]
            tally = json.loads(out.with_suffix(".manifest.json").read_text())["tally"]
            assert tally["calls"] == 0, "the second run asks nothing"
            found["ways"][way] = runs
    return found


def written(found: dict[str, Any]) -> str:
    """Return the table as Markdown."""
    slow, quick = (runs[0][0] for runs in found["ways"].values())
    lines = [
        "# A judged dataset",
        "",
        f"The CoDIT dataset of scale `micro` ({found['rows']:,} responses), scored by the world's "
        "judge behind `transformers serve` on loopback, by `codit judge`, twice. Prices are made "
        "up: 1 and 4 for a million tokens. `python -m tests.benchmarks.bench_judge --commit` "
        f"writes this file; two shared cores, {datetime.now(UTC):%Y-%m-%d}.",
        "",
        f"**A paged cache and 64 questions at a time: {slow / quick:.1f} times as fast as one "
        f"after another** (goal {GOAL:g}). The second run asks nothing.",
        "",
        "```",
    ]
    for way, runs in found["ways"].items():
        for number, (seconds, said) in enumerate(runs, start=1):
            lines += [f"{way}, run {number}: {seconds:.1f} s in all", *said.splitlines(), ""]
    return "\n".join([*lines[:-1], "```", ""])


def main(*, rows: int | None = None, commit: bool = False) -> int:
    """Measure and print; status 1 where the goal is missed."""
    found = measure(rows)
    text = written(found)
    print(text)
    if commit:
        with replacing(TABLE) as stream:
            stream.write(text.encode())
    slow, quick = (runs[0][0] for runs in found["ways"].values())
    return int(slow / quick < GOAL)


if __name__ == "__main__":
    raise SystemExit(tyro.cli(main))
