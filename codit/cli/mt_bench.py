"""`codit mt-bench`: flags, what it writes and prints, and its status."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from codit import recipes
from codit.cli.flags import ANYWHERE, DecodingFlags, Models, PlacingFlags

USUAL = recipes.Decoding(max_new_tokens=1024)


def mt_bench(
    *,
    model: str,
    questions: Path,
    out: Path,
    amateur: str | None = None,
    decoding: DecodingFlags = USUAL,
    one_temperature: bool = False,
    batch_size: int | None = None,
    revision: str | None = None,
    amateur_revision: str | None = None,
    dtype: str = Models.dtype,
    allow_renamed: bool = False,
    placing: PlacingFlags = ANYWHERE,
) -> int:
    """Let a model, or a pair, answer questions of two turns; `codit judge --conversations` scores.

    Questions, and temperatures by category: MT-Bench (arXiv 2306.05685) and FastChat.

    Args:
        model: Hub name or folder of the model; with an amateur, of the pair's expert.
        questions: FastChat's question.jsonl: question_id, category, turns, reference where judged
            with one.
        out: file for the answers, ending in .jsonl; its folder is made. Its manifest lies beside
            it, and what could not be answered in OUT.errors.jsonl.
        amateur: Hub name or folder of the model's pre-trained counterpart: answer with the pair.
        decoding: how answers are drawn; 1,024 tokens at most are MT-Bench's.
        one_temperature: ask all questions at `temperature`, not at MT-Bench's own for the category.
        batch_size: questions answered at once.
        revision: commit, tag or branch of the model.
        amateur_revision: commit, tag or branch of the amateur.
        dtype: of all weights: auto, float32, bfloat16, ...
        allow_renamed: accept added tokens whose names differ between the two tokenizers.
        placing: where weights go.

    Returns:
        int: exit status, 1 where some question has no answers.
    """
    from codit.dataset import teacher
    from codit.dataset.output import Files
    from codit.engine.chat import dated
    from codit.evaluation import mt_bench as asking
    from codit.files import check_apart, versions, write_json, write_lines

    if amateur is None:
        said = {
            "--strength": decoding.strength != USUAL.strength,
            "--plausibility": decoding.plausibility != USUAL.plausibility,
            "--amateur-revision": amateur_revision is not None,
            "--allow-renamed": allow_renamed,
        }
        if any(said.values()):
            raise ValueError(
                f"expected {', '.join(flag for flag in said if said[flag])} with a pair; got no "
                "amateur. Add --amateur, or leave this out."
            )
        decoding = replace(decoding, strength=0.0, plausibility=0.0)
    if not one_temperature and decoding.temperature != USUAL.temperature:
        raise ValueError(
            f"MT-Bench has a temperature for each category; got {decoding.temperature} for all. "
            "Add --one-temperature, or leave the temperature out."
        )
    files = Files(out)
    failed, manifest = files.beside(".errors.jsonl"), files.beside(".manifest.json")
    check_apart([out, failed, manifest], [questions])
    rows, digest = asking.read(questions), hashlib.sha256(questions.read_bytes()).hexdigest()
    out.parent.mkdir(parents=True, exist_ok=True)  # or its absence is seen at the end
    named = {"amateur_revision": amateur_revision, "dtype": dtype, "allow_renamed": allow_renamed}
    pair: dict[str, Any] = {"expert": model, "amateur": amateur or model, **named}
    recipe = Models(expert_revision=revision, **pair).recipe(decoding)
    answering, tokenizer = teacher.ready(recipe, **placing.here())
    how: dict[str, Any] = {"by_category": not one_temperature, "batch_size": batch_size}
    now = datetime.now().isoformat(timespec="seconds")
    tokenizer, date = dated(tokenizer, now)  # one for both turns
    found, errors = asking.answer(answering, tokenizer, rows, decoding, **how)
    write_lines(out, found)
    if errors:
        write_lines(failed, errors)
    else:
        failed.unlink(missing_ok=True)
    told = {"model": model, "amateur": amateur, "revision": revision, **named, **asdict(placing)}
    told |= {"temperature": decoding.temperature if one_temperature else "by category"}
    told |= {} if date is None else {"date": date}
    told |= {"decoding": recipes.describe(decoding), "data": [digest]}
    told |= {"answered": len(found), "errors": len(errors), "versions": versions()}
    write_json(manifest, told)
    cut = sum(not complete for row in found for complete in row["is_completed"])
    print(f"{out}: {len(found)} of {len(rows)} conversations, {cut} answers cut")
    if errors:
        print(f"{len(errors)} without answers, the first: {errors[0]}")
    return int(bool(errors))
