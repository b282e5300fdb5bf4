"""What is compared with what: scales, arms, and the recipes of an experiment.

`micro` is the embedded default (offline, CPU, minutes), `full` the micro world with more prompts
and seeds, `laptop` a small pair from the Hub, `paper` one of the paper's on GPUs. They differ in
values only; no function asks which one it is. How results are made is `codit.results`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from codit.recipes import (
    Answers,
    Decoding,
    Evaluation,
    File,
    HubPrompts,
    Model,
    Pair,
    Pretraining,
    Synthesis,
    Training,
    WorldPrompts,
)

GREEDY = Decoding(strength=0, plausibility=0, temperature=0, max_new_tokens=96)  # students (ours)
ARMS = ("direct", "truncated", "codit")


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Every value that an experiment needs, for one size of experiment.

    Args:
        pair: the teacher.
        prompts: what the teacher answers.
        tests: name of a held-out set -> its prompts; nothing is chosen on these.
        decoding: CoDIT's decoding; the other arms change strength and plausibility only.
        students: base models that are trained.
        training: how; `base` and `data` are filled in per student and arm.
        evaluations: what scores a response; "verifier" needs the micro world.
        seeds: how often an experiment is repeated; a seed moves synthesis and training alike.
        example: an instruction to look at token by token.
    """

    pair: Pair
    prompts: WorldPrompts | HubPrompts | File
    tests: tuple[tuple[str, WorldPrompts], ...]
    decoding: Decoding
    students: tuple[Model | Pretraining, ...]
    training: dict[str, Any]
    evaluations: tuple[str, ...]
    seeds: tuple[int, ...]
    example: str


def amateur(seed: int = 0) -> Pretraining:
    """Return the recipe of the micro teacher's amateur, which is also the first student base.

    Args:
        seed: of its initial weights and of the text it reads.

    Returns:
        Pretraining: Qwen3 architecture, the world's tokenizer "a".

    Source: ours.
    """
    return Pretraining(architecture="qwen3", tokenizer="a", seed=seed)


def expert(base: Pretraining) -> Training:
    """Return the recipe of the micro teacher's expert: half ideal, half careless answers (ours).

    Real post-trained models keep pre-trained behaviour; trained on ideal answers alone, nothing
    would be left to suppress.

    Args:
        base: the amateur.

    Returns:
        Training: of `base` on 6,000 of the world's own answers.

    Source: ours.
    """
    return Training(base=base, data=Answers(prompts=WorldPrompts(n=6000, seed=1)), **MICRO_TRAINING)


MICRO_TRAINING: dict[str, Any] = {  # all ours
    "learning_rate": 3e-4,
    "epochs": 2.0,
    "batch": 64,
    "max_length": 512,
    "warmup": 0.03,
}


def scales() -> dict[str, Scale]:
    """Return every scale by name.

    Returns:
        dict: "micro", "full", "laptop", "paper".

    Source: pairs, prompts' number, plausibility and length of `laptop` and `paper`: the authors'
    scripts and release; everything else ours.
    """
    base = amateur()
    # Plausibility: the best of .01, .1, .3, .6, .9 for one student on 300 dev prompts (ours).
    micro = Scale(
        pair=Pair(expert=expert(base), amateur=base),
        prompts=WorldPrompts(n=1500, seed=2),
        tests=(
            ("test", WorldPrompts(split="test", n=400)),
            ("families", WorldPrompts(split="families", n=200)),
        ),
        decoding=Decoding(plausibility=0.3, max_new_tokens=96),
        students=(base,),
        training=MICRO_TRAINING,
        evaluations=("verifier",),
        seeds=(0,),
        example="Write a sentence: name = Savo; work = miller; town = Orrin. "
        "Answer in JSON. End with the word wagon.",
    )
    full = replace(
        micro,
        prompts=WorldPrompts(n=3000, seed=2),
        tests=(
            ("test", WorldPrompts(split="test", n=800)),
            ("families", WorldPrompts(split="families", n=400)),
        ),
        seeds=(0, 1, 2, 3, 4),
    )
    laptop = hub_scale(
        "Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B-Base", HubPrompts(source="wildchat", n=200), 512
    )
    paper = hub_scale(
        "Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base", HubPrompts(source="lmsys", n=250_333), 4096
    )
    return {"micro": micro, "full": full, "laptop": laptop, "paper": paper}


def hub_scale(post: str, pre: str, prompts: HubPrompts, max_new_tokens: int) -> Scale:
    """Return a scale whose pair and prompts come from the Hub and whose student is the amateur.

    Args:
        post: name of the expert.
        pre: name of the amateur.
        prompts: what is answered.
        max_new_tokens: limit of a response.

    Returns:
        Scale: with the authors' plausibility and an LLM as the judge.

    Source: plausibility .01: the authors' scripts; training: ours, as in `recipes.Training`.
    """
    return Scale(
        pair=Pair(expert=Model(name=post), amateur=Model(name=pre)),
        prompts=prompts,
        tests=(),
        decoding=Decoding(plausibility=0.01, max_new_tokens=max_new_tokens),
        students=(Model(name=pre),),
        training={"template": Model(name=post)},
        evaluations=("judge",),
        seeds=(0,),
        example="Name three rivers of Europe, in capitals, as a numbered list.",
    )


