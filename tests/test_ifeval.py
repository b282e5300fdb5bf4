"""IFEval through lm-eval: a pair and a student in the harness, its sums, its files, the command."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from codit import cli, decode, ifeval, ifeval_data, recipes
from codit.ifeval import Scores
from tests import tiny

pytest.importorskip("lm_eval", reason='lm-eval is an extra: pip install -e ".[eval]"')

PROSE = (
    "Dr. Brown met Mr. Green at 5 p.m. on Monday. They spoke of the house. It was late. ",
) * 20
ROWS: list[dict[str, Any]] = [
    {"ids": ["punctuation:no_comma"], "kwargs": [{}]},
    {"ids": ["change_case:english_lowercase", "startend:quotation"], "kwargs": [{}, {}]},
    {
        "ids": ["keywords:existence", "length_constraints:number_words"],
        "kwargs": [{"keywords": ["cat", "mat"]}, {"relation": "at least", "num_words": 5}],
    },
    {
        "ids": ["length_constraints:number_sentences"],
        "kwargs": [{"relation": "less than", "num_sentences": 3}],
    },
    {"ids": ["startend:end_checker"], "kwargs": [{"end_phrase": "the end."}]},
]
PROMPTS = [f"say something, number {i}" for i in range(len(ROWS))]
# What is answered, and by hand: which instructions it obeys, strictly and loosely.
ANSWERS = [
    ("No comma here.", [1], [1]),
    ("this is what the cat said in the house:\n'it is small'", [1, 0], [1, 0]),  # no double quotes
    ("The cat sat on the mat, and it slept.", [1, 1], [1, 1]),
    ("One is here. Two are there. Three came. Four left.", [0], [0]),
    ("It is the end.\nBye!", [0], [1]),  # less its last line it obeys
]


@pytest.fixture(scope="module")
def punkt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small sentence model where NLTK looks, and nowhere else."""
    import nltk

    before, root = list(nltk.data.path), tmp_path_factory.mktemp("nltk")
    nltk.data.path[:] = []
    ifeval_data.punkt(root, PROSE)
    yield root
    nltk.data.path[:] = before


@pytest.fixture
def prompts(tmp_path: Path, punkt: Path) -> Path:
    return write(tmp_path / "ifeval.jsonl")


def write(path: Path, **changes: Any) -> Path:
    """Write the prompts in the published format; `changes` are fields of the first."""
    rows = [
        {
            "key": 7 * i,
            "prompt": PROMPTS[i],
            "instruction_id_list": row["ids"],
            "kwargs": row["kwargs"],
        }
        for i, row in enumerate(ROWS)
    ]
    rows[0] |= changes
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def says(answers: dict[str, str], tokenizer: Any) -> Callable[..., torch.Tensor]:
    """Return a `generate` that answers each prompt with its text, then ends the turn."""

    def generate(input_ids: torch.Tensor, **_: Any) -> torch.Tensor:
        rows = []
        for row in input_ids:
            asked = tokenizer.decode(row)
            answer = next(text for prompt, text in answers.items() if prompt in asked)
            rows.append([*row.tolist(), *tokenizer(answer + tiny.END).input_ids])
        longest, pad = max(map(len, rows)), tokenizer.pad_token_id
        return torch.tensor([row + [pad] * (longest - len(row)) for row in rows])

    return generate


