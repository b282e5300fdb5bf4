"""Text from pairs and models, against a slow oracle written from the equations."""

from __future__ import annotations

import gc
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from codit import decode
from codit.contrast import contrast
from codit.decode import Response, generate, prompt_ids, token_table
from codit.engine.cache import UNPAGED
from codit.engine.sampling import Step, noise_key, uniforms
from codit.engine.static import static
from codit.recipes import Decoding
from tests import tiny
from tests.engine_rows import batch

TOKENIZER = tiny.tokenizer()
TEXTS = ("the cat", "is it in the house? " * 6, "ten", "and then there were ten of them", "mat")
CHATS = [[{"role": "user", "content": text}] for text in TEXTS]
IDS = ["a", "b", 3, "d", "e"]
SAMPLED = Decoding(max_new_tokens=10, seed=7)
SINGLE = Decoding(strength=0.0, plausibility=0.0, max_new_tokens=10)
FULL = {"temperature": 0.8, "top_k": 6, "top_p": 0.9}


@pytest.fixture(scope="module", autouse=True)
def quick_collections():
    """Spare what was imported the garbage collections that end each continuous batching."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def pair() -> Any:
    """A pair whose tests may read but not change it."""
    return tiny.pair("llama")


@pytest.fixture(scope="module")
def model() -> Any:
    """A model whose tests may read but not change it."""
    return tiny.model("llama", seed=5, scale=4.0)


def run(model: Any, decoding: Decoding = SAMPLED, chats: Any = CHATS, **how: Any) -> list[Response]:
    """Generate silently, with ids unless told otherwise."""
    how = {"ids": IDS if len(chats) == len(IDS) else None, "progress": False} | how
    return generate(model, TOKENIZER, chats, decoding, **how)


def tokens_of(responses: list[Response]) -> list[list[int]]:
    """The tokens of each response."""
    return [response.token_ids for response in responses]


def q_of(expert: Any, amateur: Any, ids: list[int], how: Decoding) -> np.ndarray:
    """log q of the next token in float64, from the equation and without a cache."""
    z = [m(torch.tensor([ids])).logits[0, -1].double().detach().numpy() for m in (expert, amateur)]
    log_e, log_a = (row - np.log(np.exp(row - row.max()).sum()) - row.max() for row in z)
    s = np.where(np.exp(log_e) >= how.plausibility * np.exp(log_e.max()), log_e, -np.inf)
    s = s - how.strength * log_a
    return s - np.log(np.exp(s - s.max()).sum()) - s.max()


def warped(logq: np.ndarray, how: Decoding) -> np.ndarray:
    """Probabilities after temperature, top-k and top-p, in this order."""
    p = np.exp((logq - logq.max()) / how.temperature)
    best = np.argsort(-p, kind="stable")
    p[best[how.top_k or len(p) :]] = 0
    p /= p.sum()
    before = np.concatenate([[0.0], np.cumsum(p[best])[:-1]])
    p[best[before >= how.top_p]] = 0
    return p / p.sum()


def oracle(expert: Any, amateur: Any, chat: Any, name: Any, how: Decoding) -> Response:
    """One response by the slowest way: one row, one step at a time, no cache."""
    prompt, drawn, logprobs = prompt_ids(TOKENIZER, chat), [], []
    key = noise_key(how.seed, name, how.sample)
    stops = {TOKENIZER.eos_token_id, *np.atleast_1d(expert.generation_config.eos_token_id)}
    while len(drawn) < how.max_new_tokens and not stops & set(drawn):
        logq = q_of(expert, amateur, prompt + drawn, how)
        u = uniforms(torch.tensor([key]), torch.tensor([len(logprobs)])).item()
        token = int(logq.argmax())
        if how.temperature > 0:
            token = int(np.argmax(np.cumsum(warped(logq, how)) > u))
        drawn.append(token)
        logprobs.append(float(logq[token]))
    ends = drawn[-1] in stops
    text = TOKENIZER.decode(drawn[: len(drawn) - ends], skip_special_tokens=True)
    return Response(id=str(name), text=text, token_ids=drawn, logprobs=logprobs, is_completed=ends)


def assert_same(made: list[Response], expected: list[Response]) -> None:
    """Equal but for the rounding of logprobs."""
    for one, other in zip(made, expected, strict=True):
        for name in ("id", "text", "token_ids", "is_completed", "error"):
            assert getattr(one, name) == getattr(other, name)
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("engine", ["static", "continuous"])
@pytest.mark.parametrize("changes", [{}, FULL, {"temperature": 0.0}, {"strength": 0.5}])
def test_a_pair_draws_what_the_slow_oracle_draws(pair, engine, changes):
    how = Decoding(**({"max_new_tokens": 10, "seed": 7} | changes))
    rows = zip(CHATS, IDS, strict=True)
    expected = [oracle(pair.expert, pair.amateur, chat, name, how) for chat, name in rows]
    assert_same(run(pair, how, engine=engine), expected)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_architecture_draws_what_the_slow_oracle_draws(architecture):
    pair = tiny.pair(architecture)
    rows = zip(CHATS, IDS, strict=True)
    expected = [oracle(pair.expert, pair.amateur, chat, name, SAMPLED) for chat, name in rows]
    for engine in pair.engines:
        assert_same(run(pair, engine=engine, batch_size=2), expected)
    assert pair.engines == (("static",) if architecture in UNPAGED else ("static", "continuous"))


@pytest.mark.parametrize("engine", ["static", "continuous"])
def test_a_single_model_draws_what_the_slow_oracle_draws(model, engine):
    how = Decoding(strength=0.0, plausibility=0.1, max_new_tokens=10)
    rows = zip(CHATS, IDS, strict=True)
    expected = [oracle(model, model, chat, name, how) for chat, name in rows]
    assert_same(run(model, how, engine=engine), expected)


@pytest.mark.parametrize("engine", ["static", "continuous"])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batch_size_order_and_engine_do_not_change_responses(pair, engine, batch_size):
    expected = run(pair, engine="static")
    how = {"engine": engine, "batch_size": batch_size}
    assert_same(run(pair, **how), expected)
    backwards = run(pair, chats=CHATS[::-1], ids=IDS[::-1], **how)
    assert_same(backwards[::-1], expected)


def test_a_part_of_the_rows_gets_what_all_of_them_got(pair):
    expected = run(pair)
    assert_same(run(pair, chats=CHATS[2:4], ids=IDS[2:4]), expected[2:4])


def test_equal_keys_repeat_and_seed_sample_and_id_each_change_the_noise(model):
    first = tokens_of(run(model, SINGLE))
    assert tokens_of(run(model, SINGLE)) == first
    others = (
        run(model, Decoding(strength=0.0, plausibility=0.0, max_new_tokens=10, seed=1)),
        run(model, Decoding(strength=0.0, plausibility=0.0, max_new_tokens=10, sample=1)),
        run(model, SINGLE, ids=["v", "w", "x", "y", "z"]),
    )
    for other in others:
        assert all(a != b for a, b in zip(tokens_of(other), first, strict=True))


def test_equal_prompts_do_not_share_noise(model):
    responses = run(model, SINGLE, [CHATS[0]] * 20)
    assert len({tuple(tokens) for tokens in tokens_of(responses)}) == 20
    assert len({response.id for response in responses}) == 20


def test_without_ids_a_row_is_named_by_its_prompt_wherever_it_stands(model):
    responses = run(model, SINGLE, ids=None)
    backwards = run(model, SINGLE, CHATS[::-1], ids=None)
    assert_same(backwards[::-1], responses)


def test_first_tokens_are_as_frequent_as_contrast_says():
    n, how, pair = 20_000, Decoding(max_new_tokens=1), tiny.pair("llama")
    prompt = prompt_ids(TOKENIZER, CHATS[0])
    keys = {row: noise_key(0, f"{row}", 0) for row in range(n)}
    step = Step(how, len(TOKENIZER), is_pair=True)
    rows = static(pair, batch(step, 2000, dict.fromkeys(keys, prompt), keys))
    drawn = np.bincount([tokens[0] for _, tokens, _ in rows], minlength=len(TOKENIZER))
    logits = [z[:, -1] for z in pair.both_logits(torch.tensor([prompt]))]
    q = contrast(*logits, strength=1.0, plausibility=0.01).exp()[0].double().numpy()
    assert drawn[q == 0].sum() == 0
    often = q * n >= 5
    rare = drawn[(q > 0) & ~often].sum(), (q[(q > 0) & ~often] * n).sum()
    observed, expected = [*drawn[often], rare[0]], [*(q[often] * n), rare[1]]
    if rare[1] == 0:
        observed, expected = observed[:-1], expected[:-1]
    assert len(observed) > 3
    scale = sum(observed) / sum(expected)  # 1 but for rounding
    assert stats.chisquare(observed, [e * scale for e in expected]).pvalue > 1e-3


def test_strength_and_plausibility_zero_are_the_experts_own_sampler(pair):
    how = Decoding(strength=0.0, plausibility=0.0, max_new_tokens=10, **FULL)
    assert_same(run(pair, how), run(pair.expert, how))
    assert tokens_of(run(pair, how)) != tokens_of(run(pair))


def test_strength_zero_with_plausibility_truncates_a_pair_as_it_does_the_expert(pair):
    how = Decoding(strength=0.0, plausibility=0.3, max_new_tokens=10)
    assert_same(run(pair, how), run(pair.expert, how))


@pytest.mark.parametrize("engine", ["static", "continuous"])
def test_strength_zero_does_not_run_the_amateur(pair, monkeypatch, engine):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the amateur ran")

    monkeypatch.setattr(pair.amateur, "forward", refuse)
    how = Decoding(strength=0.0, max_new_tokens=4)
    assert all(response.token_ids for response in run(pair, how, engine=engine))


def test_the_pairs_own_values_return_after_a_call_and_after_an_error(monkeypatch):
    pair = tiny.pair("llama", strength=0.25, plausibility=0.5).train()
    config = pair.generation_config

    def values() -> tuple[Any, ...]:
        return (pair.strength, pair.plausibility, pair.training)

    before = values()
    run(pair, Decoding(max_new_tokens=2))
    assert values() == before == (0.25, 0.5, True)

    def broken(*_: Any) -> None:
        assert (pair.strength, pair.plausibility, pair.training) == (1.0, 0.01, False)
        raise KeyError("broken")

    monkeypatch.setitem(decode.RUN, "static", broken)
    with pytest.raises(KeyError, match="broken"):
        run(pair, Decoding(max_new_tokens=2))
    assert values() == before
    assert pair.generation_config is config


@pytest.mark.parametrize("engine", ["static", "continuous"])
def test_a_checkpoints_own_generation_settings_change_nothing(model, engine):
    expected = run(model, SINGLE)
    own = tiny.model("llama", seed=5, scale=4.0)
    own.generation_config.update(
        do_sample=True, temperature=0.1, top_k=1, repetition_penalty=9.0, max_new_tokens=2
    )
    own.generation_config.bad_words_ids = [[response.token_ids[0]] for response in expected]
    assert_same(run(own, SINGLE, engine=engine), expected)


@pytest.mark.parametrize("engine", ["static", "continuous"])
def test_a_response_ends_with_any_of_the_experts_stop_tokens(model, engine):
    free = run(model, SINGLE)
    stopping = tiny.model("llama", seed=5, scale=4.0)
    stopping.generation_config.eos_token_id = [free[0].token_ids[3], free[1].token_ids[0]]
    stops = {TOKENIZER.eos_token_id, *stopping.generation_config.eos_token_id}
    responses = run(stopping, SINGLE, engine=engine)
    assert [len(tokens) for tokens in tokens_of(responses)[:2]] == [4, 1]
    assert responses[1].text == ""
    for made, whole in zip(responses, free, strict=True):
        cut = next((t for t, token in enumerate(whole.token_ids) if token in stops), 9)
        assert made.token_ids == whole.token_ids[: cut + 1]
        assert len(made.logprobs) == len(made.token_ids)
        assert made.is_completed == (made.token_ids[-1] in stops)
        kept = made.token_ids[:-1] if made.is_completed else made.token_ids
        assert made.text == TOKENIZER.decode(kept, skip_special_tokens=True)


def test_the_amateurs_stop_tokens_end_nothing(pair):
    amateurs = run(pair)[0].token_ids[0]
    other = tiny.pair("llama")
    other.amateur.generation_config.eos_token_id = amateurs
    assert_same(run(other), run(pair))


@pytest.mark.parametrize("engine", ["static", "continuous"])
def test_a_response_is_cut_at_max_new_tokens_and_a_shorter_one_is_its_beginning(pair, engine):
    long = run(pair, engine=engine)
    short = run(pair, Decoding(max_new_tokens=3, seed=7), engine=engine)
    for a, b in zip(short, long, strict=True):
        assert a.token_ids == b.token_ids[:3]
        assert a.is_completed == (b.is_completed and len(b.token_ids) <= 3)


def test_no_conversations_give_no_responses(model):
    for engine in ("static", "continuous"):
        assert generate(model, TOKENIZER, [], SINGLE, engine=engine, progress=False) == []


@pytest.mark.parametrize("engine", ["static", "continuous"])
def test_rows_without_a_prompt_become_responses_with_a_reason(model, engine):
    bad = [
        [],
        [{"role": "user"}],
        [{"role": "user", "content": 3}],
        ["hello"],
        [{"role": "user", "content": "a" * 600}],
    ]
    chats = [*bad[:3], CHATS[0], *bad[3:]]
    made = run(model, SINGLE, chats, ids=list("stuvwx"), engine=engine)
    assert [response.id for response in made] == list("stuvwx")
    assert [response.error is None for response in made] == [False] * 3 + [True] + [False] * 2
    assert_same(made[3:4], run(model, SINGLE, CHATS[:1], ids=["v"]))
    for i in (0, 1, 2, 4):
        assert made[i].error.startswith("no prompt could be made: ValueError: expected at least")
        assert 'message {"role": text, "content": text}; got' in made[i].error
        assert made[i].error.endswith("Give every message both.")
        assert (made[i].text, made[i].token_ids, made[i].logprobs) == ("", [], [])
        assert not made[i].is_completed
    assert made[5].error == (
        "the prompt is too long: expected at most 502 tokens (the model's 512 less "
        "max_new_tokens=10); got 603. Shorten the prompt or lower max_new_tokens."
    )


def test_the_shorter_context_of_a_pairs_models_limits_the_prompt():
    models = [tiny.model("llama", seed=s, max_position_embeddings=n) for s, n in ((0, 64), (1, 32))]
    pair = decode.ContrastivePair(*models)
    made = run(pair, Decoding(max_new_tokens=8), [CHATS[2], CHATS[1]])
    assert made[0].error is None
    assert "expected at most 24 tokens (the model's 32 less max_new_tokens=8)" in made[1].error


def test_a_limit_below_max_new_tokens_leaves_no_room_for_any_prompt(model):
    made = run(model, Decoding(strength=0.0), CHATS[:1])
    assert "expected at most 0 tokens (the model's 512 less max_new_tokens=4096)" in made[0].error


def test_a_template_that_refuses_a_conversation_gives_its_reason(model):
    strict = tiny.tokenizer()
    strict.chat_template = (
        "{% if messages[0]['role'] != 'user' %}{{ raise_exception('begin with the user') }}"
        "{% endif %}" + tiny.CHAT_TEMPLATE
    )
    chats = [[{"role": "system", "content": "x"}], CHATS[0]]
    made = generate(model, strict, chats, SINGLE, progress=False)
    assert made[0].error == "no prompt could be made: TemplateError: begin with the user"
    assert made[1].error is None


@pytest.mark.parametrize("changes", [{}, {"strength": 0.0}, {"plausibility": 0.3}, FULL])
def test_the_token_table_agrees_with_the_response_it_explains(pair, changes):
    how = Decoding(**({"max_new_tokens": 10} | changes))
    response = run(pair, how)[3]
    with pair.override(strength=how.strength, plausibility=how.plausibility):
        table = token_table(pair, TOKENIZER, CHATS[3], response)
    assert list(table.columns) == [
        "token",
        "token_id",
        "logp_expert",
        "logp_amateur",
        "logq",
        "n_plausible",
        "argmax_changed",
    ]
    assert table.token_id.tolist() == response.token_ids
    assert table.logq.tolist() == pytest.approx(response.logprobs, abs=1e-4)
    assert table.token.tolist() == [TOKENIZER.decode([token]) for token in response.token_ids]


def test_the_token_tables_other_columns_are_what_the_slow_oracle_says(pair):
    how, prompt = Decoding(max_new_tokens=8), prompt_ids(TOKENIZER, CHATS[0])
    answer = run(pair, how)[0].token_ids
    table = token_table(pair, TOKENIZER, CHATS[0], answer)
    plain = Decoding(strength=0.0, plausibility=0.0)
    for t, row in enumerate(table.itertuples()):
        ids = prompt + answer[:t]
        log_e = q_of(pair.expert, pair.expert, ids, plain)
        log_a = q_of(pair.amateur, pair.amateur, ids, plain)
        logq = q_of(pair.expert, pair.amateur, ids, how)
        assert row.logp_expert == pytest.approx(log_e[answer[t]], abs=1e-4)
        assert row.logp_amateur == pytest.approx(log_a[answer[t]], abs=1e-4)
        assert row.logq == pytest.approx(logq[answer[t]], abs=1e-4)
        assert row.n_plausible == np.isfinite(logq).sum()
        assert row.argmax_changed == (logq.argmax() != log_e.argmax())
    assert table.argmax_changed.any()


def test_the_token_table_reads_responses_ids_and_texts(pair):
    response = run(pair)[0]
    table = token_table(pair, TOKENIZER, CHATS[0], response)
    assert table.equals(token_table(pair, TOKENIZER, CHATS[0], tuple(response.token_ids)))
    by_text = token_table(pair, TOKENIZER, CHATS[0], "the mat")
    assert by_text.token_id.tolist() == TOKENIZER("the mat").input_ids
    assert "".join(by_text.token) == "the mat"


def test_a_token_that_the_pair_could_not_draw_has_log_q_of_minus_infinity(pair):
    with pair.override(plausibility=1.0):
        table = token_table(pair, TOKENIZER, CHATS[0], list(range(20, 40)))
    assert np.isneginf(table.logq).any()
    assert (table.n_plausible == 1).all()


def test_the_token_table_wants_a_pair_and_an_answer(pair, model):
    with pytest.raises(ValueError, match=r"compares two models; got a LlamaForCausalLM\. Make a"):
        token_table(model, TOKENIZER, CHATS[0], "the mat")
    for empty in ("", [], Response(id="x", error="none")):
        with pytest.raises(ValueError, match=r"an answer of at least one token; got") as error:
            token_table(pair, TOKENIZER, CHATS[0], empty)
        assert "Give a Response without an error, token ids or a text." in str(error.value)


def test_whatever_has_what_a_decoder_has_is_decoded(pair):
    class Held:
        generation_config, vocab_size = pair.generation_config, pair.vocab_size
        is_contrast, context, engines = True, pair.context, ("static",)
        deciding = staticmethod(pair.deciding)

    assert_same(run(Held()), run(pair))
    with pytest.raises(
        ValueError, match="a Held decodes with engine auto, static; got 'continuous'"
    ):
        run(Held(), engine="continuous")


def test_a_single_model_cannot_contrast(model):
    expected = r"no amateur to contrast: strength must be 0; got 1\.0"
    with pytest.raises(ValueError, match=expected) as error:
        run(model, Decoding(strength=1.0))
    assert "Use Decoding(strength=0), or a ContrastivePair." in str(error.value)


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ({"engine": "fast"}, "engine must be one of auto, static, continuous, vllm; got 'fast'."),
        ({"batch_size": 0}, "batch_size must be at least 1; got 0. None chooses one."),
        (
            {"ids": ["a"]},
            "expected an id for each of 5 conversations; got 1. Give as many, or None.",
        ),
        (
            {"ids": ["a", "b", 1, "1", "a"]},
            "ids must be unique, for equal ids share their noise; got more than once: 1, a. "
            "Rename them, or pass None.",
        ),
    ],
)
def test_arguments_out_of_range_are_refused(model, how, expected):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole message is compared
        run(model, SINGLE, **how)
    assert str(error.value) == expected


def test_a_tokenizer_without_a_chat_template_is_refused(model):
    bare = tiny.tokenizer()
    bare.chat_template = None
    with pytest.raises(ValueError, match=r"expected a tokenizer with a chat template; got none\."):
        generate(model, bare, CHATS, SINGLE)


def test_no_stop_token_at_all_is_refused():
    bare, model = tiny.tokenizer(), tiny.model("llama", seed=0)
    bare.eos_token = None
    model.generation_config.eos_token_id = None
    expected = r"expected a stop token from the tokenizer or the expert's generation_config; got no"
    with pytest.raises(ValueError, match=expected) as error:
        generate(model, bare, CHATS, SINGLE)
    assert "Set tokenizer.eos_token or generation_config.eos_token_id." in str(error.value)


def test_a_pair_with_more_ids_than_the_tokenizer_is_refused():
    pair = tiny.pair("llama", vocab_size=300)
    with pytest.raises(ValueError, match=r"a pair of at most 280 ids, .* \+ 1; got 300\.") as error:
        run(pair)
    assert "ContrastivePair(..., vocab_size=280)" in str(error.value)


def test_a_single_models_padded_vocabulary_is_never_drawn():
    model = tiny.model("llama", seed=1, vocab_size=400)
    made = run(model, Decoding(strength=0.0, plausibility=0.0, max_new_tokens=20))
    assert max(max(tokens) for tokens in tokens_of(made)) < len(TOKENIZER)


def test_the_engine_that_auto_chooses_is_said(model, caplog):
    with caplog.at_level(logging.INFO, logger="codit.decode"):
        automatic = run(model, SINGLE, engine="auto")
    assert "engine static (asked for: auto)" in caplog.text
    assert automatic == run(model, SINGLE, engine="static")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_pages_are_chosen_on_a_gpu_where_both_models_keys_have_one_shape(device, monkeypatch):
    pair = tiny.pair("llama")
    monkeypatch.setattr(type(pair), "device", torch.device(device))
    assert decode.chosen_engine(pair) == ("continuous" if device == "cuda" else "static")
    pair.amateur.config.num_key_value_heads = 1
    assert decode.chosen_engine(pair) == "static"
    assert decode.chosen_engine(pair, "continuous") == "continuous"


@pytest.mark.parametrize("engine", ["static", "continuous"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_whose_logits_are_no_numbers_is_an_error(bad, engine):
    pair = tiny.pair("llama")
    tokenizer = tiny.tokenizer()
    strange = prompt_ids(tokenizer, [{"role": "user", "content": "\x07"}])
    (only,) = set(strange) - set(prompt_ids(tokenizer, [{"role": "user", "content": "cat"}]))
    with torch.no_grad():
        pair.amateur.get_input_embeddings().weight[only] = bad
    chats = [[{"role": "user", "content": text}] for text in ("cat", "\x07", "house")]
    made = generate(pair, tokenizer, chats, Decoding(max_new_tokens=4), engine=engine)
    # On a CPU the library computes paged rows in one product, where 0 times NaN is NaN.
    answered = [response.error is None for response in made]
    assert answered == [True, False, True] if engine == "static" else not answered[1]
    assert made[1].error.startswith("bad logits: expected finite numbers; at token 1 of")
    assert (made[1].text, made[1].token_ids, made[1].logprobs) == ("", [], [])


def test_progress_is_shown_unless_it_is_not_wanted(model, capsys):
    run(model, SINGLE, progress=True)
    shown = capsys.readouterr().err
    assert "5/5" in shown
    assert "tokens/s" in shown
    run(model, SINGLE, progress=False)
    assert capsys.readouterr() == ("", "")
