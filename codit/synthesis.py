"""Prompts to a dataset of responses.

A batch is a fixed range of input rows, decoded together and written with one fsync; one that was
interrupted is recomputed whole. So a resumed run gives the bytes of an uninterrupted one.
`codit.dataset.output` names the files; their fields are those of the paper's code and `messages`.
Files, errors, workers, and values without a source are ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from codit import decode, recipes
from codit.dataset import output
from codit.dataset import workers as processes
from codit.dataset.output import Files, Name
from codit.dataset.prompts import Prompts, Rows, load
from codit.dataset.teacher import Answering, check_samples, expert_tokenizer, named, ready
from codit.dataset.workers import Records, Row, Stream
from codit.decode import check_engine, chosen_engine
from codit.engine.chat import dated
from codit.files import check_apart, versions

ROWS_PER_BATCH = 256
VLLM_ROWS = 2048  # its scheduler fills places as rows end: only a batch's tail is wasted
DIGITS = 6  # of a log-probability: finer than its rounding error, half the size of the file
PACKAGES = ("codit", "torch", "transformers", "tokenizers")  # and vllm, where it is the engine

Answers = Callable[[Sequence[Sequence[Row]]], Stream]
Used = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a worker must know besides the rows of a batch: plain values.

    `metadata` is the field `res_metadata` of all rows, `threads` those of torch in a worker on a
    CPU; engine and batch_size are `decode.generate`'s, load_options for both models; `date` is
    what a template that writes one writes in every prompt.
    """

    recipe: recipes.Synthesis
    metadata: dict[str, Any]
    engine: str = "auto"
    batch_size: int | None = None
    progress: bool = False
    load_options: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None
    date: str = ""


def synthesize(recipe: recipes.Synthesis, prompts: Rows, out: str | Path, **how: Any) -> Dataset:
    """Answer prompts by a pair as `write` does, with its arguments, and return the dataset.

    Returns:
        Dataset: the rows of `out`: the official CoDIT fields (`score`: log q of each token at
        temperature 1, nats) and `messages`. Rows without an answer are in the errors file alone.
    """
    write(recipe, prompts, out, **how)
    return output.read(out)


