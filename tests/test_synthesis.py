"""A dataset is the same whether a run was interrupted or not, and holds nothing but answers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from codit import decode, recipes, synthesis
from codit.dataset import output, teacher
from codit.pair import ContrastivePair, load_tokenizer
from codit.recipes import Synthesis
from codit.world.recipes import Pretraining
from tests import tiny

ROWS = [{"id": f"row {i}", "instruction": f"the cat number {i}"} for i in range(7)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Synthesis:
    """A recipe whose pair lies in two folders."""
    return tiny.synthesis(tmp_path_factory.mktemp("pair"))


@pytest.fixture(scope="module")
def ready(recipe: Synthesis) -> dict[str, Any]:
    """The pair and its tokenizer, loaded once for all tests."""
    model, tokenizer = teacher.ready(recipe)
    return {"model": model, "tokenizer": tokenizer, "progress": False}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "data.jsonl"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def beside(out: Path) -> set[str]:
    return {path.name for path in out.parent.iterdir() if not path.name.endswith(".lock")}


def test_rows_carry_the_official_fields_and_messages_in_input_order(
    recipe: Synthesis, ready: dict[str, Any], out: Path
) -> None:
    dataset = synthesis.synthesize(recipe, ROWS, out, **ready)
    assert dataset["id"] == [row["id"] for row in ROWS]
    official = ["id", "is_completed", "instruction", "response", "res_metadata", "score"]
    assert dataset.column_names == [*official, "messages"]
    row = lines(out)[3]
    assert row == dataset[3]
    assert row["messages"] == [
        {"role": "user", "content": "the cat number 3"},
        {"role": "assistant", "content": row["response"]},
    ]
    assert row["res_metadata"] == {
        "temperature": 1.0,
        "top_p": 1.0,
        "max_tokens": 6,
        "contrastive_decoding": True,
        "alpha": 0.01,
        "beta": 1.0,
        "expert_model_id": recipe.pair.expert.name,
        "amateur_model_id": recipe.pair.amateur.name,
    }
    assert beside(out) == {"data.jsonl", "data.manifest.json", "data.README.md"}


def test_rows_hold_what_decoding_drew(recipe: Synthesis, ready: dict[str, Any], out: Path) -> None:
    dataset = synthesis.synthesize(recipe, ROWS, out, **ready)
    chats = [[{"role": "user", "content": row["instruction"]}] for row in ROWS]
    expected = decode.generate(
        ready["model"],
        ready["tokenizer"],
        chats,
        recipe.decoding,
        ids=[row["id"] for row in ROWS],
        progress=False,
    )
    for row, response in zip(dataset, expected, strict=True):
        assert (row["response"], row["is_completed"]) == (response.text, response.is_completed)
        assert row["score"] == pytest.approx(response.logprobs, abs=1e-6)
        assert len(row["score"]) == len(response.token_ids)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_manifest_names_weights_that_were_not_read(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, file = tiny.synthesis(tmp_path), tmp_path / "amateur" / "model.safetensors"
    save_file(load_file(file) | {"value_head.weight": torch.ones(2)}, file, {"format": "pt"})
    with monkeypatch.context() as once:  # stopped when all is answered
        once.setattr(output, "finish", lambda *_, **__: pytest.exit("stopped"))
        with pytest.raises(pytest.exit.Exception):
            synthesis.write(recipe, ROWS[:1], tmp_path / "later.jsonl", progress=False)
    for name in ("data", "later"):
        how: dict[str, Any] = {"progress": False, "workers": workers}
        manifest = synthesis.write(recipe, ROWS[:1], tmp_path / f"{name}.jsonl", **how)
        assert manifest["unread_weights"] == {"amateur": ["value_head.weight"]}
        assert manifest["rows"] == 1


def test_writing_returns_the_manifest_and_reads_no_rows(
    recipe: Synthesis, ready: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(synthesis.output, "read", lambda path: pytest.fail("read"))
    first = synthesis.write(recipe, ROWS, out, **ready)
    assert first == json.loads(out.with_name("data.manifest.json").read_text())
    assert (first["rows"], first["errors"], first["workers"]) == (7, 0, 1)
    assert first["engine"] == "static", "what auto chose"
    assert synthesis.write(recipe, ROWS, out, **ready) == first, "a finished one says the same"


def test_prompts_that_the_run_would_write_over_are_refused(
    recipe: Synthesis, ready: dict[str, Any], out: Path
) -> None:
    out.write_text(json.dumps(ROWS[0]) + "\n")
    for prompts in (str(out), recipes.File(path=str(out))):
        with pytest.raises(ValueError, match="takes no input's place"):
            synthesis.synthesize(recipe, prompts, out, **ready)


def test_rows_without_ids_are_named_as_decoding_names_them(
    recipe: Synthesis, ready: dict[str, Any], out: Path
) -> None:
    texts = ["a", "b", "a"]
    dataset = synthesis.synthesize(
        recipe, [{"instruction": text} for text in texts], out, batch_size=2, **ready
    )
    chats = [[{"role": "user", "content": text}] for text in texts]
    expected = decode.generate(
        ready["model"], ready["tokenizer"], chats, recipe.decoding, progress=False
    )
    assert dataset["id"] == [response.id for response in expected]
    assert dataset["response"] == [response.text for response in expected]
    assert dataset["id"][0] != dataset["id"][2], "equal prompts are told apart"


def test_several_samples_share_an_id_and_differ_in_sample(
    recipe: Synthesis, ready: dict[str, Any], out: Path
) -> None:
    several = replace(recipe, n_samples=3, decoding=replace(recipe.decoding, sample=5))
    dataset = synthesis.synthesize(several, ROWS[:4], out, batch_size=2, **ready)
    names = list(zip(dataset["id"], dataset["sample"], strict=True))
    assert names == [(f"row {i}", sample) for i in range(4) for sample in (5, 6, 7)]
    assert len(set(dataset["response"])) > 4, "samples do not share noise"
    seventh = replace(recipe, decoding=replace(recipe.decoding, sample=7))
    alone = synthesis.synthesize(seventh, ROWS[:4], out.with_name("one.jsonl"), **ready)
    assert "sample" not in alone.column_names
    assert alone["response"] == dataset["response"][2::3]


def test_the_expert_alone_is_enough_for_strength_zero(recipe: Synthesis, tmp_path: Path) -> None:
    plain = replace(recipe.decoding, strength=0.0, plausibility=0.0)
    direct = replace(recipe, decoding=plain)
    model, tokenizer = teacher.ready(direct)
    assert not isinstance(model, ContrastivePair)
    both, _ = teacher.ready(recipe)
    datasets = [
        synthesis.synthesize(
            direct, ROWS, tmp_path / f"{n}.jsonl", model=m, tokenizer=tokenizer, progress=False
        )
        for n, m in enumerate((model, both))
    ]
    assert datasets[0]["response"] == datasets[1]["response"]
    assert datasets[0][0]["res_metadata"]["contrastive_decoding"] is False


def test_a_pair_in_memory_brings_its_tokenizer(recipe: Synthesis, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(recipe.pair.expert.name)
    pair = tiny.pair("llama", vocab_size=len(tokenizer))
    with pytest.raises(ValueError, match=r"made in memory. Pass its tokenizer too"):
        synthesis.synthesize(recipe, ROWS, tmp_path / "a.jsonl", model=pair)
    dataset = synthesis.synthesize(
        recipe, ROWS[:1], tmp_path / "b.jsonl", model=pair, tokenizer=tokenizer, progress=False
    )
    assert len(dataset) == 1


def test_models_made_here_must_be_passed(recipe: Synthesis, out: Path) -> None:
    made = replace(recipe, pair=replace(recipe.pair, amateur=Pretraining()))
    with pytest.raises(ValueError, match=r"got Model and Pretraining. Make them, and pass model="):
        synthesis.synthesize(made, ROWS, out)


def test_models_made_here_are_named_by_their_keys(
    recipe: Synthesis, ready: dict[str, Any], out: Path
) -> None:
    amateur = Pretraining()
    made = replace(recipe, pair=replace(recipe.pair, amateur=amateur))
    dataset = synthesis.synthesize(made, ROWS[:1], out, **ready)
    name = dataset[0]["res_metadata"]["amateur_model_id"]
    assert name == f"Pretraining-{recipes.key(amateur)}"


# ---- rows that cannot be answered


def test_rows_without_an_answer_are_recorded_and_never_in_the_dataset(
    recipe: Synthesis, ready: dict[str, Any], out: Path
) -> None:
    long = {"id": "long", "instruction": "word " * 600}
    rows = [ROWS[0], {"id": "bad"}, long, {"id": 3, "instruction": ""}, ROWS[1]]
    dataset = synthesis.synthesize(recipe, rows, out, batch_size=2, **ready)
    assert dataset["id"] == ["row 0", "row 1"]
    errors = lines(out.with_name("data.errors.jsonl"))
    found = [(error["id"], error["line"], error["error"]) for error in errors]
    assert found == [
        ("bad", 2, "bad row"),
        ("long", 3, "the prompt is too long"),
        ("3", 4, "bad row"),
    ]
    assert errors[0]["reason"].endswith("or `conversations`; got the fields ['id']")
    assert errors[1]["reason"].startswith("expected at most 506 tokens")
    assert errors[2]["reason"] == "instruction is empty"
    manifest = json.loads(out.with_name("data.manifest.json").read_text())
    assert (manifest["rows"], manifest["errors"]) == (2, 3)


def test_a_neighbour_that_cannot_be_answered_changes_no_answer(
    recipe: Synthesis, ready: dict[str, Any], tmp_path: Path
) -> None:
    long = {"id": "long", "instruction": "word " * 600}
    alone = synthesis.synthesize(recipe, ROWS[:3], tmp_path / "a.jsonl", **ready)
    beside_it = synthesis.synthesize(recipe, [long, *ROWS[:3]], tmp_path / "b.jsonl", **ready)
    assert alone["response"] == beside_it["response"]


def test_nothing_but_errors_makes_an_empty_dataset(
    recipe: Synthesis, ready: dict[str, Any], out: Path
) -> None:
    dataset = synthesis.synthesize(recipe, [{"id": "bad"}], out, **ready)
    assert len(dataset) == 0
    assert "response" in dataset.column_names
    assert out.read_bytes() == b""
    assert len(lines(out.with_name("data.errors.jsonl"))) == 1


def test_repeated_ids_stop_before_anything_is_written(
    recipe: Synthesis, ready: dict[str, Any], out: Path
) -> None:
    with pytest.raises(ValueError, match="1 occur more than once: row 0"):
        synthesis.synthesize(recipe, [ROWS[0], ROWS[1], ROWS[0]], out, **ready)
    assert beside(out) == set()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, r"batch_size must be at least 1; got 0\. None chooses one\."),
        ({"engine": "fast"}, "engine must be one of auto, static, continuous, vllm; got 'fast'"),
        ({"resume": "maybe"}, "resume must be one of never, if_same, always; got 'maybe'"),
        ({"limit": -1}, "limit must be at least 1; got -1"),
    ],
)
def test_unusable_arguments_are_refused_before_anything_is_written(
    recipe: Synthesis, ready: dict[str, Any], out: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        synthesis.synthesize(recipe, ROWS, out, **ready, **change)
    assert beside(out) == set()


def test_no_samples_are_refused(recipe: Synthesis, ready: dict[str, Any], out: Path) -> None:
    with pytest.raises(ValueError, match="n_samples must be at least 1; got 0"):
        synthesis.synthesize(replace(recipe, n_samples=0), ROWS, out, **ready)


def test_a_limit_takes_the_first_rows(recipe: Synthesis, ready: dict[str, Any], out: Path) -> None:
    dataset = synthesis.synthesize(recipe, ROWS, out, limit=2, **ready)
    assert dataset["id"] == ["row 0", "row 1"]


# ---- interruption


class Killed(BaseException):
    """Stands in for the end of the process."""


@pytest.fixture
def whole(recipe: Synthesis, ready: dict[str, Any], tmp_path: Path) -> dict[str, bytes]:
    """The files of an uninterrupted run in batches of two, by ending."""
    folder = tmp_path / "whole"
    run(recipe, ready, folder / "data.jsonl")
    endings = (".jsonl", ".errors.jsonl")
    return {ending: (folder / f"data{ending}").read_bytes() for ending in endings}


def run(recipe: Synthesis, ready: dict[str, Any], out: Path, **how: Any) -> None:
    rows = [*ROWS[:3], {"id": "long", "instruction": "word " * 600}, {"id": "bad"}]
    synthesis.synthesize(recipe, rows, out, batch_size=2, **ready, **how)


def killed_at(call: int, recipe: Synthesis, ready: dict[str, Any], out: Path) -> Iterator[str]:
    """Run until the given call of what makes a change lasting, and stop there for good."""
    left, dead = call, list[str]()

    def dying(name: str, real: Any) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                dead.append(name)
                raise Killed
            return real(*args, **kwargs)

        return function

    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((os, "fsync"), (os, "replace"), (os, "truncate"), (Path, "unlink")):
            patch.setattr(module, name, dying(name, getattr(module, name)))
        try:
            run(recipe, ready, out)
        except Killed:
            yield dead[0]


def test_a_run_stopped_at_any_file_operation_goes_on_to_the_same_bytes(
    recipe: Synthesis, ready: dict[str, Any], whole: dict[str, bytes], tmp_path: Path
) -> None:
    places = []
    for call in range(100):
        out = tmp_path / str(call) / "data.jsonl"
        stopped = list(killed_at(call, recipe, ready, out))
        run(recipe, ready, out)
        made = {ending: out.with_name(f"data{ending}").read_bytes() for ending in whole}
        assert made == whole, f"stopped at operation {call}: {stopped}"
        assert {name.split(".", 1)[1] for name in beside(out)} == {
            "jsonl",
            "errors.jsonl",
            "manifest.json",
            "README.md",
        }
        if not stopped:
            break
        places += stopped
    assert len(places) > 10
    assert set(places) == {"fsync", "replace", "unlink"}


def test_a_file_cut_at_any_byte_is_completed_to_the_same_bytes(
    recipe: Synthesis, ready: dict[str, Any], whole: dict[str, bytes], out: Path
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(synthesis.output, "finish", lambda *args, **kwargs: None)
        patch.setattr(synthesis.output, "read", lambda path: None)
        run(recipe, ready, out)
    partial, state = out.with_name("data.partial"), out.with_name("data.partial.json")
    full, record = partial.read_bytes(), state.read_bytes()
    ends = [i + 1 for i, byte in enumerate(full) if byte == ord("\n")]
    assert len(ends) == 4
    cuts = sorted({0, 1, len(full), *ends, *(e - 1 for e in ends), *(e + 9 for e in ends[:-1])})
    for cut in cuts:
        for path in out.parent.glob("data.*"):
            path.unlink()
        partial.write_bytes(full[:cut])
        state.write_bytes(record)
        run(recipe, ready, out)
        made = {ending: out.with_name(f"data{ending}").read_bytes() for ending in whole}
        assert made == whole, f"cut at byte {cut}"


def test_what_is_complete_is_not_computed_again(
    recipe: Synthesis, ready: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(killed_at(4, recipe, ready, out))
    kept = out.with_name("data.partial").read_text().count("\n")
    assert kept >= 2
    asked: list[str] = []
    real = decode.generate

    def recording(*args: Any, ids: list[str], **kwargs: Any) -> Any:
        asked.extend(ids)
        return real(*args, ids=ids, **kwargs)

    monkeypatch.setattr(decode, "generate", recording)
    run(recipe, ready, out)
    names = [*(f"row {i}" for i in range(3)), "long"]
    assert asked == names[kept - kept % 2 :]


def test_a_finished_dataset_is_returned_without_loading_a_model(
    recipe: Synthesis, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = synthesis.synthesize(recipe, ROWS, out, progress=False)
    before = {path: path.stat().st_mtime_ns for path in out.parent.glob("data.*")}
    monkeypatch.setattr(synthesis, "ready", lambda *args, **kwargs: pytest.fail("loaded"))
    second = synthesis.synthesize(recipe, ROWS, out, progress=False)
    assert first.to_list() == second.to_list()
    assert before == {path: path.stat().st_mtime_ns for path in out.parent.glob("data.*")}


def test_another_batch_size_gives_the_same_rows_up_to_rounding(
    recipe: Synthesis, ready: dict[str, Any], tmp_path: Path
) -> None:
    datasets = [
        synthesis.synthesize(recipe, ROWS, tmp_path / f"{size}.jsonl", batch_size=size, **ready)
        for size in (1, 3, 7)
    ]
    assert datasets[0]["response"] == datasets[1]["response"] == datasets[2]["response"]
    for row, other in zip(datasets[0], datasets[2], strict=True):
        assert row["score"] == pytest.approx(other["score"], abs=1e-4)


def test_the_bar_counts_rows_and_tokens(
    recipe: Synthesis, ready: dict[str, Any], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthesis.synthesize(recipe, ROWS, out, batch_size=2, **{**ready, "progress": True})
    shown = capsys.readouterr().err
    assert "7/7" in shown
    assert "tokens/s" in shown
    assert "row/s" in shown


def test_other_settings_are_refused_before_a_model_is_loaded(
    recipe: Synthesis, ready: dict[str, Any], out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(killed_at(4, recipe, ready, out))
    before = out.with_name("data.partial").read_bytes()
    monkeypatch.setattr(synthesis, "ready", lambda *args, **kwargs: pytest.fail("loaded"))
    other = replace(recipe, decoding=replace(recipe.decoding, plausibility=0.3, seed=1))
    message = (
        r"data\.partial was made with other settings: recipe\.decoding\.plausibility was 0\.01, "
        r"is 0\.3; recipe\.decoding\.seed was 0, is 1\. Give another out"
    )
    with pytest.raises(ValueError, match=message):
        run(other, ready, out)
    assert out.with_name("data.partial").read_bytes() == before


def test_always_goes_on_with_other_settings_and_says_so(
    recipe: Synthesis, ready: dict[str, Any], whole: dict[str, bytes], out: Path
) -> None:
    list(killed_at(4, recipe, ready, out))
    other = replace(recipe, decoding=replace(recipe.decoding, temperature=0.0))
    run(other, ready, out, resume="always")
    first = json.loads(whole[".jsonl"].split(b"\n")[0])
    made = lines(out)
    assert made[0] == first
    assert [row["res_metadata"]["temperature"] for row in made] == [1.0, 1.0, 0.0]
    manifest = json.loads(out.with_name("data.manifest.json").read_text())
    assert manifest["fingerprint"]["recipe"]["decoding"]["temperature"] == 0
    (earlier,) = manifest["earlier"]
    assert earlier["lines"] == 2
    assert earlier["fingerprint"]["recipe"]["decoding"]["temperature"] == 1


def test_always_refuses_rows_of_other_prompts(
    recipe: Synthesis, ready: dict[str, Any], out: Path
) -> None:
    list(killed_at(4, recipe, ready, out))
    with pytest.raises(ValueError, match=r"holds other rows: its line 1 is of 'row 0'"):
        synthesis.synthesize(recipe, ROWS[3:], out, resume="always", batch_size=2, **ready)


def test_never_begins_only_where_there_is_nothing(
    recipe: Synthesis, ready: dict[str, Any], out: Path
) -> None:
    list(killed_at(4, recipe, ready, out))
    with pytest.raises(ValueError, match=r"resume is never, but .*data\.partial exists"):
        run(recipe, ready, out, resume="never")
    run(recipe, ready, out)
    with pytest.raises(ValueError, match=r"resume is never, but .*data\.jsonl exists"):
        run(recipe, ready, out, resume="never")
    run(recipe, ready, out.with_name("other.jsonl"), resume="never")
    assert output.RESUME[0] == "never"


def test_a_template_that_writes_the_date_writes_one_a_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.synthesis(tmp_path / "pair")
    template = tmp_path / "pair" / "expert" / "chat_template.jinja"
    template.write_text(tiny.DATED_TEMPLATE)
    asked = [{"instruction": f"the cat {n}"} for n in range(4)]
    how: dict[str, Any] = {"batch_size": 2, "progress": False}
    monkeypatch.setattr(synthesis, "datetime", tiny.Day)
    first = synthesis.write(recipe, asked, tmp_path / "whole.jsonl", **how)
    with monkeypatch.context() as once:
        append = output.append

        def fails_later(files: Any, records: Any, *, at: int) -> int:
            if at:
                raise OSError("the power went")
            return append(files, records, at=at)

        once.setattr(output, "append", fails_later)
        with pytest.raises(OSError, match="the power went"):
            synthesis.write(recipe, asked, tmp_path / "data.jsonl", **how)
    monkeypatch.setattr(tiny.Day, "day", "2026-11-29")
    manifest = synthesis.write(recipe, asked, tmp_path / "data.jsonl", **how)
    assert manifest["date"] == first["date"] == "2026-11-28T00:00:00"
    assert (tmp_path / "data.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    other = synthesis.write(recipe, asked, tmp_path / "later.jsonl", **how)
    assert other["date"] == "2026-11-29T00:00:00"
    assert other["sha256"] != first["sha256"], "ids and noise are those of other prompts"
