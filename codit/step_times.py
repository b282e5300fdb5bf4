"""One pair at one batch size: its step beside two forward passes and beside other ways to decode.

What is compared is measured in turn, A B A B ..., because machines are noisy; each round gives one
ratio, and the median of the ratios is reported with their quartiles.

Notation: B rows, n tokens drawn for each, z_E and z_A the models' logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from codit import candidates, limits, random_pairs, rivals
from codit.contrast import contrast, plausible
from codit.drawing import Step
from codit.limits import Speed
from codit.memory import free_bytes, release
from codit.noise import uniforms
from codit.packed_weights import LEAST_TOKENS, packed_weights
from codit.pair import ContrastivePair
from codit.random_pairs import Shape
from codit.recipes import Decoding
from codit.rivals import PLAUSIBILITY

Way = Callable[[], Mapping[str, float]]  # names of what was timed -> seconds
WAYS = ("naive", "uncached", "cached")
PLAIN = "of two forward passes"
SECONDS = 0.02  # what is quicker is repeated for so long (ours)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One shape at one batch size.

    Args:
        shape: of both models.
        rows: B.
        prompt: tokens of each row's prompt.
        tokens: n, at least 2, and fewer than make `decode.generate` pack weights by itself:
            here they are packed outside what is timed, or not at all.
        rounds: how often everything is measured in turn.
        ways: what is measured beside ours and the two plain forward passes: "naive" (the equation
            over the whole vocabulary), "uncached" and "cached" (an amateur in a logits processor).
    """

    shape: Shape
    rows: int = 8
    prompt: int = 8
    tokens: int = 9
    rounds: int = 5
    ways: tuple[str, ...] = WAYS
    version: ClassVar[int] = 1


def in_turn(ways: Mapping[str, Way], *, rounds: int) -> pd.DataFrame:
    """Time several things in turn: A B C A B C ..., after one turn that is not counted.

    Args:
        ways: each times itself and returns seconds, by names of its own.
        rounds: turns that are counted.

    Returns:
        DataFrame: a row per round, a column per name, seconds.

    Source: ours.
    """
    turns: list[dict[str, float]] = []
    for _ in range(rounds + 1):
        turn: dict[str, float] = {}
        for way in ways.values():
            turn |= way()
        turns.append(turn)
    return pd.DataFrame(turns[1:])


def quartiles(values: Sequence[float] | pd.Series[float]) -> dict[str, float]:
    """Return the median and both quartiles.

    Args:
        values: one per round.

    Returns:
        dict: value, low, high.

    Raises:
        ValueError: none, or some that are no numbers.

    Source: ours.
    """
    numbers = np.asarray(values, dtype=float)
    if not len(numbers) or not np.isfinite(numbers).all():
        raise ValueError(
            f"expected a number for each round; got {numbers.tolist()}. Measure again."
        )
    low, middle, high = np.quantile(numbers, (0.25, 0.5, 0.75))
    return {"value": float(middle), "low": float(low), "high": float(high)}


def ratio(times: pd.DataFrame, one: str, other: str) -> dict[str, float]:
    """Return the median of the rounds' own ratios, and their quartiles.

    ratio of a round = seconds of one / seconds of other

    Args:
        times: of `in_turn`.
        one: column above.
        other: column below.

    Returns:
        dict: value, low, high.

    Source: ours.
    """
    return quartiles(times[one] / times[other])


