"""Where results are kept: one folder per recipe, found by the recipe's key.

A result is looked for among the folders shipped with the repository (`data/models/*`,
`data/results/*`), then in the cache (`data/cache/<Recipe>-<key>`), and made when neither has it.
Its `manifest.json` is written last, so a folder that has one is complete; one process at a time
works on a key, and a process killed at any moment leaves nothing that looks finished.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

import codit
from codit import recipes
from codit.files import replacing, write_json

if TYPE_CHECKING:
    import pandas as pd

MANIFEST = "manifest.json"
SHIPPED = ("data/models", "data/results")


def repository() -> Path:
    """Return the root of the checkout that this package runs from, which must be there.

    It holds `codit/`, `data/` and `notebooks/`. FileNotFoundError: an installed package has none.
    """
    root = _around()
    if not (root / "notebooks").is_dir():
        raise FileNotFoundError(
            f"expected the codit repository around the package; {root} holds no notebooks/. "
            "Install a checkout with `pip install -e .`, or set CODIT_CACHE to a results folder."
        )
    return root


def cache() -> Path:
    """Return the folder of results made on this machine, `data/cache` of the checkout.

    The environment variable CODIT_CACHE moves it: where results lie, never what they are.
    """
    relocated = os.environ.get("CODIT_CACHE")
    return Path(relocated).absolute() if relocated else repository() / "data" / "cache"


def find(recipe: Any) -> Path | None:
    """Return the folder of a recipe's finished result, or None when it has yet to be made.

    A shipped folder whose manifest holds the recipe's key, else its cache folder.

    Raises:
        ValueError: a manifest in one of those places cannot be read.
        FileNotFoundError: the package was not installed, and yet no checkout is around it.
    """
    key = recipes.key(recipe)
    shipped = () if _is_installed() else SHIPPED
    for place in shipped:
        # Not in folders such as `.NAME.old`, which a killed process may have left.
        for manifest in sorted((repository() / place).glob(f"[!.]*/{MANIFEST}")):
            if _holds(manifest.parent, key):
                return manifest.parent
    folder = _folder(recipe, key)
    return folder if _holds(folder, key) else None


def get(recipe: Any, make: Callable[[Any, Path], object], *, fresh: bool = False) -> Path:
    """Return the folder of a recipe's result, making it when there is none.

    Processes that ask for one key at the same time wait for one of them to make it. `make` works
    in `<Recipe>-<key>.partial`; what an interrupted try left there is handed to it as it is, so
    that a resumable maker goes on and another overwrites.

    Args:
        recipe: a dataclass of `codit.recipes`.
        make: fills the folder it is given: `make(recipe, folder)`; its return value is ignored.
        fresh: make it again from nothing, into the cache, even where it exists. A shipped folder
            is then neither used nor changed; an earlier cache folder stays until the new is ready.

    Returns:
        Path: absolute folder that holds the result and its `manifest.json`.

    Raises:
        ValueError: a manifest cannot be read.
        PermissionError: the cache folder cannot be written.
    """
    if not fresh and (found := find(recipe)):
        return found
    key = recipes.key(recipe)
    folder = _folder(recipe, key)
    partial = folder.with_name(folder.name + ".partial")
    _make_directory(folder.parent)
    with filelock.FileLock(folder.with_name(folder.name + ".lock")):
        if fresh:
            shutil.rmtree(partial, ignore_errors=True)
        elif _holds(folder, key):  # another process made it while this one waited
            return folder
        if not _holds(partial, key):  # else: killed between the manifest and the rename
            partial.mkdir(exist_ok=True)
            start = time.monotonic()
            make(recipe, partial)
            write_manifest(partial, recipe, seconds=round(time.monotonic() - start, 3))
        return place(partial, folder)


def place(made: Path, folder: Path) -> Path:
    """Rename a finished folder to where it belongs, in the stead of what lies there; return it."""
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    made.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def tables(
    recipe: Any, make: Callable[[Any, Path], Mapping[str, pd.DataFrame]]
) -> dict[str, pd.DataFrame]:
    """Return a study's tables by name, made by `make(recipe, folder)` where there are none.

    The folder holds what must outlive a kill until the tables are written, each as NAME.parquet.
    There texts are categories; they are read as texts, float16 as float32.
    """
    import pandas as pd  # not by a command that asks for its version

    def write(recipe: Any, folder: Path) -> None:
        for name, table in make(recipe, folder).items():
            texts = [c for c in table if table[c].dtype in ("object", "str")]
            small = table.astype(dict.fromkeys(texts, "category"))
            with replacing(folder / f"{name}.parquet") as stream:
                small.to_parquet(stream, index=False, compression="zstd")
        for path in folder.iterdir():
            if path.suffix != ".parquet":
                path.unlink()

    def read(path: Path) -> pd.DataFrame:
        found = pd.read_parquet(path)
        back = {"category": "str", "float16": "float32"}
        return found.astype({c: back[str(t)] for c, t in found.dtypes.items() if str(t) in back})

    return {path.stem: read(path) for path in sorted(get(recipe, write).glob("*.parquet"))}


def table(recipe: Any, make: Callable[[Any], pd.DataFrame], name: str) -> pd.DataFrame:
    """Return the one table of a study, `make(recipe)` where there is none; see `tables`."""
    return tables(recipe, lambda recipe, _: {name: make(recipe)})[name]


def write_manifest(folder: str | Path, recipe: Any, **extra: Any) -> Path:
    """Write `manifest.json`, which declares a folder complete: call it last; `extra` is JSON."""
    return write_json(Path(folder) / MANIFEST, recipes.manifest(recipe, **extra))


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """Return what `write_manifest` wrote.

    FileNotFoundError: there is none, the result is not complete. ValueError: no JSON object.
    """
    path = Path(folder) / MANIFEST
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        value = error
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object in {path}; got {value}. Delete its folder.")
    return value


def _around() -> Path:
    """Return the folder that holds the package: a checkout, or where packages are installed."""
    return Path(codit.__file__).resolve().parents[1]


def _is_installed() -> bool:
    """Whether the package lies among installed ones, where nothing is shipped with it."""
    return any(_around().glob("*.dist-info"))


def _folder(recipe: Any, key: str) -> Path:
    return cache() / f"{type(recipe).__name__}-{key}"


def _holds(folder: Path, key: str) -> bool:
    return (folder / MANIFEST).is_file() and read_manifest(folder).get("key") == key


def _make_directory(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PermissionError(
            f"expected a folder to write results to; {folder} cannot be made ({error.strerror}). "
            "Set CODIT_CACHE to a folder that can be written."
        ) from error
