"""CoDIT: instruction-tuning data by contrasting a post-trained model with its pre-trained self.

Modules are the table of contents: `codit.contrast`, `codit.pair`, `codit.decode`,
`codit.synthesis`, `codit.student`, `codit.world`, `codit.experiments`.
"""

__version__ = "0.1.0"
