"""One model under two views beside the same model at twice the batch: CPU seconds, as a ratio.

`python -m tests.benchmarks.bench_two_views` answers prompts of the micro world by the embedded
expert: alone, alone with every prompt twice, and against a second view. Rounds alternate.
"""

from __future__ import annotations

import time
from statistics import median

import torch
import tyro

from codit import decode, world
from codit.engine.models import load_tokenizer, read_model
from codit.pair import TwoViews
from codit.paper import store
from codit.recipes import Decoding
from codit.world.recipes import WorldPrompts

LENGTH = 24


def main(n: int = 64, rounds: int = 5, threads: int = 1) -> None:
    """Print medians of CPU seconds and their ratios.

    Args:
        n: prompts, one batch.
        rounds: of each way, in turn.
        threads: of torch.
    """
    torch.set_num_threads(threads)
    folder = str(store.repository() / "data" / "models" / "expert")
    model, tokenizer = read_model(folder, dtype="auto"), load_tokenizer(folder)
    asked = world.prompts(WorldPrompts(split="dev", n=n))
    chats = [[{"role": "user", "content": row["instruction"]}] for row in asked]
    two = TwoViews(model, lambda ids: ids)
    plain = Decoding(strength=0.0, plausibility=0.0, temperature=0.0, max_new_tokens=LENGTH)
    both = Decoding(strength=0.3, plausibility=0.0, temperature=0.0, max_new_tokens=LENGTH)
    ways = {
        "plain": (model, chats, plain),
        "plain, twice the batch": (model, chats * 2, plain),
        "two views": (two, chats, both),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    tokens: dict[str, float] = {}
    for _ in range(rounds):
        for name, (decoder, talks, how) in ways.items():
            start = time.process_time()
            size = len(talks)
            found = decode.generate(decoder, tokenizer, talks, how, batch_size=size, progress=False)
            seconds[name].append(time.process_time() - start)
            tokens[name] = sum(len(one.token_ids) for one in found) / len(found)
    medians = {name: median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        ratio = value / medians["plain, twice the batch"]
        print(f"{name}: {value:.2f} s, {ratio:.2f}; {tokens[name]:.1f} tokens an answer")


if __name__ == "__main__":
    tyro.cli(main)
