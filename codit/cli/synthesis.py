"""`codit synthesize` and `compare`: flags, what they print, and their status."""

from __future__ import annotations

import functools
import inspect
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from codit import recipes
from codit.cli.flags import ANYWHERE, FLAT, DecodingFlags, ModelFlags, PlacingFlags

AUTHORS = recipes.Decoding()
SHORT = recipes.Decoding(max_new_tokens=256)  # ours: a look, not a dataset
# CTD, Algorithm 1, and instructive decoding: greedy, all tokens; .3 is the latter's, and CTD's in
# tuning.
GREEDY = recipes.Decoding(strength=0.3, plausibility=0.0, temperature=0.0)
ALONE = recipes.Decoding(strength=0.0, plausibility=0.0, temperature=0.0)
METHODS = {"codit": AUTHORS, "ctd": GREEDY, "instructive": GREEDY, "prompt-tuning": ALONE}


@dataclass(frozen=True, kw_only=True)
class Vllm:
    """What vLLM's engine reads.

    Args:
        tensor_parallel_size: GPUs that share each of vLLM's engines.
        data_parallel_size: vLLM's engines, one in each worker: another word for workers.
        distributed_executor_backend: of vLLM: mp, ray, ...
        engine_args: further arguments of vLLM's engine, as JSON: '{"max_num_seqs": 512}'.
    """

    tensor_parallel_size: int | None = None
    data_parallel_size: int | None = None
    distributed_executor_backend: str | None = None
    engine_args: str | None = None

    def options(self, engine: str) -> dict[str, Any]:
        """Return the arguments of the engine; ValueError: there are some for another engine."""
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if given and engine != "vllm":
            raise ValueError(
                "tensor_parallel_size, data_parallel_size, distributed_executor_backend and "
                f'engine_args are read by vLLM; got engine "{engine}". Add --engine vllm.'
            )
        given.pop("data_parallel_size", None)  # that is the number of workers
        text = given.pop("engine_args", "{}")
        try:
            return given | dict(json.loads(text))
        except (ValueError, TypeError) as error:
            said = f"engine_args must be a JSON object; got {text}: {error}."
            raise ValueError(said) from None


USUAL = Vllm()


@dataclass(frozen=True, kw_only=True)
class Method:
    """What the expert is contrasted with.

    Args:
        method: codit: the amateur. ctd: itself behind a soft prefix of `codit contrastive-tune`.
            instructive: itself, asked in another wording. prompt-tuning: nothing, it answers
            behind a soft prefix. All but codit are greedy by default, and need no amateur.
        prefix: folder of the soft prefix of ctd and prompt-tuning.
        wording: of the instruction, for instructive: opposite, none, truncated or random. Where a
            row has an "input" it stays as it is.
    """

    method: Literal["codit", "ctd", "instructive", "prompt-tuning"] = "codit"
    prefix: Path | None = None
    wording: Literal["opposite", "none", "truncated", "random"] | None = None

    def view(self) -> Callable[[recipes.Model], recipes.View] | None:
        """Return what makes the expert's second view, None for CoDIT; ValueError: wrong flags."""
        needs = {"codit": None, "instructive": "wording"}.get(self.method, "prefix")
        given = [name for name in ("prefix", "wording") if getattr(self, name) is not None]
        if given != [needs] * (needs is not None):
            raise ValueError(
                f"expected {f'--{needs} alone' if needs else 'neither'} of --prefix and --wording "
                f"for method {self.method}; got {' and '.join(given) or 'none'}. "
                f"{f'Give --{needs}' if needs else 'Name the --method that reads it'}."
            )
        if needs is None:
            return None
        prefix = recipes.File(path=str(self.prefix)) if self.prefix else None
        alone = self.method == "prompt-tuning"
        return lambda expert: recipes.View(
            base=expert, prefix=prefix, wording=self.wording or "", alone=alone
        )


CODIT = Method()


def of_method(arguments: Sequence[str]) -> Callable[..., int]:
    """Return `synthesize` with the decoding, as its default, of the method that is named."""
    named = re.findall(r"--method[ =](\S+)", " ".join(arguments)) or ["codit"]
    whole = inspect.signature(synthesize, eval_str=True)
    default = METHODS.get(named[-1], AUTHORS)
    flags = [
        p.replace(default=default) if n == "decoding" else p for n, p in whole.parameters.items()
    ]
    called: Any = functools.wraps(synthesize)(lambda **given: synthesize(**given))
    called.__signature__ = whole.replace(parameters=flags)
    return called


