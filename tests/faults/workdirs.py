"""State of a killed run's folder: checkpoints, unfinished saves, lost steps."""

import os
from pathlib import Path

from faults.small_run import last_logged


def names(folder: Path) -> list[str]:
    """Returns the entries of a folder; none for a missing folder."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def checkpoints(workdir: Path) -> list[int]:
    """Returns the steps of the finished checkpoints."""
    return sorted(int(name) for name in names(workdir / "checkpoints") if name.isdigit())


def saving(workdir: Path) -> bool:
    """Whether a save was interrupted."""
    return any(name.startswith(".saving-") for name in names(workdir / "checkpoints"))


def lost(workdir: Path) -> int:
    """Returns the number of steps taken after the last checkpoint."""
    return last_logged(workdir) - max(checkpoints(workdir), default=0)
