"""The same functions from a shell: `codit synthesize`, `compare`, `train`, `chat-vector`, ...

Flags and their help come from the signatures and docstrings here and from the recipes. A command
imports models, tables and pictures when it runs: help takes no seconds. What a user can cause is
answered by one line on stderr and status 2, never by a traceback.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import tyro

import codit
from codit import recipes
from codit.cli import (
    chat_vector,
    instruction_vector,
    judge,
    mt_bench,
    overlap,
    serve,
    synthesis,
)
from codit.dataset import workers


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
    save_every: int = 500,
) -> int:
    """Fine-tune a student on a dataset of responses, all parameters, loss on the answer only.

    Killed, the same command goes on from the last checkpoint, to the same weights.

    Args:
        base: Hub name or folder of the model to train.
        data: the dataset: JSON lines with a conversation that ends with its answer, "messages" say,
            and "is_completed" where there is one. Rows that are incomplete or empty are left out.
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
        save_every: steps between checkpoints; each is three times the size of the student, the
            latest is kept until the student is saved. 0: none.
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
    from codit import student
    from codit.training.loop import LOG

    was_there = (out / LOG).exists()
    student.train(recipe, data, out, save_every=save_every)
    told = json.loads((out / LOG).read_text(encoding="utf-8"))
    print(
        f"{out}: {'finished before, ' * was_there}{told['rows_used']} rows trained on, "
        f"{told['rows_dropped']} left out, {told['rows_empty']} of them empty"
    )
    return 0


def contrastive_tune(
    *,
    base: str,
    data: Path,
    out: Path,
    base_revision: str | None = None,
    objective: Literal["contrast", "kept-scale", "prompt"] = "contrast",
    strength: float = recipes.Tuning.strength,
    prefix: int = recipes.Tuning.prefix,
    learning_rate: float = recipes.Tuning.learning_rate,
    epochs: float = recipes.Tuning.epochs,
    batch: int = recipes.Tuning.batch,
    max_length: int = recipes.Tuning.max_length,
    seed: int = recipes.Tuning.seed,
    save_every: int = 100,
) -> int:
    """Tune a soft prefix, by which `codit synthesize --method ctd` contrasts a model with itself.

    The model is frozen. Killed, the same command goes on from the last checkpoint.

    Args:
        base: Hub name or folder of the model, which knows how to follow instructions.
        data: rows of its own post-training data, a tenth or less: as for `codit train`.
        out: folder for the prefix, in the format of PEFT's prompt tuning.
        base_revision: commit, tag or branch of the base.
        objective: contrast: CTD's loss. kept-scale: ours, the first view weighs 1 + strength.
            prompt: plain prompt tuning, for `--method prompt-tuning`.
        strength: of the second view in the loss, alpha, in [0, 1).
        prefix: rows of the soft prefix.
        learning_rate: constant. Narrow models want more than the paper's.
        epochs: passes over the data.
        batch: rows in an optimiser step.
        max_length: longest row in tokens; a longer one is an error, never cut.
        seed: start of the prefix, and order of the rows.
        save_every: steps between checkpoints. 0: none.
    """
    recipe = recipes.Tuning(
        base=recipes.Model(name=base, revision=base_revision),
        data=recipes.File(path=str(data)),
        strength=strength,
        prefix=prefix,
        keeps_scale=objective == "kept-scale",
        contrasts=objective != "prompt",
        learning_rate=learning_rate,
        epochs=epochs,
        batch=batch,
        max_length=max_length,
        seed=seed,
    )
    from codit import contrastive_tuning
    from codit.training.loop import LOG

    contrastive_tuning.tune(recipe, data, out, save_every=save_every)
    told = json.loads((out / LOG).read_text(encoding="utf-8"))
    losses = " to ".join(f"{told['losses'][place]['loss']:.3f}" for place in (0, -1))
    print(
        f"{out}: {told['parameters']} numbers tuned on {told['rows_used']} rows, "
        f"{told['rows_dropped']} left out; loss of a step from {losses}"
    )
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that the arguments name (None: those of the process).

    Returns:
        int: exit status: 0, 1 where a command did not succeed, 2 for what the user can mend, 130
        when interrupted. SIGTERM does the same, and exits with 143.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments == ["--version"]:
        print(f"codit {codit.__version__}")
        return 0
    try:
        with workers.stoppable():
            status = tyro.extras.subcommand_cli_from_dict(
                _commands(arguments),
                prog="codit",
                description="Instruction-tuning data by contrasting a post-trained model with its "
                "pre-trained self (arXiv 2604.13538).",
                args=arguments,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except (ValueError, OSError) as error:
        print(f"codit: {_one_line(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        print(f"codit: {_extra(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return int(status)


def reproduce() -> int:
    """Execute the notebooks and write their figures; skip what is up to date."""
    # Shown by the list of commands: `_commands` puts the true one here where it is named first.
    raise ValueError("expected the command before its flags. Type: codit reproduce ...")


def _commands(arguments: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """Return the commands; the one whose flags need seconds only where it is meant."""
    commands: dict[str, Callable[..., Any]] = {
        "synthesize": synthesis.of_method(arguments),
        "compare": synthesis.compare,
        "judge": judge.judge,
        "judge-agreement": judge.judge_agreement,
        "serve": serve.serve,
        "decontaminate": overlap.decontaminate,
        "mt-bench": mt_bench.mt_bench,
        "train": train,
        "contrastive-tune": contrastive_tune,
        "chat-vector": chat_vector.command,
        "instruction-vector": instruction_vector.command,
        "reproduce": reproduce,
    }
    if arguments[:1] == ["reproduce"]:
        from codit.paper import run

        commands["reproduce"] = run.command
    return commands


def _extra(error: ModuleNotFoundError) -> str:
    """Return which extra brings a package that is not there; what none brings is our own fault."""
    name = str(error.name).partition(".")[0]
    wanted = "\n".join(metadata.requires("codit") or [])
    found = re.search(rf'^{name}\b.*extra == "(?!dev")([a-z]+)"', wanted, re.MULTILINE)
    if found is None:
        raise error
    return (
        f"expected the package {name}; it is not installed. Install the extra `{found[1]}`: "
        f'pip install -e ".[{found[1]}]" in a checkout, or pip install "WHEEL[{found[1]}]".'
    )


def _one_line(error: Exception) -> str:
    """Return an exception's message without line breaks and without an error number."""
    message = getattr(error, "strerror", None) or str(error) or type(error).__name__
    named = getattr(error, "filename", None)
    return " ".join(f"{message}: {named}".split() if named else message.split())
