"""The same chats through several engines, here or in another Python: what each answered, how fast.

vLLM pins a torch of its own, so it runs in a subprocess of another environment, which is asked by a
JSON file and answers by one: `python -m codit.engine_runs REQUEST ANSWER`. What is imported here
has to be there too: no TRL. What is asked of which engine: `codit.engine_study`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro

from codit import decode, limits, step_times
from codit.chat import Conversation
from codit.files import versions, write_json
from codit.pair import ContrastivePair
from codit.recipes import Decoding
from codit.vllm_pair import VllmPair
from codit.vocabulary import load_tokenizer

GREEDY, SAMPLED = "greedy", "sampled"
STANDINS = "vllm-cpu-standins"  # the distribution of tests/vllm/standins
WITHOUT_GPU = {  # what vLLM needs where it has none; without effect on what is drawn
    "VLLM_TARGET_DEVICE": "cpu",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",  # small helpers of the sampler would be compiled for seconds
}
QUIET = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}


def run(
    engines: Sequence[str],
    expert: str,
    amateur: str,
    chats: Sequence[Conversation],
    decodings: Mapping[str, Mapping[str, Any]],
    *,
    batch_size: int = 64,
    repeats: int = 3,
    dtype: str = "float32",
    device: str = "cpu",
) -> dict[str, dict[str, Any]]:
    """Load a pair and answer the chats by each engine: once greedily, then sampled, in turn.

    Turn t draws sample t of each response, so turns are also samples of the distribution.

    Args:
        engines: "static" and "continuous", which share one pair, or "vllm" alone.
        expert: Hub name or folder.
        amateur: likewise.
        chats: conversations that ask for an answer.
        decodings: "greedy" and "sampled" -> fields of a `Decoding`; strength and plausibility of
            both are the same.
        batch_size: rows at once.
        repeats: turns that are timed; one more before them is not.
        dtype: of weights and caches.
        device: of the library's engines.

    Returns:
        dict: per engine `answers` (decoding -> a row per chat: `prompt`, a hash; `text`; `tokens`
        and `logprobs`, log q in nats, as texts of numbers), `samples` (a row per turn, the first
        is not timed: `lengths` of the responses and their mean `logprobs`, as texts of numbers),
        `seconds` (of each turn after the first), `standins` (whether vLLM's kernels are the tests'
        stand-ins), `machine`, `versions`, `date`.

    Raises:
        ValueError: the pair cannot be loaded, or a chat cannot be answered.

    Source: ours.
    """
    how = {name: Decoding(**values) for name, values in decodings.items()}
    tokenizer = load_tokenizer(expert)
    model: Any
    if "vllm" in engines:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        # Prompts that are asked again must be computed again, as the library's engines do.
        engine_args: dict[str, Any] = {"dtype": dtype, "max_num_seqs": batch_size}
        engine_args |= {"enable_prefix_caching": False}
        engine_args |= {"enforce_eager": True} if device == "cpu" else {}
        model = VllmPair(expert, amateur, how[GREEDY], **engine_args)
    else:
        model = ContrastivePair.from_pretrained(expert, amateur, dtype=dtype).to(device)
    made: dict[tuple[str, str], list[list[decode.Response]]] = {}

    def answer(engine: str, name: str) -> dict[str, float]:
        earlier = made.setdefault((engine, name), [])
        decoding = replace(how[name], sample=how[name].sample + len(earlier))
        options: dict[str, Any] = {"engine": engine, "batch_size": batch_size, "progress": False}
        start = time.perf_counter()
        earlier.append(decode.generate(model, tokenizer, chats, decoding, **options))
        return {engine: time.perf_counter() - start}

    for engine in engines:
        answer(engine, GREEDY)
    turns = {engine: partial(answer, engine, SAMPLED) for engine in engines}
    times = step_times.in_turn(turns, rounds=repeats)
    if isinstance(model, VllmPair):
        model.close()
    about: dict[str, Any] = {"machine": limits.machine(device), "versions": versions()}
    about |= {"date": datetime.now(UTC).isoformat(timespec="seconds")}
    return {
        engine: {
            "answers": {name: _rows(chats, made[engine, name][0]) for name in (GREEDY, SAMPLED)},
            "samples": [_sample(turn) for turn in made[engine, SAMPLED]],
            "seconds": [round(one, 4) for one in times[engine]],
            "standins": engine == "vllm" and _has(STANDINS),
            **about,
        }
        for engine in engines
    }


def ask(python: str | Path, request: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what `run` returns in a process of another Python.

    Args:
        python: the interpreter; of an environment with the extra `vllm`, where vLLM is asked.
        request: arguments of `run`, as JSON values.

    Returns:
        dict: see `run`.

    Raises:
        FileNotFoundError: there is no such interpreter.
        ChildProcessError: the process failed; the message ends with its last line of errors.

    Source: ours.
    """
    found = shutil.which(python)
    if found is None:
        raise FileNotFoundError(
            f"expected the Python of an environment with vLLM; there is none at {python}. "
            "`make test-vllm` makes one: .venv-vllm/bin/python."
        )
    # Not resolved: the link is what makes it the Python of its environment.
    python = Path(found).absolute()
    environment = QUIET | os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    if "vllm" in request["engines"]:
        probe = "import torch; print(torch.cuda.is_available())"
        if _told(python, "-c", probe, environment=environment).strip() == "False":
            environment = WITHOUT_GPU | environment
    with tempfile.TemporaryDirectory() as folder:
        question, answer = Path(folder) / "request.json", Path(folder) / "answer.json"
        write_json(question, dict(request))
        words = ("-m", "codit.engine_runs", str(question), str(answer))
        _told(python, *words, environment=environment)
        runs: dict[str, dict[str, Any]] = json.loads(answer.read_text(encoding="utf-8"))
    return runs


