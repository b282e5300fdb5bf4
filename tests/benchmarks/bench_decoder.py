"""Time of the decoder: a step of a pair beside two forward passes, and beside other ways to decode.

`python -m tests.benchmarks.bench_decoder [--shapes small micro] [--json FILE]` measures pairs of
random weights on this machine, a quarter of an hour on two cores, and prints medians of paired
ratios with their quartiles, goals beside them. `--quick` takes a minute; `--device cuda` measures
larger shapes in bfloat16 on a GPU; `--commit` puts the numbers of a full run on a CPU where
notebook 21 reads them. `OMP_NUM_THREADS` says how many threads torch has.

Machines are noisy, so nothing here is one timing: what is compared is measured in turn, A B A B
..., and the ratio of each round is kept. Values are medians, low and high the quartiles of these
ratios. Goals are ours.

Weights are random; the expert's last norm is scaled until tens of ids are plausible at .01, the
number found in the text drawn is the row "plausible".
step        seconds of one step (a token for each row) over those of two plain forward passes with
            caches of their own and whole heads; ours through decode.generate, engine "static":
            (time of n tokens - time of 1) / (n - 1), no stop tokens; unpacked: with weights as
            torch keeps them (the copy for the CPU's kernels is timed apart: "packing"); naive: the
            two passes and the equation as it is written
arithmetic  contrast and draw alone, logits given, over our step; naive: two log-softmaxes, mask,
            softmax and cumulative sum in float64, over the whole vocabulary
rate        our tokens/s over those of `generate` with the amateur in a logits processor, uncached
            on the whole prefix or with a cache, prompts included
engines     static over continuous, long-tailed lengths (row "lengths"), total tokens/s

B rows are decoded at once, from prompts of T tokens, n tokens for each; of V ids, with the models'
logits z_E and z_A.
"""

from __future__ import annotations

