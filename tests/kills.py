"""Processes that run `codit synthesize` and are killed with SIGKILL, and what they were doing then.

Importing torch takes seconds, so that one process does it once and forks itself for each command:
a process of its own, in a session of its own, that runs `codit.cli.main` and nothing else. What it
does to the dataset's files is told by Python's audit events, which it writes to a file as it goes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from tests import tiny

PHASES = ("loading", "decoding", "writing", "finishing")
ROWS = [{"id": f"row {n}", "instruction": f"the cat number {n}"} for n in range(26)]
ROWS[9:9] = [{"id": "bad"}, {"id": "long", "instruction": "word " * 600}]
ROWS += [{"instruction": "a house"}]
NAMES = [row["id"] for row in ROWS if row.get("id") not in (None, "bad", "long")]

SERVER = """
import json, os, sys, time
from codit import cli, synthesis
WATCHED = {"open", "os.rename", "os.remove", "os.truncate"}
for line in sys.stdin:
    asked = json.loads(line)
    child = os.fork()
    if child == 0:
        os.setsid()
        new = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        log, told = os.open(asked["log"], new), os.open(asked["events"], new)
        os.dup2(log, 1)
        os.dup2(log, 2)
        folder, start, sync = asked["folder"], time.monotonic(), os.fsync
        def tell(what, path):
            name = str(path).rpartition("/")[2]
            os.write(told, f"{time.monotonic() - start:.4f} {what} {name}\\n".encode())
        def hook(event, arguments):
            if event in WATCHED and str(arguments[0]).startswith(folder):
                writes = event == "open" and arguments[2] & os.O_RDWR
                tell("write" if writes else event, arguments[0])
        def fsync(descriptor):
            sync(descriptor)
            tell("fsync", "")
        os.fsync = fsync
        sys.addaudithook(hook)
        os._exit(cli.main(asked["arguments"]))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Event(NamedTuple):
    """What a run did to a file, and what it was busy with from then on."""

    seconds: float
    what: str
    name: str
    phase: str


class Moment(NamedTuple):
    """When to kill: so many seconds after a run's event of this number; 0 is its start."""

    event: int
    seconds: float


class Kill(NamedTuple):
    """A kill as it was: seconds since the start, last event, phase, lines in the partial file."""

    seconds: float
    event: str
    phase: str
    lines: int


@dataclass
class Server:
    """Runs commands, one after the other.

    Args:
        process: that forks itself.
    """

    process: subprocess.Popen[str]

    def start(self, arguments: Sequence[str], out: Path) -> Run:
        """Start a command that writes `out`, in a folder of its own."""
        assert self.process.stdin is not None
        out.parent.mkdir(parents=True, exist_ok=True)
        told, log = (out.parent.with_suffix(end) for end in (".events", ".log"))
        told.unlink(missing_ok=True)
        asked = {"folder": f"{out.parent}/", "events": str(told), "log": str(log)}
        asked["arguments"] = [*arguments, "--out", str(out)]
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return Run(self, out, told, log, child=self.read())

    def read(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())


