"""The micro world's judge: a program that says what holds of a response.

Rubric, 1 to 10: 1 point for an answer, 3 if it is correct, 4 times the share of constraints that
hold literally, 1 for form, 1 for not repeating itself; rounded. An empty response scores 1.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from codit.world.constraints import Constraint, obeys, words
from codit.world.instructions import is_correct

FURNITURE = ("question:", "answer:")


@dataclass(frozen=True)
class Verdict:
    """What the verifier found.

    Args:
        strict: every constraint holds literally.
        loose: every constraint holds in the response or in one of its trimmed variants.
        correct: the response holds what the task requires and none of its rivals.
        format: it stopped by itself, is not empty, and shows no page furniture.
        repeats: it says something again that it was not asked to say twice.
        held: share of constraints that hold literally.
        score: the rubric's points, 1 to 10.
    """

    strict: bool
    loose: bool
    correct: bool
    format: bool
    repeats: bool
    held: float
    score: int


def verify(text: str, row: dict[str, Any], *, is_completed: bool = True) -> Verdict:
    """Check a response against its prompt's row: `constraints`, `references` and `rivals`.

    `is_completed` is False where the response was cut. An unknown constraint is a ValueError.
    Strict and loose are in the manner of IFEval (Zhou et al. 2023).
    """
    asked = [Constraint(c["kind"], c["value"]) for c in row["constraints"]]
    held = [obeys(text, c) for c in asked]
    loose = any(all(obeys(variant, c) for c in asked) for variant in variants(text))
    share = sum(held) / len(held) if held else 1.0
    correct = is_correct(text, row["references"], row["rivals"])
    spoken = words(text)
    form = is_completed and bool(spoken) and not any(mark in text.lower() for mark in FURNITURE)
    repeats = repeats_itself(spoken, is_asked=any(c.kind == "twice" for c in asked))
    points = 1 + 3 * correct + 4 * share + form + (not repeats) if spoken else 1
    return Verdict(all(held), loose, correct, form, repeats, share, round(points))


def variants(text: str) -> list[str]:
    """Return a response and its trimmed forms, as for IFEval's loose accuracy.

    Without its first line, its last line, both, and each of these without asterisks; where there
    is only one line, a sentence counts as one.
    """
    lines = text.strip().splitlines()
    if len(lines) <= 1:
        lines = re.split(r"(?<=[.!?])\s+", text.strip())
    trimmed = [text] + [" ".join(part) for part in (lines[1:], lines[:-1], lines[1:-1]) if part]
    return [v for t in trimmed for v in (t, t.replace("*", ""))]


def repeats_itself(spoken: list[str], *, is_asked: bool) -> bool:
    """Tell whether some four words in a row come more than once, or twice where that is asked."""
    grams = Counter(tuple(spoken[i : i + 4]) for i in range(len(spoken) - 3))
    return max(grams.values(), default=0) > (2 if is_asked else 1)