import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
import tyro
from torch import Tensor
from tqdm import tqdm
from transformers import (
    DynamicCache,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from codit import decode
from codit.contrast import contrast, plausible
from codit.engine import sparse
from codit.engine.cache import CACHE
from codit.engine.memory import cache_bytes, free_bytes, n_weights, release
from codit.engine.packed import LEAST_TOKENS, packed_weights
from codit.engine.sampling import Step, noise_key, uniforms
from codit.files import versions, write_json
from codit.pair import ContrastivePair
from codit.paper import store
from codit.recipes import Decoding
from tests.benchmarks import random_pairs
from tests.benchmarks.random_pairs import SHAPES, Shape

COMMITTED = store.repository() / "data" / "results" / "throughput.json"
PLAUSIBILITY = 0.01  # the authors' scripts
SECONDS = 0.02  # what is quicker is repeated for so long
GOALS = {  # of ours, at most: (quantity, shape), None for any other
    ("step", "qwen3-0.6b"): 0.85,
    ("step", None): 1.0,
    ("arithmetic", "qwen3-0.6b"): 0.005,
    ("arithmetic", "small"): 0.03,
}

Way = Callable[[], Mapping[str, float]]  # names of what was timed -> seconds
Models = tuple[PreTrainedModel, PreTrainedModel]
Lengths = tuple[int, int, int, int]  # rows, rows at once, median tokens, rounds: `engine_rows`
Choose = Callable[[Tensor, Tensor, int], Tensor]  # z_E, z_A [B, V] and the step -> ids [B]


@dataclass(frozen=True)
class Case:
    """One shape at one batch size.

    Args:
        shape: of both models.
        rows: B.
        tokens: n, at least 2, and on a CPU fewer than make `decode.generate` pack weights by
            itself: here they are packed outside what is timed, or not at all.
        rounds: how often everything is measured in turn.
        prompt: T.
        ways: rivals: "naive", "uncached", "cached".
    """

    shape: Shape
    rows: int = 8
    tokens: int = 15
    rounds: int = 7
    prompt: int = 8
    ways: tuple[str, ...] = ("naive", "uncached", "cached")


def plan(
    device: str, names: Sequence[str] = (), *, quick: bool = False
) -> tuple[list[Case], Lengths | None]:
    """Return what is measured on a device; raise ValueError for a shape that is not."""
    small, llama, micro = (SHAPES[name] for name in ("small", "llama-small", "micro"))
    cases = [Case(SHAPES["qwen3-0.6b"], tokens=9, rounds=5), Case(small), Case(small, rows=1)]
    cases += [Case(llama), Case(llama, rows=32), Case(micro, rows=64, rounds=15)]
    if device == "cuda":
        large = {"qwen3-8b": (1, 4, 16, 64, 256), "gemma3-27b": (1, 4, 16)}
        how: dict[str, Any] = {"prompt": 64, "tokens": 65, "rounds": 5, "ways": ("naive",)}
        cases = [Case(SHAPES[name], rows, **how) for name in large for rows in large[name]]
    known = list(dict.fromkeys(case.shape.name for case in cases))
    if unknown := sorted(set(names) - set(known)):
        raise ValueError(f"expected shapes among {known}; got {unknown}. Name some of them.")
    cases = [case for case in cases if not names or case.shape.name in names]
    if quick and not names:
        few = [one for one in cases if one.shape in (llama, micro) and one.rows != 32]
        cases = few or cases[:1]
    if quick:
        cases = [replace(case, tokens=min(case.tokens, 9), rounds=3) for case in cases]
    lengths = (48, 16, 12, 3) if quick else (256, 64, 33, 5)
    return cases, None if device == "cuda" else lengths


def measure(cases: Sequence[Case], lengths: Lengths | None, device: str) -> dict[str, Any]:
    """Measure here and now, and return `machine`, `versions`, `seconds`, `date`, `cases`, `rows`.

    A row: shape, batch (B), rounds, quantity and way (see above), value (median), low, high
    (quartiles), unit, goal (at most; None where there is none).
    """
    start, rows = time.perf_counter(), list[dict[str, Any]]()
    fitting = [case for case in cases if fits(case, device)]
    for case in tqdm([*fitting, lengths] if lengths else fitting, desc="measuring"):
        rows += measured(case, device) if isinstance(case, Case) else engine_rows(*case)
    return {
        "machine": machine(device),
        "versions": versions(),
        "seconds": round(time.perf_counter() - start, 1),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cases": [asdict(case) for case in fitting],
        "rows": [row | {"goal": goal(row["quantity"], row["shape"], row["way"])} for row in rows],
    }


def goal(quantity: str, shape: str, way: str) -> float | None:
    """Return what a ratio of ours should be at most: the goal of its shape, else of any shape."""
    return GOALS.get((quantity, shape), GOALS.get((quantity, None))) if way == "ours" else None


def fits(case: Case, device: str) -> bool:
    """Tell whether weights and caches of both models take at most .9 of the free memory."""
    config, size = random_pairs.config(case.shape, tied=False), getattr(torch, case.shape.dtype)
    context = case.rows * (case.prompt + case.tokens) * cache_bytes(config, size.itemsize)
    need = 2 * (n_weights(config) * size.itemsize + context)
    return need <= 0.9 * free_bytes(torch.device(device))


def machine(device: str) -> dict[str, Any]:
    """Return what is told of the machine beside its numbers."""
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpu.read_text()) if cpu.is_file() else []
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else [*names, "a CPU"][0],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def in_turn(ways: Mapping[str, Way], *, rounds: int) -> pd.DataFrame:
    """Time several things in turn, A B C A B C ..., after a turn that is not counted: a row each.

    Each way times itself and returns seconds, by names of its own: the columns.
    """
    turns: list[dict[str, float]] = []
    for _ in range(rounds + 1):
        turns.append({name: seconds for way in ways.values() for name, seconds in way().items()})
    return pd.DataFrame(turns[1:])


def quartiles(values: Any) -> dict[str, float]:
    """Return the median and both quartiles of a number for each round."""
    low, value, high = map(float, np.quantile(np.asarray(values, dtype=float), (0.25, 0.5, 0.75)))
    return {"value": value, "low": low, "high": high}


