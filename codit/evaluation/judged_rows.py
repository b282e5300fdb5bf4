"""What is judged: rows with a prompt and a response, two arms of them, two-turn conversations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from codit.dataset.prompts import check_read, conversation_of, name_of
from codit.evaluation import rubric
from codit.evaluation.client import Question
from codit.evaluation.rubric import Template
from codit.files import read_lines

Rows: TypeAlias = str | Path | Iterable[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A prompt and the response to it."""

    id: str  # the row's, or its place where it has none
    sample: int  # which of several responses to the prompt
    instruction: str  # as the judge is shown it: all turns where there are several
    response: str
    row: Mapping[str, Any]  # as it was given


def read(rows: Rows) -> list[Mapping[str, Any]]:
    """Return rows in memory: dicts, or a file of JSON lines as they stand there."""
    if isinstance(rows, (str, Path)):
        rows = [row for _, row in read_lines(rows)]
    found = list(rows)
    if not found:
        raise ValueError("expected at least one row to judge; got none.")
    for place, row in enumerate(found, start=1):
        if not isinstance(row, Mapping):
            raise ValueError(f"row {place}: expected an object; got {type(row).__name__}.")
    return found


def answered(rows: Rows) -> list[Answered]:
    """Return rows with a prompt (`instruction` or `messages`) and a `response`, checked, in order.

    Rows are in any layout of `codit.dataset.prompts`. ValueError: a row lacks one of the two or
    cannot be read, or (id, sample) repeats.
    """
    found = [_answered(row, place) for place, row in enumerate(read(rows), start=1)]
    counted = Counter((row.id, row.sample) for row in found)
    if repeated := [name for name, count in counted.items() if count > 1]:
        raise ValueError(
            f"expected every id and sample once; {len(repeated)} occur more than once, the first: "
            f"{repeated[0]}. Number the responses to a prompt with `sample`."
        )
    return found


def pairs(
    first: Sequence[Answered], second: Sequence[Answered]
) -> tuple[list[tuple[Answered, Answered]], int]:
    """Match two arms' responses by id and sample, and count the rows without a partner.

    ValueError: no row has a partner, or two prompts under one id differ.
    """
    others = {(row.id, row.sample): row for row in second}
    found = [(row, others[row.id, row.sample]) for row in first if (row.id, row.sample) in others]
    if not found:
        raise ValueError(
            f"expected rows with common ids; none of {len(first)} is among {len(second)}. Give two "
            "datasets made from the same prompts."
        )
    for one, other in found:
        if one.instruction != other.instruction:
            raise ValueError(f"row {one.id!r}: the two arms were asked different things.")
    return found, len(first) + len(second) - 2 * len(found)


def turns(rows: Rows, *, reference_categories: Collection[str]) -> list[Question]:
    """Return what to ask about conversations of two turns, as MT-Bench's files name them.

    A row has `id` or `question_id`, `turns` and `responses` (two texts each), and perhaps
    `category` and `reference` (two texts). The second question holds the whole conversation. A
    turn of the `reference_categories` whose reference is blank, as some of MT-Bench's are, is
    judged without. Conversations with an empty response are left out. ValueError: a row is not of
    this form, or ids repeat.

    Source: MT-Bench (arXiv 2306.05685).
    """
    found: dict[str, list[Question]] = {}
    for place, row in enumerate(read(rows), start=1):
        given = row.get("question_id") if row.get("id") is None else row["id"]
        name = name_of({"id": given}) or f"row {place}"
        if name in found:
            raise ValueError(f"expected every id once; {name!r} occurs more than once.")
        asked, answers = (_two(row.get(key), name, key) for key in ("turns", "responses"))
        category = str(row.get("category") or "")
        references = ["", ""]
        if category in reference_categories:
            references = _two(row.get("reference"), name, "reference")
        try:
            check_read(row, ("turns", "responses"))
        except ValueError as error:
            raise ValueError(f"row {name!r} cannot be judged: {error}.") from None
        if not all(text.strip() for text in answers):
            found[name] = []
            continue
        found[name] = [
            Question.of(template, values, {"id": name, "category": category, "turn": turn})
            for turn, (template, values) in enumerate(_turns(asked, answers, references), start=1)
        ]
    return [question for both in found.values() for question in both]


def _turns(
    questions: list[str], answers: list[str], references: list[str]
) -> list[tuple[Template, dict[str, str]]]:
    """Return the template of each turn and what is filled in."""
    told = {"instruction": questions[0], "response": answers[0], "reference": references[0]}
    for name, texts in (("question", questions), ("answer", answers), ("reference", references)):
        told |= {f"{name}_{n}": text for n, text in enumerate(texts, start=1)}
    with_reference = [bool(text.strip()) for text in references]
    templates = [
        rubric.SINGLE_REFERENCE if with_reference[0] else rubric.SINGLE,
        rubric.SECOND_TURN_REFERENCE if with_reference[1] else rubric.SECOND_TURN,
    ]
    return [
        (one, {name: told[name] for name in rubric.PLACEHOLDER.findall(one.text)})
        for one in templates
    ]


def _answered(row: Mapping[str, Any], place: int) -> Answered:
    name = name_of(row) or f"row {place}"
    if "turns" in row and not any(row.get(key) for key in ("messages", "instruction")):
        raise ValueError(f"row {name!r} is a question of two turns. Use --conversations.")
    try:
        conversation = conversation_of(row)
        sample = 0 if row.get("sample") is None else row["sample"]
        if not isinstance(sample, int) or isinstance(sample, bool):
            raise ValueError(f"sample must be a whole number; got {sample!r:.60}")
        if conversation[-1]["role"] != "assistant" or len(conversation) < 2:
            raise ValueError("expected a prompt and a `response`; got one without the other")
    except ValueError as error:
        raise ValueError(
            f"row {name!r} cannot be judged: {error}. Mend it or leave it out."
        ) from None
    return Answered(
        id=name,
        sample=sample,
        instruction=rubric.conversation(conversation[:-1]),
        response=conversation[-1]["content"],
        row=row,
    )


def _two(value: Any, name: str, key: str) -> list[str]:
    """Return two texts, or say what is wrong with a conversation."""
    texts = list(value) if isinstance(value, (list, tuple)) else []
    if len(texts) != 2 or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"row {name!r}: expected two texts in `{key}`; got {value!r:.60}. "
            "`codit mt-bench` answers both turns; a category judged with its reference needs two."
        )
    for text in texts:
        _check_text(text, name, key)
    return texts


def _check_text(text: str, name: str, key: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"row {name!r}: `{key}` holds half of a surrogate pair.") from None
