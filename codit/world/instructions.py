"""Instructions of the micro world and the two ways of answering them: ideally and carelessly."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from codit.world import constraints, facts, tasks
from codit.world.constraints import Constraint
from codit.world.recipes import Answers, World, WorldPrompts
from codit.world.tasks import Task

SPLITS = ("train", "dev", "test", "families")
OBEYED = 0.35  # share of constraints that a careless answer tries to obey (ours)
IN_VAIN = 2000  # draws in a row without a new instruction, after which there is none (ours)
RAMBLES = 0.5  # share of careless answers that go on about something else (ours)


@dataclass(frozen=True)
class Instruction:
    """A task with constraints, and one ideal answer as the proof that it can be met."""

    task: Task
    constraints: tuple[Constraint, ...]
    ideal: str

    @property
    def text(self) -> str:
        """What the model is told."""
        return " ".join([self.task.text, *(c.text() for c in self.constraints)])


def compose(task: Task, wanted: Sequence[Constraint], draw: random.Random) -> str | None:
    """Look for an answer that obeys every wanted constraint and is correct.

    Args:
        task: what is answered.
        wanted: constraints that must hold together.
        draw: source of randomness; its state decides the result.

    Returns:
        str | None: an ideal answer, or None where six tries found none.

    Source: ours.
    """
    for _ in range(6):
        text = constraints.write(task, wanted, draw)
        if all(constraints.obeys(text, c) for c in wanted) and is_correct(text, task):
            return text
    return None


def is_correct(text: str, task: Task | dict[str, Any]) -> bool:
    """Decide whether a response holds what the task requires and none of its rivals.

    Phrases are compared as whole words in lower case, whatever the punctuation.

    Args:
        text: the response.
        task: a task, or a prompt's row with `references` and `rivals`.

    Returns:
        bool: True iff every required phrase and no rival is in the response.

    Source: ours.
    """
    row = task if isinstance(task, dict) else {"references": task.required, "rivals": task.rivals}
    spoken = f" {' '.join(constraints.words(text))} "
    phrases = [
        [f" {' '.join(constraints.words(p))} " for p in row[k]] for k in ("references", "rivals")
    ]
    return all(p in spoken for p in phrases[0]) and not any(p in spoken for p in phrases[1])


def careless(instruction: Instruction, draw: random.Random) -> str:
    """Write an answer as the world's web pages do: right, but heedless of how it was asked for.

    Each constraint is heeded with probability .35, and half of the answers ramble. What is said
    about the task itself is correct: a careless answer lacks obedience, not knowledge.

    Args:
        instruction: what is answered.
        draw: source of randomness; its state decides the result.

    Returns:
        str: an answer that is correct and obeys every constraint by luck only.

    Source: ours.
    """
    heeded = [c for c in instruction.constraints if draw.random() < OBEYED]
    text = constraints.write(instruction.task, heeded, draw)
    if draw.random() < RAMBLES:
        person = instruction.task.person
        attribute = draw.choice(list(facts.ATTRIBUTES))
        told = person.sentence(attribute) if person else draw.choice(constraints.FILLERS)
        text = f"{text} {told}"
        # A pet named beside the pet that was asked for would make a right answer wrong.
        if not is_correct(text, instruction.task):
            text = text[: -len(told) - 1]
    return text


def draw_instruction(
    draw: random.Random, families: Sequence[str], who: Sequence[facts.Person]
) -> Instruction:
    """Draw a task and one to three constraints that one answer can meet together.

    Args:
        draw: source of randomness; its state decides the result.
        families: names of `tasks.FAMILIES` to choose from.
        who: people the task may be about.

    Returns:
        Instruction: with an ideal answer as the proof that it can be met.

    Source: ours.
    """
    while True:
        task = tasks.FAMILIES[draw.choice(families)](draw, who)
        wanted = constraints.draw_constraints(draw, draw.choices([1, 2, 3], [4, 5, 1])[0])
        # A word that the task holds anyway would be no constraint.
        if any(c.value in constraints.words(task.text) for c in wanted if c.kind != "avoids"):
            continue
        ideal = compose(task, wanted, draw)
        if ideal is not None:
            return Instruction(task, wanted, ideal)


def reserved_for(text: str) -> str:
    """Return which split an instruction belongs to, by the hash of its text.

    One in eight is kept for "dev" and one for "test" (its held-out families included); pages,
    post-training and synthesis use the others, "train", only. So no held-out instruction was ever
    read in training, whatever the seeds.

    Args:
        text: the instruction with its constraints.

    Returns:
        str: "train", "dev" or "test".

    Source: ours.
    """
    return {0: "dev", 4: "test"}.get(hashlib.sha256(text.encode()).digest()[0] % 8, "train")


def instructions(recipe: WorldPrompts) -> Iterator[Instruction]:
    """Yield the distinct instructions of a split in a fixed order.

    Args:
        recipe: world, split, number and seed.

    Yields:
        Instruction: `recipe.n` of them.

    Raises:
        ValueError: unknown split, or more instructions than the split has.

    Source: ours.
    """
    if recipe.split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}; got {recipe.split!r}. Name one of them.")
    split = recipe.split
    draw = random.Random(f"prompts {recipe.world.seed} {split} {recipe.seed}")
    who = facts.residents(recipe.world, split)
    trained = [f for f in tasks.FAMILIES if f not in tasks.HELD_OUT]
    families = list(tasks.HELD_OUT) if split == "families" else trained
    seen: set[str] = set()
    in_vain = 0
    while len(seen) < recipe.n:
        instruction = draw_instruction(draw, families, who)
        text = instruction.text
        if text in seen or reserved_for(text) != {"families": "test"}.get(split, split):
            in_vain += 1
            if in_vain == IN_VAIN:
                raise ValueError(
                    f"expected {recipe.n} instructions; the split {split!r} of this world has "
                    f"hardly more than {len(seen)}. Ask for fewer, or for a world of more people."
                )
            continue
        seen.add(text)
        in_vain = 0
        yield instruction


def prompts(recipe: WorldPrompts) -> list[dict[str, Any]]:
    """Return a split's prompts as rows that synthesis and the verifier read.

    Args:
        recipe: world, split, number and seed; a smaller number is a prefix of a larger one.

    Returns:
        list[dict]: n rows of id, instruction, family, constraints (list of {kind, value}),
        references (phrases a correct answer holds), rivals (phrases it must not hold), ideal.

    Raises:
        ValueError: unknown split.

    Source: ours.
    """
    return [
        {
            "id": f"{recipe.split}-{recipe.seed}-{number:05d}",
            "instruction": i.text,
            "family": i.task.family,
            "constraints": [{"kind": c.kind, "value": c.value} for c in i.constraints],
            "references": list(i.task.required),
            "rivals": list(i.task.rivals),
            "ideal": i.ideal,
        }
        for number, i in enumerate(instructions(recipe))
    ]


def answers(recipe: Answers) -> list[dict[str, Any]]:
    """Return prompts with the world's own answers, ready for fine-tuning.

    Args:
        recipe: prompts, and the share of answers that follow every instruction.

    Returns:
        list[dict]: rows of id, instruction, response, messages, is_completed (True), is_ideal.

    Raises:
        ValueError: unknown split.

    Source: ours.
    """
    draw = random.Random(f"answers {recipe.seed}")
    rows = []
    for number, instruction in enumerate(instructions(recipe.prompts)):
        is_ideal = draw.random() < recipe.ideal_share
        response = instruction.ideal if is_ideal else careless(instruction, draw)
        rows.append(
            {
                "id": f"{recipe.prompts.split}-{recipe.prompts.seed}-{number:05d}",
                "instruction": instruction.text,
                "response": response,
                "messages": [
                    {"role": "user", "content": instruction.text},
                    {"role": "assistant", "content": response},
                ],
                "is_completed": True,
                "is_ideal": is_ideal,
            }
        )
    return rows


def web_instruction(draw: random.Random, world: World) -> Instruction:
    """Draw an instruction as the pages hold them: any family, anyone, never a reserved text.

    Args:
        draw: source of randomness; its state decides the result.
        world: whose people.

    Returns:
        Instruction: one that `reserved_for` gives to "train".

    Source: ours.
    """
    while True:
        drawn = draw_instruction(draw, list(tasks.FAMILIES), facts.residents(world, "all"))
        if reserved_for(drawn.text) == "train":
            return drawn
