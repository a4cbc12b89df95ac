"""A study as the report reads it: arms in order, with names and colours."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from posenc_jax.report.figure import Table
from posenc_jax.results.schema import BPB, FAR, ID, SUMMARY_TASKS, Row
from posenc_jax.results.study_data import RunData, StudyData

OLDER_TASKS = ("mqar", "passkey")  # the summary of a study without the tasks of Y_R
_WORDS = {
    "mqar": "MQAR",
    "ngram": "n-gram",
    "nback": "n-back",
    "phonebook": "phone book",
    "latest": "latest or first",
    "flipflop": "flip-flop",
}
_PROPER = {"rope": "RoPE", "alibi": "ALiBi", "nope": "NoPE", "xpos": "xPos", "yarn": "YaRN"}
_COUPLED = re.compile(r"(\d+\*)?\(rope[^|]*\+alibi[^|]*\)\|(\d+\*)?nope~logn[^|]*")


@dataclasses.dataclass(frozen=True)
class StudyView:
    """All runs of a study in the order of its arms, and sentences about missing runs."""

    data: StudyData
    first_colour: int = 0

    @functools.cached_property
    def arms(self) -> tuple[str, ...]:
        """The arms with rows: those that the study names in its order, then the others."""
        present = {run.arm for run in self.data.runs if run.rows}
        named = [arm for arm in self.data.record.get("arms", ()) if arm in present]
        return (*named, *sorted(present - set(named)))

    @functools.cached_property
    def runs(self) -> tuple[RunData, ...]:
        """Every run with rows, by arm and seed."""
        runs = [run for run in self.data.runs if run.rows]
        return tuple(sorted(runs, key=lambda run: (self.arms.index(run.arm), run.seed)))

    @functools.cached_property
    def elsewhere(self) -> "tuple[StudyView, ...]":
        """The arms of another training length, each a study of its own."""
        arms = list(dict.fromkeys(run.arm for run in self.data.elsewhere if run.rows))
        of = {arm: tuple(run for run in self.data.elsewhere if run.arm == arm) for arm in arms}
        alone = functools.partial(dataclasses.replace, self.data, elsewhere=(), record={})
        return tuple(
            StudyView(alone(runs=of[arm]), len(self.arms) + i) for i, arm in enumerate(arms)
        )

    @property
    def roles(self) -> Mapping[str, str]:
        """The arm of each role; of several candidates the first."""
        named = self.data.record.get("roles", {})
        return {r: arms if isinstance(arms, str) else arms[0] for r, arms in named.items() if arms}

    @property
    def parents(self) -> tuple[str, ...]:
        """The RoPE and the ALiBi of the study: by role, or by their plain names."""
        named = [self.roles.get(role, role) for role in ("rope", "alibi")]
        return tuple(arm for arm in named if arm in self.arms)

    @property
    def train_length(self) -> int:
        return self.runs[0].info["train_length"]

    @functools.cached_property
    def unfinished(self) -> tuple[str, ...]:
        """A sentence for each run whose rows may not count or are missing."""
        runs = (*self.data.runs, *self.data.elsewhere)
        lines = [f"{run.name}: {run.why}" for run in runs if run.why]
        found = {(run.arm, run.seed) for run in runs if run.rows}
        for arm in self.data.record.get("arms", ()):
            missing = [str(s) for s in self.data.record.get("seeds", ()) if (arm, s) not in found]
            if missing:
                lines.append(f"{short_name(arm)}: no evaluated run for seed {', '.join(missing)}")
        return tuple(lines)

    def of(self, arm: str) -> list[RunData]:
        """Returns the runs of one arm, by seed."""
        return [run for run in self.runs if run.arm == arm]

    def found(self, arm: str, read: Callable[..., object], *args: object) -> list:
        """Returns what `read(run, *args)` finds in the runs of an arm, without None."""
        return [value for run in self.of(arm) if (value := read(run, *args)) is not None]

    def collect(self, read: Callable[[RunData], Iterable[Mapping] | str]) -> tuple[Table, list]:
        """Returns the rows that `read` finds in the runs, and who has none: `read` says why."""
        found = [(run, read(run)) for run in self.runs]
        rows = Table(
            {**run.key, **row} for run, rows in found if not isinstance(rows, str) for row in rows
        )
        return rows, [f"{self.label(run)}: {why}" for run, why in found if isinstance(why, str)]

    def label(self, run: RunData) -> str:
        """Returns the arm's display name and the seed."""
        return f"{self.names[run.arm]}, seed {run.seed}"

    def table(self, *metrics: str) -> Table:
        """Returns all finite values of the metrics by run and k, bucket "all"."""
        return Table(
            run.key | {"metric": metric, "k": k, "length": row.length, "value": row.value}
            for metric in metrics
            for run in self.runs
            for k in run.multiples(metric)
            if (row := run.row(metric, k))
        )

    def arms_of(self, rows: Table) -> list[str]:
        """Returns the arms that have a row, in order."""
        have = set(rows.column("arm"))
        return [arm for arm in self.arms if arm in have]

    def without(self, rows: Table, what: str) -> list[str]:
        """Returns a sentence for each arm that has no row; `what` says what it lacks."""
        have = self.arms_of(rows)
        return [f"{self.names[arm]}: {what}" for arm in self.arms if arm not in have]

    @functools.cached_property
    def names(self) -> dict[str, str]:
        """Display name of each arm; two arms never share one."""
        short = {arm: short_name(arm) for arm in self.arms}
        taken = list(short.values())
        return {arm: s if taken.count(s) == 1 else proper_name(arm) for arm, s in short.items()}

    @functools.cached_property
    def colours(self) -> dict[str, int]:
        """Colour index of each arm, by name order: the same in every figure of the page."""
        return {arm: index for index, arm in enumerate(sorted(self.arms), self.first_colour)}

    @functools.cached_property
    def seeds_per_arm(self) -> tuple[int, int]:
        """Smallest and largest number of evaluated seeds of an arm."""
        counts = [len(self.of(arm)) for arm in self.arms]
        return min(counts), max(counts)

    def multiples(self, metric: str, bucket: str = "all") -> list[float]:
        """Returns every k at which any run has the metric, ascending."""
        return sorted({k for run in self.runs for k in run.multiples(metric, bucket)})

    def far_multiple(self, *metrics: str) -> float | None:
        """Returns FAR or else the largest k > 1 of each metric, the least of these, or None."""
        measured = [[k for k in self.multiples(metric) if k > 1] for metric in metrics]
        return min((FAR if FAR in ks else max(ks) for ks in measured if ks), default=None)

    @functools.cached_property
    def tasks(self) -> tuple[str, ...]:
        """Retrieval tasks with at least one measured accuracy, those of Y_R first."""
        rows = [row for run in self.runs for row in run.rows if row.suite == "R" and row.measured]
        names = [row.metric for row in rows if row.metric.endswith("_accuracy")]
        found = list(dict.fromkeys(name.removesuffix("_accuracy") for name in names))
        first = [task for task in SUMMARY_TASKS if task in found]
        return (*first, *(task for task in found if task not in first))

    @functools.cached_property
    def main_tasks(self) -> tuple[str, ...]:
        """The tasks whose mean stands for retrieval: those of Y_R, or else the older pair."""
        scored = tuple(task for task in self.tasks if self.multiples(f"{task}_corrected"))
        if set(SUMMARY_TASKS) <= set(scored):
            return SUMMARY_TASKS
        return tuple(task for task in OLDER_TASKS if task in scored) or scored

    @functools.cached_property
    def unigram(self) -> float | None:
        """Bits per byte of a unigram model on this split, where all runs have the same."""
        levels = {self.unigram_of(run) for run in self.runs}
        level = levels.pop() if len(levels) == 1 else None
        return level if is_number(level) else None

    def unigram_of(self, run: RunData) -> float | None:
        """Returns the unigram level of one run, as it was recorded."""
        return run.info.get("unigram_bpb", {}).get(self.data.split)

    @functools.cached_property
    def not_measured(self) -> list[str]:
        """One sentence for each row that was skipped or holds no finite number."""
        return sorted({s for run in self.runs for row in run.rows if (s := _gap(self, run, row))})


