"""What makes a checkpoint a chat model beside its weights: template, stop tokens, their files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from codit.vocabulary import load_tokenizer, stop_ids

GENERATION = "generation_config.json"
TOKENIZER = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
COPIED = (
    "config.json",
    GENERATION,
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "chat_template*",
    "*processor_config.json",
)
"""Files that belong to a model whatever its weights; manifests, logs and cards do not."""


def copy(source: Path, target: Path) -> None:
    """Copy config, generation config, tokenizer and template of a checkpoint.

    Args:
        source: a checkpoint's folder.
        target: exists.

    Source: ours.
    """
    for pattern in COPIED:
        for file in source.glob(pattern):
            shutil.copyfile(file, target / file.name)


def read(folder: Path) -> dict[str, Any]:
    """Return what a chat model's tokenizer and generation config say.

    Args:
        folder: a checkpoint's.

    Returns:
        dict: `chat_template`, `eos_token`, `stop_tokens` (names); empty without a tokenizer.

    Source: ours.
    """
    if not (folder / TOKENIZER).is_file():
        return {}
    tokenizer = load_tokenizer(folder)
    has_config = (folder / GENERATION).is_file()
    config = GenerationConfig.from_pretrained(folder) if has_config else None
    template = tokenizer.chat_template
    if isinstance(template, dict):  # several by name: for tools, for retrieval
        template = template.get("default")
    return {
        "chat_template": template,
        "eos_token": tokenizer.eos_token,
        "stop_tokens": tokenizer.convert_ids_to_tokens(stop_ids(tokenizer, config)),
    }


def write(folder: Path, chat: dict[str, Any]) -> list[str]:
    """Give a checkpoint another one's chat template and stop tokens.

    Tokens are matched by name: in another vocabulary they have other ids.

    Args:
        folder: the checkpoint's; left alone where it has no tokenizer.
        chat: as `read` returns it; empty: nothing is changed.

    Returns:
        list[str]: stop tokens that the folder's tokenizer does not know, left out.

    Source: the chat template and EOS of the chat model, as in Huang et al.'s chat-vector code; by
    name: ours.
    """
    if not chat or not (folder / TOKENIZER).is_file():
        return []
    if chat["chat_template"] is not None:
        (folder / TEMPLATE).write_text(chat["chat_template"], encoding="utf-8")
    ids = load_tokenizer(folder).get_vocab()
    stops = sorted(ids[token] for token in chat["stop_tokens"] if token in ids)
    if stops:
        _update(folder / GENERATION, eos_token_id=stops)
    if chat["eos_token"] in ids:
        for name in (TOKENIZER, "special_tokens_map.json"):
            if (folder / name).is_file():
                _update(folder / name, eos_token=chat["eos_token"])
    return [token for token in chat["stop_tokens"] if token not in ids]


def _update(file: Path, **values: Any) -> None:
    """Change values of a JSON file."""
    content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    text = json.dumps(content | values, indent=2, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
