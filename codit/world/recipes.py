"""What names a result of the micro world: recipes, as those of `codit.recipes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from codit.recipes import Synthesis


@dataclass(frozen=True, kw_only=True)
class World:
    """The micro world: its people, towns and their facts.

    Args:
        seed: seeds every draw of the world.
        people: number of named people, each with facts.
    """

    seed: int = 0
    people: int = 128
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class WorldPrompts:
    """Instructions of the micro world.

    Args:
        split: "train", "dev", "test" (people never trained on) or "families" (families never
            trained on).
        n: number of prompts, drawn without repetition in a fixed order: a smaller n is a prefix.
        seed: seeds the draw.
    """

    world: World = World()
    split: str = "train"
    n: int = 1000
    seed: int = 0
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A base model trained from nothing on the world's text.

    Args:
        architecture: transformers model type: "qwen3", "llama", "gpt_neox", ...
        tokenizer: "a" (the teacher's) or "b" (another vocabulary).
        tokens: length of training in tokens.
        block: tokens in a packed training row.
        batch: rows in a step.
    """

    world: World = World()
    architecture: str = "qwen3"
    tokenizer: str = "a"
    hidden_size: int = 128
    layers: int = 4
    tokens: int = 7_000_000
    block: int = 256
    batch: int = 8
    learning_rate: float = 3e-3
    seed: int = 0
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The world's own answers to its prompts.

    Args:
        ideal_share: share of answers that follow every instruction; the rest are written as on
            the world's careless pages.
    """

    prompts: WorldPrompts = WorldPrompts()
    ideal_share: float = 0.5
    seed: int = 0
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class BestOf:
    """Of the first `n` responses to each prompt, the one the verifier prefers; ties: the first."""

    pool: Synthesis
    n: int = 4
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Shuffled:
    """Answers dealt out anew: each prompt gets the answer to another."""

    answers: Answers
    seed: int = 0
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class WorldJudge:
    """A judge of the micro world, trained from nothing on graded responses.

    Args:
        prompts: of the split "train": what held-out judgements are compared on was never read.
        architecture: as in `Pretraining`; not Qwen's, see `codit.world.server.serve`.
        vocabulary: tokens of its own tokenizer, the fixed parts of the prompt not counted.
        epochs: passes over the lessons, one for each prompt.
        batch: rows in a step.
    """

    prompts: WorldPrompts = WorldPrompts(n=32_000, seed=4)
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
