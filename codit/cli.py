"""The same functions from a shell: `codit synthesize`, `compare`, `train`, `chat-vector`, ...

Flags and their help come from the signatures and docstrings here and from the recipes. What a user
can cause is answered by one line on stderr and status 2, never by a traceback.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import codit
from codit import chat_vector_cli, recipes

DecodingFlags = Annotated[recipes.Decoding, tyro.conf.arg(name="")]
AUTHORS = recipes.Decoding()
SHORT = recipes.Decoding(max_new_tokens=256)  # ours: a look, not a dataset

# Models, and with them torch, are imported by the command that needs them: help takes no seconds.


def synthesize(
    *,
    expert: str,
    amateur: str,
    prompts: Path,
    out: Path,
    decoding: DecodingFlags = AUTHORS,
    n_samples: int = recipes.Synthesis.n_samples,
    batch_size: int | None = None,
    engine: Literal["auto", "static", "continuous"] = "auto",
    resume: Literal["never", "if_same", "always"] = "if_same",
    limit: int | None = None,
    preview: int = 0,
    dry_run: bool = False,
    expert_revision: str | None = None,
    amateur_revision: str | None = None,
    dtype: str = recipes.Model.dtype,
    device_map: str | None = None,
    allow_renamed: bool = False,
) -> int:
    """Answer the prompts of a file by a pair and write a dataset that trains as it is.

    Run the same command again after an interruption and it goes on; when nothing is left to do it
    does nothing.

    Args:
        expert: Hub name or folder of the post-trained model.
        amateur: Hub name or folder of its own pre-trained counterpart.
        prompts: JSON lines with "instruction" or "messages", and "id" where there is one.
        out: the dataset's file, ending in .jsonl; errors, card and manifest lie beside it.
        decoding: how responses are drawn.
        n_samples: responses to each prompt.
        batch_size: rows computed and written together. Default: 256, computed as the engine likes.
        engine: static: padded batches; continuous: a paged cache; auto: continuous on a GPU.
        resume: never: refuse if out exists; if_same: go on if nothing that changes the rows has
            changed; always: go on with other settings.
        limit: only the first so many rows of the file.
        preview: show the expert alone beside the pair for the first so many rows, and stop.
        dry_run: show rows, tokens, memory and cost, and stop.
        expert_revision: commit, tag or branch of the expert.
        amateur_revision: commit, tag or branch of the amateur.
        dtype: of both models' weights: auto, float32, bfloat16, ...
        device_map: where weights go: cpu, cuda:1, auto, ... Default: a GPU if there is one.
        allow_renamed: accept added tokens whose names differ between the two tokenizers.

    Returns:
        int: exit status, 1 where not one row was answered.

    Source: defaults of decoding: the authors' scripts; the rest: ours.
    """
    recipe = recipes.Synthesis(
        pair=recipes.Pair(
            expert=recipes.Model(name=expert, revision=expert_revision, dtype=dtype),
            amateur=recipes.Model(name=amateur, revision=amateur_revision, dtype=dtype),
            allow_renamed=allow_renamed,
        ),
        prompts=recipes.File(path=str(prompts)),
        decoding=decoding,
        n_samples=n_samples,
    )
    if dry_run:
        return _show_needs(recipe, batch_size=batch_size, limit=limit)
    how: dict[str, Any] = {"engine": engine, "batch_size": batch_size, **_placed(device_map)}
    if preview:
        rows = min(preview, limit or preview)
        return _show_both(recipe, prompts, limit=rows, **how)
    from codit import synthesis

    dataset = synthesis.synthesize(recipe, prompts, out, resume=resume, limit=limit, **how)
    return _report(out, len(dataset))


def compare(
    *,
    expert: str,
    amateur: str,
    prompt: str,
    decoding: DecodingFlags = SHORT,
    expert_revision: str | None = None,
    amateur_revision: str | None = None,
    dtype: str = recipes.Model.dtype,
    device_map: str | None = None,
    allow_renamed: bool = False,
) -> int:
    """Answer one prompt by the expert alone and by the pair, with the same noise.

    Args:
        expert: Hub name or folder of the post-trained model.
        amateur: Hub name or folder of its own pre-trained counterpart.
        prompt: what to ask.
        decoding: how responses are drawn.
        expert_revision: commit, tag or branch of the expert.
        amateur_revision: commit, tag or branch of the amateur.
        dtype: of both models' weights: auto, float32, bfloat16, ...
        device_map: where weights go: cpu, cuda:1, auto, ... Default: a GPU if there is one.
        allow_renamed: accept added tokens whose names differ between the two tokenizers.

    Returns:
        int: exit status.

    Source: ours.
    """
    recipe = recipes.Synthesis(
        pair=recipes.Pair(
            expert=recipes.Model(name=expert, revision=expert_revision, dtype=dtype),
            amateur=recipes.Model(name=amateur, revision=amateur_revision, dtype=dtype),
            allow_renamed=allow_renamed,
        ),
        prompts=recipes.WorldPrompts(),  # not read: the prompt stands in the command
        decoding=decoding,
    )
    return _show_both(recipe, [{"instruction": prompt}], **_placed(device_map))


def train(
    *,
    base: str,
    data: Path,
    out: Path,
    base_revision: str | None = None,
    template: str | None = None,
    learning_rate: float = recipes.Training.learning_rate,
    epochs: float = recipes.Training.epochs,
    batch: int = recipes.Training.batch,
    max_length: int = recipes.Training.max_length,
    warmup: float = recipes.Training.warmup,
    weight_decay: float = recipes.Training.weight_decay,
    seed: int = recipes.Training.seed,
) -> int:
    """Fine-tune a student on a dataset of responses, all parameters, loss on the answer only.

    Args:
        base: Hub name or folder of the model to train.
        data: the dataset: JSON lines with "messages", and "is_completed" where there is one.
        out: folder for the student.
        base_revision: commit, tag or branch of the base.
        template: model whose chat template the student learns, the teacher's expert say; needed
            where the base has none. Default: the base's own.
        learning_rate: at the end of the warm-up; cosine decay follows.
        epochs: passes over the data.
        batch: rows in an optimiser step.
        max_length: longest row in tokens; a longer one is an error, never cut.
        warmup: share of steps over which the learning rate rises.
        weight_decay: of AdamW.
        seed: order of the rows.

    Returns:
        int: exit status.

    Source: ours; the paper's settings were not found.
    """
    recipe = recipes.Training(
        base=recipes.Model(name=base, revision=base_revision),
        data=recipes.File(path=str(data)),
        template=None if template is None else recipes.Model(name=template),
        learning_rate=learning_rate,
        epochs=epochs,
        batch=batch,
        max_length=max_length,
        warmup=warmup,
        weight_decay=weight_decay,
        seed=seed,
    )
    from codit import dataset_file, student

    print(student.train(recipe, dataset_file.read(data), out))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name.

    Args:
        argv: arguments without the program's name; None: those of the process.

    Returns:
        int: exit status: 0, 1 where a command did not succeed, 2 for what the user can mend, 130
        when interrupted.

    Source: ours.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"codit {codit.__version__}")
        return 0
    try:
        status = tyro.extras.subcommand_cli_from_dict(
            _commands(arguments[:1]),
            prog="codit",
            description="Instruction-tuning data by contrasting a post-trained model with its "
            "pre-trained self (arXiv 2604.13538).",
            args=arguments,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except (ValueError, OSError) as error:
        print(f"codit: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("codit: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return int(status)


def _commands(first: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """Return the commands; those whose import takes seconds only where they may be meant."""
    commands: dict[str, Callable[..., Any]] = {
        "synthesize": synthesize,
        "compare": compare,
        "train": train,
        "chat-vector": chat_vector_cli.command,
    }
    if not first or first[0] not in commands:
        from codit import reproduce

        commands["reproduce"] = reproduce.command
    return commands


def _one_line(error: Exception) -> str:
    """Return an exception's message without line breaks and without an error number."""
    message = getattr(error, "strerror", None) or str(error) or type(error).__name__
    named = getattr(error, "filename", None)
    return " ".join(f"{message}: {named}".split() if named else message.split())


