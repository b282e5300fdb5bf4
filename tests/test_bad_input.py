"""What a user gets wrong, and what the user then reads.

Every case goes through the command. Either it is refused by one line on stderr and status 2, or the
row is recorded in OUT.errors.jsonl with its reason and the other rows are answered.
`python -m tests.test_bad_input` prints the table; with `--write` it replaces the committed one.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from codit import cli, contrastive_tuning, student
from tests import tiny

TABLE = Path(__file__).parent / "tables" / "bad_input.md"
ROW, REFUSED, ANSWERED, STOPPED = "one recorded row", "refused", "answered", "interrupted"
STATUS = {ROW: 0, REFUSED: 2, ANSWERED: 0, STOPPED: 130}
GOOD = [{"id": f"good {n}", "instruction": f"the cat number {n}"} for n in range(4)]


class Place(NamedTuple):
    """A good pair, and an empty folder for one case."""

    pair: Path
    folder: Path

    def command(self, *flags: str) -> list[str]:
        given = {name: self.pair / name for name in ("expert", "amateur")}
        given |= {"prompts": self.folder / "in.jsonl", "out": self.folder / "out.jsonl"}
        parts = [part for name, value in given.items() for part in (f"--{name}", str(value))]
        return ["synthesize", *parts, "--max-new-tokens", "4", "--batch-size", "2", *flags]


Prepare = Callable[[Place, ExitStack], list[str]]


class Case(NamedTuple):
    """What is wrong, what becomes of it, words that are read, and how it is made.

    Args:
        name: the input, in words.
        kind: `ROW`, `REFUSED`, `ANSWERED` or `STOPPED`.
        says: pattern of what is read.
        line: of the prompts file, after good ones.
        flags: added to a command that works.
        prepare: makes the input and returns further flags.
        is_file: prepare makes the file of rows, or a model that reads them.
    """

    name: str
    kind: str
    says: str
    line: bytes = b""
    flags: tuple[str, ...] = ()
    prepare: Prepare = lambda place, stack: []
    is_file: bool = False


def row(name: str, line: str | bytes, says: str) -> Case:
    return Case(name, ROW, says, line if isinstance(line, bytes) else line.encode())


def flag(name: str, value: str, says: str) -> Case:
    return Case(f"--{name} {value}", REFUSED, says, flags=(f"--{name}", value))


def fine(name: str, line: str) -> Case:
    return Case(name, ANSWERED, "", line.encode())


def given(
    name: str, says: str, prepare: Prepare, *, kind: str = REFUSED, is_file: bool = False
) -> Case:
    return Case(name, kind, says, prepare=prepare, is_file=is_file)


def talk(*turns: tuple[str, str], **more: str) -> str:
    messages = [{"role": role, "content": text} for role, text in turns]
    return json.dumps({"messages": messages, **more})


# ---- what the cases are made of


def copied(place: Place, role: str) -> Path:
    return Path(shutil.copytree(place.pair / role, place.folder / role))


def without(role: str, *patterns: str) -> Prepare:
    """A model whose folder lacks files."""

    def prepare(place: Place, stack: ExitStack) -> list[str]:
        folder = copied(place, role)
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            path.unlink()
        return [f"--{role}", str(folder)]

    return prepare


def replaced(role: str, name: str, content: bytes) -> Prepare:
    """A model with another content in one of its files."""

    def prepare(place: Place, stack: ExitStack) -> list[str]:
        (copied(place, role) / name).write_bytes(content)
        return [f"--{role}", str(place.folder / role)]

    return prepare


def other(architecture: str = "llama", **shape: int) -> Prepare:
    """An amateur of another shape."""

    def prepare(place: Place, stack: ExitStack) -> list[str]:
        folder = place.folder / "amateur"
        tiny.model(architecture, seed=7, **shape).save_pretrained(folder)
        tiny.tokenizer(eos_token=tiny.EOS).save_pretrained(folder)
        return ["--amateur", str(folder)]

    return prepare


def spoilt(role: str, value: float) -> Prepare:
    """A model that makes NaN of one character, and a prompt with that character."""

    def prepare(place: Place, stack: ExitStack) -> list[str]:
        folder = copied(place, role)
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            model.get_input_embeddings().weight[tiny.tokenizer()("\u00e9").input_ids] = value
        model.save_pretrained(folder)
        with (place.folder / "in.jsonl").open("a") as stream:
            stream.write(json.dumps({"instruction": "caf\u00e9"}) + "\n")
        return [f"--{role}", str(folder)]

    return prepare


def other_tokenizer(place: Place, stack: ExitStack) -> list[str]:
    """An amateur whose tokenizer has two ids exchanged."""
    made = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    ids = made["model"]["vocab"]
    one, two = list(ids)[-2:]
    ids[one], ids[two] = ids[two], ids[one]
    backend = Tokenizer.from_str(json.dumps(made))
    changed = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tiny.EOS)
    changed.save_pretrained(copied(place, "amateur"))
    return ["--amateur", str(place.folder / "amateur")]


def more_tokens(place: Place, stack: ExitStack) -> list[str]:
    """An amateur whose tokenizer has one added token more."""
    tokenizer = tiny.tokenizer(eos_token=tiny.EOS)
    tokenizer.add_tokens(["<|more|>"])
    tokenizer.save_pretrained(copied(place, "amateur"))
    return ["--amateur", str(place.folder / "amateur")]


def no_stop_token(place: Place, stack: ExitStack) -> list[str]:
    folder = copied(place, "expert")
    for name in ("tokenizer_config.json", "generation_config.json", "config.json"):
        values = json.loads((folder / name).read_text())
        values.pop("eos_token", None)
        values.pop("eos_token_id", None)
        (folder / name).write_text(json.dumps(values))
    return ["--expert", str(folder)]


def no_system_turns(place: Place, stack: ExitStack) -> list[str]:
    """An expert whose template knows no system turn, and a conversation that has one."""
    template = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system turn') }}"
    (copied(place, "expert") / "chat_template.jinja").write_text(
        template + "{% endif %}" + tiny.CHAT_TEMPLATE
    )
    with (place.folder / "in.jsonl").open("a") as stream:
        stream.write(talk(("system", "Be brief."), ("user", "Hi")) + "\n")
    return ["--expert", str(place.folder / "expert")]


def system_left_out(place: Place, stack: ExitStack) -> list[str]:
    """An expert whose template leaves system turns out, and a conversation that has one."""
    template = tiny.CHAT_TEMPLATE.replace(
        "in messages %}", "in messages if message['role'] != 'system' %}"
    )
    (copied(place, "expert") / "chat_template.jinja").write_text(template)
    with (place.folder / "in.jsonl").open("a") as stream:
        stream.write(talk(("system", "Be brief."), ("user", "Hi")) + "\n")
    return ["--expert", str(place.folder / "expert")]


def rewritten(change: Callable[[bytes], bytes]) -> Prepare:
    """The file of rows in another form."""

    def prepare(place: Place, stack: ExitStack) -> list[str]:
        file = place.folder / "in.jsonl"
        file.write_bytes(change(file.read_bytes()))
        return []

    return prepare


def piped(place: Place, stack: ExitStack) -> list[str]:
    os.mkfifo(place.folder / "pipe")
    return ["--prompts", str(place.folder / "pipe")]


def no_messages_known(place: Place, stack: ExitStack) -> list[str]:
    """An expert whose template is no template."""
    (copied(place, "expert") / "chat_template.jinja").write_text("{% for %}")
    return ["--expert", str(place.folder / "expert")]


def held(place: Place, stack: ExitStack) -> list[str]:
    """A dataset that another process is writing."""
    hold = "import filelock, sys\nwith filelock.FileLock(sys.argv[1]): print(flush=True), input()"
    process = stack.enter_context(
        subprocess.Popen(
            [sys.executable, "-c", hold, str(place.folder / ".out.jsonl.lock")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
    )
    assert process.stdin is not None
    assert process.stdout is not None
    stack.callback(process.stdin.close)
    process.stdout.readline()
    return []


def finished_before(*flags: str) -> Prepare:
    """A dataset that is there already."""

    def prepare(place: Place, stack: ExitStack) -> list[str]:
        assert run(place.command())[0] == 0
        return [*flags]

    return prepare


def interrupted(place: Place, stack: ExitStack) -> list[str]:
    """Ctrl-C once the first batch is there."""
    partial = place.folder / "out.partial"

    def press() -> None:
        while not partial.exists() or not partial.stat().st_size:
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    stack.callback(signal.signal, signal.SIGINT, before)
    threading.Thread(target=press, daemon=True).start()
    with (place.folder / "in.jsonl").open("a") as stream:
        for n in range(200):
            stream.write(json.dumps({"id": f"more {n}", "instruction": "a house"}) + "\n")
    return []


def no_prompts(place: Place, stack: ExitStack) -> list[str]:
    (place.folder / "in.jsonl").write_text("\n \n")
    return []


def path(name: str, relative: str) -> Prepare:
    return lambda place, stack: [f"--{name}", str(place.folder / relative)]


def no_weights_whole(place: Place, stack: ExitStack) -> list[str]:
    file = copied(place, "amateur") / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)
    return ["--amateur", str(file.parent)]


def expert_alone(place: Place, stack: ExitStack) -> list[str]:
    flags = replaced("expert", "model.safetensors", b"\0" * 2000)(place, stack)
    return [*flags, "--strength", "0", "--plausibility", "0"]


def folder_as_out(place: Place, stack: ExitStack) -> list[str]:
    (place.folder / "folder.jsonl").mkdir()
    return ["--out", str(place.folder / "folder.jsonl")]


NULL_ANSWER = json.dumps(
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}]}
)
PARTS = json.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}]}]})
IMAGE = PARTS.replace('"type": "text"', '"type": "image_url"')
TOOLS = json.dumps({"messages": [{"role": "user", "content": "a", "tool_calls": [{"name": "b"}]}]})
SURROGATE = rb'{"instruction": "half \ud83d"}'
CASES = [
    row("broken JSON line", '{"id": "x", "instr', "expected one JSON object; Unterminated string"),
    row("two objects in a line", '{"id": 1} {"id": 2}', "expected one JSON object; Extra data"),
    row("a field twice", '{"id": 1, "id": 2, "instruction": "a"}', "the field 'id' stands there"),
    row("not UTF-8", b'{"instruction": "\xff\xfe"}', "expected UTF-8; invalid start byte at byte"),
    row("a list in place of an object", "[1]", "expected an object; got list"),
    row("a JSON line nested too deep", "[" * 200_000, "expected one JSON object; .*recursion"),
    row("missing instruction", '{"id": 3}', r"or `conversations`; got the fields \['id'\]"),
    row("instruction a number", '{"instruction": 3}', "instruction must be text; got int"),
    row("instruction NaN", '{"instruction": NaN}', "NaN is not JSON"),
    row("empty instruction", '{"instruction": ""}', "instruction is empty"),
    row("only spaces", '{"instruction": " \\n\\t "}', "instruction is empty"),
    row(
        "an instruction of 100,000 characters",
        json.dumps({"instruction": "x" * 100_000}),
        r"expected at most 508 tokens .*; got 100003\. Shorten the prompt",
    ),
    row("id a list", '{"id": [1], "instruction": "a"}', "id must be non-empty text or an integer"),
    row("id empty", '{"id": "", "instruction": "a"}', "id must be non-empty text or an integer"),
    row("unknown role", talk(("tool", "a")), r"messages\[0\] has role 'tool'; known are system"),
    row("last turn an assistant's", talk(("user", "a"), ("assistant", "b")), "last message must"),
    row("a later system turn", talk(("user", "a"), ("system", "b")), "only the first may be one"),
    row("a turn without content", '{"messages": [{"role": "user"}]}', "content must be text; got"),
    row("instruction differs", talk(("user", "a"), instruction="b"), "instruction differs from"),
    row("messages not a list", '{"messages": "hi"}', "messages must be a non-empty list; got 'hi'"),
    row("no messages", '{"messages": []}', r"messages must be a non-empty list; got \[\]"),
    row("half of a surrogate pair", SURROGATE, "instruction holds half of a surrogate pair"),
    row("a null byte in a line", b'{"instruction": "a\x00b"}', "Invalid control character"),
    Case("a null character in a text", ANSWERED, "", b'{"instruction": "a\\u0000b"}'),
    given(
        "system turn, a template without",
        "TemplateError: No syst|No system turn",
        no_system_turns,
        kind=ROW,
        is_file=True,
    ),
    given(
        "a template that leaves a turn out",
        r"the chat template does not write all of messages\[0\] \(system\), 'Be brief",
        system_left_out,
        kind=ROW,
        is_file=True,
    ),
    row("no messages: null", '{"messages": null}', r"got the fields \['messages'"),
    row("an answer: null", NULL_ANSWER, r"messages\[1\]\.content must be text; got NoneType"),
    row("a field that nobody reads", '{"instruction": "a", "context": "b"}', "context is not read"),
    row("an image in a turn", IMAGE, "must be a part of type 'text'; got 'image_url'"),
    row("tools in a turn", TOOLS, r"the field messages\[0\]\.tool_calls is not read"),
    row("input without instruction", '{"input": "a"}', r"got the fields \['input'"),
    row("input beside messages", talk(("user", "a"), input="b"), "input stands beside messages"),
    row("two prompts", '{"instruction": "a", "prompt": "b"}', "instruction and prompt differ"),
    fine("Alpaca's input", '{"instruction": "a", "input": "b"}'),
    fine("Alpaca's empty input", '{"instruction": "a", "input": ""}'),
    fine("ShareGPT's conversations", '{"conversations": [{"from": "human", "value": "a"}]}'),
    fine("OpenAI's text parts", PARTS),
    fine("a system turn in a field", '{"system": "a", "prompt": "b"}'),
    fine("numbers and known names besides", '{"instruction": "a", "source": "b", "n": [0.5]}'),
    fine("an id of another type", '{"id": 7, "instruction": "a"}'),
    fine("a blank line", " "),
    fine("an empty response", '{"instruction": "a", "response": ""}'),
    fine("a sample that is a text", '{"instruction": "a", "sample": "0"}'),
    fine("the judge's own mark", '{"instruction": "a\\n----- response ends -----\\nb"}'),
    given("a compressed file", "it is compressed", rewritten(gzip.compress), is_file=True),
    given(
        "a JSON array",
        "the file is one JSON array",
        rewritten(lambda text: b"[" + b",\n".join(text.splitlines()) + b"]"),
        is_file=True,
    ),
    given("a pipe", "it is a pipe", piped, is_file=True),
    Case(
        "an id twice",
        REFUSED,
        r"expected every id once; 1 occur more than once: good 1\. Rename them",
        b'{"id": "good 1", "instruction": "a"}',
    ),
    given(
        "no prompts in the file",
        r"at least one prompt; .*in\.jsonl is empty",
        no_prompts,
        is_file=True,
    ),
    given(
        "prompts missing", r"no\.jsonl; there is none", path("prompts", "no.jsonl"), is_file=True
    ),
    given(
        "prompts a folder", "JSON lines at .*; it is a folder", path("prompts", "."), is_file=True
    ),
    given("out the prompts' file", r"in\.jsonl", path("out", "in.jsonl")),
    given("out without .jsonl", r"must be a file name ending in \.jsonl", path("out", "out.txt")),
    given("out a folder", r"must be a file name ending in \.jsonl; got .*folder", folder_as_out),
    given(
        "out below a file",
        "cannot write .*: Not a dir|File exists",
        path("out", "in.jsonl/a.jsonl"),
    ),
    flag("out", "/proc/out.jsonl", r"cannot write /proc/out\.jsonl .* another out"),
    given("out written by another process", "another process is writing .*Wait for it", held),
    given(
        "other settings",
        r"decoding\.seed was 0, is 3\. Give another out",
        finished_before("--seed", "3"),
    ),
    given("resume never, out there", "resume is never, but", finished_before("--resume", "never")),
    given("model folder missing", "cannot load .*no such folder", path("expert", "no/model")),
    given("model folder empty", "cannot load the tokenizer", without("amateur", "*")),
    given("no config.json", "cannot load .*amateur", without("amateur", "config.json")),
    given(
        "no weights", "cannot load the weights of .*amateur", without("amateur", "*.safetensors")
    ),
    given("no tokenizer", "cannot load the tokenizer of", without("amateur", "token*")),
    given("weights cut off", "cannot load the weights of .*amateur: ", no_weights_whole),
    given(
        "weights overwritten",
        "cannot load the weights of .*amateur: ",
        replaced("amateur", "model.safetensors", b"\0" * 2000),
    ),
    given("weights overwritten, expert alone", "the weights of .*expert: ", expert_alone),
    given("config.json broken", "cannot load", replaced("amateur", "config.json", b"{")),
    given("tokenizer.json broken", "cannot load", replaced("amateur", "tokenizer.json", b"{")),
    given("tokenizers that differ", "ordinary vocabularies must be equal; 2", other_tokenizer),
    given("one added token more", "added tokens must be equal; 1 ids differ", more_tokens),
    given("a padded vocabulary", "", other(vocab_size=320), kind=ANSWERED),
    given("a vocabulary too narrow", r"vocab_size must lie in 1\.\.200", other(vocab_size=200)),
    given("another number of layers", "", other(num_hidden_layers=3), kind=ANSWERED),
    given("another architecture", "must have one architecture; got llama and gpt2", other("gpt2")),
    given("NaN in the expert", "bad logits: ", spoilt("expert", math.nan), kind=ROW),
    given("NaN in the amateur", "bad logits: ", spoilt("amateur", math.nan), kind=ROW),
    given("infinity in the expert", "bad logits: ", spoilt("expert", math.inf), kind=ROW),
    given("no chat template", "with a chat template; got none", without("expert", "*.jinja")),
    given("no stop token", "expected a stop token from", no_stop_token),
    flag("plausibility", "1.5", r"plausibility must be between 0 and 1; got 1\.5\. Give"),
    flag("plausibility", "nan", "plausibility must be between 0 and 1; got nan"),
    flag("strength", "-1", r"strength must be between 0 and 1e\+06; got -1\.0\."),
    flag("strength", "inf", r"strength must be between 0 and 1e\+06; got inf\."),
    flag("attn-implementation", "no", r'`attn_implementation="no"` is not supported'),
    flag("temperature", "-1", r"temperature must be between 0 and 1e\+06; got -1\.0\."),
    flag("top-p", "0", r"top_p must lie in \(0, 1\]; got 0\.0\. Use 1 to keep all"),
    flag("top-p", "2", r"top_p must lie in \(0, 1\]; got 2\.0\."),
    flag("top-k", "-1", "top_k must be at least 0; got -1"),
    flag("max-new-tokens", "0", "max_new_tokens must be at least 1; got 0"),
    flag("n-samples", "0", "n_samples must be at least 1; got 0"),
    Case(
        "--n-samples 3 --temperature 0",
        REFUSED,
        r"n_samples must be 1 where the temperature is 0, as all would be equal; got 3\. Raise",
        flags=("--n-samples", "3", "--temperature", "0"),
    ),
    flag("batch-size", "0", "batch_size must be at least 1; got 0"),
    flag("limit", "0", "limit must be at least 1; got 0"),
    given("Ctrl-C", "interrupted; the same command goes on from here", interrupted, kind=STOPPED),
]


# ---- running them


def run(arguments: list[str], out: io.StringIO | None = None) -> tuple[int, str]:
    """Run a command in this process, and return its status and what it wrote to stderr."""
    told = io.StringIO()
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(out or io.StringIO()):
        status = cli.main(arguments)
    return status, told.getvalue()


def outcome(case: Case, place: Place) -> tuple[int, str]:
    """Run a case, and return its status and what the user reads of it."""
    lines = [json.dumps(row).encode() for row in GOOD]
    lines[2:2] = [case.line] if case.line else []
    (place.folder / "in.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    with ExitStack() as stack:
        more = case.prepare(place, stack)
        status, told = run(place.command(*case.flags, *more))
    assert "Traceback" not in told
    errors, data = place.folder / "out.errors.jsonl", place.folder / "out.jsonl"
    if case.kind == ROW:
        rows = [json.loads(line)["id"] for line in data.read_text().splitlines()]
        assert rows == [row["id"] for row in GOOD]
        (error,) = [json.loads(line) for line in errors.read_text().splitlines()]
        return status, f"{error['error']}: {error['reason']}"
    read = [line for line in told.splitlines() if line.startswith("codit: ")]
    assert len(read) == (case.kind in (REFUSED, STOPPED)), told
    return status, "".join(read)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    tiny.save_pair(folder, "llama")
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_what_is_wrong_is_said_in_one_line_or_one_row(
    case: Case, pair: Path, tmp_path: Path
) -> None:
    status, told = outcome(case, Place(pair, tmp_path))
    assert status == STATUS[case.kind]
    assert re.search(case.says, told), told
    partial = tmp_path / "out.partial"
    if partial.exists() and not partial.stat().st_size:  # what was begun is in nobody's way
        assert run(Place(pair, tmp_path).command("--seed", "3"))[0] == STATUS[ANSWERED]


def test_after_an_interruption_the_same_command_goes_on(pair: Path, tmp_path: Path) -> None:
    place = Place(pair, tmp_path)
    (case,) = [case for case in CASES if case.kind == STOPPED]
    assert outcome(case, place)[0] == 130
    kept = (tmp_path / "out.partial").read_bytes()
    assert kept.count(b"\n") >= 2
    assert run(place.command())[0] == 0
    made = (tmp_path / "out.jsonl").read_bytes()
    assert made.startswith(kept[: kept.rindex(b"\n", 0, -1)])
    assert run(place.command("--out", str(tmp_path / "whole.jsonl")))[0] == 0
    assert made == (tmp_path / "whole.jsonl").read_bytes()


def test_there_are_many_cases_and_the_committed_table_has_them_all() -> None:
    names = [case.name for case in CASES]
    assert len(names) == len(set(names)) >= 35
    text = TABLE.read_text(encoding="utf-8").partition("## Every command")[0]
    rows = re.findall(r"^\| (.*?) \| (.*?) \| .* \|$", text, re.M)
    assert rows[2:] == [(case.name, case.kind) for case in CASES]


# ---- every case through every command that reads rows

ERROR, LEFT_OUT, FINE = "error", "left out", "fine"
INPUTS = [case for case in CASES if case.line or case.is_file]
READERS = {  # flags besides the file's, and what is printed of rows that are used
    "preview": ("synthesize --expert E --amateur A --out O --max-new-tokens 4 --preview 9", ""),
    "dry run": (
        "synthesize --expert E --amateur A --out O --max-new-tokens 4 --dry-run",
        r"(\d+) \(",
    ),
    "train": ("train --base E --out S --batch 1 --save-every 0", r"(\d+) rows trained on"),
    "contrastive-tune": (
        "contrastive-tune --base E --out S --batch 1 --save-every 0",
        r"tuned on (\d+) rows",
    ),
    "judge": ("judge --out O --model m --base-url http://127.0.0.1:1/v1 --dry-run", r"(\d+)"),
    "decontaminate": ("decontaminate --benchmark B", r"of (\d+) rows"),
    "benchmark": ("decontaminate --data B", r"\n +in +(\d+)"),
    "mt-bench": ("mt-bench --model E --out O --max-new-tokens 4", r"(\d+) of"),
}
FILE = {"preview": "prompts", "dry run": "prompts", "benchmark": "benchmark"}
FILE |= {"mt-bench": "questions"}


WELL = [json.dumps(row).encode() for row in GOOD]


def as_read_by(command: str, line: bytes) -> bytes:
    """Return a prompt's line as a command needs it: with an answer, or with two turns."""
    told = b', "response": "b"'
    if command == "mt-bench":
        told = b', "question_id": "%08x", "turns": ["a", "b"]' % zlib.crc32(line)
        line = b'{"n": 1}' if line in WELL else line
    elif (
        command not in ("train", "contrastive-tune", "judge", "decontaminate")
        or b'"response"' in line
    ):
        return line
    return line[:-1] + told + b"}" if line.startswith(b"{") and line.endswith(b"}") else line


