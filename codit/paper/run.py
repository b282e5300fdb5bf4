"""Executes the notebooks that are out of date, through papermill.

A notebook is up to date when its cells, its parameters, the package, the package versions and the
shipped models and results are those it was last executed with, and its figures exist. What is
executed grows as `notebooks/executed/SCALE/failed-NN_slug.ipynb`, is renamed when all cells have
passed, and `NN_slug.json`, written last, records what it was made from.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import os
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import nbformat
import papermill
import tyro
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

import codit
from codit.dataset import workers
from codit.files import versions, write_json
from codit.paper import figures, store


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
        scale: whose recipes the notebooks use: micro, full, laptop, paper, real.
        only: numbers or names of notebooks, separated by commas: 01,03. Empty: all.
        jobs: notebooks executed at the same time; they share the cores, unless OMP_NUM_THREADS
            says how many threads each has.
        fresh: execute what is up to date too. Results in the store are used again; delete
            `data/cache` to compute them anew.
        parameter: name=value, a Python literal or else a text, given to every chosen notebook;
            may be repeated.

    Returns:
        int: exit status, 0 where no notebook failed.
    """
    given = {"scale": scale, **dict(map(_parse, parameter))}
    # Threads of one kernel that wait for a core another one holds cost a hundredfold.
    threads = max(1, (os.cpu_count() or 1) // max(1, jobs))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    chosen = choose(store.repository() / "notebooks", [name for name in only.split(",") if name])
    print(plan(chosen, given, jobs=jobs), flush=True)
    states = reproduce(chosen, given, jobs=jobs, fresh=fresh)
    print(found(chosen, scale), flush=True)
    return int("failed" in states)


def plan(paths: Sequence[Path], parameters: Mapping[str, Any], *, jobs: int = 1) -> str:
    """Return what an execution will do, for reading: each notebook, and how long it takes.

    The seconds of its last execution at this scale, or else what its title says it costs.
    """
    scale = str(parameters["scale"])
    lines = [
        f"{len(paths)} notebooks at scale {scale}, {jobs} at a time; what is up to date is kept:"
    ]
    for path in paths:
        state = path.parent / "executed" / scale / f"{path.stem}.json"
        title = nbformat.read(path, as_version=4).cells[0].source
        costs = re.search(r"\*\*Costs:?\*\*:? (.+)", title)
        told = costs[1] if costs else "its title does not say how long"
        if state.is_file():
            told = f"{json.loads(state.read_text())['seconds']:.0f} s when last executed"
        lines.append(f"  {path.stem:<28} {told}")
    return "\n".join(lines)


def found(paths: Sequence[Path], scale: str) -> str:
    """Return the figures of notebooks for reading: where each lies, and what its claims say."""
    lines = [f"Figures at scale {scale}, and how many of their claims hold:"]
    for name in itertools.chain(*map(declared_figures, paths)):
        stem = figures.folder(scale) / name
        told = "not written"
        if Path(f"{stem}.json").is_file():
            claims = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))["claims"]
            counts = Counter(figures.WORDS[claim["holds"]] for claim in claims)
            told = ", ".join(
                f"{word} {counts[word]}" for word in figures.WORDS.values() if counts[word]
            )
        lines.append(f"  {os.path.relpath(f'{stem}.png'):<48} {told or 'no claims'}")
    return "\n".join(lines)


def reproduce(
    paths: Sequence[Path], parameters: Mapping[str, Any], *, jobs: int = 1, fresh: bool = False
) -> list[str]:
    """Bring notebooks up to date; one that fails does not stop the others.

    Returns "executed", "up to date" or "failed" for each. Every parameter must be one of every
    notebook, of which papermill would only warn: ValueError. `jobs` are processes.
    """
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1; got {jobs}. Give 1 for one after another.")
    for path in paths:
        known = parameters_of(path)
        if unknown := sorted(set(parameters) - set(known)):
            raise ValueError(
                f"expected parameters of {path.name}, {', '.join(known)}; got {', '.join(unknown)}."
                " Choose the notebooks that have it with --only."
            )
    work = partial(bring_up_to_date, parameters=dict(parameters), fresh=fresh)
    if jobs == 1:
        return list(map(work, paths))
    with workers.pool(jobs) as pool:
        return list(pool.map(work, paths))


