"""IV: a planted head is found, what is written is what is read, and guidance by hand."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from codit import decode
from codit import instruction_vector as iv
from codit.engine import static
from codit.recipes import Decoding, Guidance
from tests import tiny

PROMPTS = [[7, 30, 41, 9], [12, 55, 60, 61, 8, 90], [100, 33, 2]]
ANSWERS = [[70, 71, 5], [80, 5], [90, 91]]
GREEDY = Decoding(strength=0.0, plausibility=0.0, temperature=0.0, max_new_tokens=8)
CHATS = [[{"role": "user", "content": text}] for text in ("the cat", "is it in the house? ten")]
every_kind = pytest.mark.parametrize("kind", [*iv.PATHS])


def model(kind: str = "llama", seed: int = 1, **changes: Any) -> Any:
    made = tiny.model(kind, seed=seed, **changes)
    for one in iv.Anatomy(made).projections:
        if one.bias is not None:
            nn.init.normal_(one.bias, generator=torch.Generator().manual_seed(seed))
    return made


def logits(made: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return made(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


def chosen(anatomy: iv.Anatomy, *heads: tuple[int, int]) -> torch.Tensor:
    found = torch.zeros(1, anatomy.n_layers, anatomy.n_heads, dtype=torch.bool)
    for layer, head in heads:
        found[0, layer, head] = True
    return found


def last(ids: list[int]) -> torch.Tensor:
    return torch.tensor([len(ids) - 1])


def n_hooks(made: Any) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in made.modules())


# ---- heads


@every_kind
def test_outputs_of_heads_are_what_a_prompt_alone_gives_its_projection(kind: str) -> None:
    made = model(kind)
    anatomy, seen = iv.Anatomy(made), {}
    found = iv.head_outputs(made, PROMPTS, rows=2)
    assert found.shape == (3, anatomy.n_layers, anatomy.n_heads, anatomy.width)
    assert anatomy.n_heads == 4, "query heads, where two share their keys too"
    for number, ids in enumerate(PROMPTS):
        for layer, one in enumerate(anatomy.projections):
            handle = one.register_forward_pre_hook(
                lambda _, args, layer=layer: seen.update({layer: args[0][0, -1]})
            )
            logits(made, ids)
            handle.remove()
            own = seen[layer].view(anatomy.n_heads, anatomy.width)
            torch.testing.assert_close(found[number, layer], own, rtol=1e-4, atol=1e-5)


@every_kind
def test_a_run_s_own_outputs_written_back_change_no_logit(kind: str) -> None:
    made, ids = model(kind), PROMPTS[1]
    anatomy = iv.Anatomy(made)
    own = iv.head_outputs(made, [ids])[0]
    every = torch.ones(1, anatomy.n_layers, anatomy.n_heads, dtype=torch.bool)
    with iv.writing(anatomy, own, every, last(ids)):
        written = logits(made, ids)
    torch.testing.assert_close(written, logits(made, ids), rtol=1e-4, atol=1e-4)
    with iv.writing(anatomy, own + 1, every, last(ids)):
        assert (logits(made, ids) - written).abs().max() > 0.1


@every_kind
def test_writing_into_a_head_is_adding_its_slice_of_the_projection(kind: str) -> None:
    made, ids = model(kind), PROMPTS[0]
    anatomy, place = iv.Anatomy(made), (1, 2)
    own = iv.head_outputs(made, [ids])[0]
    means = own + torch.randn(own.shape, generator=torch.Generator().manual_seed(0))
    added = anatomy.slice_of(*place) @ (means - own)[place]

    def hook(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return torch.cat([output[:, :-1], output[:, -1:] + added], 1)

    with iv.writing(anatomy, means, chosen(anatomy, place), last(ids)):
        written = logits(made, ids)
    handle = anatomy.projections[1].register_forward_hook(hook)
    projected = logits(made, ids)
    handle.remove()
    torch.testing.assert_close(written, projected, rtol=1e-4, atol=1e-4)
    assert (written - logits(made, ids)).abs().max() > 1e-3


@every_kind
def test_all_heads_add_up_to_the_projection_without_its_bias(kind: str) -> None:
    made = model(kind)
    anatomy, means = iv.Anatomy(made), iv.head_outputs(made, PROMPTS).mean(0)
    every = [(lay, k) for lay in range(anatomy.n_layers) for k in range(anatomy.n_heads)]
    total = torch.zeros(made.config.hidden_size)
    for layer, one in enumerate(anatomy.projections):
        with torch.no_grad():
            out = one(means[layer].flatten()[None])[0]
        total += out if one.bias is None else out - one.bias.detach()
    theta = iv.vector(made, means, every).theta
    torch.testing.assert_close(theta, total, rtol=1e-4, atol=1e-4)


@every_kind
@pytest.mark.parametrize("how", iv.HOW)
def test_a_head_whose_projection_is_nothing_has_no_effect_at_all(kind: str, how: str) -> None:
    made = model(kind)
    with torch.no_grad():
        iv.Anatomy(made).slice_of(1, 3).zero_()
    means = iv.head_outputs(made, PROMPTS).mean(0) + 1
    for found in iv.indirect_effects(made, PROMPTS, ANSWERS, means, how=how):
        assert found.shape == (3, 2, 4)
        assert found[:, 1, 3].tolist() == [0, 0, 0]
        assert (found.flatten(1)[:, :7].abs().amax(0) > 0).all()


@every_kind
@pytest.mark.parametrize("place", [(0, 1), (1, 2)])
@pytest.mark.parametrize("how", iv.HOW)
def test_a_planted_head_is_the_first(kind: str, place: tuple[int, int], how: str) -> None:
    """Its mean output, and no other head's, is made to write a label to the residual stream."""
    made, label = model(kind, scale=2.0), 77
    means = iv.head_outputs(made, PROMPTS).mean(0)
    with torch.no_grad():
        towards = made.get_output_embeddings().weight[label]
        mine = means[place] / means[place].norm().square()
        iv.Anatomy(made).slice_of(*place).add_(30 * torch.outer(towards / towards.norm(), mine))
    other = [[5, 17, 44], [6, 40, 81, 82]]
    found = iv.indirect_effects(made, other, [[label]] * 2, means, how=how)
    assert iv.top(found.first, 1)[0][:2] == place
    assert iv.top(found.answer, 1)[0][:2] == place


