"""The tests of the pair inside vLLM run where vLLM is: `make test-vllm` makes that environment."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

HERE = importlib.util.find_spec("vllm") is not None
collect_ignore_glob = [] if HERE else ["test_*.py"]

ENVIRONMENT = {
    "VLLM_TARGET_DEVICE": "cpu",  # the platform; the operators are tests/vllm/standins
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TORCHDYNAMO_DISABLE": "1",  # small helpers of the sampler would be compiled for seconds
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
if HERE:  # elsewhere pytest reads this file too, and other tests compile
    os.environ |= ENVIRONMENT

EAGER: dict[str, Any] = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 32}


@contextmanager
def started(expert: str, amateur: str, decoding: Any, **engine: Any) -> Iterator[Any]:
    """A pair in an engine of this process, which is gone after the block."""
    from codit.engine.vllm.engine import VllmPair

    pair = VllmPair(expert, amateur, decoding, **(EAGER | engine))
    try:
        yield pair
    finally:
        pair.close()


@pytest.fixture(scope="session", autouse=True)
def _process_groups() -> Iterator[None]:
    """All engines of a process share its process groups, so these go last."""
    yield
    from vllm.distributed import cleanup_dist_env_and_memory

    cleanup_dist_env_and_memory()


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that saves a pair of an architecture once and returns both folders."""
    from tests.vllm import vllm_pairs

    made: dict[str, tuple[str, str]] = {}

    def save(architecture: str, **changes: Any) -> tuple[str, str]:
        key = f"{architecture}{changes}"
        if key not in made:
            folder = tmp_path_factory.mktemp(architecture)
            made[key] = vllm_pairs.save(folder, architecture, **changes)
        return made[key]

    return save