def is_number(value: object) -> bool:
    """Returns whether a stored value is a finite number, not None or NaN."""
    return isinstance(value, int | float) and math.isfinite(value)


def listed(parts: Sequence[str]) -> str:
    """Returns words as an enumeration: a, b and c."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def task_name(task: str) -> str:
    """Returns a retrieval task in words: mqar_16 -> MQAR 16."""
    word, *rest = task.split("_")
    return " ".join([_WORDS.get(word, word), *(part for part in rest if part != "first")])


def proper_name(arm: str) -> str:
    """Returns the arm's string with names spelt as in their papers: rope+alibi -> RoPE + ALiBi."""
    words = re.sub(r"[a-z]+", lambda m: _PROPER.get(m[0], m[0]), arm)
    return re.sub(r"\s*([+|])\s*", r" \1 ", words)


def short_name(arm: str) -> str:
    """Returns proper_name, but "coupled split" for that hybrid."""
    return "coupled split" if _COUPLED.fullmatch(arm) else proper_name(arm)


def times(k: float) -> str:
    """Returns a multiple of L in words: 0.125 -> L/8, 1 -> L, 4 -> 4L."""
    if k == 1:
        return "L"
    return f"L/{int(1 / k)}" if k < 1 and (1 / k).is_integer() else f"{k:g}L"


def where(metric: str, k: float) -> str:
    """Returns where a metric was measured; for E3 with the positions of the scored tokens."""
    named = {ID: "at L/2 (in distribution)", 1: "at c = L (positions L to 1.5 L)"}
    return named[k] if metric == BPB and k in named else f"at {times(k)}"


def _gap(study: StudyView, run: RunData, row: Row) -> str | None:
    if row.measured or (row.n == 0 and not row.skipped):
        return None  # no needle can lie in this bin at this length
    who = study.label(run)
    if row.metric == "skipped":
        return f"{who}: everything at {times(row.k)}: {row.skipped}"
    bucket = "" if row.bucket == "all" else f", {row.bucket}"
    reason = f"skipped ({row.skipped})" if row.skipped else "no finite value"
    return f"{who}: {row.metric} {where(row.metric, row.k)}{bucket}: {reason}"
