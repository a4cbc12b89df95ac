"""Figures of the probes (suite M): attention by distance, needle heads, decay curves."""

import re
from collections.abc import Callable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from posenc_jax.report import marks, style
from posenc_jax.report.figure import Figure, Table, panels_of
from posenc_jax.report.study_view import StudyView, task_name
from posenc_jax.report.style import AT_L, INK, MUTED
from posenc_jax.results.study_data import RunData

_HEAD = re.compile(r"head:(\d+)\.(\d+)(?: (.*))?$")
NO_DISTANCE = 0.5  # where a log axis in tokens shows "no distance at all"
FLAT = 2.0**-12  # where a log axis of slopes shows a head without one
CURVES = ("attention", "content", "cosine", "bound")
NOT_KEPT = "no M9 rows, or the scheme's arrays are not kept"


def probe_figures(study: StudyView) -> list[Figure]:
    """Returns the figures of suite M; none where no run was probed."""
    if not any(row.suite == "M" for run in study.runs for row in run.rows):
        return []
    return [attention_distance(study), head_atlas(study), margin_budget(study), decay_curves(study)]


def _of_heads(run: RunData, metric: str) -> dict[tuple[int, int, str], tuple[float, float]]:
    """k and value of the longest context, by layer, head and rest of the bucket."""
    rows = [row for row in run.rows if row.metric == metric and row.measured]
    found = [(row, at) for row in rows if (at := _HEAD.match(row.bucket))]
    longest = max((row.k for row, _ in found), default=None)
    return {
        (int(at[1]), int(at[2]), at[3] or ""): (row.k, row.value)
        for row, at in found
        if row.k == longest
    }


def attention_distance(study: StudyView) -> Figure:
    """M1: the weight of every head by octave of distance, in the longest context."""
    rows = Table()
    for arm in study.arms:
        probed = [run for run in study.of(arm) if _of_heads(run, "M1_distance")]
        for run in probed[:1]:
            for (layer, head, octave), (k, mass) in _of_heads(run, "M1_distance").items():
                low = int(octave.removeprefix("distance:[").split(",")[0])
                where = run.key | {"k": k, "layer": layer, "head": head}
                rows.append(where | {"from_distance": low, "mass": mass})
    top = max(rows.column("mass"), default=1.0)

    def draw(axes: Axes, arm: str) -> None:
        here = Table(row | {"at": (row["layer"], row["head"])} for row in rows.where(arm=arm))
        heads, lows = here.distinct("at"), here.distinct("from_distance")
        mass = here.matrix("at", heads, "from_distance", lows, "mass")
        axes.imshow(mass, vmin=0, vmax=top, cmap=style.MAP, aspect="auto")
        at = np.searchsorted(lows, study.train_length, side="right") - 1  # the octave of L
        axes.axvline(at - 0.5 + np.log2(study.train_length / lows[at]), color=AT_L, linewidth=1.2)
        axes.grid(False)
        axes.set_xticks(range(0, len(lows), 2), [f"{low}" for low in lows[::2]])
        axes.set_yticks(range(len(heads)), [f"{layer}.{head}" for layer, head in heads])
        marks.arm_title(axes, study, arm)

    caption = (
        "M1: mean attention weight of each head by octave of distance, over the queries of the "
        "second half of the longest context; one seed an arm. Right of the red line the distance "
        "exceeds L."
    )
    height = 0.9 + 0.17 * len({(row["layer"], row["head"]) for row in rows})
    panels = panels_of(draw, [(arm,) for arm in study.arms_of(rows)], height)
    key = marks.colour_bar(0, top, "share of a query's attention")
    labels, missing = (
        ("distance, octaves from (tokens)", "layer.head"),
        study.without(rows, "no M1"),
    )
    name, title = "attention_distance", "Attention by distance"
    return Figure(name, title, caption, rows, panels, 3, key, labels, missing)


def _grid(study: StudyView, rows: Table, draw: Callable[[Axes, str, Table], None]) -> dict:
    """A panel per task and arm, task by task, on the same axes; draw(axes, colour, rows)."""

    def panel(axes: Axes, task: str, arm: str) -> None:
        draw(axes, style.colour(study.colours[arm]), rows.where(task=task, arm=arm))
        marks.arm_title(axes, study, arm, task_name(task))

    items = [(task, arm) for task in rows.distinct("task") for arm in study.arms_of(rows)]
    return {"rows": rows, "panels": panels_of(panel, items, 2.1), "across": 4}