def test_effects_are_those_of_one_head_and_one_prompt_at_a_time() -> None:
    made = model("qwen3")
    anatomy, means = iv.Anatomy(made), iv.head_outputs(made, PROMPTS).mean(0)
    found = iv.indirect_effects(made, PROMPTS, ANSWERS, means, rows=3)
    for number, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        (before,) = iv.answer_logprobs(made, [prompt], [answer])
        with iv.writing(anatomy, means, chosen(anatomy, (0, 3)), last(prompt)):
            (after,) = iv.answer_logprobs(made, [prompt], [answer])
        first = (after[0].exp() - before[0].exp()).item()
        assert found.first[number, 0, 3].item() == pytest.approx(first, abs=1e-5)
        whole = (after - before).mean().item()
        assert found.answer[number, 0, 3].item() == pytest.approx(whole, abs=1e-4)


def test_heads_written_into_together_are_one_set() -> None:
    made = model("gpt2")
    anatomy, means = iv.Anatomy(made), iv.head_outputs(made, PROMPTS).mean(0)
    both = [(0, 1), (1, 0)]
    found = iv.effects(made, PROMPTS[:1], [[70]], means, [both, [both[0]], []]).first
    with iv.writing(anatomy, means, chosen(anatomy, *both), last(PROMPTS[0])):
        after = logits(made, PROMPTS[0]).softmax(-1)[70]
    before = logits(made, PROMPTS[0]).softmax(-1)[70]
    assert found[0, 0].item() == pytest.approx((after - before).item(), abs=1e-5)
    assert found[0, 2].item() == 0


def test_log_probabilities_of_padded_answers_are_those_of_each_alone() -> None:
    made = model("gpt_neox")
    found = iv.answer_logprobs(made, PROMPTS, ANSWERS)
    for got, prompt, answer in zip(found, PROMPTS, ANSWERS, strict=True):
        expected = [
            logits(made, prompt + answer[:t]).log_softmax(-1)[token].item()
            for t, token in enumerate(answer)
        ]
        assert got.tolist() == pytest.approx(expected, abs=1e-4)


