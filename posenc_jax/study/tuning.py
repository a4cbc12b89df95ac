"""The choice of each arm's learning rate, from in-distribution dev rows alone."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from posenc_jax.study.grid import Cell

METRIC, SPLIT = "bpb_ctx", "dev"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One arm's learning-rate curve and what it says.

    Attributes:
      curve: dev bits per byte at L by rate, ascending; None where the run has no finite one.
      rate: that of the lowest (the smaller one of a tie); None when no run has a value.
      edge: the lowest lies at an end of the grid with no run beyond it, so a better rate may too.
    """

    arm: str
    curve: tuple[tuple[float, float | None], ...]
    rate: float | None
    edge: bool


def choose(arm: str, curve: Mapping[float, float | None]) -> Choice:
    """Returns the choice from dev bits per byte by rate; a value that is not finite counts as none."""
    points = tuple((rate, _finite(curve[rate])) for rate in sorted(curve))
    values = [math.inf if value is None else value for _, value in points]
    if not values or min(values) == math.inf:
        return Choice(arm, points, None, False)
    best = values.index(min(values))
    return Choice(arm, points, points[best][0], best in (0, len(points) - 1))


def dev_loss(folder: Path) -> float | None:
    """Returns a run's dev bits per byte after L tokens of context, or None where it was not measured.

    Raises:
      ValueError: the row stands there twice, or is of another split.
    """
    path = folder / f"evaluation_{SPLIT}" / "rows.jsonl"
    if not path.exists():
        return None
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    found = [
        row for row in rows if row["metric"] == METRIC and row["length"] == row["train_length"]
    ]
    if any(row["split"] != SPLIT for row in found) or len(found) > 1:
        raise ValueError(f"{path} must hold {METRIC} at L once, of the {SPLIT} split; it holds {len(found)}")  # fmt: skip
    return found[0]["value"] if found else None


def choices(cells: Sequence[Cell], workdir: Path) -> list[Choice]:
    """Returns every arm's choice from the tuning runs below `workdir`, in the order of the arms."""
    curves: dict[str, dict[float, float | None]] = {}
    for cell in cells:
        curves.setdefault(cell.arm.name, {})[cell.rate] = dev_loss(cell.folder(workdir))
    return [choose(arm, curve) for arm, curve in curves.items()]


def record(found: Sequence[Choice], *, seed: int, steps: int) -> dict:
    """Returns the choices as JSON values, for tuning.json; steps: of the tuning runs."""
    return {
        "metric": METRIC,
        "split": SPLIT,
        "seed": seed,
        "steps": steps,
        "arms": {
            c.arm: {
                "rate": c.rate,
                "edge": c.edge,
                "curve": [{"rate": rate, METRIC: value} for rate, value in c.curve],
            }
            for c in found
        },
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
