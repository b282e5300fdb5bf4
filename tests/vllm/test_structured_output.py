"""A grammar masks logits after the model, so it may leave none of the plausible ids."""

from __future__ import annotations

from codit.recipes import Decoding
from tests.vllm.conftest import started

CHATS = [[{"role": "user", "content": text}] for text in ("the cat", "is it", "ten", "a mat")]


def test_the_experts_best_of_what_a_grammar_leaves_is_taken(saved):
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    how = Decoding(plausibility=0.05)
    with started(*saved("llama"), how) as pair:
        grammar = StructuredOutputsParams(regex="(yes|no) it is")
        params = SamplingParams(
            temperature=0.0, max_tokens=20, structured_outputs=grammar, logprobs=0
        )
        out = pair.engine.chat(CHATS, params, use_tqdm=False)
    assert {one.outputs[0].text for one in out} <= {"yes it is", "no it is"}
    first = [next(iter(one.outputs[0].logprobs[0].values())).logprob for one in out]
    assert all(-3e4 < logprob < 0 for logprob in first), "implausible, yet a number"
