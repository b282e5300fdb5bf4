"""Questions of two turns, as MT-Bench asks them: the second turn sees the first answer.

`codit judge --conversations` scores what comes out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codit import decode
from codit.prompts import name_of
from codit.recipes import Decoding

# Of FastChat's `temperature_config`; a category that it does not name is asked at .7.
TEMPERATURES = {
    "writing": 0.7,
    "roleplay": 0.7,
    "extraction": 0.0,
    "math": 0.0,
    "coding": 0.0,
    "reasoning": 0.0,
    "stem": 0.1,
    "humanities": 0.1,
    "arena-hard-200": 0.0,
}
USUAL = 0.7
TURNS = 2


def read(path: str | Path) -> list[dict[str, Any]]:
    """Read a file of questions.

    Args:
        path: JSON lines with `question_id`, `category` and `turns` (two texts), and for categories
            judged with one a `reference` (two texts): as FastChat's `question.jsonl`.

    Returns:
        list[dict]: the rows as they stand there.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is no such question or could not be written again, an id repeats, or
            there is none.

    Source: the format: MT-Bench (arXiv 2306.05685).
    """
    rows: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        if line.strip():
            where = f"line {number} of {path}"
            row = _question(line, where)
            name = str(row["question_id"])
            if name in seen:
                raise ValueError(f"{where}: expected every question_id once; got {name!r} again.")
            seen.add(name)
            rows.append(row)
    if not rows:
        raise ValueError(f"expected questions in {path}; got none. Give FastChat's question.jsonl.")
    return rows


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
        tokenizer: with a chat template.
        questions: of `read`.
        decoding: how tokens are drawn; its temperature where `by_category` is False.
        by_category: draw at MT-Bench's own temperature for the category.
        batch_size: see `decode.generate`.
        progress: show bars.

    Returns:
        tuple: the questions that got both answers, in their order, with `responses` (two texts) and
        `is_completed` (two truth values); and for each of the others `question_id`, `turn` (1 or
        2), `error` and `reason`, as `codit synthesize` tells them.

    Raises:
        ValueError: see `decode.generate`.

    Source: two turns, temperatures by category: MT-Bench (arXiv 2306.05685) and FastChat.
    """
    chats = {n: [_said("user", row["turns"][0])] for n, row in enumerate(questions)}
    given: dict[int, list[decode.Response]] = {n: [] for n in chats}
    errors: dict[int, dict[str, Any]] = {}
    heat = {n: temperature(row) if by_category else None for n, row in enumerate(questions)}
    for turn in range(1, TURNS + 1):
        for value in dict.fromkeys(heat[n] for n in chats):
            asked = [n for n in chats if heat[n] == value]
            found = decode.generate(
                model,
                tokenizer,
                [chats[n] for n in asked],
                decoding if value is None else replace(decoding, temperature=value),
                ids=[f"{questions[n]['question_id']} turn {turn}" for n in asked],
                batch_size=batch_size,
                progress=progress,
            )
            for n, response in zip(asked, found, strict=True):
                given[n].append(response)
        for n in tuple(chats):
            last = given[n][-1]
            if last.error is not None:
                error, _, reason = last.error.partition(": ")
                told = {"question_id": questions[n]["question_id"], "turn": turn}
                errors[n] = {**told, "error": error, "reason": reason or error}
                del chats[n]
            elif turn < TURNS:
                next_asked = str(questions[n]["turns"][turn])
                chats[n] += [_said("assistant", last.text), _said("user", next_asked)]
    rows = [{**questions[n], **_answers(given[n])} for n in chats]
    return rows, [errors[n] for n in sorted(errors)]


def temperature(question: Mapping[str, Any]) -> float:
    """Return the temperature at which MT-Bench asks a question.

    Args:
        question: with a `category`.

    Returns:
        float: .7 for a category that MT-Bench does not name.

    Source: FastChat's `temperature_config`.
    """
    return TEMPERATURES.get(str(question.get("category") or ""), USUAL)


def _answers(given: Sequence[decode.Response]) -> dict[str, Any]:
    return {
        "responses": [response.text for response in given],
        "is_completed": [response.is_completed for response in given],
    }


def _said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _question(line: bytes, where: str) -> dict[str, Any]:
    """Return a line as a question, or say what it lacks."""
    try:
        row = json.loads(line)
        # What the answers' file could not hold is said now, not when all is answered.
        json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON: {error}. Write one object a line.") from None
    turns = row.get("turns") if isinstance(row, dict) else None
    texts = turns if isinstance(turns, list) else []
    if not _are_texts(texts) or not all(text.strip() for text in texts):
        raise ValueError(
            f"{where}: expected an object with `turns`, two texts; got {line[:60]!r}. "
            "Questions of one turn: codit synthesize."
        )
    name, category, reference = map(row.get, ("question_id", "category", "reference"))
    if name_of({"id": name}) is None:
        raise ValueError(
            f"{where}: expected a question_id, a whole number or a text; got {name!r:.60}. "
            "Number the questions."
        )
    if category is not None and not isinstance(category, str):
        raise ValueError(
            f"{where}: expected a text as category; got {category!r:.60}. Name one, or leave it "
            "out."
        )
    # An empty text stands where a turn has no reference, as in MT-Bench's own file.
    if reference is not None and not _are_texts(reference):
        raise ValueError(
            f"{where}: expected two texts as reference; got {reference!r:.60}. Give one for each "
            "turn, or none."
        )
    found: dict[str, Any] = row
    return found


def _are_texts(value: Any) -> bool:
    """Return whether a value is a text for each turn."""
    is_list = isinstance(value, list) and len(value) == TURNS
    return is_list and all(isinstance(text, str) for text in value)
