"""`codit instruction-vector`, driven as a user drives it: a file, two answers, one line a fault."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from codit import cli, decode
from codit import instruction_vector as iv
from codit.recipes import Decoding
from tests import tiny

TASKS = ("the cat", "is it in", "there were")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, two rows that it answers as told, and one that it does not begin so."""
    folder = tmp_path_factory.mktemp("instruction-vector")
    tiny.save_pair(folder, "llama")
    tiny.model("gpt2", seed=1).save_pretrained(folder / "other")
    tiny.tokenizer().save_pretrained(folder / "other")
    model, tokenizer = tiny.pair("llama").expert, tiny.tokenizer()
    how = Decoding(strength=0.0, plausibility=0.0, temperature=0.0, max_new_tokens=4)
    asked = [iv.Asked(task=task, instruction=f"on {n}") for n, task in enumerate(TASKS)]
    said = decode.generate(model, tokenizer, [a.chat() for a in asked], how, progress=False)
    texts = [answer.text for answer in said]
    texts[2] = f"?{texts[2]}" if texts[2][:1] != "?" else f"!{texts[2]}"
    rows = [{**vars(a), "answer": text} for a, text in zip(asked, texts, strict=True)]
    pieces = [tokenizer(text, add_special_tokens=False).input_ids[:1] for text in texts]
    begun = sum(a.token_ids[:1] == p for a, p in zip(said, pieces, strict=True))
    (folder / "begun").write_text(str(begun))
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(action: str, *flags: object) -> int:
    return cli.main(["instruction-vector", action, *map(str, flags)])


def extract(place: Path, out: Path, *more: object) -> int:
    given = ("--model", place / "expert", "--data", place / "in.jsonl", "--out", out)
    return run("extract", *given, "--top", 3, *more)


def test_a_vector_is_extracted_and_changes_an_answer(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "v.safetensors"
    assert extract(place, out) == 0
    shown = capsys.readouterr().out
    begun = int((place / "begun").read_text())
    assert 1 <= begun < 3
    assert f"{begun} of 3 rows begun as told" in shown
    heads = re.findall(r"layer (\d) head (\d)  ([+-]\d\.\d{4})", shown)
    kept = iv.load(out).heads
    assert [(int(layer), int(head)) for layer, head, _ in heads] == [h[:2] for h in kept]
    assert [float(effect) for *_, effect in heads] == sorted(
        (float(effect) for *_, effect in heads), reverse=True
    )
    flags = ("--model", place / "expert", "--vector", out, "--prompt", "the cat")
    assert run("apply", *flags, "--layer", 0, "--gamma", 50, "--max-new-tokens", 6) == 0
    without, told = re.fullmatch(
        r"-- without\n(.*)\n-- with 50 x v\.safetensors\n(.*)\n", capsys.readouterr().out, re.S
    ).groups()  # type: ignore[union-attr]
    assert without != told


FAULTS: list[tuple[tuple[object, ...], str]] = [
    (("--out", "v.txt"), r"out must be a file name ending in \.safetensors; got v\.txt"),
    (("--data", "no.jsonl"), r"expected a file of JSON lines at no\.jsonl; there is none"),
    (("--top", 99), r"expected between 1 and 8 heads; got 99"),
    (("--model", "no/such/model"), r"cannot load the weights of no/such/model"),
]


@pytest.mark.parametrize(("flags", "said"), FAULTS)
def test_what_cannot_be_extracted_is_one_line(
    place: Path,
    tmp_path: Path,
    flags: tuple[object, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert extract(place, tmp_path / "v.safetensors", *flags) == 2
    errors = capsys.readouterr().err
    *_, last = errors.splitlines()  # behind the bar of loading weights
    assert re.match(f"codit: {said}", last)
    assert errors.count("codit: ") == 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            '{"task": "the cat", "instruction": "on"}',
            "line 1: expected text in .* got none in answ",
        ),
        ("[1]", ".*expected .*object"),
        ("", "expected rows with task, instruction, answer in .*; got none"),
        (
            '{"task": "the cat", "instruction": "on", "answer": "\\u20ac"}',
            "expected at least one prompt that the model answers correctly",
        ),
    ],
)
def test_rows_that_teach_nothing_are_one_line(
    place: Path, tmp_path: Path, row: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.jsonl").write_text(row)
    given = ("--data", tmp_path / "bad.jsonl")
    assert extract(place, tmp_path / "v.safetensors", *given) == 2
    errors = capsys.readouterr().err
    *_, last = errors.splitlines()  # behind the bar of loading weights
    assert re.match(f"codit: {said}", last)
    assert errors.count("codit: ") == 1


def test_a_vector_of_another_model_or_layer_is_one_line(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "v.safetensors"
    assert extract(place, out) == 0
    flags = ("--vector", out, "--prompt", "the cat")
    capsys.readouterr()
    for more, said in (
        (("--model", place / "other", "--layer", 0), "expected a vector of this kind of model"),
        (("--model", place / "expert", "--layer", 7), "expected a layer below 2; got 7"),
        (("--model", place / "expert", "--layer", 0, "--vector", tmp_path), "there is none"),
    ):
        assert run("apply", *flags, *more) == 2
        errors = capsys.readouterr().err
        assert said in errors.splitlines()[-1]
        assert errors.count("codit: ") == 1
