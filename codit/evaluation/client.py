"""Many questions to an OpenAI-compatible server: some at a time, stored as they come.

A question is known by everything that may change the reply. What the cache knows is not asked; a
failed reply is asked again with another seed; what gets no reply is "api_error", which is not
stored, so that the next run asks it. Values and choices without a source are ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from codit.evaluation import reply_cache
from codit.evaluation.replies import Reading, message_of, read
from codit.evaluation.reply_cache import Attempt, Cache, attempt_key, final, item_key
from codit.evaluation.rubric import Template, fill, schema, template_hash

GIVE_UP = 32  # questions one after another without a reply: the server is gone
PLACEHOLDER_KEY = "none"  # a local server wants no key, the client wants one
FATAL = {
    401: "the key was refused: set OPENAI_API_KEY",
    404: "no such model or address: look at model and base_url, which mostly ends in /v1",
}
SHOWN = 160  # characters of a server's words in a note
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Judge:
    """An LLM that judges: everything that may change what it says.

    The key is read from OPENAI_API_KEY; a server of one's own needs none. A field that comes in
    later says in LATE which value was meant before, so that no reply is paid for again.

    Args:
        model: as the server calls it.
        base_url: of an OpenAI-compatible server, such as http://localhost:8000/v1. None: the
            openai client's default. It is no part of the cache's key: a model may move.
        revision: of the judge's weights, in words of one's own, where servers use one name for
            different models; part of the key.
        temperature: of the judge, at least 0. 0: greedy, one sample says all. 1: the paper's.
        max_tokens: budget of a reply, a reasoning model's thoughts included. 8192: the paper's.
        reasoning_effort: low, medium, high, or what the server knows. None: not sent.
        seed: base of the seeds; each question, sample and attempt has one of its own.
    """

    model: str
    base_url: str | None = None
    revision: str | None = None
    temperature: float = 1.0
    max_tokens: int = 8192
    reasoning_effort: str | None = None
    seed: int = 0
    LATE: ClassVar[dict[str, Any]] = {}

    def __post_init__(self) -> None:
        if not self.model or not 0 <= self.temperature < 100 or self.max_tokens < 1:
            raise ValueError(
                "expected a model's name, a temperature of at least 0 and max_tokens of at least "
                f"1; got {self.model!r}, {self.temperature} and {self.max_tokens}."
            )
        if self.base_url is not None and not _is_address(self.base_url):
            raise ValueError(
                f"expected a base_url such as http://localhost:8000/v1; got {self.base_url!r}."
            )


@dataclass(frozen=True, kw_only=True)
class Asking:
    """How a judge is asked: what changes time and money and no judgement.

    Args:
        concurrency: questions asked at the same time, at least 1.
        timeout: seconds that a whole reply may take, from request to last byte.
        attempts: replies paid for one question at most, over all runs: a failed one is asked again
            with another seed. 3: the paper's.
        tries: requests of one attempt while the server does not reply, at least 1. The openai
            client waits between them: as long as the server asks, up to two minutes, or .5 s,
            doubled each time up to 8 s.
        max_failures: share of judgements without a value, in [0, 1], above which a run fails.
        price_in: of a million prompt tokens, in any currency. None: cost is not counted.
        price_out: of a million completion tokens.
        progress: show a bar.
    """

    concurrency: int = 16
    timeout: float = 600.0
    attempts: int = 3
    tries: int = 5
    max_failures: float = 0.01
    price_in: float | None = None
    price_out: float | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        counts = (self.concurrency, self.attempts, self.tries)
        if min(counts) < 1 or not self.timeout > 0:  # said so that NaN is refused
            raise ValueError(
                "expected concurrency, attempts and tries of at least 1 and a timeout above 0; got "
                f"{self}."
            )
        if not 0 <= self.max_failures <= 1:
            raise ValueError(f"max_failures is a share in [0, 1]; got {self.max_failures}.")
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("expected both price_in and price_out; got one. Give the other too.")
        if not all(price is None or price >= 0 for price in (self.price_in, self.price_out)):
            raise ValueError("expected prices of at least 0; got others.")

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Return what tokens cost; None without prices."""
        if self.price_in is None or self.price_out is None:
            return None
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6


