"""Figures of the probes (suite M): attention by distance, needle heads, decay curves."""

import re
from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from posenc_jax.report import marks, style
from posenc_jax.report.figure import Figure, Table, panels_of
from posenc_jax.report.markup import captioned
from posenc_jax.report.study_view import StudyView, task_name
from posenc_jax.report.style import AT_L, INK, MUTED
from posenc_jax.results.study_data import RunData

_HEAD = re.compile(r"head:(\d+)\.(\d+)(?: (?:distance:\[)?([^,)]*).*)?$")
NO_DISTANCE = 0.5  # where a log axis in tokens shows "no distance at all"
FLAT = 2.0**-12  # where a log axis of slopes shows a head without one
CURVES = ("attention", "content", "cosine", "bound")


def probe_figures(study: StudyView) -> list[Figure]:
    """Returns the figures of suite M; none where no run was probed."""
    if not any(row.suite == "M" for run in study.runs for row in run.rows):
        return []
    return [attention_distance(study), head_atlas(study), margin_budget(study), decay_curves(study)]


def _of_heads(run: RunData, what: str, **metrics: str) -> Table:
    """Values in the longest context by layer, head and `what`, the rest of a row's bucket."""
    cells: dict[tuple, dict] = {}
    for name, metric in metrics.items():
        rows = [row for row in run.rows if row.metric == metric and row.measured]
        found = [(row, at) for row in rows if (at := _HEAD.match(row.bucket))]
        longest = max((row.k for row, _ in found), default=None)
        for row, at in found:
            if row.k == longest:
                where = {"k": row.k, what: at[3], "layer": int(at[1]), "head": int(at[2])}
                cells.setdefault(at.groups(), where)[name] = row.value
    return Table(cells.values())


def attention_distance(study: StudyView) -> Figure:
    """M1: the weight of every head by octave of distance, in the longest context."""
    rows = Table()
    for run in study.runs:
        if run.arm not in rows.column("arm"):  # one seed an arm
            found = _of_heads(run, "from_distance", mass="M1_distance")
            rows += [run.key | row | {"from_distance": int(row["from_distance"])} for row in found]
    top = max(rows.column("mass"), default=1.0)
    lows = rows.distinct("from_distance")

    def draw(axes: Axes, arm: str) -> None:
        here = Table(row | {"at": (row["layer"], row["head"])} for row in rows.where(arm=arm))
        heads = here.distinct("at")
        mass = here.matrix("at", heads, "from_distance", lows, "mass")
        axes.imshow(mass, vmin=0, vmax=top, cmap=style.MAP, aspect="auto")
        at = np.searchsorted(lows, study.train_length, side="right") - 1  # the octave of L
        axes.axvline(at - 0.5 + np.log2(study.train_length / lows[at]), color=AT_L, linewidth=1.2)
        axes.grid(False)
        axes.set_xticks(range(0, len(lows), 2), [f"{low}" for low in lows[::2]])
        axes.set_yticks(range(len(heads)), [f"{layer}.{head}" for layer, head in heads])
        marks.arm_title(axes, study, arm)

    height = 0.9 + 0.17 * len({(row["layer"], row["head"]) for row in rows})
    panels = panels_of(draw, [(arm,) for arm in study.arms_of(rows)], height)
    legend = marks.colour_bar(0, top, "share of a query's attention")
    words = captioned("attention_distance") | {"missing": study.without(rows, "no M1")}
    return Figure(rows=rows, panels=panels, columns=3, legend=legend, **words)


def _grid(study: StudyView, rows: Table, draw: Callable[[Axes, str, Table], None]) -> dict:
    """A panel per task and arm, task by task, on the same axes; draw(axes, colour, rows)."""

    def panel(axes: Axes, task: str, arm: str) -> None:
        draw(axes, style.colour(study.colours[arm]), rows.where(task=task, arm=arm))
        marks.arm_title(axes, study, arm, task_name(task))

    items = [(task, arm) for task in rows.distinct("task") for arm in study.arms_of(rows)]
    return {"rows": rows, "panels": panels_of(panel, items, 2.1), "columns": 4}


def head_atlas(study: StudyView) -> Figure:
    """M9 against slope and rotation: which heads hold needles."""

    def read(run: RunData) -> list[dict] | str:
        known = {(head["layer"], head["head"]): head for head in run.heads or ()}
        rows = []
        for row in _of_heads(run, "task", mass="M9_mass") if known else ():
            head = known[row["layer"], row["head"]]
            what = {"slope": head["slope"] or 0.0, "rotates": head["rotates"]}
            rows.append(row | what | {"mass": row["mass"]})
        return rows or "no M9 rows, or the scheme's arrays are not kept"

    rows, missing = study.collect(read)
    top = max(rows.column("mass"), default=1.0)
    lowest = min([FLAT, *(slope / 4 for slope in rows.column("slope") if slope > 0)])
    ticks = [lowest, *(2.0**-e for e in (8, 4, 0) if 2.0**-e > lowest * 2)]

    def draw(axes: Axes, colour: str, here: Table) -> None:
        for rotates, marker, inside in ((True, "o", colour), (False, "s", "none")):
            shown = here.where(rotates=rotates)
            slopes = [max(slope, lowest) for slope in shown.column("slope")]
            look = {"color": colour, "markersize": 4.5, "markerfacecolor": inside, "alpha": 0.8}
            axes.plot(slopes, shown.column("mass"), marker, **look)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ticks, ["flat", *(f"{tick:.2g}" for tick in ticks[1:])])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set(xlim=(lowest / 1.6, 1.6), ylim=(-0.05 * top, 1.08 * top))

    look = {"linestyle": "", "color": INK}
    hollow = Line2D([], [], marker="s", markerfacecolor="none", label="does not rotate", **look)
    legend = marks.legend([Line2D([], [], marker="o", label="rotates", **look), hollow])
    words = captioned("head_atlas") | _grid(study, rows, draw)
    return Figure(legend=legend, missing=missing, **words)


