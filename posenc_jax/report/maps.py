"""Needle heat maps: accuracy over context length and depth, with the line where distance is L."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from posenc_jax.report import style
from posenc_jax.report.labels import wrap
from posenc_jax.report.rows import CHANCE, Study, task_name, times
from posenc_jax.report.style import EMPTY, MUTED, SURFACE, Layout, Picture

COLOURS = "cividis"
LINE = "#e0245e"  # distance = L


def needle_maps(study: Study) -> Picture:
    """One map per arm and task, mean over seeds."""
    records, missing = [], []
    for task in CHANCE:
        metric = f"{task}_accuracy"
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
                            | {"accuracy": float(np.mean([row["value"] for row in rows]))}
                            | {"seeds": len(rows), "n": sum(row.get("n") or 0 for row in rows)}
                        )
            if ks and len(records) == found:
                missing.append(f"{study.names[arm]}: no {task_name(task)} by depth")
        if not ks:
            missing.append(f"{task_name(task)}: no accuracy by depth")
    tasks = [task for task in CHANCE if any(r["task"] == task for r in records)]
    arms = [arm for arm in study.arms if any(r["arm"] == arm for r in records)]

    def draw(layout: Layout) -> Figure:
        return _draw(study, records, tasks, arms, layout)

    return Picture(
        "needle_maps",
        "Needle maps",
        "Answers right (%) by context length (columns, multiples of L) and by how deep in the "
        "context the needle lies (rows: 0 is the beginning, 9 just before the question). The "
        "red stepped line is distance = L: above it the needle is further back than anything seen in "
        "training. A model that only sees a window is bright below the line and dark above it.",
        ("arm", "task", "k", "decile", "accuracy", "seeds", "n"),
        tuple(records),
        draw if records else None,
        tuple(missing),
    )


def _draw(study: Study, records: list[dict], tasks: list, arms: list, layout: Layout) -> Figure:
    if layout.narrow:
        rows, columns, height = len(arms), len(tasks), 2.95
        order = [(arm, task) for arm in arms for task in tasks]
    else:
        columns = min(len(arms), 5)
        blocks = -(-len(arms) // columns)
        rows, height = blocks * len(tasks), 3.05
        order = []
        for block in range(blocks):
            part = arms[block * columns : (block + 1) * columns]
            part = part + [None] * (columns - len(part))
            order += [(arm, task) for task in tasks for arm in part]
    width = layout.width if layout.narrow else max(4.6, 1.0 + 1.8 * columns)
    figure, grid = style.panels(layout, rows, columns, height, width)
    image = None
    for index, (axes, (arm, task)) in enumerate(zip(grid, order, strict=True)):
        if arm is None:
            style.blank(axes)
            continue
        here = [r for r in records if (r["arm"], r["task"]) == (arm, task)]
        ks = sorted({r["k"] for r in records if r["task"] == task})
        image = _map(axes, here, ks, layout)
        axes.set_title(task_name(task), color=MUTED, weight="normal", pad=6)
        if layout.narrow and index % columns == 0:
            axes.set_ylabel(
                wrap(study.names[arm], 22), color=style.colour(study.colours[arm]), weight="bold"
            )
        elif not layout.narrow:
            name = wrap(study.names[arm], 18)
            hex_ = style.colour(study.colours[arm])
            axes.set_title(f"{name}\n{task_name(task)}", color=hex_, weight="normal", pad=6)
            if index % columns == 0:
                axes.set_ylabel("depth decile")
    bar = figure.colorbar(
        image,
        ax=grid,
        location="bottom" if layout.narrow else "right",
        shrink=0.6 if layout.narrow else 1 / rows,
        aspect=25,
        pad=0.02,
        format=FuncFormatter(lambda x, _: f"{100 * x:.0f} %"),
    )
    bar.outline.set_visible(False)
    bar.set_label("answers right")
    return figure


def _map(axes: Axes, here: list[dict], ks: list[float], layout: Layout):
    values = np.full((10, len(ks)), np.nan)
    for record in here:
        values[record["decile"], ks.index(record["k"])] = record["accuracy"]
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
    for (row, column), value in np.ndenumerate(values):
        # Not the page's ink: these stand on colours that do not change with the theme.
        text, hex_ = f"{100 * value:.0f}", "#fdfdfd" if value < 0.55 else "#111113"
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
