"""Look before you judge: how many questions, how long, at what cost at most. Nothing is asked."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from codit import judge_cache, judge_client, judge_questions, judge_rows
from codit.judge_prompts import REFERENCE_CATEGORIES
from codit.judge_questions import Asked
from codit.judge_requests import Asking, Judge
from codit.judge_rows import Rows

CHARACTERS = 4  # of a token: usual for English prose; other scripts take more tokens (ours)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run would ask.

    Args:
        questions: judgements wanted; equal ones count each.
        cached: those that the cache knows.
        to_ask: questions that would be asked; equal ones once.
        characters: of the prompts of `to_ask`.
        prompt_tokens: of the same, estimated from their characters.
        reply_tokens: of one reply to each, at most.
        replies: paid replies to a question at most, where every one but the last fails.
        cost: of one reply to each at most; None without prices. Prompt tokens are the estimate.
    """

    questions: int
    cached: int
    to_ask: int
    characters: int
    prompt_tokens: int
    reply_tokens: int
    replies: int
    cost: float | None


def questions(
    data: Rows,
    *,
    against: Rows | None = None,
    best_of: int | None = None,
    conversations: bool = False,
    reference_categories: Collection[str] = REFERENCE_CATEGORIES,
) -> list[Asked]:
    """Return what `judge.score`, `compare`, `best_of` or `conversations` would ask.

    Args:
        data: the rows.
        against: another arm: as `judge.compare`.
        best_of: n: as `judge.best_of`.
        conversations: as `judge.conversations`.
        reference_categories: of conversations.

    Returns:
        list[Asked]: each once, whatever the number of draws.

    Raises:
        ValueError: as the function meant, before it asks.

    Source: ours.
    """
    if against is not None:
        return judge_questions.of_arms(data, against)[0]
    if best_of is not None:
        return judge_questions.of_first(data, n=best_of)[1]
    if conversations:
        return judge_questions.of_conversations(data, reference_categories=reference_categories)
    return judge_questions.of_rows(judge_rows.answered(data))


def plan(
    asked: Sequence[Asked],
    judge: Judge,
    *,
    cache: str | Path,
    samples: int = 1,
    asking: Asking | None = None,
) -> Plan:
    """Return what a run would ask, and what it would cost at most.

    prompt tokens = characters / 4, an estimate; reply tokens = max_tokens * questions
    cost = (prompt tokens * price_in + reply tokens * price_out) / 10^6

    Args:
        asked: from `questions`.
        judge: whom it would ask; its address is not used.
        cache: of the run. Where there is none, none is made.
        samples: judgements of each thing.
        asking: attempts and prices of the run. None: the defaults.

    Returns:
        Plan: with counts of this moment; another run may fill the cache.

    Raises:
        ValueError: samples do not fit, or the cache is another file.
        OSError: the cache cannot be read.

    Source: ours.
    """
    asking = Asking() if asking is None else asking
    drawn = [question for _, question in judge_questions.drawn(asked, judge, samples=samples)]
    items = [judge_client.item_of(judge, question) for question in drawn]
    left = {item: len(one.prompt) for item, one in zip(items, drawn, strict=True)}
    if Path(cache).exists():
        with judge_cache.opened(cache, is_asking=False) as known:
            final = partial(judge_cache.final, limit=asking.attempts)
            left = {k: n for k, n in left.items() if final(known.attempts(k)) is None}
    prompt_tokens = sum(-(-n // CHARACTERS) for n in left.values())
    reply_tokens = judge.max_tokens * len(left)
    cost = None
    if asking.price_in is not None and asking.price_out is not None:
        cost = (prompt_tokens * asking.price_in + reply_tokens * asking.price_out) / 1e6
    return Plan(
        questions=len(items),
        cached=sum(item not in left for item in items),
        to_ask=len(left),
        characters=sum(left.values()),
        prompt_tokens=prompt_tokens,
        reply_tokens=reply_tokens,
        replies=asking.attempts,
        cost=cost,
    )


def table(found: Plan) -> str:
    """Return a plan as lines for people.

    Args:
        found: from `plan`.

    Returns:
        str: questions, prompts, replies and cost, one a line, assumptions named.

    Source: ours.
    """
    most = found.replies
    failing = f"; {most} times that where each question fails until its last attempt"
    equal = found.questions - found.cached - found.to_ask
    lines = {
        "judgements": f"{found.questions:,}",
        "cached": f"{found.cached:,}",
        "to ask": f"{found.to_ask:,}" + (f" (equal questions once: {equal:,} less)" * (equal > 0)),
        "prompts": f"{found.characters:,} characters, about {found.prompt_tokens:,} tokens "
        f"(estimate: {CHARACTERS} characters a token)",
        "replies": f"at most {found.reply_tokens:,} tokens{failing if most > 1 else ''}",
    }
    if found.cost is not None:
        more = f", at most {most * found.cost:.4g} with {most} attempts each" if most > 1 else ""
        lines["cost"] = f"at most {found.cost:.4g} with one reply each{more}"
    return "\n".join(f"{name:<11} {text}" for name, text in lines.items())
