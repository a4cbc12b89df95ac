"""What a study left on disk: its runs, their rows, and what is unfinished, as frozen values."""

import dataclasses
import functools
import math
import pathlib
import re
from collections.abc import Mapping, Sequence

from posenc_jax.tasks.table import SCORED

CHANCE = {task.name: task.chance for task in SCORED.values()}  # accuracy of a guess
_WORDS = {"needles": "needles", "variables": "variables", "mqar": "MQAR", "ngram": "n-gram", "nback": "n-back",
          "phonebook": "phone book", "latest": "latest or first", "flipflop": "flip-flop"}  # fmt: skip
# The mean of these is Y_R (posenc_jax.evaluation.retrieval_items), where all of them were measured.
SUMMARY_TASKS = ("passkey", "needles_4", "mqar_16")
OLDER_TASKS = ("mqar", "passkey")  # what a study without them is summed up by
FAR_BUCKETS = ("distance:L-2L", "distance:2L-4L", "distance:4L-8L", "distance:>8L")
DISTANCE_BUCKETS = ("distance:<=L/4", "distance:L/4-L", *FAR_BUCKETS)

_PROPER = {"rope": "RoPE", "alibi": "ALiBi", "nope": "NoPE", "xpos": "xPos", "yarn": "YaRN"}
_COUPLED = re.compile(r"(\d+\*)?\(rope[^|]*\+alibi[^|]*\)\|(\d+\*)?nope~logn[^|]*")


@dataclasses.dataclass(frozen=True)
class Run:
    """One trained and evaluated model: its folder's files, parsed."""

    folder: pathlib.Path
    arm: str
    seed: int
    tier: str
    train_length: int
    info: dict  # run.json
    config: dict  # config.json
    rows: tuple[dict, ...]
    metrics: tuple[dict, ...]

    @functools.cached_property
    def _by_key(self) -> dict:
        # A resumed evaluation may write a row twice; the last one stands.
        return {
            (row["metric"], row.get("bucket", "all"), float(row["k"])): row
            for row in self.rows
            if row.get("k") is not None
        }

    @functools.cached_property
    def _multiples(self) -> dict[tuple[str, str], list[float]]:
        found: dict[tuple[str, str], list[float]] = {}
        for metric, bucket, k in sorted(self._by_key):
            if self.row(metric, k, bucket):
                found.setdefault((metric, bucket), []).append(k)
        return found

    def row(self, metric: str, k: float, bucket: str = "all") -> dict | None:
        """The row with a finite value for this metric at k times L, or None."""
        row = self._by_key.get((metric, bucket, float(k)))
        return row if row is not None and is_number(row.get("value")) else None

    def value(self, metric: str, k: float, bucket: str = "all") -> float | None:
        """The measured value at k times L, or None where nothing was measured."""
        row = self.row(metric, k, bucket)
        return None if row is None else float(row["value"])

    def multiples(self, metric: str, bucket: str = "all") -> list[float]:
        """Every k at which the metric has a finite value, ascending."""
        return self._multiples.get((metric, bucket), [])

    def retrieval(self, k: float, tasks: Sequence[str]) -> float | None:
        """Chance-corrected accuracy at kL, mean over the tasks; None if one of them is missing."""
        values = [self.value(f"{task}_accuracy", k) for task in tasks]
        if not values or any(value is None for value in values):
            return None
        scores = [above_chance(task, v) for task, v in zip(tasks, values, strict=True)]
        return sum(scores) / len(scores)

    def far_accuracy(self, task: str, k: float) -> tuple[float, int] | None:
        """Chance-corrected accuracy over needles further than L in contexts of kL, and n."""
        rows = [self.row(f"{task}_accuracy", k, bucket) for bucket in FAR_BUCKETS]
        rows = [row for row in rows if row is not None and row.get("n")]
        n = sum(row["n"] for row in rows)
        if not n:
            return None
        return above_chance(task, sum(row["value"] * row["n"] for row in rows) / n), n


@dataclasses.dataclass(frozen=True)
class Study:
    """All runs below one folder, and sentences about those that are not there."""

    workdir: pathlib.Path
    name: str
    runs: tuple[Run, ...]
    arms: tuple[str, ...]
    train_length: int
    unfinished: tuple[str, ...]
    roles: Mapping[str, str] = dataclasses.field(default_factory=dict)  # "rope", "alibi": arms
    elsewhere: tuple[Run, ...] = ()  # runs of another training length

    def of(self, arm: str) -> list[Run]:
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
        return sorted({run.tier for run in self.runs})

    @property
    def seeds_per_arm(self) -> tuple[int, int]:
        """Smallest and largest number of evaluated seeds of an arm."""
        counts = [len(self.of(arm)) for arm in self.arms]
        return min(counts), max(counts)

    def multiples(self, metric: str, bucket: str = "all") -> list[float]:
        """Every k at which any run has the metric, ascending."""
        return sorted({k for run in self.runs for k in run.multiples(metric, bucket)})

    @functools.cached_property
    def tasks(self) -> tuple[str, ...]:
        """Retrieval tasks with at least one measured accuracy."""
        return tuple(task for task in CHANCE if self.multiples(f"{task}_accuracy"))

    @functools.cached_property
    def main_tasks(self) -> tuple[str, ...]:
        """The tasks whose mean stands for retrieval: those of Y_R, or else the older pair."""
        if set(SUMMARY_TASKS) <= set(self.tasks):
            return SUMMARY_TASKS
        return tuple(task for task in OLDER_TASKS if task in self.tasks) or self.tasks

    @functools.cached_property
    def parents(self) -> tuple[str, ...]:
        """The RoPE and the ALiBi of the study: by role, or by their plain names."""
        named = [self.roles.get(role, role) for role in ("rope", "alibi")]
        return tuple(arm for arm in named if arm in self.arms)

    @functools.cached_property
    def not_measured(self) -> list[str]:
        """One sentence for each row that was skipped or holds no finite number."""
        return sorted({s for run in self.runs for row in run.rows if (s := _gap(self, run, row))})


def is_number(value: object) -> bool:
    """Whether a row's value is a finite number, not None or NaN."""
    return isinstance(value, int | float) and math.isfinite(value)


def above_chance(task: str, accuracy: float) -> float:
    """Accuracy rescaled so that guessing is 0 and perfect is 1."""
    return (accuracy - CHANCE[task]) / (1 - CHANCE[task])


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


def _gap(study: Study, run: Run, row: dict) -> str | None:
    if is_number(row.get("value")):
        return None
    if row.get("n") == 0 and "skipped" not in row:
        return None  # no needle can lie in this bin at this length
    where = f" at {times(row['k'])}" if is_number(row.get("k")) else ""
    if row["metric"] == "skipped":
        return f"{study.names[run.arm]}, seed {run.seed}: everything{where}: {row.get('skipped')}"
    bucket = row.get("bucket", "all")
    where += "" if bucket == "all" else f", {bucket}"
    reason = f"skipped ({row['skipped']})" if row.get("skipped") else "no finite value"
    return f"{study.names[run.arm]}, seed {run.seed}: {row['metric']}{where}: {reason}"
