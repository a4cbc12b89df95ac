"""Pictures in which each mark is one head: the atlas of needle heads and the margin budget."""

import re
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from posenc_jax.report import style
from posenc_jax.report.labels import wrap
from posenc_jax.report.needle_maps import LINE
from posenc_jax.report.study_view import RunView, StudyView, task_name
from posenc_jax.report.style import INK, MUTED, Layout, Picture

_HEAD = re.compile(r"head:(\d+)\.(\d+)(?: (.*))?$")
NONE = 0.5  # where a log axis in tokens shows "no distance at all"
FLAT = 2.0**-12  # where a log axis of slopes shows a head without one


def of_heads(run: RunView, metric: str) -> list[dict]:
    """The metric's rows of single heads: layer, head, rest of the bucket, k, value."""
    found = []
    for row in run.rows:
        at = _HEAD.match(row.bucket) if row.metric == metric else None
        if at and row.measured:
            found.append({"layer": int(at[1]), "head": int(at[2]), "of": at[3] or "",
                          "k": row.k, "value": row.value})  # fmt: skip
    return found


def first_probed(study: StudyView, metric: str) -> tuple[dict[str, RunView], list[str]]:
    """By arm its first run with such rows; sentences about arms without."""
    runs, missing = {}, []
    for arm in study.arms:
        probed = [run for run in study.of(arm) if of_heads(run, metric)]
        if probed:
            runs[arm] = probed[0]
        else:
            missing.append(f"{study.names[arm]}: {metric} was not measured")
    return runs, missing


def head_atlas(study: StudyView) -> Picture:
    """M9 against slope and rotation: which heads hold needles."""
    runs, missing = first_probed(study, "M9_mass")
    records = []
    for arm in runs:
        for run in study.of(arm):
            rows = of_heads(run, "M9_mass")
            if not rows or run.heads is None:
                missing.append(
                    f"{study.names[arm]}, seed {run.seed}: no M9 rows, or the scheme's arrays are not kept"
                )
                continue
            parts = {(h["layer"], h["head"]): h for h in run.heads}
            longest = max(r["k"] for r in rows)
            for r in rows:
                if r["k"] == longest:
                    part = parts[r["layer"], r["head"]]
                    records.append({"arm": arm, "seed": run.seed, "k": longest, "task": r["of"],
                                    "layer": r["layer"], "head": r["head"], "slope": part["slope"] or 0.0,
                                    "rotates": part["rotates"], "mass": r["value"]})  # fmt: skip

    def draw(layout: Layout) -> Figure:
        top = max(r["mass"] for r in records)
        lowest = min([FLAT, *(r["slope"] / 4 for r in records if r["slope"] > 0)])
        figure, grid = _panels(study, records, layout)
        for (arm, task), axes in grid.items():
            hex_ = style.colour(study.colours[arm])
            here = [r for r in records if (r["arm"], r["task"]) == (arm, task)]
            for rotates, marker, inside in ((True, "o", hex_), (False, "s", "none")):
                marks = [r for r in here if r["rotates"] == rotates]
                axes.plot([max(r["slope"], lowest) for r in marks], [r["mass"] for r in marks], marker,
                          color=hex_, markersize=4.5, markerfacecolor=inside, alpha=0.8)  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.set_xlim(lowest / 1.6, 1.6)
            axes.set_xticks([lowest, *(2.0**-e for e in (8, 4, 0) if 2.0**-e > lowest * 2)])
            axes.xaxis.set_major_formatter(
                FuncFormatter(lambda x, _: "flat" if x <= lowest * 1.01 else f"{x:.2g}")
            )
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.set_ylim(-0.05 * top, 1.08 * top)
        key = [
            Line2D([], [], marker="o", linestyle="", color=INK, label="rotates"),
            Line2D([], [], marker="s", linestyle="", color=INK, markerfacecolor="none", label="does not"),
        ]  # fmt: skip
        figure.legend(handles=key, loc="outside upper right", ncols=2, frameon=False)
        figure.supxlabel("slope: nats lost over the first token", color=MUTED, fontsize=layout.font)
        figure.supylabel("weight on the needle's token", color=MUTED, fontsize=layout.font)
        return figure

    caption = (
        "M9: each mark is one head of one seed; mean weight that the position predicting an answer "
        "token puts on that token in the needle, in the longest context with needles. One panel an arm and "
        "task, all on the same axes."
    )
    columns = ("arm", "seed", "k", "task", "layer", "head", "slope", "rotates", "mass")
    return Picture("head_atlas", "Head atlas: slope, rotation, retrieval", caption, columns,
                   tuple(records), draw if records else None, tuple(missing))  # fmt: skip


