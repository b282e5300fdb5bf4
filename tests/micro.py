"""The micro world in small: recipes of a whole experiment that is made in seconds.

The models learn the shape of an answer and little else. A result is made once per test session:
the `micro` fixture of conftest.py keeps them in one cache, which the workers share.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from codit import world
from codit.paper.scales import Scale
from codit.recipes import Decoding, Pair, Training
from codit.world.recipes import Answers, Pretraining, World, WorldPrompts

WORLD = World(people=32)
BASE = Pretraining(
    world=WORLD, hidden_size=64, layers=1, tokens=60_000, block=128, batch=8, learning_rate=1e-2
)
TRAINING: dict[str, Any] = {"learning_rate": 1e-2, "batch": 16, "max_length": 256}
EXPERT = Training(
    base=BASE,
    data=Answers(prompts=WorldPrompts(world=WORLD, n=120, seed=1)),
    epochs=3.0,
    **TRAINING,
)
SCALE = Scale(
    pair=Pair(expert=EXPERT, amateur=BASE),
    prompts=WorldPrompts(world=WORLD, n=12, seed=2),
    tests=(
        ("test", WorldPrompts(world=WORLD, split="test", n=6)),
        ("families", WorldPrompts(world=WORLD, split="families", n=4)),
    ),
    dev=WorldPrompts(world=WORLD, split="dev", n=4),
    decoding=Decoding(plausibility=0.3, max_new_tokens=32),
    plausibilities=(0.1, 0.3),
    strengths=(0.0, 1.0),
    students=(BASE,),
    training={**TRAINING, "batch": 4, "epochs": 1.0},
    evaluations=("verifier",),
    seeds=(0,),
    example="Where does Puto live?",
)


def small(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Scale:
    """Return the scale, with results in `cache` and tokenizers that read 1,000 documents."""
    monkeypatch.setenv("CODIT_CACHE", str(cache))
    quick = partial(world.train_tokenizer, documents_read=1000)
    monkeypatch.setattr(world, "train_tokenizer", quick)
    return SCALE
