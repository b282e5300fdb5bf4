"""Figures: one theme, one colour per role, and pictures kept with the numbers they show.

A figure is four files of one name: PDF and PNG, the plotted numbers as CSV, and the provenance as
JSON. The same numbers give the same bytes, so that a figure made again changes nothing in git.
How marks are drawn is `codit.paper.plots`. Choices without a source are ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
import psutil
from matplotlib.figure import Figure

from codit import recipes as recipe
from codit.files import replacing, versions, write_json
from codit.paper import store

# One colour per role in every figure; neighbours in a plot stay apart for colour-blind readers
# (seaborn's "colorblind" palette, darkened where two roles came too close; a test measures it).
COLOURS: dict[str, str] = {
    "direct": "#9c9c9c",
    "truncated": "#de8f05",
    "codit": "#0173b2",
    "greedy": "#7a4a1f",
    "best-of-n": "#cc78bc",
    "best-of-n-judged": "#c2187f",
    "expert": "#029e73",
    "amateur": "#b33f00",
    "ideal": "#56b4e9",
    "careless": "#e0d000",
    "chat-vector": "#4b2a7b",
    "unrelated": "#000000",
    "ctd": "#4831ea",
    "kept-scale": "#2e79ef",
    "instructive": "#6ad37b",
    "prompt-tuning": "#ec175e",
}
LABELS: dict[str, str] = {
    **{role: role.replace("-", " ").capitalize() for role in COLOURS},
    "codit": "CoDIT",
    "ctd": "CTD",
    "kept-scale": "CTD, kept scale",
    "best-of-n": "Best-of-N",
    "best-of-n-judged": "Best-of-N, judged",
}
WORDS = {True: "holds", False: "does not", None: "undecided"}  # a claim's verdict
COMMITTED = "full"  # the scale whose figures are in git
# What may differ between two makings of one figure without its content being another.
VOLATILE = ("commit", "dirty", "minutes", "seconds")


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement of the paper, evaluated on our numbers.

    Args:
        statement: what is claimed, in one sentence.
        source: where: "CoDIT, Figure 2", "ours".
        ours: what we found, with the numbers and their interval.
        holds: True, False, or None where our numbers do not decide.
    """

    statement: str
    source: str
    ours: str
    holds: bool | None


def folder(scale: str = COMMITTED) -> Path:
    """Return the folder, absolute, that figures of a scale are written to.

    The environment variable CODIT_FIGURES where it is set, else `figures` of the checkout, and in
    it a folder named after any scale but `full`. It decides where figures lie and never what they
    show.
    """
    relocated = os.environ.get("CODIT_FIGURES")
    root = Path(relocated).absolute() if relocated else store.repository() / "figures"
    return root if scale == COMMITTED else root / scale


def theme() -> None:
    """Give figures and tables the look of this repository, whatever the reader's settings are."""
    import seaborn  # brings scipy.stats: a second that those who only ask for `folder` save

    matplotlib.rcdefaults()
    pd.set_option("display.max_colwidth", None)
    seaborn.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=0.9)
    matplotlib.rcParams.update(
        {
            "axes.spines.right": False,
            "axes.spines.top": False,
            "figure.constrained_layout.use": True,
            "figure.dpi": 100,
            "figure.figsize": (6.4, 3.6),
            "legend.frameon": False,
            "pdf.fonttype": 42,
            "savefig.dpi": 200,
            "savefig.bbox": "tight",  # notes and legends stand outside the axes
        }
    )


def save(
    fig: Figure,
    name: str,
    *,
    data: pd.DataFrame,
    recipes: Mapping[str, Any],
    claims: Sequence[Claim],
    scale: str = COMMITTED,
    parameters: Mapping[str, Any] | None = None,
) -> Path:
    """Write a figure as NAME.pdf, NAME.png, NAME.csv and NAME.json; return the PNG's path.

    Where numbers, recipes, versions and claims are those already there, the provenance stays as it
    is: it names the commit at which this result first came out.

    Args:
        fig: the picture.
        name: `NN_slug`, NN the notebook's number; a second picture is `NNb_slug`.
        data: the plotted numbers, one row per mark.
        recipes: what the numbers were made from: a name to a recipe, or to several.
        claims: the paper's statements on these numbers; empty where none is evaluated.
        scale: whose numbers these are; decides the folder, see `folder`.
        parameters: further values that the picture depends on, the notebook's parameters say.

    Raises:
        ValueError: the name has another form; no data, no recipe; a claim is not a `Claim`.
    """
    _check(name, data, recipes, claims)
    record = provenance(recipes, claims, parameters={"scale": scale, **(parameters or {})})
    stem = folder(scale) / name
    stem.parent.mkdir(parents=True, exist_ok=True)
    table = data.to_csv(index=False, float_format="%.8g", lineterminator="\n").encode()
    is_kept = _is_same(stem, table, record)
    # No dates and no program names: equal pictures are equal files.
    unnamed = {"pdf": ("CreationDate", "Creator", "Producer"), "png": ("Software",)}
    for kind, fields in unnamed.items():
        with replacing(f"{stem}.{kind}") as stream:
            fig.savefig(stream, format=kind, metadata=dict.fromkeys(fields))
    with replacing(f"{stem}.csv") as stream:
        stream.write(table)
    if not is_kept:
        write_json(f"{stem}.json", record)
    return Path(f"{stem}.png")


