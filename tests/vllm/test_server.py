"""`codit serve`: an OpenAI-compatible server whose texts are the pair's."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import pytest
import torch

from codit import decode
from codit.pair import ContrastivePair
from codit.recipes import Decoding
from tests import tiny
from tests.vllm.conftest import ENVIRONMENT

TEXTS = ["the cat", "is it in", "ten of them. and then there were", "a"]
GREEDY = Decoding(temperature=0.0, max_new_tokens=16, plausibility=0.1)
SECONDS = 150  # to start, on a busy machine


@pytest.fixture(scope="module")
def server(saved, tmp_path_factory):
    """The address of a server; its log is shown where it does not come up."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    expert, amateur = saved("llama")
    command = [
        *(sys.executable, "-m", "codit.cli", "serve", "--expert", expert, "--amateur", amateur),
        *("--plausibility", "0.1", "--port", str(port), "--dtype", "float32", "--name", "pair"),
        "--engine-args=--enforce-eager --max-num-seqs 16",
    ]
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with log.open("w") as stream:
        run = subprocess.Popen(
            command, stdout=stream, stderr=subprocess.STDOUT, env=os.environ | ENVIRONMENT
        )
    address = f"http://127.0.0.1:{port}"
    try:
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and run.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{address}/health", timeout=5):
                break
            time.sleep(0.5)
        else:
            pytest.fail(log.read_text()[-5000:])
        yield address, log
    finally:
        run.terminate()
        run.wait(30)


def asked(address, route, **body):
    request = urllib.request.Request(
        f"{address}/v1/{route}",
        data=json.dumps({"model": "pair", **body}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())["choices"][0]


def whole(text):
    """Random models end in the middle of a character, which the server keeps back."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}")


@pytest.fixture(scope="module")
def expected(saved):
    pair = ContrastivePair.from_pretrained(*saved("llama"), dtype=torch.float32)
    chats = [[{"role": "user", "content": text}] for text in TEXTS]
    return decode.generate(pair, tiny.tokenizer(), chats, GREEDY, progress=False)


def test_the_command_is_printed_and_listens_on_loopback(server):
    told = server[1].read_text()
    assert "vllm serve " in told
    assert "--host 127.0.0.1" in told
    assert '"ContrastivePairForCausalLM"' in told


def test_chat_requests_get_the_pairs_text(server, expected):
    for text, answer in zip(TEXTS, expected, strict=True):
        chat = [{"role": "user", "content": text}]
        made = asked(server[0], "chat/completions", messages=chat, temperature=0, max_tokens=16)
        assert whole(made["message"]["content"]) == whole(answer.text)


def test_completion_requests_by_token_ids_give_log_q(server, expected):
    for text, answer in zip(TEXTS, expected, strict=True):
        ids = decode.prompt_ids(tiny.tokenizer(), [{"role": "user", "content": text}])
        made = asked(
            server[0], "completions", prompt=ids, temperature=0, max_tokens=16, logprobs=0,
            stop_token_ids=[tiny.SPECIAL.index(tiny.END)],
        )  # fmt: skip
        assert whole(made["text"]) == whole(answer.text)
        found = made["logprobs"]["token_logprobs"]
        assert found == pytest.approx(answer.logprobs[: len(found)], abs=1e-4)
