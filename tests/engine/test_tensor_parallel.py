"""A pair whose weights are split over two processes draws what it draws in one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from codit.decode import generate
from codit.pair import ContrastivePair, load_tokenizer
from codit.recipes import Decoding
from tests import tiny

ROOT = Path(__file__).parents[2]
CHATS = [[{"role": "user", "content": text}] for text in ("cat", "is it in the house?")]
HOW = Decoding(max_new_tokens=8, plausibility=0.05)

SPLIT = """
import json, sys, torch
from pathlib import Path
from transformers.distributed import DistributedConfig
from codit.decode import generate
from codit.pair import ContrastivePair, load_tokenizer
from tests.engine.test_tensor_parallel import CHATS, HOW
folder, out = map(Path, sys.argv[1:])
pair = ContrastivePair.from_pretrained(
    folder, distributed_config=DistributedConfig(tp_plan="auto"), attn_implementation="eager"
)
weight = pair.expert.model.layers[0].mlp.gate_proj.weight
local = weight.to_local() if hasattr(weight, "to_local") else weight
drawn = generate(pair, load_tokenizer(folder), CHATS, HOW, ids=["a", "b"], progress=False)
found = {
    "tokens": [response.token_ids for response in drawn],
    "split": list(local.shape) != [pair.expert.config.intermediate_size, local.shape[1]],
    "attention": [half.config._attn_implementation for half in (pair.expert, pair.amateur)],
    "gathers": pair.gathers_head,
}
(out / f"{torch.distributed.get_rank()}.json").write_text(json.dumps(found))
"""


def test_a_pair_split_over_two_processes_draws_the_same_tokens(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    pair = tiny.pair("llama", vocab_size=len(tokenizer))
    pair.save_pretrained(tmp_path / "pair", tokenizer=tokenizer)
    whole = ContrastivePair.from_pretrained(tmp_path / "pair")
    ready = load_tokenizer(tmp_path / "pair")
    expected = generate(whole, ready, CHATS, HOW, ids=["a", "b"], progress=False)
    (tmp_path / "split.py").write_text(SPLIT)
    launch = ["torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    command = [sys.executable, "-m", *launch, "--nproc-per-node", "2", str(tmp_path / "split.py")]
    done = subprocess.run(
        [*command, str(tmp_path / "pair"), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for rank in (0, 1):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == {
            "tokens": [response.token_ids for response in expected],
            "split": True,
            "attention": ["eager", "eager"],
            "gathers": False,  # a head in parts is computed whole
        }