def bring_up_to_date(
    path: Path,
    parameters: Mapping[str, Any],
    *,
    fresh: bool = False,
    out: Path | None = None,
    cwd: Path | None = None,
) -> str:
    """Execute one notebook, unless it is up to date, say so in a line, and return it.

    `out`: where the executed notebook goes; None: `executed/SCALE/` beside the notebook. `cwd`:
    working directory of the kernel; None: the notebook's folder.
    """
    path, name = path.absolute(), path.stem
    out = out or path.parent / "executed" / str(parameters["scale"])
    draft, state = out / f"failed-{path.name}", out / f"{name}.json"
    place, inputs = figures.folder(parameters["scale"]), fingerprint(path, parameters)
    pictures = [place / f"{figure}.png" for figure in declared_figures(path)]
    before = json.loads(state.read_text()) if state.is_file() else {}
    if not fresh and before.get("inputs") == inputs and all(p.is_file() for p in pictures):
        print(f"[{name}] up to date ({before['seconds']:.1f} s when executed)", flush=True)
        return "up to date"
    out.mkdir(parents=True, exist_ok=True)
    state.unlink(missing_ok=True)
    start, now = time.monotonic(), time.time()
    print(f"[{name}] executing", flush=True)

    def told(cell: Any, **_: Any) -> None:
        seconds, line = time.monotonic() - start, cell.source.strip().partition("\n")[0]
        print(f"[{name}] {seconds:7.1f} s  {line[:72]}", flush=True)

    error = ""
    try:
        papermill.execute_notebook(
            path,
            draft,
            dict(parameters),
            kernel_name="python3",
            progress_bar=False,
            start_timeout=300,
            config=Config(KernelManager=Config(transport_encryption="auto")),  # or it warns
            cwd=cwd or path.parent,
            on_cell_executed=told,
        )
        late = [p.stem for p in pictures if not p.is_file() or p.stat().st_mtime < now - 1]
        if late:
            error = f"expected the notebook to write {', '.join(late)}, as its title says."
    except PapermillExecutionError as failed:
        error = f"In [{failed.exec_count}]: {failed.ename}: {failed.evalue}"
    except DeadKernelError:
        error = "the kernel's process ended; it may have run out of memory."
    seconds = round(time.monotonic() - start, 1)
    if error:
        print(f"[{name}] failed after {seconds} s, {draft}: {' '.join(error.split())}", flush=True)
        return "failed"
    os.replace(draft, out / path.name)
    record = {"inputs": inputs, "parameters": dict(parameters), "versions": versions()}
    write_json(state, {**record, "seconds": seconds})
    print(f"[{name}] executed in {seconds} s: {', '.join(p.stem for p in pictures)}", flush=True)
    return "executed"


def choose(folder: Path, only: Sequence[str] = ()) -> list[Path]:
    """Return the notebooks `NN_slug.ipynb` of a folder in their order, all or those named.

    `only`: numbers ("1", "01") or names ("01_score_distribution"). ValueError: there is none.
    """
    paths = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    if not paths:
        raise ValueError(f"expected notebooks NN_slug.ipynb in {folder}; there are none.")
    chosen = set()
    for name in only:
        matches = [p for p in paths if name == p.stem or p.stem.startswith(f"{name.zfill(2)}_")]
        if not matches:
            names = ", ".join(path.stem for path in paths)
            raise ValueError(f"expected one of the notebooks {names}; got {name!r}. Name one.")
        chosen.update(matches)
    return sorted(chosen) if only else paths


def parameters_of(path: Path) -> dict[str, Any]:
    """Return the names and values of a notebook's cell tagged `parameters`.

    ValueError: not one such cell, or a statement in it is not `name = constant`. What is computed
    there would be stale, for papermill injects its values below that cell.
    """
    cells = nbformat.read(path, as_version=4).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(
            f"expected exactly one cell tagged `parameters` in {path.name}; got {len(tagged)}. "
            "Tag the cell whose values a reader may want to change."
        )
    found = {}
    for statement in ast.parse(tagged[0].source).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=value)):
                found[name] = value
            case _:
                raise ValueError(
                    f"expected `name = constant` in the parameters cell of {path.name}; got "
                    f"`{ast.unparse(statement)}`. Compute in the cells below."
                )
    return found


def declared_figures(path: Path) -> tuple[str, ...]:
    """Return the figures a notebook says it writes, `figures/NAME` in its first cell, in order."""
    title = nbformat.read(path, as_version=4).cells[0].source
    return tuple(dict.fromkeys(re.findall(r"figures/(\d\d[a-z]?_[a-z0-9_]+)", title)))


def fingerprint(path: Path, parameters: Mapping[str, Any]) -> str:
    """Return the SHA-256 of what an execution depends on.

    Cells without their outputs, parameters, the package, versions of packages, shipped results'
    manifests and numbers.
    """
    package = Path(codit.__file__).parent
    inputs = sorted(package.rglob("*.py"))
    for place, names in itertools.product(store.SHIPPED, ("*.json", f"*/{store.MANIFEST}")):
        inputs += sorted((package.parent / place).glob(names))
    cells = [(cell.cell_type, cell.source) for cell in nbformat.read(path, as_version=4).cells]
    files = [(str(f.relative_to(package.parent)), f.read_text(encoding="utf-8")) for f in inputs]
    parts = [cells, sorted(parameters.items()), files, versions()]
    return hashlib.sha256(json.dumps(parts, default=repr).encode()).hexdigest()


def _parse(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise ValueError(f"expected a parameter as name=value; got {text!r}. Write it that way.")
    try:
        literal = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
    return name, list(literal) if isinstance(literal, tuple) else literal  # papermill: no tuples
