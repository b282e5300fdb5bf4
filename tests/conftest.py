"""What every test needs: no network, one thread, this checkout, and where real prompts are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Set before any library reads them, and handed on to every process and kernel a test starts.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["MPLBACKEND"] = "Agg"
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The checkout under test, not another one that is installed.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--prompts-dir",
        type=Path,
        help="folder with mt_bench_question.jsonl and ifeval_input_data.jsonl, for the tests that "
        "read real benchmark prompts; they are skipped without it",
    )


@pytest.fixture
def prompts_dir(request: pytest.FixtureRequest) -> Path:
    """The folder of real benchmark prompts; skips the test where none was given."""
    folder = request.config.getoption("--prompts-dir")
    if folder is None:
        pytest.skip("real benchmark prompts are not shipped: give their folder with --prompts-dir")
    return Path(folder)


@pytest.fixture
def micro(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scale of tests/micro.py; what it makes, every test and worker of the session finds."""
    from tests import micro  # imports torch: only the tests that ask for it

    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent
    return micro.small(monkeypatch, shared / "micro")


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call it, and whatever is made afterwards fails the test."""
    from codit import decode, student, synthesis
    from codit.world import pretraining

    def never(*args: Any, **kwargs: Any) -> None:
        pytest.fail("made again")

    def forbid() -> None:
        monkeypatch.setattr(pretraining, "pretrain", never)
        monkeypatch.setattr(student, "train", never)
        monkeypatch.setattr(synthesis, "synthesize", never)
        monkeypatch.setattr(decode, "generate", never)

    return forbid
