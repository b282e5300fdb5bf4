"""Batches answered by actors of a Ray cluster, through Ray Data, and given back in order.

Prompts go to the cluster's object store, one block a batch; answers come back as they are ready.
Ray restarts an actor that dies and gives its batches to it again. Everything that Ray is asked for
stands here, and Ray is imported by the functions that need it: it is an extra.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from codit import recipes
from codit.batch_records import Row, Stream, Work, answer, failure, loaded, raised

DEATHS = 3  # of the actor that has a batch; each time the batch is answered again
SECONDS = 10  # for a cluster to be reached
LOCAL = "local"
QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal"}
OWN = {  # a cluster of its own
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only, as on Windows and macOS
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextlib.contextmanager
def cluster(address: str, workers: int | None) -> Iterator[int]:
    """Connect to a cluster for a `with` block, and give the number of workers.

    Where this process is connected to Ray already, that connection is used and kept. A cluster of
    its own ends with this process; if that is killed, workers end at once, and two of Ray's agents,
    which hold no model, a minute later.

    Args:
        address: "local" (a cluster of its own on this machine, loopback only, without dashboard and
            usage statistics), "auto", "host:port" or "ray://host:port".
        workers: None: as many as the cluster has GPUs or, without any, CPUs.

    Yields:
        int: number of workers.

    Raises:
        ValueError: Ray is not installed, or the cluster is too small.
        ConnectionError: there is no such cluster.

    Source: ours.
    """
    ray = _ray()
    joined = ray.is_initialized()
    with _environment(QUIET | OWN if address == LOCAL else QUIET), _silent("ray.data"):
        if not joined:
            _connect(ray, address, workers)
        try:
            kind, there = _resources(ray)
            if (workers or 1) > there:
                raise ValueError(
                    f"expected a cluster with {workers or 1} {kind}s, one for each worker; got "
                    f"{there}. Use fewer workers or a larger cluster."
                )
            yield workers or there
        finally:
            if not joined:
                ray.shutdown()


def answers(work: Work, batches: Sequence[Sequence[Row]], *, workers: int) -> Stream:
    """Answer batches by actors, one pair each, within `cluster`.

    A worker takes one GPU where the cluster has any, else one CPU. It needs this package, and finds
    models by the same names or, of folders, absolute paths. Ray Data holds back workers whose
    answers nobody has taken. Close the iterator to end the workers early.

    Args:
        work: what each worker loads and does; `threads` is not used: Ray gives a worker as many as
            it has CPUs.
        batches: rows of each batch.
        workers: number of actors; no more than there are batches are started.

    Yields:
        list[dict]: the records of each batch, in the order of the batches.

    Raises:
        ValueError: as a worker raised it: models that do not belong together, say.
        OSError: as a worker raised it; ChildProcessError where workers died `DEATHS` + 1 times
            of the same batch, or the cluster is gone.
        RuntimeError: any other exception of a worker, whose traceback is in the note.

    Source: ours.
    """
    if not batches:
        return
    ray = _ray()
    tally = _tally(ray)
    texts = [{"number": n, "rows": json.dumps(batch)} for n, batch in enumerate(batches)]
    dataset = ray.data.from_items(texts, override_num_blocks=len(texts))
    del texts  # they are in the object store
    kind, _ = _resources(ray)
    gpus = int(work.load_options.get("tensor_parallel_size", 1))  # of vLLM's engine
    dataset = dataset.map_batches(
        _Worker,
        fn_constructor_kwargs={"work": _anywhere(work), "tally": tally},
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            size=min(workers, len(batches)), max_tasks_in_flight_per_actor=2
        ),
        num_gpus=gpus if kind == "GPU" else 0,
        num_cpus=0 if kind == "GPU" else 1,
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = dataset.context.print_on_execution_start = False
    try:
        with contextlib.closing(iter(dataset.iter_batches(batch_size=1))) as answered:
            for found in answered:
                told = json.loads(found["answer"][0])
                if isinstance(told, dict):
                    raise raised(told)
                yield told
    except ray.exceptions.RayError as error:
        raise ChildProcessError(
            f"expected {workers} Ray workers to answer; got {_first_line(error)} Look at the "
            "cluster; finished batches are kept, and the same command goes on from there."
        ) from error


class _Worker:
    """An actor: loads the pair at its first batch, so that a death then counts as that batch's.

    Ray Data restarts an actor that dies, and gives it its batches again, without end.
    """

    def __init__(self, work: Work, tally: Any) -> None:
        self.work, self.tally = work, tally
        self.loaded: tuple[Any, Any] | None = None

    def __call__(self, block: Any) -> dict[str, list[str]]:
        told: Any
        try:
            _check_tries(self.tally, block["number"][0].as_py())
            if self.loaded is None:
                transformers_logging.disable_progress_bar()  # the driver has one for all
                self.loaded = loaded(self.work)
            told = answer(self.work, *self.loaded, json.loads(block["rows"][0].as_py()))
        except Exception as error:  # as an answer, or Ray would wrap it in its own
            told = failure(error)
        return {"answer": [json.dumps(told)]}


def _tally(ray: Any) -> Any:
    """Start an actor that outlives the workers and counts how often each batch was begun."""

    class Tally:  # local: Ray sends it by value, and its process does not import models
        def __init__(self) -> None:
            self.begun: dict[int, int] = {}

        def begin(self, number: int) -> int:
            self.begun[number] = self.begun.get(number, 0) + 1
            return self.begun[number]

    return ray.remote(num_cpus=0)(Tally).remote()


def _check_tries(tally: Any, number: int) -> None:
    """Raise ChildProcessError for a batch that every worker dies of."""
    import ray

    deaths = ray.get(tally.begin.remote(number)) - 1
    if deaths > DEATHS:
        raise ChildProcessError(
            f"expected Ray workers to answer; got {deaths} deaths in batch {number}, most often "
            "for want of memory. Use fewer workers or a smaller batch size; finished batches are "
            "kept, and the same command goes on from there."
        )


def _ray() -> Any:
    """Import Ray, or say how to install it."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(
            f'expected Ray; got {error}. Install it: pip install -e ".[ray]", or leave the Ray '
            "address out: workers on this machine do not need it."
        ) from error
    return ray


