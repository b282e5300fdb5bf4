"""What is compared with what: scales, and the arms and studies that notebooks ask a scale for.

`micro` is the embedded default (offline, CPU, minutes), `full` the micro world with more prompts
and seeds, `laptop` a small pair from the Hub, `paper` one of the paper's on GPUs, `real` one real
model without a pair, offline. They differ in values only; no function asks which one it is. Recipes
only: `codit.paper.make` makes them. Values and choices without a source are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

from codit.paper.arms import (
    NOBODY,
    Arm,
    Judging,
    LLMJudge,
    Packaged,
    ResponseStudy,
    StudentStudy,
    judged_by,
)
from codit.paper.arms import decoding as decoding_of
from codit.paper.arms import prompts as our_prompts
from codit.recipes import Decoding, File, HubPrompts, Model, Pair, Synthesis, Training
from codit.world.recipes import JUDGES, Answers, Pretraining, WorldPrompts

ARMS = ("direct", "truncated", "codit")
MICRO_TRAINING: dict[str, Any] = {
    "learning_rate": 3e-4,
    "epochs": 2.0,
    "batch": 64,
    "max_length": 512,
    "warmup": 0.03,
}
BUDGETS = (24, 25, 26, 27, 28, 30)  # tokens of a reply that needs about 26


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Every value that an experiment needs, for one size of experiment.

    Args:
        pair: the teacher. At `real` its amateur is None: one model, and nothing to contrast with.
        others: further teachers, for what must not hang on one.
        rivals: teachers whose chat vectors are nulls for the first one's.
        dev: prompts that values are chosen on; no student or dataset is reported on them.
        tests: name of a held-out set -> its prompts; nothing is chosen on these.
        decoding: CoDIT's decoding; the other arms change strength and plausibility only.
        plausibilities: at which CoDIT and truncation are tried.
        truncation: the plausibility at which truncation alone is best on dev prompts, so that
            this baseline is tuned as CoDIT is.
        strengths: tried at the decoding's plausibility; 0 is truncation.
        training: how students are trained; base and data come from each student and arm.
        evaluations: what scores a response: "verifier" (of the micro world), "judge", "ifeval".
        seeds: how often an experiment is repeated; a seed moves synthesis and training alike.
        tuning: how soft prefixes are tuned: fields of `Tuning` but base and data; n, the rows, and
            prompts, of each held-out set.
        example: an instruction to look at token by token.
        kinds: of the world's instructions, whose heads are looked for.
    """

    pair: Pair
    others: tuple[Pair, ...] = ()
    rivals: tuple[Pair, ...] = ()
    prompts: WorldPrompts | HubPrompts | File
    dev: WorldPrompts | None = None
    tests: tuple[tuple[str, WorldPrompts], ...]
    decoding: Decoding
    plausibilities: tuple[float, ...] = ()
    truncation: float = 0.3
    strengths: tuple[float, ...] = ()
    students: tuple[Model | Pretraining, ...]
    training: dict[str, Any]
    evaluations: tuple[str, ...]
    seeds: tuple[int, ...]
    tuning: dict[str, Any] = field(default_factory=dict)
    example: str
    judging: Judging = NOBODY
    kinds: tuple[str, ...] = ()

    @property
    def teachers(self) -> dict[str, Pair]:
        """Every teacher by its name in tables: "A" is `pair`, then "B", ..."""
        return dict(zip("ABCDEFGH", (self.pair, *self.others), strict=False))


