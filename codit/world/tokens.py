"""Two tokenizers of the micro world: byte-level BPE, so that they encode any text."""

from __future__ import annotations

import itertools
import re

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from codit.world.language import documents
from codit.world.recipes import World

END_OF_TEXT, END, USER, ASSISTANT, SYSTEM = (
    "<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>",
)  # fmt: skip
VOCABULARY = {"a": 1536, "b": 896}  # sizes (ours); b splits words that a keeps whole
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
        documents_read: number of documents (ours).

    Returns:
        PreTrainedTokenizerFast: byte-level BPE with chat special tokens, a chat template whose
        answer stands between generation markers, end of turn included, and left padding.

    Raises:
        ValueError: unknown name.

    Source: ours.
    """
    if name not in VOCABULARY:
        raise ValueError(f"tokenizer must be one of {sorted(VOCABULARY)}; got {name!r}.")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY[name],
        special_tokens=[END_OF_TEXT, END, USER, ASSISTANT, SYSTEM],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = itertools.islice(documents(world), documents_read)
    # Markup is tokens of its own: no merges are spent on its letters.
    plain = (re.sub(r"<\|\w+\|>", "\n", text) for text in texts)
    backend.train_from_iterator(plain, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=END_OF_TEXT,
        padding_side="left",
        model_max_length=8192,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