@dataclass
class Run:
    """A command that is running.

    Args:
        server: that started it.
        out: the dataset's file.
        told: file of its events.
        log: file of what it prints.
        child: process id.
    """

    server: Server
    out: Path
    told: Path
    log: Path
    child: int
    started: float = field(default_factory=time.monotonic)

    def events(self) -> list[Event]:
        """What it did so far, from its start on."""
        stem, phase = self.out.stem, "loading"
        found = [Event(0.0, "start", "", phase)]
        for line in self.told.read_text().splitlines():
            seconds, what, name = line.split(" ", 2)
            if name.startswith(f".{stem}.jsonl.") and name.endswith(".tmp"):
                phase = "finishing"
            elif phase != "finishing" and name.startswith(f".{stem}.partial.json."):
                phase = "decoding" if what == "os.rename" else phase
            elif phase == "decoding" and (what, name) == ("write", f"{stem}.partial"):
                phase = "writing"
            elif phase == "writing" and what == "fsync":
                phase = "decoding"
            found.append(Event(float(seconds), what, name, phase))
        return found

    def wait(self) -> int:
        """Return the exit status."""
        return self.server.read()

    def ended(self) -> bool:
        """Whether it has ended, waited for or not."""
        try:
            return Path(f"/proc/{self.child}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except (FileNotFoundError, ProcessLookupError):
            return True

    def kill(self, moment: Moment, *, whom: str = "session") -> Kill | None:
        """Kill -9 at a moment. None: it had ended by itself by then.

        Args:
            moment: when.
            whom: "session": all that is in its session. "driver": it alone, and its workers must
                end by themselves. "worker": one of those.
        """
        told = -1
        while told < moment.event and not self.ended():
            told = self.told.read_bytes().count(b"\n") if self.told.exists() else -1
        time.sleep(moment.seconds)
        seconds = time.monotonic() - self.started
        helpers = []  # to look for them takes longer than to write a batch
        if whom != "session" and not self.ended():
            helpers = psutil.Process(self.child).children(recursive=True)
        workers = [process for process in helpers if _is_worker(process)]
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if whom == "session":
                os.killpg(self.child, signal.SIGKILL)
            elif whom == "driver":
                os.kill(self.child, signal.SIGKILL)
            elif workers:
                workers[0].kill()
        status = self.wait()
        _, left = psutil.wait_procs(workers, timeout=60)
        assert not left, f"workers outlive their driver: {left}"
        for process in helpers:  # Ray's own take their time to find out
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if status == 0 or (whom != "worker" and status != -signal.SIGKILL):
            return None
        partial, last = self.out.with_suffix(".partial"), self.events()[-1]
        lines = partial.read_bytes().count(b"\n") if partial.exists() else 0
        return Kill(seconds, f"{last.what} {last.name}".strip(), last.phase, lines)


def _is_worker(process: psutil.Process) -> bool:
    """Whether a process answers prompts: one of multiprocessing, or an actor of Ray."""
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:  # it has ended
        return False
    return "spawn_main" in words or (words.startswith("ray::") and "Agent" not in words)


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server, for a `with` block."""
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        yield Server(process)
        assert process.stdin is not None
        process.stdin.close()


def prepare(folder: Path) -> list[str]:
    """Write a pair and prompts to a folder, and return a command but for its `--out`."""
    tiny.save_pair(folder, "llama")
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    flags = {"expert": folder / "expert", "amateur": folder / "amateur"}
    flags |= {"prompts": folder / "in.jsonl"}
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    return ["synthesize", *given, "--max-new-tokens", "8", "--batch-size", "2"]


def moments(events: Sequence[Event], phase: str, n: int, *, seed: int) -> list[Moment]:
    """Draw moments of a run's phase: after one of its events, before the next.

    Args:
        events: of a run that nothing interrupted.
        phase: one of `PHASES`.
        n: how many.
        seed: of the draw.
    """
    draw = random.Random(f"{phase} {seed}")
    gaps = [
        (number, after.seconds - event.seconds)
        for number, (event, after) in enumerate(itertools.pairwise(events))
        if event.phase == phase
    ]
    return [
        Moment(number, draw.uniform(0, gap))
        for number, gap in (draw.choice(gaps) for _ in range(n))
    ]


TIMES = re.compile(rb'^ *"(created|seconds)": .*$|^\| made \|.*$', re.MULTILINE)


def kept(out: Path) -> dict[str, bytes]:
    """What lies beside a dataset, hidden files too, but for the times in manifest and card."""
    return {path.name: TIMES.sub(b"", path.read_bytes()) for path in out.parent.iterdir()}


def faults(out: Path, whole: dict[str, bytes]) -> list[str]:
    """Return what is wrong with a dataset: nothing, if it is that of an uninterrupted run."""
    found = kept(out)
    wrong = [f"{name} is missing" for name in whole.keys() - found.keys()]
    wrong += [f"{name} was left behind" for name in found.keys() - whole.keys()]
    wrong += [
        f"{name} differs" for name in whole.keys() & found.keys() if whole[name] != found[name]
    ]
    rows = [json.loads(line) for line in found.get(out.name, b"").splitlines()]
    names = [row["id"] for row in rows]
    if len(names) != len(set(names)):
        wrong.append("a row is there twice")
    if names[: len(NAMES)] != NAMES or len(names) != len(NAMES) + 1:
        wrong.append("a row is missing")
    manifest = json.loads(out.with_suffix(".manifest.json").read_text())
    if (manifest["rows"], manifest["errors"]) != (len(rows), 2):
        wrong.append("the manifest counts wrongly")
    return wrong
