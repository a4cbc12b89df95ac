"""A study as the page shows it: arms in order, their names and colours, and the rows by metric and length."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from posenc_jax.results.schema import BPB, FAR, FAR_BUCKETS, ID, SUMMARY_TASKS, Row
from posenc_jax.results.study_data import RunData, StudyData

OLDER_TASKS = ("mqar", "passkey")  # what a study without the tasks of Y_R is summed up by
_WORDS = {"needles": "needles", "variables": "variables", "mqar": "MQAR", "ngram": "n-gram", "nback": "n-back",
          "phonebook": "phone book", "latest": "latest or first", "flipflop": "flip-flop"}  # fmt: skip
_PROPER = {"rope": "RoPE", "alibi": "ALiBi", "nope": "NoPE", "xpos": "xPos", "yarn": "YaRN"}
_COUPLED = re.compile(r"(\d+\*)?\(rope[^|]*\+alibi[^|]*\)\|(\d+\*)?nope~logn[^|]*")


@dataclasses.dataclass(frozen=True)
class RunView:
    """One run with its rows by metric, bucket and multiple of L."""

    data: RunData

    @property
    def arm(self) -> str:
        return self.data.info["arm"]

    @property
    def seed(self) -> int:
        return self.data.info["seed"]

    @property
    def train_length(self) -> int:
        return self.data.info["train_length"]

    @property
    def rows(self) -> tuple[Row, ...]:
        return self.data.rows

    @functools.cached_property
    def _by_key(self) -> dict[tuple[str, str, float], Row]:
        return {(row.metric, row.bucket, row.k): row for row in self.rows}

    @functools.cached_property
    def _multiples(self) -> dict[tuple[str, str], list[float]]:
        found: dict[tuple[str, str], list[float]] = {}
        for (metric, bucket, k), row in sorted(self._by_key.items(), key=lambda item: item[0]):
            if row.measured:
                found.setdefault((metric, bucket), []).append(k)
        return found

    def row(self, metric: str, k: float, bucket: str = "all") -> Row | None:
        """The row with a finite value for this metric at k times L, or None."""
        row = self._by_key.get((metric, bucket, k))
        return row if row is not None and row.measured else None

    def value(self, metric: str, k: float, bucket: str = "all") -> float | None:
        """The measured value at k times L, or None where nothing was measured."""
        row = self.row(metric, k, bucket)
        return None if row is None else row.value

    def multiples(self, metric: str, bucket: str = "all") -> list[float]:
        """Every k at which the metric has a finite value, ascending."""
        return self._multiples.get((metric, bucket), [])

    def retrieval(self, k: float, tasks: Sequence[str]) -> float | None:
        """Corrected accuracy at kL, mean over the tasks; None if one of them is missing."""
        return _mean([self.value(f"{task}_corrected", k) for task in tasks])

    def least(self, k: float, tasks: Sequence[str]) -> float | None:
        """Corrected accuracy at kL of the worst of the tasks; None if one of them is missing."""
        values = [self.value(f"{task}_corrected", k) for task in tasks]
        return None if not values or None in values else min(values)

    def far(self, task: str, k: float) -> tuple[float, int] | None:
        """Corrected accuracy over needles further back than L in contexts of kL, and n answers."""
        rows = [row for b in FAR_BUCKETS if (row := self.row(f"{task}_corrected", k, b))]
        n = sum(row.n for row in rows)
        return (sum(row.value * row.n for row in rows) / n, n) if n else None

    def far_mean(self, k: float, tasks: Sequence[str]) -> float | None:
        """`far`, mean over the tasks; None if one of them is missing."""
        return _mean([found and found[0] for found in (self.far(task, k) for task in tasks)])

    @property
    def heads(self) -> list[dict] | None:
        """What each head of the scheme does, as the evaluation described it, or None."""
        return self.data.scheme["heads"] if self.data.scheme else None

    def arrays(self, name: str) -> Mapping[str, np.ndarray] | None:
        """The stored arrays of that name, or None where they are not kept."""
        try:
            return self.data.arrays(name)
        except ValueError:
            return None


@dataclasses.dataclass(frozen=True)
class StudyView:
    """All runs of a study, in the order of its arms, and sentences about those that are not there."""

    data: StudyData

    @functools.cached_property
    def runs(self) -> tuple[RunView, ...]:
        """Every run with rows, by arm and seed."""
        runs = [RunView(run) for run in self.data.runs if run.rows]
        return tuple(sorted(runs, key=lambda run: (self.arms.index(run.arm), run.seed)))

    @functools.cached_property
    def elsewhere(self) -> tuple[RunView, ...]:
        """Runs of another training length."""
        return tuple(RunView(run) for run in self.data.elsewhere if run.rows)

    @functools.cached_property
    def arms(self) -> tuple[str, ...]:
        """The arms with rows: those that the study names in its order, then the others."""
        present = {run.info["arm"] for run in self.data.runs if run.rows}
        named = [arm for arm in self.record.get("arms", ()) if arm in present]
        return (*named, *sorted(present - set(named)))

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def record(self) -> Mapping:
        return self.data.record

    @property
    def roles(self) -> Mapping[str, str]:
        """The arm of each role; of several candidates the first."""
        named = self.record.get("roles", {})
        return {r: arms if isinstance(arms, str) else arms[0] for r, arms in named.items() if arms}

    @property
    def train_length(self) -> int:
        return self.runs[0].train_length

    @functools.cached_property
    def unfinished(self) -> tuple[str, ...]:
        """A sentence for each run whose rows may not count, or that the study plans and nobody evaluated."""
        runs = (*self.data.runs, *self.data.elsewhere)
        lines = [f"{run.name}: {run.why}" for run in runs if run.why]
        found = {(run.info["arm"], run.info["seed"]) for run in runs if run.rows}
        for arm in self.record.get("arms", ()):
            missing = [str(s) for s in self.record.get("seeds", ()) if (arm, s) not in found]
            if missing:
                lines.append(f"{short_name(arm)}: no evaluated run for seed {', '.join(missing)}")
        return tuple(lines)

    def of(self, arm: str) -> list[RunView]:
        """The runs of one arm, by seed."""
        return [run for run in self.runs if run.arm == arm]

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """Display name of each arm; two arms never share one."""
        short = {arm: short_name(arm) for arm in self.arms}
        taken = list(short.values())
        return {arm: s if taken.count(s) == 1 else proper_name(arm) for arm, s in short.items()}

    @functools.cached_property
    def colours(self) -> dict[str, int]:
        """Colour index of each arm, by name order: the same in every figure of the page."""
        return {arm: index for index, arm in enumerate(sorted(self.arms))}

    @property
    def tiers(self) -> list[str]:
        return sorted({run.data.info["tier"] for run in self.runs})

    @property
    def seeds_per_arm(self) -> tuple[int, int]:
        """Smallest and largest number of evaluated seeds of an arm."""
        counts = [len(self.of(arm)) for arm in self.arms]
        return min(counts), max(counts)

    def multiples(self, metric: str, bucket: str = "all") -> list[float]:
        """Every k at which any run has the metric, ascending."""
        return sorted({k for run in self.runs for k in run.multiples(metric, bucket)})

    def far_multiple(self, metric: str) -> float | None:
        """The primary multiple beyond L where it was measured, else the largest beyond L, else None."""
        measured = [k for k in self.multiples(metric) if k > 1]
        return FAR if FAR in measured else max(measured, default=None)

    @functools.cached_property
    def tasks(self) -> tuple[str, ...]:
        """Retrieval tasks with at least one measured accuracy, those of Y_R first."""
        rows = [row for run in self.runs for row in run.rows if row.suite == "R" and row.measured]
        found = dict.fromkeys(
            row.metric.removesuffix("_accuracy") for row in rows if row.metric.endswith("_accuracy")
        )
        rest = [task for task in found if task not in SUMMARY_TASKS]
        return (*(task for task in SUMMARY_TASKS if task in found), *rest)

    @functools.cached_property
    def main_tasks(self) -> tuple[str, ...]:
        """The tasks whose mean stands for retrieval: those of Y_R, or else the older pair."""
        scored = tuple(task for task in self.tasks if self.multiples(f"{task}_corrected"))
        if set(SUMMARY_TASKS) <= set(scored):
            return SUMMARY_TASKS
        return tuple(task for task in OLDER_TASKS if task in scored) or scored

    @functools.cached_property
    def parents(self) -> tuple[str, ...]:
        """The RoPE and the ALiBi of the study: by role, or by their plain names."""
        named = [self.roles.get(role, role) for role in ("rope", "alibi")]
        return tuple(arm for arm in named if arm in self.arms)

    @functools.cached_property
    def unigram(self) -> float | None:
        """Bits per byte of a unigram model on the split of the rows, where all runs have the same."""
        levels = {self.unigram_of(run) for run in self.runs}
        level = levels.pop() if len(levels) == 1 else None
        return level if is_number(level) else None

    def unigram_of(self, run: RunView) -> float | None:
        """The same of one run, as it was recorded."""
        return run.data.info.get("unigram_bpb", {}).get(self.data.split)

    @functools.cached_property
    def not_measured(self) -> list[str]:
        """One sentence for each row that was skipped or holds no finite number."""
        return sorted({s for run in self.runs for row in run.rows if (s := _gap(self, run, row))})


def is_number(value: object) -> bool:
    """Whether a stored value is a finite number, not None or NaN."""
    return isinstance(value, int | float) and math.isfinite(value)


def task_name(task: str) -> str:
    """A retrieval task in words: mqar_16 -> MQAR 16."""
    word, *rest = task.split("_")
    return " ".join([_WORDS.get(word, word), *(part for part in rest if part != "first")])


def proper_name(arm: str) -> str:
    """The arm's own string with names spelt as in their papers: rope+alibi -> RoPE + ALiBi."""
    words = re.sub(r"[a-z]+", lambda m: _PROPER.get(m[0], m[0]), arm)
    return re.sub(r"\s*([+|])\s*", r" \1 ", words)


