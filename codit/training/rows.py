"""Conversations as what a student trains on: token ids and labels, with every row checked.

Real chat data fails in silence: answers cut in the middle, an end of turn outside the loss (the
student never stops), rows without any label. Here each of these is an error that names the row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from codit import decode, recipes
from codit.engine.models import load_tokenizer

MASKED = -100
UNLIKE_ALLOWED = 0.01


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a student trains on.

    Args:
        ids: token ids of each row.
        labels: the id where the token is in the loss, else -100.
        stop: the token that ends every answer.
        unlike: number of rows whose prompt is tokenised unlike at decoding.
    """

    ids: list[list[int]]
    labels: list[list[int]]
    stop: int
    unlike: int


def completed(dataset: Dataset) -> Dataset:
    """Return the rows that may be trained on: all but those with `is_completed` False."""
    if "messages" not in dataset.column_names:
        raise ValueError(
            f'expected a column "messages"; got {dataset.column_names}. Give conversations as '
            '[{"role": "user", "content": ...}, {"role": "assistant", "content": ...}].'
        )
    if "is_completed" in dataset.column_names:
        done = dataset["is_completed"]
        dataset = dataset.select([i for i, value in enumerate(done) if value is not False])
    if len(dataset) == 0:
        raise ValueError(
            "expected at least one completed row; got none. Raise max_new_tokens, or check how "
            "the responses were made."
        )
    return dataset


def adopt_template(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    template: recipes.Model | recipes.File,
) -> None:
    """Give a base model another's chat template, EOS and missing added tokens, in place.

    Unlike `trl.clone_chat_template`, embeddings only ever grow, and only where a token has no row:
    a student whose matrices keep the base's shape can be compared with it weight by weight. Of a
    Jinja file only the template is taken.
    """
    if isinstance(template, recipes.File):
        tokenizer.chat_template = Path(template.path).read_text(encoding="utf-8")
        return
    source = load_tokenizer(template.name, revision=template.revision)
    if source.chat_template is None:
        raise ValueError(
            f"expected a tokenizer with a chat template; {template.name} has none. Name an "
            "instruction-tuned model or a Jinja file."
        )
    tokenizer.chat_template = source.get_chat_template()
    known = tokenizer.get_vocab()
    added = source.added_tokens_decoder.values()
    tokenizer.add_tokens([token for token in added if token.content not in known])
    tokenizer.eos_token = source.eos_token
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer))


def tokenised(dataset: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int) -> Rows:
    """Return token ids and labels of conversations; nothing is ever cut.

    labels_t = ids_t if t belongs to the last assistant turn, end of turn included, else -100. The
    turn begins where `decode.prompt_ids` ends, so the loss is on exactly what a student is asked
    for; a template's generation markers mark the same tokens but are not needed. Special tokens
    written in a message are ordinary text, as at decoding.

    ValueErrors name rows by "id" where there is one, else by number: a row that does not end with
    an answer, is too long, or has no label or no end of turn in the loss. Others: no chat template,
    rows that end differently, more than 1 % of prompts tokenised unlike at decoding.
    """
    if tokenizer.chat_template is None:
        raise ValueError(
            "expected a base model with a chat template; its tokenizer has none. Name one in the "
            "recipe's `template` (--template): the teacher's tokenizer, or a Jinja file."
        )
    names = dataset["id"] if "id" in dataset.column_names else range(len(dataset))
    ids: list[list[int]] = []
    labels: list[list[int]] = []
    stops: dict[int, Any] = {}
    unlike = 0
    for name, messages in zip(names, tqdm(dataset["messages"], "tokenising"), strict=True):
        row, label, alike = encode(messages, tokenizer, name=name)
        if len(row) > max_length:
            raise ValueError(
                f"row {name!r}: expected at most {max_length} tokens; got {len(row)}. Raise "
                "max_length (up to the model's context) or drop the row: answers are never cut."
            )
        stops.setdefault(final(label, tokenizer, name=name), name)
        ids.append(row)
        labels.append(label)
        unlike += not alike
    if len(stops) > 1:
        found = {tokenizer.decode([token]): name for token, name in stops.items()}
        raise ValueError(
            f"expected one token that ends every answer; got, each with a row: {found}. "
            "Use a chat template that ends every assistant turn alike."
        )
    if unlike > UNLIKE_ALLOWED * len(ids):
        raise ValueError(
            f"{unlike} of {len(ids)} prompts are tokenised in training unlike at decoding. Use a "
            "chat template that renders a prompt with add_generation_prompt as it renders it "
            "before an answer."
        )
    return Rows(ids=ids, labels=labels, stop=next(iter(stops)), unlike=unlike)