def measured(case: Case, device: str) -> Iterator[dict[str, Any]]:
    """Yield what is found for one case: see `measure`."""
    release()  # the models of the case before
    pair = random_pairs.pair(case.shape, device=device)
    noise = torch.Generator().manual_seed(1)
    size = (case.rows, case.prompt)
    prompts = torch.randint(1, case.shape.vocabulary, size, generator=noise).to(device)
    times = in_turn(ways(case, pair, prompts), rounds=case.rounds)
    drawn = ours(pair, random_pairs.tokenizer(pair.vocab_size), prompts, case.tokens)[0]
    texts = torch.cat([prompts, torch.tensor(drawn, device=prompts.device)], dim=1)
    ids = plausible_ids(pair, texts[:16], case.prompt)  # whose logits are all kept
    found = [
        ("step", way, times[way] / times["plain"], "of two forward passes")
        for way in ("ours", "unpacked", "naive")
        if way in times and (way != "unpacked" or "packing" in times)
    ]
    for way, column in (("ours", "arithmetic"), ("naive", "naive arithmetic")):
        found.append(("arithmetic", way, times[column] / times["ours"], "share of our step"))
    for way in ("uncached", "cached"):
        if way in times:
            found.append(("rate", way, times[way] / times["ours in all"], "times its tokens/s"))
    for way in ("ours", "plain", "naive", "packing"):
        if way in times:
            unit = "ms once" if way == "packing" else "ms per step"
            found.append(("milliseconds", way, 1000 * times[way], unit))
    found.append(("tokens", "ours", case.rows / times["ours"], "tokens/s"))
    found.append(("plausible", "expert", [ids], "ids"))
    about = {"shape": case.shape.name, "batch": case.rows, "rounds": case.rounds}
    for quantity, way, values, unit in found:
        yield about | {"quantity": quantity, "way": way, **quartiles(values), "unit": unit}


def ways(case: Case, pair: ContrastivePair, prompts: Tensor) -> dict[str, Way]:
    """Return what is timed; all but "packing" and what is "in all" are seconds of one step."""
    n, models = case.tokens, (pair.expert, pair.amateur)
    tokenizer = random_pairs.tokenizer(pair.vocab_size)

    def step(name: str) -> dict[str, float]:
        first, whole = (ours(pair, tokenizer, prompts, many)[1] for many in (1, n))
        return {name: (whole - first) / (n - 1), f"{name} in all": whole}

    def our_step() -> dict[str, float]:
        start = now(prompts.device)
        with packed_weights(pair, rows=case.rows, tokens=LEAST_TOKENS) as layers:
            made = now(prompts.device) - start
            return step("ours") | ({"packing": made} if layers else {})

    def rival(way: str) -> dict[str, float]:
        if way in ("plain", "naive"):
            choose = no_choice if way == "plain" else naive_choice(keys(prompts))
            return {way: two_forwards(models, prompts, n, choose)[1]}
        return {way: with_processor(models, prompts, n, cached=way == "cached")[1]}

    return {
        "ours": our_step,
        "unpacked": lambda: step("unpacked"),
        "plain": partial(rival, "plain"),
        "arithmetic": lambda: arithmetic(pair, prompts),
        **{way: partial(rival, way) for way in case.ways},
    }


@torch.inference_mode()
def plausible_ids(pair: ContrastivePair, texts: Tensor, prompt: int) -> float:
    """Return how many ids the expert finds plausible at a step of texts [B, T + n], on average."""
    logits = pair.expert(texts).logits[:, prompt - 1 : -1]
    return float(plausible(logits, plausibility=PLAUSIBILITY).sum(-1).float().mean())


@torch.inference_mode()
def arithmetic(pair: ContrastivePair, prompts: Tensor) -> dict[str, float]:
    """Time what follows the logits: as the engine does it, and as the equation is written."""
    z_expert, z_amateur = (
        one(prompts, logits_to_keep=1).logits[:, -1] for one in (pair.expert, pair.amateur)
    )
    noise = uniforms(keys(prompts), torch.zeros_like(prompts[:, 0]))
    step = Step(Decoding(plausibility=PLAUSIBILITY), pair.vocab_size, is_pair=True)

    def as_ours() -> Tensor:
        found = sparse.candidates(z_expert, plausibility=PLAUSIBILITY)
        if found is None:  # more are plausible than candidates are kept for
            logq = contrast(z_expert, z_amateur, plausibility=PLAUSIBILITY)
            return step.draw(logq, noise)[0]
        at_ids = z_amateur.gather(1, found.ids)
        return step.draw(sparse.contrast_candidates(found, at_ids, strength=1.0), noise)[0]

    def as_written() -> Tensor:
        return naive_draw(naive_scores(z_expert, z_amateur), noise)

    return {"arithmetic": repeated(as_ours), "naive arithmetic": repeated(as_written)}


