"""Figures of retrieval: every task at a glance, by depth, by distance, acquisition."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from matplotlib.axes import Axes

from posenc_jax.report import marks
from posenc_jax.report.figure import Figure, Table, panels_of
from posenc_jax.report.markup import captioned
from posenc_jax.report.study_view import StudyView, task_name, times
from posenc_jax.report.style import AT_L, INK, SURFACE
from posenc_jax.results import schema
from posenc_jax.results.schema import FAR, SUMMARY_TASKS
from posenc_jax.results.study_data import RunData

KINDS = {"kind:LAST": "asked last", "kind:FIRST": "asked first"}  # of latest_first
SUMMARY = "Y_R"


def retrieval_figures(study: StudyView) -> list[Figure]:
    """Returns the figures of suite R; acquisition only where retrieval at L was measured."""
    measured = any(run.least(1, study.main_tasks) is not None for run in study.runs)
    figures = [retrieval_overview(study), needle_maps(study), accuracy_by_distance(study)]
    return figures + ([acquisition(study)] if measured else [])


def retrieval_overview(study: StudyView) -> Figure:
    """Accuracy above chance of every arm, task and length, mean over seeds."""
    ks = sorted({k for task in study.tasks for k in study.multiples(f"{task}_corrected")})
    columns = {SUMMARY: SUMMARY} if study.main_tasks == SUMMARY_TASKS else {}
    for task in study.tasks:
        asked = [kind for kind in KINDS if study.multiples(f"{task}_corrected", kind)]
        columns |= {task: task_name(task)} | {f"{task} {kind}": KINDS[kind] for kind in asked}
    rows = Table(
        {"arm": arm, "k": k, "needles": needles, "task": column}
        | {"corrected": float(np.mean(found))}
        | {"min": min(found), "max": max(found), "seeds": len(found)}
        for k, needles, arm, column in product(ks, ("all", "d > L"), study.arms, columns)
        if (found := study.found(arm, _score, column, k, needles != "all"))
    )
    arms = study.arms_of(rows)
    names = [study.names[arm] for arm in arms]

    def draw(axes: Axes, far: bool, k: float) -> None:
        here = rows.where(k=k, needles="d > L" if far else "all")
        values = here.matrix("arm", arms, "task", list(columns), "corrected")
        marks.heat(axes, values, names, list(columns.values()))
        axes.xaxis.tick_top()
        if SUMMARY in columns:
            axes.axvline(1, color=SURFACE, linewidth=3)
        axes.set_title(times(k) + (", d > L" if far else ""), pad=8)

    many = sum(map(len, columns.values())) > 25
    order = sorted({(row["needles"] != "all", row["k"]) for row in rows})
    panels = panels_of(draw, order, 0.8 + 0.25 * len(arms) + 0.6 * many)
    words = captioned("retrieval_overview", "summary" if SUMMARY in columns else None)
    return Figure(
        rows=rows, panels=panels, columns=2 if many else 3, legend=marks.SHARE_BAR, **words
    )


def _score(run: RunData, column: str, k: float, far: bool) -> float | None:
    if column == SUMMARY:
        return run.far_mean(k, SUMMARY_TASKS) if far else run.retrieval(k, SUMMARY_TASKS)
    task, _, bucket = column.partition(" ")
    if far:
        found = None if bucket else run.far(task, k)
        return None if found is None else found[0]
    return run.value(f"{task}_corrected", k, bucket or "all")


def _drawn_tasks(study: StudyView, measured: Sequence[str], most: int) -> tuple[list, list[str]]:
    """The tasks that a figure shows, those of the summary first; sentences about the others."""
    first = [task for task in study.main_tasks if task in measured]
    order = [*first, *(task for task in measured if task not in first)]
    rest = [task_name(task) for task in measured if task not in order[:most]]
    missing = [] if measured else ["no retrieval task was measured"]
    return order[:most], [f"In the CSV and not drawn: {', '.join(rest)}"] if rest else missing


def needle_maps(study: StudyView) -> Figure:
    """Accuracy above chance by context length and depth, a map per arm and task."""
    metrics = {task: f"{task}_corrected" for task in study.tasks}
    depths = [f"depth:{decile}" for decile in range(10)]
    ks = sorted({k for m in metrics.values() for d in depths for k in study.multiples(m, d)})
    rows = Table(
        {"arm": arm, "task": task, "k": k, "decile": decile}
        | {"corrected": float(np.mean([row.value for row in found]))}
        | {"seeds": len(found), "n": sum(row.n for row in found)}
        for task, arm, k, decile in product(study.tasks, study.arms, ks, range(10))
        if (found := study.found(arm, RunData.row, metrics[task], k, depths[decile]))
    )
    tasks, missing = _drawn_tasks(study, list(dict.fromkeys(rows.column("task"))), 3)
    arms = study.arms_of(rows)
    numbers = len(arms) <= marks.TOGETHER

    def draw(axes: Axes, task: str, arm: str) -> None:
        ks, here = rows.where(task=task).distinct("k"), rows.where(task=task, arm=arm)
        values = here.matrix("decile", range(10), "k", ks, "corrected")
        marks.heat(axes, values, [""] * 10, [times(k) for k in ks], numbers)
        # Distance is about (1 - depth) * kL, so distance = L at depth 1 - 1/k.
        edge = [10 * max(0.0, 1 - 1 / k) for k in ks]
        for width, colour in ((2.8, SURFACE), (1.5, AT_L)):
            axes.stairs(edge, baseline=None, color=colour, linewidth=width, clip_on=False)
        for number in axes.texts:  # to the larger part of a cell that the line crosses
            column, line = map(int, number.get_position())
            if 0.1 < (at := edge[column] - line) < 0.9:
                number.set_y(line + (at / 2 if at > 0.5 else (1 + at) / 2))
        axes.set_yticks([0.5, 4.5, 9.5], ["0", "4", "9"])
        marks.arm_title(axes, study, arm, task_name(task), 22 if numbers else 18)

    panels = panels_of(draw, list(product(tasks, arms)), 2.6 if numbers else 1.7)
    words = captioned("needle_maps") | {"rows": rows, "missing": missing}
    return Figure(panels=panels, columns=4 if numbers else 6, legend=marks.SHARE_BAR, **words)


def accuracy_by_distance(study: StudyView) -> Figure:
    """Accuracy above chance by distance to the needle, in the longest contexts, a map per task."""
    buckets = schema.DISTANCE_BUCKETS
    longest = {
        task: max(ks)
        for task in study.tasks
        if (ks := [k for b in buckets for k in study.multiples(f"{task}_accuracy", b)])
    }
    lacking = [task for task in study.tasks if task not in longest]
    missing = [f"{task_name(task)}: no accuracy by distance" for task in lacking]
    rows = Table(
        run.key
        | {"task": task, "k": k, "bucket": bucket, "accuracy": row.value, "chance": row.chance}
        | {"corrected": run.value(f"{task}_corrected", k, bucket), "n": row.n}
        for (task, k), run, bucket in product(longest.items(), study.runs, buckets)
        if (row := run.row(f"{task}_accuracy", k, bucket))
    )
    drawn, rest = _drawn_tasks(study, list(longest), 6)
    arms = study.arms_of(rows)

    def draw(axes: Axes, task: str) -> None:
        here = rows.where(task=task)
        shown = [bucket for bucket in buckets if here.where(bucket=bucket)]
        words = [b.removeprefix("distance:").replace("<=", "≤ ").replace("-", "–") for b in shown]
        values = here.matrix("arm", arms, "bucket", shown, "corrected")
        chance = here.matrix("task", [task], "bucket", shown, "chance")
        names = [*(study.names[arm] for arm in arms), "chance itself"]
        marks.heat(axes, np.concatenate([values, chance]), names, words)
        axes.axvline(sum(b not in schema.FAR_BUCKETS for b in shown), color=SURFACE, linewidth=3)
        axes.axhline(len(arms), color=SURFACE, linewidth=3)
        axes.set_title(f"{task_name(task)}, contexts of {times(longest[task])}")

    panels = panels_of(draw, [(task,) for task in drawn], 1.1 + 0.25 * len(arms))
    words = captioned("accuracy_by_distance") | {"rows": rows, "missing": missing + rest}
    return Figure(panels=panels, columns=3, legend=marks.SHARE_BAR, **words)


def acquisition(study: StudyView) -> Figure:
    """The worst task at L and far retrieval of every run, and counts of seeds past a bound."""
    tasks = study.main_tasks

    def read(run: RunData) -> list[dict] | str:
        least, far = run.least(1, tasks), run.far_mean(FAR, tasks)
        if least is None:
            return "no retrieval at L"
        reaches = None if far is None else far >= schema.REACHES
        at_L = {"least_at_L": least, "acquired": least >= schema.ACQUIRED}
        return [at_L | {"far_at_4L": far, "reaches": reaches}]

    rows, missing = study.collect(read)
    arms = study.arms_of(rows)
    sides = (
        ("least_at_L", "acquired", schema.ACQUIRED, "worst task at L, above chance"),
        ("far_at_4L", "reaches", schema.REACHES, f"needles beyond L at {FAR}L, above chance"),
    )

    def draw(axes: Axes, value: str, passed: str, bound: float, words: str) -> None:
        there = Table(row | {"value": 100 * row[value]} for row in rows if row[value] is not None)
        marks.dots(axes, study, there, arms)
        for y, arm in enumerate(arms):
            here = there.where(arm=arm).column(passed)
            marks.note(axes, f"{sum(here)} of {len(here)}", (1, y), (6, 0))
        axes.axvline(100 * bound, color=INK, linewidth=1)
        axes.set_xlim(min(0, *there.column("value")) - 4, 104)
        axes.xaxis.set_major_formatter(marks.PERCENT)
        axes.set(title=f"{passed}: seeds at {100 * bound:.0f} % and more", xlabel=words)

    measured = [side for side in sides if any(share is not None for share in rows.column(side[0]))]
    panels = panels_of(draw, measured, 0.9 + 0.26 * len(arms))
    index = " (Y_R_far)" if tasks == SUMMARY_TASKS else ""
    bounds = {"acquired": 100 * schema.ACQUIRED, "reaches": 100 * schema.REACHES}
    named = ", ".join(map(task_name, tasks))
    words = captioned("acquisition", tasks=named, index=index, **bounds)
    return Figure(rows=rows, panels=panels, columns=2, missing=missing, **words)
