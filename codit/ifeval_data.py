"""IFEval's prompts, and the sentence model that its checkers count with: files, nothing fetched."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PUNKT = "tokenizers/punkt_tab/english"
FIELDS = {"key": int, "prompt": str, "instruction_id_list": list, "kwargs": list}


def check() -> None:
    """Raise unless lm-eval and the data of NLTK that it reads are here; nothing is fetched.

    Raises:
        ValueError: what is missing, and the command that gets it.

    Source: ours. lm-eval would go on to download the data by itself.
    """
    try:
        import lm_eval  # noqa: F401
        import nltk
    except ImportError as error:
        raise ValueError(
            f"expected lm-eval, which runs IFEval; got {error}. Install it: "
            'pip install -e ".[eval]"'
        ) from error
    try:
        nltk.data.find(f"{PUNKT}/")
    except LookupError:
        raise ValueError(
            "expected NLTK's sentence model punkt_tab; found none where NLTK looks (NLTK_DATA, "
            "~/nltk_data, ...). Fetch it: python -m nltk.downloader punkt_tab; or train one "
            "without a network: codit.ifeval_data.punkt"
        ) from None


def read(path: str | Path, *, limit: int | None = None) -> list[dict[str, Any]]:
    """Read IFEval's prompts and build each of their instructions once, before anything is asked.

    Args:
        path: JSON lines with key, prompt, instruction_id_list and kwargs.
        limit: only the first so many. None: all.

    Returns:
        list[dict]: these four fields of each row, in the order of the file.

    Raises:
        ValueError: as `check`; fewer than two rows, or one that lm-eval's checkers cannot read.
        FileNotFoundError: there is no such file.

    Source: the format: Zhou et al. 2023.
    """
    check()
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(), start=1):
        if line.strip() and (limit is None or len(rows) < limit):
            try:
                rows.append(_row(line))
            except (AttributeError, TypeError, ValueError) as error:
                reason = f"line {number} of {path} is no prompt of IFEval: {error}"
                raise ValueError(reason) from error
    if len(rows) < 2:
        raise ValueError(f"expected at least 2 prompts, for intervals; got {len(rows)}. Give more.")
    return rows


def punkt(folder: str | Path, texts: Iterable[str]) -> Path:
    """Train a small sentence model with NLTK, for machines that cannot fetch NLTK's own.

    It counts sentences a little otherwise than NLTK's, so numbers made with it compare with
    nothing published. This process finds it from now on; another one by NLTK_DATA=folder.

    Args:
        folder: made if missing; must not hold a model yet.
        texts: English prose to learn abbreviations from.

    Returns:
        Path: the model, folder/tokenizers/punkt_tab/english.

    Raises:
        ValueError: no NLTK, or no text.
        FileExistsError: there is a model in the folder.

    Source: Kiss and Strunk 2006, in NLTK's implementation.
    """
    try:
        import nltk
        from nltk.tokenize.punkt import PunktTrainer, save_punkt_params
    except ImportError as error:
        raise ValueError(f'expected NLTK; got {error}. pip install -e ".[eval]"') from error
    joined = "\n".join(texts)
    if not joined.strip():
        raise ValueError("expected texts to learn sentences from; got none.")
    root = Path(folder).resolve()
    target = root / PUNKT
    if target.exists():
        raise FileExistsError(f"expected no sentence model; there is one in {target}. Use it.")
    trainer = PunktTrainer()
    trainer.train(joined, verbose=False)
    target.parent.mkdir(parents=True, exist_ok=True)
    if str(root) not in nltk.data.path:
        nltk.data.path.insert(0, str(root))  # NLTK writes in its own folders only
    save_punkt_params(trainer.get_params(), dir=str(target))
    return target


def _row(line: bytes) -> dict[str, Any]:
    """Return the fields of a line, or raise what its instructions raise."""
    from lm_eval.tasks.ifeval.instructions_registry import INSTRUCTION_DICT

    row = json.loads(line)
    for name, kind in FIELDS.items():
        if not isinstance(row, dict) or not isinstance(row.get(name), kind):
            raise ValueError(f"expected an object with {name} ({kind.__name__}); got {row!r:.80}")
    named, given = row["instruction_id_list"], row["kwargs"]
    if not named or len(named) != len(given) or set(named) - set(INSTRUCTION_DICT):
        raise ValueError(f"expected instructions of lm-eval, kwargs for each; got {named}, {given}")
    for name, values in zip(named, given, strict=True):
        INSTRUCTION_DICT[name](name).build_description(**{k: v for k, v in values.items() if v})
    return {name: row[name] for name in FIELDS}
