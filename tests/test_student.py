"""Training against a loop written from the equation, and what the student does afterwards."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from codit import decode, recipes, student
from codit.training import loop
from codit.training.rows import answered, arranged, base_of, tokenised
from codit.world.recipes import Answers, Pretraining
from tests import tiny

ROWS = [
    {
        "id": f"row{i}",
        "messages": [
            {"role": "user", "content": f"say {i % 5}"},
            {"role": "assistant", "content": f"{i % 5}. " * (1 + i % 3)},
        ],
    }
    for i in range(10)
]
DATA = Dataset.from_list(ROWS)
Trained = Callable[..., Path]


def recipe(base: Path, **changes: Any) -> recipes.Training:
    values: dict[str, Any] = {"learning_rate": 1e-2, "epochs": 2, "batch": 4, "max_length": 100}
    return recipes.Training(
        base=recipes.Model(name=str(base)),
        data=recipes.File(path=str(base / "config.json")),
        **(values | changes),
    )


def make_base(
    folder: Path, architecture: str = "qwen3", *, dtype: torch.dtype | None = None
) -> Path:
    model = tiny.model(architecture, seed=0, scale=2.0)
    model.to(dtype or torch.float32).save_pretrained(folder)
    tiny.tokenizer(eos_token=tiny.EOS).save_pretrained(folder)
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "base")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def log(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "training_log.json").read_text())
    return loaded


def by_hand(base: Path, of: recipes.Training) -> tuple[dict[str, torch.Tensor], list[float]]:
    """Train as the docstring says: one padded batch a step, AdamW, warm-up, cosine, clipping."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).train()
    rows = tokenised(
        answered(DATA, AutoTokenizer.from_pretrained(base)).talks,
        AutoTokenizer.from_pretrained(base),
        max_length=100,
    )
    order = arranged([len(ids) for ids in rows.ids], of)
    steps = math.ceil(len(order) / of.batch)
    warm = round(of.warmup * steps)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=of.learning_rate, betas=of.adam_betas, eps=1e-8, weight_decay=0.0
    )
    losses = []
    for step in range(steps):
        taken = order[step * of.batch : (step + 1) * of.batch]
        total, count = torch.tensor(0.0), 0
        for i in taken:
            logits = model(torch.tensor([rows.ids[i]])).logits[0, :-1]
            labels = torch.tensor(rows.labels[i][1:])
            total = total + cross_entropy(logits, labels, reduction="sum", ignore_index=-100)
            count += int((labels != -100).sum())
        loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        done = (step - warm) / max(1, steps - warm)
        rate = step / max(1, warm) if step < warm else 0.5 * (1 + math.cos(math.pi * done))
        for group in optimizer.param_groups:
            group["lr"] = of.learning_rate * rate
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return dict(model.state_dict()), losses


@pytest.mark.parametrize("rows_per_pass", [None, 2])
def test_a_student_is_what_the_written_out_loop_makes(
    base: Path, tmp_path: Path, rows_per_pass: int | None
) -> None:
    of = recipe(base, warmup=0.4)
    made = student.train(of, DATA, tmp_path / "out", rows_per_pass=rows_per_pass)
    expected, losses = by_hand(base, of)
    got = weights(made)
    assert all(torch.allclose(got[name], expected[name], atol=2e-4) for name in got)
    moved = weights(base)
    assert max((got[name] - moved[name]).abs().max() for name in got) > 0.01
    assert [row["loss"] for row in log(made)["losses"]] == pytest.approx(losses, rel=1e-4)
    assert [row["step"] for row in log(made)["losses"]] == [1, 2, 3, 4, 5]


def test_equal_recipes_give_equal_bytes_and_another_seed_another_order(
    base: Path, tmp_path: Path
) -> None:
    folders = [
        student.train(recipe(base, seed=seed), DATA, tmp_path / str(i))
        for i, seed in enumerate((0, 0, 1))
    ]
    first, again, other = ((f / "model.safetensors").read_bytes() for f in folders)
    assert first == again
    assert first != other
    assert (folders[0] / "training_log.json").read_text() == (
        folders[1] / "training_log.json"
    ).read_text()


