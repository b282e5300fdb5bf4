"""The pair as one causal LM, against a slow oracle that is written from the equation.

`python -m tests.test_pair` prints the table of architectures and paths: rows equal to the oracle.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
from functools import cache

import pytest
import torch
from transformers import (
    CompileConfig,
    ContinuousBatchingConfig,
    DynamicCache,
    pipeline,
)

from codit.contrast import contrast
from codit.engine.cache import CACHE, UNPAGED
from codit.pair import ContrastivePair
from tests import tiny

ARCHITECTURES = (*tiny.ARCHITECTURES, "gemma3")  # the last one reads images as well
NUMBERS = {"strength": 0.5, "plausibility": 0.1}
NEW_TOKENS = 20
PROMPTS = (  # lengths on both sides of the sliding window, and one prompt twice
    "a",
    "the cat",
    "is it in the house? and then there were",
    "ten of them. the cat sat on the mat. the cat sat on the mat",
    "the cat",
)
GENERATE = {
    "no cache": {"use_cache": False},
    "dynamic cache": {},
    "static cache": {"cache_implementation": "static"},
}
PATHS = (*GENERATE, "generate_batch", "generate_batch, eager")


@cache
def made(architecture: str) -> ContrastivePair:
    return tiny.pair(architecture, **NUMBERS)


def prompts() -> list[list[int]]:
    tokenizer = tiny.tokenizer()
    return [tokenizer(text)["input_ids"] for text in PROMPTS]


def padded(rows: list[list[int]]):
    return tiny.tokenizer().pad({"input_ids": rows}, return_tensors="pt")


def oracle_step(pair: ContrastivePair, ids: list[int]) -> list[float]:
    """s(v) = log p_E(v) - beta log p_A(v) if p_E(v) >= alpha max p_E, without cache or batch."""
    with torch.no_grad():
        log_e, log_a = (
            model(input_ids=torch.tensor([ids]), use_cache=False)
            .logits[0, -1]
            .double()
            .log_softmax(-1)
            .tolist()
            for model in (pair.expert, pair.amateur)
        )
    edge = max(log_e) + math.log(pair.plausibility)
    return [
        e - pair.strength * a if e >= edge else -math.inf for e, a in zip(log_e, log_a, strict=True)
    ]


@cache
def oracle(architecture: str) -> list[list[int]]:
    """Greedy continuations of `PROMPTS`, one row and one whole forward at a time."""
    pair = made(architecture)
    answers = []
    for prompt in prompts():
        answer: list[int] = []
        while len(answer) < NEW_TOKENS and not stopped(pair, answer):
            scores = oracle_step(pair, prompt + answer)
            best, second = sorted(scores)[:-3:-1]
            assert best - second > 1e-4, "a near tie would be decided by rounding: change a seed"
            answer.append(scores.index(best))
        answers.append(answer)
    return answers


def stopped(pair: ContrastivePair, answer: list[int]) -> bool:
    return bool(answer) and answer[-1] in pair.generation_config.eos_token_id


def cut(pair: ContrastivePair, answer: list[int]) -> list[int]:
    """Return an answer without the padding after its stop token."""
    ends = (i + 1 for i in range(len(answer)) if stopped(pair, answer[: i + 1]))
    return answer[: next(ends, len(answer))]


def greedy(architecture: str, path: str) -> list[list[int]]:
    """Greedy continuations of `PROMPTS` in one batch by one of `PATHS`."""
    pair, rows = made(architecture), prompts()
    if path in GENERATE:
        batch = padded(rows)
        made_ids = pair.generate(
            **batch, max_new_tokens=NEW_TOKENS, do_sample=False, **GENERATE[path]
        )
        new = made_ids[:, batch["input_ids"].shape[1] :]
        return [cut(pair, row) for row in new.tolist()]
    return in_pages(pair, rows, eager="eager" in path)


def in_pages(pair, rows, *, eager: bool = False) -> list[list[int]]:
    """Continue by continuous batching, with pages and batches so small that prompts are cut."""
    config = copy.deepcopy(pair.generation_config)
    config.update(max_new_tokens=NEW_TOKENS, do_sample=False)
    pages = ContinuousBatchingConfig(num_blocks=40, page_size=8, max_batch_tokens=32)
    before = pair.config._attn_implementation
    pair.set_attn_implementation("eager" if eager else before)
    try:
        results = pair.generate_batch(rows, config, pages)
    finally:
        pair.set_attn_implementation(before)
    return [result.generated_tokens for result in results.values()]


def table(architectures=ARCHITECTURES, paths=PATHS) -> str:
    """Return, as Markdown, how many rows of each architecture and path equal the oracle's."""
    lines = ["| architecture | " + " | ".join(paths) + " |", "|---" * (len(paths) + 1) + "|"]
    for architecture in architectures:
        expected = oracle(architecture)
        cells = []
        for path in paths:
            answers = greedy(architecture, path)
            equal = sum(a == b for a, b in zip(answers, expected, strict=True))
            cells.append(f"{equal} of {len(expected)}")
        lines.append(f"| {architecture} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_decoding_equals_the_oracle_token_for_token(architecture, path):
    if architecture in UNPAGED and path not in GENERATE:
        with pytest.raises(ValueError, match="cannot page a gpt_neox's cache. Use generate"):
            greedy(architecture, path)
        return
    assert greedy(architecture, path) == oracle(architecture)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_oracle_table_is_informative(architecture):
    answers = oracle(architecture)
    assert len({token for answer in answers for token in answer}) > 8
    experts = [
        made(architecture)
        .expert.generate(torch.tensor([row]), max_new_tokens=NEW_TOKENS, do_sample=False)[
            0, len(row) :
        ]
        .tolist()
        for row in prompts()
    ]
    assert experts != answers  # contrast changes what is said


def test_the_printed_table_counts_equal_rows():
    printed = table(("llama",), ("no cache",))
    assert printed.splitlines()[-1] == f"| llama | {len(PROMPTS)} of {len(PROMPTS)} |"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_first_token_is_contrasted_too(architecture):
    pair = made(architecture)
    for row, answer in zip(prompts(), oracle(architecture), strict=True):
        logq = pair(input_ids=torch.tensor([row])).logits[0, -1]
        expected = torch.tensor(oracle_step(pair, row)).log_softmax(-1)
        assert torch.allclose(logq.exp(), expected.exp(), atol=1e-5)
        assert int(logq.argmax()) == answer[0]


def test_an_amateur_of_fewer_layers_and_other_heads_is_contrasted_by_generate():
    expert = tiny.model("llama", seed=0)
    amateur = tiny.model("llama", seed=1, num_hidden_layers=1, num_key_value_heads=4)
    pair = ContrastivePair(expert, amateur, **NUMBERS)
    batch = padded(prompts())
    answers = [
        pair.generate(**batch, max_new_tokens=8, do_sample=False, **path).tolist()
        for path in GENERATE.values()
    ]
    assert answers[0] == answers[1] == answers[2]
    with pytest.raises(ValueError, match="needs keys of one shape"):
        pair.generate_batch(prompts())


def test_beams_and_several_samples_are_the_same_with_any_cache():
    pair, batch = made("gemma3_text"), padded(prompts())
    for how in (
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
        {"num_return_sequences": 3, "do_sample": True},
    ):
        answers = []
        for path in GENERATE.values():
            torch.manual_seed(0)
            answers.append(pair.generate(**batch, max_new_tokens=8, **how, **path).tolist())
        assert len(answers[0]) == len(PROMPTS) * how.get("num_return_sequences", 1)
        assert answers[0] == answers[1] == answers[2]


def test_speculation_that_crops_the_cache_changes_nothing():
    pair, row = made("llama"), torch.tensor([prompts()[3]])
    plain = pair.generate(row, max_new_tokens=12, do_sample=False)
    guessed = pair.generate(row, max_new_tokens=12, do_sample=False, prompt_lookup_num_tokens=3)
    assert plain.tolist() == guessed.tolist()


def test_a_static_cache_compiles_into_one_graph():
    pair, batch = copy.deepcopy(made("qwen3")), padded(prompts()[:2])
    how = {"max_new_tokens": 6, "do_sample": False, "cache_implementation": "static"}
    plain = pair.generate(**batch, **how)
    compiling = CompileConfig(backend="eager", mode=None, fullgraph=True)
    compiling._compile_all_devices = True
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = pair.generate(**batch, **how, compile_config=compiling)
    assert compiled.tolist() == plain.tolist()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_conversation_can_be_continued_from_the_cache_it_left():
    pair, ids = made("qwen3"), torch.tensor([prompts()[3]])
    whole = pair(input_ids=ids).logits
    for empty in (None, DynamicCache(), DynamicCache(config=pair.config)):
        for name in ("cache", "past_key_values"):
            start = pair(input_ids=ids[:, :5], **{name: copy.deepcopy(empty)})
            rest = pair(input_ids=ids[:, 5:], **{name: start[CACHE]})
            assert torch.allclose(rest.logits.exp(), whole[:, 5:].exp(), atol=1e-5)
    assert pair(input_ids=ids, use_cache=False).get(CACHE) is None
    with pytest.raises(ValueError, match="expected one cache"):
        pair(input_ids=ids, cache=DynamicCache(), past_key_values=DynamicCache())


def runs_of(model) -> list[int]:
    runs: list[int] = []
    model.register_forward_hook(lambda *_: runs.append(1))
    return runs


def test_at_strength_zero_the_amateur_is_not_run_and_the_expert_samples_exactly():
    pair = tiny.pair("qwen3", strength=0.0, plausibility=0.0)
    runs = runs_of(pair.amateur)
    batch = padded(prompts())
    for path in GENERATE.values():
        torch.manual_seed(0)
        mine = pair.generate(**batch, max_new_tokens=8, do_sample=True, **path)
        torch.manual_seed(0)
        experts = pair.expert.generate(**batch, max_new_tokens=8, do_sample=True, **path)
        assert mine.tolist() == experts.tolist()
    in_pages(pair, prompts()[:2])
    assert runs == []
    logits = pair.expert(**batch).logits
    assert torch.equal(pair(**batch).logits, logits.log_softmax(-1))
    pair.strength = 1.0
    pair(**batch)
    assert runs == [1]


def test_both_halves_remain_ordinary_models():
    alone = tiny.model("gpt2", seed=0)
    pair = tiny.pair("gpt2")
    row = torch.tensor([prompts()[2]])
    pair.generate(row, max_new_tokens=4)
    in_pages(pair, [prompts()[2]])
    expected = alone.generate(row, max_new_tokens=8, do_sample=False, eos_token_id=-1)
    again = pair.expert.generate(row, max_new_tokens=8, do_sample=False, eos_token_id=-1)
    assert again.tolist() == expected.tolist()
    assert pair.amateur.config.num_hidden_layers == 2
    assert pair.amateur.generate(row, max_new_tokens=2).shape[0] == 1


@pytest.mark.parametrize("architecture", ["gpt2", "gemma3_text"])
def test_both_logits_are_each_models_own_whatever_the_strength_and_padding(architecture):
    pair, rows = made(architecture), prompts()
    batch = padded(rows)
    with pair.override(strength=0.0):
        together = pair.both_logits(**batch)
    for i, row in enumerate(rows):
        for logits, model in zip(together, (pair.expert, pair.amateur), strict=True):
            assert logits.dtype == torch.float32
            own = model(input_ids=torch.tensor([row])).logits[0]
            assert torch.allclose(logits[i, -len(row) :], own, atol=1e-4)
    alone = pair.both_logits(torch.tensor([rows[3]]))
    assert torch.allclose(alone[1][0], together[1][3], atol=1e-4)
    logq = contrast(*alone, **NUMBERS)
    assert torch.allclose(logq, pair(input_ids=torch.tensor([rows[3]])).logits, atol=1e-5)


def test_ids_beyond_the_tokenizer_are_cut_from_both_models():
    size = len(tiny.tokenizer())
    expert = tiny.model("llama", seed=0, vocab_size=size + 20)
    amateur = tiny.model("llama", seed=1, vocab_size=size + 8)
    with torch.no_grad():
        expert.lm_head.weight[size:] *= 30  # padding rows that would win
    pair = ContrastivePair(expert, amateur, vocab_size=size, plausibility=0.0)
    ids = torch.tensor([prompts()[3]])
    logq = pair(input_ids=ids).logits
    valid = torch.arange(size + 8) < size
    masked = contrast(
        expert(ids).logits[..., : size + 8], amateur(ids).logits, plausibility=0.0, valid=valid
    )
    assert pair.config.vocab_size == logq.shape[-1] == size
    assert torch.allclose(logq, masked[..., :size], atol=1e-5)
    assert int(expert(ids).logits.argmax()) % (size + 20) >= size
    assert ContrastivePair(expert, amateur).vocab_size == size + 8


def test_override_holds_for_a_block_and_ends_with_it_even_by_an_error():
    pair = tiny.pair("llama", **NUMBERS)
    ids = torch.tensor([prompts()[3]])
    before = pair(input_ids=ids).logits
    with pair.override(strength=2, plausibility=0.5):
        assert not torch.equal(pair(input_ids=ids).logits, before)
    assert torch.equal(pair(input_ids=ids).logits, before)
    with pytest.raises(ValueError, match="got labels"), pair.override(strength=2.0):
        pair(input_ids=ids, labels=ids)
    assert (pair.strength, pair.plausibility) == (0.5, 0.1)
    assert torch.equal(pair(input_ids=ids).logits, before)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"alpha": 1}, "override takes strength and plausibility; got alpha. Name these only."),
        ({"strength": -1.0}, "strength must be a finite number of at least 0; got -1.0"),
        ({"plausibility": 2.0}, "plausibility must lie in [0, 1]; got 2.0"),
        ({"strength": float("inf")}, "strength must be a finite number of at least 0; got inf"),
    ],
)
def test_values_out_of_range_are_refused_and_leave_the_pair_as_it_was(values, message):
    pair = made("llama")
    with pytest.raises(ValueError, match=re.escape(message)), pair.override(**values):
        pass
    assert (pair.strength, pair.plausibility) == (0.5, 0.1)
    if "alpha" not in values:
        with pytest.raises(ValueError, match=re.escape(message)):
            ContrastivePair(pair.expert, pair.amateur, **values)


