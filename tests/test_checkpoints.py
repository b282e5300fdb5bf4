"""The two models of a pair on disk: loaded from two names, saved, loaded back."""

from __future__ import annotations

import json
import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from codit import decode, recipes
from codit.engine.models import read_pair
from codit.pair import ContrastivePair, load_tokenizer
from tests import tiny

IDS = torch.tensor([[5, 70, 255, 260, 30, 111]])


def test_a_pair_is_loaded_from_two_folders_with_the_experts_stop_set(tmp_path):
    expert, amateur = tiny.save_pair(tmp_path, "qwen3")
    pair = ContrastivePair.from_pretrained(expert, amateur)
    assert (pair.strength, pair.plausibility, pair.vocab_size) == (1.0, 0.01, 280)
    assert pair.generation_config.eos_token_id == [0, 4]
    assert pair.generation_config.pad_token_id == 0
    assert torch.equal(pair(input_ids=IDS).logits, tiny.pair("qwen3")(input_ids=IDS).logits)


def test_stop_set_gains_the_tokenizers_stop_token_where_the_config_lacks_it(tmp_path):
    expert, amateur = tiny.save_pair(tmp_path, "llama")
    file = expert / "generation_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"eos_token_id": 0}))
    pair = ContrastivePair.from_pretrained(expert, amateur)
    assert pair.generation_config.eos_token_id == [0, 4]


def test_a_saved_pair_is_loaded_back_whole(tmp_path):
    pair = tiny.pair("gpt2", strength=0.5, plausibility=0.1)
    pair.save_pretrained(tmp_path, tokenizer=tiny.tokenizer())
    for half in ("expert", "amateur"):
        assert (tmp_path / half / "model.safetensors").is_file()
    again = ContrastivePair.from_pretrained(tmp_path)
    assert torch.equal(again(input_ids=IDS).logits, pair(input_ids=IDS).logits)
    assert again.generation_config.eos_token_id == [4, 0]
    assert (again.strength, again.plausibility, again.vocab_size) == (0.5, 0.1, 280)
    assert load_tokenizer(tmp_path).padding_side == "left"
    other = ContrastivePair.from_pretrained(tmp_path, strength=2.0, plausibility=0.0)
    assert (other.strength, other.plausibility) == (2.0, 0.0)


def test_one_name_that_is_no_saved_pair_is_refused(tmp_path):
    message = f"a folder with pair.json; got {tmp_path}. Name the amateur too, or make the folder"
    with pytest.raises(ValueError, match=re.escape(message)):
        ContrastivePair.from_pretrained(tmp_path)


def test_one_revision_for_two_models_is_refused():
    with pytest.raises(ValueError, match=r"Use expert_revision and amateur_revision\."):
        ContrastivePair.from_pretrained("a", "b", revision="main")


def test_tokenizers_are_compared_before_weights_are_loaded(tmp_path, monkeypatch):
    expert, amateur = tiny.save_pair(tmp_path, "llama")
    longer = tiny.tokenizer()
    longer.add_tokens(["<|extra|>"], special_tokens=True)
    longer.save_pretrained(amateur)
    with monkeypatch.context() as patch:
        patch.setattr(AutoModelForCausalLM, "from_pretrained", None)
        with pytest.raises(ValueError, match="added tokens must be equal; 1 ids differ"):
            ContrastivePair.from_pretrained(expert, amateur)
    pair = ContrastivePair.from_pretrained(expert, amateur, allow_renamed=True)
    assert pair.vocab_size == len(tiny.tokenizer())


def test_loading_options_reach_both_models_and_revisions_their_own(tmp_path, monkeypatch):
    expert, amateur = tiny.save_pair(tmp_path, "llama")
    load, calls = AutoModelForCausalLM.from_pretrained, []

    def spy(name, **options):
        calls.append((name, dict(options)))
        options.pop("quantization_config")  # its libraries need hardware that tests do not
        return load(name, **options)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    marker = object()
    pair = ContrastivePair.from_pretrained(
        expert,
        amateur,
        expert_revision="one",
        amateur_revision="two",
        dtype=torch.bfloat16,
        device_map="cpu",
        attn_implementation="eager",
        quantization_config=marker,
    )
    assert [name for name, _ in calls] == [expert, amateur]
    assert [options.pop("revision") for _, options in calls] == ["one", "two"]
    assert calls[0][1] == calls[1][1]
    assert calls[0][1]["quantization_config"] is marker
    assert calls[0][1]["trust_remote_code"] is False
    assert {p.dtype for p in pair.parameters()} == {torch.bfloat16}
    assert [m.config._attn_implementation for m in (pair, pair.expert, pair.amateur)] == [
        "eager"
    ] * 3
    logits = pair(input_ids=torch.tensor([[5, 6]])).logits
    assert logits.dtype == torch.float32
    assert torch.allclose(logits.exp().sum(-1), torch.ones(1, 2), atol=1e-5)


def test_what_is_read_is_the_models_and_what_the_pair_is_made_with(tmp_path):
    folders = tiny.save_pair(tmp_path, "llama")
    expert, amateur, values = read_pair(*folders)
    assert values == {"vocab_size": 280}
    pair = tiny.pair("llama")
    assert torch.equal(expert.lm_head.weight, pair.expert.lm_head.weight)
    assert torch.equal(amateur.lm_head.weight, pair.amateur.lm_head.weight)
    assert amateur.generation_config.eos_token_id == 0  # its own; the pair stops by the expert's


def test_an_added_token_without_logits_is_left_out_and_the_pair_still_decodes(tmp_path):
    # As Gemma 3 1B: its tokenizer names an image token that its text model does not know.
    folders = tiny.save_pair(tmp_path, "gemma3_text")
    for folder in folders:
        tokenizer = load_tokenizer(folder)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|image|>"]})
        tokenizer.add_tokens([f"<|unused{n}|>" for n in range(280 - len(tokenizer) + 1)])
        tokenizer.save_pretrained(folder)
    tokenizer = load_tokenizer(folders[0])
    assert len(tokenizer) == 281
    pair = ContrastivePair.from_pretrained(*folders, plausibility=0.1)
    assert pair.vocab_size == 280
    chat = [{"role": "user", "content": "the cat"}]
    greedy = recipes.Decoding(temperature=0, max_new_tokens=5)
    (answer,) = decode.generate(pair, tokenizer, [chat], greedy, progress=False)
    assert answer.error is None
    assert 0 < len(answer.token_ids) <= 5


def test_a_tokenizer_with_ordinary_tokens_beyond_the_logits_is_refused(tmp_path):
    folders = tiny.save_pair(tmp_path, "llama")
    model = AutoModelForCausalLM.from_pretrained(folders[0])
    model.resize_token_embeddings(200)
    for folder in folders:
        model.save_pretrained(folder)
    with pytest.raises(ValueError, match="vocab_size must lie in 1..200"):
        ContrastivePair.from_pretrained(*folders)