def cell(case: Case, command: str, place: Place) -> str:
    """Send a case's rows through a command, and return what becomes of the bad one."""
    file, bench = place.folder / "in.jsonl", place.folder / "bench.jsonl"
    lines = [json.dumps(row).encode() for row in GOOD]
    lines[2:2] = [case.line] if case.line else []
    file.write_bytes(b"".join(line + b"\n" for line in lines))
    bench.write_text('{"prompt": "a", "response": "b"}\n')
    names = {"E": place.pair / "expert", "A": place.pair / "amateur", "B": bench}
    names |= {"O": place.folder / "out.jsonl", "S": place.folder / "student"}
    with ExitStack() as stack:
        is_rows = case.kind == ROW or case.line
        flags = case.prepare(place, stack) if is_rows else []
        told = [as_read_by(command, line) for line in file.read_bytes().splitlines()]
        file.write_bytes(b"".join(line + b"\n" for line in told))
        flags = flags or ([] if is_rows else case.prepare(place, stack))
    given = dict(zip(flags[::2], flags[1::2], strict=True))
    names["E"] = Path(given.get("--expert", names["E"]))
    file = Path(given.get("--prompts", file))
    start, counted = READERS[command]
    made = [str(names.get(word, word)) for word in start.split()]
    out = io.StringIO()
    status, err = run([*made, f"--{FILE.get(command, 'data')}", str(file)], out)
    said = [line for line in err.splitlines() if line.startswith("codit: ")]
    if status == 2:
        assert len(said) == 1, err
        if case.kind == ROW and case.line:
            assert re.search(r"row |line |ids? once", said[0]), said
        return ERROR
    assert (status, said) == (0, []), (status, err)
    if command == "preview":
        return "recorded" if re.search(case.says or "^$", out.getvalue()) else FINE
    found = re.search(counted, out.getvalue())
    assert found is not None, out.getvalue()
    rows = len([line for line in told if line.strip()])
    if int(found[1]) == rows:
        return FINE
    assert int(found[1]) == rows - 1, out.getvalue()
    return "recorded" if command == "dry run" else LEFT_OUT


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is trained: what is read is what counts."""
    no_training(monkeypatch.setattr)


def no_training(put: Callable[..., None]) -> None:
    def trained(trainer: Any, tokenizer: Any, out: Path, watch: Any, **told: Any) -> None:
        out.mkdir(exist_ok=True)
        log = {"parameters": 0, "losses": [{"loss": 0.0}], **told}
        (out / "training_log.json").write_text(json.dumps(log))

    for module, name in ((student, "AnswerTrainer"), (contrastive_tuning, "PrefixTrainer")):
        put(module, name, lambda **given: None)
        put(module, "fit", trained)


def committed() -> dict[str, dict[str, str]]:
    """Return the committed cells, by case and command."""
    _, _, text = TABLE.read_text(encoding="utf-8").partition("## Every command")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("|")]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


@pytest.mark.parametrize("command", READERS)
def test_no_command_takes_a_bad_row_in_silence(
    command: str, pair: Path, tmp_path: Path, quick: None
) -> None:
    wanted, found = committed(), {}
    assert [*wanted] == [case.name for case in INPUTS]
    for number, case in enumerate(INPUTS):
        folder = tmp_path / str(number)
        folder.mkdir()
        found[case.name] = cell(case, command, Place(pair, folder))
    assert found == {name: row[command] for name, row in wanted.items()}


# ---- the table


def table() -> Iterator[str]:
    """Yield the lines of the table: input, what becomes of it, what the user reads."""
    yield "# Bad input"
    yield ""
    yield f"{len(CASES)} things that a user can do to `codit synthesize`. A refused command writes"
    yield "one line on stderr and ends with status 2; a recorded row stands in OUT.errors.jsonl and"
    yield "the others are answered. `python -m tests.test_bad_input --write` writes this table."
    yield ""
    yield "| input | becomes | the user reads |"
    yield "| --- | --- | --- |"
    with tempfile.TemporaryDirectory() as name:
        tiny.save_pair(Path(name) / "pair", "llama")
        for number, case in enumerate(CASES):
            folder = Path(name) / str(number)
            folder.mkdir()
            try:
                _, told = outcome(case, Place(Path(name) / "pair", folder))
            except (AssertionError, FileNotFoundError) as error:
                told = f"NOT AS EXPECTED: {error}"
            for place, short in ((folder, "DIR"), (Path(name), "DIR")):
                told = told.replace(f"{place}/", f"{short}/").replace(str(place), short)
            told = re.sub(r"\s+", " ", told).replace("|", "\\|")
            yield f"| {case.name} | {case.kind} | {told or 'nothing: it works'} |"
        yield ""
        yield "## Every command"
        yield ""
        yield "The rows among them, sent through every other command that reads rows (`compare` and"
        yield "lm-eval's model read none). *error*: one line, which names the row or its line, and"
        yield "status 2. *recorded*: the reason is shown, or the row is counted as bad, and others"
        yield "go on. *left out*: counted, and not used. *fine*: used whole."
        yield ""
        yield f"| input | {' | '.join(READERS)} |"
        yield "| --- " * (len(READERS) + 1) + "|"
        no_training(setattr)
        for number, case in enumerate(INPUTS):
            row = []
            for command in READERS:
                folder = Path(name) / f"{number} {command}"
                folder.mkdir()
                row.append(cell(case, command, Place(Path(name) / "pair", folder)))
            yield f"| {case.name} | {' | '.join(row)} |"


if __name__ == "__main__":
    text = "\n".join(table()) + "\n"
    if "--write" in sys.argv:
        TABLE.parent.mkdir(exist_ok=True)
        TABLE.write_text(text, encoding="utf-8")
    print(text, end="")
