"""One request to a judge: whom to ask and how, what is tried again, and what a server may refuse.

Errors of the server are tried again after a growing wait with jitter, or after the wait that the
server asked for. Whatever way a server fails, it ends in a `Trouble` that says whether to wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from codit.judge_http import is_address
from codit.judge_prompts import Template, schema
from codit.judge_replies import Reading, message_of, read

PLACEHOLDER_KEY = "none"  # a local server wants no key, the client wants one (ours)
FATAL = {
    401: "the key was refused: set OPENAI_API_KEY",
    404: "no such model or address: look at model and base_url, which mostly ends in /v1",
}
SHOWN = 160  # characters of a server's words in a note


@dataclass(frozen=True, kw_only=True)
class Judge:
    """An LLM that judges: everything that may change what it says.

    The key is read from OPENAI_API_KEY; a server of one's own needs none.

    Args:
        model: as the server calls it.
        base_url: of an OpenAI-compatible server, such as http://localhost:8000/v1. None: the
            openai client's default. It is no part of the cache's key: a model may move.
        revision: of the judge's weights, in words of one's own; part of the key. Give one where
            servers use one name for different models.
        temperature: of the judge, at least 0. 0: greedy, one sample says all.
        max_tokens: budget of a reply, a reasoning model's thoughts included.
        reasoning_effort: low, medium, high, or what the server knows. None: not sent.
        seed: base of the seeds; each question, sample and attempt has one of its own.

    Source: temperature 1 and 8192 tokens: the paper's script, for gpt-oss-120b; the rest: ours.
    """

    model: str
    base_url: str | None = None
    revision: str | None = None
    temperature: float = 1.0
    max_tokens: int = 8192
    reasoning_effort: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.model or not 0 <= self.temperature < 100 or self.max_tokens < 1:
            raise ValueError(
                "expected a model's name, a temperature of at least 0 and max_tokens of at least "
                f"1; got {self.model!r}, {self.temperature} and {self.max_tokens}."
            )
        if self.base_url is not None and not is_address(self.base_url):
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
            with another seed.
        tries: requests of one attempt while the server does not reply, at least 1. The openai
            client waits between them: as long as the server asks, up to two minutes, or .5 s,
            doubled each time up to 8 s.
        max_failures: share of judgements without a value, in [0, 1], above which a run fails.
        price_in: of a million prompt tokens, in any currency. None: cost is not counted.
        price_out: of a million completion tokens.
        progress: show a bar.

    Source: 3 attempts: the paper's code; the rest: ours.
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


class Trouble(Exception):  # noqa: N818  (the server's, mostly not an error of ours)
    """No reply: what the server said instead, in one line.

    Args:
        refusal: where it is the request that the server does not take (400, 422), all it says.
    """

    def __init__(self, note: str, *, refusal: str | None = None) -> None:
        super().__init__(note)
        self.refusal = refusal


@contextlib.asynccontextmanager
async def connected(judge: Judge, asking: Asking) -> AsyncIterator[Connection]:
    """Open the way to a judge's server, and close it.

    Args:
        judge: whom to ask.
        asking: timeout, tries.

    Yields:
        Connection: for any number of requests at the same time.

    Raises:
        ValueError: the package openai is missing, or the environment's key or address is none.

    Source: ours.
    """
    try:
        import openai
    except ImportError as error:
        raise ValueError(
            f"expected the packages that ask a judge; got {error}. Install them: "
            'pip install -e ".[eval]"'
        ) from error
    key = os.environ.get("OPENAI_API_KEY", "").strip() or PLACEHOLDER_KEY
    if not all("!" <= character <= "~" for character in key):  # never shown, not in an error either
        raise ValueError(
            "expected a key of ASCII letters, digits and signs in OPENAI_API_KEY; got other "
            "characters or a gap. Set it again."
        )
    usual = os.environ.get("OPENAI_BASE_URL")  # the client's default, where it is set
    if judge.base_url is None and usual and not is_address(usual):
        raise ValueError(f"expected an address in OPENAI_BASE_URL; got {usual!r}. Set it again.")
    http = _http(asking.timeout)
    async with openai.AsyncOpenAI(
        api_key=key,
        base_url=judge.base_url,
        max_retries=asking.tries - 1,
        timeout=asking.timeout,
        http_client=http,
    ) as client:
        yield Connection(client, http, key, judge, asking)


def _http(timeout: float) -> Any:
    """Return a client to which a reply that drips past the timeout, or is no completion, is none.

    The openai client asks again then. Its own timeout counts from byte to byte, and to it every
    reply with status 200 is one.
    """
    import httpx2
    import openai

    class Http(openai.DefaultAsyncHttpxClient):
        calls = 0

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


class Connection:
    """The way to a judge; `connected` makes it. It learns what its server does not take."""

    def __init__(self, client: Any, http: Any, key: str, judge: Judge, asking: Asking) -> None:
        self._client, self._http, self._key = client, http, key
        self._judge, self._asking = judge, asking
        self._takes_schema, self._takes_seed, self._budget = True, True, "max_tokens"

    @property
    def calls(self) -> int:
        """Requests sent, those without a reply included."""
        return int(self._http.calls)

    async def reply(self, template: Template, prompt: str, *, seed: int) -> tuple[Reading, bool]:
        """Ask once; the client tries again while the server does not reply.

        What the server refuses to take is left out or renamed.

        Args:
            template: whose schema is asked for, unless the server has rejected one.
            prompt: the user's turn.
            seed: of the sampling.

        Returns:
            tuple: what the reply says, and whether a schema was asked for.

        Raises:
            Trouble: there is no reply after `tries` requests, or trying again is of no use.
            ValueError: the server refuses the key or does not know the model: no question can
                succeed.

        Source: ours.
        """
        with_schema, with_seed, budget = self._takes_schema, self._takes_seed, self._budget
        while True:
            request: dict[str, Any] = {budget: self._judge.max_tokens}
            if with_seed:
                request["seed"] = seed
            if with_schema:
                request["response_format"] = schema(template)
            try:
                reading = await self._send(template, prompt, request)
            except Trouble as trouble:
                if trouble.refusal is None:
                    raise
                if budget == "max_tokens" and "max_completion_tokens" in trouble.refusal:
                    budget = "max_completion_tokens"  # OpenAI's reasoning models take this name
                elif with_seed and re.search(r"\bseed\b", trouble.refusal):
                    with_seed = False  # some servers know another name for it, or none
                elif with_schema:
                    with_schema = False
                else:
                    raise
            else:
                # Only now is it known that the request failed for these and not for its prompt.
                self._takes_schema, self._budget = self._takes_schema and with_schema, budget
                self._takes_seed = self._takes_seed and with_seed
                return reading, with_schema

    async def _send(self, template: Template, prompt: str, request: dict[str, Any]) -> Reading:
        """Send one request, as often as the client tries, and read the reply."""
        import httpx2
        import openai

        if self._judge.reasoning_effort is not None:
            request = {**request, "reasoning_effort": self._judge.reasoning_effort}
        try:
            raw = await self._client.chat.completions.with_raw_response.create(
                model=self._judge.model,
                messages=[{"role": "user", "content": prompt}],
                temperature=self._judge.temperature,
                **request,
            )
            return read(json.loads(raw.text), template)
        except openai.APITimeoutError:
            raise Trouble(f"no whole reply within {self._asking.timeout:g} s") from None
        except openai.APIStatusError as error:
            note = f"HTTP {error.status_code}: {self._said(error.message)}"
            if error.status_code in FATAL:
                raise ValueError(f"{note}. {FATAL[error.status_code]}.") from None
            is_refusal = error.status_code in (400, 422)
            raise Trouble(note, refusal=error.message if is_refusal else None) from None
        except openai.APIError as error:
            cause = error.__cause__
            is_told = isinstance(cause, httpx2.DecodingError)  # by `_http`
            raise Trouble(self._said(cause if is_told else f"{error} {cause or ''}")) from None

    def _said(self, error: object) -> str:
        """Return a server's words in one short line, without the key."""
        text = str(error)
        if self._key != PLACEHOLDER_KEY:
            text = text.replace(self._key, "***")
        text = " ".join(text.split())
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
