"""Prompts to a dataset of responses.

A batch is a fixed range of input rows, decoded together and written with one fsync; one that was
interrupted is recomputed whole. So a resumed run gives the bytes of an uninterrupted one.
`codit.dataset_file` names the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codit import dataset_file, ray_workers, recipes, resumption
from codit import workers as processes
from codit.batch_records import Row, Stream, Work, answer, loaded, metadata, samples
from codit.dataset_file import Files
from codit.decode import check_engine, chosen_engine
from codit.engine.vllm.engine import VllmPair
from codit.files import versions
from codit.prompts import Prompts, Rows, load
from codit.resumption import Name
from codit.teacher import expert_tokenizer, model_ids, named, ready

ROWS_PER_BATCH = 256  # (ours)
VLLM_ROWS = 2048  # (ours) its scheduler fills places as rows end: only a batch's tail is wasted
PACKAGES = ("codit", "torch", "transformers", "tokenizers")

Answers = Callable[[Sequence[Sequence[Row]]], Stream]
Used = dict[str, Any]


def synthesize(recipe: recipes.Synthesis, prompts: Rows, out: str | Path, **how: Any) -> Dataset:
    """Answer prompts by a pair, keep the responses as JSON lines, and read them.

    Args:
        recipe: see `write`.
        prompts: see `write`.
        out: see `write`.
        **how: see `write`.

    Returns:
        Dataset: the rows of `out`: the official CoDIT fields (`score`: log q of each token at
        temperature 1, nats) and `messages`. Rows without an answer are in the errors file alone.

    Raises:
        ValueError: see `write`.
        FileNotFoundError: see `write`.
        OSError: see `write`.

    Source: fields: the paper's code; files, resumption, errors: ours.
    """
    write(recipe, prompts, out, **how)
    return dataset_file.read(out)


def write(
    recipe: recipes.Synthesis,
    prompts: Rows,
    out: str | Path,
    *,
    model: PreTrainedModel | VllmPair | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    resume: str = "if_same",
    batch_size: int | None = None,
    engine: str = "auto",
    limit: int | None = None,
    progress: bool = True,
    workers: int | None = None,
    ray_address: str | None = None,
    **load_options: Any,
) -> dict[str, Any]:
    """Answer prompts by a pair and keep the responses as JSON lines; go on where a run stopped.

    The responses are never in memory together; read them with `datasets.load_dataset`.

    Args:
        recipe: pair, decoding and number of samples. Sample k of a prompt is drawn with
            `decoding.sample + k`; with more than one, rows carry it as `sample`, and (id, sample)
            is what no two rows share.
        prompts: path to JSON lines, rows with `instruction` or `messages`, or a recipe; see
            `prompts.load`. Rows without id are named by `decode.default_ids`.
        out: the dataset's file, ending in .jsonl; its folder is made.
        model: a ready pair; with strength 0 the expert alone will do. None: loaded as the recipe
            says.
        tokenizer: the expert's. None: loaded from where the expert was loaded.
        resume: "never": nothing may exist at `out`. "if_same": an interrupted run goes on and a
            finished one is returned, if made from the same recipe, prompts, batch size, engine and
            versions; anything else is refused. "always": an interrupted run goes on whatever
            settings changed, as long as its rows are the first of these prompts, and the manifest
            keeps the earlier settings; a finished one is returned if its prompts are the same.
        batch_size: rows in a batch, and rows that the engine computes at once. None: batches of
            256 (2,048 with vLLM), and as many at once as the engine chooses. Changes results by
            rounding only. On a GPU larger batches keep it busier, and a kill loses more.
        engine: "auto", "static", "continuous" or "vllm"; see `decode.generate`.
        limit: only the first `limit` input rows; None: all.
        progress: show a bar with rows/s and tokens/s.
        workers: processes that answer batches, each with a pair of its own, on a GPU of its own
            where there are enough. A batch is answered whole by one of them, and written in its
            turn: the files are those of one process. 1: this process. None: one for each visible
            GPU if there are several, no model and no device_map; else this process. With a Ray
            address: as many as the cluster has GPUs, or else CPUs.
        ray_address: answer through Ray Data on a cluster: "local" (one of its own, on this
            machine), "auto", "host:port" or "ray://host:port". None: without Ray.
        **load_options: for loading both models: device_map, attn_implementation, ... Without
            device_map a worker takes its GPU. With engine "vllm" for its engine:
            tensor_parallel_size, gpu_memory_utilization, max_num_seqs, ...; see `VllmPair`.

    Returns:
        dict: the manifest: recipe, fingerprint, counts, versions, hash of the dataset.

    Raises:
        ValueError: repeated ids, no prompts, files made with other settings or being written by
            another process, or arguments that cannot be used.
        FileNotFoundError: no such file of prompts.
        OSError: the files cannot be written, the cluster cannot be reached, or workers died again
            and again; finished batches are kept.

    Source: fields: the paper's code; files, resumption, errors, workers: ours.
    """
    files = Files(Path(out))
    _check(recipe, batch_size, engine)
    size = _number(workers, ray_address, model, tokenizer, load_options)
    if isinstance(path := getattr(prompts, "path", prompts), (str, Path)):
        resumption.check_apart(files, path)
    given = load(prompts, limit=limit)
    fingerprint = _fingerprint(recipe, given, batch_size=batch_size, engine=engine)
    start = time.monotonic()
    with dataset_file.locked(files):
        earlier = resumption.earlier_runs(files, fingerprint, resume=resume)
        if earlier is None:
            return dataset_file.read_object(files.beside(".manifest.json"))
        work = Work(
            recipe=recipe,
            metadata=metadata(recipe),
            engine=engine,
            batch_size=batch_size,
            load_options=load_options,
        )
        answering = (
            _by_others(work, size, ray_address)
            if ray_address is not None or size != 1
            else _here(replace(work, progress=progress), model, tokenizer)
        )
        with answering as (used, tokenizer, answers):
            rows = named(given.rows, tokenizer)
            lines = _write_batches(files, fingerprint, earlier, rows, answers, work, progress)
        seconds = round(time.monotonic() - start, 3)
        extra = {"seconds": seconds, **used, **model_ids(recipe)}
        return dataset_file.finish(files, recipe, lines=lines, errors=given.errors, **extra)


def _number(
    workers: int | None,
    ray_address: str | None,
    model: PreTrainedModel | VllmPair | None,
    tokenizer: PreTrainedTokenizerBase | None,
    load_options: Mapping[str, Any],
) -> int | None:
    """Return the number of workers; None: the cluster will tell."""
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1; got {workers}. 1 is this process alone.")
    in_memory = model is not None or tokenizer is not None
    if in_memory and (ray_address is not None or (workers or 1) > 1):
        raise ValueError(
            "expected models and tokenizers by name: each worker loads its own; got one in memory. "
            "Save it and name its folder in the recipe, or use one worker and no Ray."
        )
    if workers is None and ray_address is None:
        free = not in_memory and "device_map" not in load_options and torch.cuda.is_available()
        each = int(load_options.get("tensor_parallel_size", 1))  # GPUs of one of vLLM's engines
        return max(1, torch.cuda.device_count() // each) if free else 1
    return workers


@contextlib.contextmanager
def _here(
    work: Work, model: PreTrainedModel | VllmPair | None, tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[tuple[Used, PreTrainedTokenizerBase, Answers]]:
    """Give what answers in this process: words for the manifest, tokenizer, function of batches."""
    if model is None:
        model, own = loaded(work)
        tokenizer = tokenizer or own
    else:
        model, tokenizer = ready(work.recipe, model, tokenizer)

    def answers(batches: Sequence[Sequence[Row]]) -> Stream:
        return (answer(work, model, tokenizer, batch) for batch in batches)

    yield {"workers": 1, "engine": chosen_engine(model, work.engine)}, tokenizer, answers


@contextlib.contextmanager
def _by_others(
    work: Work, size: int | None, ray_address: str | None
) -> Iterator[tuple[Used, PreTrainedTokenizerBase, Answers]]:
    """Give what answers in other processes. Here only the tokenizer is loaded, to name rows."""
    tokenizer = expert_tokenizer(work.recipe, **work.load_options)
    used: Used = {"engine": work.engine}  # "auto": each worker chooses, by its device
    if ray_address is not None:
        with ray_workers.cluster(ray_address, size) as workers:
            yield (
                used | {"workers": workers},
                tokenizer,
                partial(ray_workers.answers, work, workers=workers),
            )
    else:
        assert size is not None
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = max(1, min(torch.get_num_threads(), (cores or 1) // size))
        work = replace(work, threads=threads)
        yield used | {"workers": size}, tokenizer, partial(processes.answers, work, workers=size)


def _write_batches(
    files: Files,
    fingerprint: dict[str, Any],
    earlier: list[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    answers: Answers,
    work: Work,
    progress: bool,
) -> int:
    """Append the batches that are not there yet, in order; return the number of lines in all."""
    size = work.batch_size or (VLLM_ROWS if work.engine == "vllm" else ROWS_PER_BATCH)
    drawn = work.recipe.n_samples
    names = _names(work.recipe, rows)
    kept, end = resumption.begin(files, fingerprint, earlier, names, lines_per_batch=size * drawn)
    done = kept // drawn
    batches = [rows[first : first + size] for first in range(done, len(rows), size)]
    with (
        contextlib.closing(answers(batches)) as answered,  # ends the workers
        _bar(len(rows), done, progress) as count,
    ):
        for batch, records in zip(batches, answered, strict=True):
            end = dataset_file.append(files, records, at=end)
            count(len(batch), sum(len(record.get("score", ())) for record in records))
    return len(names)


def _check(recipe: recipes.Synthesis, batch_size: int | None, engine: str) -> None:
    """Raise ValueError for what could not run, before any file is touched."""
    if recipe.n_samples < 1:
        raise ValueError(f"n_samples must be at least 1; got {recipe.n_samples}.")
    check_engine(engine, batch_size)


def _fingerprint(
    recipe: recipes.Synthesis, loaded: Prompts, *, batch_size: int | None, engine: str
) -> dict[str, Any]:
    """Return what changes the rows: recipe, input, batches, versions."""
    digest = hashlib.sha256()
    for row in loaded.rows:
        digest.update(json.dumps([row["id"], row["messages"]]).encode() + b"\n")
    for bad in loaded.errors:
        digest.update(json.dumps([bad["line"], bad["reason"]]).encode() + b"\n")
    return {
        "recipe": recipes.canonical(recipe),
        "input": digest.hexdigest(),
        "batch_size": batch_size,
        "engine": engine,
        "versions": {
            k: v
            for k, v in versions().items()
            if k in PACKAGES or (k == "vllm" and engine == "vllm")
        },
    }


def _names(recipe: recipes.Synthesis, rows: Sequence[dict[str, Any]]) -> list[Name]:
    """Return what every line of the dataset will be called, in order."""
    numbers = samples(recipe)
    return [(row["id"], number) for row in rows for number in numbers]


@contextlib.contextmanager
def _bar(rows: int, done: int, progress: bool) -> Iterator[Callable[[int, int], None]]:
    """Show a bar; give the function that counts new rows and tokens."""
    tokens, start = 0, time.monotonic()

    def count(new_rows: int, new_tokens: int) -> None:
        nonlocal tokens
        tokens += new_tokens
        rate = tokens / max(time.monotonic() - start, 1e-9)
        bar.set_postfix_str(f"{tokens} tokens, {rate:.0f} tokens/s", refresh=False)
        bar.update(new_rows)

    with tqdm(total=rows, initial=done, unit="row", disable=not progress, desc="synthesize") as bar:
        yield count