def measured(case: Case, device: str, speed: Speed) -> list[dict[str, Any]]:
    """Measure one case.

    Args:
        case: shape and batch size.
        device: "cpu" or "cuda".
        speed: of the device.

    Returns:
        list: rows of quantity, way, value, low, high, unit, and shape, batch, rounds.

    Source: ours.
    """
    release()  # the models of the case before
    pair, _ = random_pairs.pair(case.shape, device=device)
    noise = torch.Generator().manual_seed(1)
    size = (case.rows, case.prompt)
    prompts = torch.randint(1, case.shape.vocabulary, size, generator=noise).to(device)
    times = in_turn(_ways(case, pair, prompts), rounds=case.rounds)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    drawn = rivals.ours(pair, random_pairs.tokenizer(pair.vocab_size), prompts, case.tokens)[0]
    peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
    texts = torch.cat([prompts, torch.tensor(drawn, device=prompts.device)], dim=1)
    n_plausible = plausible_ids(pair, texts[:16], case.prompt)  # whose logits are all kept
    # Of the amateur's head only the rows of plausible ids are read, at most these.
    read = min(case.shape.vocabulary, round(case.rows * n_plausible))
    unread = case.shape.vocabulary - read if pair.gathers_head else 0
    rows = [*_times(case, times), *_limits(case, times, speed, unread)]
    rows.append({"quantity": "plausible", "way": "expert", "unit": "ids", **alone(n_plausible)})
    if peak is not None:
        rows.append({"quantity": "peak", "way": "ours", "unit": "GiB", **alone(peak)})
    about = {"shape": case.shape.name, "batch": case.rows, "rounds": case.rounds}
    return [about | row for row in rows]


def fits(case: Case, device: str) -> bool:
    """Tell whether a device has the memory for a case: at most nine tenths of what is free.

    Args:
        case: shape and batch size.
        device: "cpu" or "cuda".

    Returns:
        bool: False for what would only run out of memory.

    Source: ours.
    """
    need = limits.needed_bytes(
        [random_pairs.config(case.shape)] * 2,
        rows=case.rows,
        context=case.prompt + case.tokens,
        itemsize=getattr(torch, case.shape.dtype).itemsize,
    )
    return need <= 0.9 * free_bytes(torch.device(device))


@torch.inference_mode()
def plausible_ids(pair: ContrastivePair, texts: Tensor, prompt: int) -> float:
    """Return how many ids the expert found plausible at a step, on average over texts.

    Args:
        pair: the models.
        texts: int64 [B, T], prompts and what was drawn.
        prompt: tokens of the prompts.

    Returns:
        float: mean over rows and steps.

    Source: ours.
    """
    logits = pair.expert(texts).logits[:, prompt - 1 : -1]
    return float(plausible(logits, plausibility=PLAUSIBILITY).sum(-1).float().mean())


def _ways(case: Case, pair: ContrastivePair, prompts: Tensor) -> dict[str, Way]:
    """Return what is timed; all but "packing" and what is "in all" are seconds of one step."""
    n, models = case.tokens, (pair.expert, pair.amateur)
    tokenizer = random_pairs.tokenizer(pair.vocab_size)
    choose = rivals.naive_choice(rivals.keys(prompts), plausibility=PLAUSIBILITY)

    def step(name: str) -> dict[str, float]:
        first = rivals.ours(pair, tokenizer, prompts, 1)[1]
        whole = rivals.ours(pair, tokenizer, prompts, n)[1]
        return {name: (whole - first) / (n - 1), f"{name} in all": whole}

    def our_step() -> dict[str, float]:
        start = rivals.now(prompts.device)
        with packed_weights(pair, rows=case.rows, tokens=LEAST_TOKENS) as layers:
            made = rivals.now(prompts.device) - start
            return step("ours") | ({"packing": made} if layers else {})

    def processor(cached: bool) -> float:
        how: dict[str, Any] = {"plausibility": PLAUSIBILITY, "cached": cached}
        return rivals.with_processor(models, prompts, n, **how)[1]

    ways: dict[str, Way] = {
        "ours": our_step,
        "unpacked": lambda: step("unpacked"),
        "plain": lambda: {"plain": rivals.two_forwards(models, prompts, n, rivals.no_choice)[1]},
        "arithmetic": lambda: _arithmetic(pair, prompts),
        "naive": lambda: {"naive": rivals.two_forwards(models, prompts, n, choose)[1]},
        "uncached": lambda: {"uncached": processor(cached=False)},
        "cached": lambda: {"cached": processor(cached=True)},
    }
    return {name: way for name, way in ways.items() if name not in WAYS or name in case.ways}


