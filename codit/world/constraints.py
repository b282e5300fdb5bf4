"""How an answer must look: twelve verifiable constraints in the manner of IFEval.

Each constraint has three faces: the sentence that asks for it, the check that decides whether a
response obeys it, and a place in `write`, which composes an answer that obeys given ones.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass

from codit.world.facts import ITEMS
from codit.world.tasks import Task

# Constraint words are things, as in the tasks: one pool of words that can be said again.
OPENERS, CLOSERS, EXTRAS = ITEMS[:16], ITEMS[16:32], ITEMS
AVOIDABLE = "the is a it in".split()
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
FILLERS = ("That is all.", "I hope it helps.", "Ask me again.", "This is my answer.")
GROUPS = {  # a prompt takes at most one constraint of a group
    "shape": ("sentences", "numbered", "one_word", "max_words", "twice", "json"),
    "look": ("capitals", "quoted"),
    "first": ("begins",),
    "last": ("ends",),
    "lexical": ("contains", "avoids"),
}


@dataclass(frozen=True)
class Constraint:
    """A kind ("begins", "sentences", ...) and its argument (a word, or a number as text)."""

    kind: str
    value: str = ""

    def text(self) -> str:
        """Return the sentence that asks for the constraint.

        Returns:
            str: a sentence of `PHRASES` with the argument filled in.

        Source: ours.
        """
        return PHRASES[self.kind].format(v=self.value, k=NUMBERS.get(_int(self.value), ""))


PHRASES = {
    "begins": "Begin with the word {v}.",
    "ends": "End with the word {v}.",
    "sentences": "Write exactly {k} sentences.",
    "numbered": "Write a numbered list of {k}.",
    "contains": "Use the word {v}.",
    "avoids": "Avoid the word {v}.",
    "capitals": "Write in capitals.",
    "twice": "Say it twice.",
    "one_word": "Answer in one word.",
    "max_words": "Use at most {k} words.",
    "quoted": "Put it in quotes.",
    "json": "Answer in JSON.",
}


def _int(value: str) -> int:
    return int(value) if value.isdigit() else 0


def draw_constraints(draw: random.Random, count: int) -> tuple[Constraint, ...]:
    """Draw constraints of different groups, in the order in which they are asked.

    Args:
        draw: source of randomness; its state decides the result.
        count: how many, 0 to the number of groups; more give one per group.

    Returns:
        tuple of `count` constraints that do not exclude one another by kind; whether one answer can
        meet them all is for `obeys` to say.

    Source: ours.
    """
    group = {kind: name for name, kinds in GROUPS.items() for kind in kinds}
    kinds: list[str] = []
    for kind in draw.sample(list(group), len(group)):
        if len(kinds) < count and group[kind] not in {group[k] for k in kinds}:
            kinds.append(kind)
    arguments = {
        "begins": OPENERS,
        "ends": CLOSERS,
        "contains": EXTRAS,
        "avoids": AVOIDABLE,
        "sentences": ["2", "3"],
        "numbered": ["2", "3"],
        "max_words": ["3", "4", "5"],
    }
    return tuple(Constraint(kind, draw.choice(arguments.get(kind, [""]))) for kind in kinds)


def words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation.

    Args:
        text: any text.

    Returns:
        list[str]: runs of letters, in order; an apostrophe within a word belongs to it.

    Source: ours.
    """
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower())


def sentences(text: str) -> list[str]:
    """Return the sentences of a text: pieces that end in ., ! or ?.

    Args:
        text: any text; quotes around it are no part of a sentence.

    Returns:
        list[str]: pieces with at least one word; the last needs no full stop.

    Source: ours.
    """
    return [s for s in re.split(r"(?<=[.!?])[\"']?\s+", text.strip().strip("\"'")) if words(s)]


def _is_numbered(text: str, count: int) -> bool:
    lines = [line for line in text.strip().splitlines() if line.strip()]
    marks = [re.match(r"(\d+)\. \S", line) for line in lines]
    return [m and int(m.group(1)) for m in marks] == list(range(1, count + 1))


def _is_twice(text: str) -> bool:
    spoken = words(text)
    half = len(spoken) // 2
    return half > 0 and len(spoken) % 2 == 0 and spoken[:half] == spoken[half:]


def _is_json(text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and bool(value)


def obeys(text: str, constraint: Constraint) -> bool:
    """Decide whether a response obeys one constraint.

    Args:
        text: the response.
        constraint: what was asked.

    Returns:
        bool: True iff it holds literally; an empty response obeys nothing.

    Raises:
        ValueError: unknown kind of constraint.

    Source: in the manner of IFEval (Zhou et al. 2023); the checks are ours.
    """
    spoken, kind, value = words(text), constraint.kind, constraint.value
    if kind not in PHRASES:
        raise ValueError(f"a constraint is one of {sorted(PHRASES)}; got {kind!r}. Name one.")
    if not spoken:
        return False
    bare = text.strip()
    holds = {
        "begins": lambda: spoken[0] == value,
        "ends": lambda: spoken[-1] == value,
        "sentences": lambda: len(sentences(text)) == int(value),
        "numbered": lambda: _is_numbered(text, int(value)),
        "contains": lambda: value in spoken,
        "avoids": lambda: value not in spoken,
        "capitals": lambda: text == text.upper(),
        "twice": lambda: _is_twice(text),
        "one_word": lambda: len(spoken) == 1,
        "max_words": lambda: len(spoken) <= int(value),
        "quoted": lambda: len(bare) > 2 and bare[0] == bare[-1] == '"',
        "json": lambda: _is_json(text),
    }
    return holds[kind]()


def write(task: Task, obeyed: Iterable[Constraint], draw: random.Random) -> str:
    """Compose an answer to `task` that tries to obey the given constraints.

    Some combinations cannot be obeyed together by this composer (JSON that begins with a word);
    whoever needs certainty checks the text with `obeys`.

    Args:
        task: what is answered, correctly in any case.
        obeyed: the constraints to try.
        draw: source of randomness; its state decides the result.

    Returns:
        str: an answer, not empty.

    Source: ours.
    """
    asked = {c.kind: c.value for c in obeyed}
    brief = {"one_word", "max_words", "json"} & set(asked)
    base = task.short if brief or draw.random() < 0.25 else task.long
    parts = [base if brief or base == task.long else base + "."]
    if "contains" in asked:
        parts.append(f"{asked['contains']}" if brief else f"Think of the {asked['contains']}.")
    count = int(asked.get("sentences", asked.get("numbered", "0")))
    fillers = draw.sample(FILLERS, len(FILLERS))
    while len(parts) < count:
        parts.append(fillers.pop())
    if "begins" in asked:
        parts[0] = f"{asked['begins'].capitalize()}, {parts[0]}"
    if "ends" in asked:
        parts[-1] = f"{parts[-1].rstrip('.')} {asked['ends']}{'' if brief else '.'}"
    if "numbered" in asked:
        text = "\n".join(f"{i}. {part}" for i, part in enumerate(parts, 1))
    else:
        text = " ".join(parts)
    return _dress(text, asked)


def _dress(text: str, asked: dict[str, str]) -> str:
    """Apply what changes a whole text: repetition, quotes, JSON, capitals."""
    if "twice" in asked:
        text = f"{text} {text}"
    if "quoted" in asked and "json" not in asked:
        text = f'"{text}"'
    if "json" in asked:
        text = json.dumps({"answer": text})
    return text.upper() if "capitals" in asked else text