def encode(
    messages: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerBase, *, name: Any
) -> tuple[list[int], list[int], bool]:
    """Return a conversation's ids, its labels, and whether its prompt is the one of decoding."""
    if len(messages) < 2 or messages[-1]["role"] != "assistant":
        raise ValueError(
            f"row {name!r}: expected a conversation that ends with an assistant turn; got roles "
            f"{[message['role'] for message in messages]}. Add the answer or drop the row."
        )
    prompt = decode.prompt_ids(tokenizer, messages[:-1])
    ids: list[int] = tokenizer.apply_chat_template(
        [dict(message) for message in messages],
        enable_thinking=False,
        sanitize_control_tokens=True,
        return_dict=False,
    )
    if prompt[0] == tokenizer.bos_token_id != ids[0]:  # `prompt_ids` puts a BOS before the template
        ids = [prompt[0], *ids]
    pairs = enumerate(zip(prompt, ids, strict=False))
    shared = next((k for k, (asked, told) in pairs if asked != told), min(len(prompt), len(ids)))
    end = len(ids)
    # Some templates write a line break after the end of turn; no model is asked for it.
    while end > shared and not tokenizer.decode([ids[end - 1]]).strip():
        end -= 1
    labels = [MASKED] * shared + ids[shared:end] + [MASKED] * (len(ids) - end)
    return ids, labels, shared == len(prompt)


def final(labels: list[int], tokenizer: PreTrainedTokenizerBase, *, name: Any) -> int:
    """Return the end of turn, which must be a row's last token in the loss."""
    stop = next((label for label in reversed(labels) if label != MASKED), None)
    if stop is None:
        raise ValueError(
            f"row {name!r}: no token of its answer is in the loss. Check that the chat template "
            "writes the answer and ends its turn."
        )
    if stop not in tokenizer.added_tokens_decoder:
        raise ValueError(
            f"row {name!r}: expected the end of turn, a special token, as the last token in the "
            f"loss; got {tokenizer.decode([stop])!r}. A student trained so never stops: use a "
            "chat template that ends every assistant turn with one."
        )
    return stop


def arranged(lengths: Sequence[int], recipe: recipes.Training) -> list[int]:
    """Return the order of rows over the whole training: one permutation after another.

    round(rows * epochs) row numbers, at least one. The rows of each step are sorted by length,
    longest first: passes of equal length need less padding, and which rows make a step is left to
    chance.
    """
    total = max(1, round(len(lengths) * recipe.epochs))
    noise = np.random.default_rng(recipe.seed)
    order: list[int] = []
    while len(order) < total:
        order += noise.permutation(len(lengths)).tolist()
    steps = [order[k : min(k + recipe.batch, total)] for k in range(0, total, recipe.batch)]
    return [row for step in steps for row in sorted(step, key=lambda i: -lengths[i])]


def summary(rows: Rows, order: Sequence[int], *, dropped: int) -> dict[str, int]:
    """Return what the log says about the data: rows, and tokens over all epochs."""
    return {
        "rows_used": len(rows.ids),
        "rows_dropped": dropped,
        "rows_with_unlike_prompt": rows.unlike,
        "tokens": sum(len(rows.ids[i]) for i in order),
        "answer_tokens": sum(len(rows.labels[i]) - rows.labels[i].count(MASKED) for i in order),
    }
