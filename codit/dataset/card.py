"""The card of a dataset of responses: Markdown for people, with metadata that the Hub reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

TEXT = """---
{metadata}
---

# {title}

{rows} responses to instructions, drawn from the contrast of a post-trained model (expert) with its
own pre-trained checkpoint (amateur) by [codit](https://arxiv.org/abs/2604.13538): keep the tokens
with p_expert >= plausibility * max p_expert, and sample them in proportion to
p_expert / p_amateur ^ strength.

| | |
| --- | --- |
| expert | `{expert_model_id}` |
| amateur | `{amateur_model_id}` |
| responses | {rows} |
| of these complete (the expert's stop token was drawn) | {completed} |
| of these empty (no text; leave them out of training) | {empty} |
| tokens of all responses | {tokens} |
| rows without a response | {errors} |
| made | {created} |
| recipe | `{key}` |

## Decoding

| field | value |
| --- | --- |
{decoding}

## Fields

`{name}` holds one JSON object a line, in the order of the prompts:

| field | meaning |
| --- | --- |
| `id` | the prompt's; several responses to one prompt are told apart by `sample` |
| `instruction` | the last user turn |
| `response` | what was drawn, without special tokens |
| `is_completed` | whether the response ended by itself; leave the others out of training |
| `messages` | the conversation with the response as its last turn, as TRL trains on it |
| `score` | log q of each token drawn, stop token included, at temperature 1, in nats |
| `res_metadata` | decoding and models; `alpha` is the plausibility, `beta` the strength |

`load_dataset` makes times of a column of ids that all look like dates, whatever types it is told;
`codit.dataset.output.read` keeps every id as the text that it is.

Everything else that made it, versions included, stands in `{stem}.manifest.json`.

## Limits

The responses were written by a model and checked by nobody. Contrast favours what distinguishes the
expert from its amateur, which is not the same as what is true. The licences and terms of both
models and of the prompts apply; none is chosen here.
"""


def card(manifest: dict[str, Any], name: str) -> str:
    """Return the card of the finished dataset `name`: the text of README.md, without a licence."""
    decoding = manifest["recipe"]["decoding"]
    rows = [f"| {k} | {v} |" for k, v in decoding.items() if k not in ("recipe", "version")]
    title = f"Responses of {manifest['expert_model_id']}"
    metadata = DatasetCardData(
        pretty_name=title,
        task_categories=["text-generation"],
        tags=["synthetic", "instruction-tuning", "contrastive-decoding", "codit"],
        size_categories=[_size_category(manifest["rows"])],
        configs=[{"config_name": "default", "data_files": name}],
    )
    text = TEXT.format(
        metadata=metadata.to_yaml(),
        title=title,
        name=name,
        stem=name.removesuffix(".jsonl"),
        decoding="\n".join(rows),
        **{k: v for k, v in manifest.items() if k not in ("recipe", "fingerprint")},
    )
    return str(DatasetCard(text))


def with_decontamination(text: str, tally: Mapping[str, Any]) -> str:
    """Return a card with the section "Decontamination", in place of the one it had.

    It tells a tally of `overlap.tally`, and its `near_duplicates` where these were looked for, and
    stands before "Limits" or else at the end.
    """
    lines = [
        f"{tally['rows_hit']} of {tally['rows']} rows ({tally['share']:.4%}) share "
        f"{tally['n']} words in a row with a prompt of these benchmarks.",
        "A prompt of fewer words, but at least 8, matches where all of it stands in a text, a",
        "shorter one where it is the whole text. Paraphrases and translations are not found.",
        "No row was removed.",
        "",
        "| benchmark | prompts | rows | share | instructions | responses | earlier turns |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for one in tally["benchmarks"]:
        name = one["name"].replace("|", "\\|")
        counts = " | ".join(str(one[k]) for k in ("instruction", "response", "earlier turns"))
        lines.append(
            f"| {name} | {one['prompts']} | {one['rows_hit']} | {one['share']:.4%} | {counts} |"
        )
    if near := tally.get("near_duplicates"):
        lines += [
            "",
            f"{near['instruction']} of {near['instructions']} prompts and {near['response']} of "
            f"{near['responses']} responses nearly repeat an earlier one (Jaccard of three-word",
            f"shingles of at least {near['threshold']:g}).",
        ]
    section = "## Decontamination\n\n" + "\n".join(lines) + "\n"
    rest = re.sub(r"^## Decontamination\n.*?(?=^## |\Z)", "", text, flags=re.M | re.S)
    before, limits, after = rest.partition("\n## Limits\n")
    return f"{before.rstrip()}\n\n{section}{limits}{after}"


def _size_category(rows: int) -> str:
    """Return the Hub's name for a number of rows: 10K<n<100K."""
    marks = ("1K", "10K", "100K", "1M", "10M", "100M", "1B")
    above = sum(rows >= 10**power for power in range(3, 10))  # marks that are reached
    if above in (0, len(marks)):
        return "n>1B" if above else "n<1K"
    return f"{marks[above - 1]}<n<{marks[above]}"
