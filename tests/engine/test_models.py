"""A pair on disk, every weight of its two models, and tokenizers that are loaded."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
)

from codit import decode, recipes
from codit.contrast import contrast
from codit.engine.models import read_model, read_pair
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
    assert values == {"vocab_size": 280, "unused": []}
    pair = tiny.pair("llama")
    assert torch.equal(expert.lm_head.weight, pair.expert.lm_head.weight)
    assert torch.equal(amateur.lm_head.weight, pair.amateur.lm_head.weight)
    assert amateur.generation_config.eos_token_id == 0  # its own; the pair stops by the expert's


def rewritten(folder, change=lambda weights: weights, **config):
    """Change the weights of a saved model, and values of its config."""
    file, told = folder / "model.safetensors", folder / "config.json"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})
    told.write_text(json.dumps(json.loads(told.read_text()) | config))
    return folder


def without(part):
    return lambda weights: {k: v for k, v in weights.items() if part not in k}


UNLOADED = {
    "a prefix of torch.compile": (
        {"change": lambda weights: {f"_orig_mod.{k}": v for k, v in weights.items()}},
        r"21 missing in the files \(lm_head.weight, model.embed_tokens.weight, .*, ...\), "
        r"21 not read \(_orig_mod.lm_head.weight, ",
    ),
    "a layer less": (
        {"change": without("layers.1")},
        r"9 missing in the files \(model.layers.1.input_layernorm.weight, ",
    ),
    "a config of fewer layers": (
        {"num_hidden_layers": 1},
        r"9 of further layers than its config has \(model.layers.1.input_layernorm.weight, ",
    ),
    "a config of another width": (
        {"intermediate_size": 40},
        r"6 of another shape there \(model.layers.0.mlp.down_proj.weight, ",
    ),
}


@pytest.mark.parametrize("device_map", [None, "meta"])
@pytest.mark.parametrize("case", UNLOADED)
def test_weights_that_would_be_drawn_at_random_are_an_error(case, device_map, tmp_path):
    how, said = UNLOADED[case]
    tiny.model("llama", seed=0).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"expected all weights of a LlamaForCausalLM .*{said}"):
        read_model(rewritten(tmp_path, **how), device_map=device_map)


def test_weights_of_another_task_are_left_unread_and_named(tmp_path, caplog):
    tiny.model("llama", seed=0).save_pretrained(tmp_path)
    more = {
        "value_head.weight": torch.zeros(1, 32),
        "model.layers.0.rotary_emb.inv_freq": torch.ones(4),
    }
    model = read_model(rewritten(tmp_path, lambda weights: weights | more))
    assert model.unread_weights == ["value_head.weight"]  # the library itself ignores the buffer
    assert [record.message for record in caplog.records] == [
        f"{tmp_path}: weights that were not read: value_head.weight"
    ]


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_model_with_a_tied_head_is_whole(architecture, tmp_path):
    tied = tiny.model(architecture, seed=0, tie_word_embeddings=True)
    tied.save_pretrained(tmp_path)
    assert read_model(tmp_path).unread_weights == []


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


def with_hole(folder, **model):
    """A saved model whose stop token has the highest id, 12 above all others."""
    content = json.loads(tiny.tokenizer().backend_tokenizer.to_str())
    content["model"]["vocab"][tiny.END] = 291
    for token in content["added_tokens"]:
        token["id"] = 291 if token["content"] == tiny.END else token["id"]
    tokenizer = copy.deepcopy(tiny.tokenizer())
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(content))
    tokenizer.save_pretrained(folder)
    tiny.model("llama", vocab_size=300, **model).save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.mark.parametrize("engine", ["static", "continuous"])
@pytest.mark.parametrize("plausibility", [0.0, 0.01])
def test_a_vocabulary_with_holes_draws_its_highest_id_and_never_a_hole(
    engine, plausibility, tmp_path
):
    tokenizer = with_hole(tmp_path / "e", seed=0, scale=1.0)
    with_hole(tmp_path / "a", seed=1, scale=1.0)
    assert len(tokenizer) == 280
    assert tokenizer.eos_token_id == 291
    folders = tmp_path / "e", tmp_path / "a"
    pair = ContrastivePair.from_pretrained(*folders, plausibility=plausibility)
    holes = [tiny.SPECIAL.index(tiny.END), *range(280, 291)]
    assert (pair.vocab_size, pair.unused) == (292, holes)
    tops = [logits.softmax(-1)[0, -1, holes].sum() for logits in pair.both_logits(IDS)]
    assert tops == [0, 0]
    with torch.no_grad():
        models = (pair, pair.expert, pair.amateur)
        q, expert, amateur = (one(input_ids=IDS).logits[0, -1, :292] for one in models)
    valid = torch.ones(292, dtype=torch.bool)
    valid[holes] = False
    expected = contrast(expert, amateur, plausibility=plausibility, valid=valid).exp()
    torch.testing.assert_close(q.exp(), expected, atol=1e-5, rtol=1e-5)
    chats = [[{"role": "user", "content": f"the cat {n}"}] for n in range(8)]
    how = recipes.Decoding(plausibility=plausibility, max_new_tokens=30)
    for model, numbers in ((pair, {}), (pair.expert, {"strength": 0.0})):
        drawn = decode.generate(
            model, tokenizer, chats, replace(how, **numbers), engine=engine, progress=False
        )
        assert not {token for one in drawn for token in one.token_ids} & {*holes}
    pair.save_pretrained(tmp_path / "pair")
    assert ContrastivePair.from_pretrained(tmp_path / "pair").unused == holes


def test_a_pair_that_cannot_draw_its_stop_token_is_refused(tmp_path):
    with_hole(tmp_path, seed=0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path)
    model.generation_config.eos_token_id = [291]
    with pytest.raises(ValueError, match=r"stop ids below 280 that are tokens; got \[291\]"):
        ContrastivePair(model, model, vocab_size=280)
    with pytest.raises(ValueError, match=r"stop ids below 292 that are tokens; got \[291\]"):
        ContrastivePair(model, model, vocab_size=292, unused=[290, 291])


def uneven(tmp_path, **tokens):
    """An expert with an added token, and the base without a row for it."""
    folders = tmp_path / "expert", tmp_path / "amateur"
    tokenizer = tiny.tokenizer()
    tokenizer.add_special_tokens(tokens)
    for folder, width, own in zip(folders, (281, 280), (tokenizer, tiny.tokenizer()), strict=True):
        own.save_pretrained(folder)
        tiny.model("llama", seed=width, vocab_size=width).save_pretrained(folder)
    return folders


@pytest.mark.parametrize("engine", ["static", "continuous"])
def test_an_added_token_that_only_pads_needs_no_row_in_the_amateur(engine, tmp_path):
    folders = uneven(tmp_path, pad_token="[PAD]")
    with pytest.raises(ValueError, match="pass allow_renamed=True"):
        ContrastivePair.from_pretrained(*folders)
    pair = ContrastivePair.from_pretrained(*folders, allow_renamed=True)
    tokenizer = load_tokenizer(folders[0])
    assert tokenizer.pad_token_id == pair.vocab_size == 280
    chats = [[{"role": "user", "content": text}] for text in ("the cat", "the cat sat on the mat")]
    how = recipes.Decoding(max_new_tokens=5)
    together = decode.generate(pair, tokenizer, chats, how, ids="ab", engine=engine, progress=False)
    for chat, name, one in zip(chats, "ab", together, strict=True):
        alone = decode.generate(pair, tokenizer, [chat], how, ids=[name], progress=False)
        assert alone[0].token_ids == one.token_ids


def test_an_added_token_that_prompts_hold_needs_a_row_in_both(tmp_path):
    folders = uneven(tmp_path, bos_token="[BOS]")
    tokenizer = load_tokenizer(folders[0])
    tokenizer.chat_template = "[BOS]" + tokenizer.chat_template
    tokenizer.save_pretrained(folders[0])
    with pytest.raises(ValueError, match=r"got 280 rows, and the ids \[280\] \(\[BOS\]\)"):
        ContrastivePair.from_pretrained(*folders, allow_renamed=True)
    base = AutoModelForCausalLM.from_pretrained(folders[1])  # the remedy
    base.resize_token_embeddings(281)
    base.save_pretrained(folders[1])
    pair = ContrastivePair.from_pretrained(*folders, allow_renamed=True)
    assert pair.vocab_size == 281


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