@torch.inference_mode()
def _arithmetic(pair: ContrastivePair, prompts: Tensor) -> dict[str, float]:
    """Time what follows the logits: as the engine does it, and as the equation is written."""
    z_expert, z_amateur = (
        one(prompts, logits_to_keep=1).logits[:, -1] for one in (pair.expert, pair.amateur)
    )
    noise = uniforms(rivals.keys(prompts), torch.zeros_like(prompts[:, 0]))
    step = Step(Decoding(plausibility=PLAUSIBILITY), pair.vocab_size, is_pair=True)

    def as_ours() -> Tensor:
        found = candidates.candidates(z_expert, plausibility=PLAUSIBILITY)
        if found is None:  # more are plausible than candidates are kept for
            logq = contrast(z_expert, z_amateur, plausibility=PLAUSIBILITY)
            return step.draw(logq, noise)[0]
        at_ids = z_amateur.gather(1, found.ids)
        return step.draw(candidates.contrast_candidates(found, at_ids, strength=1.0), noise)[0]

    def as_written() -> Tensor:
        scores = rivals.naive_scores(z_expert, z_amateur, plausibility=PLAUSIBILITY)
        return rivals.naive_draw(scores, noise)

    return {"arithmetic": _repeated(as_ours), "naive arithmetic": _repeated(as_written)}


def _repeated(call: Callable[[], Tensor]) -> float:
    """Return the seconds of a short call: the mean of as many as fill `SECONDS`."""
    start, count = rivals.now(call().device), 0
    while True:
        made, count = call(), count + 1
        seconds = rivals.now(made.device) - start
        if seconds >= SECONDS:
            return seconds / count


def _times(case: Case, times: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Yield what was timed, as ratios and as it is."""
    for way in ("ours", "unpacked", "naive"):
        if way in times and not (way == "unpacked" and "packing" not in times):
            yield {"quantity": "step", "way": way, **ratio(times, way, "plain"), "unit": PLAIN}
    for way, column in (("ours", "arithmetic"), ("naive", "naive arithmetic")):
        found = ratio(times, column, "ours")
        yield {"quantity": "arithmetic", "way": way, **found, "unit": "share of our step"}
    for way in ("uncached", "cached"):
        if way in times:
            found = ratio(times, way, "ours in all")
            yield {"quantity": "rate", "way": way, **found, "unit": "times its tokens/s"}
    for way in ("ours", "plain", "naive", "packing"):
        if way in times:
            found = quartiles(1000 * times[way])
            unit = "ms once" if way == "packing" else "ms per step"
            yield {"quantity": "milliseconds", "way": way, **found, "unit": unit}
    tokens = quartiles(case.rows / times["ours"])
    yield {"quantity": "tokens", "way": "ours", **tokens, "unit": "tokens/s"}


def _limits(case: Case, times: pd.DataFrame, speed: Speed, unread: int) -> Iterator[dict[str, Any]]:
    """Yield how much of what the device allows our step reaches."""
    configs = [random_pairs.config(case.shape)] * 2
    size: dict[str, Any] = {"rows": case.rows, "context": case.prompt + case.tokens // 2}
    size |= {"unread": unread}
    itemsize = getattr(torch, case.shape.dtype).itemsize
    n_bytes = limits.bytes_per_step(configs, itemsize=itemsize, **size)
    least = {
        "bytes": n_bytes / speed.bytes_per_second,
        "FLOP": limits.flops_per_step(configs, **size) / speed.flops_per_second,
    }
    for way, seconds in least.items():
        found = quartiles(seconds / times["ours"])
        yield {"quantity": "limit", "way": way, **found, "unit": "share of the limit"}


def alone(value: float) -> dict[str, float]:
    """Return a number that was found once in the form of `quartiles`.

    Args:
        value: the number.

    Returns:
        dict: value, low, high, all the same.

    Source: ours.
    """
    return {"value": value, "low": value, "high": value}
