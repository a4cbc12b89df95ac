"""Checkpoints of a run: atomic writes, verification before every read, restore onto any mesh."""
