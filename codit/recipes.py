"""What names a result: frozen dataclasses, and the key that is their hash.

A recipe holds every value that changes a result and nothing else. Recipes nest: the recipe of a
student holds the recipe of its dataset, which holds the recipe of its teacher, so a key changes
when anything upstream does; a file or a folder counts by its content. This module knows nothing of
torch, files' formats or notebooks. Values and choices without a source are ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

from codit.files import versions

Recipe: TypeAlias = Any  # of the kind that the field's comment tells, of this module or another


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
        temperature: divides the contrastive scores. 0 is the arg max. 1: the authors' scripts.
        top_p: nucleus of the contrastive distribution after temperature. 1: the authors' scripts.
        top_k: keep the k best contrastive scores, 0 for all. The authors use none.
        max_new_tokens: response limit in tokens. 4096: the authors' scripts.
        seed: first word of the noise key; the authors draw a random seed.
        sample: number of the response among several to one prompt; a word of the noise key.
    """

    strength: float = 1.0
    plausibility: float = 0.01
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    max_new_tokens: int = 4096
    seed: int = 0
    sample: int = 0
    version: ClassVar[int] = 1
    GONE: ClassVar[dict[str, Any]] = {"special_strength": None}

    def __post_init__(self) -> None:
        check_range("strength", self.strength, 0.0, 1e6)  # float32 sums of more overflow
        check_range("plausibility", self.plausibility, 0.0, 1.0)
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
class HubPrompts:
    """Instructions of a public collection: the first user turn of each conversation.

    Args:
        source: "lmsys", "wildchat" or "dolci"; see `codit.dataset.prompts.COLLECTIONS`.
        n: number of prompts, the first ones. 250,333: what the authors released for each teacher.
        revision: commit of the collection; None is the newest, which may change under a key.
    """

    source: str = "lmsys"
    n: int = 250_333
    revision: str | None = None
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Expert and amateur of one teacher. Which strength and plausibility: see `Decoding`."""

    expert: Recipe  # of one model: Model, Training, or the world's Pretraining
    amateur: Recipe  # of one model, likewise; None: a model without a pair
    allow_renamed: bool = False
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """A dataset of responses: prompts answered by a pair."""

    pair: Pair
    prompts: Recipe  # of prompts: File, HubPrompts, or the world's WorldPrompts
    decoding: Decoding = Decoding()
    n_samples: int = 1  # responses to each prompt: sample numbers from `decoding.sample` on
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

    base: Recipe  # of one model: Model, Training, or the world's Pretraining
    data: Recipe  # of prompts with answers: Synthesis, or one of another room, as world's Answers
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
class Tuning:
    """A soft prefix of `base`, tuned on `data` so that contrast with it answers better (CTD).

    Strength, prefix, learning rate, batch and epochs: the paper's; schedule, start, length: ours.

    Args:
        strength: weight of the prefixed view in the loss, alpha in the paper, in [0, 1).
        prefix: rows of the soft prefix.
        keeps_scale: ours: the first view weighs 1 + strength, so that equal views stay as sharp as
            one. False: the paper's loss, whose equal views are one view at temperature
            1 / (1 - strength).
        contrasts: False is prompt tuning, CTD's baseline: the loss of the prefixed view alone,
            which reads no strength.
        batch: rows in an optimiser step.
        max_length: longest row in tokens; a longer one is an error, never cut.
    """

    base: Recipe  # of one model: Model, Training, or the world's Pretraining
    data: Recipe  # of prompts with answers: Synthesis, or one of another room, as world's Answers
    strength: float = 0.3
    prefix: int = 20
    keeps_scale: bool = False
    contrasts: bool = True
    learning_rate: float = 9e-4
    epochs: float = 3.0
    batch: int = 32
    max_length: int = 2048
    seed: int = 0
    version: ClassVar[int] = 1
    LATE: ClassVar[dict[str, Any]] = {"contrasts": True}

    def __post_init__(self) -> None:
        if not 0.0 <= self.strength < 1.0 or self.prefix < 1:
            raise ValueError(
                "expected a strength in [0, 1) and at least one row of a prefix; got "
                f"{self.strength} and {self.prefix}. The paper's are 0.3 and 20."
            )


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How an instruction vector guides a training (IV). The paper's own values were not found.

    Sources: [FVG] its authors' later work (arXiv 2502.11019), scripts; [FVG-b] constants in that
    repository's compiled files; ours where neither is named.

    Args:
        schedule: "none"; "subtracted": heads' means are taken from the student's heads, all of
            them at first, none in the end [FVG-b]; "added": the vector is added, and faded (ours).
        until: share of the steps after which "added" adds nothing (ours).
        injected: who reads the vector while they are compared: "reference" [FVG], "both" (ours),
            or "none", a plain divergence from the start.
        layer, gamma: where and how much of it.
        last: weight of the divergence at the last prompt position. 20: [FVG], first sequence.
        all: weight of the divergence at the positions of `reach`. .1: [FVG], first sequence.
        reach: "all" positions of a row [FVG], or those that the "answer" is drawn at (ours).
        heads: weight of the drift of heads' outputs. 1: [FVG]; 0 leaves it out.
        temperature: divides both logits. 2: [FVG].
        gate, head_gate: a term up to that is left out. .1 and .01: [FVG].
    """

    schedule: str = "none"
    until: float = 0.5
    injected: str = "reference"
    layer: int = 0
    gamma: float = 1.0
    last: float = 20.0
    all: float = 0.1
    reach: str = "all"
    heads: float = 0.0
    temperature: float = 2.0
    gate: float = 0.1
    head_gate: float = 0.01
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name, known in {
            "schedule": ("none", "subtracted", "added"),
            "injected": ("none", "reference", "both"),
            "reach": ("all", "answer"),
        }.items():
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} must be one of {', '.join(known)}; got {getattr(self, name)!r}."
                )


@dataclass(frozen=True, kw_only=True)
class View:
    """What a model reads a second time: its prompt behind a soft prefix, or in another wording.

    Args:
        prefix: Tuning, or File: the folder of a soft prefix.
        wording: of the instruction; one of `codit.contrastive_tuning.WORDINGS`.
        seed: of the words that a wording draws.
        alone: the second view answers by itself, as prompt tuning does.
    """

    base: Recipe  # of one model: Model, Training, or the world's Pretraining
    prefix: Recipe | None = None
    wording: str = ""
    seed: int = 0
    alone: bool = False
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Addition:
    """A model with a chat vector added: target + scale (expert - amateur)."""

    target: Recipe  # of one model: Model, Training, or the world's Pretraining
    vector: Pair
    scale: float = 1.0
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Answers of one model to held-out prompts, scored by the world's verifier."""

    model: Recipe  # of one model: Model, Training, Addition, View, or the world's Pretraining
    prompts: Recipe  # of prompts: the world's WorldPrompts
    decoding: Decoding = Decoding(
        strength=0.0, plausibility=0.0, temperature=0.0, max_new_tokens=128
    )
    version: ClassVar[int] = 2


def key(recipe: Any) -> str:
    """Return the name of a recipe's result: 16 hexadecimal digits of SHA-256.

    A field, a nested field, a `version` or the content of an input file that differs gives another
    key.

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
        return {"recipe": "File", "version": File.version, "sha256": sha256(value.path)}
    if isinstance(value, Model) and Path(value.name).is_dir():
        digest = sha256(value.name)
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


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, or of a folder's files with their relative names."""
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"expected an input file or folder at {path}; there is none.")
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    for file in files:
        if path.is_dir():
            digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
