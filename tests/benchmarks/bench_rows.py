"""Time and memory of a dataset as large as the authors', with nothing decoded.

`python -m tests.benchmarks.bench_rows [--rows 250333] [--json FILE]` writes that many prompts to a
temporary folder and runs `codit.synthesis` over them in processes of their own, with answers made
without a model: of lognormal length, 600 tokens on average. What is left is what files cost:
reading prompts, writing batches, finding out where to go on, finishing.
"""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any
from unittest import mock

import tyro

from tests.benchmarks.bench_chat_vector import status

ROWS = 250_333  # what the authors released for each teacher
TOKENS = 600  # of a response, on average
GOAL = 1024  # MB above what importing takes, at the peak
POOL = 512  # different answers
WORDS = 'the cat sat on a mat and "said" nothing at all\n of it because there was no one in'.split(
    " "
)
# A run up to its last batch; the same command, which finds every row there and finishes; again.
STAGES = ("write", "finish", "again")
PARTS = {
    "prompts": "reading prompts",
    "earlier": "comparing settings",
    "begin": "scan for where to go on",
    "append": "writing batches",
    "finish": "finishing",
    "total": "all, making the answers included",
}


def write_prompts(path: Path, rows: int) -> None:
    """Write prompts of some 60 words, an id each."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            text = " ".join(draw.choices(WORDS, k=max(3, int(draw.lognormvariate(3.6, 1)))))
            stream.write(json.dumps({"id": f"row-{number}", "instruction": text}) + "\n")


def answers() -> Callable[..., list[Any]]:
    """Return a stand-in for `decode.generate`: an answer from the pool for each row."""
    from codit.decode import Response

    draw = random.Random(1)
    pool = []
    for _ in range(POOL):
        # The mean of a lognormal is exp(mu + sigma^2 / 2).
        n = max(1, min(4096, round(TOKENS * draw.lognormvariate(-0.32, 0.8))))
        text = " ".join(draw.choices(WORDS, k=n))
        logprobs = [-draw.expovariate(2.0) for _ in range(n)]
        pool.append({"text": text, "logprobs": logprobs, "token_ids": [0] * n})
    turn = itertools.count()

    def generate(_: Any, __: Any, chats: Sequence[Any], *___: Any, **how: Any) -> list[Response]:
        drawn = (pool[next(turn) % POOL] for _ in chats)
        return [
            Response(id=name, is_completed=True, **answer)
            for name, answer in zip(how["ids"], drawn, strict=True)
        ]

    return generate


@contextmanager
def timed(spent: Counter[str], module: Any, function: str, name: str) -> Iterator[None]:
    """Add what calls of a module's function take to `spent`, in seconds."""
    real = getattr(module, function)

    def measured(*args: Any, **how: Any) -> Any:
        start = time.monotonic()
        try:
            return real(*args, **how)
        finally:
            spent[name] += time.monotonic() - start  # type: ignore[assignment]

    with mock.patch.object(module, function, measured):
        yield


@contextmanager
def watched(found: dict[str, float]) -> Iterator[None]:
    """Keep the peaks of this process above its memory now, in MB."""
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
    base, done = {"anonymous": status("RssAnon"), "resident": status("VmRSS")}, threading.Event()
    peak = base["anonymous"]

    def poll() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, status("RssAnon"))

    watcher = threading.Thread(target=poll)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()
        found["anonymous"] = round(peak - base["anonymous"], 1)
        found["resident"] = round(status("VmHWM") - base["resident"], 1)


def measure(stage: str, folder: str) -> None:
    """Run one stage and print seconds and peaks as JSON: what a process of its own does."""
    from codit import decode, recipes, synthesis
    from codit.dataset import output

    models = {role: recipes.Model(name=f"stub/{role}") for role in ("expert", "amateur")}
    prompts = recipes.File(path=str(Path(folder) / "in.jsonl"))
    recipe = recipes.Synthesis(pair=recipes.Pair(**models), prompts=prompts)
    spent: Counter[str] = Counter()
    peaks: dict[str, float] = {}
    watching = [
        (synthesis, "load", "prompts"),
        (output, "earlier_runs", "earlier"),
        (output, "begin", "begin"),
        (output, "append", "append"),
        (output, "finish", "finish"),
    ]
    stub = {"model": mock.MagicMock(), "tokenizer": mock.MagicMock(), "progress": False}
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(decode, "generate", answers()))
        if stage == "write":  # stop before the end
            module, function, _ = watching.pop()
            stack.enter_context(mock.patch.object(module, function, mock.Mock(return_value={})))
        for module, function, name in watching:
            stack.enter_context(timed(spent, module, function, name))
        stack.enter_context(watched(peaks))
        stack.enter_context(timed(spent, synthesis, "write", "total"))
        synthesis.write(recipe, prompts, Path(folder) / "out.jsonl", **stub)
    print(json.dumps({"seconds": spent, "peak": peaks}))


def run(rows: int) -> dict[str, Any]:
    """Return seconds and peaks of every stage, and the size of the files."""
    found: dict[str, Any] = {"rows": rows}
    with tempfile.TemporaryDirectory() as folder:
        write_prompts(Path(folder) / "in.jsonl", rows)
        for stage in STAGES:
            command = [sys.executable, "-m", __spec__.name, "measure", stage, folder]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            found[stage] = json.loads(done.stdout.splitlines()[-1])
        found["prompts_mb"], found["dataset_mb"] = (
            round((Path(folder) / name).stat().st_size / 2**20, 1)
            for name in ("in.jsonl", "out.jsonl")
        )
        manifest = json.loads((Path(folder) / "out.manifest.json").read_text())
        assert (manifest["rows"], manifest["errors"]) == (rows, 0)
        found["tokens_a_row"] = round(manifest["tokens"] / rows)
    return found


def main(
    *,
    rows: int = ROWS,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> int:
    """Measure and print a table; status 1 where the goal of memory is missed."""
    found = run(rows)
    print(
        f"{rows} rows, {found['tokens_a_row']} tokens each; prompts {found['prompts_mb']} MB, ",
        end="",
    )
    print(f"dataset {found['dataset_mb']} MB")
    print(f"{'seconds':<34}" + "".join(f"{stage:>9}" for stage in STAGES))
    for part, words in PARTS.items():
        cells = (found[stage]["seconds"].get(part) for stage in STAGES)
        print(f"{words:<34}" + "".join(f"{'' if c is None else f'{c:.1f}':>9}" for c in cells))
    for kind in ("anonymous", "resident"):
        cells = [found[stage]["peak"][kind] for stage in STAGES]
        print(f"{f'peak above imports, {kind}, MB':<34}" + "".join(f"{c:9.0f}" for c in cells))
    peak = max(found[stage]["peak"]["anonymous"] for stage in STAGES)
    found |= {"goal_mb": GOAL, "met": peak <= GOAL}
    print(f"Goal: at most {GOAL} MB; " + ("met." if found["met"] else "missed."))
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if found["met"] else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(*sys.argv[2:])
    else:
        sys.exit(tyro.cli(main))
