"""Labels against TRL's own, against what decoding asks for, and every way a row can be wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from codit import decode, recipes
from codit.training.rows import (
    MASKED,
    Answered,
    Rows,
    adopt_template,
    answered,
    arranged,
    summary,
    tokenised,
)
from tests import tiny

LINES = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)


def talk(*contents: str) -> list[dict[str, str]]:
    roles = ("user", "assistant") * len(contents)
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


def dataset(*conversations: list[dict[str, str]], **columns: Any) -> Dataset:
    return Dataset.from_dict({"messages": list(conversations), **columns})


def trained(rows: Any, tokenizer: PreTrainedTokenizerFast, max_length: int) -> Rows:
    return tokenised(answered(rows, tokenizer).talks, tokenizer, max_length=max_length)


def one(tokenizer: PreTrainedTokenizerFast, *contents: str) -> tuple[list[int], list[int]]:
    rows = tokenised([("row", talk(*contents))], tokenizer, max_length=500)
    return rows.ids[0], rows.labels[0]


def training(**changes: Any) -> recipes.Training:
    base = recipes.Model(name="base")
    return recipes.Training(base=base, data=recipes.File(path="data"), **changes)


def with_template(template: str) -> PreTrainedTokenizerFast:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


def test_the_answer_and_its_end_of_turn_are_in_the_loss_and_nothing_else() -> None:
    tokenizer = tiny.tokenizer()
    ids, labels = one(tokenizer, "who is it?", "the cat sat.")
    asked = decode.prompt_ids(tokenizer, talk("who is it?"))
    answer = tokenizer("the cat sat.<|end|>").input_ids
    assert ids == asked + answer
    assert labels == [MASKED] * len(asked) + answer


@settings(deadline=None, max_examples=30)
@given(st.text(max_size=40), st.text(max_size=40))
def test_labels_are_those_of_the_templates_generation_markers(asked: str, told: str) -> None:
    tokenizer = tiny.tokenizer()
    ids, labels = one(tokenizer, asked, told)
    marked = tokenizer.apply_chat_template(
        talk(asked, told), return_dict=True, return_assistant_tokens_mask=True
    )
    assert ids == marked["input_ids"]
    assert [label != MASKED for label in labels] == [bool(m) for m in marked["assistant_masks"]]


def test_only_the_last_answer_of_a_conversation_is_in_the_loss() -> None:
    tokenizer = tiny.tokenizer()
    _, labels = one(tokenizer, "who?", "the cat", "and then?", "the mat")
    assert tokenizer.decode([t for t in labels if t != MASKED]) == "the mat<|end|>"


def test_special_tokens_written_in_a_message_are_text_and_end_no_turn() -> None:
    tokenizer = tiny.tokenizer()
    ids, labels = one(tokenizer, "say <|end|>", "I say <|end|> now")
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    assert ids.count(end) == 2
    assert labels.count(end) == 1
    assert labels[-1] == end


def test_a_template_needs_no_markers_and_its_last_line_break_is_not_in_the_loss() -> None:
    tokenizer = with_template(LINES)
    ids, labels = one(tokenizer, "who?", "the cat")
    assert tokenizer.decode(ids).endswith("<|end|>\n")
    assert tokenizer.decode([t for t in labels if t != MASKED]) == "the cat<|end|>"


@pytest.mark.parametrize("template", ["{{ bos_token }}" + tiny.CHAT_TEMPLATE, tiny.CHAT_TEMPLATE])
def test_a_row_begins_with_one_bos_whether_tokenizer_or_template_writes_it(template: str) -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.bos_token = "<|system|>"
    tokenizer.chat_template = template
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|system|> $A", special_tokens=[("<|system|>", tokenizer.bos_token_id)]
    )
    ids, _ = one(tokenizer, "who?", "the cat")
    assert ids.count(tokenizer.bos_token_id) == 1
    assert ids[0] == tokenizer.bos_token_id


def test_the_end_of_turn_stays_in_the_loss_where_it_is_also_the_padding() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    rows = trained(dataset(talk("who?", "the cat")), tokenizer, 100)
    assert rows.labels[0][-1] == tokenizer.pad_token_id == rows.stop


def test_rows_that_were_cut_while_answering_are_left_out() -> None:
    rows = dataset(*[talk("a", "b")] * 4, is_completed=[True, False, None, True], id=list("wxyz"))
    found = answered(rows, tiny.tokenizer())
    assert [name for name, _ in found.talks] == [f"row {x!r} (row {n})" for x, n in LEFT]
    assert (found.incomplete, found.empty) == (1, 0)
    assert len(answered(rows.remove_columns("is_completed"), tiny.tokenizer()).talks) == 4


LEFT = (("w", 1), ("y", 3), ("z", 4))


def test_answers_without_text_are_left_out_and_counted() -> None:
    rows = [{"messages": talk("a", text)} for text in ("b", "", " \n")]
    rows.append({"messages": talk("a", ""), "is_completed": False})
    found = answered(rows, tiny.tokenizer())
    assert [messages for _, messages in found.talks] == [talk("a", "b")]
    assert (found.incomplete, found.empty) == (1, 2)


def test_a_file_is_read_as_every_command_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    lines = [b"", b'{"id": 1, "instruction": "a", "input": "b", "output": "c"}', b" ", b""]
    lines += [b'{"id": "x", "conversations": [{"from": "human", "value": "d"}, {"from": "gpt",']
    lines[-1] += b' "value": "e"}], "is_completed": null}'
    path.write_bytes(b"\n".join(lines))
    assert answered(path, tiny.tokenizer()).talks == [
        ("row '1' (line 2)", talk("a\n\nb", "c")),
        ("row 'x' (line 5)", talk("d", "e")),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "n", "messages": None}, "row 'n' (row 2): expected `instruction`, `prompt`, `mess"),
        ({"messages": [*talk("a"), {"role": "assistant"}]}, "row 2: messages[1].content must be t"),
        ({"messages": talk("a", "b"), "context": "c"}, "row 2: the field context is not read; it"),
        ({"messages": talk("a", "b"), "is_completed": "no"}, "is_completed must be true or false"),
        ({"messages": talk("a", "b"), "response": "c"}, "response differs from the last message"),
        ({"messages": [{"role": "assistant", "content": "b"}]}, "got roles ['assistant']"),
        (7, "row 2: expected an object; got int"),
    ],
)
def test_what_is_no_conversation_is_told_with_the_row(row: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        answered([{"messages": talk("a", "b")}, row], tiny.tokenizer())


REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('No system') }}{% endif %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (REFUSES + tiny.CHAT_TEMPLATE, "two: the chat template refuses it: No system."),
        (
            tiny.CHAT_TEMPLATE.replace("for message in messages", "for message in messages[1:]"),
            "two: the chat template does not write all of messages[0] (system), 'Be brief.'",
        ),
        (
            "{% for m in messages %}{{ m['role'] + '|' + m['content'][:9] + '<|end|>' }}"
            "{% endfor %}",
            "two: the chat template does not write all of messages[2] (assistant), 'the cat sat on",
        ),
    ],
)
def test_a_template_that_writes_less_is_told_with_the_row(template: str, message: str) -> None:
    talks = talk("who", "the cat sat on the mat")
    talks.insert(0, {"role": "system", "content": "Be brief."})
    with pytest.raises(ValueError, match=re.escape(message)):
        tokenised([("two", talks)], with_template(template), max_length=500)


ASKED_TWICE = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' + 'the cat sat<|end|>' }}{% endif %}"
)


def test_labels_that_do_not_hold_the_whole_answer_are_told_with_the_row() -> None:
    talks = [("two", talk("who", "the cat sat on the mat"))]
    with pytest.raises(ValueError, match="two: not all of its answer is in the loss: 'the cat"):
        tokenised(talks, with_template(ASKED_TWICE), max_length=500)


def test_a_template_that_writes_thoughts_in_its_own_way_is_no_loss() -> None:
    template = (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>' }}{% if '</think>' in m['content'] %}"
        "{% set t = m['content'].split('</think>') %}{% if loop.last %}{{ '<think>\n' }}"
        "{{ t[0].split('<think>')[-1].strip() + '\n</think>\n\n' }}{% endif %}"
        "{{ t[-1].strip() }}{% else %}{{ m['content'].strip() }}{% endif %}{{ '<|end|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
    )
    told = " <think>so it is</think> the mat "
    talks = [("row", talk(" who ", told, "and then?", told))]
    rows = tokenised(talks, with_template(template), max_length=500)
    learnt = tiny.tokenizer().decode([t for t in rows.labels[0] if t != MASKED])
    assert learnt == "<think>\nso it is\n</think>\n\nthe mat<|end|>"


def test_the_advice_names_the_stop_token_that_is_missing() -> None:
    rows = [{"messages": talk("a", "b"), "is_completed": False}]
    with pytest.raises(ValueError, match=re.escape("'<|end|>', which ends this template's turns")):
        answered(rows, tiny.tokenizer())


def test_epochs_are_whole_permutations_and_steps_are_sorted_by_length() -> None:
    lengths = list(range(10))
    order = arranged(lengths, training(epochs=2.5, batch=4, seed=3))
    assert len(order) == 25
    assert sorted(order[:10]) != order[:10]
    steps = [order[k : k + 4] for k in range(0, 25, 4)]
    assert all(step == sorted(step, reverse=True) for step in steps)
    counts = [order.count(row) for row in lengths]
    assert set(counts) == {2, 3}
    assert order == arranged(lengths, training(epochs=2.5, batch=4, seed=3))
    assert order != arranged(lengths, training(epochs=2.5, batch=4, seed=4))


def test_which_rows_make_a_step_does_not_depend_on_their_lengths() -> None:
    order = {
        kind: arranged(lengths, training(epochs=1, batch=5))
        for kind, lengths in {"up": list(range(20)), "equal": [7] * 20}.items()
    }
    steps = {kind: [set(rows[k : k + 5]) for k in range(0, 20, 5)] for kind, rows in order.items()}
    assert steps["up"] == steps["equal"]


def test_even_a_small_share_of_an_epoch_is_one_row() -> None:
    assert len(arranged([5, 5], training(epochs=0.1))) == 1


def test_the_summary_counts_every_epochs_tokens() -> None:
    rows = Rows(ids=[[1, 2, 3], [1, 2]], labels=[[MASKED, 2, 3], [MASKED, 2]], stop=2, unlike=1)
    assert summary(rows, [0, 1, 0], Answered(talks=[], incomplete=3, empty=1)) == {
        "rows_used": 2,
        "rows_dropped": 4,
        "rows_empty": 1,
        "rows_with_unlike_prompt": 1,
        "tokens": 8,
        "answer_tokens": 5,
    }


def test_a_base_model_takes_over_template_stop_token_and_missing_tokens(tmp_path: Path) -> None:
    source = tiny.tokenizer()
    source.add_tokens(["<|new|>"], special_tokens=True)
    source.save_pretrained(tmp_path)
    model, tokenizer = tiny.model("llama", seed=0), tiny.tokenizer(eos_token=tiny.EOS)
    model.resize_token_embeddings(len(tokenizer))
    before, size = model.get_input_embeddings().weight.clone(), len(tokenizer)
    tokenizer.chat_template = None
    adopt_template(model, tokenizer, recipes.Model(name=str(tmp_path)))
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE
    assert tokenizer.eos_token == tiny.END
    assert tokenizer.convert_tokens_to_ids("<|new|>") == size
    assert model.get_input_embeddings().weight.shape[0] == size + 1
    assert model.get_input_embeddings().weight[:size].equal(before)


def test_embeddings_that_are_large_enough_keep_their_shape(tmp_path: Path) -> None:
    tiny.tokenizer().save_pretrained(tmp_path)
    model, tokenizer = tiny.model("qwen3", seed=0, vocab_size=300), tiny.tokenizer()
    adopt_template(model, tokenizer, recipes.Model(name=str(tmp_path)))
    assert model.get_input_embeddings().weight.shape[0] == 300


def test_a_jinja_file_gives_the_template_alone(tmp_path: Path) -> None:
    file = tmp_path / "chat.jinja"
    file.write_text(LINES)
    tokenizer = tiny.tokenizer(eos_token=tiny.EOS)
    adopt_template(tiny.model("qwen3", seed=0), tokenizer, recipes.File(path=str(file)))
    assert tokenizer.chat_template == LINES
    assert tokenizer.eos_token == tiny.EOS


def test_a_source_without_a_template_is_refused(tmp_path: Path) -> None:
    source = tiny.tokenizer()
    source.chat_template = None
    source.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="expected a tokenizer with a chat template; .* has none"):
        adopt_template(
            tiny.model("qwen3", seed=0), tiny.tokenizer(), recipes.Model(name=str(tmp_path))
        )


NO_END = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
UNLIKE = tiny.CHAT_TEMPLATE.replace("{{ '<|assistant|>' }}", "{{ '<|assistant|>Well, ' }}")
NO_ANSWER = (
    "{% for m in messages if m['role'] == 'user' %}{{ '<|user|>' + m['content'] }}{% endfor %}"
    "{{ '<|assistant|>' }}"
)
TWO_ENDS = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>' + m['content'] }}"
    "{{ '<|end|>' if 'cat' in m['content'] else '<|endoftext|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "conversations", "message"),
    [
        (None, [talk("a", "b")], "expected a base model with a chat template; its tokenizer has"),
        (
            tiny.CHAT_TEMPLATE,
            [talk("a", "b"), talk("a")],
            "row 'two' (row 2): expected a conversation that ends with an assistant turn; got",
        ),
        (
            tiny.CHAT_TEMPLATE,
            [talk("a", "b"), talk("a", "the cat " * 40)],
            "row 'two' (row 2): expected at most 50 tokens; got ",
        ),
        (
            NO_ANSWER,
            [talk("a", "b"), talk("a", "b")],
            "row 'one' (row 1): the chat template does not write all of messages[1] (assistant), ",
        ),
        (
            NO_END,
            [talk("a", "b"), talk("a", "b")],
            "row 'one' (row 1): expected the end of turn, a special token, as the last "
            "token in the loss; got 'b'. A student trained so never stops",
        ),
        (
            UNLIKE,
            [talk("a", "b"), talk("a", "b")],
            "2 of 2 prompts are tokenised in training unlike at decoding.",
        ),
        (
            TWO_ENDS,
            [talk("a", "b"), talk("a", "cat")],
            "got, each with a row: {'<|endoftext|>': \"row 'one' (row 1)\", '<",
        ),
    ],
)
def test_a_row_that_would_teach_the_wrong_thing_is_refused_by_name(
    template: str, conversations: list[Any], message: str
) -> None:
    rows = dataset(*conversations, id=["one", "two"][: len(conversations)])
    with pytest.raises(ValueError, match=re.escape(message)):
        trained(rows, with_template(template), 50)


def test_rows_without_ids_are_named_by_number() -> None:
    with pytest.raises(ValueError, match="row 2: expected a conversation that ends"):
        trained(dataset(talk("a", "b"), talk("a")), tiny.tokenizer(), 50)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            Dataset.from_dict({"text": ["a"]}),
            "messages` or `conversations`; got the fields ['text']",
        ),
        (
            dataset(talk("a", "b"), is_completed=[False]),
            "expected at least one row with a complete answer; got 1 incomplete and 0 empty. Ra",
        ),
    ],
)
def test_a_dataset_with_nothing_to_train_on_is_refused(rows: Dataset, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        answered(rows, tiny.tokenizer())