def _connect(ray: Any, address: str, workers: int | None) -> None:
    """Start a cluster of its own, or join one."""
    how: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == LOCAL:
        # More workers than cores are allowed: they share.
        cpus = max(os.cpu_count() or 1, workers or 1)
        with _loopback(ray):
            ray.init(address=LOCAL, num_cpus=cpus, include_dashboard=False, **how)
        return
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdigit():  # Ray itself would try for many minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS).close()
        ray.init(address=address, **how)
    except Exception as error:  # Ray has no one exception for a cluster that is not there
        raise ConnectionError(
            f"expected a Ray cluster at {address}; got {_first_line(error)} Start one "
            f"(ray start --head), or use the address {LOCAL!r} for this machine alone."
        ) from error


@contextlib.contextmanager
def _loopback(ray: Any) -> Iterator[None]:
    """Do in this process what `OWN` does in those it starts: Ray was imported before."""
    constants = ray._private.ray_constants
    before, constants.ENABLE_RAY_CLUSTER = constants.ENABLE_RAY_CLUSTER, False
    try:
        yield
    finally:
        constants.ENABLE_RAY_CLUSTER = before


@contextlib.contextmanager
def _silent(name: str) -> Iterator[None]:
    """Keep a logger from reporting less than errors."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no more').splitlines()[0]}"


def _resources(ray: Any) -> tuple[str, int]:
    """Return what a worker takes one of, and how many the cluster has."""
    there = ray.cluster_resources()
    kind = "GPU" if there.get("GPU") else "CPU"
    return kind, int(there.get(kind, 0))


def _anywhere(work: Work) -> Work:
    """Return work whose models are found from any folder."""
    pair = work.recipe.pair
    models: dict[str, Any] = {
        role: replace(model, name=str(Path(model.name).resolve()))
        for role, model in (("expert", pair.expert), ("amateur", pair.amateur))
        if isinstance(model, recipes.Model) and Path(model.name).is_dir()
    }
    return replace(work, recipe=replace(work.recipe, pair=replace(pair, **models)))


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a `with` block; what the user has set stays."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]