def test_of_equal_effects_the_first_head_comes_first() -> None:
    table = torch.tensor([[0.0, 2.0], [2.0, 1.0]])
    assert [head[:2] for head in iv.top(table, 3)] == [(0, 1), (1, 0), (1, 1)]
    assert iv.top(torch.stack([table, 3 * table]), 1) == [iv.Head(0, 1, 4.0)]


# ---- prompts without their instruction

ASKED = [
    iv.Asked(task="Where?", instruction="In capitals."),
    iv.Asked(task="Who?", instruction="In capitals."),
    iv.Asked(task="When?", instruction="Twice."),
]


def test_an_instruction_is_removed_or_taken_from_the_next_row_with_another() -> None:
    texts = {
        how: [c[-1]["content"] for c in iv.corrupted(ASKED, how)] for how in iv.CORRUPTIONS[:2]
    }
    assert texts["removed"] == ["Where?", "Who?", "When?"]
    assert texts["mismatched"] == ["Where? Twice.", "Who? Twice.", "When? In capitals."]
    assert ASKED[0].chat()[-1]["content"] == "Where? In capitals."


def test_demonstrations_keep_their_tasks_when_their_answers_are_shuffled() -> None:
    shown = tuple((f"x{n}", f"y{n}") for n in range(6))
    (chat,) = iv.corrupted([iv.Asked(task="x", instruction="c", demonstrations=shown)], "shuffled")
    turns = [turn["content"] for turn in chat]
    assert turns[:-1:2] == [f"x{n} c" for n in range(6)]
    assert sorted(turns[1::2]) == [f"y{n}" for n in range(6)]
    assert turns[1::2] != [f"y{n}" for n in range(6)]
    assert turns[-1] == "x c"


# ---- intervention


@every_kind
def test_gamma_0_changes_nothing_and_gamma_1_adds_the_vector_once(kind: str) -> None:
    made, ids = model(kind), PROMPTS[0]
    theta = torch.randn(32, generator=torch.Generator().manual_seed(0))
    before = logits(made, ids)
    with iv.intervene(made, theta, layer=1, gamma=0.0):
        assert torch.equal(logits(made, ids), before)
    with torch.no_grad():
        hidden = made(torch.tensor([ids]), output_hidden_states=True).hidden_states
    seen = {}
    block = iv.Anatomy(made).blocks[1]
    with iv.intervene(made, theta, layer=0, gamma=2.0):
        handle = block.register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
        logits(made, ids)
        handle.remove()
    torch.testing.assert_close(seen["x"][0, -1], hidden[1][0, -1] + 2 * theta, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen["x"][0, :-1], hidden[1][0, :-1], rtol=1e-4, atol=1e-4)


