"""Results of a study or a run as values, the same for run folders and published folders."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from posenc_jax.results.schema import FAR_BUCKETS, Row

# Folders of a study: runs that count, runs that chose the learning rates, runs of another training
# length.
RUNS, TUNING, OTHER_LENGTHS = "runs", "tuning", "other_lengths"


@dataclasses.dataclass(frozen=True)
class RunData:
    """The results of one trained run on one split.

    Attributes:
      name: its folder below the study, such as runs/rope-s0. info: run.json. config: config.json,
        or {}.
        rows: without duplicates; they are here even if they may not count.
      settings: of the evaluation; runs that are compared have the same ones; "" if unknown.
      metrics: the training log. why: the reason why its rows may not count, or "".
      scheme: arrays of the encoding for figures (scheme.json), or {}. array_names: sorted.
      arrays: returns the arrays of a name ("passkey_4") by field; ValueError if they are missing or
        damaged.
    """

    name: str
    info: Mapping
    config: Mapping
    rows: tuple[Row, ...]
    settings: str
    metrics: tuple[Mapping, ...]
    why: str
    scheme: Mapping
    array_names: tuple[str, ...]
    arrays: Callable[[str], Mapping[str, np.ndarray]]

    @property
    def arm(self) -> str:
        return self.info["arm"]

    @property
    def seed(self) -> int:
        return self.info["seed"]

    @property
    def key(self) -> dict:
        """Arm and seed, the first columns of most tables."""
        return {"arm": self.arm, "seed": self.seed}

    @property
    def heads(self) -> list[dict] | None:
        """What each head of the scheme does, as the evaluation described it, or None."""
        return self.scheme["heads"] if self.scheme else None

    @functools.cached_property
    def _measured(self) -> dict[tuple[str, str], dict[float, Row]]:
        """Rows with a finite value, by metric and bucket, by multiple of L."""
        found: dict[tuple[str, str], dict[float, Row]] = {}
        for row in sorted(self.rows, key=lambda row: row.k):
            if row.measured:
                found.setdefault((row.metric, row.bucket), {})[row.k] = row
        return found

    def row(self, metric: str, k: float, bucket: str = "all") -> Row | None:
        """Returns the row with a finite value for this metric at k times L, or None."""
        return self._measured.get((metric, bucket), {}).get(k)

    def value(self, metric: str, k: float, bucket: str = "all") -> float | None:
        """Returns the measured value at k times L, or None."""
        row = self.row(metric, k, bucket)
        return None if row is None else row.value

    def multiples(self, metric: str, bucket: str = "all") -> list[float]:
        """Returns every k at which the metric has a finite value, ascending."""
        return list(self._measured.get((metric, bucket), ()))

    def _corrected(self, k: float, tasks: Sequence[str]) -> list[float]:
        found = [self.value(f"{task}_corrected", k) for task in tasks]
        values = [value for value in found if value is not None]
        return values if len(values) == len(found) else []

    def retrieval(self, k: float, tasks: Sequence[str]) -> float | None:
        """Returns accuracy above chance at kL, mean over the tasks; None if one is missing."""
        values = self._corrected(k, tasks)
        return sum(values) / len(values) if values else None

    def least(self, k: float, tasks: Sequence[str]) -> float | None:
        """Returns accuracy above chance at kL of the worst of the tasks; None if one is missing."""
        return min(self._corrected(k, tasks), default=None)

    def far(self, task: str, k: float) -> tuple[float, int] | None:
        """Returns accuracy above chance over needles further back than L in kL, and n answers."""
        rows = [row for b in FAR_BUCKETS if (row := self.row(f"{task}_corrected", k, b))]
        n = sum(row.n for row in rows)
        return (sum(row.number * row.n for row in rows) / n, n) if n else None

    def far_mean(self, k: float, tasks: Sequence[str]) -> float | None:
        """Returns `far`, mean over the tasks; None if one is missing."""
        found = [self.far(task, k) for task in tasks]
        values = [one[0] for one in found if one is not None]
        return sum(values) / len(values) if values and len(values) == len(found) else None

    def kept_arrays(self, name: str) -> Mapping[str, np.ndarray] | None:
        """Returns the stored arrays of that name, or None where they are not kept."""
        try:
            return self.arrays(name)
        except ValueError:
            return None


@dataclasses.dataclass(frozen=True)
class StudyData:
    """The results of a study, as report and verdict read them.

    Attributes:
      name: of the study. folder: from which it was read. record: study.json ({} for a single run).
      split: of the rows. runs: sorted by name, of one training length, each arm and seed once,
        without those of the learning-rate search. elsewhere: runs of another training length.
      tuning: tuning.json, or {}. texts: name, split and SHA-256 of each text, or ().
      plan: content of prereg.json, or None. notes: sentences about missing or incomparable results.
    """

    name: str
    folder: str
    record: Mapping
    split: str
    runs: tuple[RunData, ...]
    elsewhere: tuple[RunData, ...]
    tuning: Mapping
    texts: tuple[Mapping, ...]
    plan: Mapping | None
    notes: tuple[str, ...]
