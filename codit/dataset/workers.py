"""Batches answered by other processes, in order: of this machine, or of a Ray cluster.

Worker number k calls `load(k)` once and answers batches by what it returns. A worker ends with its
driver, whatever ends that. One that dies ends the run; what was given back before is whole. How a
command that has started processes is stopped stands here too. Numbers without a source are ours.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

import psutil
from tqdm import tqdm

Row = Mapping[str, Any]
Records = list[dict[str, Any]]
Stream = Generator[Records, None, None]
Load = Callable[[int], Callable[[Sequence[Row]], Records]]
Answer = Records | dict[str, str]  # of a worker: records, or what `_failure` tells

AHEAD = 4  # batches per worker that may be answered before an earlier one is
DEATHS = 3  # of an actor, and of a batch's actors, that Ray makes good
SECONDS = 10  # for a cluster to be reached
STARTS = 3  # of a cluster: Ray waits 30 s, and a first start on a busy machine compiles Ray itself
PATIENCE = 5  # seconds until a process that was told to end is killed
QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal"}
OWN = {  # a cluster of its own
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # loopback only, as on Windows and macOS
    "RAY_USAGE_STATS_ENABLED": "0",
}
KINDS: dict[str, type[Exception]] = {
    kind.__name__: kind for kind in (ValueError, OSError, MemoryError, RuntimeError)
}
REMEDY = "Use fewer workers or a smaller batch size; finished batches are kept, and the same "
REMEDY += "command goes on from there."


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM stop a `with` block as Ctrl-C does, with status 143; end what the block started.

    Processes that these have started are ended too. A second SIGTERM is ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are for that alone
        yield
        return
    known, mine = set(psutil.Process().children()), set[psutil.Process]()

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)
        mine.update(_since(known))  # where a worker ends, what it has started loses its parent
        raise KeyboardInterrupt(number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as stopped:
        _end(mine | _since(known))
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # tells of each unfinished task
        print("codit: interrupted; the same command goes on from here", file=sys.stderr)
        if stopped.args:
            sys.exit(128 + signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _since(known: set[psutil.Process]) -> set[psutil.Process]:
    """Return the children of this process that are not known, and what these have started."""
    found = set[psutil.Process]()
    for child in set(psutil.Process().children()) - known:
        with contextlib.suppress(psutil.NoSuchProcess):
            found.update((child, *child.children(recursive=True)))
    return found


def _end(processes: set[psutil.Process]) -> None:
    """Tell processes to end, and kill those that do not."""
    own = resource_tracker._resource_tracker._pid  # type: ignore[attr-defined]
    left = [process for process in processes if process.pid != own]  # it ends by itself, last
    for deed in ("terminate", "kill"):
        for process in left:
            with contextlib.suppress(psutil.Error):
                getattr(process, deed)()
        left = psutil.wait_procs(left, PATIENCE)[1]


@contextlib.contextmanager
def pool(
    size: int, begin: Callable[..., object] | None = None, *given: Any
) -> Iterator[ProcessPoolExecutor]:
    """Give processes that call `begin(*given)` and end with the block, whatever they are doing.

    They end with this process too, whatever ends it.
    """
    context = multiprocessing.get_context("spawn")  # a fork would share locks and CUDA
    theirs, ours = context.Pipe(duplex=False)
    made = ProcessPoolExecutor(size, context, _begin, (theirs, begin, given))
    try:
        yield made
    finally:
        ours.close()
        made.shutdown(cancel_futures=True)
        theirs.close()


def answers(load: Load, batches: Sequence[Sequence[Row]], *, workers: int) -> Stream:
    """Answer batches by processes of this machine, and yield the records of each, in order.

    `load` is pickled. At most `AHEAD` batches per worker are held for one that takes longer. Close
    the iterator to end the workers early.

    ChildProcessError: a worker died. What a worker raises is raised here: ValueError, OSError,
    MemoryError as they are, any other as RuntimeError.
    """
    if not batches:
        return
    size = min(workers, len(batches))
    numbers = multiprocessing.get_context("spawn").SimpleQueue()
    for number in range(size):
        numbers.put(number)
    waiting: deque[Future[Answer]] = deque()
    try:
        with pool(size, _ready, load, numbers) as made:
            for batch in batches:
                waiting.append(_submit(made, batch))
                if len(waiting) > AHEAD * size:
                    yield _records(waiting.popleft().result())
            while waiting:
                yield _records(waiting.popleft().result())
    except BrokenProcessPool as error:
        raise ChildProcessError(
            f"expected {size} workers to answer; one died, killed most often for want of memory. "
            + REMEDY
        ) from error


def _submit(made: ProcessPoolExecutor, batch: Sequence[Row]) -> Future[Answer]:
    """Submit a batch. Ctrl-C is for the driver alone: a process inherits what is blocked."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        return made.submit(_answer, batch)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Worker:
    """Loads at its first batch, and returns records or what is told of an exception."""

    def __init__(self, load: Load, number: int = 0) -> None:
        self.load, self.number = load, number
        self.loaded: Callable[[Sequence[Row]], Records] | None = None

    def answer(self, batch: Sequence[Row]) -> Answer:
        try:
            if self.loaded is None:
                self.loaded = self.load(self.number)
            return self.loaded(batch)
        except Exception as error:
            return _failure(error)

    def __call__(self, block: Any) -> dict[str, list[str]]:
        """Answer a batch of Ray Data."""
        told = self.answer(json.loads(block["batch"][0].as_py()))
        return {"answer": [json.dumps(told)]}


_here: list[_Worker] = []  # in a worker's process: itself