def test_trls_loss_which_a_gpu_uses_is_the_same(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    rows = tokenised(answered(DATA, tokenizer).talks, tokenizer, max_length=100)
    settings = student.arguments(
        recipe(base),
        tmp_path,
        tiny.END,
        n=10,
        rows_per_pass=4,
        half=False,
        recompute=False,
        save_every=0,
    )
    data = Dataset.from_dict({"input_ids": rows.ids, "labels": rows.labels})
    trainer = student.AnswerTrainer(
        model=model, args=settings, train_dataset=data, processing_class=tokenizer
    )
    batch = trainer.data_collator([data[0], data[1], data[5]])
    count = (batch["labels"][:, 1:] != -100).sum()
    ours = trainer.compute_loss(model, dict(batch), num_items_in_batch=count)
    trls = SFTTrainer.compute_loss(trainer, model, dict(batch), num_items_in_batch=count)
    assert ours.item() == pytest.approx(trls.item(), rel=1e-5)


def test_labels_are_those_of_trls_assistant_only_loss(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    settings = SFTConfig(
        output_dir=str(tmp_path),
        assistant_only_loss=True,
        bf16=False,
        use_cpu=True,
        activation_checkpointing=False,
        report_to="none",
    )
    prepared = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(base),
        args=settings,
        train_dataset=DATA,
        processing_class=tokenizer,
    ).train_dataset
    rows = tokenised(answered(DATA, tokenizer).talks, tokenizer, max_length=100)
    assert rows.ids == prepared["input_ids"]
    assert rows.labels == prepared["labels"]


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2", "gpt_neox", "gemma3_text"])
def test_a_student_learns_its_answers_and_to_stop(tmp_path: Path, architecture: str) -> None:
    base = make_base(tmp_path / "base", architecture)
    made = student.train(recipe(base, epochs=100, batch=3), DATA.select(range(3)), tmp_path / "s")
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(made),
        AutoTokenizer.from_pretrained(made),
    )
    assert tokenizer.eos_token == tiny.END
    assert tokenizer.chat_template == tiny.CHAT_TEMPLATE
    end, document_end = tokenizer.convert_tokens_to_ids([tiny.END, tiny.EOS])
    assert set(model.generation_config.eos_token_id) == {end, document_end}
    told = decode.generate(
        model,
        tokenizer,
        [row["messages"][:1] for row in ROWS[:3]],
        recipes.Decoding(strength=0, plausibility=0, temperature=0, max_new_tokens=20),
        progress=False,
    )
    assert [answer.text for answer in told] == [row["messages"][1]["content"] for row in ROWS[:3]]
    assert all(answer.is_completed for answer in told)


