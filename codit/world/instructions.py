"""Instructions of the micro world and the two ways of answering them: ideally and carelessly."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from codit.world import constraints, facts, tasks
from codit.world.constraints import Constraint
from codit.world.recipes import Answers, World, WorldPrompts
from codit.world.tasks import Task

OBEYED = 0.35  # share of constraints that a careless answer tries to obey
RAMBLES = 0.5  # share of careless answers that go on about something else
TRIES = 6  # answers written before a task and its constraints count as impossible
IN_VAIN = 2000  # draws in a row without a new instruction, after which there is none


@dataclass(frozen=True)
class Instruction:
    """A task with constraints, and one ideal answer as the proof that it can be met."""

    task: Task
    constraints: tuple[Constraint, ...]
    ideal: str
    id: str = ""

    @property
    def text(self) -> str:
        """What the model is told."""
        return " ".join([self.task.text, *(c.text() for c in self.constraints)])

    @property
    def checked(self) -> dict[str, Any]:
        """What the verifier reads of a prompt's row."""
        return {
            "constraints": [asdict(c) for c in self.constraints],
            "references": list(self.task.required),
            "rivals": list(self.task.rivals),
        }


def prompts(recipe: WorldPrompts) -> list[dict[str, Any]]:
    """Return a split's prompts as rows that synthesis and the verifier read.

    Args:
        recipe: world, split, number and seed; a smaller number is a prefix of a larger one.

    Returns:
        list[dict]: n rows of id, instruction, family, constraints (list of {kind, value}),
        references (phrases a correct answer holds), rivals (phrases it must not hold), ideal.

    Raises:
        ValueError: unknown split, or more prompts than it has.
    """
    return [
        {
            "id": one.id,
            "instruction": one.text,
            "family": one.task.family,
            **one.checked,
            "ideal": one.ideal,
        }
        for one in instructions(recipe)
    ]


def answers(recipe: Answers) -> list[dict[str, Any]]:
    """Return prompts with the world's own answers, ready for fine-tuning.

    Args:
        recipe: prompts, and the share of answers that follow every instruction.

    Returns:
        list[dict]: rows of id, instruction, response, messages, is_completed (True), is_ideal.

    Raises:
        ValueError: unknown split, or more prompts than it has.
    """
    draw = random.Random(f"answers {recipe.seed}")
    rows = []
    for one in instructions(recipe.prompts):
        is_ideal = draw.random() < recipe.ideal_share
        response = one.ideal if is_ideal else careless(one, draw)
        rows.append(
            {
                "id": one.id,
                "instruction": one.text,
                "response": response,
                "messages": [
                    {"role": "user", "content": one.text},
                    {"role": "assistant", "content": response},
                ],
                "is_completed": True,
                "is_ideal": is_ideal,
            }
        )
    return rows


def instructions(recipe: WorldPrompts) -> Iterator[Instruction]:
    """Yield the distinct instructions of a split, `recipe.n` of them, in a fixed order."""
    split = recipe.split
    draw = random.Random(f"prompts {recipe.world.seed} {split} {recipe.seed}")
    who = facts.residents(recipe.world, split)
    trained = [f for f in tasks.FAMILIES if f not in tasks.HELD_OUT]
    families = tasks.HELD_OUT if split == "families" else trained
    seen: set[str] = set()
    in_vain = 0
    while len(seen) < recipe.n:
        drawn = draw_instruction(draw, families, who)
        text = drawn.text
        if text in seen or reserved_for(text) != {"families": "test"}.get(split, split):
            in_vain += 1
            if in_vain == IN_VAIN:
                raise ValueError(
                    f"expected {recipe.n} instructions; the split {split!r} of this world has "
                    f"hardly more than {len(seen)}. Ask for fewer, or for a world of more people."
                )
            continue
        in_vain = 0
        yield replace(drawn, id=f"{split}-{recipe.seed}-{len(seen):05d}")
        seen.add(text)


def web_instruction(draw: random.Random, world: World) -> Instruction:
    """Draw an instruction as the pages hold them: any family, anyone, never a reserved text."""
    while True:
        drawn = draw_instruction(draw, list(tasks.FAMILIES), facts.people(world))
        if reserved_for(drawn.text) == "train":
            return drawn


def reserved_for(text: str) -> str:
    """Return which split an instruction belongs to, by the hash of its text.

    One in eight is kept for "dev" and one for "test" (its held-out families included); pages,
    post-training and synthesis use the others, "train", only. So no held-out instruction was ever
    read in training, whatever the seeds.
    """
    return {0: "dev", 4: "test"}.get(hashlib.sha256(text.encode()).digest()[0] % 8, "train")


def draw_instruction(
    draw: random.Random, families: Sequence[str], who: Sequence[facts.Person]
) -> Instruction:
    """Draw a task about somebody of `who`, and one to three constraints that can hold together."""
    while True:
        task = tasks.FAMILIES[draw.choice(families)](draw, who)
        wanted = constraints.draw_constraints(draw, draw.choices([1, 2, 3], [4, 5, 1])[0])
        # A word that the task holds anyway would be no constraint.
        if any(c.value in constraints.words(task.text) for c in wanted if c.kind != "avoids"):
            continue
        for _ in range(TRIES):
            ideal = constraints.write(task, wanted, draw)
            is_right = is_correct(ideal, task.required, task.rivals)
            if is_right and all(constraints.obeys(ideal, c) for c in wanted):
                return Instruction(task, wanted, ideal)


def careless(instruction: Instruction, draw: random.Random) -> str:
    """Write an answer as the world's web pages do: right, but heedless of how it was asked for.

    Each constraint is heeded with probability .35, and half of the answers ramble. What is said
    about the task itself is correct: a careless answer lacks obedience, not knowledge.
    """
    task = instruction.task
    heeded = [c for c in instruction.constraints if draw.random() < OBEYED]
    text = constraints.write(task, heeded, draw)
    if draw.random() < RAMBLES:
        attribute = draw.choice(list(facts.ATTRIBUTES))
        more = task.person.sentence(attribute) if task.person else draw.choice(constraints.FILLERS)
        # A pet named beside the pet that was asked for would make a right answer wrong.
        if is_correct(f"{text} {more}", task.required, task.rivals):
            text = f"{text} {more}"
    return text


def is_correct(text: str, required: Iterable[str], rivals: Iterable[str]) -> bool:
    """Decide whether a response holds every required phrase and no rival.

    Phrases are compared as whole words in lower case, whatever the punctuation.
    """
    said = _as_words(text)
    is_right = all(_as_words(phrase) in said for phrase in required)
    return is_right and not any(_as_words(phrase) in said for phrase in rivals)


def _as_words(text: str) -> str:
    return f" {' '.join(constraints.words(text))} "
