"""A model folder behind an OpenAI-compatible server on this machine: `transformers serve`."""

from __future__ import annotations

import contextlib
import http.client
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib import util
from pathlib import Path

import psutil

LOOPBACK = "127.0.0.1"
DEADLINE = 120.0  # seconds until a server must answer
PATIENCE = 10.0  # seconds until a server that was told to end is killed
POLL = 0.1
BLOCK = 32  # tokens of a block of a paged cache
BATCH_TOKENS = 1024  # read in one step of a paged cache, of all requests together
PROGRAM = """
import os, runpy, sys, threading
threading.Thread(target=lambda: os._exit(len(os.read(0, 1))), daemon=True).start()
runpy.run_module("transformers.cli.transformers", run_name="__main__", alter_sys=True)
"""  # ends with the process that has started it, which holds the other end of its input
SHOWN = 800  # characters of a server's log in an error


@contextlib.contextmanager
def serve(
    folder: str | Path, *, cache_tokens: int | None = None, deadline: float = DEADLINE
) -> Iterator[str]:
    """Run `transformers serve` on a model folder, on this machine alone and a free port.

    The model's name in requests is the folder's own, without where it lies. The server ignores
    `response_format` and draws only where the model's generation config says `do_sample`. For
    Qwen's architectures it has a way of its own to read replies, meant for their own template.

    Args:
        folder: a model with tokenizer, chat template and generation config.
        cache_tokens: of one paged cache, from which all requests are answered at the same time;
            each must fit with its reply. None: one request after another, so that asking for
            several at once gains little. Either way seeds of requests that overlap mix.
        deadline: seconds until it must answer /health.

    Yields:
        str: the base URL, which ends in /v1.

    Raises:
        ValueError: a package is missing, `folder` is no folder, the cache is less than a block, or
            the server ended or did not answer in time; the message holds its last words.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise ValueError(f"expected the folder of a model; got {folder}. Train or save one first.")
    if missing := [name for name in ("fastapi", "uvicorn", "openai") if not util.find_spec(name)]:
        raise ValueError(
            f"expected the packages that serve a model; missing {missing}. Install them: "
            'pip install -e ".[serve]"'
        )
    # The name is looked up where the server starts: it must not hold a machine's folders. -P: what
    # lies beside the model must not be imported.
    command = [sys.executable, "-P", "-c", PROGRAM, "serve", folder.name]
    command += ["--host", LOOPBACK, "--port", "0", "--device", "cpu"]
    if cache_tokens is not None:
        if cache_tokens < BLOCK:
            raise ValueError(f"cache_tokens must be at least {BLOCK}; got {cache_tokens}.")
        command += ["--continuous-batching", "--cb-block-size", str(BLOCK)]
        command += ["--cb-num-blocks", str(cache_tokens // BLOCK)]
        command += ["--cb-max-batch-tokens", str(BATCH_TOKENS)]
    offline, pipe = os.environ | {"HF_HUB_OFFLINE": "1"}, subprocess.PIPE
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        with subprocess.Popen(
            command, cwd=folder.parent, env=offline, stdin=pipe, stdout=log, stderr=log
        ) as process:
            try:
                if address := _answering(process, deadline):
                    yield f"{address}/v1"
            finally:
                process.terminate()
                try:
                    process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
        if not address:
            log.seek(0)
            raise ValueError(
                f"expected a server that answers within {deadline:g} s; its last words: "
                f"{log.read()[-SHOWN:].strip()!r}. Try the folder with `transformers serve`."
            )


def _answering(process: subprocess.Popen[bytes], deadline: float) -> str | None:
    """Return the address of a server once it answers; None if it ends or takes too long.

    Asked for port 0, it takes a free one: the ports on which it listens say which.
    """
    end = time.monotonic() + deadline
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError, psutil.Error):
            found = psutil.Process(process.pid).net_connections(kind="tcp4")
            for port in [at.laddr.port for at in found if at.status == psutil.CONN_LISTEN]:
                connection = http.client.HTTPConnection(LOOPBACK, port, timeout=POLL * 10)
                with contextlib.closing(connection):
                    connection.request("GET", "/health")
                    if connection.getresponse().status == 200:
                        return f"http://{LOOPBACK}:{port}"
        time.sleep(POLL)
    return None