def scale(name: str, **changes: Any) -> Scale:
    """Return a scale with the values that a reader changed.

    Args:
        name: "micro", "full", "laptop", "paper" or "real".
        changes: fields of `Scale` or of its decoding (`plausibility`, `strength`, ...), or
            `n_prompts` and `n_test` (of dev and of each held-out set); None leaves the scale's
            value. `students` may be their number, the first ones; `judging` names of models.

    Raises:
        ValueError: unknown scale or field, or a value out of its range.
    """
    known = scales()
    if name not in known:
        raise ValueError(f"scale must be one of {list(known)}; got {name!r}. Name one of them.")
    chosen = known[name]
    # What papermill hands on are lists.
    changes = {
        k: tuple(v) if isinstance(v, list) else v for k, v in changes.items() if v is not None
    }
    decoding = {k: changes.pop(k) for k in _names(Decoding) & set(changes)}
    chosen = replace(chosen, decoding=replace(chosen.decoding, **decoding))
    if "n_prompts" in changes:
        if isinstance(chosen.prompts, File):
            raise ValueError("n_prompts needs drawn prompts; got a File. Shorten the file.")
        changes["prompts"] = replace(chosen.prompts, n=changes.pop("n_prompts"))
    if "n_test" in changes:
        n = changes.pop("n_test")
        changes["tests"] = tuple((k, replace(prompts, n=n)) for k, prompts in chosen.tests)
        changes["dev"] = chosen.dev and replace(chosen.dev, n=n)
    if isinstance(changes.get("students"), int):
        changes["students"] = chosen.students[: changes["students"]]
    if isinstance(changes.get("judging"), (str, tuple)):
        changes["judging"] = judged_by(chosen.judging, changes["judging"])
    if unknown := set(changes) - _names(Scale):
        raise ValueError(f"a scale has no {sorted(unknown)}; it has {sorted(_names(Scale))}.")
    return replace(chosen, **changes)


def scales() -> dict[str, Scale]:
    """Return every scale by name.

    Source: pairs, prompts' number, plausibility and length of `laptop` and `paper`: the authors'
    scripts and release.
    """
    base, neox, llama = bases().values()
    # Plausibility and truncation: of those of `full` the best for teacher A's students, on dev
    # prompts (notebook 02).
    second = Pair(expert=second_expert(base), amateur=base)
    micro = Scale(
        pair=Pair(expert=expert(base), amateur=base),
        rivals=(second,),
        prompts=WorldPrompts(n=1000, seed=2),
        dev=WorldPrompts(split="dev", n=200),
        tests=_held_out(200),
        decoding=Decoding(plausibility=0.03, max_new_tokens=96),
        plausibilities=(0.03, 0.3, 0.9),
        truncation=0.9,
        strengths=(0.0, 1.0, 2.0),
        students=(base, llama),
        training=MICRO_TRAINING,
        evaluations=("verifier", "judge"),
        judging=Judging(judges=JUDGES, n_prompts=60, budgets=(25, 27)),
        seeds=(0,),  # intervals are over prompts; more seeds would make it an hour's work
        tuning={
            "n": 96,
            "prompts": 32,
            "learning_rate": 1e-2,
            "epochs": 1.0,
            "max_length": 512,
        },
        example="Write a sentence: name = Savo; work = miller; town = Orrin. "
        "Answer in JSON. End with the word wagon.",
        kinds=("capitals", "json", "twice"),
    )
    full = replace(
        micro,
        others=(second,),
        prompts=WorldPrompts(n=1500, seed=2),
        dev=WorldPrompts(split="dev", n=400),
        tests=_held_out(400),
        plausibilities=(0.01, 0.03, 0.1, 0.3, 0.6, 0.9),
        strengths=(0.0, 0.25, 0.5, 1.0, 1.5, 2.0),
        students=(base, neox, llama),
        judging=Judging(judges=JUDGES, n_prompts=1500, budgets=BUDGETS, seeds=(0, 1, 2, 3, 4)),
        seeds=(0, 1, 2, 3, 4),
        kinds=(*micro.kinds, "quoted", "numbered", "one_word", "max_words", "sentences"),
        tuning={**micro.tuning, "n": 600, "prompts": 200, "epochs": 2.0},
    )
    laptop = hub_scale(
        "Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B-Base", HubPrompts(source="wildchat", n=200), 512
    )
    paper = hub_scale(
        "Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base", HubPrompts(source="lmsys", n=250_333), 4096
    )
    known = {"micro": micro, "full": full, "laptop": laptop, "paper": paper}
    return {**known, "real": real_scale()}