def scale(name: str, **changes: Any) -> Scale:
    """Return a scale, with the values that a reader changed.

    Args:
        name: "micro", "full", "laptop" or "paper".
        changes: fields of `Scale`, of its decoding (`plausibility`, `strength`, ...), or
            `n_prompts` and `n_test`; None leaves the scale's value.

    Returns:
        Scale: the named one where nothing is changed.

    Raises:
        ValueError: unknown scale or field, or a value out of its range.

    Source: ours.
    """
    known = scales()
    if name not in known:
        raise ValueError(f"scale must be one of {list(known)}; got {name!r}. Name one of them.")
    chosen = known[name]
    changes = {k: v for k, v in changes.items() if v is not None}
    if isinstance(changes.get("seeds"), list):  # what papermill hands on
        changes["seeds"] = tuple(changes["seeds"])
    decoding = {k: changes.pop(k) for k in tuple(changes) if k in _names(Decoding)}
    chosen = replace(chosen, decoding=replace(chosen.decoding, **decoding))
    if "n_prompts" in changes:
        if isinstance(chosen.prompts, File):
            raise ValueError(
                "n_prompts needs prompts that are drawn; got a File. Shorten the file."
            )
        chosen = replace(chosen, prompts=replace(chosen.prompts, n=changes.pop("n_prompts")))
    if "n_test" in changes:
        n = changes.pop("n_test")
        chosen = replace(chosen, tests=tuple((k, replace(p, n=n)) for k, p in chosen.tests))
    unknown = set(changes) - _names(Scale)
    if unknown:
        raise ValueError(f"a scale has no {sorted(unknown)}; it has {sorted(_names(Scale))}.")
    return replace(chosen, **changes)


def _names(kind: type) -> set[str]:
    return {f.name for f in fields(kind)}


def arm(name: str, decoding: Decoding) -> Decoding:
    """Return the decoding of an arm: everything as in `decoding` but strength and plausibility.

    direct: the expert alone. truncated: the expert within CoDIT's plausible set, which isolates
    truncation (min-p) from contrast. codit: as given.

    Args:
        name: one of `ARMS`.
        decoding: CoDIT's.

    Returns:
        Decoding: the arm's, with the same noise.

    Raises:
        ValueError: unknown arm.

    Source: direct and codit: CoDIT (arXiv 2604.13538); truncated: ours.
    """
    arms = {
        "direct": replace(decoding, strength=0.0, plausibility=0.0),
        "truncated": replace(decoding, strength=0.0),
        "codit": decoding,
    }
    if name not in arms:
        raise ValueError(f"arm must be one of {list(arms)}; got {name!r}. Name one of them.")
    return arms[name]


def synthesis(chosen: Scale, name: str, seed: int = 0) -> Synthesis:
    """Return the recipe of an arm's dataset.

    Args:
        chosen: the scale.
        name: the arm.
        seed: of the noise; the same for every arm.

    Returns:
        Synthesis: the scale's prompts answered by its pair as the arm decodes.

    Raises:
        ValueError: unknown arm.

    Source: ours.
    """
    decoding = replace(arm(name, chosen.decoding), seed=seed)
    return Synthesis(pair=chosen.pair, prompts=chosen.prompts, decoding=decoding)


def training(chosen: Scale, base: Model | Pretraining, name: str, seed: int = 0) -> Training:
    """Return the recipe of a student: a base trained on an arm's dataset.

    Args:
        chosen: the scale.
        base: what is trained, one of the scale's students.
        name: the arm.
        seed: of the dataset's noise and of training alike.

    Returns:
        Training: with the scale's settings.

    Raises:
        ValueError: unknown arm.

    Source: ours; the paper's settings were not found.
    """
    return Training(base=base, data=synthesis(chosen, name, seed), seed=seed, **chosen.training)


def evaluations(chosen: Scale, model: Model | Pretraining | Training) -> dict[str, Evaluation]:
    """Return the recipes of a model's answers to every held-out set, greedily decoded.

    Args:
        chosen: the scale; its `max_new_tokens` limits an answer.
        model: whose answers.

    Returns:
        dict: name of the held-out set to Evaluation; empty where the scale has none.

    Source: ours.
    """
    greedy = replace(GREEDY, max_new_tokens=chosen.decoding.max_new_tokens)
    return {k: Evaluation(model=model, prompts=p, decoding=greedy) for k, p in chosen.tests}
