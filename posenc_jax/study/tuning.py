"""The choice of each arm's learning rate, from in-distribution dev rows alone."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from posenc_jax.results.files import read_json_lines
from posenc_jax.results.load import evaluation_folder
from posenc_jax.results.schema import BPB, ID, row_from_json
from posenc_jax.study.grid import GridCell

SPLIT = "dev"


@dataclasses.dataclass(frozen=True)
class Choice:
    """One arm's learning-rate curve and what it says.

    Attributes:
      curve: dev bits per byte within L by rate, ascending; None where the run has no finite one.
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
    """Returns a run's dev bits per byte in distribution (E3 at c = L/2), or None where there is none.

    Raises:
      ValueError: the row stands there twice, or is of another split.
    """
    path = evaluation_folder(folder, SPLIT) / "rows.jsonl"
    if not path.exists():
        return None
    rows = [row_from_json(stored) for _, stored in read_json_lines(path)[0]]
    found = [row for row in rows if row.metric == BPB and row.length == row.train_length // 2]
    if any(row.split != SPLIT for row in found) or len(found) > 1:
        raise ValueError(f"{path} must hold {BPB} at L/2 once, of the {SPLIT} split; it holds {len(found)}")  # fmt: skip
    return found[0].value if found else None


def choices(cells: Sequence[GridCell], workdir: Path) -> list[Choice]:
    """Returns every arm's choice from the tuning runs below `workdir`, in the order of the arms."""
    curves: dict[str, dict[float, float | None]] = {}
    for cell in cells:
        curves.setdefault(cell.arm.name, {})[cell.rate] = dev_loss(cell.folder(workdir))
    return [choose(arm, curve) for arm, curve in curves.items()]


def record(found: Sequence[Choice], *, seed: int, steps: int) -> dict:
    """Returns the choices as JSON values, for tuning.json; steps: of the tuning runs."""
    return {
        "metric": BPB,
        "k": ID,
        "split": SPLIT,
        "seed": seed,
        "steps": steps,
        "arms": {
            c.arm: {
                "rate": c.rate,
                "edge": c.edge,
                "curve": [{"rate": rate, BPB: value} for rate, value in c.curve],
            }
            for c in found
        },
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
