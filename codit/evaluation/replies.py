"""What a judge's reply is worth: six states, and never a number that the judge did not write.

ok            a score from 1 to 10, or a verdict
parse_error   text without a valid object: prose, broken JSON, a score outside 1 to 10, "7/10"
empty         no text; a reasoning model may have thought all the same
truncated     the token budget ended the reply, whatever it holds
refused       the model or the server declined
api_error     no reply at all: what the server said instead (`client` gives it)

Values and choices without a source are ours.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from codit import files
from codit.evaluation.rubric import HIGHEST, LOWEST, VERDICTS, Template, fields

State: TypeAlias = Literal["ok", "parse_error", "empty", "truncated", "refused", "api_error"]
Schema: TypeAlias = Literal["honoured", "ignored", "rejected"]
QUOTED = re.compile(r"[0-9]{1,2}(\.[0-9]+)?")  # not \d: other scripts have digits too
DECODER = json.JSONDecoder(
    parse_constant=files.no_constant, object_pairs_hook=files.once, strict=False
)
THOUGHT = ("<think>", "</think>")  # around the thoughts of a model that no server takes apart
SHOWN = 80  # characters of a reply in a note


class NotACompletion(ValueError):  # noqa: N818  (what it is, not that it is an error)
    """A server's answer that is no chat completion: a web page, an error with status 200."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What a chat completion says; token counts are the server's, None where it gave none.

    Of the schema asked for: "honoured": the whole reply is that object; "ignored": it is not;
    "rejected": the server takes no schema, so none was asked for.
    """

    state: State
    value: float | str | None = None  # score or verdict; None unless the state is "ok"
    note: str = ""  # why there is no value
    reply: str = ""  # the text as it came
    schema: Schema = "ignored"
    model: str = ""  # as the server calls it
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


def read(body: Any, template: Template) -> Reading:
    """Read the JSON value that a server sent as a chat completion; NotACompletion where it is none.

    A refusal counts before anything else, then a spent token budget, then missing text: a value in
    a cut reply is not the judge's last word.
    """
    choice, message = message_of(body)
    usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    text = _text(message.get("content"))
    known: dict[str, Any] = {
        "reply": text,
        "model": _whole(body["model"]) if isinstance(body.get("model"), str) else "",
        "prompt_tokens": _count(usage.get("prompt_tokens")),
        "completion_tokens": _count(usage.get("completion_tokens")),
    }
    reason, refusal = choice.get("finish_reason"), message.get("refusal")
    if refusal or reason == "content_filter":
        note = _short(str(refusal or "the server's content filter"))
        return Reading(state="refused", note=note, **known)
    thought = _thought(message, usage, text)
    if reason == "length":
        note = "the token budget ended the reply" + (f"; {thought}" if thought else "")
        return Reading(state="truncated", note=note, **known)
    if not text.strip():
        return Reading(state="empty", note=thought or "no text", **known)
    value, is_pure, note = value_in(text, template)
    if value is None and note == "":
        return Reading(state="empty", note="thoughts without an answer", **known)
    state: State = "parse_error" if value is None else "ok"
    schema: Schema = "honoured" if is_pure else "ignored"
    return Reading(state=state, value=value, note=note, schema=schema, **known)


def message_of(body: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the first choice of a completion and its message; raise where it has none."""
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        raise NotACompletion(f"expected a chat completion; got {_short(json.dumps(body))}")
    return choice, message


def value_in(text: str, template: Template) -> tuple[float | str | None, bool, str]:
    """Return a text's score or verdict, whether it is nothing else, and why there is no value.

    The whole text is read as one JSON object; where it is none, the last valid object in it counts:
    after prose, in a code fence, after an earlier draft, and only after a model's marked thoughts:
    where nothing stands after these, the reason is "".
    """
    whole = _object(text)
    if whole is not None:
        value, reason = _valid(whole, template)
        return value, value is not None, reason
    opened, closed = (mark in text for mark in THOUGHT)
    if closed:
        text = text.rpartition(THOUGHT[1])[2]
    elif opened and text.lstrip().startswith(THOUGHT[0]):
        text = ""
    if not text.strip():
        return None, False, ""
    found: float | str | None = None
    reason = f"no JSON object in the reply, which begins {_short(text.strip())!r}"
    for candidate in _objects(text):
        answer, reason = _valid(candidate, template)
        found = found if answer is None else answer
    return found, False, reason if found is None else ""


def score_of(value: Any) -> float | None:
    """Return a number in [1, 10], in quotes too, or None: nothing is clipped, "7/10" is none."""
    if isinstance(value, str) and QUOTED.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if LOWEST <= value <= HIGHEST else None  # NaN is in no range


def verdict_of(value: Any) -> str | None:
    """Return "first", "second" or "tie", whatever its case, or None where it is none of them."""
    said = value.strip().lower() if isinstance(value, str) else None
    return said if said in VERDICTS else None


def _valid(value: dict[str, Any], template: Template) -> tuple[float | str | None, str]:
    """Return the answer in an object, or None and why the object is not valid."""
    wanted = fields(template)
    if missing := [name for name in wanted if name not in value]:
        return None, f"the object lacks {', '.join(missing)}"
    said = value[wanted[-1]]
    answer = score_of(said) if template.answer == "score" else verdict_of(said)
    return answer, "" if answer is not None else f"{template.answer} is {_short(repr(said))}"


def _object(text: str) -> dict[str, Any] | None:
    """Return a text that is one JSON object and nothing else."""
    try:
        value = DECODER.decode(text.strip())
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects in a text from left to right, those inside another left out."""
    start = text.find("{")
    while start >= 0:
        try:
            value, end = DECODER.raw_decode(text, start)
        except ValueError:
            end = start + 1
        except RecursionError:  # trying every level of it would take seconds
            return
        else:
            yield value
        start = text.find("{", end)


def _text(content: Any) -> str:
    """Return a message's text; some servers send it in parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        content = "".join(part for part in parts if isinstance(part, str))
    return _whole(content) if isinstance(content, str) else ""


def _thought(message: dict[str, Any], usage: dict[str, Any], text: str) -> str:
    """Say that a model reasoned, where it gave no text."""
    if text.strip():
        return ""
    for name in ("reasoning_content", "reasoning"):
        if isinstance(message.get(name), str) and message[name].strip():
            return f"it reasoned ({len(message[name])} characters) and gave no answer"
    tokens = _count(usage.get("completion_tokens"))
    return f"no text, though {tokens} tokens were counted" if tokens else ""


def _count(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63
    return value if is_count else None  # 2^63: what SQLite can hold


def _whole(text: str) -> str:
    """Return a text that can be stored: JSON's escapes can make half characters."""
    return text.encode("utf-8", "replace").decode()


def _short(text: str) -> str:
    text = _whole(text)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
