"""The micro world: a language, facts, instructions, a verifier and tokenizers. All values are ours.

Knowledge (who lives where) and instruction-following (twelve verifiable constraints) are told
apart by construction, so that the paper's hypothesis can be measured.
"""

from codit.world.constraints import Constraint as Constraint
from codit.world.constraints import obeys as obeys
from codit.world.instructions import answers as answers
from codit.world.instructions import prompts as prompts
from codit.world.language import documents as documents
from codit.world.tokens import train_tokenizer as train_tokenizer
from codit.world.verifier import Verdict as Verdict
from codit.world.verifier import verify as verify
