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
        out: file for the answers, ending in .jsonl; its manifest lies beside it, and what could not
            be answered in OUT.errors.jsonl.
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
        ValueError: a question file or a model that cannot be read; see `mt_bench.answer`.
        FileNotFoundError: there is no such file of questions.

    Source: MT-Bench (arXiv 2306.05685) and FastChat.
    """
    from codit import dataset_file, store
    from codit import mt_bench as asking
    from codit.record_lines import line_of

    files = dataset_file.Files(out)
    if out.resolve() == questions.resolve():
        raise ValueError(f"expected out to be another file than the questions; got {out} twice.")
    rows = asking.read(questions)
    load: dict[str, Any] = {"dtype": dtype, "device_map": device_map, "revision": revision}
    load |= {"amateur_revision": amateur_revision, "allow_renamed": allow_renamed}
    loaded, tokenizer = _loaded(model, amateur, load)
    is_pair = amateur is not None
    decoding = recipes.Decoding(
        strength=strength if is_pair else 0.0,
        plausibility=plausibility if is_pair else 0.0,
        temperature=1.0 if temperature is None else temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    found, errors = asking.answer(
        loaded,
        tokenizer,
        rows,
        decoding,
        by_category=temperature is None,
        batch_size=batch_size,
    )
    for path, lines in ((out, found), (files.beside(".errors.jsonl"), errors)):
        with store.replacing(path) as stream:
            stream.writelines(line_of(row).encode() for row in lines)
    if not errors:
        files.beside(".errors.jsonl").unlink()
    told = {"model": model, "amateur": amateur, "temperature": temperature or "by category"}
    manifest = {**told, **load, "decoding": recipes.describe(decoding), "answered": len(found)}
    manifest |= {"errors": len(errors), "versions": store.versions()}
    store.write_json(files.beside(".manifest.json"), manifest)
    cut = sum(not complete for row in found for complete in row["is_completed"])
    print(f"{out}: {len(found)} of {len(rows)} conversations, {cut} answers cut")
    if errors:
        print(f"{len(errors)} without answers, the first: {errors[0]}")
    return int(bool(errors))


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
