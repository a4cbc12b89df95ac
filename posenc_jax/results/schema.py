"""Schema of results: the row, metric names, buckets, thresholds and exit codes.

All code that writes or reads rows takes its names from here.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

# Version of the metric definitions. Rows without it are of version 1: chance was 1/64 everywhere,
# context_gain began at c = L, and the control span of repeat_gain stood at another place.
DEFINITIONS = 2

ID = 0.5  # context of the in-distribution loss, in units of L: rows have exactly L tokens
FAR = 4  # the primary multiple of L: Y_E, Y_R, E7, E8
DISTANCES = (
    (0, "distance:<=L/4"),
    (0.25, "distance:L/4-L"),
    (1, "distance:L-2L"),
    (2, "distance:2L-4L"),
    (4, "distance:4L-8L"),
    (8, "distance:>8L"),
)
DISTANCE_BUCKETS = tuple(name for _, name in DISTANCES)
FAR_BUCKETS = tuple(name for low, name in DISTANCES if low >= 1)

# Of Y_R: R1 in corpus text, R2 K = 4, R3 P = 16.
SUMMARY_TASKS = ("passkey", "needles_4", "mqar_16")
ACQUIRED = 0.9  # corrected accuracy at N = L from which a task is learnt
REACHES = 0.8  # Y_R_far at 4L from which a seed reaches
PASSING = 0.85  # EL: share of the corrected accuracy at the shortest context
LEARNT = 0.5  # EL: corrected accuracy below which the shortest context counts as not learnt

BPB = "bpb_ctx"  # E3; in distribution at c = L/2, extrapolation at c = 4L
OTHER_PLACE = "repeat_gain_other_place"  # repeat_gain of definitions 1
# Metrics by suite; not listed are those of tasks ("<task>_<measure>"), of interventions
# ("P4_<axis>_change", "M12_<axis>_change") and of lm-eval tasks ("<task>/<metric>").
METRICS = {
    "E": (
        BPB,
        "bpb_nonoverlap",
        "bpb_sliding",
        "nll_pos",
        "bpb_key",
        "repeat_gain",
        OTHER_PLACE,
        "context_gain",
        "bpb_window",
        "window_check",
        "early_token_curse",
    ),
    "R": ("Y_R", "Y_R_far", "Y_R_id", "least_id", "Y_R_window", f"EL_{PASSING}"),
    "P": (
        "P1_shift_error",
        "P1_counter_error",
        "P2_relative_structure",
        "P3_offset_accuracy",
        "P3_offset_corrected",
        "P3_offset_nll",
        "P4_change",
        "P4_bpb_ctx_change",
        "P5_largest_rise",
        "P5_monotone_share",
    ),
    "C": (
        "longtext_accuracy",
        "longtext_corrected",
        "longtext_nll",
        "longtext_cut_corrected",
        "longtext_bag_corrected",
    ),
    "M": (
        "M1_distance",
        "M1_mean_distance",
        "M1_rho_far",
        "M2_entropy",
        "M3_gradient",
        "M3_reach",
        "M4_sink",
        "M4_sink_logit",
        "M5_frequency_use",
        "M6_content",
        "M7_kendall",
        "M9_mass",
        "M10_margin",
        "M10_predicted_reach",
        "M10_measured_reach",
        "M10_agreement",
        "M11_blind",
        "M13_distance_change",
    ),
}
MEASURES = ("accuracy", "corrected", "nll")  # of a task
SPLITS = ("dev", "test")

# Exit codes of every entry point. STOPPED (EX_TEMPFAIL): stopped by a signal, can be resumed.
# UNWRITABLE (EX_IOERR): could not write, can be resumed when there is disk space.
DONE, FAILED, WRONG_INPUT, UNWRITABLE, STOPPED, INTERRUPTED = 0, 1, 2, 74, 75, 130


LARGEST = 2**63  # no whole number in a file may reach it: NumPy holds 64 bits


@dataclasses.dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
      run: folder of the run. arm, seed, tier: of the run. suite: its letter, or "all".
      metric, bucket: the metric, and the part it is over ("all", "distance:L-2L", "head:0.3").
      length: in tokens; for bpb_ctx the context c, for retrieval the whole context. train_length:
        L.
      value: None where nothing was measured (`skipped` has the reason). n: number of values
        averaged.
      split: of the text and the instances. chance: mean over the same answers, None for metrics
      without chance. checkpoint: "last" or its name. step: of the checkpoint, if it is not the last
      or the run had not ended. unfinished: training had not ended. definitions: version of the
      metric definitions. item,
      stamp: identify the row when an evaluation resumes.
    """

    run: str
    arm: str
    seed: int
    tier: str
    suite: str
    metric: str
    length: int
    train_length: int
    bucket: str
    value: float | None
    n: int
    split: str
    chance: float | None = None
    skipped: str = ""
    checkpoint: str = "last"
    step: int | None = None
    unfinished: bool = False
    definitions: int = DEFINITIONS
    item: str = ""
    stamp: str = ""

    @property
    def k(self) -> float:
        """Length in units of L; L // 2 counts as 0.5, also for an odd L."""
        return ID if self.length == self.train_length // 2 else self.length / self.train_length

    @property
    def measured(self) -> bool:
        """Whether the value is a finite number."""
        return self.value is not None and math.isfinite(self.value)

    @property
    def number(self) -> float:
        """The value of a measured row; ValueError for a row that was skipped."""
        if self.value is None:
            raise ValueError(f"{self.run}: {self.metric} at {self.length} was not measured")
        return self.value

    def to_json(self) -> dict:
        """Returns the row as a JSON object: definitions, and fields that differ from defaults."""
        stored = {
            f.name: getattr(self, f.name)
            for f in _FIELDS
            if f.name == "definitions" or getattr(self, f.name) != f.default
        }
        return stored | {"k": self.k}


_FIELDS = dataclasses.fields(Row)
_TYPES = {
    "seed": int,
    "length": int,
    "train_length": int,
    "n": int,
    "definitions": int,
    "value": float,
    "chance": float,
    "step": int,
    "unfinished": bool,
}
_NAMES = {f.name for f in _FIELDS}
_REQUIRED = {f.name for f in _FIELDS if f.default is dataclasses.MISSING}


def row_from_json(stored: Mapping) -> Row:
    """Returns the row of a JSON object; `definitions` defaults to 1.

    Raises:
      ValueError: a field that is missing, unknown or of the wrong type, or a negative length or
        count.
    """
    if not isinstance(stored, Mapping):
        raise ValueError(f"a row is a JSON object, not {type(stored).__name__}")
    stored = {"definitions": 1} | {name: v for name, v in stored.items() if name != "k"}
    unknown, missing = stored.keys() - _NAMES, _REQUIRED - stored.keys()
    if unknown or missing:
        what = f"unknown field {min(unknown)!r}" if unknown else f"no field {min(missing)!r}"
        raise ValueError(f"row has {what}")
    for name, value in stored.items():
        _check(name, value)
    row = Row(**stored)
    if row.length < 0 or row.train_length < 1 or row.n < 0:
        raise ValueError("row has a negative length or count")
    return row


def _check(name: str, value: Any) -> None:
    """Raises ValueError if a value has not its field's type; NaN and infinity have none."""
    kind = _TYPES.get(name, str)
    if value is None and name in ("value", "chance", "step"):
        return
    if kind is float:
        valid = type(value) in (int, float) and abs(value) < math.inf
    elif kind is int:
        valid = type(value) is int and abs(value) < LARGEST
    else:
        valid = isinstance(value, kind)
    if not valid:
        raise ValueError(f"row has {name}={value!r}; it must be a {kind.__name__}")
