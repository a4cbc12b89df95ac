"""What a study or a single run left behind, read from run folders or from a published folder alike."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from posenc_jax.results.schema import Row

# Folders of a study: runs that count, runs that chose the learning rates, runs of another training length.
RUNS, TUNING, OTHER_LENGTHS = "runs", "tuning", "other_lengths"


@dataclasses.dataclass(frozen=True)
class RunData:
    """One trained run, as it was evaluated on one split.

    Attributes:
      name: its folder below the study, such as runs/rope-s0. info: run.json. config: config.json, {}
        where it is not kept. rows: as measured, each once, also where they may not count.
      settings: of the evaluation, alike in runs that are compared; "" if unknown.
      metrics: the training log. why: the reason why its rows may not count, else "".
      scheme: what the arm's encoding looks like (scheme.json), {} where it is not kept.
      array_names: of the arrays that are kept, sorted.
      arrays: returns the arrays of a name ("passkey_4"), by field; raises ValueError in words where they
        are not kept or damaged.
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


@dataclasses.dataclass(frozen=True)
class StudyData:
    """Everything that report and verdict read.

    Attributes:
      name: of the study. folder: where it was read from. record: study.json ({} for a single run).
      split: of the rows. runs: of one training length, no arm and seed twice, by name; those of the
        learning-rate search are not among them. elsewhere: runs of another training length.
      tuning: tuning.json, or {}. texts: name, split and SHA-256 of each, or ().
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
