"""What a study or a single run left behind, read from run folders or from a published folder alike."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from posenc_jax.results.schema import Row


@dataclasses.dataclass(frozen=True)
class RunData:
    """One trained and evaluated run, on one split.

    Attributes:
      name: its folder below the study, such as runs/rope-s0. info: run.json. config: config.json.
      rows: as measured. settings: of the evaluation, alike in runs that are compared; "" if unknown.
      metrics: the training log. why: the reason why its rows may not count, else "".
      arrays: returns the per-instance arrays of a name ("passkey_4"); raises ValueError in words where
      they are not kept or damaged.
    """

    name: str
    info: Mapping
    config: Mapping
    rows: tuple[Row, ...]
    settings: str
    metrics: tuple[Mapping, ...]
    why: str
    arrays: Callable[[str], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class StudyData:
    """Everything that report and verdict read.

    Attributes:
      name: of the study. folder: where it was read from. record: study.json ({} for a single run).
      split: of the rows. runs: those that count. elsewhere: runs of another training length.
      tuning: tuning.json, or {}. texts: the held-out texts with their SHA-256, or ().
      plan: the frozen plan's file (prereg.json) as stored, or None. notes: what could not be read or
      redrawn, a sentence each.
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