def margin_budget(study: StudyView) -> Figure:
    """M10: predicted against measured reach of every head."""
    names = ("predicted_reach", "measured_reach", "margin", "agreement")
    metrics = {name: f"M10_{name}" for name in names}
    rows, _ = study.collect(lambda run: _of_heads(run, "task", **metrics))
    length = study.train_length
    top = max([*rows.column("k"), 1]) * length * 1.5
    ticks = [NO_DISTANCE, *(4.0**e for e in range(1, 12, 2) if 4.0**e < top)]
    span = (NO_DISTANCE / 1.4, top)

    def draw(axes: Axes, colour: str, here: Table) -> None:
        axes.plot(span, span, color=MUTED, linewidth=0.8, linestyle="--")
        axes.axvline(length, color=AT_L, linewidth=0.8)
        axes.axhline(length, color=AT_L, linewidth=0.8)
        x, y = ([max(reach, NO_DISTANCE) for reach in here.column(name)] for name in names[:2])
        axes.plot(x, y, "o", color=colour, markersize=4.5, alpha=0.7)
        axes.set(xscale="log", yscale="log", xlim=span, ylim=span)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks(ticks)
            axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}" if x > 0.5 else "none"))
            axis.set_minor_formatter(NullFormatter())

    words = captioned("margin_budget", L=length) | _grid(study, rows, draw)
    return Figure(missing=study.without(rows, "no M10"), **words)


def decay_curves(study: StudyView) -> Figure:
    """M6, M1: attention and content by distance, with the cosine kernel and RoFormer's bound."""
    rows, arms = Table(), {}
    for run in study.runs:
        arrays = None if run.arm in arms else _longest_probe(run)
        if arrays is not None:
            edges = np.geomspace(1, len(arrays["distance_D"]) + 1, 40)
            edge = np.unique(np.round(edges).astype(int)) - 1
            sums = [np.add.reduceat(arrays[f"{name}_LND"], edge[:-1], axis=-1) for name in CURVES]
            means = {name: sum_ / np.diff(edge) for name, sum_ in zip(CURVES, sums, strict=True)}
            at, (layers, heads, _) = (edge[:-1] + edge[1:] - 1) / 2, sums[0].shape
            arms[run.arm] = (at, *means.values())
            axes = {"layer": range(layers), "head": range(heads), "distance": at}
            rows += Table.from_arrays(run.key, axes, **means)

    def draw(axes: Axes, arm: str, content: bool) -> None:
        at, attention, logits, cosine, bound = arms[arm]
        for layer, head in np.ndindex(attention.shape[:2]):
            curve, logit = attention[layer, head], logits[layer, head]
            curve = np.where(curve > 1e-12, curve, np.nan)
            curve = logit / np.nanmax(np.abs(logit), initial=1e-9) if content else curve
            look = {"linewidth": 1.0, "linestyle": ("-", "--", ":", "-.")[layer % 4]}
            axes.plot(at + 1, curve, color=style.colour(study.colours[arm]), **look)
        for layer, head in np.argwhere(np.isfinite(cosine[:, :, 0]))[:1] if content else ():
            axes.plot(at + 1, cosine[layer, head], color=INK)
            axes.plot(at + 1, bound[layer, head], color=MUTED)
        axes.set(xscale="log", yscale="linear" if content else "log")
        axes.axvline(study.train_length + 1, color=AT_L, linewidth=1.0)
        words = "content logit / its largest" if content else "mean attention weight"
        marks.arm_title(axes, study, arm, words)

    kernel = Line2D([], [], color=INK, label="cosine kernel")
    legend = marks.legend([kernel, Line2D([], [], color=MUTED, label="RoFormer bound")])
    panels = panels_of(draw, [(arm, content) for arm in arms for content in (False, True)], 2.5)
    missing = study.without(rows, "no probes were run, or their arrays are not kept")
    words = captioned("decay_curves") | {"rows": rows, "missing": missing}
    return Figure(panels=panels, columns=2, legend=legend, **words)


def _longest_probe(run: RunData) -> Mapping[str, np.ndarray] | None:
    ks = sorted({row.k for row in run.rows if row.metric == "M1_distance"})
    return run.kept_arrays(f"probes_{ks[-1]:g}") if ks else None
