"""Needle heat maps: accuracy over context length and depth, with the line where distance is L."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from posenc_jax.report import style
from posenc_jax.report.labels import wrap
from posenc_jax.report.line_axes import TOGETHER, whole_percent
from posenc_jax.report.study_view import StudyView, task_name, times
from posenc_jax.report.style import EMPTY, MUTED, SURFACE, Layout, Picture

COLOURS = "cividis"
LINE = "#e0245e"  # distance = L
DRAWN = 3  # tasks; the table has all


def needle_maps(study: StudyView) -> Picture:
    """One map of corrected accuracy per arm and task, mean over seeds; the tasks that count most are drawn."""
    records, missing = [], []
    for task in study.tasks:
        metric = f"{task}_corrected"
        ks = {k for decile in range(10) for k in study.multiples(metric, f"depth:{decile}")}
        for arm in study.arms:
            found = len(records)
            for k in sorted(ks):
                for decile in range(10):
                    rows = [run.row(metric, k, f"depth:{decile}") for run in study.of(arm)]
                    rows = [row for row in rows if row is not None]
                    if rows:
                        records.append(
                            {"arm": arm, "task": task, "k": k, "decile": decile}
                            | {"corrected": float(np.mean([row.value for row in rows]))}
                            | {"seeds": len(rows), "n": sum(row.n for row in rows)}
                        )
            if ks and len(records) == found:
                missing.append(f"{study.names[arm]}: no {task_name(task)} by depth")
        if not ks:
            missing.append(f"{task_name(task)}: no accuracy by depth")
    measured = [task for task in study.tasks if any(r["task"] == task for r in records)]
    tasks = drawn_tasks(study, measured, DRAWN)
    missing += only_in_table(measured, tasks)
    arms = [arm for arm in study.arms if any(r["arm"] == arm for r in records)]

    def draw(layout: Layout) -> Figure:
        return _draw(study, records, tasks, arms, layout)

    return Picture(
        "needle_maps",
        "Needle maps",
        "Answers right above chance (%) by context length (columns, multiples of L) and by how deep in the "
        "context the needle lies (rows: 0 is the beginning, 9 just before the question). The "
        "red stepped line is distance = L: above it the needle is further back than anything seen in "
        "training. A model that only sees a window is bright below the line and dark above it."
        + ("" if len(arms) <= TOGETHER else " The numbers are in the table."),
        ("arm", "task", "k", "decile", "corrected", "seeds", "n"),
        tuple(records),
        draw if records else None,
        tuple(missing or ["no retrieval task was measured"] * (not records)),
    )


def drawn_tasks(study: StudyView, measured: Sequence[str], most: int) -> list[str]:
    """The tasks that a picture shows: those that retrieval is summed up by, then the others."""
    first = [task for task in study.main_tasks if task in measured]
    return [*first, *(task for task in measured if task not in first)][:most]


def only_in_table(measured: Sequence[str], drawn: Sequence[str]) -> list[str]:
    """A sentence that names the tasks that are not drawn, if there are any."""
    rest = [task_name(task) for task in measured if task not in drawn]
    return [f"In the table and not drawn: {', '.join(rest)}"] if rest else []


def _draw(study: StudyView, records: list[dict], tasks: list, arms: list, layout: Layout) -> Figure:
    numbers = len(arms) <= TOGETHER
    across = len(arms) if len(arms) <= 5 else -(-len(arms) // -(-len(arms) // 6))
    if layout.narrow:
        across = len(tasks) if numbers else 3
    blocks = [arms[i : i + across] for i in range(0, len(arms), across)]
    if layout.narrow and numbers:
        order = [(arm, task) for arm in arms for task in tasks]
    else:
        order = [
            (arm, task)
            for task in tasks
            for part in blocks
            for arm in part + [None] * (across - len(part))
        ]
    rows, height = -(-len(order) // across), (2.95 if layout.narrow else 3.05) if numbers else 1.7
    width = layout.width if layout.narrow else max(4.6, min(layout.width, 1.0 + 1.8 * across))
    figure, grid = style.panels(layout, rows, across, height, width)
    image = None
    for index, (axes, (arm, task)) in enumerate(zip(grid, order, strict=True)):
        if arm is None:
            style.blank(axes)
            continue
        here = [r for r in records if (r["arm"], r["task"]) == (arm, task)]
        ks = sorted({r["k"] for r in records if r["task"] == task})
        image = _map(axes, here, ks, layout, numbers)
        colour, first = style.colour(study.colours[arm]), index % across == 0
        name = wrap(study.names[arm], 18)
        if layout.narrow and numbers:
            axes.set_title(task_name(task), color=MUTED, weight="normal", pad=6)
            if first:
                axes.set_ylabel(wrap(study.names[arm], 22), color=colour, weight="bold")
        else:
            title = f"{name}\n{task_name(task)}" if numbers else name
            axes.set_title(title, color=colour, weight="normal", pad=4)
            if first:
                axes.set_ylabel("depth decile" if numbers else f"{task_name(task)}\ndepth decile")
    bar = figure.colorbar(
        image,
        ax=grid,
        location="bottom" if layout.narrow or not numbers else "right",
        shrink=0.6 if layout.narrow or not numbers else 1 / rows,
        aspect=25 if numbers else 40,
        pad=0.02,
        format=FuncFormatter(lambda x, _: f"{100 * x:.0f} %"),
    )
    bar.outline.set_visible(False)
    bar.set_label("answers right, above chance")
    return figure


def _map(axes: Axes, here: list[dict], ks: list[float], layout: Layout, numbers: bool):
    values = np.full((10, len(ks)), np.nan)
    for record in here:
        values[record["decile"], ks.index(record["k"])] = record["corrected"]
    axes.set_facecolor(EMPTY)
    image = axes.pcolormesh(
        np.arange(len(ks) + 1), np.arange(11), np.ma.masked_invalid(values),
        cmap=COLOURS, vmin=0, vmax=1, edgecolors=SURFACE, linewidth=0.5,
    )  # fmt: skip
    # Distance is about (1 - depth) * kL, so distance = L at depth 1 - 1/k.
    edge = np.array([10 * max(0.0, 1 - 1 / k) for k in ks])
    xs, ys = np.repeat(np.arange(len(ks) + 1), 2)[1:-1], np.repeat(edge, 2)
    axes.plot(xs, ys, color=SURFACE, linewidth=2.8, clip_on=False)
    axes.plot(xs, ys, color=LINE, linewidth=1.5, clip_on=False)
    size = style.matplotlib.rcParams["font.size"] * 0.76
    for (row, column), value in np.ndenumerate(values) if numbers else ():
        # Not the page's ink: these stand on colours that do not change with the theme.
        text, hex_ = whole_percent(value), "#fdfdfd" if value < 0.55 else "#111113"
        if np.isnan(value):
            text, hex_ = "–", MUTED
        axes.text(column + 0.5, _beside(row, edge[column]), text, fontsize=size, color=hex_,
                  ha="center", va="center_baseline")  # fmt: skip
    axes.set_ylim(10, 0)
    axes.set_xticks(np.arange(len(ks)) + 0.5, [times(k) for k in ks])
    axes.set_yticks([0.5, 4.5, 9.5], ["0", "4", "9"])
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image


def _beside(row: int, edge: float) -> float:
    """The middle of a cell, or of its larger part where the line at L crosses it."""
    if not row + 0.1 < edge < row + 0.9:
        return row + 0.5
    return (row + edge) / 2 if edge - row > 0.5 else (edge + row + 1) / 2
