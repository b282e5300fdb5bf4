"""The pair in lm-eval: IFEval and multiple choice, offline, from Python and from a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from codit import decode, recipes
from codit.contrast import contrast
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
CHOICES = [
    {"query": "where is the cat?", "choices": ["on the mat", "in", "the house"], "gold": 0},
    {"query": "how many?", "choices": ["ten", "ten of them", "it is"], "gold": 1},
]


@pytest.fixture(scope="module")
def punkt(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A small sentence model where NLTK looks, and nowhere else."""
    import nltk

    from codit.evaluation import harness

    before, root = list(nltk.data.path), tmp_path_factory.mktemp("nltk")
    nltk.data.path[:] = []
    harness.punkt(root, PROSE)
    yield root
    nltk.data.path[:] = before


@pytest.fixture
def tasks(tmp_path: Path, punkt: Path) -> Path:
    """A folder with lm-eval's IFEval and a multiple-choice task, both of local rows."""
    import lm_eval.tasks

    folder = tmp_path / "tasks"
    folder.mkdir()
    published = Path(lm_eval.tasks.__file__).parent / "ifeval" / "ifeval.yaml"
    rows = [
        {"key": i, "prompt": prompt, "instruction_id_list": row["ids"], "kwargs": row["kwargs"]}
        for i, (prompt, row) in enumerate(zip(PROMPTS, ROWS, strict=True))
    ]
    local: dict[str, dict[str, Any]] = {
        "local_ifeval": {
            "include": str(published),
            "test_split": "train",
            "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": 12},
        },
        "local_choice": {
            "output_type": "multiple_choice",
            "test_split": "train",
            "doc_to_text": "{{query}}",
            "doc_to_target": "gold",
            "doc_to_choice": "choices",
        },
    }
    for (name, task), data in zip(local.items(), (rows, CHOICES), strict=True):
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in data))
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"train": str(file)}}}
        (folder / f"{name}.yaml").write_text(json.dumps({"task": name, **source, **task}))
    return folder


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Path]:
    return tiny.save_pair(tmp_path, "llama")


def load(saved: tuple[Path, Path], **values: Any) -> Any:
    from codit.evaluation.harness import PairLM

    return PairLM(str(saved[0]), str(saved[1]), device="cpu", **values)


