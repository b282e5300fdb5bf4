"""Time and memory of cosines between checkpoints that are larger than the memory allowed.

`python -m tests.benchmarks.bench_chat_vector [--gigabytes 1] [--json FILE]` writes two pairs of
random bfloat16 checkpoints, in several shards, to a temporary folder and compares the update of
one pair with the chat vector of the other, in a process of its own.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated, Any

import psutil
import torch
import tyro
from safetensors.torch import save_file

GOAL = 300  # MB above what importing takes, at the peak
SHARDS = 4
HIDDEN, ROWS = 2048, 32_000  # of the embedding; 131 MB in bfloat16
NAMES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
EXPLAINED = """\
anonymous   memory that the process allocated itself (RssAnon), polled every 5 ms
unique      what ending the process would free (psutil's uss), polled every 100 ms
resident    the kernel's own peak (VmHWM, set back after the imports): pages of mapped checkpoint
            files count too while a file is open; files are opened per block, so they are few.
            ru_maxrss would not do: a process inherits that of the one that started it.
Goal, met by all three: at most {goal} MB above the same number after the imports."""


def write_checkpoint(folder: Path, *, gigabytes: float, seed: int) -> int:
    """Write a random bfloat16 checkpoint of about this size, and return its bytes."""
    noise = torch.Generator().manual_seed(seed)
    folder.mkdir()
    names = ["model.embed_tokens.weight"]
    layer = len(NAMES) * HIDDEN * HIDDEN * 2
    layers = max(1, round((gigabytes * 1e9 - ROWS * HIDDEN * 2) / layer))
    names += [f"model.layers.{i}.{name}.weight" for i in range(layers) for name in NAMES]
    where, total = {}, 0
    for number in range(SHARDS):
        file = f"model-{number + 1:05d}-of-{SHARDS:05d}.safetensors"
        part = {}
        for name in names[number::SHARDS]:
            shape = (ROWS if "embed" in name else HIDDEN, HIDDEN)
            part[name] = torch.empty(shape, dtype=torch.bfloat16).normal_(generator=noise)
        save_file(part, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(part, file)
        total += sum(tensor.nbytes for tensor in part.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def status(field: str) -> float:
    """Return a field of what the kernel says of this process, in MB."""
    text = Path("/proc/self/status").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024


def unique() -> float:
    """Return what ending this process would free, in MB."""
    return psutil.Process().memory_full_info().uss / 2**20


def measure(after: str, before: str, post: str, pre: str) -> None:
    """Print seconds and peaks above the imports, as JSON: what the process of its own does."""
    from codit import chat_vector

    torch.ones(2, 2) @ torch.ones(2, 2)  # what arithmetic loads at its first use
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
    baseline = {"anonymous": status("RssAnon"), "unique": unique(), "resident": status("VmRSS")}
    peak, done = dict(baseline), threading.Event()

    def poll() -> None:
        for turn in itertools.count():
            peak["anonymous"] = max(peak["anonymous"], status("RssAnon"))
            if turn % 20 == 0:  # dearer: the kernel walks through every mapping
                peak["unique"] = max(peak["unique"], unique())
            if done.wait(0.005):
                break

    watcher = threading.Thread(target=poll)
    watcher.start()
    start = time.monotonic()
    table = chat_vector.cosines((after, before), (post, pre))
    seconds = time.monotonic() - start
    done.set()
    watcher.join()
    peak["resident"] = status("VmHWM")
    above = {name: round(peak[name] - baseline[name], 1) for name in peak}
    cosine = float(table["cosine"].iloc[-1])
    print(json.dumps({"seconds": round(seconds, 2), "above": above, "cosine": cosine}))


def main(
    *,
    gigabytes: float = 1.0,
    json_file: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> int:
    """Measure and print a table; status 1 where the goal is missed."""
    roles = ("after", "before", "post", "pre")
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / role for role in roles]
        sizes = [
            write_checkpoint(path, gigabytes=gigabytes, seed=seed)
            for seed, path in enumerate(paths)
        ]
        command = [sys.executable, "-m", __spec__.name, "measure", *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, file=sys.stderr)
        return done.returncode
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    found |= {"gigabytes": sum(sizes) / 1e9, "shards": SHARDS, "threads": torch.get_num_threads()}
    found["goal_mb"], found["met"] = GOAL, max(found["above"].values()) <= GOAL
    print(f"read        {found['gigabytes']:.2f} GB of bfloat16, 4 checkpoints of {SHARDS} shards")
    print(f"time        {found['seconds']:.1f} s, {found['threads']} threads")
    for name, value in found["above"].items():
        print(f"{name:<10} {value:6.1f} MB above the imports, at the peak")
    print(EXPLAINED.format(goal=GOAL) if found["met"] else f"The goal, {GOAL} MB, was missed.")
    if json_file is not None:
        json_file.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if found["met"] else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(*sys.argv[2:])
    else:
        sys.exit(tyro.cli(main))
