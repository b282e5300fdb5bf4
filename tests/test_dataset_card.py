"""The card says what the rows are, to people and to the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import DatasetCard

from codit import dataset_card
from codit.dataset_file import Files
from tests.test_dataset_file import make, row


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
        "| rows without a response | 1 |",
        "| tokens of all responses | 4 |",
        "| plausibility | 0.01 |",
        "| max_new_tokens | 4096 |",
    ):
        assert line in card.text
    assert "data.manifest.json" in card.text
    assert "{" not in card.text, "every place is filled"


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
