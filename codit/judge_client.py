"""Many questions to a judge: some at a time, stored as they come, none paid for twice.

A question is known by everything that may change the reply. What the cache knows is not asked;
a failed reply is asked again with another seed; what gets no reply is "api_error", which is not
stored, so that the next run asks it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm

from codit import judge_cache
from codit.judge_cache import Attempt, attempt_key, final, item_key
from codit.judge_prompts import Template, template_hash
from codit.judge_replies import Reading
from codit.judge_requests import Asking, Connection, Judge, Trouble, connected

GIVE_UP = 32  # questions one after another without a reply: the server is gone (ours)
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Question:
    """One thing to ask.

    Args:
        template: what the prompt was made from.
        prompt: the user's turn.
        sample: which of the k judgements of this prompt, from 0.
    """

    template: Template
    prompt: str
    sample: int = 0


@dataclass(frozen=True, kw_only=True)
class Judgement(Attempt):
    """What became of a question: the attempt that decided, or "api_error".

    Args:
        is_cached: whether this run found it and did not ask.
    """

    is_cached: bool = False


@dataclass(kw_only=True)
class Tally:
    """Counts of one run, and what it used; what the cache gave costs nothing again.

    Args:
        questions: judgements wanted; equal ones count each.
        cached: those that were known before.
        calls: requests sent, those without a reply included.
        replies: replies that came and were paid for.
        unmetered: replies without token counts: with any, tokens and cost are lower bounds.
        prompt_tokens: of the replies of this run.
        completion_tokens: of the replies of this run, thoughts included.
        cost: of the replies of this run; None without prices.
        seconds: of the run.
        states: judgements by state.
        schema: judgements by what became of the schema: honoured, ignored, rejected.
    """

    questions: int = 0
    cached: int = 0
    calls: int = 0
    replies: int = 0
    unmetered: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None
    seconds: float = 0.0
    states: dict[str, int] = field(default_factory=dict)
    schema: dict[str, int] = field(default_factory=dict)


def ask(
    questions: Sequence[Question], judge: Judge, *, cache: str | Path, asking: Asking
) -> tuple[list[Judgement], Tally]:
    """Ask what the cache does not know, and return a judgement for every question.

    Equal questions are asked once. A failed reply is asked again with a new seed until `attempts`
    of them are stored, those of earlier runs counted. Works inside a notebook's event loop too.

    Args:
        questions: in any order.
        judge: whom to ask.
        cache: SQLite file of all replies; made where there is none. Another process that asks into
            it is waited for.
        asking: concurrency, waits, prices.

    Returns:
        tuple: a judgement for each question in the given order, and the run's counts.

    Raises:
        ValueError: the package openai is missing, the server refuses the key or does not know
            the model, or the cache is another file.
        OSError: the cache cannot be read or written.

    Source: ours.
    """
    with judge_cache.opened(cache) as opened:
        return _run(_ask(questions, judge, opened, asking))


async def _ask(
    questions: Sequence[Question], judge: Judge, cache: judge_cache.Cache, asking: Asking
) -> tuple[list[Judgement], Tally]:
    start = time.monotonic()
    items = [item_of(judge, question) for question in questions]
    tally = Tally(questions=len(items), cost=None if asking.price_in is None else 0.0)
    known: dict[str, Judgement] = {}
    left: dict[str, Question] = {}
    for item, question in zip(items, questions, strict=True):
        if (attempt := final(cache.attempts(item), limit=asking.attempts)) is None:
            left[item] = question
        else:
            known[item] = Judgement(**asdict(attempt), is_cached=True)
    counts = {"total": len(known) + len(left), "initial": len(known)}
    shown = {"unit": " judged", "desc": "judge", "leave": None, "disable": not asking.progress}
    if left:
        with tqdm(**counts, **shown) as bar:
            async with connected(judge, asking) as connection:
                known |= await _Run(cache, connection, asking, tally, bar).all(left)
                tally.calls = connection.calls
    judgements = [known[item] for item in items]
    tally.cached = sum(judgement.is_cached for judgement in judgements)
    tally.states = dict(Counter(judgement.state for judgement in judgements))
    tally.schema = dict(Counter(one.schema for one in judgements if one.schema))
    tally.seconds = time.monotonic() - start
    return judgements, tally


class _Run:
    """Questions that are left, asked by `concurrency` workers."""

    def __init__(
        self,
        cache: judge_cache.Cache,
        connection: Connection,
        asking: Asking,
        tally: Tally,
        bar: Any,
    ) -> None:
        self.cache, self.connection, self.asking = cache, connection, asking
        self.tally, self.bar = tally, bar
        self.failed = 0
        self.silent = 0  # questions one after another that got no reply

    async def all(self, left: dict[str, Question]) -> dict[str, Judgement]:
        """Ask everything that is left."""
        done: dict[str, Judgement] = {}
        queue = iter(left.items())
        workers = [
            asyncio.create_task(self._work(queue, done))
            for _ in range(min(self.asking.concurrency, len(left)))
        ]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return done

    async def _work(
        self, queue: Iterator[tuple[str, Question]], done: dict[str, Judgement]
    ) -> None:
        for item, question in queue:
            done[item] = judgement = await self._judge(item, question)
            self.failed += judgement.state != "ok"
            cost = "" if self.tally.cost is None else f"cost {self.tally.cost:.4g}, "
            self.bar.set_postfix_str(f"{cost}{self.failed} failed", refresh=False)
            self.bar.update()

    async def _judge(self, item: str, question: Question) -> Judgement:
        """Ask until there is a value, or nothing is left to try."""
        while True:
            attempts = self.cache.attempts(item)
            if (known := final(attempts, limit=self.asking.attempts)) is not None:
                return Judgement(**asdict(known))
            if self.silent >= GIVE_UP:
                trouble: Trouble | None = Trouble(f"not asked: {GIVE_UP} before it had no reply")
            else:
                trouble = await self._attempt(item, question, len(attempts))
            if trouble is not None:
                return _unanswered(len(attempts), str(trouble))

    async def _attempt(self, item: str, question: Question, number: int) -> Trouble | None:
        """Ask once and store the reply; where there is none, return why."""
        start = time.monotonic()
        seed = int(attempt_key(item, number)[:8], 16) >> 1  # 31 bits: what every server takes
        try:
            reading, with_schema = await self.connection.reply(
                question.template, question.prompt, seed=seed
            )
        except Trouble as trouble:
            self.silent += trouble.refusal is None
            return trouble
        self.silent = 0
        seconds = round(time.monotonic() - start, 3)
        self.cache.store(item, _attempt(number, reading, with_schema, seconds))
        self._count(reading)
        return None

    def _count(self, reading: Reading) -> None:
        """Add a reply to what was used."""
        prompt, completion = reading.prompt_tokens, reading.completion_tokens
        self.tally.replies += 1
        self.tally.unmetered += prompt is None or completion is None
        self.tally.prompt_tokens += prompt or 0
        self.tally.completion_tokens += completion or 0
        if self.asking.price_in is not None and self.asking.price_out is not None:
            used = (prompt or 0) * self.asking.price_in + (completion or 0) * self.asking.price_out
            self.tally.cost = (self.tally.cost or 0.0) + used / 1e6


def item_of(judge: Judge, question: Question) -> str:
    """Return the name of a question in the cache.

    Args:
        judge: whom to ask; its address is no part of the name.
        question: what to ask.

    Returns:
        str: 64 hexadecimal digits.

    Source: ours.
    """
    said = asdict(judge) | {"temperature": float(judge.temperature)}  # 1 and 1.0 are one judge
    del said["base_url"]
    return item_key(
        **said,
        template=template_hash(question.template),
        prompt=question.prompt,
        sample=question.sample,
    )


def _attempt(number: int, reading: Reading, with_schema: bool, seconds: float) -> Attempt:
    said = asdict(reading)
    is_pure = said.pop("is_pure")
    schema = ("honoured" if is_pure else "ignored") if with_schema else "rejected"
    return Attempt(attempt=number, schema=schema, seconds=seconds, **said)


def _unanswered(number: int, note: str) -> Judgement:
    return Judgement(
        attempt=number,
        state="api_error",
        value=None,
        note=note,
        reply="",
        schema="",
        model="",
        prompt_tokens=None,
        completion_tokens=None,
        seconds=0.0,
    )


def _run(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end, also where an event loop runs already: in another thread."""
    if not _is_in_loop():
        return asyncio.run(work)
    started: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any] | None]] = []

    async def noted() -> Result:
        started.append((asyncio.get_running_loop(), asyncio.current_task()))
        return await work

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(asyncio.run, noted())
        try:
            return future.result()
        except KeyboardInterrupt:  # a notebook's stop button: end the thread too
            for loop, task in started:
                if task is not None:
                    loop.call_soon_threadsafe(task.cancel)
            raise


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
