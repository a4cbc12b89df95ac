"""Choice of the learning rate of each arm, by in-distribution loss on dev alone."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from posenc_jax.results.files import read_json_lines
from posenc_jax.results.load import evaluation_folder
from posenc_jax.results.schema import BPB, ID
from posenc_jax.results.stored_run import checked_row
from posenc_jax.study.grid import GridCell

SPLIT = "dev"


@dataclasses.dataclass(frozen=True)
class Choice:
    """The learning-rate curve of one arm and the chosen rate.

    Attributes:
      curve: (rate, dev bits per byte within L), ascending; None where the run has no finite value.
      rate: of the lowest value (the smaller rate of a tie); None when no run has a value.
      edge: whether the rate is the first or last of the grid, so that a better one may lie outside.
    """

    arm: str
    curve: tuple[tuple[float, float | None], ...]
    rate: float | None
    edge: bool


def choose(arm: str, curve: Mapping[float, float | None]) -> Choice:
    """Returns the choice from dev bits per byte by rate; values that are not finite are none."""
    points = tuple(
        (rate, value if value is not None and math.isfinite(value) else None)
        for rate, value in sorted(curve.items())
    )
    values = [math.inf if value is None else value for _, value in points]
    if min(values, default=math.inf) == math.inf:
        return Choice(arm, points, None, False)
    best = values.index(min(values))
    return Choice(arm, points, points[best][0], best in (0, len(points) - 1))


def dev_loss(folder: Path) -> float | None:
    """Returns a run's dev bits per byte at L/2, or None; ValueError for other or double rows."""
    path = evaluation_folder(folder, SPLIT) / "rows.jsonl"
    if not path.exists():
        return None
    rows = [checked_row(stored, path, number) for number, stored in read_json_lines(path)[0]]
    at_half = [row for row in rows if row.metric == BPB and row.length == row.train_length // 2]
    if any(row.split != SPLIT for row in at_half) or len(at_half) > 1:
        raise ValueError(
            f"{path} must hold {BPB} at L/2 once, of the {SPLIT} split; it holds {len(at_half)}"
        )
    return at_half[0].value if at_half else None


def choices(cells: Sequence[GridCell], workdir: Path) -> list[Choice]:
    """Returns the choice of every arm from its tuning runs, in the order of the arms."""
    curves: dict[str, dict[float, float | None]] = {}
    for cell in cells:
        if cell.rate is None:
            raise ValueError(f"{cell.name} has no learning rate of the study's grid")
        curves.setdefault(cell.arm.name, {})[cell.rate] = dev_loss(cell.folder(workdir))
    return [choose(arm, curve) for arm, curve in curves.items()]


def record(chosen: Sequence[Choice], *, seed: int, steps: int) -> dict:
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
            for c in chosen
        },
    }
