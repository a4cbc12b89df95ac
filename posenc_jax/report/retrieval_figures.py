"""Figures of retrieval: every task at a glance, by depth, by distance, acquisition."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from posenc_jax.report import marks
from posenc_jax.report.figure import Figure, Table, panels_of
from posenc_jax.report.study_view import StudyView, task_name, times
from posenc_jax.report.style import AT_L, INK, SURFACE
from posenc_jax.results.schema import (
    ACQUIRED,
    DISTANCE_BUCKETS,
    FAR,
    FAR_BUCKETS,
    REACHES,
    SUMMARY_TASKS,
)
from posenc_jax.results.study_data import RunData

KINDS = {"kind:LAST": "asked last", "kind:FIRST": "asked first"}  # of latest_first
SUMMARY = "Y_R"
NOTHING = "no retrieval task was measured"


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
    rows = Table()
    for k in ks:
        for needles in ("all", "d > L"):
            for arm in study.arms:
                for column in columns:
                    scores = [_score(run, column, k, needles != "all") for run in study.of(arm)]
                    found = [score for score in scores if score is not None]
                    if found:
                        where = {"arm": arm, "k": k, "needles": needles, "task": column}
                        spread = {"min": min(found), "max": max(found), "seeds": len(found)}
                        rows.append(where | {"corrected": float(np.mean(found))} | spread)
    arms = study.arms_of(rows)
    names = [study.names[arm] for arm in arms]

    def draw(axes: Axes, far: bool, k: float) -> None:
        here = rows.where(k=k, needles="d > L" if far else "all")
        values = here.matrix("arm", arms, "task", columns, "corrected")
        marks.heat(axes, values, names, list(columns.values()))
        axes.xaxis.tick_top()
        if SUMMARY in columns:
            axes.axvline(1, color=SURFACE, linewidth=3)
        axes.set_title(times(k) + (", d > L" if far else ""), pad=8)

    summary = "Y_R is the mean of passkey, needles 4 and MQAR 16. " if SUMMARY in columns else ""
    caption = (
        "Answers right above chance without binding, mean over seeds; 0 is guessing among the "
        "values in sight, 100 is perfect. Each map is one length of the context; maps named d > L "
        f"count only needles further back than L. {summary}An empty cell was not measured. The "
        "smallest and the largest seed are in the CSV."
    )
    many = sum(map(len, columns.values())) > 25
    order = sorted({(row["needles"] != "all", row["k"]) for row in rows})
    panels = panels_of(draw, order, 0.8 + 0.25 * len(arms) + 0.6 * many)
    title, key = "Every retrieval task", marks.share_bar()
    return Figure("retrieval_overview", title, caption, rows, panels, 2 if many else 3, key)


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
    missing = [] if measured else [NOTHING]
    return order[:most], [f"In the CSV and not drawn: {', '.join(rest)}"] if rest else missing


def needle_maps(study: StudyView) -> Figure:
    """Accuracy above chance by context length and depth, a map per arm and task."""
    rows = Table()
    for task in study.tasks:
        metric, depths = f"{task}_corrected", [f"depth:{decile}" for decile in range(10)]
        ks = sorted({k for depth in depths for k in study.multiples(metric, depth)})
        for arm in study.arms:
            for k in ks:
                for decile, depth in enumerate(depths):
                    found = [row for run in study.of(arm) if (row := run.row(metric, k, depth))]
                    if found:
                        mean = float(np.mean([row.value for row in found]))
                        where = {"arm": arm, "task": task, "k": k, "decile": decile}
                        count = {"seeds": len(found), "n": sum(row.n for row in found)}
                        rows.append(where | {"corrected": mean} | count)
    tasks, missing = _drawn_tasks(study, list(dict.fromkeys(rows.column("task"))), 3)
    arms = study.arms_of(rows)
    numbers = len(arms) <= marks.TOGETHER

    def draw(axes: Axes, task: str, arm: str) -> None:
        ks, here = rows.where(task=task).distinct("k"), rows.where(task=task, arm=arm)
        values = here.matrix("decile", range(10), "k", ks, "corrected")
        # Distance is about (1 - depth) * kL, so distance = L at depth 1 - 1/k.
        edge = np.array([10 * max(0.0, 1 - 1 / k) for k in ks])

        def middle(line: int, column: int) -> float:  # of a cell's larger part beside the line
            at = edge[column] - line
            if not 0.1 < at < 0.9:
                return line + 0.5
            return line + (at / 2 if at > 0.5 else (1 + at) / 2)

        marks.heat(axes, values, [""] * 10, [times(k) for k in ks], numbers, middle)
        xs, ys = np.repeat(np.arange(len(ks) + 1), 2)[1:-1], np.repeat(edge, 2)
        axes.plot(xs, ys, color=SURFACE, linewidth=2.8, clip_on=False)
        axes.plot(xs, ys, color=AT_L, linewidth=1.5, clip_on=False)
        axes.set_yticks([0.5, 4.5, 9.5], ["0", "4", "9"])
        marks.arm_title(axes, study, arm, task_name(task), 22 if numbers else 18)

    caption = (
        "Answers right above chance by context length (across, multiples of L) and by depth of "
        "the needle (down, in tenths of the context: 0 is its beginning, 9 just before the "
        "question); means over seeds. On the stepped red line the distance to the needle is L; "
        "above it the needle is further back than any distance of training. An arm that sees only "
        "a window is bright below the line and dark above it."
    )
    items, key = [(task, arm) for task in tasks for arm in arms], marks.share_bar()
    panels, across = panels_of(draw, items, 2.6 if numbers else 1.7), 4 if numbers else 6
    return Figure("needle_maps", "Needle maps", caption, rows, panels, across, key, missing=missing)


def accuracy_by_distance(study: StudyView) -> Figure:
    """Accuracy above chance by distance to the needle, in the longest contexts, a map per task."""
    rows, missing, longest = Table(), [], {}
    for task in study.tasks:
        right, metric = f"{task}_corrected", f"{task}_accuracy"
        ks = [k for bucket in DISTANCE_BUCKETS for k in study.multiples(metric, bucket)]
        if not ks:
            missing.append(f"{task_name(task)}: no accuracy by distance")
            continue
        k = longest[task] = max(ks)
        rows += [
            run.key
            | {"task": task, "k": k, "bucket": bucket, "accuracy": row.value, "chance": row.chance}
            | {"corrected": run.value(right, k, bucket), "n": row.n}
            for run in study.runs
            for bucket in DISTANCE_BUCKETS
            if (row := run.row(metric, k, bucket))
        ]
    drawn, rest = _drawn_tasks(study, list(longest), 6)
    arms = study.arms_of(rows)

    def draw(axes: Axes, task: str) -> None:
        here = rows.where(task=task)
        shown = [bucket for bucket in DISTANCE_BUCKETS if here.where(bucket=bucket)]
        words = [b.removeprefix("distance:").replace("<=", "≤ ").replace("-", "–") for b in shown]
        values = here.matrix("arm", arms, "bucket", shown, "corrected")
        chance = Table(row | {"arm": ""} for row in here).matrix(
            "arm", [""], "bucket", shown, "chance"
        )
        names = [*(study.names[arm] for arm in arms), "chance itself"]
        marks.heat(axes, np.concatenate([values, chance]), names, words)
        axes.axvline(sum(b not in FAR_BUCKETS for b in shown), color=SURFACE, linewidth=3)
        axes.axhline(len(arms), color=SURFACE, linewidth=3)
        axes.set_title(f"{task_name(task)}, contexts of {times(longest[task])}")

    caption = (
        "Answers right above chance (%) by how far back the needle lies, in the longest contexts "
        "measured; means over seeds. Below 0 is worse than guessing among the values in sight. "
        "Right of the white line the needle is further back than L. The last line is chance "
        "itself, in percent of answers: the best policy that sees every token and binds no value "
        "to its key."
    )
    panels = panels_of(draw, [(task,) for task in drawn], 1.1 + 0.25 * len(arms))
    title, key, labels = "Retrieval by distance", marks.share_bar(), ("distance to the needle", "")
    missing, name = missing + rest, "accuracy_by_distance"
    return Figure(name, title, caption, rows, panels, 3, key, labels, missing)


def acquisition(study: StudyView) -> Figure:
    """The worst task at L and far retrieval of every run, and counts of seeds past a bound."""
    tasks, rows, missing = study.main_tasks, Table(), []
    for run in study.runs:
        least, far = run.least(1, tasks), run.far_mean(FAR, tasks)
        if least is None:
            missing.append(f"{study.label(run)}: no retrieval at L")
            continue
        reaches = None if far is None else far >= REACHES
        at_L = {"least_at_L": least, "acquired": least >= ACQUIRED}
        rows.append(run.key | at_L | {"far_at_4L": far, "reaches": reaches})
    arms = study.arms_of(rows)
    sides = (
        ("least_at_L", "acquired", ACQUIRED, "worst task at L, above chance"),
        ("far_at_4L", "reaches", REACHES, f"needles beyond L at {FAR}L, above chance"),
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

    index = " (Y_R_far)" if tasks == SUMMARY_TASKS else ""
    caption = (
        "One mark a run, a tick at the mean, and the number of seeds past the line. Acquired: the "
        f"worst of {', '.join(map(task_name, tasks))} in contexts of L, above chance without "
        f"binding, is at least {100 * ACQUIRED:.0f} %. Reaches: their mean over needles beyond L "
        f"in contexts of {FAR}L{index} is at least {100 * REACHES:.0f} %. Runs left of a line "
        "stay in every mean of the page."
    )
    measured = [side for side in sides if any(share is not None for share in rows.column(side[0]))]
    panels = panels_of(draw, measured, 0.9 + 0.26 * len(arms))
    title = "Which runs learned to retrieve, and how far"
    return Figure("acquisition", title, caption, rows, panels, 2, missing=missing)