def _placed(device_map: str | None) -> dict[str, str]:
    """Return the load options that put both models where the user wants them."""
    import torch

    if device_map is None and torch.cuda.is_available():
        device_map = "cuda"
    return {} if device_map is None else {"device_map": device_map}


def _show_needs(recipe: recipes.Synthesis, *, batch_size: int | None, limit: int | None) -> int:
    from codit import preview

    needs = preview.dry_run(recipe, recipe.prompts, batch_size=batch_size, limit=limit)
    print(preview.table(needs))
    return 0


def _show_both(recipe: recipes.Synthesis, prompts: Any, **how: Any) -> int:
    from codit import preview

    for row in preview.compare(recipe, prompts, **how):
        print(f"== {row['id']}: {row['instruction']}")
        print(f"-- direct\n{row['direct']}\n-- codit\n{row['codit']}\n")
    return 0


def _report(out: Path, rows: int) -> int:
    """Say what was written; where it is nothing, why."""
    from codit.dataset_file import Files

    files = Files(out)
    manifest = json.loads(files.beside(".manifest.json").read_text(encoding="utf-8"))
    print(
        f"{out}: {rows} responses, {manifest['completed']} complete, {manifest['tokens']} tokens; "
        f"{manifest['errors']} rows without an answer"
    )
    if rows:
        return 0
    with files.beside(".errors.jsonl").open(encoding="utf-8") as stream:
        first = json.loads(stream.readline())
    print(f"codit: no row was answered; the first: {first['reason']}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