def repeated(call: Callable[[], Tensor]) -> float:
    """Return the seconds of a short call: the mean of as many as fill `SECONDS`."""
    start, count, seconds = now(call().device), 0, 0.0
    while seconds < SECONDS:
        made, count = call(), count + 1
        seconds = now(made.device) - start
    return seconds / count


def now(device: torch.device) -> float:
    """Return the time in seconds when a device, a GPU with its queue, has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# -- ways to decode: ours, and those that one would write first ----------------------------------


def ours(
    pair: ContrastivePair, tokenizer: PreTrainedTokenizerBase, prompts: Tensor, n: int
) -> tuple[list[list[int]], float]:
    """Decode with `decode.generate`, static engine; return each row's tokens, and the seconds."""
    chats = [random_pairs.chat(row) for row in prompts.tolist()]
    decoding = Decoding(plausibility=PLAUSIBILITY, max_new_tokens=n)
    how: dict[str, Any] = {"engine": "static", "batch_size": len(chats), "progress": False}
    start = now(prompts.device)
    drawn = decode.generate(pair, tokenizer, chats, decoding, ids=range(len(chats)), **how)
    return [one.token_ids for one in drawn], now(prompts.device) - start


def keys(prompts: Tensor) -> Tensor:
    """Return the noise keys, int64 [B], that `ours` gives its rows."""
    found = [noise_key(Decoding().seed, row, Decoding().sample) for row in range(len(prompts))]
    return torch.tensor(found, device=prompts.device)


def naive_scores(expert_logits: Tensor, amateur_logits: Tensor) -> Tensor:
    """Return contrastive scores over the whole vocabulary, as the equation is written.

    s(v) = log p_E(v) - log p_A(v) where p_E(v) >= alpha max p_E, -inf elsewhere

    Source: CoDIT (arXiv 2604.13538), its equation and its scripts.
    """
    log_expert = expert_logits.float().log_softmax(-1)
    log_amateur = amateur_logits.float().log_softmax(-1)
    best = log_expert.amax(-1, keepdim=True)
    implausible = log_expert < best + math.log(PLAUSIBILITY)
    return (log_expert - log_amateur).masked_fill(implausible, -math.inf)


def naive_draw(scores: Tensor, noise: Tensor) -> Tensor:
    """Draw an id per row by inverse transform over the whole vocabulary, in float64."""
    cumulative = scores.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, noise[:, None], right=True)[:, 0]


def naive_choice(keys: Tensor) -> Choose:
    """Return how the naive pair chooses its tokens, with the noise that ours has."""

    def choose(expert_logits: Tensor, amateur_logits: Tensor, step: int) -> Tensor:
        noise = uniforms(keys, torch.full_like(keys, step))
        return naive_draw(naive_scores(expert_logits, amateur_logits), noise)

    return choose


def no_choice(expert_logits: Tensor, amateur_logits: Tensor, step: int) -> Tensor:
    """Return the same id for every row: what is left of a step is two forward passes."""
    return torch.full((len(expert_logits),), 1 + step, device=expert_logits.device)


@torch.inference_mode()
def two_forwards(models: Models, prompts: Tensor, n: int, choose: Choose) -> tuple[Tensor, float]:
    """Decode with two models, each with its own cache and its whole head, one after the other.

    Returns:
        (int64 [B, n], float): the tokens; seconds of a step after the first, the mean of n - 1.
    """
    caches = [DynamicCache(config=one.config) for one in models]
    given, drawn, start = prompts, [], 0.0
    for step in range(n):
        logits = []
        for one, cache in zip(models, caches, strict=True):
            read = one(input_ids=given, use_cache=True, logits_to_keep=1, **{CACHE: cache})
            logits.append(read.logits[:, -1])
        drawn.append(choose(logits[0], logits[1], step))
        given = drawn[-1][:, None]
        if step == 0:
            start = now(given.device)
    return torch.stack(drawn, 1), (now(given.device) - start) / max(n - 1, 1)


