"""A pair on disk, its two tokenizers, prompts to token ids and ids to text."""

from __future__ import annotations

import copy
import json
import logging
import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
)

from codit import decode, recipes
from codit.contrast import contrast
from codit.engine.chat import (
    answer_ids,
    dated,
    prompt_ids,
    prompt_or_error,
    special_token_ids,
    stop_ids,
    text_of,
)
from codit.engine.models import check_tokenizers, read_model, read_pair
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


TOKENIZER = tiny.tokenizer()
CHAT = [{"role": "user", "content": "the cat"}]


def test_a_prompt_is_the_conversation_and_the_beginning_of_an_answer():
    chat = [*CHAT, {"role": "assistant", "content": "sat"}, {"role": "user", "content": "on"}]
    expected = "<|user|>the cat<|end|><|assistant|>sat<|end|><|user|>on<|end|><|assistant|>"
    assert TOKENIZER.decode(prompt_ids(TOKENIZER, chat)) == expected


def with_bos(template: str, *, adds: bool) -> Any:
    """A tokenizer with a BOS token of its own."""
    made = tiny.tokenizer()
    made.add_special_tokens({"bos_token": "<|bos|>"})
    made.chat_template = template
    if adds:
        made.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|bos|> $A", special_tokens=[("<|bos|>", made.bos_token_id)]
        )
    return made


@pytest.mark.parametrize(
    ("prefix", "adds", "expected"),
    [("", False, 0), ("{{ bos_token }}", False, 1), ("", True, 1), ("{{ bos_token }}", True, 1)],
)
def test_a_prompt_has_one_bos_where_the_template_or_the_tokenizer_wants_one(prefix, adds, expected):
    tokenizer = with_bos(prefix + tiny.CHAT_TEMPLATE, adds=adds)
    assert (tokenizer("x").input_ids[0] == tokenizer.bos_token_id) == adds
    ids = prompt_ids(tokenizer, CHAT)
    assert ids == [tokenizer.bos_token_id] * expected + prompt_ids(TOKENIZER, CHAT)


@pytest.mark.parametrize("adds", [False, True])
def test_a_template_with_two_bos_is_an_error(adds):
    tokenizer = with_bos("{{ bos_token }}{{ bos_token }}" + tiny.CHAT_TEMPLATE, adds=adds)
    expected = r"expected exactly one BOS token \('<\|bos\|>'\) at the start of the prompt; got two"
    with pytest.raises(ValueError, match=expected) as error:
        prompt_ids(tokenizer, CHAT)
    assert "Remove one from the chat template." in str(error.value)


def test_special_tokens_in_a_message_are_text():
    ids = prompt_ids(TOKENIZER, [{"role": "user", "content": "a<|end|><|assistant|>b"}])
    special = [i for i in ids if i in TOKENIZER.all_special_ids]
    assert TOKENIZER.convert_ids_to_tokens(special) == ["<|user|>", "<|end|>", "<|assistant|>"]
    assert "a<|end|><|assistant|>b" in TOKENIZER.decode(ids)


def test_thinking_is_switched_off_where_the_template_knows_it():
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template += "{% if enable_thinking is false %}no thoughts{% endif %}"
    assert TOKENIZER.decode(prompt_ids(tokenizer, CHAT)).endswith("no thoughts")


@pytest.mark.parametrize(
    "bad", [[], None, "hello", ["hello"], [{"role": "user"}], [{"role": "user", "content": 3}]]
)
def test_what_is_no_conversation_is_refused(bad):
    with pytest.raises(ValueError, match="expected at least one message") as error:
        prompt_ids(TOKENIZER, bad)
    assert f"got {bad!r}. Give every message both." in str(error.value)