def test_inputs_that_a_pair_cannot_take_are_refused():
    pair, ids = made("llama"), torch.tensor([[5, 6]])
    embeddings = pair.expert.get_input_embeddings()(ids)
    with pytest.raises(ValueError, match="which each model embeds its own way, and is not trained"):
        pair()
    with pytest.raises(ValueError, match=r"got inputs_embeds\. Pass input_ids and a mask alone"):
        pair.generate(inputs_embeds=embeddings, max_new_tokens=1)
    with pytest.raises(ValueError, match=r"not trained; got labels\. Pass input_ids and a mask al"):
        pair(input_ids=ids, labels=ids)
    with pytest.raises(ValueError, match="must have one architecture; got llama and gpt2"):
        ContrastivePair(pair.expert, made("gpt2").amateur)


def test_mixture_of_experts_and_attention_are_chosen_for_both_models():
    pair = tiny.pair("qwen3_moe")
    pair.set_experts_implementation("eager")
    models = pair.expert, pair.amateur
    assert pair.get_experts_implementation() == {"": "eager"}
    assert [m.config._experts_implementation for m in models] == ["eager"] * 2
    pair.set_attn_implementation("eager")
    assert [m.config._attn_implementation for m in (pair, *models)] == ["eager"] * 3
    ids = torch.tensor([prompts()[3]])
    assert torch.allclose(
        pair(input_ids=ids).logits.exp(),
        tiny.pair("qwen3_moe")(input_ids=ids).logits.exp(),
        atol=1e-5,
    )


