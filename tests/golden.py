"""Records what the embedded pair answers, so that no change of its responses goes unseen.

`python -m tests.golden` (`make golden`) writes a file per arm to tests/golden/; the tests compare
(tests/test_golden.py). A change that is meant is recorded again, and its commit says why.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import tyro

from codit import decode, recipes, world
from codit.files import versions
from codit.pair import load_tokenizer
from codit.paper import make, scales, store
from codit.paper.scales import ARMS, Scale
from codit.recipes import Synthesis
from codit.world.recipes import WorldPrompts

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tests" / "golden"
PROMPTS = 24
DIGITS = 6  # of a log-probability; the tolerance is 1e-3


@dataclass(frozen=True)
class Difference:
    """How far answers are from the recorded ones.

    Args:
        equal: share of the rows whose text and tokens are the recorded ones.
        largest: largest |difference| of a token's log-probability in those rows, nats.
        mean: mean of the same: many small differences in one direction hide from the largest.
    """

    equal: float
    largest: float
    mean: float


def watched(chosen: Scale | None = None) -> dict[str, Synthesis]:
    """Return what is recorded, by arm: the answers of a scale's pair to fixed dev prompts.

    Args:
        chosen: None: the scale "micro".
    """
    chosen = chosen or scales.scale("micro")
    prompts = WorldPrompts(world=chosen.prompts.world, split="dev", n=PROMPTS)
    chosen = replace(chosen, prompts=prompts)
    return {name: scales.synthesis(chosen, name) for name in ARMS}


def rows(recipe: Synthesis, *, engine: str = "auto") -> list[dict[str, Any]]:
    """Return the answers of a pair: id, text, tokens (SHA-256 of the ids), logprobs (nats).

    Raises:
        FileNotFoundError: a model of the pair has yet to be made, which takes minutes.
    """
    for model in (recipe.pair.expert, recipe.pair.amateur):
        if store.find(model) is None:
            raise FileNotFoundError(
                f"expected a model made by {recipes.key(model)}; there is none. Run `make models`."
            )
    tokenizer = load_tokenizer(make.model_path(recipe.pair.expert))
    asked = world.prompts(recipe.prompts)
    chats = [[{"role": "user", "content": row["instruction"]}] for row in asked]
    made = decode.generate(
        make.load_pair(recipe.pair),
        tokenizer,
        chats,
        recipe.decoding,
        ids=[row["id"] for row in asked],
        engine=engine,
        progress=False,
    )
    return [
        {
            "id": one.id,
            "text": one.text,
            "tokens": hashlib.sha256(repr(one.token_ids).encode()).hexdigest()[:16],
            "logprobs": [round(value, DIGITS) for value in one.logprobs],
        }
        for one in made
    ]


def record(
    wanted: dict[str, Synthesis], folder: Path, *, root: Path = ROOT, dirty: bool = False
) -> None:
    """Write one file per arm: which recipe, in which environment, and its answers.

    Args:
        wanted: recipes by arm.
        folder: where the files go; made if absent.
        root: the checkout whose state is recorded.
        dirty: record although the checkout holds changes that no commit holds.

    Raises:
        RuntimeError: the checkout holds such changes and `dirty` is False, or it is none.
    """
    here = environment(root)
    if here["changed"] and not dirty:
        raise RuntimeError(
            "expected a clean working tree, so that a commit says what was recorded; got changes "
            f"in {', '.join(here['changed'])}. Commit them first, or record with --dirty."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, recipe in wanted.items():
        config = {"key": recipes.key(recipe), "recipe": recipes.describe(recipe)}
        answers = [json.dumps(row, ensure_ascii=False) for row in rows(recipe)]
        head = json.dumps({"config": config, "environment": here}, indent=1).removesuffix("\n}")
        # One line per answer, so that a diff shows which answers changed.
        text = f'{head},\n "rows": [\n' + ",\n".join(answers) + "\n]}\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")
        print(f"{name}: {len(answers)} answers recorded", flush=True)


def recorded(folder: Path, name: str, recipe: Synthesis) -> list[dict[str, Any]]:
    """Return the rows recorded for an arm.

    Raises:
        ValueError: nothing was recorded, or with another recipe.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        raise ValueError(f"expected a golden file {path.name}; there is none. Run `make golden`.")
    found = json.loads(path.read_text(encoding="utf-8"))
    key = recipes.key(recipe)
    if found["config"]["key"] != key:
        raise ValueError(
            f"{path.name} was recorded with recipe {found['config']['key']}; the recipe is now "
            f"{key}. If that was meant, run `make golden` and say why in the commit."
        )
    return list(found["rows"])


def difference(found: Sequence[dict[str, Any]], golden: Sequence[dict[str, Any]]) -> Difference:
    """Compare answers with the recorded ones.

    Args:
        found: rows of `rows`.
        golden: rows of `recorded`.

    Returns:
        Difference: NaN for the log-probabilities where no row is equal.

    Raises:
        ValueError: other prompts.
    """
    if [row["id"] for row in found] != [row["id"] for row in golden]:
        raise ValueError("the golden file holds other prompts. Run `make golden`.")
    equal = [
        (one["logprobs"], other["logprobs"])
        for one, other in zip(found, golden, strict=True)
        if (one["text"], one["tokens"]) == (other["text"], other["tokens"])
    ]
    gaps = [abs(a - b) for one, other in equal for a, b in zip(one, other, strict=True)]
    largest, mean = (max(gaps), sum(gaps) / len(gaps)) if gaps else (math.nan, math.nan)
    return Difference(equal=len(equal) / len(golden), largest=largest, mean=mean)


def environment(root: Path) -> dict[str, Any]:
    """Return where a file is recorded: commit and changes since, versions, machine, threads.

    Raises:
        RuntimeError: `root` is no checkout.
    """
    # The files of an earlier recording may differ from the commit: they are what is replaced.
    status = git(root, "status", "--porcelain", "--", ".", ":(exclude)tests/golden")
    return {
        "commit": git(root, "rev-parse", "HEAD").strip(),
        "changed": [line[3:] for line in status.splitlines()],
        "recorded": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "machine": f"{platform.system()} {platform.machine()}",
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def git(root: Path, *arguments: str) -> str:
    """Return what git says about the checkout at `root`."""
    run = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(
            f"expected a git checkout with a commit at {root}; git says: {run.stderr.strip()}. "
            "Record in a clone."
        )
    return run.stdout


def main(*, dirty: bool = False) -> None:
    """Record the golden files again.

    Args:
        dirty: although the working tree holds changes that no commit holds.
    """
    record(watched(), FOLDER, dirty=dirty)


if __name__ == "__main__":
    tyro.cli(main)
