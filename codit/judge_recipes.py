"""What names a judge of the micro world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from codit.recipes import WorldPrompts

LESSONS = WorldPrompts(n=32_000, seed=4)


@dataclass(frozen=True, kw_only=True)
class WorldJudge:
    """A judge of the micro world, trained from nothing on graded responses. All values ours.

    Args:
        prompts: of the split "train": what held-out judgements are compared on was never read.
        architecture: as in `recipes.Pretraining`; not Qwen's, see `model_server.serve`.
        vocabulary: tokens of its own tokenizer, the fixed parts of the prompt not counted.
        epochs: passes over the lessons, one for each prompt.
        batch: rows in a step.
    """

    prompts: WorldPrompts = LESSONS
    architecture: str = "llama"
    hidden_size: int = 128
    layers: int = 4
    vocabulary: int = 1024
    learning_rate: float = 4e-3
    epochs: float = 2.0
    batch: int = 32
    seed: int = 0
    version: ClassVar[int] = 2


JUDGES = (WorldJudge(), WorldJudge(architecture="gpt_neox", hidden_size=64, seed=1))