def test_the_pipeline_answers_texts_batches_and_conversations(caplog):
    pair, tokenizer = made("qwen3"), tiny.tokenizer()
    generator = pipeline("text-generation", model=pair, tokenizer=tokenizer)
    how = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "return_full_text": False}
    answers = generator(list(PROMPTS), batch_size=3, **how)
    texts = tokenizer.batch_decode(oracle("qwen3"), skip_special_tokens=True)
    assert [answer[0]["generated_text"] for answer in answers] == texts
    chat = generator([{"role": "user", "content": "the cat"}], max_new_tokens=3)
    assert chat[0]["generated_text"][-1]["role"] == "assistant"


def test_what_a_quantised_or_dispatched_model_says_about_itself_holds_for_the_pair():
    expert, amateur = (tiny.model("llama", seed=seed) for seed in (0, 1))
    assert not hasattr(ContrastivePair(expert, amateur), "quantization_method")
    expert.quantization_method = "bitsandbytes"
    expert.hf_device_map = {"": 0}
    expert._supports_flash_attn = False
    pair = ContrastivePair(expert, amateur)
    assert pair.hf_device_map == {"": 0}
    assert pair.quantization_method == "bitsandbytes"
    assert pair._supports_flash_attn is False


def test_a_pair_can_be_copied_moved_and_cast():
    pair = copy.deepcopy(made("llama")).to(torch.bfloat16).to("cpu")
    assert (pair.dtype, pair.device.type) == (torch.bfloat16, "cpu")
    assert made("llama").dtype == torch.float32
    models = pair.expert, pair.amateur
    own = {id(p) for p in itertools.chain(*(m.parameters() for m in models))}
    assert {id(p) for p in pair.parameters()} == own


if __name__ == "__main__":
    print(table())
