"""Migration of records and rows from version 1 of the metric definitions to the current one.

Version 1 had 1/64 as the chance of most tasks, context_gain from c = L, Y_R at 4L only, and
repeat_gain against a span at another place. What cannot be computed again is named in a sentence.
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
    """Returns the rows of one run under the current definitions, and sentences about the rest.

    Args:
      rows: of version 1, all of one run. config: config.json of the run, or {}.
    """
    chance = dict(CHANCE)
    if pairs := {"evaluation": {}, **config}["evaluation"].get("pairs"):
        chance["mqar"] = pairs_chance(pairs)
    derived = {*SUMMARIES, f"EL_{PASSING}", "context_gain"}
    accuracy, metrics = _Lookup(rows), {row.metric for row in rows}
    migrated = [
        dataclasses.replace(row, definitions=DEFINITIONS, **_changes(row, accuracy, chance))
        for row in rows
        if row.metric not in derived
    ]
    look = _Lookup(migrated)
    older = [
        dataclasses.replace(row, definitions=DEFINITIONS) for row in rows if row.metric in derived
    ]
    migrated += [_context_gain(row, look) for row in older if row.metric == "context_gain"]
    migrated += _summaries(older[0], look) if "Y_R" in metrics else []
    migrated += [
        _longest_passing(row, look, chance) for row in older if row.metric == f"EL_{PASSING}"
    ]
    return tuple(migrated), tuple(_sentences(metrics, chance))


def migrate_record(info: Mapping) -> Mapping:
    """Returns run.json with unigram_bpb by split; an older record has one number, that of test."""
    level = info.get("unigram_bpb", {})
    return info if isinstance(level, Mapping) else {**info, "unigram_bpb": {"test": level}}


class _Lookup:
    """Rows by metric, length and bucket."""

    def __init__(self, rows: Sequence[Row]):
        self._rows = {(row.metric, row.length, row.bucket): row for row in rows}

    def row(self, metric: str, length: int, bucket: str) -> Row | None:
        row = self._rows.get((metric, length, bucket))
        return row if row is not None and row.measured else None

    def lengths(self, metric: str) -> list[int]:
        return sorted(
            at
            for m, at, bucket in self._rows
            if m == metric and bucket == "all" and self.row(m, at, bucket)
        )


def _changes(row: Row, accuracy: _Lookup, chance: Mapping[str, float]) -> dict:
    """Returns the fields that change: chance, corrected accuracy, or the metric."""
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
    measured = accuracy.row(f"{task}_accuracy", row.length, row.bucket)
    value = None if measured is None else corrected(measured.number, chance[task])
    return {"chance": chance[task], "value": value}


def _context_gain(row: Row, look: _Lookup) -> Row:
    near = look.row(BPB, int(ID * row.train_length), "all")
    far = look.row(BPB, FAR * row.train_length, "all")
    if near is None or far is None:
        reason = f"{BPB} at L/2 and {FAR}L are not both measured"
        return dataclasses.replace(row, value=None, n=0, skipped=reason)
    return dataclasses.replace(row, value=near.number - far.number, n=far.n, skipped="")


def _summaries(like: Row, look: _Lookup) -> list[Row]:
    """Returns Y_R and Y_R_far at every measured multiple from 2, and Y_R_id, least_id at L."""
    L, rows = like.train_length, []
    lengths = sorted({at for task in SUMMARY_TASKS for at in look.lengths(f"{task}_accuracy")})
    summaries = [("Y_R_id", L, False), ("least_id", L, False)]
    summaries += [
        (m, at, m == "Y_R_far") for at in lengths if at >= 2 * L for m in ("Y_R", "Y_R_far")
    ]
    for metric, length, far in summaries:
        scores, n = summary_scores(look.row, length, far)
        missing = [task for task in SUMMARY_TASKS if task not in scores]
        row = dataclasses.replace(
            like, suite="R", metric=metric, length=length, bucket="all", item="", stamp=""
        )
        if missing:
            reason = f"{missing[0]} was not measured at {length // L}L" + (
                " beyond L" if far else ""
            )
            rows.append(dataclasses.replace(row, value=None, n=0, skipped=reason))
        else:
            values = scores.values()
            value = min(values) if metric == "least_id" else sum(values) / len(scores)
            rows.append(dataclasses.replace(row, value=value, n=n, skipped=""))
    return rows


def _longest_passing(row: Row, look: _Lookup, chance: Mapping[str, float]) -> Row:
    task = row.bucket
    metric = f"{task}_corrected"
    found = [look.row(metric, at, "all") for at in look.lengths(metric)]
    scores = {one.length: one.number for one in found if one is not None}
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
    tasks = {m.removesuffix("_accuracy") for m in metrics if m.endswith("_accuracy")} - {
        "P3_offset",
        "longtext",
    }
    sentences = [
        "Measured under older definitions: chance and what rests on it are computed again from the "
        "accuracies, with the mean chance of a task in place of each answer's own."
    ]
    if any(task.startswith("mqar") for task in tasks):
        sentences.append(
            "The last answer of recalled pairs, which is given away, is among the answers."
        )
    if unknown := sorted(task for task in tasks if task not in chance):
        sentences.append(
            f"Chance without binding is not known for {', '.join(unknown)}: no corrected accuracy."
        )
    if "repeat_gain" in metrics:
        sentences.append(
            "The repeated span (E6) stood at another place than the fresh one: its gain cannot be "
            "redrawn."
        )
    if "Y_R" in metrics:
        sentences.append("Retrieval under a window of L (E8) was not measured.")
    if "P3_offset_accuracy" in metrics:
        sentences.append("Offset lookup (P3) has no chance: it is shown as it was measured.")
    return sentences