@dataclass(frozen=True, kw_only=True)
class Question:
    """One thing to ask."""

    template: Template
    prompt: str
    sample: int = 0  # which of the k judgements of this prompt
    label: dict[str, Any] = field(default_factory=dict)  # id, order, ...: for the table alone

    @classmethod
    def of(cls, template: Template, values: dict[str, str], label: dict[str, Any]) -> Question:
        """Return the question of a template that is filled in."""
        return cls(template=template, prompt=fill(template, values), label=label)


@dataclass(frozen=True, kw_only=True)
class Judgement(Attempt):
    """What became of a question: the attempt that decided, or "api_error"."""

    is_cached: bool = False  # this run found it and did not ask


@dataclass(kw_only=True)
class Tally:
    """Counts of one run, and what it used; what the cache gave costs nothing again."""

    questions: int = 0  # judgements wanted; equal ones count each
    cached: int = 0  # those that were known before
    calls: int = 0  # requests sent, those without a reply included
    replies: int = 0  # that came and were paid for
    unmetered: int = 0  # replies without token counts: with any, tokens and cost are lower bounds
    prompt_tokens: int = 0
    completion_tokens: int = 0  # thoughts included
    cost: float | None = None  # None without prices
    seconds: float = 0.0
    states: dict[str, int] = field(default_factory=dict)  # judgements by state
    schema: dict[str, int] = field(default_factory=dict)  # honoured, ignored, rejected


def ask(
    questions: Sequence[Question], judge: Judge, *, cache: str | Path, asking: Asking
) -> tuple[list[Judgement], Tally]:
    """Ask what the cache does not know; return a judgement for every question, and the counts.

    Equal questions are asked once. Works inside a notebook's event loop too. ValueError: openai is
    missing, the server refuses the key or does not know the model, or the cache is another file.
    OSError: the cache cannot be read or written.
    """
    start = time.monotonic()
    items = [item_of(judge, question) for question in questions]
    tally = Tally(questions=len(items), cost=asking.cost(0, 0))
    known: dict[str, Judgement] = {}
    left: dict[str, Question] = {}
    with reply_cache.opened(cache) as opened:
        for item, question in zip(items, questions, strict=True):
            if (attempt := final(opened.attempts(item), limit=asking.attempts)) is None:
                left[item] = question
            else:
                known[item] = Judgement(**asdict(attempt), is_cached=True)
        counts = {"total": len(known) + len(left), "initial": len(known)}
        shown = {"unit": " judged", "desc": "judge", "leave": None, "disable": not asking.progress}
        if left:
            with tqdm(**counts, **shown) as bar:
                known |= _waited_for(_Run(opened, judge, asking, tally, bar).all(left))
    judgements = [known[item] for item in items]
    tally.cached = sum(judgement.is_cached for judgement in judgements)
    tally.states = dict(Counter(judgement.state for judgement in judgements))
    tally.schema = dict(Counter(one.schema for one in judgements if one.schema))
    tally.seconds = time.monotonic() - start
    return judgements, tally


def item_of(judge: Judge, question: Question) -> str:
    """Return the name of a question in the cache; the judge's address is no part of it."""
    said = asdict(judge) | {"temperature": float(judge.temperature)}  # 1 and 1.0 are one judge
    late = {"base_url": judge.base_url, **judge.LATE}
    return item_key(
        **{name: value for name, value in said.items() if name not in late or late[name] != value},
        template=template_hash(question.template),
        prompt=question.prompt,
        sample=question.sample,
    )


class Trouble(Exception):  # noqa: N818  (the server's, mostly not an error of ours)
    """No reply: what the server said instead, in one line."""

    def __init__(self, note: str, *, refusal: str | None = None) -> None:
        super().__init__(note)
        self.refusal = refusal  # all it says where it does not take the request (400, 422)


