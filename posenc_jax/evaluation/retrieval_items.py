"""The items of suite R: every task at every length, and the summary numbers read from their rows."""

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from posenc_jax.evaluation.measures import SEED, Measures
from posenc_jax.evaluation.retrieval import (
    Answers,
    above_chance,
    buckets,
    longest_passing,
    score_instances,
)
from posenc_jax.results.schema import Row
from posenc_jax.tasks.filler import Filler
from posenc_jax.tasks.table import SCORED, SUMMARY_TASKS, Task, find

FAR = 4  # the multiple of Y_R and Y_R_far
PASSING = 0.85
FAR_BUCKETS = ("distance:L-2L", "distance:2L-4L", "distance:4L-8L", "distance:>8L")
MEASURES = (*SCORED, "Y_R", "EL")
NEEDS = {"Y_R": SUMMARY_TASKS}


def retrieval_items(work: Measures, chosen: frozenset[str]) -> dict[str, Callable]:
    """Returns an item per chosen task and multiple, then the summaries."""
    instances = Instances(work)
    items, tasks = {}, [find(name, work.config.evaluation.pairs) for name in SCORED if name in chosen]  # fmt: skip
    for task in tasks:
        for k in work.multiples:
            items[f"{task.name}/{k}"] = functools.partial(_scored, work, instances, task, k)
    if "Y_R" in chosen:
        items["Y_R"] = functools.partial(_summary, work)
    if "EL" in chosen:
        items |= {f"EL/{task.name}": functools.partial(_reach, work, task) for task in tasks}
    return items


class Instances:
    """Instances and their answers; the text that needles lie in is made when first asked for."""

    def __init__(self, work: Measures):
        self._work, tokenizer = work, work.inputs.tokenizer
        self._text = functools.cache(lambda: Filler(work.inputs.stream(work.split), tokenizer))
        self._sentences = functools.cache(lambda: Filler(None, tokenizer, corpus=False))
        self._scored = functools.cache(self._score)

    def filler(self, task: Task) -> Filler:
        return self._sentences() if task.sentences else self._text()

    def answers(self, task: Task, length: int) -> Answers:
        """Returns the answers of the task at a length; "mqar" and its like by number are scored once."""
        same = f"mqar_{self._work.config.evaluation.pairs}"
        return self._scored(find(same) if task.name == "mqar" and same in SCORED else task, length)

    def _score(self, task: Task, length: int) -> Answers:
        instances = [
            task.instance(
                self.filler(task), split=self._work.split, seed=SEED, index=i, length=length
            )
            for i in range(self._work.config.evaluation.instances)
        ]
        return score_instances(self._work.scorer, instances)


def _scored(work: Measures, instances: Instances, task: Task, k: int) -> list[Row]:
    length = k * work.L
    shortest = task.shortest(instances.filler(task))
    if length < shortest:
        reason = f"{task.name} needs {shortest} tokens; a context of {k}L has {length}"
        return work.skipped("R", f"{task.name}_accuracy", length, reason)
    answers = instances.answers(task, length)
    np.savez(work.folder / "arrays" / f"{task.name}_{k}.npz", **dataclasses.asdict(answers))
    rows = []
    for bucket, selected in buckets(answers, work.L):
        n = int(selected.sum())
        if not n:
            continue
        accuracy = float(answers.correct[selected].mean())
        for measure, value in (
            ("accuracy", accuracy),
            ("corrected", above_chance(accuracy, task.chance)),
            ("nll", float(answers.nll[selected].mean())),
        ):
            rows.append(work.row("R", f"{task.name}_{measure}", length, bucket, value, n))
    return rows


def _summary(work: Measures) -> list[Row]:
    """Y_R and Y_R_far at 4L, Y_R_id at L; skipped with the first task that was not measured."""
    rows = []
    for metric, k, wanted in (
        ("Y_R", FAR, ("all",)),
        ("Y_R_far", FAR, FAR_BUCKETS),
        ("Y_R_id", 1, ("all",)),
    ):
        scores, n, missing = [], 0, None
        for task in SUMMARY_TASKS:
            found = [work.rows.value(f"{task}_corrected", k * work.L, bucket) for bucket in wanted]
            found = [pair for pair in found if pair is not None]
            count = sum(m for _, m in found)
            if not count:
                missing = missing or task
                continue
            scores.append(sum(value * m for value, m in found) / count)
            n += count
        if missing:
            reason = f"{missing} was not measured at {k}L" + (" beyond L" if "far" in metric else "")  # fmt: skip
            rows += work.skipped("R", metric, k * work.L, reason)
        else:
            value = sum(scores) / len(scores)
            rows.append(work.row("R", metric, k * work.L, "all", value, n))
    return rows


def _reach(work: Measures, task: Task) -> list[Row]:
    """EL_0.85 of a task, in tokens, over the lengths measured."""
    found = {k * work.L: work.rows.value(f"{task.name}_corrected", k * work.L) for k in work.multiples}  # fmt: skip
    scores = {length: pair[0] for length, pair in found.items() if pair is not None}
    metric, longest = f"EL_{PASSING}", max(found)
    if not scores:
        reason = f"{task.name} was measured at no length"
        return _named(work.skipped("R", metric, longest, reason), task)
    reach = longest_passing(scores, PASSING)
    if reach is None:
        reason = f"{task.name} is not above chance at its shortest length, {min(scores)}"
        return _named(work.skipped("R", metric, longest, reason), task)
    return _named([work.row("R", metric, longest, "all", float(reach), len(scores))], task)


def _named(rows: list[Row], task: Task) -> list[Row]:
    return [dataclasses.replace(row, bucket=task.name) for row in rows]
