"""What the world's judge is taught: responses of every quality, and what to say of them.

A score is the verifier's rubric, 1 to 10, of the response as it reads:

1 + 3 if it is correct + 4 times the share of constraints that hold + 1 for form + 1 for not
repeating itself, rounded; 1 for an empty response. Strengths and weaknesses name these parts. Of
two responses the one that scores higher wins.
"""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from codit import judge_prompts, world
from codit.judge_prompts import Template
from codit.world import constraints, facts, instructions, tasks
from codit.world.instructions import Instruction
from codit.world.recipes import WorldPrompts

QUALITIES = {  # how a response was written -> its share (ours)
    "ideal": 0.20,
    "careless": 0.20,  # as on the world's pages: right and heedless
    "partial": 0.18,  # right, heeds most of what was asked
    "wrong": 0.26,
    "cut": 0.06,
    "again": 0.04,  # said twice, asked or not
    "furnished": 0.03,  # shows the furniture of a page
    "empty": 0.03,
}
HEEDED = 0.6  # share of constraints that all but ideal and careless responses try to obey (ours)
EMPTY = ("", " ", "\n", "...", '""')
LABELS = {"one_word": "one word", "max_words": "few words"}  # else the constraint's kind
SHARES = {  # how a judge is asked -> its share of lessons (ours)
    judge_prompts.SINGLE: 0.50,
    judge_prompts.PAIRWISE: 0.32,
    judge_prompts.SINGLE_REFERENCE: 0.06,
    judge_prompts.SECOND_TURN: 0.06,
    judge_prompts.SECOND_TURN_REFERENCE: 0.06,
}
SAME = 0.1  # share of comparisons of a response with itself, which is a tie (ours)


@dataclass(frozen=True)
class Graded:
    """A response to an instruction, and the parts of it that hold."""

    asked: Instruction
    quality: str
    text: str
    score: int
    parts: tuple[tuple[str, bool], ...]

    def named(self, *, is_good: bool) -> str:
        """What holds, or what does not."""
        return ", ".join(name for name, holds in self.parts if holds is is_good) or "none"


