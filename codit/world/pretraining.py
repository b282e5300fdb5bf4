"""A base model from nothing: packed text, next-token loss, `transformers.Trainer`.

Only the micro world's models are made here; real base models come from the Hub. Every value that
is not in the recipe is a constant below, the same for every architecture.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from codit.training.loop import claim, fit, settings
from codit.world.recipes import Pretraining
from codit.world.tokens import CONTEXT, END_OF_TEXT

HEAD_DIM = 32
WARMUP = 0.02
WEIGHT_DECAY = 0.1
ADAM_BETAS = (0.9, 0.95)
SAVE_EVERY = 100
LOG_EVERY = 10  # a divisor of SAVE_EVERY, or a resumed log has other means


def pretrain(
    recipe: Pretraining,
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerBase,
    out: str | Path,
) -> Path:
    """Train a base model on text and save it with its tokenizer.

    loss = - mean over blocks and t of log p(x_t | x_<t), documents packed one after another with
    the document end between them (attention crosses documents, as in most base models).

    Killed and called again with the same arguments, it goes on from the last checkpoint in `out`
    and ends with the weights of an uninterrupted run.

    Args:
        recipe: architecture, size, length and seed.
        texts: documents; what is not needed to fill `recipe.tokens` is not read.
        tokenizer: its length is the vocabulary.
        out: folder for the model in float32 and the tokenizer; made if absent.

    Raises:
        ValueError: too few texts or tokens, an architecture that is unknown or does not fit, no
            document end, or `out` holds an unfinished training on something else.
    """
    out = Path(out)
    rows = pack(texts, tokenizer, recipe)
    if claim(out, recipe, rows.numpy().tobytes()):
        return out
    set_seed(recipe.seed)
    trainer = Trainer(
        model=build(recipe, tokenizer),
        args=arguments(recipe, out, steps=len(rows) // recipe.batch),
        train_dataset=rows,
        data_collator=as_batch,
    )
    return fit(trainer, tokenizer, out, tokens=rows.numel())


def pack(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, recipe: Pretraining
) -> torch.Tensor:
    """Return documents as token ids, int32 [rows, block], each followed by the document end.

    The number of rows is the largest multiple of `recipe.batch` that `recipe.tokens` fill.
    """
    step = recipe.block * recipe.batch
    wanted = recipe.tokens // step * step
    if wanted == 0:
        raise ValueError(
            f"expected at least one step of {recipe.block} x {recipe.batch} = {step:,} tokens; got "
            f"tokens={recipe.tokens:,}. Raise `tokens` or lower `block` or `batch`."
        )
    parts: list[torch.Tensor] = []
    filled = 0
    for ids in encoded(texts, tokenizer):
        parts.append(torch.tensor(ids, dtype=torch.int32))
        filled += len(ids)
        if filled >= wanted:
            return torch.cat(parts)[:wanted].view(-1, recipe.block)
    raise ValueError(
        f"the texts end too soon: expected {wanted:,} tokens, got {filled:,}. "
        "Give more texts or lower `tokens`."
    )


def encoded(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Yield the token ids of 2,000 documents at a time, as one list.

    A document is [BOS if the tokenizer has one of its own] + its tokens + [document end].
    """
    end = document_end(tokenizer)
    bos = tokenizer.bos_token_id
    start = [] if bos in (None, end) else [bos]
    texts = iter(texts)
    while documents := list(itertools.islice(texts, 2000)):
        ids = tokenizer(documents, add_special_tokens=False, return_attention_mask=False)
        yield [token for row in ids["input_ids"] for token in (*start, *row, end)]


def document_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the id after each document: `<|endoftext|>` where it exists, else the tokenizer's EOS.

    A tokenizer made for chat names its end of turn as EOS; a base model must not end documents
    with that.
    """
    end = tokenizer.get_vocab().get(END_OF_TEXT, tokenizer.eos_token_id)
    if end is None:
        raise ValueError(
            f"expected a tokenizer with a {END_OF_TEXT} or an EOS token; got neither. "
            "Add one: documents must end with it."
        )
    return int(end)


def build(recipe: Pretraining, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Return a randomly initialised float32 model of the recipe's architecture and size.

    Heads have 32 dimensions, half as many key-value heads as heads where the architecture has
    such, embeddings are tied, no dropout; rotary positions reach 8,192. Only fields that the
    architecture knows are set.
    """
    if recipe.hidden_size % (2 * HEAD_DIM):
        raise ValueError(
            f"hidden_size must be a multiple of {2 * HEAD_DIM} (heads of {HEAD_DIM}, two to a "
            f"key-value head); got {recipe.hidden_size}. Use the nearest multiple."
        )
    try:
        known = AutoConfig.for_model(recipe.architecture)
    except ValueError as error:
        raise ValueError(
            f"architecture must be a transformers model type such as 'qwen3', 'llama' or "
            f"'gpt_neox'; got {recipe.architecture!r}. Use one of these."
        ) from error
    is_gated = recipe.architecture not in ("gpt_neox", "gpt2")
    heads = recipe.hidden_size // HEAD_DIM
    values: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": recipe.hidden_size,
        "num_hidden_layers": recipe.layers,
        # Three matrices in a gated layer, two in a plain one: about equal numbers of weights.
        "intermediate_size": (3 if is_gated else 4) * recipe.hidden_size,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": HEAD_DIM,
        "query_pre_attn_scalar": HEAD_DIM,
        "max_position_embeddings": CONTEXT if hasattr(known, "rope_parameters") else recipe.block,
        "tie_word_embeddings": True,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": document_end(tokenizer),
        "pad_token_id": tokenizer.pad_token_id,
    }
    dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    fields = {n: v for n, v in (values | dropout).items() if hasattr(known, n)}
    config = AutoConfig.for_model(recipe.architecture, **fields)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def arguments(recipe: Pretraining, out: Path, *, steps: int) -> TrainingArguments:
    """Return the Trainer's settings; nothing that changes a result is left to its defaults."""
    return TrainingArguments(
        **settings(out, seed=recipe.seed, save_every=SAVE_EVERY),
        max_steps=steps,
        per_device_train_batch_size=recipe.batch,
        gradient_accumulation_steps=1,
        learning_rate=recipe.learning_rate,
        warmup_steps=round(WARMUP * steps),
        weight_decay=WEIGHT_DECAY,
        adam_beta1=ADAM_BETAS[0],
        adam_beta2=ADAM_BETAS[1],
        # Weights and optimiser stay float32; matrix products in bfloat16 are 1.7 times faster.
        bf16=True,
        activation_checkpointing=False,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        logging_steps=LOG_EVERY,
    )


def as_batch(rows: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the model's inputs; the model itself shifts the labels by one."""
    ids = torch.stack(rows).long()
    return {"input_ids": ids, "labels": ids}
