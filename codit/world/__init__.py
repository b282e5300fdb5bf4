"""The micro world: a language, facts, instructions, a verifier and tokenizers. All values are ours.

Knowledge (who lives where) and instruction-following (twelve verifiable constraints) are told
apart by construction, so that the paper's hypothesis can be measured.
"""

from codit.world.constraints import Constraint, obeys
from codit.world.instructions import answers, prompts
from codit.world.language import documents
from codit.world.tokens import train_tokenizer
from codit.world.verifier import Verdict, verify

__all__ = [
    "Constraint",
    "Verdict",
    "answers",
    "documents",
    "obeys",
    "prompts",
    "train_tokenizer",
    "verify",
]