def write(
    recipe: recipes.Synthesis,
    prompts: Rows,
    out: str | Path,
    *,
    model: Answering | None = None,
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

    The responses are never in memory together; read them with `datasets.load_dataset` (which makes
    times of ids that all look like dates).

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
        OSError: the files cannot be written, the cluster cannot be reached, or a worker died;
            finished batches are kept.
    """
    files = Files(Path(out))
    check_samples(recipe)
    check_engine(engine, batch_size)
    size = _number(workers, ray_address, model, tokenizer, load_options)
    if isinstance(path := getattr(prompts, "path", prompts), (str, Path)):
        check_apart(files.every(), [path])
    given = load(prompts, limit=limit)
    fingerprint = _fingerprint(recipe, given, batch_size=batch_size, engine=engine)
    start = time.monotonic()
    with output.locked(files):
        earlier = output.earlier_runs(files, fingerprint, resume=resume)
        if earlier is None:
            return output.read_object(files.beside(".manifest.json"))
        work = Work(
            recipe=recipe,
            metadata=_metadata(recipe),
            engine=engine,
            batch_size=batch_size,
            load_options=load_options,
            date=output.date_of(files) or datetime.now().isoformat(timespec="seconds"),
        )
        answering = (
            _by_others(work, size, ray_address)
            if ray_address is not None or size != 1
            else _here(replace(work, progress=progress), model, tokenizer)
        )
        with answering as (used, tokenizer, answers):
            rows = named(given.rows, tokenizer)
            begun = partial(output.begin, files, fingerprint, earlier, date=used.pop("date"))
            lines = _write_batches(files, begun, rows, answers, work, progress)
        seconds = round(time.monotonic() - start, 3)
        extra = {"seconds": seconds, **used, **_model_ids(recipe)}
        return output.finish(files, recipe, lines=lines, errors=given.errors, **extra)


def _number(
    workers: int | None,
    ray_address: str | None,
    model: Answering | None,
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
    work: Work, model: Answering | None, tokenizer: PreTrainedTokenizerBase | None
) -> Iterator[tuple[Used, PreTrainedTokenizerBase, Answers]]:
    """Give what answers in this process: words for the manifest, tokenizer, function of batches."""
    model, tokenizer = _loaded(work, 0, model, tokenizer)
    used: Used = {"workers": 1, "engine": chosen_engine(model, work.engine), **_unread(model)}
    tokenizer, used["date"] = dated(tokenizer, work.date)
    one = partial(_answer, work, model, tokenizer)
    yield used, tokenizer, lambda batches: (one(batch) for batch in batches)


@contextlib.contextmanager
def _by_others(
    work: Work, size: int | None, ray_address: str | None
) -> Iterator[tuple[Used, PreTrainedTokenizerBase, Answers]]:
    """Give what answers in other processes. Here only the tokenizer is loaded, to name rows."""
    tokenizer = expert_tokenizer(work.recipe, **work.load_options)
    used: Used = {"engine": work.engine}  # "auto": each worker chooses, by its device
    tokenizer, used["date"] = dated(tokenizer, work.date)
    work = replace(work, recipe=_anywhere(work.recipe))
    if ray_address is not None:
        gpus = int(work.load_options.get("tensor_parallel_size", 1))  # of vLLM's engine
        with processes.cluster(ray_address, size) as workers:
            begun = partial(_worker, work)
            answers: Answers = partial(processes.ray_answers, begun, workers=workers, gpus=gpus)
            used |= {"workers": workers}
            yield used, tokenizer, partial(_heard, used, answers)
    else:
        assert size is not None
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        work = replace(work, threads=max(1, min(torch.get_num_threads(), (cores or 1) // size)))
        answers = partial(processes.answers, partial(_worker, work), workers=size)
        used |= {"workers": size}
        yield used, tokenizer, partial(_heard, used, answers)


def _anywhere(recipe: recipes.Synthesis) -> recipes.Synthesis:
    """Return a recipe whose models are found from any folder."""
    models: dict[str, Any] = {
        role: replace(model, name=str(Path(model.name).resolve()))
        for role in ("expert", "amateur")
        if isinstance(model := getattr(recipe.pair, role), recipes.Model)
        and Path(model.name).is_dir()
    }
    return replace(recipe, pair=replace(recipe.pair, **models))


def _heard(used: Used, answers: Answers, batches: Sequence[Sequence[Row]]) -> Stream:
    """Yield the records of each batch, and put what a worker says before them into `used`.

    With no batch left an empty one is sent: what is heard does not depend on when a run stopped.
    """
    with contextlib.closing(answers(batches or [[]])) as answered:
        for said, *records in answered:
            used.update(said)
            if batches:
                yield records


def _worker(work: Work, number: int) -> Callable[[Sequence[Row]], Records]:
    """Load what worker `number` answers with, and return what answers a batch; see `_heard`."""
    logging.disable_progress_bar()  # the driver has one for all
    if work.threads is not None:
        torch.set_num_threads(work.threads)
    model, tokenizer = _loaded(work, number)
    tokenizer, _ = dated(tokenizer, work.date)
    answer, said = partial(_answer, work, model, tokenizer), _unread(model)
    return lambda rows: [said, *answer(rows)]


def _unread(model: Answering) -> Used:
    """Return what the manifest says of weights in the files that were not read: names by role."""
    halves = {"expert": getattr(model, "expert", model), "amateur": getattr(model, "amateur", None)}
    left = {role: getattr(half, "unread_weights", None) for role, half in halves.items()}
    named = getattr(model, "unread", {role: names for role, names in left.items() if names})
    return {"unread_weights": named} if named else {}


def _loaded(work: Work, worker: int, *given: Any) -> tuple[Answering, PreTrainedTokenizerBase]:
    """Load what a worker answers with, unless given, on GPUs of its own where there are any.

    It takes GPU number `worker` modulo the visible ones; vLLM's engine as many as its
    tensor_parallel_size, from `worker` times that on.
    """
    options = dict(work.load_options)
    if work.engine != "vllm":
        return ready(work.recipe, *given, **_placed(options, worker))
    visible = [one for one in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if one]
    gpus = visible or [str(k) for k in range(torch.cuda.device_count())]
    width = int(options.get("tensor_parallel_size", 1))
    if worker and width * (worker + 1) <= len(gpus):  # the first needs to be told nothing
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(gpus[width * worker : width * (worker + 1)])
    return ready(work.recipe, *given, engine="vllm", **options)


def _placed(load_options: Mapping[str, Any], worker: int = 0) -> dict[str, Any]:
    """Return load options that put both models on a worker's GPU, if there is one to choose."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus == 0 or "device_map" in load_options:
        return dict(load_options)
    return {**load_options, "device_map": f"cuda:{worker % gpus}"}


def _answer(
    work: Work, model: Answering, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row]
) -> Records:
    """Return the records of a batch, row by row and sample by sample."""
    chats, ids = [row["messages"] for row in rows], [row["id"] for row in rows]
    how: dict[str, Any] = {"ids": ids, "engine": work.engine, "batch_size": work.batch_size}
    how["progress"] = work.progress
    drawn = []
    for k in range(work.recipe.n_samples):
        decoding = replace(work.recipe.decoding, sample=work.recipe.decoding.sample + k)
        drawn.append(decode.generate(model, tokenizer, chats, decoding, **how))
    return [
        _record(row, responses[place], number, work.metadata)
        for place, row in enumerate(rows)
        for number, responses in zip(_samples(work.recipe), drawn, strict=True)
    ]


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