def head_atlas(study: StudyView) -> Figure:
    """M9 against slope and rotation: which heads hold needles."""
    rows, missing = Table(), []
    for run in study.runs:
        found = _of_heads(run, "M9_mass")
        if not found or run.heads is None:
            missing.append(f"{study.label(run)}: {NOT_KEPT}")
            continue
        known = {(head["layer"], head["head"]): head for head in run.heads}
        for (layer, head, task), (k, mass) in found.items():
            what = {"slope": known[layer, head]["slope"] or 0.0}
            what |= {"rotates": known[layer, head]["rotates"], "mass": mass}
            rows.append(run.key | {"k": k, "task": task, "layer": layer, "head": head} | what)
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
    key = marks.legend([Line2D([], [], marker="o", label="rotates", **look), hollow])
    caption = (
        "M9: each mark is one head of one seed. Up: the mean weight that the position predicting "
        "an answer token puts on that token in the needle, in the longest context with needles."
    )
    labels = ("slope: nats lost over the first token", "weight on the needle's token")
    title, made = "Head atlas: slope, rotation, retrieval", _grid(study, rows, draw)
    return Figure("head_atlas", title, caption, key=key, labels=labels, missing=missing, **made)


def margin_budget(study: StudyView) -> Figure:
    """M10: predicted against measured reach of every head."""
    rows, names = Table(), ("predicted_reach", "measured_reach", "margin", "agreement")
    for run in study.runs:
        by = {name: _of_heads(run, f"M10_{name}") for name in names}
        for at, (k, _) in by["margin"].items():
            where = {"k": k, "task": at[2], "layer": at[0], "head": at[1]}
            rows.append(run.key | where | {name: by[name][at][1] for name in names})
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

    caption = (
        "M10: each mark is one head of one seed. d* is the median over needles of the largest "
        "distance at which a key of that content margin keeps weight 1/2 under the head's own "
        f"bias. Dashed: both are equal; red: L = {length}. Marks at 'none' hold no needle."
    )
    labels = (
        "predicted d*: bias and content margin (tokens)",
        "farthest needle at weight 1/2 (tokens)",
    )
    missing, made = study.without(rows, "no M10"), _grid(study, rows, draw)
    return Figure("margin_budget", "Margin budget", caption, labels=labels, missing=missing, **made)


def decay_curves(study: StudyView) -> Figure:
    """M6, M1: attention and content by distance, with the cosine kernel and RoFormer's bound."""
    rows, arms = Table(), {}
    for arm in study.arms:
        probed = [(run, arrays) for run in study.of(arm) if (arrays := _longest_probe(run))]
        for run, arrays in probed[:1]:
            edges = np.geomspace(1, len(arrays["distance_D"]) + 1, 40)
            edge = np.unique(np.round(edges).astype(int)) - 1
            means = [
                np.add.reduceat(arrays[f"{name}_LND"], edge[:-1], axis=-1) / np.diff(edge)
                for name in CURVES
            ]
            at = (edge[:-1] + edge[1:] - 1) / 2
            arms[arm] = (at, *means)
            rows += [
                run.key
                | {"layer": layer, "head": head, "distance": float(at[i])}
                | {
                    name: float(mean[layer, head, i])
                    for name, mean in zip(CURVES, means, strict=True)
                }
                for layer, head, i in np.ndindex(means[0].shape)
            ]

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

    caption = (
        "Every head of one seed an arm in the longest probed context; solid lines are layer 0, "
        "dashed lines layer 1; means over narrow bins of distance. First the mean attention "
        "weight, down to 1e-12; then the mean content logit by distance over its largest value, "
        "with the mean cosine and RoFormer's bound of the first rotated head, both relative to "
        "distance 0. Red: L."
    )
    kernel = Line2D([], [], color=INK, label="cosine kernel")
    key = marks.legend([kernel, Line2D([], [], color=MUTED, label="RoFormer bound")])
    panels = panels_of(draw, [(arm, content) for arm in arms for content in (False, True)], 2.5)
    labels = ("distance + 1 (tokens)", "")
    missing = study.without(rows, "no probes were run, or their arrays are not kept")
    return Figure("decay_curves", "Decay curves", caption, rows, panels, 2, key, labels, missing)


def _longest_probe(run: RunData) -> Mapping[str, np.ndarray] | None:
    """The arrays of the longest context that was probed."""
    ks = sorted({row.k for row in run.rows if row.metric == "M1_distance"})
    return run.kept_arrays(f"probes_{ks[-1]:g}") if ks else None
