"""A judge's server that fails in every way we know of, on loopback, at a port of its own.

`answer(request, number)` decides what each request gets; `FAULTS` holds the failures by name. What
hangs or drips ends when the server closes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeAlias
from unittest import mock

GOOD = {"strengths": "clear", "weaknesses": "short", "score": 8}
VERDICT = {"comparison": "the first is clearer", "verdict": "first"}


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What goes back: bytes, status, headers; seconds between bytes; whether it hangs (up)."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    kind: str = "application/json"
    drip: float = 0.0
    is_hanging: bool = False
    is_cut: bool = False


Answer: TypeAlias = Callable[[dict[str, Any], int], Sent]


def said(
    content: Any,
    *,
    finish: str | None = "stop",
    usage: tuple[int, int] | None = (100, 20),
    **message: Any,
) -> Sent:
    """A chat completion with this text."""
    body: dict[str, Any] = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "a-judge",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": content, **message},
            }
        ],
    }
    if usage is not None:
        prompt, completion = usage
        body["usage"] = {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        }
    return Sent(body=json.dumps(body).encode())


def scored(value: Any, **more: Any) -> Sent:
    """A completion whose text is the object asked for, with this score."""
    return said(json.dumps({**GOOD, "score": value}), **more)


def decided(verdict: str) -> Sent:
    return said(json.dumps({**VERDICT, "verdict": verdict}))


def failed(status: int, message: str = "no", **headers: str) -> Sent:
    """An HTTP error as servers send it."""
    body = json.dumps({"error": {"message": message, "type": "x", "code": None, "param": None}})
    return Sent(body=body.encode(), status=status, headers=headers)


TEXT = json.dumps(GOOD)
FAULTS: dict[str, Sent] = {
    "refusal in the message": said(None, refusal="I cannot judge this."),
    "content filter": said("", finish="content_filter"),
    "hangs": Sent(is_hanging=True),
    "hangs up": Sent(is_cut=True),
    "slow drip": Sent(body=said(TEXT).body, drip=0.02),
    "429 with Retry-After": failed(429, "slow down", **{"Retry-After": "0.05"}),
    "429 that asks for an hour": failed(429, "quota", **{"Retry-After": "3600"}),
    "500": failed(500),
    "503 as a web page": Sent(body=b"<html>busy</html>", status=503, kind="text/html"),
    "400": failed(400, "the context is too long"),
    "403": failed(403, "flagged"),
    "web page with status 200": Sent(body=b"<html>hello</html>", kind="text/html"),
    "error with status 200": Sent(body=b'{"error": {"message": "overloaded"}}'),
    "JSON that is no object": Sent(body=b"[1, 2]"),
    "no choice": Sent(body=b'{"choices": []}'),
    "cut body": Sent(body=said(TEXT).body[:-40]),
    "no content": said(None),
    "no content and no usage": said(None, usage=None),
    "white space": said(" \n"),
    "reasoning without content": said(None, reasoning_content="Let me think."),
    "thoughts and nothing after": said("<think>a {} draft</think>\n"),
    "token budget": said(TEXT, finish="length"),
    "reasoning ate the budget": said(None, finish="length", reasoning="Let me think."),
    "truncated JSON": said(TEXT[:-12]),
    "web page as content": said("<html><body>8</body></html>"),
    "wrong schema": said('{"rating": 8}'),
    "no analysis": said('{"score": 8}'),
    "a list": said("[8]"),
    "score above the range": scored(11),
    "score below the range": scored(0),
    "negative score": scored(-3),
    "score of 85": scored("85"),
    "score as a fraction": scored("7/10"),
    "score is true": scored(True),
    "score is null": scored(None),
    "score is NaN": said(TEXT.replace("8", "NaN")),
    "score in a list": scored([8]),
    "score in words": scored("eight"),
    "a key twice": said(TEXT[:-1] + ', "score": 3}'),
    "prose alone": said("I would give it an 8 out of 10."),
}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        request = json.loads(self.rfile.read(length))
        with self.server.lock:
            number = len(self.server.requests)
            self.server.requests.append(request)
            self.server.keys.append(self.headers["Authorization"])
        self._send(self.server.answer(request, number))

    def _send(self, sent: Sent) -> None:
        if sent.is_hanging:
            self.server.closing.wait(20)
        if sent.is_hanging or sent.is_cut:
            self.close_connection = True
            return
        self.send_response(sent.status)
        self.send_header("Content-Type", sent.kind)
        self.send_header("Content-Length", str(len(sent.body)))
        for name, value in sent.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if not sent.drip:
            self.wfile.write(sent.body)
            return
        for place in range(len(sent.body)):
            self.wfile.write(sent.body[place : place + 1])
            if self.server.closing.wait(sent.drip):
                return

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """A server that remembers its requests; `answer` may be replaced at any time."""

    daemon_threads = True

    def __init__(self, answer: Answer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.lock, self.closing = threading.Lock(), threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is none of the server's faults."""


@contextmanager
def serving(answer: Answer | Sent) -> Iterator[Server]:
    """A running server that answers so; a client in this process asks it again without delay."""
    server = Server(answer if callable(answer) else lambda request, number: answer)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        with mock.patch("openai._base_client.INITIAL_RETRY_DELAY", 0.01):
            yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
