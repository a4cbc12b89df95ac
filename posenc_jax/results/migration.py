"""Records and rows of definitions 1 in terms of today's: what can be computed again, and what cannot, in words.

Definitions 1 took 1/64 for the chance of most tasks, began context_gain at c = L, gave Y_R at 4L alone,
and compared a repeated span with one at another place.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from posenc_jax.results.chance import CHANCE, corrected, pairs_chance
from posenc_jax.results.retrieval_summary import longest_passing, summary_scores
from posenc_jax.results.schema import (
    BPB,
    DEFINITIONS,
    FAR,
    ID,
    OTHER_PLACE,
    PASSING,
    SUMMARY_TASKS,
    Row,
)

SUMMARIES = ("Y_R", "Y_R_far", "Y_R_id", "least_id")


def migrate_rows(rows: Sequence[Row], config: Mapping) -> tuple[tuple[Row, ...], tuple[str, ...]]:
    """Returns the rows of one run under today's definitions, and a sentence for what cannot be redrawn.

    Args:
      rows: of definitions 1, all of one run. config: config.json of the run, or {}.
    """
    chance = dict(CHANCE)
    if config and "pairs" in config["evaluation"]:
        chance["mqar"] = pairs_chance(config["evaluation"]["pairs"])
    gone = {*SUMMARIES, f"EL_{PASSING}", "context_gain"}
    accuracy, metrics = _Lookup(rows), {row.metric for row in rows}
    found = [
        dataclasses.replace(row, definitions=DEFINITIONS, **_changes(row, accuracy, chance))
        for row in rows
        if row.metric not in gone
    ]
    look = _Lookup(found)
    again = [dataclasses.replace(row, definitions=DEFINITIONS) for row in rows if row.metric in gone]  # fmt: skip
    found += [_context_gain(row, look) for row in again if row.metric == "context_gain"]
    found += _summaries(again[0], look) if "Y_R" in metrics else []
    found += [_reach(row, look, chance) for row in again if row.metric == f"EL_{PASSING}"]
    return tuple(found), tuple(_sentences(metrics, chance))


def migrate_record(info: Mapping) -> Mapping:
    """Returns run.json with the unigram level by split; older ones hold one number, that of test."""
    level = info.get("unigram_bpb", {})
    return info if isinstance(level, Mapping) else {**info, "unigram_bpb": {"test": level}}


class _Lookup:
    """Rows by metric, length and bucket."""

    def __init__(self, rows: Sequence[Row]):
        self._rows = {(row.metric, row.length, row.bucket): row for row in rows}

    def __call__(self, metric: str, length: int, bucket: str) -> tuple[float, int] | None:
        row = self.row(metric, length, bucket)
        return None if row is None else (row.value, row.n)

    def row(self, metric: str, length: int, bucket: str) -> Row | None:
        row = self._rows.get((metric, length, bucket))
        return row if row is not None and row.measured else None

    def lengths(self, metric: str) -> list[int]:
        return sorted(
            at for m, at, bucket in self._rows if m == metric and bucket == "all" and self(m, at, bucket)
        )  # fmt: skip


def _changes(row: Row, accuracy: _Lookup, chance: Mapping[str, float]) -> dict:
    """What is otherwise under today's definitions: an accuracy's chance, a corrected accuracy, a name."""
    if row.metric == "repeat_gain":
        return {"metric": OTHER_PLACE}
    task, _, measure = row.metric.rpartition("_")
    if row.suite != "R" or measure not in ("accuracy", "corrected"):
        return {}
    if task not in chance:
        reason = "chance without binding is not known for rows of definitions 1"
        return {"value": None, "skipped": reason} if measure == "corrected" else {}
    if measure == "accuracy":
        return {"chance": chance[task]}
    right = accuracy(f"{task}_accuracy", row.length, row.bucket)
    value = None if right is None else corrected(right[0], chance[task])
    return {"chance": chance[task], "value": value}


def _context_gain(row: Row, look: _Lookup) -> Row:
    near = look(BPB, int(ID * row.train_length), "all")
    far = look(BPB, FAR * row.train_length, "all")
    if near is None or far is None:
        reason = f"{BPB} at L/2 and {FAR}L are not both measured"
        return dataclasses.replace(row, value=None, n=0, skipped=reason)
    return dataclasses.replace(row, value=near[0] - far[0], n=far[1], skipped="")


def _summaries(like: Row, look: _Lookup) -> list[Row]:
    """Y_R and Y_R_far at every measured multiple from 2, Y_R_id and least_id at L."""
    L, rows = like.train_length, []
    lengths = sorted({at for task in SUMMARY_TASKS for at in look.lengths(f"{task}_accuracy")})
    wanted = [("Y_R_id", L, False), ("least_id", L, False)]
    wanted += [(m, at, m == "Y_R_far") for at in lengths if at >= 2 * L for m in ("Y_R", "Y_R_far")]
    for metric, length, far in wanted:
        scores, n = summary_scores(look.row, length, far)
        missing = [task for task in SUMMARY_TASKS if task not in scores]
        row = dataclasses.replace(like, suite="R", metric=metric, length=length, bucket="all", item="", stamp="")  # fmt: skip
        if missing:
            reason = f"{missing[0]} was not measured at {length // L}L" + (" beyond L" if far else "")  # fmt: skip
            rows.append(dataclasses.replace(row, value=None, n=0, skipped=reason))
        else:
            values = scores.values()
            value = min(values) if metric == "least_id" else sum(values) / len(scores)
            rows.append(dataclasses.replace(row, value=value, n=n, skipped=""))
    return rows


def _reach(row: Row, look: _Lookup, chance: Mapping[str, float]) -> Row:
    task = row.bucket
    metric = f"{task}_corrected"
    scores = {at: look(metric, at, "all")[0] for at in look.lengths(metric)}
    if task not in chance:
        reason = "chance without binding is not known for rows of definitions 1"
    elif not scores:
        reason = f"{task} was measured at no length"
    else:
        reach = longest_passing(scores, PASSING)
        if reach is not None:
            return dataclasses.replace(row, value=float(reach), n=len(scores), skipped="")
        reason = f"{task} is not learnt at its shortest length, {min(scores)}"
    return dataclasses.replace(row, value=None, n=0, skipped=reason)


def _sentences(metrics: set[str], chance: Mapping[str, float]) -> list[str]:
    tasks = {m.removesuffix("_accuracy") for m in metrics if m.endswith("_accuracy")} - {"P3_offset", "longtext"}  # fmt: skip
    said = ["Measured under older definitions: chance and what rests on it are computed again from the accuracies, "
            "with the mean chance of a task in place of each answer's own."]  # fmt: skip
    if any(task.startswith("mqar") for task in tasks):
        said.append("The last answer of recalled pairs, which is given away, is among the answers.")
    if unknown := sorted(task for task in tasks if task not in chance):
        said.append(f"Chance without binding is not known for {', '.join(unknown)}: no corrected accuracy.")  # fmt: skip
    if "repeat_gain" in metrics:
        said.append("The repeated span (E6) stood at another place than the fresh one: its gain cannot be redrawn.")  # fmt: skip
    if "Y_R" in metrics:
        said.append("Retrieval under a window of L (E8) was not measured.")
    if "P3_offset_accuracy" in metrics:
        said.append("Offset lookup (P3) has no chance: it is shown as it was measured.")
    return said
