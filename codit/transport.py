"""A model of the authors' transport: log-probabilities of a whole vocabulary over two TCP hops.

Amateur, coordinator and expert are three processes. At each step the amateur sends its log-probs in
half precision, [B, V], to the coordinator, which sends them on to the expert, which answers that
the next step may begin. No model runs: what is timed is the moving alone, over the loopback device.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

ACKNOWLEDGED = b"!"
TIMEOUT = 120.0  # seconds until a lost process is an error instead of a wait (ours)


def matrix_bytes(rows: int, vocabulary: int) -> int:
    """Return the bytes of one matrix of log-probabilities in half precision.

    bytes = 2 B V

    Args:
        rows: B.
        vocabulary: V.

    Returns:
        int: bytes of one hop of one step.

    Source: the authors' scripts cast to fp16 before they send (arXiv 2604.13538).
    """
    return 2 * rows * vocabulary


def seconds_per_step(rows: int, vocabulary: int, *, steps: int) -> tuple[list[float], int]:
    """Move matrices through three processes, and time each step.

    Args:
        rows: B.
        vocabulary: V.
        steps: how many are timed; one more comes before them.

    Returns:
        (list[float], int): seconds of each step; bytes of a step, as coordinator and expert
        counted what they received: two hops.

    Raises:
        ConnectionError: a process ended early.

    Source: the pattern of the authors' coordinator (arXiv 2604.13538), in plain sockets. Shared
    memory for decisions, tensor parallelism, hashing and copies from and to a GPU: left out.
    """
    size, rounds = matrix_bytes(rows, vocabulary), steps + 1
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT)
        with _started("coordinate", server, size, rounds), _accepted(server) as peer:
            matrix, seconds = bytearray(size), []
            for _ in range(rounds):
                start = time.perf_counter()
                peer.sendall(matrix)
                receive(peer, bytearray(1))
                seconds.append(time.perf_counter() - start)
            counted = bytearray(16)
            receive(peer, counted)
    received = sum(int.from_bytes(counted[at : at + 8], "little") for at in (0, 8))
    return seconds[1:], received // rounds


def coordinate(port: int, size: int, rounds: int) -> None:
    """Receive every matrix from the amateur and send it on: the middle process.

    Args:
        port: of the amateur.
        size: bytes of a matrix.
        rounds: matrices to come.

    Source: ours.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(TIMEOUT)
        with (
            _connected(port) as amateur,
            _started("consume", server, size, rounds),
            _accepted(server) as expert,
        ):
            matrix, total = bytearray(size), 0
            for _ in range(rounds):
                total += receive(amateur, matrix)
                expert.sendall(matrix)
                receive(expert, bytearray(1))
                amateur.sendall(ACKNOWLEDGED)
            counted = bytearray(8)
            receive(expert, counted)
            amateur.sendall(total.to_bytes(8, "little") + counted)


def consume(port: int, size: int, rounds: int) -> None:
    """Receive every matrix and answer each: the expert's process.

    Args:
        port: of the coordinator.
        size: bytes of a matrix.
        rounds: matrices to come.

    Source: ours.
    """
    with _connected(port) as peer:
        matrix, total = bytearray(size), 0
        for _ in range(rounds):
            total += receive(peer, matrix)
            peer.sendall(ACKNOWLEDGED)
        peer.sendall(total.to_bytes(8, "little"))


def receive(peer: socket.socket, into: bytearray) -> int:
    """Fill a buffer from a socket.

    Args:
        peer: connected.
        into: as long as what is to come.

    Returns:
        int: bytes received, the buffer's length.

    Raises:
        ConnectionError: the other side closed before it was full.

    Source: ours.
    """
    view, done = memoryview(into), 0
    while done < len(into):
        count = peer.recv_into(view[done:])
        if not count:
            raise ConnectionError(
                f"expected {len(into)} bytes from the other process; got {done} before it closed. "
                "Its own error stands above."
            )
        done += count
    return done


@contextmanager
def _started(role: str, server: socket.socket, size: int, rounds: int) -> Iterator[None]:
    """Run a role in a process of its own, and wait for its end."""
    words = (role, server.getsockname()[1], size, rounds)
    process = subprocess.Popen([sys.executable, "-m", "codit.transport", *map(str, words)])
    try:
        yield
        process.wait(TIMEOUT)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()


def _accepted(server: socket.socket) -> socket.socket:
    peer, _ = server.accept()
    return _tuned(peer)


def _connected(port: int) -> socket.socket:
    return _tuned(socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT))


def _tuned(peer: socket.socket) -> socket.socket:
    peer.settimeout(TIMEOUT)
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return peer


if __name__ == "__main__":
    {"coordinate": coordinate, "consume": consume}[sys.argv[1]](*map(int, sys.argv[2:]))