def test_a_prompt_may_fill_the_context_but_for_the_answer():
    n = len(prompt_ids(TOKENIZER, CHAT))
    assert prompt_or_error(TOKENIZER, CHAT, n + 5, 5) == prompt_ids(TOKENIZER, CHAT)
    assert prompt_or_error(TOKENIZER, CHAT, None, 5) == prompt_ids(TOKENIZER, CHAT)
    assert prompt_or_error(TOKENIZER, CHAT, n + 4, 5) == (
        f"the prompt is too long: expected at most {n - 1} tokens (the model's {n + 4} less "
        f"max_new_tokens=5); got {n}. Shorten the prompt or lower max_new_tokens."
    )


def test_text_has_no_special_tokens_and_its_spaces_as_they_are():
    made = tiny.tokenizer()
    made.clean_up_tokenization_spaces = True
    ids = made("the cat , is n't <|end|>").input_ids
    assert text_of(made, ids) == "the cat , is n't "


def test_an_answer_is_ids_or_a_text():
    assert answer_ids(TOKENIZER, "the cat") == TOKENIZER("the cat").input_ids
    assert answer_ids(TOKENIZER, (5, 6)) == [5, 6]


@pytest.mark.parametrize("empty", ["", []])
def test_an_answer_without_tokens_is_refused(empty):
    with pytest.raises(ValueError, match="an answer of at least one token; got") as error:
        answer_ids(TOKENIZER, empty)
    assert "Give a Response without an error, token ids or a text." in str(error.value)


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


MOVED = (  # Mistral's way: the system turn before the last user's
    "{% for m in messages if m.role != 'system' %}{{ '<|' + m.role + '|>' }}"
    "{% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{{ m.content | trim }}{{ '<|end|>' }}{% endfor %}{{ '<|assistant|>' }}"
)
TALK = [
    {"role": "system", "content": "be brief "},
    {"role": "user", "content": " who?\n"},
    {"role": "assistant", "content": "<think>hm</think> the cat"},
    {"role": "user", "content": "and then?"},
]


def chatting(template: str) -> Any:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    "template",
    [
        tiny.CHAT_TEMPLATE,
        MOVED,
        tiny.CHAT_TEMPLATE.replace(
            "message['content']", "message['content'].split('</think>')[-1]"
        ),
    ],
)
def test_templates_that_trim_move_the_system_turn_or_drop_old_thoughts_are_whole(
    template: str,
) -> None:
    assert decode.prompt_ids(chatting(template), TALK)


@pytest.mark.parametrize(
    ("template", "missing"),
    [
        (MOVED.replace("{{ messages[0].content }}", ""), r"messages\[0\] \(system\), 'be brief'"),
        (MOVED.replace("m.content | trim", "m.content[:8] | trim"), r"messages\[2\] \(assistant"),
        ("{{ messages[-1].content }}", r"messages\[0\] \(system\)"),
        ("{{ messages[0].content }}{{ messages[3].content }}", r"messages\[1\] \(user\), 'who"),
        (
            "{% for m in messages | reverse %}{{ m.content }}{% endfor %}",
            r"messages\[2\] \(assistant\), 'the cat'",
        ),
    ],
)
def test_a_template_that_writes_less_than_the_conversation_is_refused(
    template: str, missing: str
) -> None:
    with pytest.raises(ValueError, match=f"the chat template does not write all of {missing}"):
        decode.prompt_ids(chatting(template), TALK)


def test_a_dated_template_writes_the_moment_that_it_is_given() -> None:
    template = (
        '{% if strftime_now is defined %}{% set d = strftime_now ("%d %b %Y") %}{% endif %}'
        "{{ d + strftime_now('%H') }}" + tiny.CHAT_TEMPLATE
    )
    tokenizer = chatting(template)
    ids = decode.prompt_ids(dated(tokenizer, "2026-01-02T03:04:05"), TALK)
    assert tokenizer.decode(ids).startswith("02 Jan 202603<|system|>")
    assert tokenizer.chat_template == template, "the caller's own is left alone"
    plain = tiny.tokenizer()
    assert dated(plain, "2026-01-02") is plain
    with pytest.raises(ValueError, match="a chat template that writes the date in a fixed format"):
        dated(chatting("{{ strftime_now(messages[0].content) }}"), "2026-01-02")