def real_scale() -> Scale:
    """Return the scale of one real model that `make real` fetches: its expert alone, greedy."""
    return Scale(
        pair=Pair(expert=Packaged(), amateur=None),
        prompts=our_prompts("tuning"),
        tests=(),
        decoding=Decoding(strength=0.0, plausibility=0.0, temperature=0.0, max_new_tokens=40),
        students=(),
        training={},
        evaluations=("ifeval",),
        seeds=(0,),
        example="Name three rivers of Europe, in capitals, as a numbered list.",
    )


def hub_scale(post: str, pre: str, prompts: HubPrompts, max_new_tokens: int) -> Scale:
    """Return a scale of a pair from the Hub, whose amateur is the student and whose judge an LLM.

    Source: plausibility .01: the authors' scripts.
    """
    return Scale(
        pair=Pair(expert=Model(name=post), amateur=Model(name=pre)),
        prompts=prompts,
        tests=(),
        decoding=Decoding(plausibility=0.01, max_new_tokens=max_new_tokens),
        students=(Model(name=pre),),
        training={"template": Model(name=post)},
        evaluations=("judge",),
        judging=Judging(judges=(LLMJudge(model="openai/gpt-oss-120b"),)),
        seeds=(0,),
        example="Name three rivers of Europe, in capitals, as a numbered list.",
    )


def bases() -> dict[str, Pretraining]:
    """Return the micro world's base models, which are its students, by their embedded names.

    The teachers' amateur; another architecture; another architecture and tokenizer.
    """
    return {
        "amateur": Pretraining(architecture="qwen3", tokenizer="a"),
        "base-neox": Pretraining(architecture="gpt_neox", tokenizer="a"),
        "base-llama-b": Pretraining(architecture="llama", tokenizer="b"),
    }


def expert(base: Pretraining) -> Training:
    """Return the micro teacher's expert: half ideal, half careless answers.

    Real post-trained models keep pre-trained behaviour; trained on ideal answers alone, nothing
    would be left to suppress.
    """
    return Training(base=base, data=Answers(prompts=WorldPrompts(n=6000, seed=1)), **MICRO_TRAINING)


def second_expert(base: Pretraining) -> Training:
    """Return the second teacher's expert: three quarters ideal, of another draw and order."""
    answers = Answers(prompts=WorldPrompts(n=6000, seed=3), ideal_share=0.75, seed=1)
    return Training(base=base, data=answers, seed=1, **MICRO_TRAINING)


def arm(name: str, decoding: Decoding) -> Decoding:
    """Return the decoding of one of `ARMS`: `decoding` but for strength and plausibility."""
    return decoding_of(Arm(role=name), decoding)


def synthesis(chosen: Scale, name: str, seed: int = 0) -> Synthesis:
    """Return the recipe of the dataset of one of `ARMS`; its noise is the same for every arm."""
    decoding = arm(name, replace(chosen.decoding, seed=seed))
    return Synthesis(pair=chosen.pair, prompts=chosen.prompts, decoding=decoding)


def main_arms(chosen: Scale) -> tuple[Arm, ...]:
    """Return the arms that every table compares, at the scale's plausibility and strength.

    Source: direct, Best-of-N and codit: CoDIT (arXiv 2604.13538).
    """
    return (
        Arm(role="direct"),
        Arm(role="greedy"),
        Arm(role="best-of-n", n=2),
        Arm(role="best-of-n", n=4),
        *contrast_arms(chosen.decoding.plausibility, chosen.decoding.strength),
    )


def contrast_arms(plausibility: float, strength: float = 1.0) -> tuple[Arm, Arm]:
    """Return truncation and contrast at one plausibility."""
    truncated = Arm(role="truncated", plausibility=plausibility)
    return truncated, Arm(role="codit", plausibility=plausibility, strength=strength)


