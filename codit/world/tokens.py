"""Byte-level BPE tokenizers of the micro world, which encode any text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from codit.world.language import documents
from codit.world.recipes import World

END_OF_TEXT, END = "<|endoftext|>", "<|end|>"
MARKUP = [END_OF_TEXT, END, "<|user|>", "<|assistant|>", "<|system|>"]
VOCABULARY = {"a": 1536, "b": 896}  # sizes; b splits words that a keeps whole
CONTEXT = 8192
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'assistant' %}"
    "<|assistant|>{% generation %}{{ message.content }}<|end|>{% endgeneration %}"
    "{% elif message.role in ('user', 'system') %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>"
    "{% else %}"
    "{{ raise_exception('role must be system, user or assistant; got ' ~ message.role) }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def train_tokenizer(
    name: str, world: World, documents_read: int = 20_000
) -> PreTrainedTokenizerFast:
    """Train a tokenizer on the world's text.

    Args:
        name: "a", the teacher's, or "b", a smaller vocabulary for the cross-tokenizer student.
        world: whose text is read.
        documents_read: number of documents.

    Raises:
        ValueError: unknown name.
    """
    if name not in VOCABULARY:
        raise ValueError(f"tokenizer must be one of {sorted(VOCABULARY)}; got {name!r}.")
    # Markup is tokens of its own: no merges are spent on its letters.
    texts = itertools.islice(documents(world), documents_read)
    return byte_pairs((re.sub(r"<\|\w+\|>", "\n", text) for text in texts), VOCABULARY[name])


def byte_pairs(
    texts: Iterable[str], vocabulary: int, *, whole: Iterable[str] = ()
) -> PreTrainedTokenizerFast:
    """Train byte-level BPE with the chat template, whose answer stands between generation markers.

    `vocabulary` counts bytes, markup and merges; texts of `whole` become one more token each.
    """
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=MARKUP,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.add_tokens([AddedToken(text, normalized=False) for text in whole])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=END_OF_TEXT,
        padding_side="left",
        model_max_length=CONTEXT,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
