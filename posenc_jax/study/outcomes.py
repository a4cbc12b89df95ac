"""From evaluation rows to the outcomes of the decision rule; what is not there is said, never dropped."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence

from posenc_jax.study.decision import METRICS

# Outcome -> metric of the row, multiple of L. docs/measures.md defines the rows.
PLAIN = {
    "Y_E": ("bpb_ctx", 4), "bpb_id": ("bpb_ctx", 1),
    "Y_R": ("Y_R", 4), "Y_R_far": ("Y_R_far", 4), "Y_R_id": ("Y_R_id", 1),
    "context_gain": ("context_gain", 4), "window_check": ("window_check", 4),
    "P3": ("P3_offset_accuracy", 1), "P5": ("P5_monotone_share", 16),
}  # fmt: skip
REPEAT = (2, 4)  # gaps of repeat_gain that count, in units of L, and all between
SAME = ("tier", "split", "train_length")


@dataclasses.dataclass(frozen=True)
class Reading:
    """Outcomes by (arm, metric) and seed, None where there is none, and a sentence for every None."""

    values: Mapping[tuple[str, str], Mapping[int, float | None]]
    gaps: tuple[str, ...]


def read_outcomes(rows: Sequence[Mapping]) -> Reading:
    """Returns the outcomes of every arm and seed that has a row.

    Y_E, bpb_id: bpb_ctx at 4L and L. Y_R, Y_R_far, Y_R_id, context_gain, window_check: their own rows.
    P1: the largest shift error of any head over shifts 1, 7, L and 8L. P3: offset accuracy at L. P5:
    share of heads whose bias is monotone to 16L. repeat_gain: mean over the gaps from 2L to 4L.

    Raises:
      ValueError: a row twice, an arm and seed from two runs, rows of several tiers, splits or training
        lengths, or runs whose repeat_gain has other gaps.
    """
    for field in SAME:
        found = sorted({row[field] for row in rows})
        if len(found) > 1:
            raise ValueError(f"a verdict reads rows of one {field}, not of {found}")
    runs: dict[tuple[str, int], dict] = {}
    names: dict[tuple[str, int], str] = {}
    for row in rows:
        key = (row["arm"], row["seed"])
        if names.setdefault(key, row["run"]) != row["run"]:
            raise ValueError(f"{names[key]} and {row['run']} both hold arm {key[0]}, seed {key[1]}")
        mine, place = runs.setdefault(key, {}), (row["metric"], row["length"], row["bucket"])
        if place in mine:
            raise ValueError(f"{row['run']} has two rows of {row['metric']} at {row['length']}, {row['bucket']}")  # fmt: skip
        mine[place] = row
    values: dict[tuple[str, str], dict[int, float | None]] = {}
    gaps, repeats = [], {}
    for (arm, seed), mine in sorted(runs.items()):
        length = next(iter(mine.values()))["train_length"]
        repeats[names[arm, seed]] = repeat_lengths(mine, length)
        for outcome in METRICS:
            value, why = _outcome(outcome, mine, length)
            values.setdefault((arm, outcome), {})[seed] = value
            if value is None:
                gaps.append(f"{arm}, seed {seed}: no {outcome}: {why}")
    _refuse_other_gaps(repeats)
    return Reading(values, tuple(gaps))


def _outcome(outcome: str, mine: Mapping, length: int) -> tuple[float | None, str]:
    if outcome == "P1":
        wanted = [f"all shift:{d}" for d in sorted({1, 7, length, 8 * length})]
        places = [("P1_shift_error", bucket) for bucket in wanted]
        found = [_value(mine, metric, None, bucket) for metric, bucket in places]
        fold = max
    elif outcome == "repeat_gain":
        found = [_value(mine, outcome, g, "all") for g in repeat_lengths(mine, length)]
        if not found:
            return None, f"not measured (no row repeat_gain at {REPEAT[0]}L to {REPEAT[1]}L)"
        fold = _mean
    else:
        metric, k = PLAIN[outcome]
        found = [_value(mine, metric, k * length, "all")]
        fold = max
    lacking = [why for value, why in found if value is None]
    return (None, lacking[0]) if lacking else (fold([value for value, _ in found]), "")


def _value(mine: Mapping, metric: str, length: int | None, bucket: str) -> tuple[float | None, str]:
    """A finite value, or None and why; length None: of whatever length the row is."""
    rows = [r for (m, at, b), r in mine.items() if m == metric and b == bucket and length in (None, at)]  # fmt: skip
    if not rows:
        where = bucket if length is None else f"{length} tokens"
        return None, f"not measured (no row {metric} at {where})"
    if len(rows) > 1:
        raise ValueError(f"{rows[0]['run']} has {metric}, {bucket} at several lengths")
    value = rows[0]["value"]
    if value is None:
        return None, f"skipped ({rows[0]['skipped']})" if "skipped" in rows[0] else "row without value"  # fmt: skip
    return (float(value), "") if math.isfinite(value) else (None, f"{metric} is {value}")


def repeat_lengths(mine: Collection[tuple[str, int, str]], length: int) -> tuple[int, ...]:
    """Returns the gaps of repeat_gain that count, in tokens, of rows by (metric, length, bucket)."""
    low, high = (k * length for k in REPEAT)
    return tuple(sorted(at for metric, at, _ in mine if metric == "repeat_gain" and low <= at <= high))  # fmt: skip


def _refuse_other_gaps(repeats: Mapping[str, tuple[int, ...]]) -> None:
    measured = {run: gaps for run, gaps in repeats.items() if gaps}
    for run, gaps in measured.items():
        first = next(iter(measured))
        if gaps != measured[first]:
            raise ValueError(
                f"repeat_gain has gaps {measured[first]} in {first} and {gaps} in {run}; "
                "evaluate both at the same --lengths"
            )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
