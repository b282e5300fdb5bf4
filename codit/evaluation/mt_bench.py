"""Questions of two turns, as MT-Bench (arXiv 2306.05685) and FastChat ask them.

The second turn sees the first answer. `codit judge --conversations` scores what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codit import decode, files
from codit.dataset.prompts import check_read, name_of
from codit.recipes import Decoding

# Of FastChat's `temperature_config`; a category that it does not name is asked at .7.
TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1} | dict.fromkeys(
    ("extraction", "math", "coding", "reasoning", "arena-hard-200"), 0.0
)
USUAL = 0.7
TURNS = 2


def read(path: str | Path) -> list[dict[str, Any]]:
    """Return the questions of a file as they stand there.

    A line has `question_id`, `category` and `turns` (two texts), and for categories judged with one
    a `reference` (two texts), as FastChat's `question.jsonl`. ValueError: a line is no such
    question or could not be written again, an id repeats, or there is none.
    """
    rows: dict[str, dict[str, Any]] = {}
    for number, row in files.read_lines(path):
        where = f"line {number} of {path}"
        _check(row, where)
        try:
            check_read(row, ("turns",))
        except ValueError as error:
            raise ValueError(f"{where}: {error}.") from None
        name = str(row["question_id"])
        if rows.setdefault(name, row) is not row:
            raise ValueError(f"{where}: expected every question_id once; got {name!r} again.")
    if not rows:
        raise ValueError(f"expected questions in {path}; got none. Give FastChat's question.jsonl.")
    return [*rows.values()]


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Sequence[Mapping[str, Any]],
    decoding: Decoding,
    *,
    by_category: bool = True,
    batch_size: int | None = None,
    progress: bool = True,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Ask all first turns, then all second ones with the first answers before them.

    Each turn of a question has noise of its own, so an answer depends neither on other questions
    nor on their order.

    Args:
        model: a pair, or any causal LM, for which `decoding` has strength and plausibility 0.
        tokenizer: has a chat template.
        questions: from `read`.
        decoding: how tokens are drawn; its temperature where `by_category` is False.
        by_category: draw at MT-Bench's own temperature for the category.
        batch_size: see `decode.generate`.
        progress: show bars.

    Returns:
        tuple: the questions that got both answers, with `responses` and `is_completed`; and for
        each of the others `question_id`, `turn` (1 or 2), `error` and `reason`.
    """
    heats = map(temperature, questions) if by_category else [decoding.temperature] * len(questions)
    how = [replace(decoding, temperature=heat) for heat in heats]
    chats: list[list[dict[str, str]]] = [[] for _ in questions]
    given: list[list[decode.Response]] = [[] for _ in questions]
    left = list(range(len(questions)))
    for turn in range(TURNS):
        for n in left:
            chats[n].append({"role": "user", "content": questions[n]["turns"][turn]})
        for one in dict.fromkeys(how[n] for n in left):
            asked = [n for n in left if how[n] == one]
            found = decode.generate(
                model,
                tokenizer,
                [chats[n] for n in asked],
                one,
                ids=[f"{questions[n]['question_id']} turn {turn + 1}" for n in asked],
                batch_size=batch_size,
                progress=progress,
            )
            for n, response in zip(asked, found, strict=True):
                given[n].append(response)
                chats[n].append({"role": "assistant", "content": response.text})
        left = [n for n in left if given[n][-1].error is None]
    rows, errors = [], []
    for question, responses in zip(questions, given, strict=True):
        if (said := responses[-1].error) is not None:
            error, _, reason = said.partition(": ")
            told = {"question_id": question["question_id"], "turn": len(responses)}
            errors.append({**told, "error": error, "reason": reason or error})
            continue
        answers: dict[str, Any] = {"responses": [response.text for response in responses]}
        answers["is_completed"] = [response.is_completed for response in responses]
        rows.append({**question, **answers})
    return rows, errors


def temperature(question: Mapping[str, Any]) -> float:
    """Return the temperature at which MT-Bench asks a question of such a `category`."""
    return TEMPERATURES.get(str(question.get("category") or ""), USUAL)


def _check(row: dict[str, Any], where: str) -> None:
    """Raise ValueError where a row is no question, saying what it lacks."""
    turns, category, reference = map(row.get, ("turns", "category", "reference"))
    # An empty text stands where a turn has no reference, as in MT-Bench's own file.
    wanted = {
        "an object with `turns`, two texts": _are_texts(turns) and all(map(str.strip, turns or ())),
        "a question_id, a whole number or a text": name_of({"id": row.get("question_id")}),
        "a text as category, or none": category is None or isinstance(category, str),
        "two texts as reference, one for each turn, or none": (
            reference is None or _are_texts(reference)
        ),
        "only what JSON in UTF-8 can hold": _is_writable(row),
    }
    for expected, is_right in wanted.items():
        if not is_right:
            raise ValueError(
                f"{where}: expected {expected}; got {row!r:.60}. Write it as FastChat's "
                "question.jsonl has it; questions of one turn are for codit synthesize."
            )


def _is_writable(row: dict[str, Any]) -> bool:
    """Return whether the answers' file could hold a row: said now, not when all is answered."""
    try:
        return bool(files.line_of(row).encode())
    except ValueError:
        return False


def _are_texts(value: Any) -> bool:
    """Return whether a value is a text for each turn."""
    return isinstance(value, list) and [*map(type, value)] == [str] * TURNS
