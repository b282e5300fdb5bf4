"""CoDIT: instruction-tuning data by contrasting a post-trained model with its pre-trained self.

The public names are loaded when they are first asked for, so `import codit` costs nothing:
`codit.ContrastivePair`, `codit.generate`, ..., and the modules `contrast` and `chat_vector`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what an editor completes and mypy reads
    from codit.decode import Response as Response
    from codit.decode import generate as generate
    from codit.decode import token_table as token_table
    from codit.pair import ContrastivePair as ContrastivePair
    from codit.pair import load_tokenizer as load_tokenizer
    from codit.recipes import Decoding as Decoding
    from codit.student import evaluate as evaluate
    from codit.student import train as train
    from codit.synthesis import synthesize as synthesize

__version__ = "0.1.0"

_HOME = {
    "ContrastivePair": "pair",
    "Decoding": "recipes",
    "Response": "decode",
    "evaluate": "student",
    "generate": "decode",
    "load_tokenizer": "pair",
    "synthesize": "synthesis",
    "token_table": "decode",
    "train": "student",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f"codit.{_HOME[name]}"), name)
    if name in ("chat_vector", "contrast"):
        return import_module(f"codit.{name}")
    raise AttributeError(f"module 'codit' has no attribute {name!r}; it has {sorted(_HOME)}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, "chat_vector", "contrast"})
