"""`codit serve`: the pair behind vLLM's OpenAI-compatible server, on this machine alone."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from codit.cli.flags import ModelFlags
from codit.recipes import Decoding

LOOPBACK = "127.0.0.1"
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0}
"""What a request that names nothing is drawn with: the authors' scripts, not what the expert's own
generation_config recommends for the expert alone."""


def serve(
    *,
    models: ModelFlags,
    strength: float = Decoding.strength,
    plausibility: float = Decoding.plausibility,
    host: str = LOOPBACK,
    port: int = 8000,
    name: str | None = None,
    tensor_parallel_size: int = 1,
    data_parallel_size: int = 1,
    max_model_len: int | None = None,
    dry_run: bool = False,
    engine_args: str | None = None,
) -> int:
    """Answer OpenAI's HTTP requests by a pair: check both models, print `vllm serve ...`, run it.

    Needs the extra `vllm`. Chat requests get the expert's template with thinking switched off.

    Args:
        models: which pair answers.
        strength: beta, at least 0.
        plausibility: alpha in [0, 1].
        host: address to listen on; other machines reach 0.0.0.0, without a key unless --api-key
            is among engine_args.
        port: to listen on.
        name: what requests call the model. Default: the expert's name.
        tensor_parallel_size: GPUs that share a copy of the pair.
        data_parallel_size: copies of the pair.
        max_model_len: tokens of prompt and response. Default: what both models can read.
        dry_run: print the command and stop.
        engine_args: further flags of vllm serve, as one text: --engine-args="--max-num-seqs 64".

    Returns:
        int: exit status; vLLM's own once it runs.
    """
    from codit.engine.vllm import engine

    amateur = models.recipe(Decoding()).pair.amateur.name
    checked = {key: value for key, value in asdict(models).items() if key != "dtype"}
    made = engine.overrides(strength=strength, plausibility=plausibility, **checked)
    expert, revisions = models.expert, (models.expert_revision, models.amateur_revision)
    longest = max_model_len or engine.context(expert, amateur, made, revisions=revisions)
    flags: dict[str, Any] = {
        "hf-overrides": json.dumps(made),
        "override-generation-config": json.dumps(SAMPLING),
        "default-chat-template-kwargs": json.dumps({"enable_thinking": False}),
        "host": host,
        "port": port,
        "served-model-name": name or expert,
        "dtype": models.dtype,
        "tensor-parallel-size": tensor_parallel_size,
        "data-parallel-size": data_parallel_size,
        "max-model-len": longest,
        "revision": models.expert_revision,
        "tokenizer-revision": models.expert_revision,
    }
    command = ["vllm", "serve", expert]
    for flag, value in flags.items():
        command += [] if value is None else [f"--{flag}", str(value)]
    command += shlex.split(engine_args or "")
    print(shlex.join(command), flush=True)
    if dry_run:
        return 0
    # Beside this Python first: environments need no activation.
    places = [str(Path(sys.executable).parent), *os.environ.get("PATH", "").split(os.pathsep)]
    program = shutil.which("vllm", path=os.pathsep.join(places))
    if program is None:
        raise ValueError(
            'expected the program vllm; got none. `pip install -e ".[vllm]"` in an environment '
            "of its own, or run the printed command there."
        )
    os.execv(program, [program, *command[1:]])