def _samples(recipe: recipes.Synthesis) -> list[int | None]:
    """Return the numbers that rows carry as `sample`: none where there is one response only."""
    if recipe.n_samples == 1:
        return [None]
    return [recipe.decoding.sample + k for k in range(recipe.n_samples)]


def _metadata(recipe: recipes.Synthesis) -> dict[str, Any]:
    """Return the official field `res_metadata`: one for all rows, for models are hashed for it."""
    decoding = recipe.decoding
    return {
        "temperature": decoding.temperature,
        "top_p": decoding.top_p,
        "max_tokens": decoding.max_new_tokens,
        "contrastive_decoding": decoding.strength != 0,
        "alpha": decoding.plausibility,
        "beta": decoding.strength,
        **_model_ids(recipe),
    }


def _model_ids(recipe: recipes.Synthesis) -> dict[str, str]:
    """Return each model's Hub name or folder; of one made here, its recipe's kind and key."""
    models = {"expert": recipe.pair.expert, "amateur": recipe.pair.amateur}
    return {
        f"{role}_model_id": model.name
        if isinstance(model, recipes.Model)
        else f"{type(model).__name__}-{recipes.key(model)}"
        for role, model in models.items()
    }


def _write_batches(
    files: Files,
    begin: Callable[..., tuple[int, int]],
    rows: Sequence[dict[str, Any]],
    answers: Answers,
    work: Work,
    progress: bool,
) -> int:
    """Append the batches that are not there yet, in order; return the number of lines in all."""
    size = work.batch_size or (VLLM_ROWS if work.engine == "vllm" else ROWS_PER_BATCH)
    drawn = work.recipe.n_samples
    names: list[Name] = [(row["id"], k) for row in rows for k in _samples(work.recipe)]
    kept, end = begin(names, lines_per_batch=size * drawn)
    done = kept // drawn
    batches = [rows[first : first + size] for first in range(done, len(rows), size)]
    tokens, start = 0, time.monotonic()
    bar = tqdm(total=len(rows), initial=done, unit="row", disable=not progress, desc="synthesize")
    with contextlib.closing(answers(batches)) as answered, bar:  # closing ends the workers
        for batch, records in zip(batches, answered, strict=True):
            end = output.append(files, records, at=end)
            tokens += sum(len(record.get("score", ())) for record in records)
            rate = tokens / max(time.monotonic() - start, 1e-9)
            bar.set_postfix_str(f"{tokens} tokens, {rate:.0f} tokens/s", refresh=False)
            bar.update(len(batch))
    return len(names)


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
        "versions": {k: v for k, v in versions().items() if k in (*PACKAGES, engine)},
    }
