"""What every training shares: its progress bar, going on after a kill, what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainerCallback,
)

from codit import files, recipes

UNFINISHED = "unfinished.json"
LOG = "training_log.json"
STATE = "trainer_state.json"
MODELS = ("config.json", "adapter_config.json")  # what a finished model or prefix has


class Bar(ProgressCallback):
    """The Trainer's progress bar with the loss beside it, instead of a printed line per log."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Show the latest loss."""
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}", refresh=False)


class Watch(TrainerCallback):
    """Shows the model to a function before the first step, every so many steps, and at the end."""

    def __init__(self, show: Callable[[int, PreTrainedModel], None], every: int) -> None:
        """Keep `show`, called as show(step, model), and `every`, in optimiser steps."""
        self.show, self.every = show, every

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the model as it is before training."""
        self.show(state.global_step, kwargs["model"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the model if the step is a multiple of `every` or the last."""
        if state.global_step % self.every == 0 or state.global_step == state.max_steps:
            self.show(state.global_step, kwargs["model"])


def settings(out: Path, *, seed: int, save_every: int) -> dict[str, Any]:
    """Return what every training's arguments share: AdamW, cosine decay, its seed, its files."""
    return {
        "output_dir": str(out),
        "lr_scheduler_type": "cosine",
        "adam_epsilon": 1e-8,
        "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused",
        "use_cpu": not torch.cuda.is_available(),
        "seed": seed,
        "data_seed": seed,
        "dataloader_num_workers": 0,
        "save_strategy": "steps" if save_every else "no",
        "save_steps": save_every or 1,
        "save_total_limit": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
    }


def steps_in_order(
    recipe: recipes.Training | recipes.Tuning, out: Path, *, rows_per_pass: int, save_every: int
) -> dict[str, Any]:
    """Return `settings` of a training whose rows, of all epochs, are already in line.

    ValueError: a step's rows are no whole number of passes.
    """
    together = rows_per_pass * PartialState().num_processes
    if recipe.batch % together:
        raise ValueError(
            f"batch must be a multiple of rows_per_pass times processes = {together}; got "
            f"{recipe.batch}. Lower rows_per_pass."
        )
    return settings(out, seed=recipe.seed, save_every=save_every) | {
        "num_train_epochs": 1,
        "train_sampling_strategy": "sequential",
        "per_device_train_batch_size": rows_per_pass,
        "gradient_accumulation_steps": recipe.batch // together,
        "learning_rate": recipe.learning_rate,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_steps": 1,
    }


def date_of(out: Path, recipe: recipes.Recipe) -> str:
    """Return the date that a template writes in this training: noted in `out`, or else now's."""
    for note in (out / UNFINISHED, out / LOG):
        told = json.loads(note.read_text()) if note.exists() else {}
        told = told.get("made_of", told)
        if told.get("key") == recipes.key(recipe) and "date" in told:
            return str(told["date"])
    return datetime.now().isoformat(timespec="seconds")


def claim(
    out: Path,
    recipe: recipes.Recipe,
    data: bytes,
    *,
    base: str | None = None,
    date: str | None = None,
) -> bool:
    """Note in `out`, made if absent, what is being trained on which data, and the `date` in it.

    Returns True where this very training is finished there. ValueError: `out` is the base's own
    folder, or holds another model, or a checkpoint of another recipe or of other data.
    """
    note, log = out / UNFINISHED, out / LOG
    if base is not None and out.resolve() == Path(base).resolve():
        raise ValueError(
            f"expected an out that takes no input's place; {out} holds the base, which would be "
            "overwritten. Give another out."
        )
    mine = {"key": recipes.key(recipe), "data": hashlib.sha256(data).hexdigest()}
    mine |= {} if date is None else {"date": date}
    begun = json.loads(note.read_text()) if note.exists() else None
    if log.exists() and json.loads(log.read_text()).get("made_of") == mine:
        _clear(out)
        return True
    if begun != mine and last_checkpoint(out) is not None:
        raise ValueError(
            f"{out} holds an unfinished training with another recipe or other data; expected the "
            "same. Give another folder, or delete this one."
        )
    if begun != mine and any((out / name).exists() for name in MODELS):
        raise ValueError(
            f"{out} holds a finished model, made with other settings or other data, which would be "
            "overwritten. Give another folder, or delete this one."
        )
    out.mkdir(parents=True, exist_ok=True)
    files.write_json(note, mine)
    return False


def last_checkpoint(out: Path) -> str | None:
    """Return the newest complete checkpoint in `out`; a kill may leave an incomplete one."""
    # The Trainer writes its state after everything else.
    complete = [path.parent for path in out.glob(f"checkpoint-*/{STATE}") if _is_whole(path)]
    newest = max(complete, key=lambda path: int(path.name.split("-")[1]), default=None)
    return None if newest is None else str(newest)


def _is_whole(path: Path) -> bool:
    try:
        json.loads(path.read_text())
    except json.JSONDecodeError:
        return False
    return True


def fit(
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    out: Path,
    watch: Watch | None = None,
    **log: Any,
) -> Path:
    """Train, from the last checkpoint where there is one, and leave the model in `out`.

    `training_log.json` holds `log`, parameters, steps and the losses in nats per token, each a
    mean since the one before. Checkpoints are deleted.
    """
    trainer.remove_callback(ProgressCallback)
    for callback in (Bar(), watch):
        if callback is not None:
            trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=last_checkpoint(out))
    trainer.model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    history = [entry for entry in trainer.state.log_history if "loss" in entry]
    made_of = json.loads((out / UNFINISHED).read_text())
    losses = [{"step": entry["step"], "loss": entry["loss"]} for entry in history]
    size = {"parameters": trainer.model.num_parameters(), "steps": trainer.state.max_steps}
    text = json.dumps({**log, **size, "made_of": made_of, "losses": losses}, indent=1)
    with files.replacing(out / LOG) as stream:
        stream.write(f"{text}\n".encode())
    _clear(out)
    return out


def _clear(out: Path) -> None:
    """Delete what only an unfinished training needs."""
    for checkpoint in out.glob("checkpoint-*"):
        # First what marks it as complete: a kill must not leave half of one that looks whole.
        (checkpoint / STATE).unlink(missing_ok=True)
        shutil.rmtree(checkpoint)
    (out / UNFINISHED).unlink(missing_ok=True)
