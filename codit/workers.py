"""Batches answered by processes of this machine, one pair each, and given back in order.

The driver hands a worker one batch at a time. A worker that dies costs its batch in flight: another
is started and the batch is answered again. A worker ends with its driver, whatever ends that.
"""

from __future__ import annotations

import contextlib
import heapq
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, NamedTuple

import torch
from tqdm import tqdm
from transformers.utils import logging

from codit.batch_records import Records, Row, Stream, Work, answer, failure, loaded, raised

DEATHS = 3  # of workers in a row, without an answer in between, that are made good
AHEAD = 4  # batches per worker that may be answered before an earlier one is
SECONDS = 10  # for a worker to end when told so


def answers(work: Work, batches: Sequence[Sequence[Row]], *, workers: int) -> Stream:
    """Answer batches by processes of their own.

    Worker k computes on visible GPU k modulo their number, or on the CPU with `work.threads`
    threads. At most `AHEAD` batches per worker are held for one that takes longer. Close the
    iterator to end the workers early.

    Args:
        work: what each worker loads and does.
        batches: rows of each batch.
        workers: number of processes, at least 1; no more than there are batches are started.

    Yields:
        list[dict]: the records of each batch, in the order of the batches.

    Raises:
        ValueError: as a worker raised it: models that do not belong together, say.
        OSError: as a worker raised it; ChildProcessError where workers died `DEATHS` + 1 times at
            the same work, killed by the system for the memory they take, say.
        RuntimeError: any other exception of a worker, whose traceback is in the note.

    Source: ours.
    """
    team = _Team(work, batches, min(workers, len(batches)))
    try:
        yield from team.run()
    finally:
        team.end()


class _Member(NamedTuple):
    process: Any  # multiprocessing's own type depends on the platform
    connection: Connection


class _Team:
    """Workers, the batches they have, and the answers that wait for an earlier one."""

    def __init__(self, work: Work, batches: Sequence[Sequence[Row]], size: int) -> None:
        self.work, self.batches, self.size = work, batches, size
        self.members: dict[int, _Member] = {}
        self.idle: set[int] = set()  # workers that have loaded and have no batch
        self.given: dict[int, int] = {}  # worker: number of its batch
        self.again: list[int] = []  # batches whose worker died
        self.fresh = 0  # the first batch that nobody had yet
        self.done: dict[int, Records] = {}
        self.next = 0  # the batch that is yielded next
        self.deaths: Counter[int | None] = Counter()  # by batch; None: without one

    def run(self) -> Stream:
        while self.next < len(self.batches):
            self._hire()
            self._give()
            self._listen(block=self.next not in self.done)
            self._give()  # before the driver writes: nobody waits for that
            if self.next in self.done:
                yield self.done.pop(self.next)
                self.next += 1

    def end(self) -> None:
        for member in self.members.values():
            member.process.terminate()  # a worker has nothing to lose
        for member in self.members.values():
            member.process.join(SECONDS)
            if member.process.exitcode is None:
                member.process.kill()
                member.process.join()
            member.connection.close()

    def _hire(self) -> None:
        """Start the workers that are missing, if there is something left to do for them."""
        left = len(self.again) + len(self.batches) - self.fresh
        missing = [k for k in range(self.size) if k not in self.members]
        for k in missing[:left]:
            self.members[k] = _start(self.work, k)

    def _give(self) -> None:
        for k in sorted(self.idle):
            if self.again:
                number = heapq.heappop(self.again)
            elif self.fresh < min(len(self.batches), self.next + AHEAD * self.size):
                number, self.fresh = self.fresh, self.fresh + 1
            else:
                return
            self.idle.remove(k)
            self.given[k] = number
            with contextlib.suppress(OSError):  # it died: listening finds out
                self.members[k].connection.send(self.batches[number])

    def _listen(self, *, block: bool) -> None:
        """Take what workers say; bury those that died."""
        places: dict[Any, int] = {}
        for k, member in self.members.items():
            places |= {member.connection: k, member.process.sentinel: k}
        for k in {places[place] for place in wait(list(places), None if block else 0)}:
            try:
                kind, value = self.members[k].connection.recv()
            except (EOFError, OSError):
                self._bury(k)
                continue
            if kind == "failed":
                raise raised(value)
            if kind == "records":
                self.done[self.given.pop(k)] = value
                self.deaths.clear()
            self.idle.add(k)

    def _bury(self, k: int) -> None:
        """Give a dead worker's batch back; raise ChildProcessError where that does not help."""
        member = self.members.pop(k)
        member.connection.close()
        member.process.join(SECONDS)
        self.idle.discard(k)
        number = self.given.pop(k, None)
        self.deaths[number] += 1
        if number is not None:
            heapq.heappush(self.again, number)
        if self.deaths[number] > DEATHS * (self.size if number is None else 1):
            doing = "while it loaded the models" if number is None else f"in batch {number}"
            raise ChildProcessError(
                f"expected {self.size} workers to answer; got {self.deaths[number]} deaths in a "
                f"row, the last {doing} (exit code {member.process.exitcode}; -9: killed, most "
                "often for want of memory). Use fewer workers or a smaller batch size; finished "
                "batches are kept, and the same command goes on from there."
            )


def _start(work: Work, k: int) -> _Member:
    """Start worker k. Ctrl-C is for the driver alone: a process inherits what is blocked."""
    context = multiprocessing.get_context("spawn")  # a fork would share locks and CUDA
    ours, theirs = context.Pipe()
    process = context.Process(
        target=_serve, args=(work, k, theirs), name=f"codit worker {k}", daemon=True
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
    return _Member(process, ours)


def _serve(work: Work, k: int, connection: Connection) -> None:
    """Load the pair once, and answer batches until there are no more."""
    threading.Thread(target=_end_with_driver, daemon=True).start()
    logging.disable_progress_bar()  # the driver has one for all
    tqdm.set_lock(threading.RLock())  # its own would outlive a worker
    try:
        if work.threads is not None:
            torch.set_num_threads(work.threads)
        model, tokenizer = loaded(work, k)
        said: tuple[str, Any] = ("ready", None)
        while True:
            connection.send(said)
            rows = connection.recv()
            said = ("records", answer(work, model, tokenizer, rows))
    except Exception as error:
        with contextlib.suppress(OSError):  # the driver has closed the connection
            connection.send(("failed", failure(error)))


def _end_with_driver() -> None:
    driver = multiprocessing.parent_process()
    assert driver is not None
    wait([driver.sentinel])
    os._exit(1)
