"""A batch of prompts to a batch of records: what a worker does, in this process or another.

What crosses a process boundary is plain: rows and records are JSON values, a failure is a dict.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codit import decode, recipes
from codit.engine.vllm.engine import VllmPair
from codit.teacher import model_ids, ready

DIGITS = 6  # of a log-probability: finer than its rounding error, half the size of the file

Row = Mapping[str, Any]
Records = list[dict[str, Any]]
Stream = Generator[Records, None, None]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a worker must know besides the rows of a batch.

    Args:
        recipe: pair, decoding and number of samples.
        metadata: the field `res_metadata` of all rows.
        engine: see `decode.generate`.
        batch_size: rows computed at once; see `decode.generate`.
        progress: show a bar for each sample of each batch.
        load_options: for loading both models.
        threads: of torch in a worker on a CPU; None: as it finds them.
    """

    recipe: recipes.Synthesis
    metadata: dict[str, Any]
    engine: str = "auto"
    batch_size: int | None = None
    progress: bool = False
    load_options: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None


def answer(
    work: Work,
    model: PreTrainedModel | VllmPair,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
) -> Records:
    """Answer a batch and return its records, row by row and sample by sample.

    Args:
        work: recipe and engine.
        model: from `teacher.ready`.
        tokenizer: the expert's.
        rows: from `teacher.named`.

    Returns:
        list[dict]: for each row and sample a row of the dataset, or, with a field `error`, what is
        recorded of a row without an answer.

    Raises:
        ValueError: see `decode.generate`.

    Source: fields: the paper's code; the rest: ours.
    """
    chats, ids = [row["messages"] for row in rows], [row["id"] for row in rows]
    drawn = []
    for k in range(work.recipe.n_samples):
        decoding = replace(work.recipe.decoding, sample=work.recipe.decoding.sample + k)
        how: dict[str, Any] = {"engine": work.engine, "batch_size": work.batch_size}
        answers = decode.generate(
            model, tokenizer, chats, decoding, ids=ids, progress=work.progress, **how
        )
        drawn.append(answers)
    return [
        _record(row, responses[place], number, work.metadata)
        for place, row in enumerate(rows)
        for number, responses in zip(samples(work.recipe), drawn, strict=True)
    ]


def samples(recipe: recipes.Synthesis) -> list[int | None]:
    """Return the numbers that rows carry as `sample`: none where there is one response only.

    Args:
        recipe: number of samples, and the number of the first.

    Returns:
        list[int | None]: one number for each response to a prompt.

    Source: ours.
    """
    if recipe.n_samples == 1:
        return [None]
    return [recipe.decoding.sample + k for k in range(recipe.n_samples)]


def metadata(recipe: recipes.Synthesis) -> dict[str, Any]:
    """Return the official field `res_metadata`: one for all rows, for models are hashed for it.

    Args:
        recipe: pair and decoding.

    Returns:
        dict: plain values.

    Source: the paper's code.
    """
    decoding = recipe.decoding
    return {
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "max_tokens": decoding.max_new_tokens,
        "contrastive_decoding": decoding.strength != 0,
        "alpha": decoding.plausibility,
        "beta": decoding.strength,
        **model_ids(recipe),
    }


def loaded(
    work: Work, worker: int = 0
) -> tuple[PreTrainedModel | VllmPair, PreTrainedTokenizerBase]:
    """Load what a worker answers with, on GPUs of its own where there are any.

    Args:
        work: recipe, engine and load options.
        worker: its number. It takes GPU number `worker` modulo the visible ones; vLLM's engine as
            many as its tensor_parallel_size, from `worker` times that on.

    Returns:
        (PreTrainedModel | VllmPair, PreTrainedTokenizerBase): see `teacher.ready`.

    Raises:
        ValueError: see `teacher.ready`.

    Source: ours.
    """
    options = dict(work.load_options)
    if work.engine != "vllm":
        return ready(work.recipe, **placed(options, worker))
    visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    gpus = visible or [str(k) for k in range(torch.cuda.device_count())]
    width = int(options.get("tensor_parallel_size", 1))
    if worker and width * (worker + 1) <= len(gpus):  # the first needs to be told nothing
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[width * worker : width * (worker + 1)])
    return ready(work.recipe, engine="vllm", **options)


def placed(load_options: Mapping[str, Any], worker: int = 0) -> dict[str, Any]:
    """Return load options that put both models on a worker's GPU, if there is one.

    Args:
        load_options: a `device_map` among them is kept.
        worker: number of the worker; it takes that GPU modulo the number of visible GPUs.

    Returns:
        dict: load options; without a GPU the same ones.

    Source: ours.
    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == 0 or "device_map" in load_options:
        return dict(load_options)
    return {**load_options, "device_map": f"cuda:{worker % gpus}"}


def failure(error: Exception) -> dict[str, Any]:
    """Return an exception as plain values, for the process that is told of it.

    Args:
        error: what a worker met.

    Returns:
        dict: `kind`, `arguments` and `traceback`.

    Source: ours.
    """
    kind = next((name for name, one in KINDS.items() if isinstance(error, one)), "RuntimeError")
    text = str(error) or type(error).__name__
    arguments: list[Any] = [
        text if isinstance(error, KINDS[kind]) else f"{type(error).__name__}: {text}"
    ]
    if isinstance(error, OSError) and error.strerror:
        name = None if error.filename is None else str(error.filename)
        arguments = [error.errno, error.strerror, name]
    told = "".join(traceback.format_exception(error))
    return {"kind": kind, "arguments": arguments, "traceback": told}


def raised(failed: Mapping[str, Any]) -> Exception:
    """Return the exception that a worker met, with the worker's traceback as a note.

    Args:
        failed: from `failure`.

    Returns:
        Exception: one of `KINDS` with the same message, ready to be raised.

    Source: ours.
    """
    error = KINDS[failed["kind"]](*failed["arguments"])
    error.add_note(f"In a worker:\n{failed['traceback']}")
    return error


# Others become a RuntimeError: not everything that a library raises can be made again elsewhere.
KINDS: dict[str, type[Exception]] = {
    "ValueError": ValueError,
    "ChildProcessError": ChildProcessError,
    "OSError": OSError,
    "MemoryError": MemoryError,
    "RuntimeError": RuntimeError,
}


def _record(
    row: Row, response: decode.Response, number: int | None, res_metadata: dict[str, Any]
) -> dict[str, Any]:
    """Return a dataset row, or what is recorded of a row without an answer."""
    name = {"id": row["id"]} if number is None else {"id": row["id"], "sample": number}
    if response.error is not None:
        error, _, reason = response.error.partition(": ")
        return {**name, "line": row["line"], "error": error, "reason": reason or error}
    return {
        **name,
        "is_completed": response.is_completed,
        "instruction": row["instruction"],
        "response": response.text,
        "res_metadata": res_metadata,
        "score": [round(logprob, DIGITS) for logprob in response.logprobs],
        "messages": [*row["messages"], {"role": "assistant", "content": response.text}],
    }
