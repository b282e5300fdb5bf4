"""Executes the notebooks that are out of date, at a scale, with progress and a table of costs.

papermill injects the parameters and runs each notebook in a fresh kernel of this interpreter. The
result goes to `notebooks/executed/failed-NN_slug.ipynb` while it grows, is renamed when all cells
have passed, and `NN_slug.json`, written last, records what it was made from.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import nbformat
import papermill
import tyro
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets import default
from traitlets.config import Config

from codit import figures, notebook, store
from codit.files import versions, write_json

QUIET = "import warnings; warnings.filterwarnings('ignore', message='IProgress not found')"
# Between two lines about one running cell, so that a log file stays readable.
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True, kw_only=True)
class Run:
    """What became of one notebook: `status` is "executed", "up to date" or "failed"."""

    name: str
    status: str
    seconds: float = 0.0
    figures: tuple[str, ...] = ()
    error: str = ""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One notebook to execute: where it is, with what parameters, where to."""

    path: Path
    parameters: dict[str, Any]
    out: Path
    cwd: Path


def command(
    *,
    scale: str = "micro",
    only: str = "",
    jobs: int = 1,
    fresh: bool = False,
    parameter: Annotated[
        tuple[str, ...], tyro.conf.UseAppendAction, tyro.conf.arg(aliases=["-p"])
    ] = (),
) -> int:
    """Execute the notebooks and write their figures; skip what is up to date.

    Args:
        scale: whose recipes the notebooks use: micro, full, laptop, paper.
        only: numbers or names of notebooks, separated by commas: 01,03. Empty: all.
        jobs: notebooks executed at the same time; they share the cores, unless OMP_NUM_THREADS
            says how many threads each has.
        fresh: execute what is up to date too. Results in the store are used again; delete
            `data/cache` to compute them anew.
        parameter: name=value, a Python literal or else a text, given to every chosen notebook;
            may be repeated.

    Returns:
        int: exit status, 0 where no notebook failed.

    Raises:
        ValueError: see `reproduce`.

    Source: ours.
    """
    given = dict(_parse(text) for text in parameter)
    chosen = [name for name in only.split(",") if name]
    # Threads of one kernel that wait for a core another one holds cost a hundredfold.
    threads = max(1, (os.cpu_count() or 1) // max(1, jobs))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    runs = reproduce({"scale": scale, **given}, only=chosen, jobs=jobs, fresh=fresh)
    print(cost_table(runs))
    return int(any(run.status == "failed" for run in runs))


def reproduce(
    parameters: Mapping[str, Any],
    *,
    only: Sequence[str] = (),
    jobs: int = 1,
    fresh: bool = False,
    folder: Path | None = None,
    out: Path | None = None,
    cwd: Path | None = None,
) -> list[Run]:
    """Execute notebooks with parameters, in the order of their numbers.

    A notebook is up to date when its cells, its parameters, the package, the package versions and
    the shipped models and results are those it was last executed with, and its figures exist.

    Args:
        parameters: name to value; every name must be a parameter of every chosen notebook.
        only: numbers or names; empty for all.
        jobs: at least 1; notebooks executed at the same time, each in a process of its own.
        fresh: execute what is up to date too.
        folder: where the notebooks are; None: `notebooks/` of the checkout.
        out: where executed notebooks go; None: `executed/SCALE/` in `folder`.
        cwd: working directory of the kernels; None: `folder`.

    Returns:
        list[Run]: one per chosen notebook. A notebook that fails does not stop the others.

    Raises:
        ValueError: nothing matches `only`; a parameter is unknown; a notebook has not exactly one
            parameters cell or another kernel than `python3`; jobs below 1.

    Source: ours.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1; got {jobs}. Give 1 for one after another.")
    folder = (folder or store.repository() / "notebooks").absolute()
    out = (out or folder / "executed" / str(parameters.get("scale", "micro"))).absolute()
    todo = []
    for path in notebook.choose(folder, only):
        notebook.check_parameters(path, parameters)
        todo.append(Job(path=path, parameters=dict(parameters), out=out, cwd=cwd or folder))
    out.mkdir(parents=True, exist_ok=True)
    if jobs == 1:
        return [_bring_up_to_date(job, fresh) for job in todo]
    # "spawn": a forked child would inherit locks of threads that it does not have.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        return list(pool.map(_bring_up_to_date, todo, [fresh] * len(todo)))


def cost_table(runs: Iterable[Run]) -> str:
    """Return a table of what was done, in text: notebook, status, seconds, figures.

    Args:
        runs: as from `reproduce`.

    Returns:
        str: one line per notebook and one for the sum.

    Source: ours.
    """
    runs = list(runs)
    width = max(len(name) for name in ["notebook", *(run.name for run in runs)])
    lines = [f"{'notebook':{width}}  {'status':10}  seconds  figures"]
    for run in runs:
        names = ", ".join(run.figures)
        lines.append(f"{run.name:{width}}  {run.status:10}  {run.seconds:7.1f}  {names}")
    total = sum(run.seconds for run in runs if run.status != "up to date")
    return "\n".join([*lines, f"{'all':{width}}  {'':10}  {total:7.1f}"])


class _Kernel(AsyncKernelManager):
    """The kernel of the running interpreter, and not another one installed under its name."""

    @default("kernel_spec_manager")
    def _search_no_folders(self) -> KernelSpecManager:
        return KernelSpecManager(kernel_dirs=[])


class _Progress:
    """Prints a line per finished cell, and what a long cell writes now and then."""

    def __init__(self, name: str, total: int) -> None:
        self.name = name
        self.total = total
        self.done = 0
        self.start = self.last = time.monotonic()
        self.text = ""

    def say(self, text: str) -> None:
        print(f"[{self.name}] {text}", flush=True)
        self.last = time.monotonic()

    def started(self, **_: Any) -> None:
        self.start = self.last = time.monotonic()
        self.text = ""

    def finished(self, cell: Any, **_: Any) -> None:
        self.done += 1
        first = cell.source.strip().splitlines()[0]
        seconds = time.monotonic() - self.start
        self.say(f"cell {self.done:2}/{self.total} {seconds:7.1f} s  {first[:72]}")

    def write(self, text: str) -> None:
        """Take what a cell prints; a progress bar rewrites its line after a carriage return."""
        self.text = (self.text + text)[-400:]
        if time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            shown = [part for part in re.split(r"[\r\n]", self.text) if part.strip()]
            seconds = time.monotonic() - self.start
            self.say(f"      ... {seconds:7.1f} s  {shown[-1].strip()[:120] if shown else ''}")

    def flush(self) -> None:
        sys.stdout.flush()


def _bring_up_to_date(job: Job, fresh: bool) -> Run:
    name, declared = job.path.stem, notebook.declared_figures(job.path)
    state_file = job.out / f"{name}.json"
    inputs = notebook.fingerprint(job.path, job.parameters)
    state = json.loads(state_file.read_text()) if state_file.is_file() else {}
    place = figures.folder(job.parameters.get("scale", "micro"))
    exist = [(place / f"{figure}.png").is_file() for figure in declared]
    if not fresh and state.get("inputs") == inputs and all(exist):
        print(f"[{name}] up to date ({state['seconds']:.1f} s when executed)", flush=True)
        return Run(name=name, status="up to date", seconds=state["seconds"], figures=declared)
    state_file.unlink(missing_ok=True)
    start, now = time.monotonic(), time.time()
    print(f"[{name}] executing", flush=True)
    error = _execute(job) or _missing(declared, place, now)
    seconds = round(time.monotonic() - start, 1)
    if error:
        print(f"[{name}] failed after {seconds} s\n{error}", flush=True)
        return Run(name=name, status="failed", seconds=seconds, error=error)
    os.replace(job.out / f"failed-{name}.ipynb", job.out / f"{name}.ipynb")
    record = {"inputs": inputs, "parameters": job.parameters, "figures": declared}
    write_json(state_file, {**record, "seconds": seconds, "versions": versions()})
    return Run(name=name, status="executed", seconds=seconds, figures=declared)


def _execute(job: Job) -> str:
    """Run one notebook; return the failing cell and its error, or nothing."""
    cells = nbformat.read(job.path, as_version=4).cells
    code = sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in cells)
    progress = _Progress(job.path.stem, code + bool(job.parameters))  # one cell is injected
    try:
        papermill.execute_notebook(
            job.path,
            job.out / f"failed-{job.path.name}",
            job.parameters,
            kernel_name=notebook.KERNEL,
            progress_bar=False,
            start_timeout=300,
            stdout_file=progress,
            stderr_file=progress,
            kernel_manager_class=_Kernel,
            config=Config(KernelManager=Config(transport_encryption="auto")),
            # Bars are lines here, not widgets: tqdm need not ask for ipywidgets.
            extra_arguments=[f"--IPKernelApp.exec_lines={QUIET}"],
            resources={"metadata": {"path": str(job.cwd)}},
            on_cell_execute=progress.started,
            on_cell_executed=progress.finished,
        )
    except PapermillExecutionError as error:
        return re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    except DeadKernelError as error:
        return f"{error}: the kernel's process ended; it may have run out of memory."
    return ""


def _missing(declared: Sequence[str], place: Path, since: float) -> str:
    """Name the declared figures that were not written since a time."""
    files = {name: place / f"{name}.png" for name in declared}
    absent = [n for n, f in files.items() if not f.is_file() or f.stat().st_mtime < since - 1]
    expected = ", ".join(absent)
    return f"expected the notebook to write {expected}, as its title says." if absent else ""


def _parse(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"expected a parameter as name=value; got {text!r}. Write it that way.")
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
    return name, list(literal) if isinstance(literal, tuple) else literal  # papermill: no tuples


if __name__ == "__main__":
    sys.exit(tyro.cli(command))