def plausibility_arms(chosen: Scale) -> tuple[Arm, ...]:
    """Return truncation and contrast at each plausibility of the scale."""
    strength = chosen.decoding.strength
    return tuple(a for p in chosen.plausibilities for a in contrast_arms(p, strength))


def strength_arms(chosen: Scale) -> tuple[Arm, ...]:
    """Return the contrast at each strength of the scale, at its plausibility; 0 is "truncated"."""
    plausibility = chosen.decoding.plausibility
    return tuple(contrast_arms(plausibility, s)[s > 0] for s in chosen.strengths)


def responses(
    chosen: Scale, arms: tuple[Arm, ...], teacher: str = "A", **changes: Any
) -> ResponseStudy:
    """Return the study of the responses of a teacher of `chosen.teachers`: every arm, every seed.

    `changes` are other values of the study's fields.
    """
    study = ResponseStudy(
        pair=chosen.teachers[teacher],
        prompts=chosen.prompts,
        decoding=chosen.decoding,
        arms=arms,
        seeds=chosen.seeds,
    )
    return replace(study, **changes)


def students(
    chosen: Scale, arms: tuple[Arm, ...], teacher: str = "A", **changes: Any
) -> StudentStudy:
    """Return the study of students of a teacher's responses; `changes` as in `responses`."""
    study = StudentStudy(
        responses=responses(chosen, arms, teacher),
        students=chosen.students,
        training=tuple(sorted(chosen.training.items())),
        tests=chosen.tests,
    )
    return replace(study, **changes)


def datasets(chosen: Scale, teacher: str = "A") -> ResponseStudy:
    """Return the study of notebook 01: responses of the main arms and of every value tried.

    Source: CoDIT, Figures 2 and 4.
    """
    return responses(chosen, _distinct(*main_arms(chosen), *_tried(chosen, teacher)), teacher)


def alpha(chosen: Scale, teacher: str = "A") -> StudentStudy:
    """Return the study of notebook 02: students over every value tried, on dev and test prompts.

    Source: CoDIT, Figures 5 and 6.
    """
    tests = (("dev", chosen.dev), *chosen.tests[:1]) if chosen.dev else chosen.tests[:1]
    arms = _distinct(Arm(role="direct"), *_tried(chosen, teacher))
    return students(chosen, arms, teacher, tests=tests)


def table(chosen: Scale) -> StudentStudy:
    """Return the study of notebook 03: the results table, on every held-out set.

    The main arms, truncation at the plausibility that is best for truncation itself, ceiling and
    floor. Source: CoDIT, results table.
    """
    own = Arm(role="truncated", plausibility=chosen.truncation)
    ends = (Arm(role="ideal"), Arm(role="careless"))
    return students(chosen, _distinct(*main_arms(chosen), own, *ends))


def plan(chosen: Scale) -> dict[str, ResponseStudy | StudentStudy]:
    """Return every table of verdicts that notebooks read, by its name in `data/results/`."""
    named: dict[str, ResponseStudy | StudentStudy] = {}
    for teacher in chosen.teachers:
        named[f"responses-{teacher.lower()}"] = datasets(chosen, teacher)
        named[f"alpha-{teacher.lower()}"] = alpha(chosen, teacher)
    return {**named, "students": table(chosen)}


def _held_out(n: int) -> tuple[tuple[str, WorldPrompts], ...]:
    """Twice as many prompts of known families as of unknown ones."""
    return tuple((k, WorldPrompts(split=k, n=m)) for k, m in (("test", 2 * n), ("families", n)))


def _tried(chosen: Scale, teacher: str) -> tuple[Arm, ...]:
    """Every plausibility; of the first teacher every strength too."""
    return plausibility_arms(chosen) + (strength_arms(chosen) if teacher == "A" else ())


def _distinct(*arms: Arm) -> tuple[Arm, ...]:
    return tuple(dict.fromkeys(arms))


def _names(kind: type) -> set[str]:
    return {f.name for f in fields(kind)}
