"""Checkpoints as named tensors, a block at a time."""
