"""Checkpoints of a run: written whole, verified before they are read, restored onto any mesh."""
