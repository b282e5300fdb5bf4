"""The same prompts through the library's static and continuous engines and through vLLM.

The library's engines run here, or are read from the store. vLLM's rows come from another Python
(`codit.engine_runs`), or are those in `data/results/engines`, taken by
`python -m codit.engine_study --vllm-python PATH`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import tyro

from codit import engine_runs, experiments, prompts, recipes, results, store, world
from codit.engine_runs import GREEDY, SAMPLED
from codit.files import write_json
from codit.recipes import Decoding, HubPrompts, Pair, WorldPrompts

FILE = "measured.json"
LIBRARY = ("static", "continuous")
COMMAND = "python -m codit.engine_study --vllm-python PATH"


@dataclass(frozen=True, kw_only=True)
class Engines:
    """What every engine answers and how; on which machine is written beside the answers.

    Args:
        pair: expert and amateur.
        prompts: what is asked.
        greedy: the decoding that engines must agree on.
        sampled: the decoding that is timed; turn t draws sample t.
        batch_size: rows at once, of every engine.
        repeats: turns that are timed, after one that is not.
        dtype: of weights and caches.
        device: of the library's engines, "cpu" or "cuda"; vLLM takes a GPU where it finds one.
    """

    pair: Pair
    prompts: WorldPrompts | HubPrompts
    greedy: Decoding
    sampled: Decoding
    batch_size: int = 64
    repeats: int = 3
    dtype: str = "float32"
    device: str = "cpu"
    version: ClassVar[int] = 1


def recipe(scale: str, *, n_prompts: int | None = None) -> Engines:
    """Return what the engines answer at a scale.

    Args:
        scale: "micro" (the library's engines run here), "full" (the same, as committed), "laptop",
            "paper" (a GPU).
        n_prompts: number of prompts. None: 100.

    Returns:
        Engines: the scale's pair and decoding, greedy and sampled, on its test prompts.

    Raises:
        ValueError: unknown scale.

    Source: ours.
    """
    chosen = experiments.scale(scale)
    asked = dict(chosen.tests).get("test", chosen.prompts)
    assert not isinstance(asked, recipes.File), "a scale's prompts are drawn"
    values: dict[str, dict[str, Any]] = {
        "full": {"repeats": 9},
        "paper": {"dtype": "bfloat16", "device": "cuda"},
    }
    return Engines(
        pair=chosen.pair,
        prompts=replace(asked, n=100 if n_prompts is None else n_prompts),
        greedy=replace(chosen.decoding, temperature=0.0),
        sampled=chosen.decoding,
        **values.get(scale, {}),
    )


def study(recipe: Engines, vllm_python: str | Path | None = None) -> dict[str, dict[str, Any]]:
    """Return the answers and times of all three engines.

    Args:
        recipe: what is answered. The library's engines run here where the store has no result.
        vllm_python: Python whose vLLM is asked now. None: vLLM's rows are the committed ones.

    Returns:
        dict: "static", "continuous", "vllm" -> see `engine_runs.run`, with tokens and logprobs as
        lists of numbers, `tokens` (drawn in each timed turn) and `origin` (where and when, in
        words). Of committed rows the first ones, as many as the recipe has prompts.

    Raises:
        ValueError: the committed rows are of another recipe or other prompts.
        OSError: see `engine_runs.ask`.

    Source: ours.
    """
    folder = store.get(recipe, make)
    kept = folder == _folder()
    runs = {name: _read(one, kept, recipe.prompts.n) for name, one in read(folder).items()}
    if vllm_python is not None:
        found = engine_runs.ask(vllm_python, request(recipe, ["vllm"]))["vllm"]
        runs["vllm"] = _read(found, False, recipe.prompts.n)
    elif "vllm" not in runs:
        runs["vllm"] = _read(committed_rows(recipe), True, recipe.prompts.n)
    first, *others = ([row["prompt"] for row in one["answers"][GREEDY]] for one in runs.values())
    if any(prompts != first for prompts in others):
        raise ValueError(
            "expected all engines to have answered the same prompts; vLLM's rows are of others. "
            f"Take the committed ones again: {COMMAND}."
        )
    return runs


def committed_rows(recipe: Engines) -> dict[str, Any]:
    """Return vLLM's committed run, which must be of a recipe: more prompts and turns are allowed.

    Args:
        recipe: what the library's engines answered.

    Returns:
        dict: see `engine_runs.run`.

    Raises:
        ValueError: there is none, or it is of another recipe.

    Source: ours.
    """
    remedy = f"Give vllm_python, or take them: {COMMAND}."
    if not (_folder() / store.MANIFEST).is_file():
        raise ValueError(f"expected vLLM's rows in data/results/engines; there are none. {remedy}")
    manifest = store.read_manifest(_folder())
    kept, own = manifest["recipe"], recipes.describe(recipe)
    prompts = replace(recipe.prompts, n=max(recipe.prompts.n, kept.get("prompts", {}).get("n", 0)))
    same = replace(recipe, prompts=prompts, repeats=kept.get("repeats", recipe.repeats))
    if recipes.key(same) != manifest["key"]:
        differ = sorted(k for k in own if k != "repeats" and own[k] != kept.get(k))
        raise ValueError(
            "expected vLLM's committed rows to be of the recipe that is asked for; they differ in "
            f"{', '.join(differ)}. {remedy}"
        )
    return read(_folder())["vllm"]


def make(recipe: Engines, folder: Path) -> None:
    """Run the library's engines and write what they did: what the store calls.

    Args:
        recipe: what is answered.
        folder: gets `measured.json`.

    Source: ours.
    """
    write_json(folder / FILE, _library(recipe))


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the runs that a folder holds.

    Args:
        folder: of a result.

    Returns:
        dict: see `engine_runs.run`.

    Source: ours.
    """
    found: dict[str, dict[str, Any]] = json.loads((folder / FILE).read_text(encoding="utf-8"))
    return found


def request(recipe: Engines, engines: Sequence[str]) -> dict[str, Any]:
    """Return what `engine_runs.run` is asked for a recipe; models are made where missing.

    Args:
        recipe: what is answered.
        engines: "static" and "continuous", or "vllm" alone.

    Returns:
        dict: as `engine_runs.ask` writes it.

    Source: ours.
    """
    named = (GREEDY, recipe.greedy), (SAMPLED, recipe.sampled)
    given = recipe.prompts
    asked = world.prompts(given) if isinstance(given, WorldPrompts) else given
    return {
        "engines": list(engines),
        "expert": results.model_path(recipe.pair.expert),
        "amateur": results.model_path(recipe.pair.amateur),
        "chats": [row["messages"] for row in prompts.load(asked).rows],
        "decodings": {name: asdict(decoding) for name, decoding in named},
        **{name: getattr(recipe, name) for name in ("batch_size", "repeats", "dtype", "device")},
    }


def keep(recipe: Engines, vllm_python: str | Path) -> Path:
    """Run all engines now and put what they did into data/results/engines, in place of the old.

    Args:
        recipe: what is answered.
        vllm_python: see `engine_runs.ask`.

    Returns:
        Path: the folder.

    Source: ours.
    """
    target, start = _folder(), time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    runs = _library(recipe) | engine_runs.ask(vllm_python, request(recipe, ["vllm"]))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".engines.") as folder:
        made = Path(folder) / "made"
        made.mkdir()
        write_json(made / FILE, runs)
        store.write_manifest(made, recipe, seconds=round(time.monotonic() - start, 1))
        shutil.rmtree(target, ignore_errors=True)
        made.rename(target)
    return target


