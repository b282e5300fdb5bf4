"""`codit mt-bench`: flags, what it writes and prints, and its status."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from codit import recipes

# Models, and with them torch, are imported by the command that needs them: help takes no seconds.


def mt_bench(
    *,
    model: str,
    questions: Path,
    out: Path,
    amateur: str | None = None,
    strength: float = recipes.Decoding.strength,
    plausibility: float = recipes.Decoding.plausibility,
    max_new_tokens: int = 1024,
    temperature: float | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    revision: str | None = None,
    amateur_revision: str | None = None,
    dtype: str = recipes.Model.dtype,
    device_map: str | None = None,
    allow_renamed: bool = False,
) -> int:
    """Let a model, or a pair, answer questions of two turns; `codit judge --conversations` scores.

    Args:
        model: Hub name or folder of the model; with an amateur, of the pair's expert.
        questions: FastChat's question.jsonl: question_id, category, turns, reference where judged
            with one.
        out: file for the answers, ending in .jsonl; its folder is made. Its manifest lies beside
            it, and what could not be answered in OUT.errors.jsonl.
        amateur: Hub name or folder of the model's pre-trained counterpart: answer with the pair.
        strength: beta of the pair, at least 0.
        plausibility: alpha of the pair, in [0, 1].
        max_new_tokens: longest answer in tokens; 1024 is MT-Bench's.
        temperature: of all questions. Default: MT-Bench's own for each category.
        seed: of the noise.
        batch_size: questions answered at once.
        revision: commit, tag or branch of the model.
        amateur_revision: commit, tag or branch of the amateur.
        dtype: of all weights: auto, float32, bfloat16, ...
        device_map: where weights go: cpu, cuda:1, auto, ... Default: a GPU if there is one.
        allow_renamed: accept added tokens whose names differ between the two tokenizers.

    Returns:
        int: exit status, 1 where some question has no answers.

    Raises:
        ValueError: a question file or a model that cannot be read, flags of a pair without an
            amateur, or as `mt_bench.answer`.
        FileNotFoundError: there is no such file of questions.

    Source: MT-Bench (arXiv 2306.05685) and FastChat.
    """
    import hashlib

    from codit.dataset.output import Files
    from codit.evaluation import mt_bench as asking
    from codit.files import line_of, replacing, versions, write_json

    pair_only: dict[str, Any] = {"strength": strength, "plausibility": plausibility}
    pair_only |= {"amateur_revision": amateur_revision, "allow_renamed": allow_renamed}
    if amateur is None:
        _check_alone(pair_only)
        strength = plausibility = 0.0
    files = Files(out)
    failed, manifest = files.beside(".errors.jsonl"), files.beside(".manifest.json")
    if questions.resolve() in [path.resolve() for path in (out, failed, manifest)]:
        raise ValueError(
            f"expected an out whose files are not the questions; got {out}. Rename it."
        )
    rows = asking.read(questions)
    digest = hashlib.sha256(questions.read_bytes()).hexdigest()
    out.parent.mkdir(parents=True, exist_ok=True)  # or its absence is seen at the end
    load: dict[str, Any] = {"dtype": dtype, "device_map": device_map, "revision": revision}
    load |= {"amateur_revision": amateur_revision, "allow_renamed": allow_renamed}
    decoding = recipes.Decoding(
        strength=strength,
        plausibility=plausibility,
        temperature=1.0 if temperature is None else temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    how: dict[str, Any] = {"by_category": temperature is None, "batch_size": batch_size}
    found, errors = asking.answer(*_loaded(model, amateur, **load), rows, decoding, **how)
    for path, written in ((out, found), (failed, errors)):
        with replacing(path) as stream:
            stream.writelines(line_of(row).encode() for row in written)
    if not errors:
        failed.unlink()
    told: dict[str, Any] = {"model": model, "amateur": amateur, **load}
    told |= {"temperature": "by category" if temperature is None else temperature}
    told |= {"decoding": recipes.describe(decoding), "data": [digest]}
    told |= {"answered": len(found), "errors": len(errors), "versions": versions()}
    write_json(manifest, told)
    cut = sum(not complete for row in found for complete in row["is_completed"])
    print(f"{out}: {len(found)} of {len(rows)} conversations, {cut} answers cut")
    if errors:
        print(f"{len(errors)} without answers, the first: {errors[0]}")
    return int(bool(errors))


def _check_alone(given: dict[str, Any]) -> None:
    """Check that nothing was said about a pair where there is none."""
    usual = {"strength": recipes.Decoding.strength, "plausibility": recipes.Decoding.plausibility}
    usual |= {"allow_renamed": False}
    if said := [f"--{k.replace('_', '-')}" for k in given if given[k] != usual.get(k)]:
        raise ValueError(
            f"expected {', '.join(said)} with a pair; got no amateur. Add --amateur, or leave "
            "this out."
        )


def _loaded(
    model: str, amateur: str | None, *, dtype: str, device_map: str | None, **revisions: Any
) -> tuple[Any, Any]:
    """Return the model or the pair, and its tokenizer."""
    import torch

    from codit.engine.models import read_model
    from codit.pair import ContrastivePair, load_tokenizer

    how: dict[str, Any] = {"dtype": dtype}
    if device_map or torch.cuda.is_available():
        how["device_map"] = device_map or "cuda"
    revision = revisions.pop("revision")
    tokenizer = load_tokenizer(model, revision=revision)
    if amateur is None:
        return read_model(model, revision=revision, **how), tokenizer
    how |= {"expert_revision": revision, **revisions}
    return ContrastivePair.from_pretrained(model, amateur, **how), tokenizer
