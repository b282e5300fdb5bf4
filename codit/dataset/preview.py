"""Look before you synthesize: both answers side by side, and what a run will need.

Assumptions without a source are ours.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from codit import decode, recipes
from codit.dataset import teacher
from codit.dataset.prompts import Rows, load
from codit.engine.cache import reach
from codit.engine.chat import prompt_or_error
from codit.engine.memory import cache_bytes, n_weights

ROWS_AT_ONCE = 64  # of a static batch
TOKENS = 600  # assumed mean length of a response, cut at max_new_tokens
SPEED = 1e14  # assumed operations/s: a tenth of an H100's bfloat16 peak


def compare(
    recipe: recipes.Synthesis,
    prompts: Rows,
    *,
    model: teacher.Answering | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    engine: str = "auto",
    batch_size: int | None = None,
    limit: int | None = None,
    progress: bool = True,
    **load_options: Any,
) -> list[dict[str, str]]:
    """Return what the expert alone and the pair answer, with the same noise and nothing written.

    Args:
        recipe: pair and decoding; the expert alone has strength 0 and plausibility 0.
        prompts: as in `synthesize`.
        model: a ready pair. None: loaded as the recipe says.
        tokenizer: the expert's. None: loaded from where the expert was loaded.
        engine: see `decode.generate`, and so batch_size and progress.
        batch_size: rows computed at once.
        limit: only the first `limit` input rows; None: all.
        progress: show a bar for each of the two.
        **load_options: for loading both models.

    Returns:
        list[dict]: `id`, `instruction`, `direct`, `codit` (texts); for a prompt without an answer
        the reason stands in both.
    """
    loaded = load(prompts, limit=limit)
    model, tokenizer = teacher.ready(recipe, model, tokenizer, **load_options)
    rows = teacher.named(loaded.rows, tokenizer)
    chats, ids = [row["messages"] for row in rows], [row["id"] for row in rows]
    direct = replace(recipe.decoding, strength=0.0, plausibility=0.0)
    how: dict[str, Any] = {"engine": engine, "batch_size": batch_size, "progress": progress}
    shown = [{"id": row["id"], "instruction": row["instruction"]} for row in rows]
    for name, decoding in (("direct", direct), ("codit", recipe.decoding)):
        answers = decode.generate(model, tokenizer, chats, decoding, ids=ids, **how)
        for row, answer in zip(shown, answers, strict=True):
            row[name] = answer.text if answer.error is None else answer.error
    for bad in loaded.errors:
        both = dict.fromkeys(("direct", "codit"), bad["reason"])
        shown.append({"id": bad["id"] or f"line {bad['line']}", "instruction": "", **both})
    return shown


def dry_run(
    recipe: recipes.Synthesis,
    prompts: Rows,
    *,
    batch_size: int | None = None,
    limit: int | None = None,
) -> dict[str, float]:
    """Return what a synthesis will need, from configs and prompts alone: no weights are loaded.

    operations = 2 * (parameters of both models) * (prompt and response tokens)
    cache = 2 * layers * key-value heads * head width * bytes * tokens, of both models

    Args:
        recipe: pair, decoding and number of samples; both models by name.
        prompts: as in `synthesize`.
        batch_size: rows computed at once; None: 64.
        limit: only the first `limit` input rows; None: all.

    Returns:
        dict: what was assumed; `rows`, `bad_rows` (those that the template or the models' context
        refuses too), `responses`; `prompt_tokens`,
        `response_tokens` (expected) and `response_tokens_most` (tokens); `weight_bytes`,
        `cache_bytes` (a batch of the longest prompt and response; sliding windows need less);
        `operations`; `hours`. Strength 0 counts the expert alone.
    """
    teacher.check_samples(recipe)
    loaded = load(prompts, limit=limit)
    configs = [_config(model) for model in teacher.named_models(recipe) if model is not None]
    needs = [_needs(*config) for config in configs]
    tokenizer = teacher.expert_tokenizer(recipe)
    most = recipe.decoding.max_new_tokens
    room = reach(*(config for config, _ in configs)), most
    asked = [prompt_or_error(tokenizer, row["messages"], *room) for row in loaded.rows]
    lengths = [len(prompt) for prompt in asked if not isinstance(prompt, str)]
    responses = len(lengths) * recipe.n_samples
    response_tokens = responses * min(TOKENS, most)
    longest = max(lengths, default=0) + most
    at_once = min(batch_size or ROWS_AT_ONCE, max(len(lengths), 1))
    tokens = sum(lengths) * recipe.n_samples + response_tokens
    operations = 2 * sum(need["parameters"] for need in needs) * tokens
    return {
        "rows": len(lengths),
        "bad_rows": len(loaded.errors) + len(asked) - len(lengths),
        "rows_at_once": at_once,
        "tokens_per_response": min(TOKENS, most),
        "flops_per_second": SPEED,
        "responses": responses,
        "prompt_tokens": sum(lengths),
        "response_tokens": response_tokens,
        "response_tokens_most": responses * most,
        "weight_bytes": sum(need["parameters"] * need["bytes"] for need in needs),
        "cache_bytes": sum(need["cache"] for need in needs) * at_once * longest,
        "operations": operations,
        "hours": operations / SPEED / 3600,
    }


def table(needs: dict[str, float]) -> str:
    """Return the numbers of `dry_run` as lines for people, assumptions named."""
    weights, caches = (needs[name] / 1e9 for name in ("weight_bytes", "cache_bytes"))
    lines = {
        "rows": f"{needs['rows']:,} ({needs['bad_rows']:,} more are bad)",
        "responses": f"{needs['responses']:,}",
        "prompt tokens": f"{needs['prompt_tokens']:,}",
        "response tokens": f"about {needs['response_tokens']:,} (assumed: "
        f"{needs['tokens_per_response']:,} a response), at most {needs['response_tokens_most']:,}",
        "memory": f"{weights + caches:.3g} GB = {weights:.3g} GB weights + {caches:.3g} GB caches "
        f"({needs['rows_at_once']:,} rows at once, longest prompt and response)",
        "cost": f"{needs['operations']:.2g} operations, {needs['hours']:.2g} GPU hours "
        f"(assumed: {needs['flops_per_second']:.2g} operations/s)",
    }
    return "\n".join(f"{name:<16} {text}" for name, text in lines.items())


def _config(recipe: recipes.Model) -> tuple[PreTrainedConfig, Any]:
    """Return a model's config, and the dtype that it is loaded with."""
    config = AutoConfig.from_pretrained(recipe.name, revision=recipe.revision)
    return config, (config.dtype or torch.float32) if recipe.dtype == "auto" else recipe.dtype


def _needs(config: PreTrainedConfig, dtype: Any) -> dict[str, int]:
    """Return a model's parameters, bytes of each, and bytes that a token takes in its cache."""
    size = (getattr(torch, dtype) if isinstance(dtype, str) else dtype).itemsize
    return {"parameters": n_weights(config), "bytes": size, "cache": cache_bytes(config, size)}
