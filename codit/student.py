"""Supervised fine-tuning of a student on a dataset of responses, and its evaluation.

TRL's `SFTTrainer` trains, on token ids and labels of `codit.training.rows`. Every setting that
changes a result comes from the recipe or from a constant below. The paper's settings were not
found; values and choices are ours.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from accelerate import PartialState
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer
from trl import SFTConfig, SFTTrainer

from codit import decode, recipes
from codit.engine.models import load_tokenizer, read_model
from codit.training.loop import Watch, fit, steps_in_order
from codit.training.rows import Source, adopt_template, answered, base_of, course

RECOMPUTED_ABOVE = 200_000_000
TOKENS_PER_PASS = {"cpu": 1024, "cuda": 16_384}


def train(
    recipe: recipes.Training,
    dataset: Source,
    out: str | Path,
    *,
    base: str | Path | None = None,
    rows_per_pass: int | None = None,
    save_every: int = 0,
    watch: tuple[Callable[[int, PreTrainedModel], None], int] | None = None,
) -> Path:
    """Fine-tune all parameters of a base model on the answers of a dataset, and save the student.

    loss of a step = - (1/N) sum over its rows and their answer tokens t of log p(y_t | x, y_<t),
    N the number of answer tokens in the step, end of turn included. AdamW; linear warm-up, then
    cosine decay to zero; gradients clipped at norm 1. Rows whose `is_completed` is False, or
    whose answer has no text, are dropped, in every arm alike.

    Weights, gradients and optimiser are float32, and so is the saved student: bfloat16 would round
    small updates away. Matrix products run under bfloat16 autocast if the base is stored in
    half precision, else in float32, on any device. Equal arguments give equal bytes on equal
    hardware with equal threads.

    Args:
        recipe: base, template, learning rate, epochs, batch, length and seed; see
            `recipes.Training`.
        dataset: path to JSON lines, or rows (a `Dataset`, dicts): conversations that end with an
            answer, in any layout of `codit.dataset.prompts`; optional "is_completed", and "id", by
            which errors name rows.
        out: folder for the student; made if absent.
        base: folder or Hub name of the base model. None: the recipe's.
        rows_per_pass: rows in one forward pass, a divisor of `recipe.batch`; a step is as many
            passes as it needs. Changes memory and speed, results only by rounding. None: by
            length, 1,024 tokens on a CPU and 16,384 on a GPU.
        save_every: steps between checkpoints, from which a killed training goes on when it is
            called again. 0: none.
        watch: a function that is shown (step, model) and every how many steps; 0 and the last
            step are always shown. It must not change the model.

    Returns:
        Path: `out` with float32 safetensors, the tokenizer with its chat template and the end of
        turn as EOS, and `training_log.json`: losses in nats per token, rows used, rows dropped,
        tokens. Where this training is finished there, nothing is done.

    Raises:
        ValueError: no base; no chat template; no row left; a row without an answer, longer than
            `recipe.max_length` or the model's context, or without its end of turn in the loss;
            prompts tokenised unlike at decoding; `out` is the base or holds another model.
    """
    out, of = Path(out), base_of(recipe, base)
    tokenizer = load_tokenizer(of.name, revision=of.revision)
    read = answered(dataset, tokenizer)  # before weights are loaded
    model = read_model(of.name, revision=of.revision, dtype=torch.float32)
    if recipe.template is not None:
        adopt_template(model, tokenizer, recipe.template)
    given = course(recipe, read, model, tokenizer, out, base=of.name)
    if given is None:
        return out
    how = arguments(
        recipe,
        out,
        tokenizer.convert_ids_to_tokens(given.stop),
        n=len(given.data),
        rows_per_pass=rows_per_pass or fitting(recipe.batch, given.longest),
        half=is_half(of),
        recompute=model.num_parameters() > RECOMPUTED_ABOVE,
        save_every=save_every,
    )
    trainer = AnswerTrainer(
        model=model, args=how, train_dataset=given.data, processing_class=tokenizer
    )
    return fit(trainer, tokenizer, out, Watch(*watch) if watch else None, **given.log)


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Mapping[str, Any]],
    score: Callable[..., Any],
    decoding: recipes.Decoding,
    *,
    progress: bool = True,
) -> pd.DataFrame:
    """Answer held-out prompts and score the answers.

    Args:
        model: a student, any causal LM, or a pair.
        tokenizer: the model's, with its chat template.
        rows: prompts: "id", and "instruction" or "messages".
        score: called as score(text, row, is_completed=...); returns a dataclass, a mapping or one
            number.
        decoding: how answers are drawn.
        progress: show a bar.

    Returns:
        pd.DataFrame: a row per prompt, in order: id, response, is_completed, n_tokens, error, then
        the fields of the score ("score" for a number). A prompt that could not be answered has
        its error and no score.

    Raises:
        ValueError: no rows, or a row without "id" or without a prompt.
    """
    if not rows:
        raise ValueError("expected at least one prompt; got none. Give rows to answer.")
    for row in rows:
        if "id" not in row or not {"instruction", "messages"} & set(row):
            raise ValueError(
                f'expected rows with "id" and "instruction" or "messages"; got {sorted(row)}. '
                "Add what is missing."
            )
    asked = [
        row.get("messages") or [{"role": "user", "content": row["instruction"]}] for row in rows
    ]
    ids = [row["id"] for row in rows]
    answers = decode.generate(model, tokenizer, asked, decoding, ids=ids, progress=progress)
    return pd.DataFrame([scored(a, row, score) for a, row in zip(answers, rows, strict=True)])


def scored(
    answer: decode.Response, row: Mapping[str, Any], score: Callable[..., Any]
) -> dict[str, Any]:
    """Return an answer and the fields of its score as one flat row."""
    flat = {
        "id": row["id"],
        "response": answer.text,
        "is_completed": answer.is_completed,
        "n_tokens": len(answer.token_ids),
        "error": answer.error,
    }
    if answer.error is not None:
        return flat
    value = score(answer.text, row, is_completed=answer.is_completed)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return flat | dataclasses.asdict(value)
    return flat | (dict(value) if isinstance(value, Mapping) else {"score": value})


class AnswerTrainer(SFTTrainer):
    """TRL's trainer; on a CPU with the model's own loss, which is the same and quicker.

    TRL's fused head projects twice to save the memory of the logits, which a CPU can spare.
    """

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Return the mean negative log-likelihood of the answer tokens of a step, in nats."""
        if inputs["input_ids"].device.type == "cpu":
            return Trainer.compute_loss(self, model, inputs, *args, **kwargs)
        return super().compute_loss(model, inputs, *args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: TRL puts a card for the Hub beside each checkpoint."""


def is_half(base: recipes.Model) -> bool:
    """Return whether a base is stored in half precision."""
    dtype = base.dtype
    if dtype == "auto":
        dtype = AutoConfig.from_pretrained(base.name, revision=base.revision).dtype
    return str(dtype).removeprefix("torch.") in ("bfloat16", "float16")


def fitting(batch: int, longest: int) -> int:
    """Return the rows of one forward pass: as many as fit, and a divisor of a process's rows."""
    share = max(1, batch // PartialState().num_processes)
    limit = TOKENS_PER_PASS["cuda" if torch.cuda.is_available() else "cpu"] // longest
    return max(n for n in range(1, share + 1) if share % n == 0 and n <= max(1, limit))


def arguments(
    recipe: recipes.Training,
    out: Path,
    eos_token: str,
    *,
    n: int,
    rows_per_pass: int,
    half: bool,
    recompute: bool,
    save_every: int,
) -> SFTConfig:
    """Return TRL's settings; nothing that changes a result is left to a default.

    `n` rows over the whole training are already in order. `eos_token` becomes the student's stop
    token, beside the base's; `half` is bfloat16 autocast; `recompute` trades time for memory.
    """
    return SFTConfig(
        **steps_in_order(recipe, out, rows_per_pass=rows_per_pass, save_every=save_every),
        warmup_steps=round(recipe.warmup * math.ceil(n / recipe.batch)),
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.adam_betas[0],
        adam_beta2=recipe.adam_betas[1],
        bf16=half,
        activation_checkpointing=recompute,
        eos_token=eos_token,
        max_length=None,  # longer rows were refused
        packing=False,
        padding_free=False,
        loss_type="nll",
        dataset_kwargs={"skip_prepare_dataset": True},  # ids and labels are ready
    )