class _Run:
    """Questions that are left, asked by `concurrency` workers."""

    def __init__(
        self, cache: Cache, judge: Judge, asking: Asking, tally: Tally, bar: tqdm[Any]
    ) -> None:
        self.cache, self.asking, self.tally, self.bar = cache, asking, tally, bar
        self.server = _Server(judge, asking)
        self.failed = 0
        self.silent = 0  # questions one after another that got no reply

    async def all(self, left: dict[str, Question]) -> dict[str, Judgement]:
        done: dict[str, Judgement] = {}
        queue = iter(left.items())
        try:
            async with self.server.client, asyncio.TaskGroup() as workers:
                for _ in range(min(self.asking.concurrency, len(left))):
                    workers.create_task(self.work(queue, done))
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        self.tally.calls = self.server.http.calls
        return done

    async def work(self, queue: Iterator[tuple[str, Question]], done: dict[str, Judgement]) -> None:
        for item, question in queue:
            done[item] = judgement = await self.judge(item, question)
            self.failed += judgement.state != "ok"
            cost = "" if self.tally.cost is None else f"cost {self.tally.cost:.4g}, "
            self.bar.set_postfix_str(f"{cost}{self.failed} failed", refresh=False)
            self.bar.update()

    async def judge(self, item: str, question: Question) -> Judgement:
        """Ask until there is a value, or nothing is left to try."""
        while True:
            attempts = self.cache.attempts(item)
            if (known := final(attempts, limit=self.asking.attempts)) is not None:
                return Judgement(**asdict(known))
            try:
                if self.silent >= GIVE_UP:
                    raise Trouble(f"not asked: {GIVE_UP} before it had no reply")
                await self.attempt(item, question, len(attempts))
            except Trouble as trouble:
                self.silent += trouble.refusal is None
                return Judgement(attempt=len(attempts), state="api_error", note=str(trouble))

    async def attempt(self, item: str, question: Question, number: int) -> None:
        """Ask once, store the reply, and add it to what was used."""
        start = time.monotonic()
        seed = int(attempt_key(item, number)[:8], 16) >> 1  # 31 bits: what every server takes
        reading = await self.server.reply(question, seed=seed)
        self.silent = 0
        seconds = round(time.monotonic() - start, 3)
        self.cache.store(item, Attempt(attempt=number, seconds=seconds, **asdict(reading)))
        prompt, completion = reading.prompt_tokens, reading.completion_tokens
        self.tally.replies += 1
        self.tally.unmetered += prompt is None or completion is None
        self.tally.prompt_tokens += prompt or 0
        self.tally.completion_tokens += completion or 0
        self.tally.cost = self.asking.cost(self.tally.prompt_tokens, self.tally.completion_tokens)


