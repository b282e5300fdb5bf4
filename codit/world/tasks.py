"""What can be asked in the micro world: thirteen families of tasks with their answers.

Twelve are modelled on categories of Super-NaturalInstructions, which their docstrings name; one
asks for facts. A task says what is asked and what is right; how the answer must look is the
constraints' business. A new family is a function in `FAMILIES`:

    draw: source of randomness; its state decides the task.
    who: the people it may be about, at least one woman and one man.
    returns: a `Task` whose `short` and `long` are both correct answers.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from codit.world import facts
from codit.world.facts import Person


@dataclass(frozen=True)
class Task:
    """One question without constraints.

    Args:
        family: name of the family.
        text: what is asked.
        short: the bare answer.
        long: the answer as a sentence.
        required: a response is correct only if it holds every one of these phrases...
        rivals: ...and none of these.
        person: whom the task is about, for rambling; None where nobody is.
    """

    family: str
    text: str
    short: str
    long: str
    required: tuple[str, ...]
    rivals: tuple[str, ...] = ()
    person: Person | None = field(default=None, compare=False)


def _others(values: Iterable[str], right: str) -> tuple[str, ...]:
    return tuple(v for v in values if v != right)


def fact(draw: random.Random, who: Sequence[Person]) -> Task:
    """Ask for one fact about one person: the only family that needs knowledge of the world."""
    person, attribute = draw.choice(who), draw.choice(list(facts.ATTRIBUTES))
    value, sentence = person.facts[attribute], person.sentence(attribute)
    question = facts.QUESTIONS[attribute][0].format(n=person.name)
    rivals = _others(facts.ATTRIBUTES[attribute], value)
    return Task("fact", question, value, sentence, (value,), rivals, person)


def title(draw: random.Random, who: Sequence[Person]) -> Task:
    """Title Generation: ask for a title of a sentence."""
    person, place, item = draw.choice(who), draw.choice(facts.PLACES), draw.choice(facts.ITEMS)
    name = f"{person.name} at the {place}"
    text = f"Give a title: {person.name} went to the {place} and bought a {item}."
    required = (person.name, place)
    return Task("title", text, name, f"The title is {name}.", required, (), person)


def coreference(draw: random.Random, who: Sequence[Person]) -> Task:
    """Coreference Resolution: ask whom a pronoun means; its gender tells."""
    woman = draw.choice([p for p in who if p.pronoun == "She"])
    man = draw.choice([p for p in who if p.pronoun == "He"])
    first, second = draw.sample([woman, man], 2)
    right, wrong = draw.sample([woman, man], 2)
    item = draw.choice(facts.ITEMS)
    text = f"{first.name} met {second.name}. {right.pronoun} had a {item}. Who had the {item}?"
    sentence = f"{right.name} had the {item}."
    return Task("coreference", text, right.name, sentence, (right.name,), (wrong.name,), right)


def entailment(draw: random.Random, who: Sequence[Person]) -> Task:
    """Textual Entailment: ask whether a sentence follows from another, yes or no."""
    person, colour = draw.choice(who), draw.choice(facts.COLOURS)
    item, other = draw.sample(facts.ITEMS, 2)
    follows = draw.random() < 0.5
    name, asked = person.name, item if follows else other
    text = f"{name} sold a {colour} {item}. Does it follow that {name} sold a {asked}?"
    if follows:
        return Task("entailment", text, "Yes", "Yes, it follows.", ("yes",), ("no", "not"), person)
    return Task("entailment", text, "No", "No, it does not follow.", ("no",), ("yes",), person)


def rewriting(draw: random.Random, who: Sequence[Person]) -> Task:
    """Question Rewriting: ask for a question in polite words."""
    person, attribute = draw.choice(who), draw.choice(list(facts.ATTRIBUTES))
    question, clause = (form.format(n=person.name) for form in facts.QUESTIONS[attribute][:2])
    text, polite = f"Rewrite this politely: {question}", f"Please tell me {clause}."
    required = (f"please tell me {clause}",)
    return Task("rewriting", text, polite[:-1], polite, required, (), person)


def cause(draw: random.Random, who: Sequence[Person]) -> Task:
    """Cause Effect Classification: ask what caused an event that the text tells."""
    reason, place = draw.choice(list(facts.CAUSES)), draw.choice(facts.PLACES)
    came = f"The {reason} came to the {place} and then the {facts.CAUSES[reason]}."
    text, long = f"{came} What was the cause?", f"The cause was the {reason}."
    rivals = _others(facts.CAUSES, reason)
    return Task("cause", text, reason.capitalize(), long, (reason,), rivals)


def dialogue(draw: random.Random, who: Sequence[Person]) -> Task:
    """Dialogue Act Recognition: ask which of four acts an utterance is."""
    person, other = draw.sample(list(who), 2)
    item, place = draw.choice(facts.ITEMS), draw.choice(facts.PLACES)
    acts = {
        "question": f"where is the {place}",
        "request": f"give me the {item}",
        "thanks": f"thank you for the {item}",
        "greeting": f"good morning {other.name}",
    }
    act = draw.choice(list(acts))
    text = f"{person.name} says: {acts[act]}. Is it a question, a request, thanks or a greeting?"
    long = "It is thanks." if act == "thanks" else f"It is a {act}."
    rivals = _others(acts, act)
    return Task("dialogue", text, act.capitalize(), long, (act,), rivals, person)


def answerability(draw: random.Random, who: Sequence[Person]) -> Task:
    """Answerability Classification: ask whether a text answers a question, yes or no."""
    person, item, place = draw.choice(who), draw.choice(facts.ITEMS), draw.choice(facts.PLACES)
    told = draw.random() < 0.5
    known = [f"what {person.name} bought", f"where {person.name} was"]
    unknown = [facts.QUESTIONS[a][1].format(n=person.name) for a in ("pet", "food", "colour")]
    asked = draw.choice(known if told else unknown)
    text = f"{person.name} bought a {item} at the {place}. Does the text tell {asked}?"
    if told:
        return Task("answerability", text, "Yes", "Yes, it does.", ("yes",), ("no", "not"), person)
    return Task("answerability", text, "No", "No, it does not.", ("no",), ("yes",), person)


def keywords(draw: random.Random, who: Sequence[Person]) -> Task:
    """Keyword Tagging: ask for the keywords of a sentence: who, what and where."""
    person, item, place = draw.choice(who), draw.choice(facts.ITEMS), draw.choice(facts.PLACES)
    text = f"List the keywords: {person.name} bought a {item} at the {place}."
    sentence = f"The keywords are {person.name}, {item} and {place}."
    short, required = f"{person.name}, {item}, {place}", (person.name, item, place)
    return Task("keywords", text, short, sentence, required, (), person)


def data_to_text(draw: random.Random, who: Sequence[Person]) -> Task:
    """Data to Text: ask for a sentence that states given values, which are made up."""
    person, job, town = draw.choice(who), draw.choice(list(facts.JOBS)), draw.choice(facts.TOWNS)
    text = f"Write a sentence: name = {person.name}; work = {job}; town = {town}."
    sentence = f"{person.name} is a {job} in {town}."
    required = (person.name, job, town)
    rivals = _others(facts.JOBS, job) + _others(facts.TOWNS, town)
    return Task("data_to_text", text, sentence[:-1], sentence, required, rivals, person)


def analogy(draw: random.Random, who: Sequence[Person]) -> Task:
    """Word Analogy: ask for the fourth word of an analogy from the table of jobs."""
    known, asked = draw.sample(list(facts.JOBS), 2)
    text = f"A {known} is to {facts.JOBS[known]} as a {asked} is to what?"
    right = facts.JOBS[asked]
    rivals = _others(facts.JOBS.values(), right)
    return Task("analogy", text, right.capitalize(), f"A {asked} is to {right}.", (right,), rivals)


def overlap(draw: random.Random, who: Sequence[Person]) -> Task:
    """Overlap Extraction: ask for the one word that stands in both lists."""
    both, *rest = draw.sample(facts.ITEMS, 5)
    left, right = [both, *rest[:2]], [both, *rest[2:]]
    draw.shuffle(left)
    draw.shuffle(right)
    text = f"Which word is in both: {' '.join(left)} / {' '.join(right)}?"
    sentence = f"The word {both} is in both."
    return Task("overlap", text, both.capitalize(), sentence, (both,), tuple(rest))


def grammar(draw: random.Random, who: Sequence[Person]) -> Task:
    """Grammar Error Correction: ask for a sentence with its verb's lost ending restored."""
    person, place = draw.choice(who), draw.choice(facts.PLACES)
    verb = draw.choice(["walk", "run", "drive", "come"])
    text = f"Correct this: {person.name} {verb} to the {place}."
    sentence = f"{person.name} {verb}s to the {place}."
    return Task("grammar", text, sentence[:-1], sentence, (sentence[:-1],), (), person)


FAMILIES: dict[str, Callable[[random.Random, Sequence[Person]], Task]] = {
    f.__name__: f
    for f in (
        fact, title, coreference, entailment, rewriting, cause, dialogue,
        answerability, keywords, data_to_text, analogy, overlap, grammar,
    )
}  # fmt: skip
HELD_OUT = ("cause", "keywords")  # never in post-training, synthesis or students' data
