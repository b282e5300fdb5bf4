"""What names a result: frozen dataclasses, and the key that is their hash.

A recipe holds every value that changes a result and nothing else. Recipes nest: the recipe of a
student holds the recipe of its dataset, which holds the recipe of its teacher, so a key changes
when anything upstream does. This module knows nothing of torch, files' formats or notebooks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from codit import content
from codit.files import versions


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Raise ValueError unless low <= value <= high (NaN never passes)."""
    if not low <= value <= high:
        above = f"at least {low:g}" if high == float("inf") else f"between {low:g} and {high:g}"
        raise ValueError(f"{name} must be {above}; got {value!r}. Give a value in that range.")


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How a response is drawn from next-token distributions.

    Args:
        strength: weight of the amateur's log-probability (beta). 0 ignores the amateur.
            1: the paper's equation has no other weight; every script of the authors sets 1.
        plausibility: keep a token iff p_expert >= plausibility * max p_expert (alpha). 0 keeps
            all, 1 keeps the arg max only. .01: the authors' scripts.
        special_strength: strength for the tokenizer's special tokens, end of turn included.
            None: same as `strength`, which is the authors' setting. (ours: the switch)
        temperature: divides the contrastive scores. 0 is the arg max. 1: the authors' scripts.
        top_p: nucleus of the contrastive distribution after temperature. 1: the authors' scripts.
        top_k: keep the k best contrastive scores, 0 for all. The authors use none.
        max_new_tokens: response limit in tokens. 4096: the authors' scripts.
        seed: first word of the noise key. (ours: the authors draw a random seed)
        sample: number of the response among several to one prompt; a word of the noise key. (ours)
    """

    strength: float = 1.0
    plausibility: float = 0.01
    special_strength: float | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 4096
    seed: int = 0
    sample: int = 0
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_range("strength", self.strength, 0.0, 1e6)  # float32 sums of more overflow
        check_range("plausibility", self.plausibility, 0.0, 1.0)
        if self.special_strength is not None:
            check_range("special_strength", self.special_strength, 0.0, 1e6)
        check_range("temperature", self.temperature, 0.0, 1e6)
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must lie in (0, 1]; got {self.top_p}. Use 1 to keep all.")
        check_range("top_k", self.top_k, 0, float("inf"))
        check_range("max_new_tokens", self.max_new_tokens, 1, float("inf"))


@dataclass(frozen=True, kw_only=True)
class Model:
    """A checkpoint by name: a Hub repository or a local folder.

    A local folder enters the key by the content of its files, not by its path.
    """

    name: str
    revision: str | None = None
    dtype: str = "auto"
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class File:
    """An input file; its content enters the key, its path does not."""

    path: str
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class World:
    """The micro world: its people, towns and their facts. All values ours.

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
class HubPrompts:
    """Instructions of a public collection: the first user turn of each conversation.

    Args:
        source: "lmsys", "wildchat" or "dolci"; see `codit.prompts.COLLECTIONS`.
        n: number of prompts, the first ones. 250,333: what the authors released for each teacher.
        revision: commit of the collection; None is the newest, which may change under a key.
    """

    source: str = "lmsys"
    n: int = 250_333
    revision: str | None = None
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Pretraining:
    """A base model trained from nothing on the world's text. All values ours.

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
    """The world's own answers to its prompts: ideal, careless, or a mixture. All values ours.

    Args:
        ideal_share: share of answers that follow every instruction; the rest are written as on
            the world's careless pages.
    """

    prompts: WorldPrompts = WorldPrompts()
    ideal_share: float = 0.5
    seed: int = 0
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Expert and amateur of one teacher. Which strength and plausibility: see `Decoding`."""

    expert: Model | Training
    amateur: Model | Pretraining
    allow_renamed: bool = False
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """A dataset of responses: prompts answered by a pair.

    Args:
        n_samples: responses to each prompt; sample k of `decoding.sample + k`.
    """

    pair: Pair
    prompts: File | WorldPrompts | HubPrompts
    decoding: Decoding = Decoding()
    n_samples: int = 1
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class BestOf:
    """Of the first `n` responses to each prompt, the one the verifier prefers; ties: the first."""

    pool: Synthesis
    n: int = 4
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Shuffled:
    """Answers dealt out anew: each prompt gets the answer to another. All values ours."""

    answers: Answers
    seed: int = 0
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Training:
    """Supervised fine-tuning of `base` on `data`, full parameters, loss on the answer only.

    The paper's learning rate, epochs, batch and length were not found: all values ours.

    Args:
        batch: rows in an optimiser step.
        max_length: longest row in tokens; a longer one is an error, never cut.
        warmup: share of steps over which the learning rate rises.
        template: tokenizer (or Jinja file) whose chat template the student learns; needed where
            the base has none. None: the base's own.
    """

    base: Model | Pretraining | Training
    data: Synthesis | BestOf | Answers | Shuffled | File
    template: Model | File | None = None
    learning_rate: float = 1e-5
    epochs: float = 2.0
    batch: int = 256
    max_length: int = 4096
    warmup: float = 0.03
    weight_decay: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.95)
    seed: int = 0
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Addition:
    """A model with a chat vector added: target + scale (expert - amateur). Scales ours."""

    target: Model | Pretraining | Training
    vector: Pair
    scale: float = 1.0
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Answers of one model to held-out prompts, scored by the world's verifier."""

    model: Model | Pretraining | Training | Addition
    prompts: WorldPrompts
    decoding: Decoding = Decoding(
        strength=0.0, plausibility=0.0, temperature=0.0, max_new_tokens=128
    )
    version: ClassVar[int] = 2


