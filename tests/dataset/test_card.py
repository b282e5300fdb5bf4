"""The card says what the rows are, to people and to the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

from codit.dataset import card as dataset_card
from codit.dataset.output import Files, read
from tests.dataset.test_output import make, row


@pytest.fixture
def card(tmp_path: Path) -> DatasetCard:
    files = Files(tmp_path / "data.jsonl")
    error = {"id": "b", "line": 2, "error": "too long", "reason": "expected less"}
    make(files, [row("a"), error, row("c")])
    return DatasetCard.load(files.beside(".README.md"))


def test_the_hub_can_read_which_file_is_the_dataset(card: DatasetCard) -> None:
    assert card.data.configs == [{"config_name": "default", "data_files": "data.jsonl"}]
    assert card.data.task_categories == ["text-generation"]
    assert card.data.size_categories == ["n<1K"]
    assert card.data.pretty_name == "Responses of e"
    assert card.data.license is None, "both models and the prompts decide"


def test_people_can_read_models_decoding_and_counts(card: DatasetCard) -> None:
    for line in (
        "| expert | `e` |",
        "| amateur | `a` |",
        "| responses | 2 |",
        "| of these empty (no text; leave them out of training) | 0 |",
        "| rows without a response | 1 |",
        "| tokens of all responses | 4 |",
        "| plausibility | 0.01 |",
        "| max_new_tokens | 4096 |",
    ):
        assert line in card.text
    assert "data.manifest.json" in card.text
    assert "{" not in card.text, "every place is filled"


ONE = {"name": "a|b", "prompts": 80, "rows_hit": 2, "share": 0.5}
ONE |= {"instruction": 1, "response": 2, "earlier turns": 0}
TALLY = {"rows": 4, "n": 13, "rows_hit": 2, "share": 0.5, "benchmarks": [ONE]}
NEAR = {"threshold": 0.8, "instruction": 1, "instructions": 3, "response": 2, "responses": 4}


def test_what_is_shared_with_benchmarks_stands_before_the_limits(card: DatasetCard) -> None:
    text = dataset_card.with_decontamination(str(card), TALLY)
    head, section = text.split("\n## Decontamination\n")
    assert "2 of 4 rows (50.0000%) share 13 words in a row" in section
    assert "| a\\|b | 80 | 2 | 50.0000% | 1 | 2 | 0 |" in section
    assert "nearly repeat" not in section
    assert section.index("Paraphrases") < section.index("\n## Limits\n")
    assert str(card).startswith(head)
    assert DatasetCard(text).data.to_dict() == card.data.to_dict()


def test_a_second_check_takes_the_place_of_the_first(card: DatasetCard) -> None:
    first = dataset_card.with_decontamination(str(card), {**TALLY, "near_duplicates": NEAR})
    assert "1 of 3 prompts and 2 of 4 responses nearly repeat" in first
    second = dataset_card.with_decontamination(first, {**TALLY, "rows_hit": 0})
    assert second == dataset_card.with_decontamination(str(card), {**TALLY, "rows_hit": 0})
    assert "0 of 4 rows" in second


def test_a_card_without_limits_ends_with_the_section() -> None:
    text = dataset_card.with_decontamination("# Mine\n\n## Fields\n\none\n", TALLY)
    assert text.startswith("# Mine\n\n## Fields\n\none\n\n## Decontamination\n")
    assert dataset_card.with_decontamination(text, TALLY) == text


@pytest.mark.parametrize(
    ("rows", "category"),
    [
        (0, "n<1K"),
        (999, "n<1K"),
        (1_000, "1K<n<10K"),
        (250_333, "100K<n<1M"),
        (10**9, "n>1B"),
    ],
)
def test_the_size_is_named_as_the_hub_names_it(rows: int, category: str) -> None:
    assert dataset_card._size_category(rows) == category


def test_ids_like_dates_stay_text_for_who_reads_as_the_card_says(tmp_path: Path) -> None:
    files = Files(tmp_path / "data.jsonl")
    make(files, [row("2024-05-01"), row("2024-05-02")])
    assert read(files.out)["id"] == ["2024-05-01", "2024-05-02"]
    assert "`codit.dataset.output.read` keeps every id" in files.beside(".README.md").read_text()
