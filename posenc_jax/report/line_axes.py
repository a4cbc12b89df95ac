"""What line figures share: bands over seeds, a panel per arm, the axis with its line at L, percent."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, StrMethodFormatter

from posenc_jax.report import style
from posenc_jax.report.labels import label_ends, wrap
from posenc_jax.report.study_view import StudyView, times
from posenc_jax.report.style import BACKDROP, INK, MUTED, SURFACE, Layout

BAND = "Lines are means over seeds; bands span the smallest and the largest seed."
PERCENT = StrMethodFormatter("{x:.0f} %")
TOGETHER = 6  # arms that one panel holds; more get a panel each
PARENT_DASHES = ((0, (5, 2)), (0, (1.5, 1.5)))  # RoPE, ALiBi


def seeds_note(study: StudyView) -> str:
    """How the seeds appear in a line figure, in one sentence."""
    return BAND if study.seeds_per_arm[1] > 1 else "One seed per arm, so there is no band."


def apart_note(study: StudyView) -> str:
    """What a panel per arm shows besides the arm, in one sentence; nothing where arms share one."""
    if len(study.arms) <= TOGETHER:
        return ""
    return " One panel an arm, on the same axes; behind it in grey all others, the parents dashed."


def whole_percent(share: float) -> str:
    """A share in percent without its sign, for the cell of a map; a true minus, no minus zero."""
    text = f"{100 * share:.0f}".replace("-", "−")
    return "0" if text == "−0" else text


def means_of(records: Sequence[dict], arm: str, x: str, y: str) -> dict[float, list[float]]:
    """The values of an arm by x, ascending."""
    by_x: dict[float, list[float]] = {}
    for record in records:
        if record["arm"] == arm:
            by_x.setdefault(record[x], []).append(record[y])
    return dict(sorted(by_x.items()))


def band(
    axes: Axes, study: StudyView, records: Sequence[dict], arm: str, x: str, y: str, **changes
) -> list[tuple[float, str, str]]:
    """One arm: mean over seeds, band from the smallest to the largest; its end label, if it has any."""
    by_x = means_of(records, arm, x, y)
    if not by_x:
        return []
    look = style.line_style(study.colours[arm]) | changes
    means = [float(np.mean(values)) for values in by_x.values()]
    axes.plot(list(by_x), means, markeredgecolor=SURFACE, markeredgewidth=0.5, **look)
    if any(len(values) > 1 for values in by_x.values()):
        low, high = [min(v) for v in by_x.values()], [max(v) for v in by_x.values()]
        axes.fill_between(list(by_x), low, high, color=look["color"], alpha=0.16, linewidth=0)
    return [(means[-1], study.names[arm], look["color"])]


def bands(
    axes: Axes, study: StudyView, records: Sequence[dict], x: str, y: str, marks: bool = True
) -> list[tuple[float, str, str]]:
    """One line per arm and its end label."""
    changes = {} if marks else {"marker": ""}
    return [end for arm in study.arms for end in band(axes, study, records, arm, x, y, **changes)]


def backdrop(
    axes: Axes, study: StudyView, records: Sequence[dict], arm: str, x: str, y: str
) -> None:
    """The means of all other arms, thin and grey; those of the parents dashed."""
    for other in study.arms:
        by_x = means_of(records, other, x, y)
        if other == arm or not by_x:
            continue
        look = {"color": BACKDROP, "linewidth": 0.8, "zorder": 1}
        if other in study.parents:
            dash = PARENT_DASHES[study.parents.index(other)]
            look |= {"color": MUTED, "linewidth": 1.1, "linestyle": dash, "zorder": 1.5}
        axes.plot(list(by_x), [float(np.mean(values)) for values in by_x.values()], **look)


def arm_panels(
    study: StudyView,
    arms: Sequence[str],
    layout: Layout,
    height: float = 1.75,
    columns: int = 4,
    more: Sequence[Line2D] = (),
) -> tuple[Figure, dict[str, Axes]]:
    """A panel per arm on shared axes, named in its colour; the grey lines, and more, explained above."""
    rows = -(-len(arms) // min(len(arms), 2 if layout.narrow else columns))
    columns = -(-len(arms) // rows)  # rows of equal length
    width = layout.width * (1 if layout.narrow else min(1, (columns + 1) / 4))
    figure, grid = style.panels(layout, rows, columns, height, width, sharey=True)
    for axes in grid[len(arms) :]:
        style.blank(axes)
    found = dict(zip(arms, grid, strict=False))
    for index, (arm, axes) in enumerate(found.items()):
        name = wrap(study.names[arm], 20 if layout.narrow else 26)
        axes.set_title(name, color=style.colour(study.colours[arm]))
        axes.tick_params(labelbottom=index + columns >= len(arms))
    parents = [arm for arm in study.parents if arm in study.arms]
    keys = [Line2D([], [], color=BACKDROP, linewidth=0.8, label="other arms")]
    keys += [
        Line2D([], [], color=MUTED, linewidth=1.1, label=study.names[arm], linestyle=PARENT_DASHES[i])
        for i, arm in enumerate(parents)
    ]  # fmt: skip
    keys += more
    ncols = 3 if layout.narrow else len(keys)
    figure.legend(handles=keys, loc="outside upper right", ncols=ncols, frameon=False)
    return figure, found


def lines(
    study: StudyView,
    records: Sequence[dict],
    x: str,
    y: str,
    layout: Layout,
    dress: Callable[[Axes], None],
    labels: tuple[str, str],
    marks: bool = True,
    height: float = 3.6,
) -> Figure:
    """One panel with all arms, or a panel per arm where there are many; dress(axes) sets each axis up."""
    changes = {} if marks else {"marker": ""}
    arms = [arm for arm in study.arms if any(r["arm"] == arm for r in records)]
    if len(arms) <= TOGETHER:
        figure, (axes,) = style.panels(layout, 1, 1, height)
        ends = bands(axes, study, records, x, y, marks)
        dress(axes)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        finish(axes, ends, height)
        return figure
    figure, found = arm_panels(study, arms, layout)
    for arm, axes in found.items():
        backdrop(axes, study, records, arm, x, y)
        band(axes, study, records, arm, x, y, **changes)
        dress(axes)
    figure.supxlabel(labels[0], color=MUTED, fontsize=layout.font)
    figure.supylabel(labels[1], color=MUTED, fontsize=layout.font)
    return figure


def finish(axes: Axes, ends: Sequence[tuple[float, str, str]], height: float) -> None:
    """Fixes the limits, then names the lines at their right ends."""
    axes.autoscale_view()
    label_ends(axes, ends, height)


def length_axis(
    axes: Axes, study: StudyView, multiples: list[float], every: int = 1, within: float = 1
) -> None:
    """Log2 axis in tokens with ticks at multiples of L, and a line where rows end within L.

    within: that place in units of L: ID for an axis of context, 1 for one of segments and positions.
    """
    length = study.train_length
    axes.set_xscale("log", base=2)
    ks = sorted(set(multiples))
    ks = [k for k in ks if round(np.log2(k)) % every == 0] or ks
    axes.set_xticks([k * length for k in ks])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axvline(within * length, color=INK, linewidth=1)
    axes.annotate(
        times(within), (within * length, 1.0), (3, -2), xycoords=axes.get_xaxis_transform(),
        textcoords="offset points", va="top", weight="bold",
    )  # fmt: skip


def mark_off_scale(axes: Axes, arm_means: dict[float, float], top: float, colour: str) -> None:
    """Where a line leaves the axes at the top, and its last value."""
    if arm_means and (last := list(arm_means.values())[-1]) > top:
        axes.annotate(
            f"to {last:.2f} ↑", (1.0, 1.0), (-2, -2), xycoords="axes fraction", ha="right", va="top",
            textcoords="offset points", color=colour,
        )  # fmt: skip