def graded(prompts: WorldPrompts, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return a response of some quality to each prompt, with what a judge should say of it.

    Args:
        prompts: instructions of the world.
        seed: of the qualities and of the responses.

    Returns:
        list[dict]: rows of id, instruction, response, family, quality (a key of `QUALITIES`),
        score (the verifier's), template, prompt (ours), reply (our JSON); `judge.score` takes
        them so.

    Raises:
        ValueError: unknown split, or more prompts than the split has.

    Source: ours.
    """
    found = []
    for number, one in enumerate(_responses(prompts, f"graded {seed}")):
        values = {"instruction": one.asked.text, "response": one.text}
        labels = {"family": one.asked.task.family, "quality": one.quality, "score": one.score}
        name = f"{prompts.split}-{prompts.seed}-{number:05d}"
        found.append({"id": name, **values, **labels, **_single(one, judge_prompts.SINGLE, values)})
    return found


def lessons(prompts: WorldPrompts, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return one thing to judge for each prompt, in any of the ways that a judge is asked.

    Args:
        prompts: instructions of the world.
        seed: of the ways, the qualities and the responses.

    Returns:
        list[dict]: rows of id, template (its name), prompt, reply (our JSON), value (a score, or
        "first", "second" or "tie").

    Raises:
        ValueError: unknown split, or more prompts than the split has.

    Source: ours.
    """
    draw = random.Random(f"lessons {prompts.split} {prompts.seed} {seed}")
    first, second = (_responses(prompts, f"lessons {seed} {k}") for k in range(2))
    found: list[dict[str, Any]] = []
    before: Graded | None = None
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        template = draw.choices(list(SHARES), list(SHARES.values()))[0]
        rival = one if draw.random() < SAME else other
        name = f"{prompts.split}-{prompts.seed}-{number:05d}"
        found.append({"id": name, **_lesson(template, before or other, one, rival)})
        before = one
    return found


def compared(prompts: WorldPrompts, *, seed: int = 0) -> list[dict[str, Any]]:
    """Return two responses to each prompt, and which one a judge should prefer.

    Args:
        prompts: instructions of the world.
        seed: of the qualities and of the responses.

    Returns:
        list[dict]: rows of id, instruction, first, second (texts), score_first, score_second,
        template, prompt, reply, value (the verdict).

    Raises:
        ValueError: unknown split, or more prompts than the split has.

    Source: ours.
    """
    pairs = zip(*(_responses(prompts, f"compared {seed} {k}") for k in range(2)), strict=True)
    return [
        {
            "id": f"{prompts.split}-{prompts.seed}-{number:05d}",
            "instruction": one.asked.text,
            "first": one.text,
            "second": other.text,
            "score_first": one.score,
            "score_second": other.score,
            **_lesson(judge_prompts.PAIRWISE, one, one, other),
        }
        for number, (one, other) in enumerate(pairs)
    ]


def _lesson(template: Template, before: Graded, one: Graded, other: Graded) -> dict[str, Any]:
    """Return a prompt of a template and its reply; `before` is the turn before `one`."""
    if template is judge_prompts.PAIRWISE:
        return _pairwise(one, other)
    known = {
        "instruction": one.asked.text,
        "response": one.text,
        "reference": one.asked.ideal,
        "question_1": before.asked.text,
        "answer_1": before.text,
        "reference_1": before.asked.ideal,
        "question_2": one.asked.text,
        "answer_2": one.text,
        "reference_2": one.asked.ideal,
    }
    wanted = judge_prompts.PLACEHOLDER.findall(template.text)
    return _single(one, template, {name: known[name] for name in wanted})


def _single(one: Graded, template: Template, values: dict[str, str]) -> dict[str, Any]:
    said = (one.named(is_good=True), one.named(is_good=False), one.score)
    return _asked(template, values, said)


def _pairwise(one: Graded, other: Graded) -> dict[str, Any]:
    verdict = "tie"
    if one.score != other.score:
        verdict = "first" if one.score > other.score else "second"
    said = "; ".join(
        f"{place}: has {found.named(is_good=True)}, lacks {found.named(is_good=False)}, so "
        f"{found.score}"  # after its reasons, as in single scores
        for place, found in (("first", one), ("second", other))
    )
    values = {"instruction": one.asked.text, "first": one.text, "second": other.text}
    return _asked(judge_prompts.PAIRWISE, values, (said, verdict))


def _asked(template: Template, values: dict[str, str], said: Sequence[Any]) -> dict[str, Any]:
    reply = dict(zip(judge_prompts.fields(template), said, strict=True))
    prompt = judge_prompts.fill(template, values)
    names = {"template": template.name, "prompt": prompt}
    return {**names, "reply": json.dumps(reply), "value": said[-1]}


def _responses(prompts: WorldPrompts, name: str) -> Iterator[Graded]:
    """Yield a response of some quality to each prompt; another name gives others."""
    draw = random.Random(f"{name} {prompts.split} {prompts.seed}")
    who = facts.residents(prompts.world, prompts.split)
    kinds, shares = list(QUALITIES), list(QUALITIES.values())
    for asked in itertools.islice(instructions.instructions(prompts), prompts.n):
        quality = draw.choices(kinds, shares)[0]
        yield _grade(asked, quality, _respond(asked, quality, draw, who))


def _respond(
    asked: Instruction, quality: str, draw: random.Random, who: Sequence[facts.Person]
) -> str:
    """Write a response of a quality; by luck it may be better or worse, which the verifier sees."""
    if quality == "ideal":
        return asked.ideal
    if quality == "careless":
        return instructions.careless(asked, draw)
    if quality == "empty":
        return draw.choice(EMPTY)
    heeded = [c for c in asked.constraints if draw.random() < HEEDED]
    text = constraints.write(asked.task, heeded, draw)
    if quality == "wrong":
        if not asked.task.rivals:
            return constraints.write(tasks.FAMILIES[asked.task.family](draw, who), heeded, draw)
        right, rival = draw.choice(asked.task.required), draw.choice(asked.task.rivals)
        return re.sub(rf"\b{re.escape(right)}\b", rival, text, flags=re.IGNORECASE)
    if quality == "cut":
        return text[: draw.randrange(1, max(2, len(text)))]
    if quality == "again":
        return f"{text} {text}"
    if quality == "furnished":
        more = f"{text}\nQuestion: {asked.text}\nAnswer: {asked.task.long}"
        return draw.choice([more, f"Answer: {text}"])
    return text


def _grade(asked: Instruction, quality: str, text: str) -> Graded:
    """Let the verifier say what holds of a response."""
    task, wanted = asked.task, asked.constraints
    row = {
        "constraints": [asdict(c) for c in wanted],
        "references": list(task.required),
        "rivals": list(task.rivals),
    }
    found = world.verify(text, row)
    parts = [("correct", found.correct)]
    parts += [(LABELS.get(c.kind, c.kind), constraints.obeys(text, c)) for c in wanted]
    parts += [("form", found.format), ("no repetition", not found.repeats)]
    return Graded(asked, quality, text, found.score, tuple(parts))