def provenance(
    recipes: Mapping[str, Any],
    claims: Sequence[Claim] = (),
    *,
    parameters: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return where a figure's numbers come from; arguments as of `save`.

    `commit` (None outside git), `dirty` (files other than figures differ from it), `minutes` (this
    process so far), `parameters`, `results` (per name a list of key, recipe and the recorded
    seconds of making it), `seeds`, `versions`, `machine`, `claims`.
    """
    groups = {name: _as_list(value) for name, value in recipes.items()}
    described = {name: list(map(_described, group)) for name, group in groups.items()}
    return {
        **_commit(),
        "minutes": round((time.time() - psutil.Process().create_time()) / 60, 2),
        "parameters": dict(parameters or {}),
        "results": described,
        "seeds": sorted(_seeds(list(groups.values()))),
        "versions": {**versions(), "matplotlib": matplotlib.__version__},
        "machine": f"{platform.system()} {platform.machine()}",
        "claims": [dataclasses.asdict(claim) for claim in claims],
    }


def _check(name: str, data: pd.DataFrame, recipes: Mapping[str, Any], claims: Any) -> None:
    if not re.fullmatch(r"\d\d[a-z]?_[a-z0-9_]+", name):
        raise ValueError(
            f"expected a figure's name like 01_score_distribution or 01b_by_family; got {name!r}. "
            "Begin with the notebook's number."
        )
    if not len(data):
        raise ValueError(f"expected the plotted numbers of {name}; got an empty table. Pass data=.")
    if not recipes or not all(_as_list(value) for value in recipes.values()):
        raise ValueError(
            f"expected the recipes behind {name}; got {recipes!r}. Pass recipes={{'teacher': ...}}."
        )
    for claim in claims:
        if not isinstance(claim, Claim) or claim.holds not in (True, False, None):
            raise ValueError(
                f"expected claims as figures.Claim with holds True, False or None; got {claim!r}. "
                "Write figures.Claim(statement=..., source=..., ours=..., holds=bool(...))."
            )


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _commit() -> dict[str, Any]:
    def git(*words: str) -> str | None:
        with contextlib.suppress(OSError, subprocess.CalledProcessError):
            command = ["git", "-C", str(store.repository()), *words]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout
        return None

    head = git("rev-parse", "HEAD")
    # Figures themselves change while figures are made: they do not make the code another.
    changes = git("status", "--porcelain", "--", ".", ":!figures") if head else None
    return {"commit": head and head.strip(), "dirty": None if changes is None else bool(changes)}


def _described(one: Any) -> dict[str, Any]:
    found = store.find(one)
    seconds = store.read_manifest(found).get("seconds") if found else None
    return {"key": recipe.key(one), "seconds": seconds, "recipe": recipe.describe(one)}


def _seeds(value: Any) -> set[int]:
    if isinstance(value, (list, tuple)):
        return set().union(*map(_seeds, value))
    if not dataclasses.is_dataclass(value):
        return set()
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    own = {fields["seed"]} if "seed" in fields else set()
    return own.union(*map(_seeds, fields.values()))


def _is_same(stem: Path, table: bytes, record: dict[str, Any]) -> bool:
    try:
        before = json.loads(Path(f"{stem}.json").read_text(encoding="utf-8"))
        if Path(f"{stem}.csv").read_bytes() != table:
            return False
    except (FileNotFoundError, ValueError):
        return False
    is_improved = before.get("dirty") is not False and record["dirty"] is False
    return not is_improved and _settled(before) == _settled(json.loads(json.dumps(record)))


def _settled(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _settled(part) for name, part in value.items() if name not in VOLATILE}
    return [_settled(part) for part in value] if isinstance(value, list) else value