def _library(recipe: Engines) -> dict[str, dict[str, Any]]:
    return engine_runs.run(**request(recipe, LIBRARY))


def _folder() -> Path:
    return store.repository() / "data" / "results" / "engines"


def _read(run: dict[str, Any], kept: bool, n: int) -> dict[str, Any]:
    """Return a run of the first n prompts: numbers instead of texts, and where it comes from."""
    answers = {
        name: [
            {
                **row,
                "tokens": [int(one) for one in row["tokens"].split()],
                "logprobs": [float(one) for one in row["logprobs"].split()],
            }
            for row in rows[:n]
        ]
        for name, rows in run["answers"].items()
    }
    samples = [
        {name: [float(one) for one in text.split()] for name, text in turn.items()}
        for turn in run["samples"]
    ]
    tokens = [int(sum(turn["lengths"])) for turn in samples[1:]]
    samples = [{name: values[:n] for name, values in turn.items()} for turn in samples]
    taken = f"committed, taken on {run['date'][:10]} on {run['machine']['device']}"
    told = [taken if kept else "measured here", *["stand-in kernels"] * run["standins"]]
    origin = ", ".join(told)
    return {**run, "answers": answers, "samples": samples, "tokens": tokens, "origin": origin}


def main(*, vllm_python: Path) -> None:
    """Run all engines at scale full and put what they did into data/results/engines.

    Args:
        vllm_python: Python of an environment with the extra `vllm`.

    Source: ours.
    """
    print(f"kept in {keep(recipe('full'), vllm_python)}")


if __name__ == "__main__":
    tyro.cli(main)