def test_the_harness_gives_the_verdicts_made_by_hand(
    prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, tokenizer = tiny.pair("llama"), tiny.tokenizer()
    answers = {prompt: text for prompt, (text, *_) in zip(PROMPTS, ANSWERS, strict=True)}
    monkeypatch.setattr(pair, "generate", says(answers, tokenizer))
    found = ifeval.evaluate(pair, tokenizer, prompts, max_new_tokens=100)
    assert [a.key for a in found.answers] == [0, 7, 14, 21, 28]
    assert [a.response for a in found.answers] == [text for text, *_ in ANSWERS]
    assert [list(a.strict) for a in found.answers] == [strict for _, strict, _ in ANSWERS]
    assert [list(a.loose) for a in found.answers] == [loose for *_, loose in ANSWERS]
    assert (found.n, found.n_instructions, found.n_cut) == (5, 7, 0)
    assert found.prompt_strict.estimate == pytest.approx(2 / 5)
    assert found.prompt_loose.estimate == pytest.approx(3 / 5)
    assert found.instruction_strict.estimate == pytest.approx(4 / 7)
    assert found.instruction_loose.estimate == pytest.approx(5 / 7)
    for rate in (found.prompt_strict, found.instruction_strict):
        assert 0 <= rate.low < rate.estimate < rate.high <= 1
        assert rate.n == 5


@pytest.mark.parametrize("architecture", ["qwen3", "gpt2"])
def test_a_pair_answers_in_the_harness_as_it_decodes(architecture: str, prompts: Path) -> None:
    """Left-padded batches, templates and stops are the harness's; the tokens must be the pair's."""
    pair, tokenizer = tiny.pair(architecture, plausibility=0.1), tiny.tokenizer()
    pair.generation_config.repetition_penalty = 1.5  # of a checkpoint: not the task's
    weights = {name: value.clone() for name, value in pair.state_dict().items()}
    state, config = random.getstate(), pair.generation_config
    found = ifeval.evaluate(pair, tokenizer, prompts, max_new_tokens=12, batch_size=2)
    assert random.getstate() == state
    assert pair.generation_config is config
    assert all(torch.equal(value, weights[name]) for name, value in pair.state_dict().items())
    decoding = recipes.Decoding(plausibility=0.1, temperature=0.0, max_new_tokens=12)
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    expected = decode.generate(pair, tokenizer, chats, decoding, progress=False)
    assert [a.response for a in found.answers] == [answer.text for answer in expected]
    alone = ifeval.evaluate(pair, tokenizer, prompts, max_new_tokens=12, batch_size=1)
    assert alone == found


def test_a_student_answers_by_itself_and_stops_where_its_tokenizer_does(prompts: Path) -> None:
    student, tokenizer = tiny.model("llama", seed=3), tiny.tokenizer()
    assert student.generation_config.eos_token_id == tiny.SPECIAL.index(tiny.EOS)
    student.train()
    found = ifeval.evaluate(student, tokenizer, prompts, max_new_tokens=12)
    assert student.training
    decoding = recipes.Decoding(strength=0.0, plausibility=0.0, temperature=0.0, max_new_tokens=12)
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    expected = decode.generate(student, tokenizer, chats, decoding, progress=False)
    assert [a.response for a in found.answers] == [answer.text for answer in expected]


def test_a_note_says_why_rates_compare_with_nothing(
    prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair, tokenizer = tiny.pair("llama"), tiny.tokenizer()
    long = write(prompts.with_name("long.jsonl"), prompt="say something, number 0" + " cat" * 600)
    answers = {prompt.split(", ")[1]: "yes" for prompt in PROMPTS}
    answers["cat"] = "yes"
    monkeypatch.setattr(pair, "generate", says(answers, tokenizer))
    found = ifeval.evaluate(pair, tokenizer, long, max_new_tokens=10, limit=3)
    assert (found.n, found.n_cut) == (3, 1)
    assert found.note == (
        "compares with no published number: answers of at most 10 tokens, the first 3 prompts "
        "alone, 1 prompts without their beginning"
    )
    for part in (pair.expert, pair.amateur):
        part.config.max_position_embeddings = 2048
    assert ifeval.evaluate(pair, tokenizer, prompts).note == ""


def test_what_cannot_be_asked_is_refused_before_anything_is(prompts: Path) -> None:
    pair, tokenizer = tiny.pair("llama"), tiny.tokenizer()
    pair.amateur.config.max_position_embeddings = 64
    with pytest.raises(ValueError, match="below the model's 64 tokens"):
        ifeval.evaluate(pair, tokenizer, prompts, max_new_tokens=64)
    with pytest.raises(ValueError, match="max_new_tokens and batch_size >= 1; got 0, 16"):
        ifeval.evaluate(pair, tokenizer, prompts, max_new_tokens=0)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="chat template"):
        ifeval.evaluate(pair, tokenizer, prompts, max_new_tokens=4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"instruction_id_list": ["no:such"]}, "expected instructions of lm-eval"),
        ({"instruction_id_list": [["no"]]}, "unhashable"),
        ({"kwargs": []}, "kwargs for each"),
        ({"kwargs": [{"commas": 3}]}, "unexpected keyword argument 'commas'"),
        ({"kwargs": [None]}, "has no attribute 'items'"),
        ({"prompt": None}, "expected an object with prompt (str)"),
    ],
)
def test_a_row_that_is_none_of_ifevals_is_named(
    changes: dict[str, Any], reason: str, tmp_path: Path, punkt: Path
) -> None:
    path = write(tmp_path / "broken.jsonl", **changes)
    with pytest.raises(ValueError, match=r"line 1 of .*broken.jsonl is no prompt of IFEval") as e:
        ifeval_data.read(path)
    assert reason in str(e.value)


def test_files_are_read_whatever_their_line_ends(prompts: Path) -> None:
    rows = ifeval_data.read(prompts)
    assert rows[0].keys() == {"key", "prompt", "instruction_id_list", "kwargs"}
    path = prompts.with_name("dos.jsonl")
    path.write_bytes(prompts.read_bytes().replace(b"\n", b"\r\n\r\n"))
    assert ifeval_data.read(path) == rows
    assert ifeval_data.read(path, limit=2) == rows[:2]
    with pytest.raises(ValueError, match="at least 2 prompts, for intervals; got 1"):
        ifeval_data.read(path, limit=1)
    path.write_text("[1]\n")
    with pytest.raises(ValueError, match="expected an object with key"):
        ifeval_data.read(path)
    with pytest.raises(FileNotFoundError):
        ifeval_data.read(prompts.with_name("none.jsonl"))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ValueError, match=r'pip install -e "\.\[eval\]"') as error:
        ifeval_data.check()
    assert "\n" not in str(error.value)


