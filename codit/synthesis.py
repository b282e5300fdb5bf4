"""Prompts to a dataset of responses.

A batch is a fixed range of input rows, decoded together and written with one fsync; one that was
interrupted is recomputed whole. So a resumed run gives the bytes of an uninterrupted one.
`codit.dataset_file` names the files.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codit import dataset_file, decode, recipes, resumption, store
from codit.dataset_file import Files
from codit.prompts import Prompts, load
from codit.resumption import Name
from codit.teacher import model_ids, named, ready

ROWS_PER_BATCH = 256
DIGITS = 6  # of a log-probability: finer than its rounding error, half the size of the file
PACKAGES = ("codit", "torch", "transformers", "tokenizers")

Rows = (
    str
    | Path
    | recipes.File
    | recipes.WorldPrompts
    | recipes.HubPrompts
    | Iterable[Mapping[str, Any]]
)


def synthesize(
    recipe: recipes.Synthesis,
    prompts: Rows,
    out: str | Path,
    *,
    model: PreTrainedModel | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    resume: str = "if_same",
    batch_size: int | None = None,
    engine: str = "auto",
    limit: int | None = None,
    progress: bool = True,
    **load_options: Any,
) -> Dataset:
    """Answer prompts by a pair and keep the responses as JSON lines; go on where a run stopped.

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
            256, and as many at once as the engine chooses. Changes results by rounding only. On a
            GPU larger batches keep the engine busier, and a kill loses more.
        engine: "auto", "static" or "continuous"; see `decode.generate`.
        limit: only the first `limit` input rows; None: all.
        progress: show a bar with rows/s and tokens/s.
        **load_options: for loading both models: device_map, attn_implementation, ...

    Returns:
        Dataset: the rows of `out`: the official CoDIT fields (`score`: log q of each token at
        temperature 1, nats) and `messages`. Rows without an answer are in the errors file alone.

    Raises:
        ValueError: repeated ids, no prompts, files made with other settings or being written by
            another process, or arguments that cannot be used.
        FileNotFoundError: no such file of prompts.
        OSError: the files cannot be written; finished batches are kept.

    Source: fields: the paper's code; files, resumption, errors: ours.
    """
    files = Files(Path(out))
    _check(recipe, batch_size, engine)
    loaded = load(prompts, limit=limit)
    fingerprint = _fingerprint(recipe, loaded, batch_size=batch_size, engine=engine)
    start = time.monotonic()
    with dataset_file.locked(files):
        earlier = resumption.earlier_runs(files, fingerprint, resume=resume)
        if earlier is not None:
            model, tokenizer = ready(recipe, model, tokenizer, **load_options)
            rows = named(loaded.rows, tokenizer)
            size = batch_size or ROWS_PER_BATCH
            lines = size * recipe.n_samples
            names = _names(recipe, rows)
            kept = resumption.begin(files, fingerprint, earlier, names, lines_per_batch=lines)
            how: dict[str, Any] = {"engine": engine, "batch_size": batch_size, "progress": progress}
            answer = partial(decode.generate, model, tokenizer, **how)
            metadata = _metadata(recipe)
            for batch, count in _batches(rows, size, kept // recipe.n_samples, progress=progress):
                records = _records(recipe, batch, answer, metadata)
                dataset_file.append(files, records)
                count(sum(len(record.get("score", ())) for record in records))
            seconds = round(time.monotonic() - start, 3)
            ids = model_ids(recipe)
            dataset_file.finish(files, recipe, errors=loaded.errors, seconds=seconds, **ids)
    return dataset_file.read(files.out)


def _check(recipe: recipes.Synthesis, batch_size: int | None, engine: str) -> None:
    """Raise ValueError for what could not run, before any file is touched."""
    if recipe.n_samples < 1:
        raise ValueError(f"n_samples must be at least 1; got {recipe.n_samples}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1; got {batch_size}. None chooses one.")
    if engine not in decode.ENGINES:
        raise ValueError(f"engine must be one of {', '.join(decode.ENGINES)}; got {engine!r}.")


def _fingerprint(
    recipe: recipes.Synthesis, loaded: Prompts, *, batch_size: int | None, engine: str
) -> dict[str, Any]:
    """Return what changes the rows: recipe, input, batches, versions."""
    asked = [[row["id"], row["messages"]] for row in loaded.rows]
    refused = [[bad["line"], bad["reason"]] for bad in loaded.errors]
    text = json.dumps([asked, refused]).encode()
    return {
        "recipe": recipes.canonical(recipe),
        "input": hashlib.sha256(text).hexdigest(),
        "batch_size": batch_size,
        "engine": engine,
        "versions": {k: v for k, v in store.versions().items() if k in PACKAGES},
    }


def _names(recipe: recipes.Synthesis, rows: Sequence[dict[str, Any]]) -> list[Name]:
    """Return what every line of the dataset will be called, in order."""
    return [(row["id"], number) for row in rows for number in _samples(recipe)]


def _samples(recipe: recipes.Synthesis) -> list[int | None]:
    """Return the numbers that rows carry as `sample`: none where there is one response only."""
    if recipe.n_samples == 1:
        return [None]
    return [recipe.decoding.sample + k for k in range(recipe.n_samples)]


def _batches(
    rows: Sequence[dict[str, Any]], size: int, done: int, *, progress: bool
) -> Iterator[tuple[Sequence[dict[str, Any]], Callable[[int], None]]]:
    """Yield the batches after `done` rows, each with a function that counts its tokens."""
    tokens, start = 0, time.monotonic()

    def count(new: int) -> None:
        nonlocal tokens
        tokens += new
        rate = tokens / max(time.monotonic() - start, 1e-9)
        bar.set_postfix_str(f"{tokens} tokens, {rate:.0f} tokens/s", refresh=False)

    bar = tqdm(total=len(rows), initial=done, unit="row", disable=not progress, desc="synthesize")
    with bar:
        for first in range(done, len(rows), size):
            batch = rows[first : first + size]
            yield batch, count
            bar.update(len(batch))


def _records(
    recipe: recipes.Synthesis,
    rows: Sequence[dict[str, Any]],
    answer: Callable[..., list[decode.Response]],
    metadata: dict[str, Any],
) -> list[dict[str, Any]]:
    """Return a batch's records, row by row and sample by sample."""
    chats, ids = [row["messages"] for row in rows], [row["id"] for row in rows]
    drawn = []
    for k in range(recipe.n_samples):
        decoding = replace(recipe.decoding, sample=recipe.decoding.sample + k)
        drawn.append(answer(chats, decoding, ids=ids))
    return [
        _record(row, responses[place], number, metadata)
        for place, row in enumerate(rows)
        for number, responses in zip(_samples(recipe), drawn, strict=True)
    ]


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
        **model_ids(recipe),
    }


def _record(
    row: dict[str, Any],
    response: decode.Response,
    number: int | None,
    metadata: dict[str, Any],
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
        "res_metadata": metadata,
        "score": [round(logprob, DIGITS) for logprob in response.logprobs],
        "messages": [*row["messages"], {"role": "assistant", "content": response.text}],
    }
