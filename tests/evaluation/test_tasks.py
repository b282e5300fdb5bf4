"""Tasks with known answers are read as they are published, and scored as their evaluations do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from codit.evaluation import tasks

TEXT = {
    "Categories": ["Textual Entailment"],
    "Definition": ["Say yes or no."],
    "Input_language": ["English"],
    "Output_language": ["English"],
    "Instruction_language": ["English"],
    "Positive Examples": [{"input": "a", "output": "yes", "explanation": "so it is"}],
    "Instances": [
        {"id": f"task1-{i}", "input": f"q{i}", "output": ["Yes", "Yep"]} for i in range(4)
    ],
}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in ("tasks", "splits/default"):
        (tmp_path / folder).mkdir(parents=True)
    french = {**TEXT, "Output_language": ["French"]}
    for name, task in (("task1_a", TEXT), ("task2_b", french), ("task3_c", TEXT)):
        (tmp_path / "tasks" / f"{name}.json").write_text(json.dumps(task))
    (tmp_path / "splits/default/test_tasks.txt").write_text("task1_a\ntask2_b\n")
    return tmp_path


def test_of_a_checkout_the_first_instances_of_english_test_tasks_are_read(checkout: Path) -> None:
    rows = tasks.natural_instructions(checkout, instances=3)
    assert [row["id"] for row in rows] == ["task1-0", "task1-1", "task1-2"]
    assert {(row["task"], row["family"]) for row in rows} == {("task1_a", "Textual Entailment")}
    assert rows[0]["outputs"] == ["Yes", "Yep"]
    assert tasks.asked(rows[1]) == [{"role": "user", "content": "Say yes or no.\n\nq1"}]


def test_a_checkout_without_its_list_of_tests_or_without_english_is_refused(checkout: Path) -> None:
    names = checkout / "splits/default/test_tasks.txt"
    names.write_text("task2_b\n")
    with pytest.raises(ValueError, match="expected English test tasks in .*; got none"):
        tasks.natural_instructions(checkout)
    names.unlink()
    with pytest.raises(ValueError, match=r"expected splits/default/test_tasks.txt .* Give its"):
        tasks.natural_instructions(checkout)


def on_hub(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]) -> list[Any]:
    asked = list[Any]()

    def load(name: str, *, split: str) -> datasets.Dataset:
        asked.append((name, split))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_on_the_hub_outputs_of_one_instance_come_together(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"task_name": "task1_a", "definition": "Say yes or no."}
    found = [("1", "q1", "Yes"), ("1", "q1", "Yep"), ("2", "q2", "No"), ("3", "q3", "No")]
    asked = on_hub(monkeypatch, [{**told, "id": i, "inputs": q, "targets": t} for i, q, t in found])
    rows = tasks.natural_instructions(instances=2)
    assert asked == [(tasks.HUB_INSTRUCTIONS, "test")]
    assert [(row["id"], row["outputs"]) for row in rows] == [("1", ["Yes", "Yep"]), ("2", ["No"])]
    on_hub(monkeypatch, [told])
    with pytest.raises(ValueError, match=r"missing \['id', 'inputs', 'targets'\] among"):
        tasks.natural_instructions()


NOTHING: dict[str, Any] = {"number": "", "date": {"day": "", "month": "", "year": ""}, "spans": []}
DATE = {"day": "9", "month": "May", "year": ""}


def test_drop_s_answers_are_numbers_dates_or_spans(tmp_path: Path) -> None:
    pairs = [
        {"query_id": "n", "question": "How many?", "answer": {**NOTHING, "number": "3"},
         "validated_answers": [{**NOTHING, "number": "3"}, {**NOTHING, "number": "4"}]},
        {"query_id": "d", "question": "When?", "answer": {**NOTHING, "date": DATE}},
        {"query_id": "s", "question": "Who?", "answer": {**NOTHING, "spans": ["Ann", "Ben"]}},
    ]  # fmt: skip
    file = tmp_path / "drop_dataset_dev.json"
    file.write_text(json.dumps({"nfl_1": {"passage": "A text.", "qa_pairs": pairs}}))
    rows = tasks.drop(file)
    assert [row["outputs"] for row in rows] == [["3", "4"], ["9 May"], ["Ann, Ben"]]
    assert rows[0]["input"] == "Passage: A text.\nQuestion: How many?"
    file.write_text(json.dumps([{"passage": "A text."}]))
    with pytest.raises(ValueError, match=r"expected DROP's own JSON .* Give drop_dataset_dev.json"):
        tasks.drop(file)


def test_drop_on_the_hub_has_one_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = {"spans": ["Ann", "Ben"], "types": ["span", "span"]}
    row = {"query_id": "q", "passage": "A text.", "question": "Who?", "answers_spans": spans}
    asked = on_hub(monkeypatch, [row])
    (found,) = tasks.drop()
    assert asked == [(tasks.HUB_DROP, "validation")]
    assert (found["id"], found["outputs"]) == ("q", ["Ann, Ben"])


@pytest.mark.parametrize(
    ("text", "is_right"), [(" paris.\n", True), ("PARIS", True), ("In Paris", False), ("", False)]
)
def test_an_exact_answer_may_differ_in_case_and_a_last_stop(text: str, is_right: bool) -> None:
    assert tasks.exact(text, ["Rome", "Paris."]) == is_right


def test_rouge_l_is_the_best_f_over_outputs_of_stemmed_words() -> None:
    pytest.importorskip("rouge_score", reason='rouge-score is an extra: pip install -e ".[eval]"')
    assert tasks.rouge_l("the dogs ran", ["a cat", "the dog runs home"]) == pytest.approx(4 / 7)
    assert tasks.rouge_l("", ["a cat"]) == 0