class _Server:
    """The way to a judge. It learns what its server does not take."""

    def __init__(self, judge: Judge, asking: Asking) -> None:
        try:
            import openai
        except ImportError as error:
            raise ValueError(
                f"expected the packages that ask a judge; got {error}. Install them: "
                'pip install -e ".[eval]"'
            ) from error
        self.key = os.environ.get("OPENAI_API_KEY", "").strip() or PLACEHOLDER_KEY
        if not all("!" <= character <= "~" for character in self.key):  # never shown
            raise ValueError(
                "expected a key of ASCII letters, digits and signs in OPENAI_API_KEY; got other "
                "characters or a gap. Set it again."
            )
        usual = os.environ.get("OPENAI_BASE_URL")  # the client's default, where it is set
        if judge.base_url is None and usual and not _is_address(usual):
            raise ValueError(
                f"expected an address in OPENAI_BASE_URL; got {usual!r}. Set it again."
            )
        self.judge, self.http = judge, _http(asking.timeout)
        self.client = openai.AsyncOpenAI(
            api_key=self.key,
            base_url=judge.base_url,
            max_retries=asking.tries - 1,
            timeout=asking.timeout,
            http_client=self.http,
        )
        self.lacks: frozenset[str] = frozenset()  # fields of a request that the server refuses

    async def reply(self, question: Question, *, seed: int) -> Reading:
        """Ask once. Trouble: no reply after `tries` requests; ValueError: none to any question."""
        lacks = self.lacks
        while True:
            budget = "max_completion_tokens" if "max_tokens" in lacks else "max_tokens"
            fields = {
                budget: self.judge.max_tokens,
                "seed": seed,
                "response_format": schema(question.template),
            }
            request = {name: value for name, value in fields.items() if name not in lacks}
            try:
                reading = await self.send(question, request)
            except Trouble as trouble:
                if (refused := _refused(request, trouble.refusal)) is None:
                    raise
                lacks |= {refused}
            else:
                # Only now is it known that the request failed for these and not for its prompt.
                self.lacks |= lacks
                return (
                    reading if "response_format" in request else replace(reading, schema="rejected")
                )

    async def send(self, question: Question, request: dict[str, Any]) -> Reading:
        """Send a request, as often as the client tries, and read the reply."""
        import httpx2
        import openai

        if self.judge.reasoning_effort is not None:
            request = {**request, "reasoning_effort": self.judge.reasoning_effort}
        try:
            raw = await self.client.chat.completions.with_raw_response.create(
                model=self.judge.model,
                messages=[{"role": "user", "content": question.prompt}],
                temperature=self.judge.temperature,
                **request,
            )
        except openai.APITimeoutError:
            raise Trouble(f"no whole reply within {self.client.timeout:g} s") from None
        except openai.APIStatusError as error:
            note = f"HTTP {error.status_code}: {self.short(error.message)}"
            if error.status_code in FATAL:
                raise ValueError(f"{note}. {FATAL[error.status_code]}.") from None
            is_refusal = error.status_code in (400, 422)
            raise Trouble(note, refusal=error.message if is_refusal else None) from None
        except openai.APIError as error:
            cause = error.__cause__
            is_told = isinstance(cause, httpx2.DecodingError)  # by `_http`
            raise Trouble(self.short(cause if is_told else f"{error} {cause or ''}")) from None
        return read(json.loads(raw.text), question.template)

    def short(self, error: object) -> str:
        """Return a server's words in one short line, without the key."""
        text = str(error)
        if self.key != PLACEHOLDER_KEY:
            text = text.replace(self.key, "***")
        text = " ".join(text.split())
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _refused(request: Mapping[str, Any], refusal: str | None) -> str | None:
    """Return the field that a refusal is about; without a word of one, the schema is tried."""
    if refusal is None:
        return None
    if "max_tokens" in request and "max_completion_tokens" in refusal:
        return "max_tokens"  # OpenAI's reasoning models take the other name
    if "seed" in request and re.search(r"\bseed\b", refusal):
        return "seed"  # some servers know another name for it, or none
    return "response_format" if "response_format" in request else None


def _http(timeout: float) -> Any:
    """Return a client to which a reply that drips past the timeout, or is no completion, is none.

    Openai's own timeout counts from byte to byte, and to it every reply with status 200 is one.
    """
    import httpx2
    import openai

    class Http(openai.DefaultAsyncHttpxClient):
        calls = 0  # requests sent, those without a reply included

        async def send(self, request: httpx2.Request, **how: Any) -> httpx2.Response:
            self.calls += 1
            try:
                async with asyncio.timeout(timeout):
                    response = await super().send(request, **how)
                if response.is_success:
                    message_of(json.loads(response.text))
            except TimeoutError:
                raise httpx2.ReadTimeout("not whole", request=request) from None
            except (ValueError, RecursionError) as error:
                note = f"the reply is no chat completion: {error}"
                raise httpx2.DecodingError(note, request=request) from None
            return response

    return Http()


def _waited_for(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine to its end, in another thread: a notebook's own runs an event loop."""
    with contextlib.closing(asyncio.new_event_loop()) as loop, ThreadPoolExecutor(1) as pool:
        task = loop.create_task(work)
        future = pool.submit(loop.run_until_complete, task)
        try:
            return future.result()
        except KeyboardInterrupt:  # Ctrl-C, a notebook's stop button: end the thread too
            loop.call_soon_threadsafe(task.cancel)
            raise


def _is_address(url: str) -> bool:
    """Return whether a server can be asked there; a typing error would be tried again and again."""
    try:
        parts = urlsplit(url)
        port = parts.port  # raises where it is none
    except ValueError:
        return False
    is_whole = not any(character.isspace() for character in url)
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and is_whole