def main(
    request: Annotated[Path, tyro.conf.Positional], answer: Annotated[Path, tyro.conf.Positional]
) -> None:
    """Run engines as a file asks.

    Args:
        request: JSON file with the arguments of `run`.
        answer: JSON file to write: what `run` returns.

    Source: ours.
    """
    asked = json.loads(request.read_text(encoding="utf-8"))
    write_json(answer, run(**asked))


def _rows(
    chats: Sequence[Conversation], responses: Sequence[decode.Response]
) -> list[dict[str, str]]:
    """Return answers as rows of texts, so that a file of them has a short line for each."""
    for one in responses:
        if one.error is not None:
            raise ValueError(f"expected an answer to prompt {one.id}; got: {one.error}.")
    return [
        {
            "prompt": hashlib.sha256(json.dumps(chat).encode()).hexdigest()[:16],
            "text": one.text,
            "tokens": " ".join(map(str, one.token_ids)),
            "logprobs": _text(one.logprobs),
        }
        for chat, one in zip(chats, responses, strict=True)
    ]


def _sample(responses: Sequence[decode.Response]) -> dict[str, str]:
    lengths = [len(one.token_ids) for one in responses]
    return {
        "lengths": " ".join(map(str, lengths)),
        "logprobs": _text([float(np.mean(one.logprobs)) for one in responses]),
    }


def _text(values: Sequence[float]) -> str:
    return " ".join(f"{value:.7g}" for value in values)


def _told(python: str | Path, *words: str, environment: Mapping[str, str]) -> str:
    """Return what a process prints, which runs this checkout's codit."""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [str(python), *words], cwd=root, env=dict(environment), capture_output=True, text=True
    )
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        raise ChildProcessError(
            f"expected answers from {python}; it ended with status {done.returncode}: "
            f"{lines[-1] if lines else 'no message'}"
        )
    return done.stdout


def _has(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


if __name__ == "__main__":
    tyro.cli(main)
