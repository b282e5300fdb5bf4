"""Tokenizers of a pair: agreement, padding side, ids that stop and ids that are special."""

from __future__ import annotations

import json
import logging
import re

import pytest
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from codit.engine.models import check_tokenizers, load_tokenizer, special_token_ids, stop_ids
from tests import tiny


def changed(edit) -> PreTrainedTokenizerFast:
    """Return the tiny tokenizer after `edit` has changed its JSON."""
    content = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    edit(content)
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer.from_str(json.dumps(content))
    )


def rename_added(content):
    content["added_tokens"][3]["content"] = "<|reserved_3|>"
    content["model"]["vocab"]["<|reserved_3|>"] = content["model"]["vocab"].pop("<|system|>")


def rename_ordinary(content):
    content["model"]["merges"] = []
    vocab = content["model"]["vocab"]
    vocab["zzzz"] = vocab.pop(next(token for token, i in vocab.items() if i == 279))


def test_equal_vocabularies_agree_whatever_their_stop_tokens():
    expert, amateur = tiny.tokenizer(), tiny.tokenizer(eos_token=tiny.EOS)
    assert check_tokenizers(expert, amateur) == []


def test_a_renamed_added_token_is_refused_unless_allowed_and_is_then_reported(caplog):
    expert, amateur = tiny.tokenizer(), changed(rename_added)
    message = (
        "added tokens must be equal; 1 ids differ, (id, expert, amateur): "
        "[(3, '<|system|>', '<|reserved_3|>')]. If these are only names, pass allow_renamed=True"
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        check_tokenizers(expert, amateur)
    with caplog.at_level(logging.WARNING, logger="codit"):
        differences = check_tokenizers(expert, amateur, allow_renamed=True)
    assert differences == [(3, "<|system|>", "<|reserved_3|>")]
    assert "<|reserved_3|>" in caplog.text


def test_an_added_token_that_one_side_lacks_counts_as_renamed():
    expert, amateur = tiny.tokenizer(), tiny.tokenizer()
    expert.add_tokens(["<think>"], special_tokens=True)
    with pytest.raises(ValueError, match=re.escape("[(280, '<think>', None)]")):
        check_tokenizers(expert, amateur)
    assert check_tokenizers(expert, amateur, allow_renamed=True) == [(280, "<think>", None)]


def test_a_different_ordinary_token_is_refused_even_if_renaming_is_allowed():
    message = "ordinary vocabularies must be equal; 1 ids differ, (id, expert, amateur): [(279, "
    with pytest.raises(ValueError, match=re.escape(message)) as refusal:
        check_tokenizers(tiny.tokenizer(), changed(rename_ordinary), allow_renamed=True)
    assert "Take the model that the expert was trained from." in str(refusal.value)


def test_the_padding_side_is_left_and_survives_saving(tmp_path):
    source = tiny.tokenizer()
    source.padding_side = "right"
    source.save_pretrained(tmp_path / "source")
    tokenizer = load_tokenizer(tmp_path / "source")
    assert tokenizer.padding_side == "left"
    tokenizer.save_pretrained(tmp_path / "copy")
    assert AutoTokenizer.from_pretrained(tmp_path / "copy").padding_side == "left"


def test_a_tokenizer_without_padding_pads_with_its_stop_token(tmp_path):
    source = tiny.tokenizer()
    source.pad_token = None
    source.save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == tiny.END


def test_the_folder_of_a_pair_loads_the_experts_tokenizer(tmp_path):
    tiny.save_pair(tmp_path, "llama")
    (tmp_path / "pair.json").write_text("{}")
    assert load_tokenizer(tmp_path).eos_token == tiny.END
    assert load_tokenizer(tmp_path / "amateur").eos_token == tiny.EOS


@pytest.mark.parametrize(
    ("listed", "expected"), [(None, [4]), (0, [0, 4]), (4, [4]), ([0, 4], [0, 4]), ([0], [0, 4])]
)
def test_stop_ids_unite_tokenizer_and_generation_config(listed, expected):
    assert stop_ids(tiny.tokenizer(), GenerationConfig(eos_token_id=listed)) == expected


def test_stop_ids_come_from_the_tokenizer_alone_without_a_config():
    assert stop_ids(tiny.tokenizer(eos_token=tiny.EOS), None) == [0]


def test_special_ids_include_those_that_begin_and_end_turns_and_no_plain_addition():
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["plain"])
    assert special_token_ids(tokenizer) == [0, 1, 2, 3, 4]
