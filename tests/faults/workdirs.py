"""What a killed run left on disk."""

import os
from pathlib import Path

from faults.small_run import last_logged


def names(folder: Path) -> list[str]:
    """Returns what is in a folder; nothing when it is not there yet, or not any more."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def checkpoints(workdir: Path) -> list[int]:
    """Returns the steps of the finished checkpoints."""
    return sorted(int(name) for name in names(workdir / "checkpoints") if name.isdigit())


def saving(workdir: Path) -> bool:
    """Whether a save was under way, of which nothing counts."""
    return any(name.startswith(".saving-") for name in names(workdir / "checkpoints"))


def lost(workdir: Path) -> int:
    """Returns the steps that were taken after the last checkpoint that counts."""
    return last_logged(workdir) - max(checkpoints(workdir), default=0)