def run(lm: Any, tasks: Path, name: str, **how: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return a task's results and its samples in the order of the rows."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    found = evaluate(lm, manager.load([name]), bootstrap_iters=0, **how)
    return found["results"][name], sorted(found["samples"][name], key=lambda s: s["doc_id"])


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


def test_ifeval_gives_the_verdicts_made_by_hand(
    saved: tuple[Path, Path], tasks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = load(saved)
    answers = {prompt: text for prompt, (text, *_) in zip(PROMPTS, ANSWERS, strict=True)}
    monkeypatch.setattr(lm.model, "generate", says(answers, lm.tokenizer))
    rates, samples = run(lm, tasks, "local_ifeval", apply_chat_template=True)
    assert [s["filtered_resps"] for s in samples] == [[text] for text, *_ in ANSWERS]
    assert [s["inst_level_strict_acc"] for s in samples] == [strict for _, strict, _ in ANSWERS]
    assert [s["inst_level_loose_acc"] for s in samples] == [loose for *_, loose in ANSWERS]
    assert rates["prompt_level_strict_acc,none"] == pytest.approx(2 / 5)
    assert rates["prompt_level_loose_acc,none"] == pytest.approx(3 / 5)
    assert rates["inst_level_strict_acc,none"] == pytest.approx(4 / 7)
    assert rates["inst_level_loose_acc,none"] == pytest.approx(5 / 7)


@pytest.mark.parametrize(("architecture", "batch_size"), [("qwen3", 1), ("qwen3", 2), ("gpt2", 2)])
def test_a_pair_answers_in_the_harness_as_it_decodes(
    architecture: str, batch_size: int, tasks: Path, tmp_path: Path
) -> None:
    """Left-padded batches, templates and stops are the harness's; the tokens must be the pair's."""
    saved = tiny.save_pair(tmp_path, architecture)
    config = json.loads((saved[0] / "generation_config.json").read_text())
    config["repetition_penalty"] = 1.5  # of a checkpoint: not the task's
    (saved[0] / "generation_config.json").write_text(json.dumps(config))
    lm = load(saved, plausibility=0.1, batch_size=batch_size)
    assert lm.max_length == 512
    _, samples = run(lm, tasks, "local_ifeval", apply_chat_template=True)
    decoding = recipes.Decoding(plausibility=0.1, temperature=0.0, max_new_tokens=12)
    chats = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    expected = decode.generate(lm.model, lm.tokenizer, chats, decoding, progress=False)
    assert [s["filtered_resps"] for s in samples] == [[answer.text] for answer in expected]


def by_hand(lm: Any, query: str, choice: str) -> tuple[float, bool]:
    """A continuation's log-likelihood and whether it is greedy, a token at a time."""
    asked = lm.tokenizer(query).input_ids
    said = lm.tokenizer(f"{query} {choice}").input_ids[len(asked) :]
    total, greedy = 0.0, True
    for place, token in enumerate(said):
        ids = torch.tensor([asked + said[:place]])
        with torch.no_grad():
            logits = [m(ids).logits[0, -1] for m in (lm.model.expert, lm.model.amateur)]
        logq = contrast(*logits, strength=1.0, plausibility=lm.model.plausibility)
        outside = logits[0].log_softmax(-1)[token] - 100
        total += float(logq[token] if logq[token].isfinite() else outside)
        greedy &= int(logq.argmax()) == token
    return total, greedy


@pytest.mark.parametrize(("batch_size", "plausibility"), [(1, 0.2), (4, 0.2), (4, 1e-4), (4, 0.0)])
def test_choices_are_weighed_as_by_hand(
    batch_size: int, plausibility: float, saved: tuple[Path, Path], tasks: Path
) -> None:
    lm = load(saved, plausibility=plausibility, batch_size=batch_size)
    rates, samples = run(lm, tasks, "local_choice")
    n_right, costs = 0, []
    for row, sample in zip(CHOICES, samples, strict=True):
        expected = [by_hand(lm, str(row["query"]), choice) for choice in row["choices"]]
        found = [tuple(response) for (response,) in sample["resps"]]
        assert [value for value, _ in found] == pytest.approx([v for v, _ in expected], rel=1e-4)
        assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
        values = [value for value, _ in found]
        costs += values
        n_right += values.index(max(values)) == row["gold"]
    assert rates["acc,none"] == n_right / 2
    assert (min(costs) > -100) == (plausibility == 0), "an implausible token costs, none ties"
    assert len(set(costs)) == len(costs)


def test_what_the_pair_says_greedily_is_greedy_in_the_harness(saved: tuple[Path, Path]) -> None:
    lm = load(saved, plausibility=0.1)
    asked = lm.tokenizer("the cat", return_tensors="pt").input_ids
    said = lm.model.generate(asked, max_new_tokens=6, pad_token_id=0)[0, asked.shape[1] :]
    request = (("the cat", "any"), asked[0].tolist(), said.tolist())
    ((value, greedy),) = lm._loglikelihood_tokens([request])
    assert greedy
    assert value > -100


def test_without_contrast_numbers_are_the_expert_s_own(
    saved: tuple[Path, Path], tasks: Path
) -> None:
    from lm_eval.models.huggingface import HFLM

    alone = HFLM(pretrained=str(saved[0]), device="cpu")
    lm = load(saved, strength=0, plausibility=0)
    expected, found = (run(one, tasks, "local_choice")[1] for one in (alone, lm))
    for theirs, ours in zip(expected, found, strict=True):
        for (right,), (value,) in zip(theirs["resps"], ours["resps"], strict=True):
            assert value == pytest.approx(right, rel=1e-5)


def test_what_neither_lm_eval_nor_a_pair_knows_is_refused(saved: tuple[Path, Path]) -> None:
    with pytest.raises(ValueError, match="peft"):
        load(saved, peft="adapter")


def test_the_command_runs_both_kinds_of_tasks(
    saved: tuple[Path, Path], tasks: Path, punkt: Path, tmp_path: Path
) -> None:
    pair = f"expert={saved[0]},amateur={saved[1]},strength=1,plausibility=0.01"
    given = ["--model", "codit", "--model_args", pair, "--device", "cpu", "--batch_size", "4"]
    given += ["--tasks", "local_ifeval,local_choice", "--include_path", str(tasks)]
    given += ["--apply_chat_template", "--gen_kwargs", "max_gen_toks=6"]
    given += ["--output_path", str(tmp_path / "out.json")]
    env = {**os.environ, "NLTK_DATA": str(punkt), "HF_HUB_OFFLINE": "1"}
    # As the command, without an index of lm-eval's own tasks, which takes a minute.
    code = "import functools, runpy, lm_eval.tasks as t\n"
    code += "t.TaskManager = functools.partial(t.TaskManager, include_defaults=False)\n"
    code += "runpy.run_module('codit.evaluation.harness', run_name='__main__', alter_sys=True)"
    command = [sys.executable, "-c", code, *given]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "prompt_level_strict_acc" in done.stdout
    (file,) = tmp_path.glob("out*.json")
    found = json.loads(file.read_text())["results"]
    assert 0 <= found["local_ifeval"]["inst_level_loose_acc,none"] <= 1
    assert found["local_choice"]["acc,none"] in (0, 0.5, 1)


def test_a_trained_sentence_model_splits_and_is_never_replaced(punkt: Path) -> None:
    from nltk.tokenize import PunktTokenizer

    from codit.evaluation import harness

    text = "Mr. Green left at noon. It rained."
    assert PunktTokenizer("english").tokenize(text) == ["Mr. Green left at noon.", "It rained."]
    with pytest.raises(FileExistsError, match="punkt_tab"):
        harness.punkt(punkt, PROSE)
