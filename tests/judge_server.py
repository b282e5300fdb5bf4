"""A real OpenAI-compatible server on loopback, and a model folder small enough for every test.

The model is random: what it says is never an answer. A model that has learned to judge is made by
`codit.world.judge.make`; both are served by `codit.world.server.serve`, which this hands on.
"""

from __future__ import annotations

from pathlib import Path

from codit.world.server import serve
from tests import tiny

__all__ = ["mute", "serve"]


def mute(folder: Path) -> Path:
    """Write a model that answers noise to `folder/mute`, with all that a server wants of it."""
    target = folder / "mute"
    tiny.model("llama", seed=0).save_pretrained(target)
    tiny.tokenizer().save_pretrained(target)
    return target