def test_missing_data_of_nltk_is_said_and_not_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    monkeypatch.setattr(nltk, "download", lambda *_: pytest.fail("asked the network"))
    with pytest.raises(ValueError, match=r"python -m nltk.downloader punkt_tab") as error:
        ifeval_data.read("any.jsonl")
    assert "\n" not in str(error.value)


def test_a_trained_sentence_model_splits_and_is_never_replaced(punkt: Path) -> None:
    from nltk.tokenize import PunktTokenizer

    text = "Mr. Green left at noon. It rained."
    assert PunktTokenizer("english").tokenize(text) == ["Mr. Green left at noon.", "It rained."]
    with pytest.raises(FileExistsError, match="there is one in"):
        ifeval_data.punkt(punkt, PROSE)
    with pytest.raises(ValueError, match="got none"):
        ifeval_data.punkt(punkt / "other", [" "])


def test_the_command_shows_both_models(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expert, amateur = tiny.save_pair(tmp_path, "llama")
    capsys.readouterr()
    given = ["ifeval", "--expert", str(expert), "--amateur", str(amateur)]
    given += ["--prompts", str(prompts), "--max-new-tokens", "6", "--limit", "4"]
    assert cli.main([*given, "--student", str(amateur)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "4 prompts, 6 instructions; 95 % intervals over prompts"
    names = "prompt strict %", "instruction strict %", "prompt loose %", "instruction loose %"
    assert [lines[1].find(name) > 0 for name in names] == [True] * 4
    assert [line.split()[0] for line in lines[2:]] == ["pair", "student", "pair:", "student:"]
    assert lines[4].endswith("answers of at most 6 tokens, the first 4 prompts alone")
    assert cli.main([*given, "--student", str(tmp_path / "none")]) == 2
    assert "cannot load the weights of" in capsys.readouterr().err
    assert cli.main([*given, "--limit", "0"]) == 2
    assert capsys.readouterr().err.startswith("codit: expected at least 2 prompts")


def test_a_student_is_asked_alone_and_its_answers_are_kept(
    prompts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expert, _ = tiny.save_pair(tmp_path, "llama")
    out = tmp_path / "new" / "answers.jsonl"
    given = ["ifeval", "--prompts", str(prompts), "--max-new-tokens", "6", "--out", str(out)]
    assert cli.main([*given, "--student", str(expert)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in shown[2:]] == ["student", "student:"]
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["key"] for row in rows] == [0, 7, 14, 21, 28]
    assert {row["model"] for row in rows} == {"student"}
    assert [len(row["strict"]) for row in rows] == [len(row["ids"]) for row in ROWS]
    manifest = json.loads((tmp_path / "new" / "answers.manifest.json").read_text())
    rate = manifest["rates"]["student"]["prompt_strict"]["estimate"]
    assert rate == pytest.approx(sum(all(row["strict"]) for row in rows) / len(rows))
    assert manifest["versions"]["lm_eval"]


@pytest.mark.parametrize(
    "given", [[], ["--expert", "e"], ["--amateur", "a"], ["--expert", "e", "--student", "s"]]
)
def test_half_a_pair_or_nobody_is_refused(
    given: list[str], prompts: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ifeval", "--prompts", str(prompts), *given]) == 2
    assert "--expert and --amateur, or --student" in capsys.readouterr().err


def test_the_prompts_are_never_replaced(prompts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = prompts.read_bytes()
    given = ["ifeval", "--prompts", str(prompts), "--student", "s", "--out", str(prompts)]
    assert cli.main(given) == 2
    assert "another file than the prompts" in capsys.readouterr().err
    assert prompts.read_bytes() == before


def test_help_imports_no_model() -> None:
    code = "import sys; from codit import cli\ntry: cli.main(['ifeval', '--help'])\n"
    code += "except SystemExit: pass\nassert not {'torch', 'lm_eval'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_table_shows_percent_and_no_note_where_there_is_none() -> None:
    from codit.ifeval_cli import table
    from codit.intervals import Interval

    rate = Interval(0.5, 0.25, 0.7501, 4, "BCa")
    rates = dict.fromkeys(ifeval.METRICS, rate)
    scores = Scores(
        **rates, n=4, n_instructions=6, n_cut=0, max_new_tokens=1280, answers=(), note=""
    )
    lines = table({"pair": scores})
    assert lines[2].split("  ")[0] == "pair"
    assert "50.0 [25.0, 75.0]" in lines[2]
    assert len(lines) == 3


def test_the_published_prompts_can_all_be_asked(prompts_dir: Path, punkt: Path) -> None:
    rows = ifeval_data.read(prompts_dir / "ifeval_input_data.jsonl")
    assert (len(rows), sum(len(row["instruction_id_list"]) for row in rows)) == (541, 834)
