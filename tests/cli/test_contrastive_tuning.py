"""CTD and instructive decoding from a shell: what they write, and what they refuse."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from codit import cli, contrastive_tuning, decode
from codit.cli import synthesis
from codit.engine.models import load_tokenizer, read_model
from codit.recipes import Decoding
from tests import tiny

ROWS = [{"id": str(n), "instruction": f"the cat number {n}", "response": "is in"} for n in range(8)]
ASKED = [
    {"id": "plain", "instruction": "is it in the house?"},
    {"id": "apart", "instruction": "say it twice", "input": "the cat"},
]
SHORT = ("--max-new-tokens", "6")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pair, rows to tune on, prompts, and a soft prefix that a command tuned."""
    folder = tmp_path_factory.mktemp("ctd")
    tiny.save_pair(folder, "llama")
    for name, rows in (("sft", ROWS), ("in", ASKED)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli.main(tuning(folder, folder / "prefix")) == 0
    return folder


def tuning(place: Path, out: Path, *more: str) -> list[str]:
    given = ["--base", str(place / "expert"), "--data", str(place / "sft.jsonl"), "--out", str(out)]
    quick = ["--learning-rate", "0.05", "--epochs", "4", "--batch", "4", "--prefix", "3"]
    return ["contrastive-tune", *given, *quick, *more]


def asking(place: Path, out: Path, *more: str) -> list[str]:
    given = {"expert": place / "expert", "prompts": place / "in.jsonl", "out": out}
    flags = [part for name, value in given.items() for part in (f"--{name}", str(value))]
    return ["synthesize", *flags, *SHORT, *more]


def answers(out: Path) -> dict[str, str]:
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return {row["id"]: row["response"] for row in rows}


def test_a_prefix_is_tuned_and_told_of(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(tuning(place, tmp_path / "p", "--objective", "kept-scale")) == 0
    said = capsys.readouterr().out
    assert "p: 96 numbers tuned on 8 rows, 0 left out; loss of a step from " in said
    log = json.loads((tmp_path / "p" / "training_log.json").read_text())
    assert log["losses"][-1]["loss"] < log["losses"][0]["loss"]
    assert cli.main(tuning(place, tmp_path / "p", "--objective", "prompt")) == 2
    assert "holds a finished model" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "decoding"),
    [
        (("ctd", "--prefix"), synthesis.GREEDY),
        (("prompt-tuning", "--prefix"), synthesis.ALONE),
        (("instructive", "--wording", "none"), synthesis.GREEDY),
        (("instructive", "--wording", "opposite", "--strength", "0.5"), None),
    ],
)
def test_a_method_answers_as_its_decoder_does(
    place: Path, tmp_path: Path, flags: tuple[str, ...], decoding: Decoding | None
) -> None:
    more = [*flags, str(place / "prefix")] if flags[-1] == "--prefix" else [*flags]
    assert cli.main(asking(place, tmp_path / "o.jsonl", "--method", *more)) == 0
    model = read_model(str(place / "expert"), dtype="auto")
    tokenizer = load_tokenizer(str(place / "expert"))
    chats = [
        [{"role": "user", "content": text}]
        for text in ("is it in the house?", "say it twice\n\nthe cat")
    ]
    two: Any
    if "--wording" in flags:
        parts = ["is it in the house?", "say it twice"]
        two = contrastive_tuning.instructive(model, tokenizer, chats, flags[2], definitions=parts)
    else:
        alone = flags[0] == "prompt-tuning"
        two = contrastive_tuning.two_views(model, tokenizer, place / "prefix", second_alone=alone)
    how = decoding or Decoding(strength=0.5, plausibility=0, temperature=0)
    values = {name: getattr(how, name) for name in ("strength", "plausibility", "temperature")}
    found = decode.generate(
        two, tokenizer, chats, Decoding(**values, max_new_tokens=6), progress=False
    )
    written = answers(tmp_path / "o.jsonl")
    assert [written["plain"], written["apart"]] == [one.text for one in found]
    manifest = json.loads((tmp_path / "o.manifest.json").read_text())
    assert manifest["recipe"]["pair"]["amateur"]["recipe"] == "View"
    told = json.loads((tmp_path / "o.jsonl").read_text().splitlines()[0])["res_metadata"]
    assert (told["beta"], told["alpha"]) == (how.strength, how.plausibility)


def test_another_prefix_in_the_same_folder_is_another_dataset(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = tmp_path / "p"
    assert cli.main(tuning(place, prefix)) == 0
    asked = asking(place, tmp_path / "o.jsonl", "--method", "ctd", "--prefix", str(prefix))
    assert cli.main(asked) == 0
    assert cli.main(asked) == 0
    other = contrastive_tuning.load_file(prefix / contrastive_tuning.WEIGHTS)
    other["prompt_embeddings"] += 1
    contrastive_tuning.save_file(other, prefix / contrastive_tuning.WEIGHTS)
    capsys.readouterr()
    assert cli.main(asked) == 2
    assert "was made with other settings: recipe.pair.amateur.prefix" in capsys.readouterr().err


def test_a_preview_shows_the_expert_beside_the_method(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--method=ctd", "--prefix", str(place / "prefix"), "--preview", "1")
    assert cli.main(asking(place, tmp_path / "o.jsonl", *more)) == 0
    said = capsys.readouterr().out
    assert said.startswith("== plain: is it in the house?\n-- direct\n")
    assert "\n-- ctd\n" in said
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--method", "ctd"], "expected --prefix alone of --prefix and --wording for method ctd"),
        (["--method", "instructive"], "expected --wording alone"),
        (["--method", "ctd", "--prefix", "P", "--wording", "none"], "got prefix and wording"),
        (["--wording", "none"], "expected neither of --prefix and --wording for method codit"),
        ([], "expected an amateur; got none. Add --amateur"),
        (["--method", "ctd", "--prefix", "P", "--amateur", "E"], "Leave --amateur out"),
        (["--method", "ctd", "--prefix", "no"], "no"),
        (["--method", "ctd", "--prefix", "E"], "there is no adapter_model.safetensors"),
        (["--method", "ctd", "--prefix", "P", "--dry-run"], "a dry run is of pairs"),
        (["--method", "ctd", "--prefix", "P", "--workers", "2"], "expected models and tokenizers"),
        (["--method", "prompt-tuning", "--prefix", "P", "--strength", "1"], "one view has nothing"),
        (["--method", "ctd", "--prefix", "P", "--engine", "continuous"], "static"),
    ],
)
def test_what_cannot_be_is_one_line(
    place: Path,
    tmp_path: Path,
    flags: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    paths = {"P": str(place / "prefix"), "E": str(place / "expert")}
    asked = asking(place, tmp_path / "o.jsonl", *(paths.get(flag, flag) for flag in flags))
    assert cli.main(asked) == 2
    (said,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("codit: ")]
    assert says in said


def test_another_wording_of_a_dated_prompt_is_refused(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dated = Path(shutil.copytree(place / "expert", tmp_path / "dated"))
    (dated / "chat_template.jinja").write_text(tiny.DATED_TEMPLATE)
    more = ("--method", "instructive", "--wording", "none", "--expert", str(dated))
    assert cli.main(asking(place, tmp_path / "o.jsonl", *more)) == 2
    assert "writes the date" in capsys.readouterr().err


def test_help_shows_the_defaults_of_the_method_that_is_named() -> None:
    for method, decoding in synthesis.METHODS.items():
        made = synthesis.of_method(["synthesize", "--method", method])
        (found,) = [
            one.default
            for name, one in synthesis.inspect.signature(made).parameters.items()
            if name == "decoding"
        ]
        assert found == decoding
