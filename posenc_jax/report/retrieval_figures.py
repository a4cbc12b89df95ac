"""Retrieval figures: the Pareto picture against extrapolation, and accuracy by distance."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from posenc_jax.report import style
from posenc_jax.report.labels import label_points
from posenc_jax.report.line_axes import PERCENT, TOGETHER, bands, finish, seeds_note
from posenc_jax.report.needle_maps import drawn_tasks, only_in_table
from posenc_jax.report.retrieval_overview import heat
from posenc_jax.report.study_view import StudyView, task_name, times
from posenc_jax.report.style import INK, MUTED, SURFACE, Layout, Picture
from posenc_jax.results.schema import BPB, DISTANCE_BUCKETS, FAR, FAR_BUCKETS, SUMMARY_TASKS


def pareto(study: StudyView) -> Picture:
    """Extrapolation against retrieval, one cloud of seeds per arm."""
    k_text = study.far_multiple(BPB)
    tasks = study.main_tasks
    ks = [k for task in tasks if (k := study.far_multiple(f"{task}_corrected")) is not None]
    k_task = min(ks, default=None)
    records, missing = [], []
    for run in study.runs:
        bpb = None if k_text is None else run.value(BPB, k_text)
        score = None if k_task is None else run.retrieval(k_task, tasks)
        if bpb is None or score is None:
            lacks = [w for w, v in (("bits per byte", bpb), ("retrieval", score)) if v is None]
            missing.append(f"{study.names[run.arm]}, seed {run.seed}: no {' and no '.join(lacks)}")
            continue
        records.append(
            {"arm": run.arm, "seed": run.seed, "k_text": k_text, "bpb_ctx": bpb}
            | {"k_retrieval": k_task, "retrieval": score}
        )
    task_words = " and ".join(task_name(task) for task in tasks)
    task_words += ": Y_R" if tasks == SUMMARY_TASKS else ""
    caption = (
        "Each arm by what it pays on text and what it retrieves. Left: fewer bits per byte on "
        f"the same held-out targets with {times(k_text or FAR)} of context. Up: more "
        f"answers right in contexts of {times(k_task or FAR)} ({task_words or 'no task'}; "
        "0 % is guessing among the values in sight, less is worse than that). "
    )
    if study.seeds_per_arm[1] > 1:
        caption += "Small marks are seeds, the large mark is their mean."
    else:
        caption += "One seed per arm: a mark has no error bar, and may move with another seed."

    close = _close_up(records)
    if close is not None:
        caption += " Right: a close-up of the arms that do not break."

    def draw(layout: Layout) -> Figure:
        height = 3.9 if layout.narrow else 4.6
        panels = [None] if close is None else [None, close]
        shape = (len(panels), 1) if layout.narrow else (1, len(panels))
        width = 7.2 if not layout.narrow and close is None else layout.width
        figure, grid = style.panels(layout, *shape, height, width)
        for axes, limits in zip(grid, panels, strict=True):
            named = _clouds(axes, study, records, limits)
            axes.set_xlabel(f"bits per byte with {times(k_text)} of context  (fewer is better ←)")
            if axes is grid[0] or layout.narrow:
                axes.set_ylabel(f"retrieval at {times(k_task)}, above chance  (more is better ↑)")
            axes.set_title(
                "close up" if limits else "↖ better on both", color=MUTED, weight="normal"
            )
            marks = [(r["bpb_ctx"], 100 * r["retrieval"]) for r in records]
            label_points(axes, named, marks, (width / shape[1], height))
        return figure

    return Picture(
        "pareto",
        "Extrapolation against retrieval",
        caption,
        ("arm", "seed", "k_text", "bpb_ctx", "k_retrieval", "retrieval"),
        tuple(records),
        draw if records else None,
        tuple(missing),
    )


def _close_up(records: list[dict]) -> tuple[float, float] | None:
    """Limits of x without the arms that break, where these leave the others no room."""
    means = sorted(
        np.mean([r["bpb_ctx"] for r in records if r["arm"] == arm])
        for arm in {r["arm"] for r in records}
    )
    if len(means) < 4:
        return None
    limit = means[0] + 4 * (means[len(means) // 2] - means[0])
    kept = [x for x in means if x <= limit]
    if len(kept) < 3 or means[-1] - means[0] < 3 * (kept[-1] - kept[0]):
        return None
    pad = 0.15 * (kept[-1] - kept[0]) or 0.01
    return kept[0] - pad, kept[-1] + pad


def _clouds(
    axes: Axes, study: StudyView, records: list[dict], limits: tuple[float, float] | None
) -> list[tuple[float, float, str, str]]:
    """Seeds and means of each arm inside the limits; where the means are, and their names."""
    named = []
    for arm in study.arms:
        points = [(r["bpb_ctx"], 100 * r["retrieval"]) for r in records if r["arm"] == arm]
        if not points:
            continue
        x, y = np.mean(points, axis=0)
        if limits and not limits[0] <= x <= limits[1]:
            continue
        look = style.line_style(study.colours[arm]) | {"linestyle": "none"}
        if len(points) > 1:
            for a, b in points:
                axes.plot([x, a], [y, b], color=look["color"], linewidth=0.7, alpha=0.45)
            axes.plot(*zip(*points, strict=True), markersize=4, alpha=0.65, **look)
        axes.plot(x, y, markersize=10, markeredgecolor=SURFACE, zorder=4, **look)
        named.append((x, y, study.names[arm], look["color"]))
    axes.margins(x=0.16)
    axes.set_ylim(min(0.0, *(100 * r["retrieval"] for r in records)) - 6, 108)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.autoscale_view()
    return named


def accuracy_by_distance(study: StudyView) -> Picture:
    """Accuracy by how far back the needle lies, at the longest context measured."""
    records, missing = [], []
    longest = {}
    for task in study.tasks:
        metric = f"{task}_accuracy"
        ks = [k for bucket in DISTANCE_BUCKETS for k in study.multiples(metric, bucket)]
        if not ks:
            missing.append(f"{task_name(task)}: no accuracy by distance")
            continue
        longest[task] = max(ks)
        records += [
            {"arm": run.arm, "seed": run.seed, "task": task, "k": max(ks), "bucket": bucket}
            | {"accuracy": row.value, "chance": row.chance, "n": row.n}
            | {"corrected": run.value(f"{task}_corrected", max(ks), bucket)}
            for run in study.runs
            for bucket in DISTANCE_BUCKETS
            if (row := run.row(metric, max(ks), bucket))
        ]
    together = len(study.arms) <= TOGETHER
    drawn = drawn_tasks(study, list(longest), 3 if together else 6)
    missing += only_in_table(list(longest), drawn)
    have = {(r["arm"], r["task"]) for r in records}
    missing += [f"{study.names[arm]}: no {task_name(task)} at {times(k)}"
                for task, k in longest.items() for arm in study.arms
                if (arm, task) not in have]  # fmt: skip

    def draw(layout: Layout) -> Figure:
        if not together:
            return _distance_maps(study, records, {task: longest[task] for task in drawn}, layout)
        height = 3.3 if layout.narrow else 3.6
        rows, columns = (len(drawn), 1) if layout.narrow else (1, len(drawn))
        figure, grid = style.panels(layout, rows, columns, height)
        for axes, task in zip(grid, drawn, strict=True):
            k = longest[task]
            here = [
                r | {"x": DISTANCE_BUCKETS.index(r["bucket"]), "percent": 100 * r["accuracy"]}
                for r in records
                if r["task"] == task
            ]
            ends = bands(axes, study, here, "x", "percent")
            axes.axvline(1.5, color=INK, linewidth=1)
            _chance_line(axes, here)
            axes.text(1.56, 103, "further than L", color=MUTED, va="bottom")
            last = max(r["x"] for r in here)
            axes.set_xticks(range(last + 1), [_bin_words(b) for b in DISTANCE_BUCKETS[: last + 1]])
            axes.set_ylim(-4, 112)
            axes.set_yticks(range(0, 101, 25))
            axes.yaxis.set_major_formatter(PERCENT)
            axes.set_title(f"{task_name(task)}, contexts of {times(k)}")
            axes.set_xlabel("distance from the question back to the needle")
            if axes is grid[0] or layout.narrow:
                axes.set_ylabel("answers right")
            if axes is grid[-1] or layout.narrow:
                finish(axes, ends, height)
        return figure

    return Picture(
        "accuracy_by_distance",
        "Retrieval by distance",
        "How many answers are right when the needle lies this far back, in the longest contexts "
        "measured. "
        + (
            "Dashed: chance, the best policy that sees every token and binds no value to its key (not corrected "
            f"here). {seeds_note(study)}"
            if together
            else "Means over seeds, %, above chance without binding (below 0: worse than guessing among what is in sight); right of the white line: further than L."
        ),
        ("arm", "seed", "task", "k", "bucket", "accuracy", "chance", "corrected", "n"),
        tuple(records),
        draw if records else None,
        tuple(missing or ["no retrieval task was measured"] * (not records)),
    )


def _chance_line(axes: Axes, records: list[dict]) -> None:
    """The rows' chance over each bin of distance, dashed."""
    by_x: dict[int, list[float]] = {}
    for r in records:
        if r["chance"] is not None:
            by_x.setdefault(r["x"], []).append(100 * r["chance"])
    for x, found in by_x.items():
        level = [float(np.mean(found))] * 2
        axes.plot([x - 0.5, x + 0.5], level, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))


