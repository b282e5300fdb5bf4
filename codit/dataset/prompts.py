"""Where prompts come from: JSON lines, rows in memory, public chat collections.

Every source gives the same rows. What cannot be asked is set aside with a reason instead of
stopping a long run; only what makes the whole input ambiguous, repeated ids, is an exception.

Every command reads a row's conversation here. The layouts that are understood:

    instruction, or prompt     one user turn
    instruction and input      Alpaca's: one user turn, an empty line between the two, as in the
                               template of Stanford Alpaca's README; its headings are for a base
                               model, here a chat template does their work
    messages                   OpenAI's role and content; content may be parts of type "text",
                               joined as chat templates write them, with nothing in between
    conversations              ShareGPT's from (human, gpt, system) and value; also `conversation`
    system, or system_prompt   the system turn, beside any of these
    response, output, or completion    the answer, where the last turn is none

What stands in two places must be equal. Any other field that carries content makes the row a bad
one, with the field's name, unless `METADATA` lists it: half of a question is never asked. Values
and choices without a source are ours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from codit import recipes
from codit.files import read_lines

BAD_ROW = "bad row"
ROLES = ("system", "user", "assistant")
SHAREGPT = {"human": "user", "gpt": "assistant"}
TURNS = ("messages", "conversations", "conversation")
TEXTS = ("instruction", "prompt")
SYSTEMS = ("system", "system_prompt")
ANSWERS = ("response", "output", "completion")
READ = frozenset((*TURNS, *TEXTS, "input", *SYSTEMS, *ANSWERS))
METADATA = frozenset(  # what rows and turns say of themselves, to nobody who answers
    "id sample line score res_metadata is_completed "  # our own files
    "family constraints references rivals ideal split reference state template "
    "key uuid hash idx index question_id prompt_id conversation_id conversation_hash "  # names
    "turn_identifier source dataset category subset language lang model generator timestamp date "
    "created url license tags topic task difficulty quality country header hashed_ip "
    "openai_moderation detailed_moderation instruction_id_list kwargs".split()
)
LONGEST = 14_000  # bits of an integer id; Python writes no more than 4,300 digits
SHOWN = 60  # characters of a value in a reason

Rows = str | Path | recipes.File | recipes.HubPrompts | Iterable[Mapping[str, Any]]


class Collection(NamedTuple):
    """A public collection of conversations: its name on the Hub and the columns that are read."""

    repository: str
    id: str
    turns: str
    language: str | None  # of the rows that are kept; None: there is no such column


# Of every conversation the first user turn is taken, and the first of equal prompts.
COLLECTIONS = {
    # Named by the paper's model cards; how the authors came to their 250,333 instructions was not
    # found. It is gated: accept its licence on the Hub first. Names in it are masked as NAME_1.
    "lmsys": Collection("lmsys/lmsys-chat-1m", "conversation_id", "conversation", "English"),
    # The paper's example file is taken from it.
    "wildchat": Collection("allenai/WildChat-1M", "conversation_hash", "conversation", "English"),
    # The paper's Olmo scripts read 100,000 of its rows; which ones was not found.
    "dolci": Collection("allenai/Dolci-Instruct-SFT", "id", "messages", None),
}


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """Input rows that can be asked, and those that cannot.

    `rows` are dicts with `id` (text, or None where the input has none), `messages` (role and
    content, the last one a user's), `instruction` (the last user turn), `line` (of the input, from
    1) and, of a row with an `input`, `definition` (what to do with it); `errors` are dicts with
    `id`, `line`, `error` (what kind) and `reason` (a sentence).
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)