def synthesize(
    *,
    models: ModelFlags,
    prompts: Path,
    out: Path,
    method: Annotated[Method, FLAT] = CODIT,
    decoding: DecodingFlags = AUTHORS,
    n_samples: int = recipes.Synthesis.n_samples,
    batch_size: int | None = None,
    engine: Literal["auto", "static", "continuous", "vllm"] = "auto",
    resume: Literal["never", "if_same", "always"] = "if_same",
    limit: int | None = None,
    preview: int = 0,
    dry_run: bool = False,
    placing: PlacingFlags = ANYWHERE,
    workers: int | None = None,
    ray_address: str | None = None,
    vllm: Annotated[Vllm, FLAT] = USUAL,
) -> int:
    """Answer the prompts of a file by contrast and write a dataset that trains as it is.

    Run the same command again after an interruption and it goes on; when nothing is left to do it
    does nothing.

    Args:
        models: which pair answers.
        prompts: JSON lines with "instruction" (Alpaca's "input" too), "messages", "prompt" or
            "conversations", and "id" where there is one.
        out: the dataset's file, ending in .jsonl; errors, card and manifest lie beside it.
        method: what the expert is contrasted with.
        decoding: how responses are drawn.
        n_samples: responses to each prompt.
        batch_size: rows computed and written together. Default: 256, computed as the engine likes.
        engine: static: padded batches; continuous: a paged cache; vllm: in vLLM (the extra `vllm`);
            auto: continuous on a GPU.
        resume: never: refuse if out exists; if_same: go on if nothing that changes the rows has
            changed; always: go on with other settings.
        limit: only the first so many rows of the file.
        preview: show the expert alone beside the pair for the first so many rows, and stop.
        dry_run: show rows, tokens, memory and cost, and stop.
        placing: where weights go.
        workers: processes that answer, a pair each; the dataset is the same. Default: one for each
            GPU; with a Ray address, for each GPU of the cluster or, without any, CPU.
        ray_address: answer on a Ray cluster: auto, host:port, ray://host:port, or local: one of
            this machine alone.
        vllm: what vLLM's engine reads.

    Returns:
        int: exit status, 1 where not one row was answered.
    """
    file = recipes.File(path=str(prompts))
    view = method.view()
    recipe = models.recipe(decoding, view=view, prompts=file, n_samples=n_samples)
    if dry_run and view:
        raise ValueError("a dry run is of pairs; got another method. Use --limit 10 instead.")
    if dry_run:
        from codit.dataset import preview as looking

        needs = looking.dry_run(recipe, prompts, batch_size=batch_size, limit=limit)
        print(looking.table(needs))
        return 0
    how = vllm.options(engine) | {"engine": engine, "batch_size": batch_size}
    if preview:
        rows = min(preview, limit or preview)
        if view:
            how |= _two_views(recipe, prompts, rows, **placing.here())
            return _show_both(recipe, prompts, limit=rows, named=method.method, **how)
        return _show_both(recipe, prompts, limit=rows, **how, **placing.here())
    engines = vllm.data_parallel_size
    if engines is not None and workers not in (None, engines):
        raise ValueError(
            f"data_parallel_size is the number of workers; got {engines} and {workers}. Name one."
        )
    from codit import synthesis

    workers = engines if workers is None else workers
    how |= {"resume": resume, "workers": workers, "ray_address": ray_address}
    how |= _two_views(recipe, prompts, limit, **placing.here()) if view else placing.given()
    return _report(out, synthesis.write(recipe, prompts, out, limit=limit, **how))


def compare(
    *,
    models: ModelFlags,
    prompt: str,
    decoding: DecodingFlags = SHORT,
    placing: PlacingFlags = ANYWHERE,
) -> int:
    """Answer one prompt by the expert alone and by the pair, with the same noise.

    Args:
        models: which pair answers.
        prompt: what to ask.
        decoding: how responses are drawn.
        placing: where weights go.
    """
    return _show_both(models.recipe(decoding), [{"instruction": prompt}], **placing.here())


def _two_views(
    recipe: recipes.Synthesis, prompts: Path, limit: int | None, **load: Any
) -> dict[str, Any]:
    """Return the expert under two views, and its tokenizer, as `synthesis.write` takes them."""
    from codit import contrastive_tuning as ctd
    from codit.dataset.prompts import load as read
    from codit.engine.chat import dated
    from codit.engine.models import load_tokenizer, read_model

    view, expert = recipe.pair.amateur, recipe.pair.expert
    tokenizer = load_tokenizer(expert.name, revision=expert.revision)
    model = read_model(expert.name, revision=expert.revision, dtype=expert.dtype, **load)
    if view.prefix is not None:
        two = ctd.two_views(model, tokenizer, view.prefix.path, second_alone=view.alone)
    else:
        if dated(tokenizer, "2000-01-01")[1] is not None:
            raise ValueError(
                f"the chat template of {expert.name} writes the date, and the other wording would "
                "have another one when this is continued. Give it a template without."
            )
        rows = read(prompts, limit=limit).rows
        chats = [row["messages"] for row in rows]
        parts = [row.get("definition", row["instruction"]) for row in rows]
        two = ctd.instructive(
            model, tokenizer, chats, view.wording, definitions=parts, seed=view.seed
        )
    return {"model": two, "tokenizer": tokenizer}


def _show_both(recipe: recipes.Synthesis, prompts: Any, *, named: str = "codit", **how: Any) -> int:
    from codit.dataset import preview

    for row in preview.compare(recipe, prompts, **how):
        print(f"== {row['id']}: {row['instruction']}")
        print(f"-- direct\n{row['direct']}\n-- {named}\n{row['codit']}\n")
    return 0


def _report(out: Path, manifest: dict[str, Any]) -> int:
    """Say what was written; where it is nothing, why."""
    from codit.dataset.output import Files
    from codit.files import read_lines

    rows, empty = manifest["rows"], manifest.get("empty")  # older manifests do not count it
    print(
        f"{out}: {rows} responses, {manifest['completed']} complete, "
        f"{f'{empty} empty, ' if empty else ''}{manifest['tokens']} tokens; "
        f"{manifest['errors']} rows without an answer"
    )
    if rows:
        return 0
    _, first = next(read_lines(Files(out).beside(".errors.jsonl")))
    print(f"codit: no row was answered; the first: {first['reason']}", file=sys.stderr)
    return 1
