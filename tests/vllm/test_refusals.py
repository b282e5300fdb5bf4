"""What a pair cannot do inside vLLM is refused when it starts, in one sentence."""

from __future__ import annotations

import pytest

from codit import decode
from codit.engine.vllm.engine import VllmPair
from codit.recipes import Decoding
from tests import tiny
from tests.vllm.conftest import EAGER, started

HOW = Decoding(temperature=0.0, max_new_tokens=8, plausibility=0.1)
CHATS = [[{"role": "user", "content": "the cat"}]]


@pytest.mark.parametrize(
    ("engine", "words"),
    [
        ({"enable_lora": True}, "LoRA is not supported for ContrastivePairForCausalLM"),
        ({"pipeline_parallel_size": 2}, "Pipeline parallelism is not supported"),
        ({"device_map": "cpu"}, "expected arguments of vLLM's engine; got device_map"),
        ({"attn_implementation": "eager"}, "got attn_implementation"),
    ],
)
def test_features_that_a_pair_has_not_are_refused(saved, engine, words):
    with pytest.raises(Exception, match=words):
        VllmPair(*saved("llama"), HOW, **(EAGER | engine))


@pytest.mark.parametrize(
    ("codit", "words"),
    [
        (None, 'expected hf_overrides with {"codit": {"amateur": ...}}'),
        ({"amateur": "x", "strenght": 1.0}, "got strenght"),
        ({"strength": 1.0}, "expected the name of an amateur"),
        ({"amateur": "x", "plausibility": 2.0}, r"plausibility must lie in \[0, 1\]"),
    ],
)
def test_overrides_written_by_hand_are_checked(saved, codit, words):
    from vllm import LLM

    expert, _ = saved("llama")
    overrides = {"architectures": ["ContrastivePairForCausalLM"]}
    if codit is not None:
        overrides["codit"] = codit
    with pytest.raises(Exception, match=words):
        LLM(model=expert, hf_overrides=overrides, max_model_len=64, **EAGER)


def test_two_architectures_make_no_pair(saved):
    with pytest.raises(ValueError, match="expert and amateur must have one architecture"):
        VllmPair(saved("llama")[0], saved("qwen3")[0], HOW, **EAGER)


def test_an_engine_decodes_with_the_numbers_it_was_started_with(saved):
    with started(*saved("llama"), HOW) as pair:
        for other in (Decoding(plausibility=0.2), Decoding(plausibility=0.1, strength=2.0)):
            with pytest.raises(ValueError, match="an engine contrasts as it was started"):
                decode.generate(pair, tiny.tokenizer(), CHATS, other, progress=False)
        with pytest.raises(ValueError, match="decodes with engine auto, vllm; got 'static'"):
            decode.generate(pair, tiny.tokenizer(), CHATS, HOW, engine="static", progress=False)
        assert decode.generate(pair, tiny.tokenizer(), CHATS, HOW, progress=False)[0].token_ids


def test_speculative_decoding_is_refused(saved):
    """Last: it imports numba, and vLLM starts no engine in a process after that."""
    drafts = {"method": "ngram", "num_speculative_tokens": 2}
    with pytest.raises(Exception, match="a pair drafts no tokens"):
        VllmPair(*saved("llama"), HOW, speculative_config=drafts, **EAGER)
