"""What two collections share, nothing passed over in silence; chat files handed on by name."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, GenerationConfig

from codit.weights import vector
from codit.weights.tensors import opened
from codit.weights.vector import check_finite, matched, subtract
from tests import tiny


def test_what_belongs_to_a_model_is_copied_and_no_manifest(tmp_path: Path) -> None:
    expert, _ = tiny.save_pair(tmp_path, "llama")
    for name in ("manifest.json", "README.md", "training_log.json"):
        (expert / name).write_text("{}")
    (tmp_path / "copy").mkdir()
    vector.copy_files(expert, tmp_path / "copy")
    assert sorted(path.name for path in (tmp_path / "copy").iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_a_chat_model_tells_template_and_every_token_that_ends_a_turn(tmp_path: Path) -> None:
    expert, _ = tiny.save_pair(tmp_path, "llama")
    assert vector.read_chat(expert) == {
        "chat_template": tiny.CHAT_TEMPLATE,
        "eos_token": tiny.END,
        "stop_tokens": [tiny.EOS, tiny.END],
    }


def test_a_folder_without_a_tokenizer_tells_nothing_and_is_left_alone(tmp_path: Path) -> None:
    tiny.model("llama", seed=0).save_pretrained(tmp_path / "model")
    assert vector.read_chat(tmp_path / "model") == {}
    expert, _ = tiny.save_pair(tmp_path, "llama")
    before = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert vector.write_chat(tmp_path / "model", vector.read_chat(expert)) == []
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == before


def test_stop_tokens_are_handed_on_by_name_and_unknown_ones_are_told(tmp_path: Path) -> None:
    expert, amateur = tiny.save_pair(tmp_path, "llama")
    chat = vector.read_chat(expert) | {
        "chat_template": "{{ 'new' }}",
        "eos_token": "<|stop|>",
    }
    chat["stop_tokens"] = ["<|nobody|>", "<|stop|>", tiny.EOS]
    tokenizer = tiny.tokenizer(eos_token=tiny.EOS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|a|>", "<|stop|>"]})
    tokenizer.save_pretrained(amateur)
    assert vector.write_chat(amateur, chat) == ["<|nobody|>"]
    again = AutoTokenizer.from_pretrained(amateur)
    assert (again.eos_token, again.chat_template) == ("<|stop|>", "{{ 'new' }}")
    stops = sorted([0, tokenizer.convert_tokens_to_ids("<|stop|>")])
    assert GenerationConfig.from_pretrained(amateur).eos_token_id == stops


def test_where_no_stop_token_is_known_the_own_ones_stay(tmp_path: Path) -> None:
    expert, amateur = tiny.save_pair(tmp_path, "llama")
    before = (amateur / "generation_config.json").read_text()
    chat = vector.read_chat(expert) | {"eos_token": "<|x|>", "stop_tokens": ["<|x|>"]}
    assert vector.write_chat(amateur, chat) == ["<|x|>"]
    assert (amateur / "generation_config.json").read_text() == before
    assert json.loads((amateur / "tokenizer_config.json").read_text())["eos_token"] == tiny.EOS


# What two collections share

FIRST = {
    "model.embed_tokens.weight": torch.ones(7, 2),
    "lm_head.weight": torch.ones(7, 3),
    "same": torch.ones(2, 2),
    "turned": torch.ones(2, 3),
    "kind": torch.ones(2),
    "only here": torch.ones(1),
}
SECOND = {
    "model.embed_tokens.weight": torch.ones(5, 2).bfloat16(),
    "lm_head.weight": torch.ones(7, 4),
    "same": torch.ones(2, 2).half(),
    "turned": torch.ones(3, 2),
    "kind": torch.ones(2, dtype=torch.int8),
    "only there": torch.ones(1),
}


def test_names_shapes_and_dtypes_decide_and_the_rest_is_reported() -> None:
    match = matched(opened(FIRST), opened(SECOND), partial=True)
    assert match.shapes == {"model.embed_tokens.weight": (5, 2), "same": (2, 2)}
    assert match.missing == ["only there"]
    assert match.extra == ["only here"]
    assert match.mismatched == [
        ("kind", "F32 [2]", "torch.int8 [2]"),
        ("lm_head.weight", "F32 [7, 3]", "F32 [7, 4]"),
        ("turned", "F32 [2, 3]", "F32 [3, 2]"),
    ]
    assert match.cut == [("model.embed_tokens.weight", 7, 5, 5)]
    assert match.report()["matched"] == 2
    assert match.lost == ["only there", "only here", "kind", "turned"]


def test_rows_cut_the_vocabulary_and_nothing_else() -> None:
    both = {"model.embed_tokens.weight": torch.ones(9, 2), "x.up_proj.weight": torch.ones(9, 2)}
    match = matched(opened(both), opened(both), rows=4)
    assert match.shapes == {"model.embed_tokens.weight": (4, 2), "x.up_proj.weight": (9, 2)}
    assert match.cut == [("model.embed_tokens.weight", 9, 9, 4)]
    assert matched(opened(both), opened(both), rows=100).cut == []


def test_a_difference_is_exact_where_float32_is_not() -> None:
    first, second = {"a": torch.tensor([1.0])}, {"a": torch.tensor([1e-9])}
    match = matched(opened(first), opened(second))
    tau = subtract(opened(first), opened(second), match)
    expected = first["a"].double() - second["a"].double()
    assert torch.equal(tau.read("a", (slice(0, 1),)), expected)
    assert expected.float().double() != expected


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: matched(opened({"a": torch.ones(1)}), opened({"b": torch.ones(1)})),
            "must share tensors of one name and shape; got 1 missing, 1 extra, 0 of another shape",
        ),
        (
            lambda: matched(opened(FIRST), opened(SECOND)),
            "got 2 tensors that only one has and 3 of another shape or dtype, such as only there. "
            "Name models of one architecture, or pass partial=True for what both have.",
        ),
        (
            lambda: matched(opened(FIRST), opened(FIRST), rows=0),
            "rows must be at least 1; got 0. Give len(tokenizer).",
        ),
        (
            lambda: check_finite(torch.tensor([1.0, float("inf")]), "layer.weight"),
            "expected finite numbers in layer.weight; got NaN, infinity or an overflow.",
        ),
    ],
)
def test_bad_arguments_are_refused_with_a_remedy(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=re.escape(message)):
        call()