def load(source: Rows, *, limit: int | None = None) -> Prompts:
    """Read prompts from whatever names them.

    Args:
        source: a path to JSON lines, `recipes.File`, `recipes.HubPrompts`, or rows in memory: dicts
            with a prompt in one of the layouts above, and `id` where there is one.
        limit: only the first `limit` input rows; None: all.

    Returns:
        Prompts: usable rows in input order, and the errors; `line` counts the file's lines, or the
        rows.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no row, ids repeat, or limit is less than 1.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1; got {limit}. Leave it out to read all rows.")
    if isinstance(source, recipes.HubPrompts):
        source = hub(source)
    path = source.path if isinstance(source, recipes.File) else source
    if isinstance(path, (str, Path)):
        return _collect(read_lines(path, keep_bad=True), origin=str(path), limit=limit)
    if not isinstance(path, Iterable):
        raise ValueError(
            f"expected a file of prompts, rows or HubPrompts; got {type(path).__name__}. Give its "
            "rows; those of the micro world are codit.world.prompts(recipe)."
        )
    return _collect(enumerate(path, start=1), origin="the rows given", limit=limit)


def check_unique(ids: Iterable[str]) -> None:
    """Raise ValueError, naming them, where ids repeat: an id is a word of the noise key."""
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        more = ", ..." if len(repeated) > 10 else ""
        raise ValueError(
            f"expected every id once; {len(repeated)} occur more than once: "
            f"{', '.join(repeated[:10])}{more}. Rename them, or leave all ids out."
        )


def hub(recipe: recipes.HubPrompts) -> list[dict[str, Any]]:
    """Return the first prompts of a public collection, as rows with `id` and `instruction`."""
    import datasets  # takes seconds

    if recipe.source not in COLLECTIONS:
        raise ValueError(
            f"source must be one of {list(COLLECTIONS)}; got {recipe.source!r}. Name one, or "
            "convert your prompts to JSON lines and give them as a File."
        )
    repository, name, turns, language = COLLECTIONS[recipe.source]
    rows = datasets.load_dataset(repository, split="train", revision=recipe.revision)
    wanted = [name, turns, *(["language"] if language else [])]
    if missing := [column for column in wanted if column not in rows.column_names]:
        raise ValueError(
            f"expected the columns {wanted}; missing {missing} among {rows.column_names}. "
            "Is this another collection, or another version of it?"
        )
    found: dict[str, dict[str, Any]] = {}  # by what is asked, white space around it left out
    for row in rows.select_columns(wanted):
        text = next((turn["content"] for turn in row[turns] if turn["role"] == "user"), None) or ""
        if text.strip() and (language is None or row["language"] == language):
            found.setdefault(text.strip(), {"id": row[name], "instruction": text})
    return list(found.values())[: recipe.n]


def name_of(row: Any) -> str | None:
    """Return a row's id as text, or None where it has none that could name it.

    A name is a text that is not empty, or an integer; 7 and "7" are the same.
    """
    value = row.get("id") if isinstance(row, Mapping) else None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value) if value.bit_length() <= LONGEST else None
    return value if isinstance(value, str) and value.strip() and _is_encodable(value) else None


def messages_of(row: Any) -> list[dict[str, str]]:
    """Return what a row asks: role and content of each turn, the last one a user's.

    An answer in a field of its own is left out. ValueError: as `conversation_of`, or the
    conversation ends with an answer; an exception in place of a row is raised.
    """
    _check_row(row)
    turns = turns_of({name: row[name] for name in row if name not in ANSWERS})
    if turns[-1]["role"] != "user":
        raise ValueError(f"the last message must be a user's; got role {turns[-1]['role']!r}")
    check_read(row)
    return turns


def conversation_of(row: Any) -> list[dict[str, str]]:
    """Return a row's whole conversation; where the row has an answer, that is the last turn.

    ValueError: the reason why the row cannot be used: its layout is none of the table, or a field
    that nothing reads carries content.
    """
    _check_row(row)
    turns = turns_of(row)
    check_read(row)
    return turns


def check_read(value: Mapping[str, Any], read: Container[str] = READ, *, where: str = "") -> None:
    """Raise ValueError where a field that nobody reads holds content, with its name.

    Numbers, true, false, null and empty values are no content; fields named in `METADATA` go by
    without being looked at.
    """
    for name, content in value.items():
        if name not in read and name not in METADATA and _carries_content(content):
            named = _shown(f"{where}{name}").strip("'\"")
            raise ValueError(
                f"the field {named} is not read; it holds {_shown(content)}. Put what belongs to "
                "the prompt into its text, and leave the field out"
            )


def turns_of(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return a row's conversation as `conversation_of` does, whatever other fields it has."""
    lists = {name: row[name] for name in TURNS if row.get(name) is not None}
    texts = {name: row[name] for name in TEXTS if row.get(name) is not None}
    if not lists and not texts:
        raise ValueError(
            "expected `instruction`, `prompt`, `messages` or `conversations`; got the fields "
            f"{_shown([*row])}"
        )
    if lists:
        name, given = _one(lists)
        if not isinstance(given, Sequence) or isinstance(given, (str, bytes)) or not given:
            raise ValueError(f"{name} must be a non-empty list; got {_shown(given)}")
        last = len(given) - 1
        turns = [_turn(turn, f"{name}[{n}]", n == last) for n, turn in enumerate(given)]
        _check_repeated(texts, turns)
        if row.get("input"):
            raise ValueError(f"input stands beside {name}, which says all; remove one of the two")
    else:
        name, given = _one(texts)
        parts = [_text(given, name), *([_text(row["input"], "input")] if row.get("input") else [])]
        turns = [{"role": "user", "content": "\n\n".join(parts)}]
    systems = {name: row[name] for name in SYSTEMS if row.get(name)}
    if systems:
        name, given = _one(systems)
        system = {"role": "system", "content": _text(given, name)}
        if turns[0]["role"] == "system" and turns[0] != system:
            raise ValueError(f"{name} differs from the first message; give one of the two")
        turns = turns if turns[0] == system else [system, *turns]
    for place, turn in enumerate(turns):
        if turn["role"] == "system" and place > 0:
            raise ValueError(f"messages[{place}] is a system message; only the first may be one")
    return _with_answer(turns, {name: row[name] for name in ANSWERS if row.get(name) is not None})