def margin_budget(study: StudyView) -> Picture:
    """M10: predicted against measured reach of every head."""
    runs, missing = first_probed(study, "M10_predicted_reach")
    records = []
    for arm in runs:
        for run in study.of(arm):
            by = {
                name: {(r["layer"], r["head"], r["of"], r["k"]): r["value"] for r in of_heads(run, f"M10_{name}")}
                for name in ("predicted_reach", "measured_reach", "margin", "agreement")
            }  # fmt: skip
            longest = max((at[3] for at in by["margin"]), default=None)
            for at in by["margin"]:
                if at[3] == longest:
                    records.append({"arm": arm, "seed": run.seed, "k": at[3], "task": at[2],
                                    "layer": at[0], "head": at[1]} | {n: by[n][at] for n in by})  # fmt: skip

    def draw(layout: Layout) -> Figure:
        top = max(max(r["k"] for r in records) * study.train_length, study.train_length) * 1.5
        figure, grid = _panels(study, records, layout)
        for (arm, task), axes in grid.items():
            axes.plot([NONE, top], [NONE, top], color=MUTED, linewidth=0.8, linestyle="--")
            axes.axvline(study.train_length, color=LINE, linewidth=0.8)
            axes.axhline(study.train_length, color=LINE, linewidth=0.8)
            here = [r for r in records if (r["arm"], r["task"]) == (arm, task)]
            x, y = ([max(r[n], NONE) for r in here] for n in ("predicted_reach", "measured_reach"))
            axes.plot(x, y, "o", color=style.colour(study.colours[arm]), markersize=4.5, alpha=0.7)
            for which in ("x", "y"):
                getattr(axes, f"set_{which}scale")("log", base=2)
                getattr(axes, f"set_{which}lim")(NONE / 1.4, top)
                getattr(axes, f"set_{which}ticks")(
                    [NONE, *(4.0**e for e in range(1, 12) if 4.0**e < top)]
                )
                getattr(axes, f"{which}axis").set_major_formatter(
                    FuncFormatter(lambda x, _: "none" if x <= NONE else f"{x:g}")
                )
                getattr(axes, f"{which}axis").set_minor_formatter(NullFormatter())
        figure.supxlabel(
            "predicted d*: bias and content margin (tokens)", color=MUTED, fontsize=layout.font
        )
        figure.supylabel(
            "farthest needle at weight 1/2 (tokens)", color=MUTED, fontsize=layout.font
        )
        return figure

    caption = (
        "M10: each mark is one head of one seed. d* is the median over needles of the largest distance "
        "at which a key of that content margin keeps weight 1/2 under the head's own bias; dashed: equal; "
        f"red: L = {study.train_length}. Marks at 'none' hold no needle. One panel an arm and task, all on "
        "the same axes."
    )
    columns = ("arm", "seed", "k", "task", "layer", "head", "predicted_reach", "measured_reach", "margin", "agreement")  # fmt: skip
    return Picture("margin_budget", "Margin budget", caption, columns, tuple(records),
                   draw if records else None, tuple(missing))  # fmt: skip


def _panels(
    study: StudyView, records: Sequence[dict], layout: Layout
) -> tuple[Figure, dict[tuple[str, str], Axes]]:
    """A panel per task and arm, task by task, on the same axes; named in the arm's colour."""
    tasks = sorted({r["task"] for r in records})
    arms = [arm for arm in study.arms if any(r["arm"] == arm for r in records)]
    lines = -(-len(arms) // (2 if layout.narrow else 4))
    columns = -(-len(arms) // lines)  # lines of equal length
    width = layout.width * (1 if layout.narrow else min(1, (columns + 1) / 4))
    figure, grid = style.panels(
        layout, lines * len(tasks), columns, 1.9, width, sharex=True, sharey=True
    )
    for axes in grid:
        style.blank(axes)
    found = {}
    for block, task in enumerate(tasks):
        for index, arm in enumerate(arms):
            axes = found[arm, task] = grid[block * lines * columns + index]
            axes.set_axis_on()
            name = f"{wrap(study.names[arm], 20 if layout.narrow else 26)}\n{task_name(task)}"
            axes.set_title(name, color=style.colour(study.colours[arm]))
            last = block == len(tasks) - 1 and index + columns >= len(arms)
            axes.tick_params(labelbottom=last)
    return figure, found
