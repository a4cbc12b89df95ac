"""Results of a study or a run as values, the same for run folders and published folders."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from posenc_jax.results.schema import Row

# Folders of a study: runs that count, runs that chose the learning rates, runs of another training length.
RUNS, TUNING, OTHER_LENGTHS = "runs", "tuning", "other_lengths"


@dataclasses.dataclass(frozen=True)
class RunData:
    """The results of one trained run on one split.

    Attributes:
      name: its folder below the study, such as runs/rope-s0. info: run.json. config: config.json, or {}.
        rows: without duplicates; they are here even if they may not count.
      settings: of the evaluation; runs that are compared have the same ones; "" if unknown.
      metrics: the training log. why: the reason why its rows may not count, or "".
      scheme: arrays of the encoding for figures (scheme.json), or {}. array_names: sorted.
      arrays: returns the arrays of a name ("passkey_4") by field; ValueError if they are missing or damaged.
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
    """The results of a study, as report and verdict read them.

    Attributes:
      name: of the study. folder: from which it was read. record: study.json ({} for a single run).
      split: of the rows. runs: sorted by name, of one training length, each arm and seed once, without
        those of the learning-rate search. elsewhere: runs of another training length.
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