class AmateurProcessor(LogitsProcessor):
    """The amateur inside `generate` of the expert: what people write first.

    Not cached it runs on the whole prefix at each step, as a processor that is given ids alone
    does; else it keeps a cache between the steps of one `generate`.
    """

    def __init__(self, amateur: PreTrainedModel, *, cached: bool) -> None:
        self.amateur = amateur
        self.cache = DynamicCache(config=amateur.config) if cached else None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return contrastive scores [B, V] of the next token."""
        inputs: dict[str, Any] = {"input_ids": input_ids, "use_cache": False}
        if self.cache is not None:
            unread = input_ids[:, self.cache.get_seq_length() :]
            inputs = {"input_ids": unread, "use_cache": True, CACHE: self.cache}
        return naive_scores(scores, self.amateur(**inputs, logits_to_keep=1).logits[:, -1])


def with_processor(
    models: Models, prompts: Tensor, n: int, *, cached: bool
) -> tuple[Tensor, float]:
    """Sample n tokens a row with `generate` of the expert; return them and the call's seconds.

    Transformers' `guidance_scale` is the nearest thing that ships (and keeps a cache).
    """
    expert, amateur = models
    start = now(prompts.device)
    made = expert.generate(
        input_ids=prompts,
        attention_mask=torch.ones_like(prompts),
        logits_processor=LogitsProcessorList([AmateurProcessor(amateur, cached=cached)]),
        do_sample=True,
        max_new_tokens=n,
        min_new_tokens=n,
    )
    return made[:, prompts.shape[1] :], now(prompts.device) - start


def engine_rows(rows: int, at_once: int, median: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield how the static engine's tokens/s compare with the continuous one's, long tail."""
    shape = SHAPES["micro"]
    asked = random_pairs.lengths(rows, median, most=shape.vocabulary - 1)
    pair, tokenizer = random_pairs.countdown(shape), random_pairs.tokenizer(shape.vocabulary)
    # Unequal first words: rows with equal prompts are told apart by nothing else.
    chats = [random_pairs.chat([1 + row, 7, 7, length]) for row, length in enumerate(asked)]
    decoding = Decoding(max_new_tokens=max(asked))

    def run(engine: str) -> dict[str, float]:
        start = time.perf_counter()
        how: dict[str, Any] = {"engine": engine, "batch_size": at_once, "progress": False}
        made = decode.generate(pair, tokenizer, chats, decoding, **how)
        assert [len(one.token_ids) for one in made] == asked, "the pair counts down"
        return {engine: time.perf_counter() - start}

    times = in_turn({name: partial(run, name) for name in ("static", "continuous")}, rounds=rounds)
    about = {"shape": shape.name, "batch": at_once, "rounds": rounds}
    for quantity, way, values, unit in (
        ("engines", "static", times["continuous"] / times["static"],
         "times the continuous engine's tokens/s"),
        ("lengths", "middle half", asked, f"tokens, {rows} rows"),
        ("lengths", "longest", [max(asked)], f"tokens, {rows} rows"),
    ):  # fmt: skip
        yield about | {"quantity": quantity, "way": way, **quartiles(values), "unit": unit}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the measured rows as text."""
    shown = ["quantity", "shape", "batch", "way", "value", "low", "high", "goal", "unit", "rounds"]
    told: str = (
        pd.DataFrame(rows)[shown]
        .astype({"goal": float})
        .to_string(index=False, float_format="{:.4g}".format, na_rep="")
    )
    return told


def main(
    *,
    shapes: tuple[str, ...] = (),
    device: Literal["cpu", "cuda"] = "cpu",
    quick: bool = False,
    commit: bool = False,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> int:
    """Measure and print a table; status 1 where a goal is missed by the whole middle half.

    Args:
        shapes: names of shapes; none means all of the device's.
        device: where the models are.
        quick: fewer rounds, small shapes, about a minute.
        commit: write data/results/throughput.json; of everything on a CPU only.
        json_file: where to write the numbers.
    """
    cases, lengths = plan(device, shapes, quick=quick)
    if commit and (cases, lengths) != plan("cpu"):
        raise ValueError(
            "expected a full run on a CPU with --commit; got --quick, --shapes or --device. Leave "
            "it out, or write the numbers elsewhere with --json."
        )
    found = measure(cases, lengths, device)
    print(table(found["rows"]))
    print((__doc__ or "").partition("\n\n")[2].partition("\n\n")[2])
    about = {**found["machine"], "seconds": found["seconds"]}
    print("\n".join(f"{name:<17} {value}" for name, value in about.items()))
    for path in [json_file] * (json_file is not None) + [COMMITTED] * commit:
        print(f"kept in {write_json(path, found)}")
    return int(any(row["goal"] and row["low"] > row["goal"] for row in found["rows"]))


if __name__ == "__main__":
    sys.exit(tyro.cli(main))
