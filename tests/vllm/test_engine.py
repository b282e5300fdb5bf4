"""What vLLM draws from the pair: the right distribution, and one noise per row."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from scipy.stats import chisquare

from codit import decode
from codit.contrast import contrast
from codit.engine.chat import prompt_ids
from codit.pair import ContrastivePair
from codit.recipes import Decoding
from tests import tiny
from tests.benchmarks import random_pairs
from tests.vllm.conftest import started

WORDS = "the cat sat on a mat and then there were ten of them in the house".split()
CHATS = [
    [{"role": "user", "content": " ".join(WORDS[i % 5 : i % 5 + 3 + i % 9])}] for i in range(24)
]
GREEDY = {"temperature": 0.0}
PREFIX = "the cat sat on a mat and then there were ten of them in the house " * 3
SHARED = [[{"role": "user", "content": PREFIX + word}] for word in WORDS]
SMALL = {
    "disable_log_stats": False,
    "num_gpu_blocks_override": 8,
    "block_size": 32,
    "max_model_len": 128,
}
RANDOM = Decoding(max_new_tokens=20, plausibility=0.05)
QUIET = {"progress": False}


def texts(pair, decoding=RANDOM, chats=CHATS, ids=None):
    made = decode.generate(pair, tiny.tokenizer(), chats, decoding, ids=ids, **QUIET)
    assert [one.error for one in made] == [None] * len(chats)
    return [one.token_ids for one in made]


@pytest.fixture(scope="module")
def llama(saved):
    with started(*saved("llama"), RANDOM, max_num_seqs=256) as pair:
        yield pair


@pytest.fixture(scope="module")
def baseline(llama):
    """What other engines should say; drawn before one is closed, for that ends all of a process."""
    return {"random": texts(llama), "shared": texts(llama, replace(RANDOM, **GREEDY), SHARED)}


@pytest.fixture(scope="module")
def library(saved):
    return ContrastivePair.from_pretrained(*saved("llama"), dtype=torch.float32)


@pytest.mark.parametrize("how", [{}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.7}])
def test_first_tokens_follow_the_contrastive_distribution(llama, library, how, capsys):
    decoding = replace(RANDOM, max_new_tokens=1, **how)
    rows = 20_000 if not how else 4_000
    made = decode.generate(
        llama, tiny.tokenizer(), CHATS[:1] * rows, decoding, ids=[str(i) for i in range(rows)],
        **QUIET,
    )  # fmt: skip
    drawn = torch.tensor([one.token_ids[0] for one in made])
    ids = torch.tensor([prompt_ids(tiny.tokenizer(), CHATS[0])])
    z_expert, z_amateur = (z[0, -1] for z in library.both_logits(ids))
    logq = contrast(z_expert, z_amateur, plausibility=decoding.plausibility)
    expected = (logq / decoding.temperature).softmax(-1)
    if decoding.top_k:
        kept = expected.topk(decoding.top_k).indices
        expected = torch.zeros_like(expected).scatter(0, kept, expected[kept])
    if decoding.top_p < 1:
        order = expected.argsort(descending=True)
        before = expected[order].cumsum(0) - expected[order]
        expected[order[before > decoding.top_p]] = 0
    expected = expected / expected.sum()
    counts = torch.bincount(drawn, minlength=len(expected)).double()
    assert counts[expected == 0].sum() == 0, "no implausible id is ever drawn"
    likely = expected * rows >= 5
    observed = [*counts[likely].tolist(), float(counts[~likely].sum())]
    hoped = [*(expected[likely] * rows).tolist(), float(expected[~likely].sum()) * rows]
    if hoped[-1] < 5:  # too few for a class of their own
        observed, hoped = observed[:-1], hoped[:-1]
        hoped = [h * sum(observed) / sum(hoped) for h in hoped]
    found = chisquare(observed, hoped)
    with capsys.disabled():
        told = f"{rows} first tokens, {len(hoped)} classes, p = {found.pvalue:.3f}"
        print(f"\nchi2 {how or 'plain'}: {told}")
    assert found.pvalue > 1e-3
    for one in made[:200]:  # log q at temperature 1, whatever the token was drawn with
        assert one.logprobs[0] == pytest.approx(float(logq[one.token_ids[0]]), abs=1e-4)


def test_equal_seeds_repeat_and_others_differ(llama):
    first = texts(llama)
    assert texts(llama) == first
    assert texts(llama, replace(RANDOM, seed=1)) != first
    assert texts(llama, replace(RANDOM, sample=1)) != first


def test_two_rows_share_no_noise(llama):
    same = texts(llama, chats=CHATS[:1] * 16, ids=list(range(16)))
    assert len({tuple(one) for one in same}) > 8
    again = texts(llama, chats=CHATS[:1] * 4, ids=[12, 3, 7, 0])
    assert again == [same[12], same[3], same[7], same[0]], "a row's noise is its own"


def test_a_cache_too_small_for_all_gives_the_same_texts(saved, baseline):
    """With 8 pages of 32 tokens requests are preempted and computed again."""
    with started(*saved("llama"), RANDOM, **SMALL) as pair:
        assert texts(pair) == baseline["random"]
        found = preemptions(pair)
    assert found > 0


def preemptions(pair):
    from vllm.v1.metrics.reader import Counter

    metrics = pair.engine.get_metrics()
    return sum(m.value for m in metrics if isinstance(m, Counter) and "preemption" in m.name)


@pytest.mark.parametrize("caches", [True, False])
def test_prefix_caching_changes_no_text(saved, baseline, caches):
    greedy = replace(RANDOM, **GREEDY)
    with started(*saved("llama"), RANDOM, enable_prefix_caching=caches) as pair:
        assert texts(pair, greedy, SHARED) == baseline["shared"]
        assert texts(pair, greedy, SHARED) == baseline["shared"], "from the cache, too"


def test_five_hundred_requests_of_long_tailed_length_complete(tmp_path):
    """A pair that counts down from the prompt's last word: each answer's length is known."""
    shape = random_pairs.SHAPES["micro"]
    tokenizer = random_pairs.tokenizer(shape.vocabulary)
    counting = random_pairs.countdown(shape)
    for half, name in ((counting.expert, "expert"), (counting.amateur, "amateur")):
        half.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    asked = random_pairs.lengths(500, 20.0, most=400)
    chats = [random_pairs.chat([1 + row, 7, 7, length]) for row, length in enumerate(asked)]
    long = Decoding(max_new_tokens=max(asked))
    names = str(tmp_path / "expert"), str(tmp_path / "amateur")
    with started(*names, long, max_num_seqs=64) as pair:
        made = decode.generate(pair, tokenizer, chats, long, **QUIET)
    assert [len(one.token_ids) for one in made] == asked
    assert all(one.is_completed for one in made)
    assert max(asked) > 10 * sorted(asked)[250], "the lengths have a long tail"


def test_rows_of_a_padded_vocabulary_are_never_drawn(saved):
    hot = Decoding(max_new_tokens=12, plausibility=0.0)
    with started(*saved("llama", vocab_size=320), hot) as pair:
        drawn = [token for row in texts(pair, hot) for token in row]
    assert max(drawn) < len(tiny.tokenizer()) < 320


def test_without_strength_the_expert_is_truncated_and_no_amateur_is_loaded(saved, library):
    alone = Decoding(strength=0.0, temperature=0.0, max_new_tokens=16, plausibility=0.3)
    expert, _ = saved("llama")
    expected = decode.generate(library.expert, tiny.tokenizer(), CHATS[:8], alone, **QUIET)
    with started(expert, "", alone) as pair:
        made = decode.generate(pair, tiny.tokenizer(), CHATS[:8], alone, **QUIET)
    assert [one.token_ids for one in made] == [one.token_ids for one in expected]


def test_a_row_without_numbers_is_an_error_of_its_own(saved, tmp_path):
    """One token of the amateur's vocabulary has a broken embedding; only its row meets it."""
    expert, amateur = saved("llama")
    pair = ContrastivePair.from_pretrained(expert, amateur, dtype=torch.float32)
    tokenizer = tiny.tokenizer()
    bad = tokenizer.encode("?", add_special_tokens=False)[0]
    with torch.no_grad():
        pair.amateur.get_input_embeddings().weight[bad] = float("nan")
    pair.amateur.save_pretrained(tmp_path / "amateur")
    tiny.tokenizer(eos_token=tiny.EOS).save_pretrained(tmp_path / "amateur")
    chats = [*CHATS[:3], [{"role": "user", "content": "cat?"}], *CHATS[3:6]]
    greedy = replace(RANDOM, temperature=0.0, plausibility=0.3)
    with started(expert, str(tmp_path / "amateur"), greedy) as broken:
        made = decode.generate(broken, tokenizer, chats, greedy, **QUIET)
    assert made[3].error is not None
    assert made[3].error.startswith("bad logits: ")
    assert [one.error for one in made[:3] + made[4:]].count(None) >= 5


def test_two_bfloat16_models_are_contrasted_in_float32(saved, library, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)  # no stand-ins for it
    one = replace(RANDOM, temperature=0.0, max_new_tokens=1, plausibility=0.05)
    with started(*saved("llama"), one, dtype="bfloat16") as pair:
        made = decode.generate(pair, tiny.tokenizer(), CHATS, one, **QUIET)
    expected = decode.generate(library, tiny.tokenizer(), CHATS, one, **QUIET)
    same = [a.token_ids == b.token_ids for a, b in zip(made, expected, strict=True)]
    assert sum(same) >= 0.7 * len(same), "weights in bfloat16 move a few"
