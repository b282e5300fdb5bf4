"""Tiny tokenizers, models and pairs made from a seed: no file, no download, milliseconds.

The models are random and float32. Their weights are scaled up, so that distributions have
clear winners and a greedy comparison is not decided by rounding.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

ARCHITECTURES = ("llama", "qwen3", "qwen3_moe", "gemma3_text", "olmo3", "gpt2", "gpt_neox")

EOS = "<|endoftext|>"  # ends a document; the base model's stop token, and the padding
USER, ASSISTANT, SYSTEM = "<|user|>", "<|assistant|>", "<|system|>"
END = "<|end|>"  # ends a turn; the chat model's stop token
SPECIAL = (EOS, USER, ASSISTANT, SYSTEM, END)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
DATED_TEMPLATE = "{{ strftime_now('%d %b %Y') }}" + CHAT_TEMPLATE

TEXT = ("the cat sat on the mat. ", "is it in the house? ", "and then there were ten of them. ")


def tokenizer(*, eos_token: str = END) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of fewer than 300 ids that encodes any text.

    Args:
        eos_token: `END`, as an instruction model's tokenizer has it, or `EOS`, as a base model's.

    Returns:
        PreTrainedTokenizerFast: padding left; no token is added around a text.
    """
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()),
        eos_token=eos_token,
        pad_token=EOS,
        additional_special_tokens=list(SPECIAL[1:]),
        padding_side="left",
        model_max_length=512,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


@cache
def _trained() -> str:
    """Return the tokenizer's JSON: special tokens first, 256 bytes, then a few merges."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=280,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(TEXT * 4, trainer)
    return bpe.to_str()


def config(architecture: str, *, vocab_size: int = 280, **changes: Any) -> Any:
    """Return the config of a model with 2 layers, hidden size 32 and 4 heads.

    Args:
        architecture: one of `ARCHITECTURES`, or "gemma3": Gemma 3 as it reads images too.
        vocab_size: rows of the embedding; more than len(tokenizer()) makes a padded vocabulary.
        **changes: fields of the architecture's config that differ.
    """
    if architecture == "gemma3":
        text = config("gemma3_text", vocab_size=vocab_size, **changes).to_dict()
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        vision |= {"num_attention_heads": 2, "image_size": 28, "patch_size": 14}
        images = {"mm_tokens_per_image": 4, "image_token_index": 1}
        images |= {"boi_token_index": 2, "eoi_token_index": 3, "tie_word_embeddings": False}
        return CONFIG_MAPPING["gemma3"](text_config=text, vision_config=vision, **images)
    values: dict[str, Any] = {
        "vocab_size": vocab_size,
        "bos_token_id": None,
        "eos_token_id": SPECIAL.index(EOS),
        "pad_token_id": SPECIAL.index(EOS),
        "tie_word_embeddings": False,  # a tied random model repeats its last token
    }
    if architecture == "gpt2":
        values |= {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
    else:
        values |= {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 512,
        }
    if architecture not in ("gpt2", "gpt_neox"):
        values |= {"num_key_value_heads": 2}
    if architecture in ("qwen3", "qwen3_moe", "gemma3_text"):
        values |= {"head_dim": 8}
    if architecture == "qwen3_moe":
        values |= {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    if architecture in ("gemma3_text", "olmo3"):
        layer_types = ["sliding_attention", "full_attention"]
        values |= {"sliding_window": 6, "layer_types": layer_types}
    return CONFIG_MAPPING[architecture](**(values | changes))


def model(
    architecture: str, *, seed: int, vocab_size: int = 280, scale: float = 8.0, **changes: Any
) -> PreTrainedModel:
    """Return a random float32 model in evaluation mode; equal arguments give equal weights.

    Args:
        architecture: one of `ARCHITECTURES`.
        seed: of the weights.
        vocab_size: rows of the embedding.
        scale: multiplies the initialisation's standard deviation of .02; half of it, the output
            weights once more.
        **changes: fields of the architecture's config that differ.
    """
    shape = config(architecture, vocab_size=vocab_size, **changes)
    shape.get_text_config().initializer_range = 0.02 * scale
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        made = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
        made.get_output_embeddings().weight.mul_(scale / 2)
    made.generation_config.pad_token_id = SPECIAL.index(EOS)
    return made.eval()


def pair(architecture: str, *, seed: int = 0, vocab_size: int = 280, **contrast: Any) -> Any:
    """Return a ContrastivePair of two models with different weights.

    The expert stops at `END` or `EOS`, as instruction models do; the amateur at `EOS` alone.

    Args:
        architecture: one of `ARCHITECTURES`.
        seed: the expert's weights; the amateur has 1000 more.
        vocab_size: rows of both embeddings.
        **contrast: `strength` and `plausibility`.
    """
    from codit.pair import ContrastivePair

    expert = model(architecture, seed=seed, vocab_size=vocab_size)
    amateur = model(architecture, seed=seed + 1000, vocab_size=vocab_size)
    expert.generation_config.eos_token_id = [SPECIAL.index(END), SPECIAL.index(EOS)]
    return ContrastivePair(expert, amateur, **contrast)


def save_pair(folder: str | Path, architecture: str, *, seed: int = 0) -> tuple[Path, Path]:
    """Write `pair`'s models, each with its tokenizer, to two folders.

    Returns:
        (Path, Path): the expert's folder and the amateur's; only the expert's tokenizer has END
        as its stop token.
    """
    made = pair(architecture, seed=seed)
    folders = Path(folder) / "expert", Path(folder) / "amateur"
    parts = (made.expert, END), (made.amateur, EOS)
    for (part, eos_token), target in zip(parts, folders, strict=True):
        part.save_pretrained(target)
        tokenizer(eos_token=eos_token).save_pretrained(target)
    return folders


class Day(datetime):
    """A clock that stands at the beginning of a day."""

    day = "2026-11-28"

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return datetime.fromisoformat(cls.day)


def synthesis(folder: str | Path, **values: Any) -> Any:
    """Return a recipe of `save_pair`'s two folders, 6 new tokens for each row.

    Args:
        folder: where the pair is written.
        **values: of `recipes.Synthesis` that differ.
    """
    from codit.recipes import Decoding, Model, Pair, Synthesis
    from codit.world.recipes import WorldPrompts

    expert, amateur = save_pair(folder, "llama")
    given: dict[str, Any] = {
        "pair": Pair(expert=Model(name=str(expert)), amateur=Model(name=str(amateur))),
        "prompts": WorldPrompts(),
        "decoding": Decoding(max_new_tokens=6),
    }
    return Synthesis(**(given | values))