def key(recipe: Any) -> str:
    """Return the name of a recipe's result: 16 hexadecimal digits of SHA-256.

    Args:
        recipe: one of this module's dataclasses.

    Returns:
        str: equal recipes give equal keys; a field, a nested field, a `version` or the content
        of an input file that differs gives another key.

    Raises:
        ValueError: a field holds something that has no canonical form.
        FileNotFoundError: an input file does not exist.
    """
    text = json.dumps(canonical(recipe), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def canonical(value: Any) -> Any:
    """Return a JSON value that holds what `key` hashes: content instead of paths.

    A recipe that changes its form keeps its keys by three class variables: NAME, the name it had;
    LATE, {field: the value that was meant before the field came}; GONE, {field: the value at which
    it went}.
    """
    if isinstance(value, File):
        return {"recipe": "File", "version": File.version, "sha256": content.sha256(value.path)}
    if isinstance(value, Model) and Path(value.name).is_dir():
        digest = content.sha256(value.name)
        return {"recipe": "Model", "version": 1, "sha256": digest, "dtype": value.dtype}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind: Any = type(value)
        late, gone = getattr(kind, "LATE", {}), getattr(kind, "GONE", {})
        told = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        fields = {n: v for n, v in told.items() if n not in late or v != late[n]}
        head = {"recipe": getattr(kind, "NAME", kind.__name__), "version": kind.version}
        return head | {name: canonical(v) for name, v in (gone | fields).items()}
    if isinstance(value, (tuple, list)):
        return [canonical(item) for item in value]
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise ValueError(
        f"a recipe holds numbers, strings, tuples and recipes; got {type(value).__name__}: "
        f"{value!r}. Give the field one of these."
    )


def describe(recipe: Any) -> Any:
    """Return a recipe as nested plain values with paths, for manifests and for reading."""
    if dataclasses.is_dataclass(recipe) and not isinstance(recipe, type):
        fields = {f.name: describe(getattr(recipe, f.name)) for f in dataclasses.fields(recipe)}
        kind: Any = type(recipe)
        return {"recipe": kind.__name__, "version": kind.version, **fields}
    return [describe(item) for item in recipe] if isinstance(recipe, (tuple, list)) else recipe


def manifest(recipe: Any, **extra: Any) -> dict[str, Any]:
    """Return what is recorded beside a result: its recipe and key, versions, when, and `extra`."""
    return {
        "key": key(recipe),
        "recipe": describe(recipe),
        "versions": versions(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **extra,
    }
