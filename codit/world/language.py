"""The text that base models read: prose about people, stories, and web-like pages."""

from __future__ import annotations

import random
from collections.abc import Iterator

from codit.world import facts, instructions
from codit.world.recipes import World

LOGS = 0.5  # share of pages in chat markup


def documents(world: World, seed: int = 0) -> Iterator[str]:
    """Yield documents of the world's language without end, in an order that `seed` fixes.

    Another seed gives other documents about the same world.
    """
    draw = random.Random(f"documents {world.seed} {seed}")
    writers, shares = list(SHARES), list(SHARES.values())
    while True:
        yield draw.choices(writers, shares)[0](draw, world)


def prose(draw: random.Random, world: World) -> str:
    """Describe two people by some of their facts, or a few trades."""
    if draw.random() < 0.1:
        trades = draw.sample(sorted(facts.JOBS), 4)
        return " ".join(f"A {job} makes {facts.JOBS[job]}." for job in trades)
    lines = []
    for person in draw.sample(facts.people(world), 2):
        told = draw.sample(sorted(facts.ATTRIBUTES), draw.randint(3, 6))
        lines.append(" ".join(person.sentence(a) for a in told))
    return "\n".join(lines)


def story(draw: random.Random, world: World) -> str:
    """Tell what two people did one day."""
    one, two = draw.sample(facts.people(world), 2)
    item, other = draw.sample(facts.ITEMS, 2)
    place, reason = draw.choice(facts.PLACES), draw.choice(sorted(facts.CAUSES))
    lines = [
        f"{one.name} walked to the {place} and met {two.name}.",
        f"{one.pronoun} had a {draw.choice(facts.COLOURS)} {item} and sold the {item}.",
        f"{two.pronoun} bought a {other} and said: thank you for the {other}.",
        f"Then the {reason} came and the {facts.CAUSES[reason]}.",
    ]
    return " ".join(lines[: draw.randint(2, 4)])


def things(draw: random.Random, world: World) -> str:
    """Describe a few things and a place."""
    made = facts.things(world)
    told = [
        f"{item.capitalize()}: the {item} is made of {made[item][0]}. "
        f"The {item} is in the {made[item][1]}."
        for item in draw.sample(facts.ITEMS, 3)
    ]
    place = draw.choice(facts.PLACES)
    neighbour, colour = facts.places(world)[place]
    told.append(f"The {place} is near the {neighbour}. The {place} has a {colour} door.")
    draw.shuffle(told)
    return " ".join(told)


def errand(draw: random.Random, world: World) -> str:
    """Tell what somebody bought, and say it again: text that repeats what was just said."""
    person, place = draw.choice(facts.people(world)), draw.choice(facts.PLACES)
    item, colour = draw.choice(facts.ITEMS), draw.choice(facts.COLOURS)
    return (
        f"{person.name} went to the {place} and bought a {item}. {person.name} came home from "
        f"the {place}. {item.capitalize()}, said {person.name}. The {item} was {colour}. "
        f"{person.name} liked the {colour} {item}."
    )


def page(draw: random.Random, world: World) -> str:
    """Show one or two questions as the web holds them, each with a careless answer.

    Half of the pages are logs in chat markup: base models of today have read such logs, and to an
    amateur that never saw the markup a chat would be no text at all.
    """
    is_log = draw.random() < LOGS
    parts = []
    for _ in range(1 if is_log else draw.randint(1, 2)):
        asked = instructions.web_instruction(draw, world)
        answer = instructions.careless(asked, draw)
        form = "<|user|>{}<|end|><|assistant|>{}<|end|>" if is_log else "Question: {}\nAnswer: {}"
        parts.append(form.format(asked.text, answer))
    return "\n".join(parts)


SHARES = {prose: 0.18, things: 0.1, story: 0.07, errand: 0.15, page: 0.5}  # of documents
