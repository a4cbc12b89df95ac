"""What a study left on disk: its runs, their rows, and what is unfinished, as frozen values."""

import dataclasses
import functools
import json
import math
import pathlib
import re

# Accuracy of a guess: five digits; one value id of 64 (posenc_jax.tasks.retrieval.chance).
CHANCE = {"mqar": 1 / 64, "passkey": 1e-5}
TASK_NAMES = {"mqar": "MQAR", "passkey": "passkey"}
FAR_BUCKETS = ("distance:L-2L", "distance:2L-4L", "distance:4L-8L")
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
        keys = sorted(self._by_key)
        return [k for m, b, k in keys if (m, b) == (metric, bucket) and self.row(m, k, b)]

    def retrieval(self, k: float, tasks: list[str]) -> float | None:
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

    def tasks(self) -> list[str]:
        """Retrieval tasks with at least one measured accuracy."""
        return [task for task in CHANCE if self.multiples(f"{task}_accuracy")]

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


def read_study(workdir: pathlib.Path) -> Study:
    """Everything evaluated below workdir; raises ValueError (one line) if nothing can be told."""
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise ValueError(f"--workdir={workdir} is not a folder; give a run or a study folder")
    plan = _json(workdir / "study.json") if (workdir / "study.json").exists() else {}
    unfinished, runs = [], []
    for folder in _run_folders(workdir):
        run = _read_run(folder, workdir, unfinished)
        if run is not None:
            runs.append(run)
    if not runs:
        raise ValueError(
            f"no evaluated run below {workdir}: evaluation/rows.jsonl is missing or empty; "
            "run scripts/evaluate.py --workdir=<run> first"
        )
    _refuse_mixtures(runs, workdir)
    named = plan.get("arms", [])
    if not all(isinstance(arm, str) for arm in named):
        raise ValueError(f"{workdir / 'study.json'}: arms must be a list of names")
    present = {run.arm for run in runs}
    arms = [arm for arm in named if arm in present]
    arms += sorted(present - set(arms))
    found = {(run.arm, run.seed) for run in runs}
    for arm in named:
        missing = [str(seed) for seed in plan.get("seeds", []) if (arm, seed) not in found]
        if missing:
            unfinished.append(f"{short_name(arm)}: no evaluated run for seed {', '.join(missing)}")
    runs.sort(key=lambda run: (arms.index(run.arm), run.seed))
    name = str(plan.get("name", workdir.resolve().name))
    return Study(workdir, name, tuple(runs), tuple(arms), runs[0].train_length, tuple(unfinished))


def _run_folders(workdir: pathlib.Path) -> list[pathlib.Path]:
    marks = ("evaluation/rows.jsonl", "config.json", "run.json")
    found = {path for mark in marks for path in workdir.glob(f"**/{mark}")}
    apart = (workdir / "tuning", workdir / "other_lengths")  # posenc_jax.study.grid
    found = {path for path in found if not any(path.is_relative_to(a) for a in apart)}
    return sorted({p.parent.parent if p.name == "rows.jsonl" else p.parent for p in found})


def _read_run(folder: pathlib.Path, workdir: pathlib.Path, unfinished: list[str]) -> Run | None:
    label = str(folder.relative_to(workdir)) if folder != workdir else folder.resolve().name
    info = _json(folder / "run.json") if (folder / "run.json").exists() else {}
    config = _json(folder / "config.json") if (folder / "config.json").exists() else {}
    rows, cut = _lines(folder / "evaluation" / "rows.jsonl")
    metrics, _ = _lines(folder / "metrics.jsonl")
    steps = config.get("train", {}).get("steps")
    done = max((m["step"] for m in metrics if "step" in m), default=None)
    # A log line every few steps: the last one may lie a little before the end.
    if info.get("finished") is False:
        unfinished.append(f"{label}: training has not finished, last logged step {done}")
    elif is_number(steps) and done is not None and done < 0.95 * steps:
        unfinished.append(f"{label}: the training log ends at step {done} of {steps}")
    if not rows:
        unfinished.append(f"{label}: not evaluated")
        return None
    if cut:
        unfinished.append(f"{label}: the last row of rows.jsonl is cut off, evaluation not done")
    elif not (folder / "evaluation" / "evaluation.json").exists():
        unfinished.append(f"{label}: evaluation has not finished (it writes evaluation.json last)")
    if not info:
        unfinished.append(f"{label}: no run.json, so nothing is known about how it was trained")
    first = rows[0]
    try:
        return Run(
            folder=folder,
            arm=str(info.get("arm", first.get("arm", label))),
            seed=int(info["seed"] if "seed" in info else first["seed"]),
            tier=str(info["tier"] if "tier" in info else first["tier"]),
            train_length=int(first["train_length"]),
            info=info,
            config=config,
            rows=tuple(row for row in rows if "metric" in row),
            metrics=tuple(metrics),
        )
    except KeyError as error:
        raise ValueError(f"{folder / 'evaluation/rows.jsonl'}: first row has no {error}") from None


def _refuse_mixtures(runs: list[Run], workdir: pathlib.Path) -> None:
    lengths = sorted({run.train_length for run in runs})
    if len(lengths) > 1:
        raise ValueError(
            f"runs below {workdir} were trained at different lengths {lengths}; "
            "a page compares one training length, give a narrower folder"
        )
    seen = {}
    for run in runs:
        other = seen.setdefault((run.arm, run.seed), run)
        if other is not run:
            raise ValueError(
                f"{other.folder} and {run.folder} both hold arm {run.arm}, seed {run.seed}; "
                "give a narrower folder"
            )


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


def _json(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def _lines(path: pathlib.Path) -> tuple[list[dict], bool]:
    """The objects of a JSONL file, and whether its last line was cut off by a kill."""
    if not path.exists():
        return [], False
    text = path.read_text(encoding="utf-8", errors="replace")
    lines, parsed = text.split("\n"), []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            parsed.append(json.loads(line))
        except ValueError:
            if number == len(lines):
                return parsed, True
            raise ValueError(f"{path}, line {number} is not JSON") from None
    return parsed, False