def _check_row(row: Any) -> None:
    if isinstance(row, ValueError):
        raise row
    if not isinstance(row, Mapping):
        raise ValueError(f"expected an object; got {type(row).__name__}")
    if row.get("id") is not None and name_of(row) is None:
        raise ValueError(f"id must be non-empty text or an integer; got {_shown(row['id'])}")


def _with_answer(turns: list[dict[str, str]], answers: dict[str, Any]) -> list[dict[str, str]]:
    """Add the answer that stands in a field of its own, unless it is the last turn already."""
    if not answers:
        return turns
    name, text = _one(answers)
    answer = {"role": "assistant", "content": _text(text, name, may_be_empty=True)}
    if turns[-1]["role"] != "assistant":
        return [*turns, answer]
    if turns[-1] != answer:
        raise ValueError(f"{name} differs from the last message; give one of the two")
    return turns


def _one(fields: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the first of some fields; ValueError: they say different things."""
    (name, value), *others = fields.items()
    if unlike := [other for other, said in others if said != value]:
        raise ValueError(f"{name} and {unlike[0]} differ; give one of the two")
    return name, value


def _check_repeated(texts: Mapping[str, Any], turns: Sequence[Mapping[str, str]]) -> None:
    """Raise ValueError where `instruction` is not the last user turn, or `prompt` is none."""
    asked = [turn["content"] for turn in turns if turn["role"] == "user"]
    for name, text in texts.items():
        if text not in (asked[-1:] if name == "instruction" else asked):
            raise ValueError(f"{name} differs from the last user message; give one of the two")


def _carries_content(value: Any) -> bool:
    """Return whether a value holds text, or something else that is no number and not empty."""
    left = [value]
    while left:  # values may be nested deeper than Python calls
        one = left.pop()
        if isinstance(one, Mapping):
            left += one.values()
        elif isinstance(one, (list, tuple)):
            left += one
        elif isinstance(one, str):
            if one.strip():
                return True
        elif one is not None and not isinstance(one, (int, float)):
            return True
    return False


def _collect(numbered: Iterable[tuple[int, Any]], *, origin: str, limit: int | None) -> Prompts:
    prompts = Prompts()
    for count, (line, value) in enumerate(numbered):
        if count == limit:
            break
        name = name_of(value)
        try:
            messages = messages_of(value)
        except (ValueError, RecursionError) as error:
            reason = {"error": BAD_ROW, "reason": str(error)}
            prompts.errors.append({"id": name, "line": line, **reason})
        else:
            row = {"id": name, "instruction": messages[-1]["content"], "messages": messages}
            if value.get("input"):
                row["definition"] = value.get("instruction") or value["prompt"]
            prompts.rows.append({**row, "line": line})
    if not prompts.rows and not prompts.errors:
        raise ValueError(f"expected at least one prompt; {origin} is empty.")
    check_unique(row["id"] for row in prompts.rows if row["id"] is not None)
    return prompts


def _turn(turn: Any, where: str, is_last: bool) -> dict[str, str]:
    """Return role and content of one turn, in OpenAI's words or in ShareGPT's."""
    if not isinstance(turn, Mapping):
        raise ValueError(f"{where} must be an object; got {type(turn).__name__}")
    role, content = ("from", "value") if turn.get("from") is not None else ("role", "content")
    check_read(turn, (role, content), where=f"{where}.")
    said = turn.get(role)
    name = SHAREGPT.get(said, said) if isinstance(said, str) else said
    if name not in ROLES:
        raise ValueError(f"{where} has role {_shown(said)}; known are {', '.join(ROLES)}")
    value, where = turn.get(content), f"{where}.{content}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        value = "".join(_part(part, f"{where}[{n}]") for n, part in enumerate(value))
    is_answer = is_last and name == "assistant"
    return {"role": name, "content": _text(value, where, may_be_empty=is_answer)}


def _part(part: Any, where: str) -> str:
    """Return the text of one of OpenAI's content parts; images, sounds and files are refused."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind != "text":
        raise ValueError(f"{where} must be a part of type 'text'; got {_shown(kind or part)}")
    check_read(part, ("type", "text"), where=f"{where}.")
    return _text(part.get("text"), f"{where}.text", may_be_empty=True)


def _text(value: Any, name: str, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text; got {type(value).__name__}")
    if not value.strip() and not may_be_empty:
        raise ValueError(f"{name} is empty")
    if not _is_encodable(value):
        raise ValueError(f"{name} holds half of a surrogate pair, which is no character")
    return value


def _shown(value: Any) -> str:
    """Return the beginning of what a value looks like."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # too many digits, too deep
        text = f"{type(value).__name__} that cannot be shown"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _is_encodable(value: str) -> bool:
    """Return whether a text can be written: JSON's escapes can make half characters."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
