"""Outcomes of each version of the decision rule, computed from rows; every missing one has a
reason.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence

from posenc_jax.results.chance import corrected
from posenc_jax.results.migration import OTHER_PLACE
from posenc_jax.results.schema import BPB, FAR, FAR_BUCKETS, ID, SUMMARY_TASKS, Row
from posenc_jax.study import rule_1, rule_2

REPEAT = (2, 4)  # shortest and longest gap of repeat_gain that counts, in units of L
SAME = ("tier", "split", "train_length")
OLD_CHANCE = {"passkey": 1e-5, "needles_4": 1 / 64, "mqar_16": 1 / 64}  # of rule 1

RowKey = tuple[str, int, str]  # metric, length, bucket
RunRows = Mapping[RowKey, Row]  # of one run
Outcome = tuple[float | None, str]  # a finite value, or None and the reason


@dataclasses.dataclass(frozen=True)
class OutcomeTable:
    """Outcomes by (arm, metric) and seed; None where one is missing, with a sentence in `gaps`."""

    values: Mapping[tuple[str, str], Mapping[int, float | None]]
    gaps: tuple[str, ...]


def read_outcomes(rows: Sequence[Row], rule: int = rule_2.RULE) -> OutcomeTable:
    """Returns the outcomes of every arm and seed that has a row, under a version of the rule.

    Version 2. Y_E, Y_id: bpb_ctx at 4L and L/2. price: Y_E less Y_id; context_gain: Y_id less Y_E.
    Y_R,
    Y_R_far: rows at 4L. Y_R_8: Y_R at 8L. Y_R_id, least_id: rows at L. window_drop: Y_R less
    Y_R_window at 4L. P1: the largest shift error of any head over shifts 1, 7, L and 8L. P4: rise
    of bpb_ctx without rotation. P5: share of heads whose bias is monotone to 16L.

    Version 1. bpb_id: bpb_ctx at c = L. context_gain: bpb_id less Y_E. Y_R, Y_R_far, Y_R_id: from
    accuracies, with 1/64 for the chance of all tasks but the passkey. window_check: its row.
    repeat_gain: mean over the gaps from 2L to 4L; rows of definitions 1 compare with a span at
    another place. P3: offset accuracy at L.

    Raises:
      ValueError: a duplicate row, an arm and seed in two runs, rows of several tiers, splits or
        training lengths, or runs whose repeat_gain has different gaps.
    """
    for field in SAME:
        distinct = sorted({getattr(row, field) for row in rows})
        if len(distinct) > 1:
            raise ValueError(f"a verdict reads rows of one {field}, not of {distinct}")
    runs: dict[tuple[str, int], dict[RowKey, Row]] = {}
    names: dict[tuple[str, int], str] = {}
    for row in rows:
        owner = (row.arm, row.seed)
        if names.setdefault(owner, row.run) != row.run:
            raise ValueError(
                f"{names[owner]} and {row.run} both hold arm {row.arm}, seed {row.seed}"
            )
        of_run, key = runs.setdefault(owner, {}), (row.metric, row.length, row.bucket)
        if key in of_run:
            raise ValueError(
                f"{row.run} has two rows of {row.metric} at {row.length}, {row.bucket}"
            )
        of_run[key] = row
    values: dict[tuple[str, str], dict[int, float | None]] = {}
    gaps, repeats = [], {}
    for (arm, seed), of_run in sorted(runs.items()):
        length = next(iter(of_run.values())).train_length
        repeats[names[arm, seed]] = repeat_lengths(of_run, length)
        for outcome, read in RULES[rule].items():
            value, why = read(of_run, length)
            values.setdefault((arm, outcome), {})[seed] = value
            if value is None:
                gaps.append(f"{arm}, seed {seed}: no {outcome}: {why}")
    if rule == rule_1.RULE:
        _refuse_other_gaps(repeats)
    return OutcomeTable(values, tuple(gaps))


def oracle_gain(rows: Sequence[Row], length: int) -> float | None:
    """Returns bpb_ctx at L/2 less bpb_ctx at 2L of a run that was trained at 4L; None where one is
    missing.

    The targets of the run are 2L tokens. After a context of 2L they end at 4L, its training length.
    After a context of 4L they would lie at positions 4L to 6L, past the training length, where RoPE
    loses the gain.

    Args:
      length: L of the study, a quarter of the training length of the run.
    """
    of_run = {(r.metric, r.length, r.bucket): r for r in rows}
    near, far = (_value(of_run, BPB, c, "all")[0] for c in (length // 2, int(ID * FAR * length)))
    return None if near is None or far is None else near - far


def lookup_score(rows: Sequence[Row]) -> float | None:
    """Returns the accuracy of offset lookup (P3) at L, corrected where chance is known."""
    row = next(
        (
            r
            for r in rows
            if r.metric == "P3_offset_accuracy" and r.bucket == "all" and r.length == r.train_length
        ),
        None,
    )
    if row is None or not row.measured:
        return None
    return row.number if row.chance is None else corrected(row.number, row.chance)


def repeat_lengths(keys: Collection[RowKey], length: int) -> tuple[int, ...]:
    """Returns the gaps of repeat_gain that count, in tokens."""
    low, high = (k * length for k in REPEAT)
    gaps = {at for metric, at, _ in keys if metric in ("repeat_gain", OTHER_PLACE)}
    return tuple(sorted(at for at in gaps if low <= at <= high))


def _value(of_run: RunRows, metric: str, length: int | None, bucket: str) -> Outcome:
    """Returns the value of a row, or None and why; length None: of any length."""
    rows = [
        r
        for (m, at, b), r in of_run.items()
        if m == metric and b == bucket and length in (None, at)
    ]
    if not rows:
        where = bucket if length is None else f"{length} tokens"
        return None, f"not measured (no row {metric} at {where})"
    if len(rows) > 1:
        raise ValueError(f"{rows[0].run} has {metric}, {bucket} at several lengths")
    row = rows[0]
    if row.value is None:
        return None, f"skipped ({row.skipped})" if row.skipped else "row without value"
    return (float(row.value), "") if row.measured else (None, f"{metric} is {row.value}")


def _at(metric: str, k: float) -> Callable:
    """Reads the row of a metric at kL."""
    return lambda of_run, length: _value(of_run, metric, int(k * length), "all")


def _less(first: Callable, second: Callable) -> Callable:
    def read(of_run: RunRows, length: int) -> Outcome:
        return _combined([first(of_run, length), second(of_run, length)], lambda v: v[0] - v[1])

    return read


def _combined(outcomes: Sequence[Outcome], function: Callable) -> Outcome:
    missing = [why for value, why in outcomes if value is None]
    return (None, missing[0]) if missing else (function([value for value, _ in outcomes]), "")


def _shift_error(of_run: RunRows, length: int) -> Outcome:
    buckets = [f"all shift:{d}" for d in sorted({1, 7, length, 8 * length})]
    return _combined([_value(of_run, "P1_shift_error", None, bucket) for bucket in buckets], max)


def _rotation_off(of_run: RunRows, length: int) -> Outcome:
    known = any(metric == "P4_change" for metric, _, _ in of_run)
    return _value(of_run, "P4_change" if known else "P4_bpb_ctx_change", None, "rotation off")


def _repeat_gain(of_run: RunRows, length: int) -> Outcome:
    gaps = repeat_lengths(of_run, length)
    if not gaps:
        return None, f"not measured (no row repeat_gain at {REPEAT[0]}L to {REPEAT[1]}L)"
    metric = OTHER_PLACE if (OTHER_PLACE, gaps[0], "all") in of_run else "repeat_gain"
    return _combined([_value(of_run, metric, g, "all") for g in gaps], statistics.fmean)


def _older_recall(k: int, far: bool) -> Callable:
    """Reads the mean over the tasks of accuracy, corrected for the chance of rule 1, at kL."""

    def read(of_run: RunRows, length: int) -> Outcome:
        tasks = [_older_task(of_run, task, k * length, far) for task in SUMMARY_TASKS]
        return _combined(tasks, statistics.fmean)

    return read


def _older_task(of_run: RunRows, task: str, length: int, far: bool) -> Outcome:
    metric = f"{task}_accuracy"
    if not far:
        value, why = _value(of_run, metric, length, "all")
    else:
        rows = [of_run[key] for b in FAR_BUCKETS if (key := (metric, length, b)) in of_run]
        rows = [row for row in rows if row.measured]
        if not rows:
            return None, f"not measured (no row {metric} at {length} tokens beyond L)"
        value = math.fsum(r.number * r.n for r in rows) / sum(r.n for r in rows)
        why = ""
    return (None, why) if value is None else (corrected(value, OLD_CHANCE[task]), "")


def _refuse_other_gaps(repeats: Mapping[str, tuple[int, ...]]) -> None:
    measured = {run: gaps for run, gaps in repeats.items() if gaps}
    first = next(iter(measured), "")
    for run, gaps in measured.items():
        if gaps != measured[first]:
            raise ValueError(
                f"repeat_gain has gaps {measured[first]} in {first} and {gaps} in {run}; evaluate "
                "both at the same --lengths"
            )


_FAR, _NEAR, _AT_L = _at(BPB, FAR), _at(BPB, ID), _at(BPB, 1)
_MONOTONE = _at("P5_monotone_share", 16)
RULE_2 = {
    "Y_E": _FAR,
    "Y_id": _NEAR,
    "price": _less(_FAR, _NEAR),
    "context_gain": _less(_NEAR, _FAR),
    "Y_R": _at("Y_R", FAR),
    "Y_R_far": _at("Y_R_far", FAR),
    "Y_R_8": _at("Y_R", 8),
    "Y_R_id": _at("Y_R_id", 1),
    "window_drop": _less(_at("Y_R", FAR), _at("Y_R_window", FAR)),
    "least_id": _at("least_id", 1),
    "P1": _shift_error,
    "P4": _rotation_off,
    "P5": _MONOTONE,
}
RULE_1 = {
    "Y_E": _FAR,
    "Y_R": _older_recall(FAR, False),
    "Y_R_far": _older_recall(FAR, True),
    "Y_R_id": _older_recall(1, False),
    "bpb_id": _AT_L,
    "P1": _shift_error,
    "P3": _at("P3_offset_accuracy", 1),
    "P5": _MONOTONE,
    "context_gain": _less(_AT_L, _FAR),
    "repeat_gain": _repeat_gain,
    "window_check": _at("window_check", FAR),
}
RULES = {rule_1.RULE: RULE_1, rule_2.RULE: RULE_2}
