"""CTD: its loss by hand, what is tuned and what is not, and what is written, read and refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from codit import contrastive_tuning as ctd
from codit import decode
from codit.recipes import Decoding, File, Model, Tuning, canonical
from codit.training import loop
from tests import tiny

ROWS = [
    {"instruction": "the cat", "response": "is on the mat"},
    {"instruction": "is it in the house?", "response": "ten of them"},
]
CHATS = [[{"role": "user", "content": row["instruction"]}] for row in ROWS]
Z, SEEN = torch.tensor([[[2.0, 1.0, 0.0]]]), torch.tensor([[[1.0, 2.0, 0.0]]])
LABEL = torch.tensor([[0]])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    tiny.model("llama", seed=1).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def recipe(base: str, **changes: Any) -> Tuning:
    quick = {"learning_rate": 3e-2, "epochs": 20.0, "batch": 2, "prefix": 4}
    return Tuning(base=Model(name=base), data=File(path="unread"), **(quick | changes))


@pytest.fixture(scope="module", autouse=True)
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A file that recipes name: its content is a part of their keys."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("data"))
        Path("unread").write_text("rows")
        yield


def losses(out: Path) -> list[float]:
    return [one["loss"] for one in json.loads((out / "training_log.json").read_text())["losses"]]


def test_the_loss_and_its_gradient_are_those_by_hand() -> None:
    seen, z = SEEN.clone().requires_grad_(), Z.clone().requires_grad_()
    found = ctd.loss(z, seen, LABEL, strength=0.3)
    found.backward()
    assert found.item() == pytest.approx(0.375154, abs=1e-6)
    assert seen.grad is not None
    assert seen.grad.flatten().tolist() == pytest.approx([0.093845, -0.056184, -0.037661], abs=1e-6)
    assert z.grad is None


def test_equal_views_are_one_view_at_a_higher_temperature_unless_the_scale_is_kept() -> None:
    assert ctd.loss(Z, Z, LABEL, strength=0.3).item() == pytest.approx(0.555712, abs=1e-6)
    kept = ctd.loss(Z, Z, LABEL, strength=0.3, scale=1.3).item()
    assert kept == pytest.approx(0.407606, abs=1e-6)


def test_a_shift_of_the_second_view_and_what_bears_no_label_change_nothing() -> None:
    shifted = ctd.loss(Z, SEEN + 7, LABEL, strength=0.3)
    assert shifted.item() == pytest.approx(0.375154, abs=1e-5)
    two = [torch.cat([one, one.flip(-1)], 1) for one in (Z, SEEN)]
    both = ctd.loss(*two, torch.tensor([[0, -100]]), strength=0.3)
    assert both.item() == pytest.approx(0.375154, abs=1e-6)


def test_tuning_moves_the_prefix_alone_and_lowers_the_loss(base: str, tmp_path: Path) -> None:
    before = {n: w.clone() for n, w in tiny.model("llama", seed=1).named_parameters()}
    out = ctd.tune(recipe(base), ROWS, tmp_path / "prefix")
    assert losses(out)[-1] < 0.8 * losses(out)[0]
    after = tiny.model("llama", seed=1)
    log = json.loads((out / "training_log.json").read_text())
    assert log["parameters"] == 4 * after.get_input_embeddings().embedding_dim
    assert {path.name for path in out.iterdir()} >= {ctd.CONFIG, ctd.WEIGHTS, "tokenizer.json"}
    assert all(torch.equal(w, before[n]) for n, w in after.named_parameters())


def test_at_strength_0_the_prefix_stays_where_it_began(base: str, tmp_path: Path) -> None:
    out = ctd.tune(recipe(base, strength=0.0, epochs=2.0), ROWS, tmp_path / "still")
    model = tiny.model("llama", seed=1)
    start = ctd.SoftPrefix(model, recipe(base), len(tiny.tokenizer())).prompt_embeddings
    tuned = ctd.two_views(model, tiny.tokenizer(), out).prefix
    assert tuned is not None
    assert torch.equal(tuned, start.detach())


@torch.no_grad()
def test_a_padded_batch_has_the_loss_of_two_passes_of_each_row(base: str) -> None:
    model, tokenizer = tiny.model("llama", seed=1), tiny.tokenizer()
    tuned = ctd.SoftPrefix(model, recipe(base), len(tokenizer))
    embed, prefix = model.get_input_embeddings(), tuned.prompt_embeddings[None]
    rows, expected = [], 0.0
    for text, labelled in (("the cat is on the mat", 5), ("is it in", 2)):
        ids = tokenizer(text)["input_ids"]
        rows.append({"input_ids": ids, "labels": [-100] * (len(ids) - labelled) + ids[-labelled:]})
        own = embed(torch.tensor([ids]))
        z = model(inputs_embeds=own).logits[0]
        seen = model(inputs_embeds=torch.cat([prefix, own], 1)).logits[0, 4:]
        scores = (z - 0.3 * seen)[-labelled - 1 : -1].log_softmax(-1)
        expected -= scores.gather(1, torch.tensor(ids[-labelled:])[:, None]).sum().item()
    assert len(rows[0]["input_ids"]) != len(rows[1]["input_ids"])
    assert tuned(**ctd.padded(rows)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_peft_reads_what_was_written(base: str, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    out = ctd.tune(recipe(base, epochs=1.0), ROWS, tmp_path / "prefix")
    model = peft.PeftModel.from_pretrained(tiny.model("llama", seed=1), str(out))
    tuned = ctd.two_views(tiny.model("llama", seed=1), tiny.tokenizer(), out).prefix
    (prompt,) = model.prompt_encoder.values()
    assert torch.equal(prompt.embedding.weight.detach(), tuned)


def test_a_tuning_that_was_killed_goes_on_to_the_same_prefix(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, step = recipe(base, epochs=6.0), ctd.PrefixTrainer.training_step
    whole = ctd.tune(mine, ROWS, tmp_path / "whole")
    calls = list[int]()

    def killed(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(ctd.PrefixTrainer, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        ctd.tune(mine, ROWS, tmp_path / "killed", save_every=2)
    out = ctd.tune(mine, ROWS, tmp_path / "killed", save_every=2)
    assert (out / ctd.WEIGHTS).read_bytes() == (whole / ctd.WEIGHTS).read_bytes()
    done = len(calls)
    assert ctd.tune(mine, ROWS, tmp_path / "killed") == out
    assert len(calls) == done, "finished: nothing is done again"
    with pytest.raises(ValueError, match="holds a finished model"):
        ctd.tune(recipe(base, seed=1), ROWS, out)


def test_a_tuning_keeps_the_date_and_the_revision_that_it_began_with(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dated = Path(shutil.copytree(base, tmp_path / "dated"))
    (dated / "chat_template.jinja").write_text(tiny.DATED_TEMPLATE)
    monkeypatch.setattr(loop, "datetime", tiny.Day)
    mine, asked = recipe(str(dated), epochs=1.0), list[Any]()
    mine = replace(mine, base=replace(mine.base, revision="v2"))
    real = ctd.load_tokenizer
    monkeypatch.setattr(ctd, "load_tokenizer", lambda *a, **k: (asked.append(k), real(*a, **k))[1])
    out = ctd.tune(mine, ROWS, tmp_path / "prefix")
    assert asked == [{"revision": "v2"}]
    monkeypatch.setattr(tiny.Day, "day", "2026-11-29")
    assert ctd.tune(mine, ROWS, out) == out, "finished yesterday, it is not refused today"
    log = json.loads((out / "training_log.json").read_text())
    assert log["made_of"]["date"] == "2026-11-28T00:00:00"


@torch.no_grad()
def test_prompt_tuning_has_the_loss_of_the_prefixed_view_alone(base: str) -> None:
    model, tokenizer = tiny.model("llama", seed=1), tiny.tokenizer()
    tuned = ctd.SoftPrefix(model, recipe(base, contrasts=False), len(tokenizer))
    ids = tokenizer("the cat is on the mat")["input_ids"]
    own = model.get_input_embeddings()(torch.tensor([ids]))
    seen = model(inputs_embeds=torch.cat([tuned.prompt_embeddings[None], own], 1)).logits[0, 4:]
    seen = seen[:, : len(tokenizer)].log_softmax(-1)
    expected = -sum(seen[t - 1, ids[t]].item() for t in range(1, len(ids)))
    row = {"input_ids": ids, "labels": ids}
    assert tuned(**ctd.padded([row])).item() == pytest.approx(expected, rel=1e-5)


def test_a_prompt_tuned_model_answers_as_it_does_behind_its_prefix(
    base: str, tmp_path: Path
) -> None:
    out = ctd.tune(recipe(base, contrasts=False), ROWS, tmp_path / "prompt")
    assert losses(out)[-1] < 0.8 * losses(out)[0]
    model, tokenizer = tiny.model("llama", seed=1), tiny.tokenizer()
    one = ctd.two_views(model, tokenizer, out, second_alone=True)
    how = Decoding(strength=0.0, plausibility=0.0, temperature=0.0, max_new_tokens=8)
    found = decode.generate(one, tokenizer, CHATS, how, progress=False)
    plain = decode.generate(model, tokenizer, CHATS, how, progress=False)
    assert [r.token_ids for r in found] != [r.token_ids for r in plain]
    assert one.prefix is not None
    for chat, response in zip(CHATS, found, strict=True):
        drawn = list[int]()
        while len(drawn) < len(response.token_ids):
            ids = torch.tensor([decode.prompt_ids(tokenizer, chat) + drawn])
            read = torch.cat([one.prefix[None], model.get_input_embeddings()(ids)], 1)
            drawn.append(int(model(inputs_embeds=read).logits[0, -1, : len(tokenizer)].argmax()))
        assert response.token_ids == drawn
    with pytest.raises(ValueError, match=r"one view has nothing to contrast with"):
        decode.generate(one, tokenizer, CHATS, Decoding(strength=0.3), progress=False)


def test_a_tuning_from_before_there_was_prompt_tuning_keeps_its_key(base: str) -> None:
    assert "contrasts" not in canonical(recipe(base))
    assert canonical(recipe(base, contrasts=False))["contrasts"] is False


@pytest.mark.parametrize("changes", [{"strength": 1.0}, {"strength": -0.1}, {"prefix": 0}])
def test_a_tuning_that_cannot_be_is_refused(base: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected a strength in \[0, 1\) and at least one row"):
        recipe(base, **changes)


def test_what_holds_no_prefix_or_one_of_another_model_is_refused(base: str, tmp_path: Path) -> None:
    model, tokenizer = tiny.model("llama", seed=1), tiny.tokenizer()
    with pytest.raises(ValueError, match=rf"there is no {ctd.WEIGHTS}"):
        ctd.two_views(model, tokenizer, tmp_path)
    out = ctd.tune(recipe(base, epochs=1.0), ROWS, tmp_path / "prefix")
    with pytest.raises(ValueError, match="Take the model it was tuned for"):
        ctd.two_views(tiny.model("llama", seed=1, hidden_size=128), tokenizer, out)
    ctd.save_file({"lora": torch.zeros(1)}, out / ctd.WEIGHTS)
    with pytest.raises(ValueError, match=r"expected prompt_embeddings in .*; got \['lora'\]"):
        ctd.two_views(model, tokenizer, out)


# ---- wordings

LAST = "a b c d e"


@pytest.mark.parametrize("wording", ctd.WORDINGS)
def test_a_wording_changes_the_last_user_turn_alone(wording: str) -> None:
    first = [{"role": "user", "content": "one two three"}]
    chat = [
        *first,
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "a b c d e"},
    ]
    draw = ctd.random.Random(0)
    found = ctd._reworded(chat, LAST, wording, draw, ["x", "y"])
    assert found[:2] == chat[:2]
    text = found[2]["content"]
    if wording == "opposite":
        assert text == f"{ctd.OPPOSITE}\n{LAST}"
    elif wording == "none":
        assert text == ""
    elif wording == "truncated":
        kept = text.split()
        assert len(kept) == 3
        assert kept == sorted(kept)
        assert set(kept) <= set("abcde")
    else:
        assert len(text.split()) == 5
        assert set(text.split()) <= {"x", "y"}


@pytest.mark.parametrize("wording", ctd.WORDINGS)
def test_instructive_decoding_contrasts_with_the_other_wording(wording: str) -> None:
    model, tokenizer = tiny.model("llama", seed=1), tiny.tokenizer()
    two = ctd.instructive(model, tokenizer, CHATS, wording)
    how = Decoding(strength=0.3, plausibility=0.0, temperature=0.0, max_new_tokens=8)
    found = decode.generate(two, tokenizer, CHATS, how, progress=False)
    assert [one.error for one in found] == [None, None]
    again = ctd.instructive(model, tokenizer, CHATS, wording)
    prompts = [decode.prompt_ids(tokenizer, chat) for chat in CHATS]
    assert [*map(again.view, prompts)] == [*map(two.view, prompts)]
    assert prompts != [*map(two.view, prompts)]


@pytest.mark.parametrize(
    ("wording", "expected"),
    [
        ("opposite", f"{ctd.OPPOSITE}\n\nthe cat"),
        ("none", "the cat"),
        ("truncated", ""),
        ("random", ""),
    ],
)
def test_a_wording_of_a_definition_leaves_the_rest_of_the_turn(wording: str, expected: str) -> None:
    chat = [{"role": "user", "content": "say it twice\n\nthe cat"}]
    (turn,) = ctd._reworded(chat, "say it twice", wording, ctd.random.Random(0), ["x", "y"])
    found = turn["content"]
    if wording in ("truncated", "random"):
        words = found.split("\n\n")[0].split()
        assert found.endswith("\n\nthe cat")
        assert len(words) == (2 if wording == "truncated" else 3)
        assert set(words) <= (set("say it twice".split()) if wording == "truncated" else {*"xy"})
    else:
        assert found == expected


def test_a_definition_that_nobody_said_is_refused() -> None:
    model, tokenizer = tiny.model("llama", seed=1), tiny.tokenizer()
    with pytest.raises(ValueError, match="expected the definition 'a dog' in what the user says"):
        ctd.instructive(model, tokenizer, CHATS[:1], "none", definitions=["a dog"])


def test_an_unknown_wording_is_refused() -> None:
    with pytest.raises(ValueError, match="wording must be one of opposite, none, trunc"):
        ctd.instructive(tiny.model("llama", seed=1), tiny.tokenizer(), CHATS, "other")
