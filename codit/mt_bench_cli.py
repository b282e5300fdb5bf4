"""`codit mt-bench`: flags, what it writes and prints, and its status."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from codit import recipes

if TYPE_CHECKING:
    from codit.dataset_file import Files

ERRORS, MANIFEST = ".errors.jsonl", ".manifest.json"

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
    from codit import dataset_file
    from codit import mt_bench as asking

    pair_only: dict[str, Any] = {"strength": strength, "plausibility": plausibility}
    pair_only |= {"amateur_revision": amateur_revision, "allow_renamed": allow_renamed}
    if amateur is None:
        _check_alone(pair_only)
        strength = plausibility = 0.0
    files = dataset_file.Files(out)
    _check_files(questions, files)
    rows = asking.read(questions)
    files.out.parent.mkdir(parents=True, exist_ok=True)  # or its absence is seen at the end
    load: dict[str, Any] = {"dtype": dtype, "device_map": device_map, "revision": revision}
    load |= {"amateur_revision": amateur_revision, "allow_renamed": allow_renamed}
    loaded, tokenizer = _loaded(model, amateur, load)
    decoding = recipes.Decoding(
        strength=strength,
        plausibility=plausibility,
        temperature=1.0 if temperature is None else temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    by_category = temperature is None
    how: dict[str, Any] = {"by_category": by_category, "batch_size": batch_size}
    found, errors = asking.answer(loaded, tokenizer, rows, decoding, **how)
    told: dict[str, Any] = {"model": model, "amateur": amateur, **load}
    told |= {"temperature": "by category" if by_category else temperature}
    told |= {"decoding": recipes.describe(decoding)}
    _write(files, found, errors, told | {"data": [_digest(questions)]})
    cut = sum(not complete for row in found for complete in row["is_completed"])
    print(f"{out}: {len(found)} of {len(rows)} conversations, {cut} answers cut")
    if errors:
        print(f"{len(errors)} without answers, the first: {errors[0]}")
    return int(bool(errors))


def _check_alone(given: dict[str, Any]) -> None:
    """Check that nothing was said about a pair where there is none."""
    usual: dict[str, Any] = {"strength": recipes.Decoding.strength}
    usual |= {"plausibility": recipes.Decoding.plausibility}
    usual |= {"amateur_revision": None, "allow_renamed": False}
    if said := [f"--{name.replace('_', '-')}" for name in given if given[name] != usual[name]]:
        raise ValueError(
            f"expected {', '.join(said)} with a pair; got no amateur. Add --amateur, or leave "
            "this out."
        )


def _check_files(questions: Path, files: Files) -> None:
    """Check that no file of the result takes the questions' place."""
    written = [files.out, *map(files.beside, (ERRORS, MANIFEST))]
    if questions.resolve() in [path.resolve() for path in written]:
        raise ValueError(
            f"expected an out whose files are not the questions; got {files.out} for {questions}. "
            "Rename it."
        )


def _write(
    files: Files, found: list[dict[str, Any]], errors: list[dict[str, Any]], told: dict[str, Any]
) -> None:
    """Write answers, what has none, and, last, the manifest."""
    from codit.files import line_of, replacing, versions, write_json

    for path, rows in ((files.out, found), (files.beside(ERRORS), errors)):
        with replacing(path) as stream:
            stream.writelines(line_of(row).encode() for row in rows)
    if not errors:
        files.beside(ERRORS).unlink()
    counts = {"answered": len(found), "errors": len(errors)}
    write_json(files.beside(MANIFEST), {**told, **counts, "versions": versions()})


def _digest(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()


def _loaded(model: str, amateur: str | None, load: dict[str, Any]) -> tuple[Any, Any]:
    """Return the model or the pair, and its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    from codit.pair import ContrastivePair
    from codit.vocabulary import load_tokenizer, loading

    device = load["device_map"] or ("cuda" if torch.cuda.is_available() else None)
    how: dict[str, Any] = {"dtype": load["dtype"]}
    how |= {} if device is None else {"device_map": device}
    tokenizer = load_tokenizer(model, revision=load["revision"])
    if amateur is None:
        with loading("weights", model):
            found = AutoModelForCausalLM.from_pretrained(model, revision=load["revision"], **how)
        return found, tokenizer
    pair = ContrastivePair.from_pretrained(
        model,
        amateur,
        expert_revision=load["revision"],
        amateur_revision=load["amateur_revision"],
        allow_renamed=load["allow_renamed"],
        **how,
    )
    return pair, tokenizer
