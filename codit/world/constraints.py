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
NUMBERS = {"2": "two", "3": "three", "4": "four", "5": "five"}
FILLERS = ("That is all.", "I hope it helps.", "Ask me again.", "This is my answer.")
GROUPS = {  # a prompt takes at most one constraint of a group
    "shape": ("sentences", "numbered", "one_word", "max_words", "twice", "json"),
    "look": ("capitals", "quoted"),
    "first": ("begins",),
    "last": ("ends",),
    "lexical": ("contains", "avoids"),
}


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


@dataclass(frozen=True)
class Constraint:
    """A kind ("begins", "sentences", ...) and its argument (a word, or a number as text)."""

    kind: str
    value: str = ""

    def text(self) -> str:
        """Return the sentence that asks for the constraint."""
        return PHRASES[self.kind].format(v=self.value, k=NUMBERS.get(self.value, ""))


def draw_constraints(draw: random.Random, count: int) -> tuple[Constraint, ...]:
    """Draw constraints of `count` different groups, in the order in which they are asked.

    Whether one answer can meet them all is for `obeys` to say.
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


def obeys(text: str, constraint: Constraint) -> bool:
    """Decide whether a response obeys one constraint, literally; an empty one obeys nothing.

    In the manner of IFEval (Zhou et al. 2023). An unknown kind of constraint is a ValueError.
    """
    spoken, kind, value = words(text), constraint.kind, constraint.value
    if kind not in PHRASES:
        raise ValueError(f"a constraint is one of {sorted(PHRASES)}; got {kind!r}. Name one.")
    bare = text.strip()
    holds = {
        "begins": lambda: spoken[0] == value,
        "ends": lambda: spoken[-1] == value,
        "sentences": lambda: len(sentences(text)) == int(value),
        "numbered": lambda: _is_numbered(bare, int(value)),
        "contains": lambda: value in spoken,
        "avoids": lambda: value not in spoken,
        "capitals": lambda: text == text.upper(),
        "twice": lambda: spoken == spoken[: len(spoken) // 2] * 2,
        "one_word": lambda: len(spoken) == 1,
        "max_words": lambda: len(spoken) <= int(value),
        "quoted": lambda: len(bare) > 2 and bare[0] == bare[-1] == '"',
        "json": lambda: _is_json(text),
    }
    return bool(spoken) and holds[kind]()


def words(text: str) -> list[str]:
    """Return the words of a text in lower case; an apostrophe within a word belongs to it."""
    return re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)?", text.lower())


def sentences(text: str) -> list[str]:
    """Return the pieces of a text that end in ., ! or ? and hold a word, quotes around it left out.

    The last needs no full stop.
    """
    return [s for s in re.split(r"(?<=[.!?])[\"']?\s+", text.strip().strip("\"'")) if words(s)]


def _is_numbered(text: str, count: int) -> bool:
    marks = [re.match(r"(\d+)\. \S", line) for line in text.splitlines() if line.strip()]
    return [m and int(m[1]) for m in marks] == list(range(1, count + 1))


def _is_json(text: str) -> bool:
    try:
        value = json.loads(text)
    except ValueError:
        return False
    return isinstance(value, dict) and bool(value)


def write(task: Task, obeyed: Iterable[Constraint], draw: random.Random) -> str:
    """Compose a correct answer to `task` that tries to obey the given constraints.

    Some combinations cannot be obeyed together by this composer (JSON that begins with a word);
    whoever needs certainty checks the text with `obeys`.
    """
    asked = {c.kind: c.value for c in obeyed}
    brief = {"one_word", "max_words", "json"} & set(asked)
    base = task.short if brief or draw.random() < 0.25 else task.long
    parts = [base if brief or base == task.long else base + "."]
    if "contains" in asked:
        parts.append(asked["contains"] if brief else f"Think of the {asked['contains']}.")
    count = int(asked.get("sentences", asked.get("numbered", "0")))
    fillers = draw.sample(FILLERS, len(FILLERS))
    while len(parts) < count:
        parts.append(fillers.pop())
    if "begins" in asked:
        parts[0] = f"{asked['begins'].capitalize()}, {parts[0]}"
    if "ends" in asked:
        parts[-1] = f"{parts[-1].rstrip('.')} {asked['ends']}{'' if brief else '.'}"
    if "numbered" in asked:
        parts = [f"{i}. {part}" for i, part in enumerate(parts, 1)]
    text = ("\n" if "numbered" in asked else " ").join(parts)
    if "twice" in asked:
        text = f"{text} {text}"
    if "json" in asked:
        text = json.dumps({"answer": text})
    elif "quoted" in asked:
        text = f'"{text}"'
    return text.upper() if "capitals" in asked else text
