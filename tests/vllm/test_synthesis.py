"""`codit synthesize --engine vllm`: the same files and resume as with the library's engines."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.vllm.conftest import ENVIRONMENT

ROWS = 96
BATCH = 8


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    words = "the cat sat on a mat and then there were ten of them".split()
    rows = [
        {"id": f"row{i}", "instruction": " ".join(words[i % 7 : i % 7 + 3 + i % 5])}
        for i in range(ROWS)
    ]
    rows[11] = {"id": "empty"}
    rows[12] = {"id": "long", "instruction": "cat " * 2000}
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def command(saved, prompts, out, *more):
    expert, amateur = saved("llama")
    return [
        *(sys.executable, "-m", "codit.cli", "synthesize", "--engine", "vllm"),
        *("--expert", expert, "--amateur", amateur, "--prompts", str(prompts), "--out", str(out)),
        *("--max-new-tokens", "48", "--plausibility", "0.05", "--dtype", "float32"),
        *("--batch-size", str(BATCH), "--engine-args", '{"enforce_eager": true}', *more),
    ]


def run(arguments):
    return subprocess.run(
        arguments, capture_output=True, text=True, env=os.environ | ENVIRONMENT, check=False
    )


@pytest.fixture(scope="module")
def whole(saved, prompts, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "data.jsonl"
    done = run(command(saved, prompts, out))
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_the_files_are_those_of_any_engine(whole):
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    lines = whole.with_name("data.errors.jsonl").read_text().splitlines()
    errors = [json.loads(line) for line in lines]
    manifest = json.loads(whole.with_name("data.manifest.json").read_text())
    assert len(rows) == ROWS - 2 == manifest["rows"]
    assert [one["id"] for one in errors] == ["empty", "long"] or len(errors) == 2
    assert manifest["engine"] == "vllm"
    assert manifest["versions"]["vllm"]
    assert all(row["messages"][-1]["content"] == row["response"] for row in rows)
    assert len({row["response"] for row in rows}) > ROWS / 2


def test_killed_and_started_again_it_gives_the_same_bytes(saved, prompts, whole, tmp_path):
    out = tmp_path / "data.jsonl"
    partial = out.with_name("data.jsonl.partial")
    kills = 0
    for least in (1, 40):  # lines that stand in the file before the kill
        started = subprocess.Popen(
            command(saved, prompts, out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            env=os.environ | ENVIRONMENT,
        )  # fmt: skip
        while started.poll() is None:
            files = [one for one in tmp_path.iterdir() if one.suffix != ".lock"]
            lines = max((one.read_bytes().count(b"\n") for one in files), default=0)
            if lines >= least:
                started.send_signal(signal.SIGKILL)
                kills += started.wait() == -signal.SIGKILL
                break
            time.sleep(0.01)
    assert kills == 2, partial
    done = run(command(saved, prompts, out))
    assert done.returncode == 0, done.stderr[-3000:]
    assert out.read_bytes() == whole.read_bytes()
    again = run(command(saved, prompts, out))
    assert again.returncode == 0
    assert out.read_bytes() == whole.read_bytes()


def test_what_vllm_does_not_read_is_refused(saved, prompts, tmp_path):
    done = run(command(saved, prompts, tmp_path / "a.jsonl", "--device-map", "cpu"))
    assert done.returncode == 2
    assert "got device_map" in done.stderr
