"""Who lives in the micro world and what is true there: people, their facts, and the word lists.

Nothing here knows of instructions, models or tokens.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

from codit.world.recipes import World

TOWNS = "Dorn Velt Arga Pell Quist Hami Tober Lusk Orrin Fenn Sarn Wick Mold Bray Yarl Keth".split()
JOBS = {  # who makes what: also the table of word analogies
    "baker": "bread", "fisher": "fish", "tailor": "coats", "potter": "bowls", "farmer": "corn",
    "smith": "nails", "weaver": "cloth", "brewer": "beer", "painter": "pictures",
    "miller": "flour", "cobbler": "boots", "printer": "books",
}  # fmt: skip
PETS = "cat dog horse goat rabbit parrot turtle mouse".split()
FOODS = "soup cheese apples pears rice beans honey cake".split()
INSTRUMENTS = "drum flute violin piano harp horn".split()
COLOURS = "red blue green white black yellow".split()
ITEMS = (
    "lamp rope basket hammer kettle mirror ladder carpet pencil shovel blanket bottle candle "
    "bucket needle ribbon barrel wagon button saddle pillow anchor ticket hat clock stone letter "
    "key coin ring table chair box cup plate knife spoon fork brush broom purse chain wheel net "
    "bell flag map belt"
).split()
PLACES = (
    "market mill harbour station church school inn forest castle tower river village cave "
    "lake island palace library"
).split()
MATERIALS = "wood iron glass leather silver paper wool clay".split()
ROOMS = "kitchen cellar attic hall garden stable".split()
NEIGHBOURS = "hill road wall well field wood bridge gate".split()
CAUSES = {
    "storm": "bridge was broken", "rain": "road was wet", "snow": "house was cold",
    "sun": "field was dry", "fire": "roof was black", "wind": "door was open",
}  # fmt: skip

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "town": tuple(TOWNS),
    "job": tuple(JOBS),
    "pet": tuple(PETS),
    "food": tuple(FOODS),
    "instrument": tuple(INSTRUMENTS),
    "colour": tuple(COLOURS),
}
QUESTIONS = {  # attribute -> question, the same as a clause, the sentence that answers it
    "town": ("Where does {n} live?", "where {n} lives", "{n} lives in {v}."),
    "job": ("What work does {n} do?", "what work {n} does", "{n} works as a {v}."),
    "pet": ("Which pet does {n} have?", "which pet {n} has", "{n} has a {v}."),
    "food": ("Which food does {n} like?", "which food {n} likes", "{n} likes {v}."),
    "instrument": (
        "Which instrument does {n} play?",
        "which instrument {n} plays",
        "{n} plays the {v}.",
    ),
    "colour": ("Which colour does {n} wear?", "which colour {n} wears", "{n} wears {v}."),
}


@dataclass(frozen=True)
class Person:
    """One inhabitant: a name, a pronoun and one value of each attribute."""

    name: str
    pronoun: str
    facts: dict[str, str]

    def sentence(self, attribute: str) -> str:
        """Return the sentence that states one of the person's facts."""
        return QUESTIONS[attribute][2].format(n=self.name, v=self.facts[attribute])


@functools.cache
def people(world: World) -> tuple[Person, ...]:
    """Return the world's inhabitants in a fixed order.

    Names are two syllables and unique; those that end in "a" are women, in "o" men, so that a
    pronoun can be resolved from the text alone. More people than names are a ValueError.
    """
    heads = [c + v for c in "BDFGKLMNPRSTVZ" for v in "aeiou"]
    names = [h + c + v for h in heads for c in "lmnrtvs" for v in "ao"]
    if world.people > len(names):
        raise ValueError(
            f"World.people must be at most {len(names)}; got {world.people}. Ask for fewer people."
        )
    draw = random.Random(f"people {world.seed}")
    return tuple(
        Person(
            name=name,
            pronoun="She" if name.endswith("a") else "He",
            facts={a: draw.choice(values) for a, values in ATTRIBUTES.items()},
        )
        for name in draw.sample(names, world.people)
    )


def residents(world: World, split: str) -> tuple[Person, ...]:
    """Return the people of a split: 1/8 are dev, 1/4 test, the rest train.

    "families" has the same people as test. Another split is a ValueError.
    """
    everyone = people(world)
    test = everyone[1::8] + everyone[2::8]
    groups = {
        "train": tuple(p for i, p in enumerate(everyone) if i % 8 > 2),
        "dev": everyone[0::8],
        "test": test,
        "families": test,
    }
    if split not in groups:
        raise ValueError(f"split must be one of {[*groups]}; got {split!r}. Name one of them.")
    return groups[split]


@functools.cache
def things(world: World) -> dict[str, tuple[str, str]]:
    """Return what each thing is made of and the room where it is kept.

    Words that differ in nothing but their spelling are hard to learn to repeat; these facts give
    every thing a meaning of its own.
    """
    draw = random.Random(f"things {world.seed}")
    return {item: (draw.choice(MATERIALS), draw.choice(ROOMS)) for item in ITEMS}


@functools.cache
def places(world: World) -> dict[str, tuple[str, str]]:
    """Return what each place is near and which colour its door has."""
    draw = random.Random(f"places {world.seed}")
    return {place: (draw.choice(NEIGHBOURS), draw.choice(COLOURS)) for place in PLACES}
