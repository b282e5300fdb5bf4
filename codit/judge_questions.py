"""What each way of judging asks: the prompts, what each is about, and the draws of each.

The run and the look before it make their questions here, so that both refuse the same rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from codit import judge_prompts, judge_rows
from codit.judge_client import Question
from codit.judge_prompts import Template
from codit.judge_requests import Judge
from codit.judge_rows import Answered, Rows


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One thing to be judged.

    Args:
        label: what it is about: id, sample, order, lengths; columns of the judgements.
        template: what the prompt was made from.
        prompt: the user's turn.
    """

    label: dict[str, Any]
    template: Template
    prompt: str


def of_rows(rows: Sequence[Answered]) -> list[Asked]:
    """Return one question for each response: how good is it?

    Args:
        rows: from `judge_rows.answered`.

    Returns:
        list[Asked]: labelled with `id`, `sample` and `length` (characters).

    Source: the paper's judge sees the query and the response.
    """
    asked = []
    for row in rows:
        values = {"instruction": row.instruction, "response": row.response}
        label = {"id": row.id, "sample": row.sample, "length": len(row.response)}
        prompt = judge_prompts.fill(judge_prompts.SINGLE, values)
        asked.append(Asked(label=label, template=judge_prompts.SINGLE, prompt=prompt))
    return asked


def of_arms(first: Rows, second: Rows) -> tuple[list[Asked], int]:
    """Return two questions for each pair of responses, one in each order: which is better?

    Args:
        first: an arm's rows; see `judge_rows.answered`.
        second: the other's.

    Returns:
        tuple: questions labelled with `id`, `sample`, `length`, `length_baseline` and `order`
        ("forward": the first arm's stands first; "swapped"); rows without a partner.

    Raises:
        ValueError: as `judge_rows.answered` and `judge_rows.pairs`.

    Source: both orders: MT-Bench (arXiv 2306.05685).
    """
    pairs, left_out = judge_rows.pairs(judge_rows.answered(first), judge_rows.answered(second))
    template, asked = judge_prompts.PAIRWISE, []
    for one, other in pairs:
        for order, (a, b) in (("forward", (one, other)), ("swapped", (other, one))):
            values = {"instruction": a.instruction, "first": a.response, "second": b.response}
            lengths = {"length": len(one.response), "length_baseline": len(other.response)}
            label = {"id": one.id, "sample": one.sample, **lengths, "order": order}
            prompt = judge_prompts.fill(template, values)
            asked.append(Asked(label=label, template=template, prompt=prompt))
    return asked, left_out


def of_first(rows: Rows, *, n: int) -> tuple[list[list[Answered]], list[Asked]]:
    """Return the first n responses to each prompt, and what to ask about them.

    Args:
        rows: n or more responses to each id, numbered by `sample`.
        n: at least 1; of 1 nothing needs to be asked.

    Returns:
        tuple: the responses of each id, ids in the order of their first row; the questions, as
        `of_rows` labels them.

    Raises:
        ValueError: fewer than n responses to an id, or as `judge_rows.answered`.

    Source: ours.
    """
    groups: dict[str, list[Answered]] = defaultdict(list)
    for row in judge_rows.answered(rows):
        groups[row.id].append(row)
    short = [name for name, group in groups.items() if len(group) < n]
    if n < 1 or short:
        raise ValueError(
            f"expected n of at least 1 and as many responses to every id; got n = {n}, and "
            f"{len(short)} ids with fewer{f', the first {short[0]!r}' if short else ''}. "
            "Synthesize with --n-samples."
        )
    kept = [sorted(group, key=lambda row: row.sample)[:n] for group in groups.values()]
    return kept, of_rows([row for group in kept for row in group]) if n > 1 else []


def of_conversations(rows: Rows, *, reference_categories: Collection[str]) -> list[Asked]:
    """Return two questions for each conversation, one for each turn: how good is the answer?

    Args:
        rows: see `judge_rows.turns`.
        reference_categories: judged with their reference. Empty: none needs one.

    Returns:
        list[Asked]: labelled with `id`, `category` and `turn`.

    Raises:
        ValueError: as `judge_rows.turns`.

    Source: MT-Bench (arXiv 2306.05685).
    """
    return [
        Asked(
            label={"id": turn.id, "category": turn.category, "turn": turn.turn},
            template=turn.template,
            prompt=turn.prompt,
        )
        for turn in judge_rows.turns(rows, reference_categories=reference_categories)
    ]


def drawn(
    asked: Sequence[Asked], judge: Judge, *, samples: int
) -> list[tuple[dict[str, Any], Question]]:
    """Return k questions for each thing to be judged.

    Args:
        asked: from one of the functions above.
        judge: its temperature decides whether several draws make sense.
        samples: k.

    Returns:
        list[tuple]: label, with `draw` (0 to k - 1) and `template` (its name), and question.

    Raises:
        ValueError: samples below 1, or above 1 where all draws would be equal.

    Source: ours.
    """
    if samples < 1 or (samples > 1 and judge.temperature == 0):
        raise ValueError(
            "samples must be at least 1, and 1 where the temperature is 0, as all would be equal; "
            f"got {samples} at temperature {judge.temperature:g}."
        )
    return [
        (
            {**one.label, "draw": draw, "template": one.template.name},
            Question(template=one.template, prompt=one.prompt, sample=draw),
        )
        for one in asked
        for draw in range(samples)
    ]