def _distance_maps(study: StudyView, records: list[dict], longest: dict, layout: Layout) -> Figure:
    """Arms against distance, one map per task: twelve lines on each other tell nothing."""
    arms = [arm for arm in study.arms if any(r["arm"] == arm for r in records)]
    across = 1 if layout.narrow else min(3, len(longest))
    rows = -(-len(longest) // across)
    figure, grid = style.panels(layout, rows, across, 1.0 + 0.24 * len(arms))
    for axes in grid[len(longest) :]:
        style.blank(axes)
    for index, (axes, (task, k)) in enumerate(zip(grid, longest.items(), strict=False)):
        cells: dict[tuple[str, str], list[float]] = {}
        for r in records:
            if r["task"] == task:
                value = np.nan if r["corrected"] is None else r["corrected"]
                cells.setdefault((r["arm"], r["bucket"]), []).append(value)
        shown = [b for b in DISTANCE_BUCKETS if any(bucket == b for _, bucket in cells)]
        values = np.array([[np.mean(cells.get((arm, b), [np.nan])) for b in shown] for arm in arms])
        left = index % across == 0
        heat(axes, values, [study.names[arm] for arm in arms] if left else None, layout)
        axes.axvline(sum(b not in FAR_BUCKETS for b in shown), color=SURFACE, linewidth=3)
        axes.set_xticks(np.arange(len(shown)) + 0.5, [_bin_words(b) for b in shown])
        axes.set_title(f"{task_name(task)}, contexts of {times(k)}")
        axes.set_xlabel("distance back to the needle")
    return figure


def _bin_words(bucket: str) -> str:
    words = bucket.removeprefix("distance:")
    return words.replace("<=", "≤ ").replace("-", "–")