@every_kind
def test_generation_adds_the_vector_at_every_step_as_a_plain_loop_does(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, tokenizer = model(kind), tiny.tokenizer()
    theta = 4 * torch.randn(32, generator=torch.Generator().manual_seed(3))
    prompts = [decode.prompt_ids(tokenizer, chat) for chat in CHATS]
    expected, plain = [], decode.generate(made, tokenizer, CHATS, GREEDY, progress=False)
    block = iv.Anatomy(made).blocks[0]

    def hook(module: nn.Module, args: Any, output: torch.Tensor, n: int) -> torch.Tensor:
        output = output.clone()
        output[:, n - 1 :] += theta  # every step's last position was once the last
        return output

    for prompt in prompts:
        ids, asked = list(prompt), len(prompt)
        handle = block.register_forward_hook(
            lambda module, args, output, n=asked: hook(module, args, output, n)
        )
        for _ in range(8):
            ids.append(int(logits(made, ids)[: len(tokenizer)].argmax()))
        handle.remove()
        expected.append(ids[asked:])
    monkeypatch.setattr(static, "PREFILL_TOKENS", 4)  # a prompt in pieces would end too often
    with iv.intervene(made, theta, layer=0) as steered:
        found = decode.generate(steered, tokenizer, CHATS, GREEDY, progress=False)
    for row, ids in zip(found, expected, strict=True):
        assert row.token_ids == ids[: len(row.token_ids)]
    assert [row.text for row in found] != [row.text for row in plain]
    again = decode.generate(made, tokenizer, CHATS, GREEDY, progress=False)
    assert [row.token_ids for row in again] == [row.token_ids for row in plain]


def test_the_continuous_engine_refuses_an_intervention() -> None:
    made, tokenizer = model("llama"), tiny.tokenizer()
    with iv.intervene(made, torch.ones(32), layer=0) as steered:
        assert decode.chosen_engine(steered) == "static"
        with pytest.raises(ValueError, match="decodes with engine auto, static; got 'continuous'"):
            decode.generate(steered, tokenizer, CHATS, GREEDY, engine="continuous", progress=False)
    assert "continuous" in decode.Single(made).engines


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_pair_whose_expert_is_changed_is_not_decoded_from_a_paged_cache() -> None:
    pair, tokenizer = tiny.pair("llama"), tiny.tokenizer()
    how = Decoding(temperature=0.0, max_new_tokens=2)
    with (
        iv.intervene(pair.expert, torch.ones(32), layer=0),
        pytest.raises((ValueError, RuntimeError), match="static engine"),
    ):
        decode.generate(pair, tokenizer, CHATS, how, engine="continuous", progress=False)


def test_no_hook_is_left_behind_whatever_happens() -> None:
    made = model("llama")
    anatomy, before = iv.Anatomy(made), n_hooks(made)
    means = torch.zeros(2, 4, 8)
    places = (
        iv.intervene(made, torch.ones(32), layer=1),
        iv.writing(anatomy, means, chosen(anatomy, (0, 0)), torch.tensor([0])),
        iv.reading(anatomy, torch.tensor([0])),
    )
    for place in places:
        with pytest.raises(KeyError, match="True"), place:
            {}[n_hooks(made) > before]  # hooks are there, and then an error
        assert n_hooks(made) == before
    assert made.reads_whole is False
    with pytest.raises(IndexError):  # a model that fails while its heads are read
        iv.head_outputs(made, [[10_000]])
    assert n_hooks(made) == before


# ---- files, and what is refused


def test_a_vector_read_again_is_the_one_written(tmp_path: Path) -> None:
    made = model("qwen3")
    means = iv.head_outputs(made, PROMPTS).mean(0)
    mine = iv.vector(made, means, [iv.Head(1, 2, 0.25), (0, 3)])
    found = iv.load(iv.save(mine, tmp_path / "new" / "capitals.safetensors"))
    assert torch.equal(found.theta, mine.theta)
    assert str(found.heads) == str(mine.heads)
    with iv.intervene(made, found, layer=0):
        pass
    for other in (model("llama"), model("qwen3", num_hidden_layers=3)):
        with (
            pytest.raises(ValueError, match="expected a vector of this kind of model"),
            iv.intervene(other, found, layer=0),
        ):
            pass


@pytest.mark.parametrize("kind", iv.POST_NORM)
def test_a_model_that_normalises_after_its_projection_is_warned_of(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "codit"):
        iv.vector(model(kind), torch.zeros(2, 4, 8), [(0, 0)])
    assert "normalises after its output projection" in caplog.text


def test_what_cannot_be_is_one_line(tmp_path: Path) -> None:
    made = model("llama")
    means = torch.zeros(2, 4, 8)
    (tmp_path / "text").write_text("no tensors")
    (tmp_path / "other").write_bytes(safetensors.torch.save({"x": torch.zeros(1)}))
    refused = [
        (lambda: iv.head_outputs(made, []), "one prompt that the model answers correctly"),
        (lambda: iv.vector(made, means, [(2, 0)]), r"below \(2, 4\); got \(2, 0\)"),
        (lambda: iv.vector(made, means, [(0, -1)]), r"below \(2, 4\); got \(0, -1\)"),
        (lambda: iv.vector(made, means, []), "at least one head"),
        (lambda: iv.effects(made, [[1]], [[2]], means, [[(0, 4)]]), r"got \(0, 4\)"),
        (lambda: iv.effects(made, [[1]], [[]], means, [[(0, 1)]]), "at least one token"),
        (lambda: iv.effects(made, [[1]], [[2]], means[:1], [[(0, 1)]]), "Take those of this model"),
        (lambda: iv.indirect_effects(made, [[1]], [[2]], means, how="mix"), "how must be one of"),
        (lambda: iv.intervene(made, torch.ones(33), layer=0).__enter__(), "width 32; got .33."),
        (lambda: iv.intervene(made, torch.ones(32), layer=2).__enter__(), "layer below 2; got 2"),
        (lambda: iv.top(torch.zeros(2, 4), 9), "between 1 and 8 heads; got 9"),
        (lambda: iv.corrupted(ASKED[:2], "mismatched"), "two instructions or more"),
        (lambda: iv.corrupted(ASKED, "shuffled"), "two demonstrations or more"),
        (lambda: iv.corrupted(ASKED, "burnt"), "how must be one of removed"),
        (lambda: iv.Anatomy(tiny.model("qwen3_moe", seed=1)), "heads are known, llama"),
        (lambda: iv.load(tmp_path / "none"), "there is none"),
        (lambda: iv.load(tmp_path / "text"), "holds no instruction vector"),
        (lambda: iv.load(tmp_path / "other"), "holds no instruction vector"),
        (lambda: Guidance(schedule="up"), "schedule must be one of none, subtracted, added"),
    ]
    for call, said in refused:
        with pytest.raises(ValueError, match=said) as caught:
            call()
        assert "\n" not in str(caught.value)


# ---- guidance


def test_the_divergence_is_the_one_by_hand_and_no_gradient_reaches_the_reference() -> None:
    student = torch.tensor([2.0, 0.0], requires_grad=True)
    reference = torch.tensor([0.0, 0.0], requires_grad=True)
    found = iv.divergence(student, reference)
    found.backward()
    p = 0.7310586  # of a logistic at 2 / 2
    assert found.item() == pytest.approx(p * 0.379885 + (1 - p) * -0.620115, abs=1e-5)
    assert reference.grad is None
    assert student.grad is not None
    assert student.grad.abs().sum() > 0


def test_a_student_that_is_the_reference_diverges_by_nothing_and_has_no_gradient() -> None:
    student = torch.randn(2, 5, 7, requires_grad=True)
    iv.divergence(student, student.detach()).sum().backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 1e-7


def test_a_term_at_exactly_its_threshold_is_absent() -> None:
    for value, kept in ((0.1, 0.0), (0.1001, 0.1001)):
        term = torch.tensor(value, dtype=torch.float64, requires_grad=True)
        found = iv.gated(term * 1, 0.1)
        assert found.item() == kept
        assert found.requires_grad == bool(kept)
    drift = torch.tensor([[[0.1], [0.2]]], dtype=torch.float64)
    still = torch.zeros_like(drift)
    assert iv.head_drift(drift, still, 0.1**2).item() == pytest.approx(0.04)


def test_the_penalty_weighs_the_last_prompt_position_and_the_others() -> None:
    noise = torch.Generator().manual_seed(0)
    student, reference = (torch.randn(2, 5, 7, generator=noise) * 4 for _ in range(2))
    labels = torch.tensor([[-100, -100, 3, 4, -100], [-100, 1, 2, 3, 4]])
    assert iv.last_prompt(labels).tolist() == [1, 0]
    k = iv.divergence(student, reference)
    first = (k[0, 1] + k[1, 0]) / 2
    answer = (k[0, 1:3].sum() + k[1, :4].sum()) / 2
    for reach, second in (("all", k.sum() / 2), ("answer", answer)):
        how = Guidance(last=20.0, all=0.1, reach=reach)
        found = iv.penalty(student, reference, labels, how)
        assert found.item() == pytest.approx((20 * first + 0.1 * second).item(), rel=1e-5)
    far = Guidance(gate=1e6)
    assert iv.penalty(student, reference, labels, far).item() == 0


def test_both_schedules_are_those_of_their_sources() -> None:
    taken = {t: iv.subtracted(t, 80) for t in (0, 19, 20, 21, 24, 25, 40, 58, 60, 61, 79)}
    assert taken == {
        0: 1.0, 19: 1.0, 20: 1.0, 21: 0.9, 24: 0.9, 25: 0.8, 40: 0.5, 58: 0.0, 60: 0.0, 61: 0.0,
        79: 0.0,
    }  # fmt: skip
    assert [iv.added(t, 8) for t in (0, 1, 2, 4, 7)] == [1.0, 0.75, 0.5, 0.0, 0.0]
    assert iv.added(1, 8, until=0.25) == 0.5