def _begin(driver: Connection, begin: Callable[..., object] | None, given: Sequence[Any]) -> None:
    threading.Thread(target=_end_with, args=(driver,), daemon=True).start()
    if begin is not None:
        begin(*given)


def _ready(load: Load, numbers: Any) -> None:
    tqdm.set_lock(threading.RLock())  # its own would outlive a worker
    _here.append(_Worker(load, numbers.get()))


def _end_with(driver: Connection) -> None:
    driver.poll(None)  # until its other end is closed: nothing is sent
    os._exit(1)


def _answer(batch: Sequence[Row]) -> Answer:
    return _here[0].answer(batch)


def _failure(error: Exception) -> dict[str, str]:
    """Return an exception as plain values: what a library raises cannot be made again elsewhere."""
    name = next((name for name, kind in KINDS.items() if isinstance(error, kind)), "RuntimeError")
    text = str(error)
    if not text or not isinstance(error, KINDS[name]):
        text = f"{type(error).__name__}: {text}"
    return {"kind": name, "text": text, "traceback": "".join(traceback.format_exception(error))}


def _records(told: Answer) -> Records:
    """Return a batch's records, or raise what a worker met, with its traceback as a note."""
    if isinstance(told, dict):
        error = KINDS[told["kind"]](told["text"])
        error.add_note(f"In a worker:\n{told['traceback']}")
        raise error
    return told


# ---- a cluster: all that is asked of Ray, which is an extra


@contextlib.contextmanager
def cluster(address: str, workers: int | None) -> Iterator[int]:
    """Connect to a Ray cluster for a `with` block, and give the number of workers.

    Where this process is connected to Ray already, that connection is used and kept. "local" is a
    cluster of its own, on this machine, loopback only, that ends with this process; if that is
    killed, workers end at once, and two of Ray's agents, which hold no model, a minute later.
    `workers` None: as many as the cluster has GPUs or, without any, CPUs.

    ValueError: Ray is not installed, or the cluster is too small. ConnectionError: there is none.
    """
    ray = _ray()
    joined = ray.is_initialized()
    with _environment(QUIET | OWN if address == "local" else QUIET):
        if not joined:
            before = signal.getsignal(signal.SIGTERM)
            _connect(ray, address, workers)
            with contextlib.suppress(ValueError):  # not in the main thread, Ray sets none either
                signal.signal(signal.SIGTERM, before)
        try:
            kind, there = _room(ray)
            if (workers or 1) > there:
                raise ValueError(
                    f"expected a cluster with {workers or 1} {kind}s, one for each worker; got "
                    f"{there}. Use fewer workers or a larger cluster."
                )
            yield workers or there
        finally:
            if not joined:
                ray.shutdown()


def ray_answers(
    load: Load, batches: Sequence[Sequence[Row]], *, workers: int, gpus: int = 1
) -> Stream:
    """Answer batches by actors of Ray Data, within `cluster`, and yield as `answers` does.

    A worker takes `gpus` GPUs where the cluster has any, else one CPU, and is number 0 to itself.
    It needs this package, and whatever `load` names. Ray restarts one that dies, `DEATHS` times.
    """
    if not batches:
        return
    ray = _ray()
    blocks = [{"batch": json.dumps(batch)} for batch in batches]
    on_gpu = _room(ray)[0] == "GPU"
    items = ray.data.from_items(blocks, override_num_blocks=len(blocks))
    with warnings.catch_warnings():  # Ray 2.60 to 2.63 have no other way to bound restarts
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated")
        dataset = items.map_batches(
            _Worker,
            fn_constructor_args=(load,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(
                size=min(workers, len(batches)), max_tasks_in_flight_per_actor=2
            ),
            num_gpus=gpus if on_gpu else 0,
            num_cpus=0 if on_gpu else 1,
            max_restarts=DEATHS,
            max_task_retries=DEATHS,
        )
    del blocks  # they are in the object store
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = dataset.context.print_on_execution_start = False
    try:
        with contextlib.closing(iter(dataset.iter_batches(batch_size=1))) as answered:
            for block in answered:
                yield _records(json.loads(block["answer"][0]))
    except ray.exceptions.RayError as error:
        raise ChildProcessError(
            f"expected {workers} Ray workers to answer; got {_first_line(error)} {REMEDY}"
        ) from error


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
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


def _connect(ray: Any, address: str, workers: int | None) -> Any:
    """Start a cluster of its own, or join one, and return what Ray says of it."""
    known = set(psutil.Process().children())
    how: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        cpus = max(os.cpu_count() or 1, workers or 1)  # more workers than cores share them
        how |= {"num_cpus": cpus, "include_dashboard": False}
    try:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if port.isdigit():  # Ray itself would try for many minutes
            socket.create_connection((host.strip("[]"), int(port)), timeout=SECONDS).close()
        with _loopback(ray) if address == "local" else contextlib.nullcontext():
            for left in reversed(range(STARTS)):
                try:
                    return ray.init(address=address, **how)
                except Exception as error:
                    _end(_since(known))  # Ray leaves what started too slowly
                    if not left or "timed out during startup" not in str(error):
                        raise
    except Exception as error:  # Ray has no one exception for a cluster that is not there
        raise ConnectionError(
            f"expected a Ray cluster at {address}; got {_first_line(error)} Start one "
            "(ray start --head), or use the address 'local' for this machine alone."
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
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a `with` block; what the user has set stays."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            del os.environ[name]


def _room(ray: Any) -> tuple[str, int]:
    """Return what a worker takes one of, and how many the cluster has."""
    there = ray.cluster_resources()
    kind = "GPU" if there.get("GPU") else "CPU"
    return kind, int(there.get(kind, 0))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no more').splitlines()[0]}"