def short_name(arm: str) -> str:
    """proper_name, but the coupled split (EVALUATION, H1) by that name."""
    return "coupled split" if _COUPLED.fullmatch(arm) else proper_name(arm)


def times(k: float) -> str:
    """A multiple of L in words: 0.125 -> L/8, 1 -> L, 4 -> 4L."""
    if k == 1:
        return "L"
    if k < 1 and (1 / k).is_integer():
        return f"L/{int(1 / k)}"
    return f"{k:g}L"


def where(metric: str, k: float) -> str:
    """Where a metric was measured; contexts of E3 say which positions they score."""
    if metric == BPB and k == ID:
        return "at L/2 (in distribution)"
    if metric == BPB and k == 1:
        return "at c = L (positions L to 1.5 L)"
    return f"at {times(k)}"


def _mean(values: Sequence[float | None]) -> float | None:
    return None if not values or None in values else sum(values) / len(values)


def _gap(study: StudyView, run: RunView, row: Row) -> str | None:
    if row.measured or (row.n == 0 and not row.skipped):
        return None  # no needle can lie in this bin at this length
    who = f"{study.names[run.arm]}, seed {run.seed}"
    if row.metric == "skipped":
        return f"{who}: everything at {times(row.k)}: {row.skipped}"
    bucket = "" if row.bucket == "all" else f", {row.bucket}"
    reason = f"skipped ({row.skipped})" if row.skipped else "no finite value"
    return f"{who}: {row.metric} {where(row.metric, row.k)}{bucket}: {reason}"