def test_a_stop_token_that_is_also_the_padding_is_learnt(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    tokenizer = tiny.tokenizer()
    tokenizer.pad_token = tiny.END
    tokenizer.save_pretrained(base)
    made = student.train(recipe(base, epochs=40, batch=10), DATA.select(range(3)), tmp_path / "out")
    answers = student.evaluate(
        AutoModelForCausalLM.from_pretrained(made),
        AutoTokenizer.from_pretrained(made),
        [{"id": 0, "instruction": "say 0"}],
        lambda text, row, *, is_completed: len(text),
        recipes.Decoding(strength=0, plausibility=0, temperature=0, max_new_tokens=30),
        progress=False,
    )
    assert answers["is_completed"].all()


def test_incomplete_rows_are_counted_and_change_nothing(base: Path, tmp_path: Path) -> None:
    bad = {
        "id": "bad",
        "messages": [*ROWS[0]["messages"][:1], {"role": "assistant", "content": "x"}],
    }
    mixed = Dataset.from_list(
        [row | {"is_completed": True} for row in ROWS] + [bad | {"is_completed": False}]
    )
    one, other = (
        student.train(recipe(base), data, tmp_path / name)
        for name, data in (("one", mixed), ("other", DATA))
    )
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert (log(one)["rows_used"], log(one)["rows_dropped"]) == (10, 1)
    assert log(one)["answer_tokens"] < log(one)["tokens"]
    assert log(one)["parameters"] == sum(w.numel() for w in weights(base).values())


def test_a_killed_training_goes_on_from_its_checkpoint_to_the_same_bytes(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, out = recipe(base, epochs=4), tmp_path / "killed"
    whole = student.train(of, DATA, tmp_path / "whole")

    def kill(bar: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 7:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop.Bar, "on_step_end", kill)
        with pytest.raises(KeyboardInterrupt):
            student.train(of, DATA, out, save_every=3)
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-6"]
    with pytest.raises(ValueError, match="holds an unfinished training with another recipe"):
        student.train(recipe(base, epochs=5), DATA, out, save_every=3)
    student.train(of, DATA, out, save_every=3)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}
    assert log(out) == log(whole)


def test_a_template_that_writes_the_date_writes_that_of_the_first_day(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    of, out = recipe(base), tmp_path / "killed"
    (base / "chat_template.jinja").write_text(tiny.DATED_TEMPLATE)
    monkeypatch.setattr(loop, "datetime", tiny.Day)
    whole = student.train(of, DATA, tmp_path / "whole")
    with monkeypatch.context() as once:
        once.setattr(student, "fit", lambda *_, **__: pytest.exit("stopped"))
        with pytest.raises(pytest.exit.Exception):
            student.train(of, DATA, out)
    monkeypatch.setattr(tiny.Day, "day", "2026-11-29")
    student.train(of, DATA, out)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert log(out) == log(whole)
    assert log(out)["made_of"]["date"] == "2026-11-28T00:00:00"
    assert student.train(of, DATA, out) == out, "finished yesterday, it is not refused today"
    assert "strftime_now" in AutoTokenizer.from_pretrained(out).chat_template
    later = student.train(of, DATA, tmp_path / "later")
    assert log(later)["made_of"]["date"] == "2026-11-29T00:00:00"
    assert (later / "model.safetensors").read_bytes() != (out / "model.safetensors").read_bytes()


def test_a_watched_training_is_seen_on_its_way_and_is_the_same_training(
    base: Path, tmp_path: Path
) -> None:
    of = recipe(base)
    alone = student.train(of, DATA, tmp_path / "alone")
    seen: dict[int, dict[str, torch.Tensor]] = {}

    def look(step: int, model: Any) -> None:
        seen[step] = {name: w.detach().clone() for name, w in model.named_parameters()}

    watched = student.train(of, DATA, tmp_path / "watched", watch=(look, 2))
    assert (alone / "model.safetensors").read_bytes() == (
        watched / "model.safetensors"
    ).read_bytes()
    assert list(seen) == [0, 2, 4, 5]  # the start, every second step, the end
    before, after = weights(base), weights(watched)
    assert all(torch.equal(w, before[name]) for name, w in seen[0].items())
    assert all(torch.equal(w, after[name]) for name, w in seen[5].items())
    assert not all(torch.equal(w, after[name]) for name, w in seen[4].items())


def test_a_student_of_a_half_precision_base_keeps_float32(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", dtype=torch.bfloat16)
    made = student.train(recipe(base, epochs=1), DATA, tmp_path / "out")
    assert {weight.dtype for weight in weights(made).values()} == {torch.float32}
    assert AutoModelForCausalLM.from_pretrained(made).dtype == torch.float32


def test_precision_comes_from_the_recipe_or_from_the_stored_base(tmp_path: Path) -> None:
    full, half = make_base(tmp_path / "a"), make_base(tmp_path / "b", dtype=torch.bfloat16)
    named = recipes.Model(name="org/base", revision="abc", dtype="bfloat16")
    of = recipes.Training(base=named, data=recipes.File(path="data"))
    assert base_of(of, None) == named
    assert base_of(of, full) == recipes.Model(name=str(full), dtype="bfloat16")
    assert student.is_half(base_of(of, full))
    assert not student.is_half(base_of(recipe(full), None))
    assert student.is_half(base_of(recipe(half), None))
    made_here = recipes.Training(base=Pretraining(), data=Answers())
    assert base_of(made_here, full) == recipes.Model(name=str(full))


def test_a_base_without_a_template_takes_the_recipes(base: Path, tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    tiny.tokenizer().save_pretrained(teacher)
    (base / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match="expected a base model with a chat template"):
        student.train(recipe(base, epochs=1), DATA, tmp_path / "out")
    of = recipe(base, epochs=1, template=recipes.Model(name=str(teacher)))
    made = student.train(of, DATA, tmp_path / "out")
    assert AutoTokenizer.from_pretrained(made).chat_template == tiny.CHAT_TEMPLATE


def test_a_pass_holds_the_rows_that_fit_and_divide_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert student.fitting(64, 100) == 8
    assert student.fitting(60, 100) == 10
    assert student.fitting(64, 5000) == 1
    assert student.fitting(4, 10) == 4


@dataclass(frozen=True)
class Verdict:
    """What a verifier returns."""

    strict: bool
    score: float


DECODING = recipes.Decoding(strength=0, plausibility=0, temperature=0, max_new_tokens=4)


def evaluated(rows: list[dict[str, Any]], score: Callable[..., Any]) -> Any:
    return student.evaluate(
        tiny.model("qwen3", seed=0), tiny.tokenizer(), rows, score, DECODING, progress=False
    )


def test_evaluation_is_one_row_per_prompt_with_the_fields_of_its_score() -> None:
    rows = [{"id": "a", "instruction": "say 1"}, {"id": 2, "messages": ROWS[3]["messages"][:1]}]

    def score(text: str, row: Any, *, is_completed: bool) -> Verdict:
        return Verdict(strict=is_completed, score=len(text) + (row["id"] == "a") * 100)

    table = evaluated(rows, score)
    assert list(table.columns) == [
        *("id", "response", "is_completed", "n_tokens", "error", "strict", "score")
    ]
    assert list(table["id"]) == ["a", 2]
    assert list(table["strict"]) == list(table["is_completed"])
    assert list(table["score"]) == [len(table["response"][0]) + 100, len(table["response"][1])]
    assert table["n_tokens"].between(1, 4).all()


def test_a_score_may_be_a_mapping_or_a_number() -> None:
    rows = [{"id": 1, "instruction": "hm"}]
    assert evaluated(rows, lambda text, row, is_completed: {"x": 5})["x"][0] == 5
    assert evaluated(rows, lambda text, row, is_completed: 0.5)["score"][0] == 0.5


def test_a_prompt_that_cannot_be_answered_has_an_error_and_no_score() -> None:
    rows = [{"id": 1, "instruction": "hm"}, {"id": 2, "instruction": "long " * 600}]
    table = evaluated(rows, lambda text, row, is_completed: 1.0)
    assert table["error"].isna().tolist() == [True, False]
    assert table["score"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: evaluated([], len), "expected at least one prompt; got none."),
        (
            lambda: evaluated([{"id": 1, "text": "a"}], len),
            'expected rows with "id" and "instruction" or "messages"; got [\'id\', \'text\'].',
        ),
        (
            lambda: base_of(recipes.Training(base=Pretraining(), data=Answers()), None),
            "got a recipe whose base is a Pretraining and base=None. Pass the folder",
        ),
    ],
)
def test_bad_arguments_are_refused_with_a_remedy(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_passes_must_divide_the_batch(base: Path, tmp_path: Path) -> None:
    message = "batch must be a multiple of rows_per_pass times processes = 3; got 4."
    with pytest.raises(ValueError, match=re.escape(message)):
        student.train(recipe(base), DATA, tmp_path / "out", rows_per_pass=3)
    message = "row 'row1' (row 2): expected at most 12 tokens"
    with pytest.raises(ValueError, match=re.escape(message)):
        student.train(recipe(base, max_length=12), DATA, tmp_path / "out")
