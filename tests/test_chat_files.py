"""Template and stop tokens of a chat model, handed on to another checkpoint by name."""

from __future__ import annotations

import json
from pathlib import Path

from transformers import AutoTokenizer, GenerationConfig

from codit import chat_files
from tests import tiny


def test_what_belongs_to_a_model_is_copied_and_no_manifest(tmp_path: Path) -> None:
    expert, _ = tiny.save_pair(tmp_path, "llama")
    for name in ("manifest.json", "README.md", "training_log.json"):
        (expert / name).write_text("{}")
    (tmp_path / "copy").mkdir()
    chat_files.copy(expert, tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_chat_model_tells_template_and_every_token_that_ends_a_turn(tmp_path: Path) -> None:
    expert, _ = tiny.save_pair(tmp_path, "llama")
    assert chat_files.read(expert) == {
        "chat_template": tiny.CHAT_TEMPLATE,
        "eos_token": tiny.END,
        "stop_tokens": [tiny.EOS, tiny.END],
    }


def test_a_folder_without_a_tokenizer_tells_nothing_and_is_left_alone(tmp_path: Path) -> None:
    tiny.model("llama", seed=0).save_pretrained(tmp_path / "model")
    assert chat_files.read(tmp_path / "model") == {}
    expert, _ = tiny.save_pair(tmp_path, "llama")
    before = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert chat_files.write(tmp_path / "model", chat_files.read(expert)) == []
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == before


def test_stop_tokens_are_handed_on_by_name_and_unknown_ones_are_told(tmp_path: Path) -> None:
    expert, amateur = tiny.save_pair(tmp_path, "llama")
    chat = chat_files.read(expert) | {"chat_template": "{{ 'new' }}", "eos_token": "<|stop|>"}
    chat["stop_tokens"] = ["<|nobody|>", "<|stop|>", tiny.EOS]
    tokenizer = tiny.tokenizer(eos_token=tiny.EOS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|a|>", "<|stop|>"]})
    tokenizer.save_pretrained(amateur)
    assert chat_files.write(amateur, chat) == ["<|nobody|>"]
    again = AutoTokenizer.from_pretrained(amateur)
    assert (again.eos_token, again.chat_template) == ("<|stop|>", "{{ 'new' }}")
    stops = sorted([0, tokenizer.convert_tokens_to_ids("<|stop|>")])
    assert GenerationConfig.from_pretrained(amateur).eos_token_id == stops


def test_where_no_stop_token_is_known_the_own_ones_stay(tmp_path: Path) -> None:
    expert, amateur = tiny.save_pair(tmp_path, "llama")
    before = (amateur / "generation_config.json").read_text()
    chat = chat_files.read(expert) | {"eos_token": "<|x|>", "stop_tokens": ["<|x|>"]}
    assert chat_files.write(amateur, chat) == ["<|x|>"]
    assert (amateur / "generation_config.json").read_text() == before
    assert json.loads((amateur / "tokenizer_config.json").read_text())["eos_token"] == tiny.EOS
