"""What a wheel gives: each command works in an empty environment, or says what it needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CORE = PROJECT["dependencies"]
TRAIN = PROJECT["optional-dependencies"]["train"]
NOTEBOOKS = PROJECT["optional-dependencies"]["notebooks"]
MODELS = ("expert", "amateur")


def needed(requirements: list[str]) -> dict[str, metadata.Distribution]:
    """Return the distributions that requirements bring, their own requirements included."""
    found: dict[str, metadata.Distribution] = {}
    left, seen = [Requirement(line) for line in requirements], set()
    while left:
        one = left.pop()
        if str(one) in seen:
            continue
        seen.add(str(one))
        found[one.name.lower()] = metadata.distribution(one.name)
        for inner in map(Requirement, found[one.name.lower()].requires or []):
            extras = ("", *one.extras)
            if inner.marker is None or any(inner.marker.evaluate({"extra": e}) for e in extras):
                left.append(inner)
    return found


def test_the_core_is_half_of_what_the_notebooks_need() -> None:
    """A package that enters the core is a decision: it is what everybody installs."""
    core = needed(CORE)
    assert len(core) <= 55
    assert not {"papermill", "jupyterlab", "matplotlib", "scipy", "trl", "openai", "ray"} & set(
        core
    )
    assert len(needed(CORE + NOTEBOOKS)) > 1.6 * len(core)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an environment of the wheel and its requirements, and two local models.

    The requirements are this environment's own files, by links: nothing is fetched.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    shutil.copytree(ROOT / "codit", source / "codit", ignore=shutil.ignore_patterns("__pycache__"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, source]
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (wheel,) = folder.glob("codit-*.whl")
    venv.create(folder / "venv", symlinks=True)
    (site,) = (folder / "venv" / "lib").glob("python3*/site-packages")
    into = ["--python", folder / "venv" / "bin" / "python", "install", "--no-deps", "--no-index"]
    subprocess.run([*pip, *into, wheel], check=True, capture_output=True)
    link(site, CORE)
    for name in MODELS:
        shutil.copytree(ROOT / "data" / "models" / name, folder / name)
    rows = [{"id": n, "instruction": "Where does Zaro live?"} for n in range(3)]
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def link(site: Path, requirements: list[str]) -> None:
    for distribution in needed(requirements).values():
        for top in {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}:
            if not (site / top).is_symlink():
                (site / top).symlink_to(distribution.locate_file(top))


def codit(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(folder / "venv" / "bin" / "codit"), *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.long
def test_a_wheel_answers_prompts_and_trains_in_an_empty_environment(installed: Path) -> None:
    assert codit(installed, "--version").stdout.startswith("codit ")
    pair = ["--expert", "expert", "--amateur", "amateur"]
    files = ["--prompts", "in.jsonl", "--out", "out.jsonl"]
    ran = codit(installed, "synthesize", *pair, *files, "--max-new-tokens", "48")
    assert ran.returncode == 0, ran.stderr
    rows = [json.loads(line) for line in (installed / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == [0, 1, 2] or [row["id"] for row in rows] == [
        "0",
        "1",
        "2",
    ]
    ran = codit(
        installed, "chat-vector", "extract", "--post", "expert", "--pre", "amateur", "--out", "tau"
    )
    assert ran.returncode == 0, ran.stderr
    train = [
        "train",
        "--base",
        "amateur",
        "--template",
        "expert",
        "--data",
        "out.jsonl",
        "--out",
        "student",
    ]
    ran = codit(installed, *train)
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1), ran.stderr
    assert "expected the package trl" in ran.stderr
    assert '".[train]"' in ran.stderr
    (site,) = (installed / "venv" / "lib").glob("python3*/site-packages")
    link(site, TRAIN)  # the remedy
    ran = codit(installed, *train)
    assert ran.returncode == 0, ran.stderr
    assert (installed / "student" / "model.safetensors").is_file()


@pytest.mark.long
def test_what_needs_the_checkout_says_so_in_a_line(installed: Path) -> None:
    ran = codit(installed, "reproduce")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1), ran.stderr
    assert '".[notebooks]"' in ran.stderr
    (site,) = (installed / "venv" / "lib").glob("python3*/site-packages")
    link(site, NOTEBOOKS)
    ran = codit(installed, "reproduce")
    assert (ran.returncode, ran.stderr.count("\n")) == (2, 1), ran.stderr
    assert "expected the codit repository around the package" in ran.stderr
