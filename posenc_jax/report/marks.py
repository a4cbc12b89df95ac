"""Marks that figures share: lines with bands, dots, heat maps, names of points, legends, axes."""

import itertools
import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, StrMethodFormatter

from posenc_jax.report import style
from posenc_jax.report.figure import FigurePanel, Table, panels_of
from posenc_jax.report.markup import text_of
from posenc_jax.report.study_view import StudyView, times
from posenc_jax.report.style import BACKDROP, INK, MUTED, RULE, SURFACE

PERCENT = StrMethodFormatter("{x:.0f} %")
TOGETHER = 6  # arms that one panel holds; more get a panel each
DOTTED, DASHED = (0, (1, 1.5)), (0, (4, 3))
PARENT_DASHES = ((0, (5, 2)), DOTTED)  # RoPE, ALiBi


def wrap(name: str, width: int) -> str:
    """Returns a long name on two lines, cut off at the end if need be."""
    lines = textwrap.wrap(name, width, break_long_words=False, max_lines=2, placeholder=" …")
    return "\n".join(lines) or name


def minus(text: str) -> str:
    """Returns a number as text with a true minus sign."""
    return text.replace("-", "−")


def arm_title(axes: Axes, study: StudyView, arm: str, more: str = "", width: int = 22) -> None:
    """Titles a panel with an arm's name in its colour."""
    name = wrap(study.names[arm], width) + (f"\n{more}" if more else "")
    axes.set_title(name, color=style.colour(study.colours[arm]))


def note(axes: Axes, text: str, at: tuple, offset: tuple, frame: str = "y", **look) -> None:
    """Writes a word at a point: coordinate `frame` in data units, the other in axes units."""
    place = axes.get_yaxis_transform() if frame == "y" else axes.get_xaxis_transform()
    kept = {"xycoords": place, "textcoords": "offset points", "color": MUTED, "va": "center"}
    axes.annotate(text, at, offset, **kept | look)


def band(axes: Axes, study: StudyView, rows: Table, arm: str, x: str, y: str, **changes) -> None:
    """Draws an arm's mean over seeds, and a band from the smallest to the largest seed."""
    here, look = rows.where(arm=arm), style.line_style(study.colours[arm]) | changes
    means, by_x = here.means(x, y), here.grouped(x, y)
    look |= {"markeredgecolor": SURFACE, "markeredgewidth": 0.5}
    axes.plot(list(means), list(means.values()), **look)
    if any(len(values) > 1 for values in by_x.values()):
        ends = [[end(values) for values in by_x.values()] for end in (min, max)]
        axes.fill_between(list(by_x), *ends, color=look["color"], alpha=0.16, linewidth=0)


def _behind(study: StudyView, arm: str) -> dict:
    if arm not in study.parents:
        return {"color": BACKDROP, "linewidth": 0.8, "zorder": 1}
    dash = PARENT_DASHES[study.parents.index(arm)]
    return {"color": MUTED, "linewidth": 1.1, "linestyle": dash, "zorder": 1.5}


def line_panels(
    study: StudyView,
    rows: Table,
    x: str,
    y: str,
    dress: Callable[[Axes], None],
    draw_arm: Callable[[Axes, str], None] | None = None,
    more: Sequence[Line2D] = (),
    apart: bool = False,
) -> dict:
    """Returns panels, legend and columns of a line figure: one panel, or one per arm if many.

    Args:
      dress: sets the axes of a panel up after its lines are drawn. draw_arm: draws one arm, its
        band by default. more: further lines of the legend. apart: a panel per arm in any case.
    """
    arms = [arm for arm in study.arms if rows.where(arm=arm)]
    if not arms:
        return {"panels": ()}
    draw_arm = draw_arm or (lambda axes, arm: band(axes, study, rows, arm, x, y))
    low, high = min(rows.column(y)), max(rows.column(y))
    pad = 0.06 * (high - low) or 0.01
    together = len(arms) <= TOGETHER and not apart

    def draw(axes: Axes, *shown: str) -> None:
        if not together:
            for other in (other for other in arms if other not in shown):
                means = rows.where(arm=other).means(x, y)
                axes.plot(list(means), list(means.values()), **_behind(study, other))
            arm_title(axes, study, shown[0])
        for arm in shown:
            draw_arm(axes, arm)
        axes.set_ylim(low - pad, high + pad)
        dress(axes)

    if together:
        looks = [style.line_style(study.colours[arm]) | {"label": study.names[arm]} for arm in arms]
        handles = [*(Line2D([], [], **look) for look in looks), *more]
        return {"panels": panels_of(draw, [arms], 3.2), "legend": legend(handles)}
    lines = [Line2D([], [], label="other arms", **_behind(study, ""))]
    lines += [Line2D([], [], label=study.names[p], **_behind(study, p)) for p in study.parents]
    panels = panels_of(draw, [(arm,) for arm in arms], 1.8)
    return {"panels": panels, "legend": legend([*lines, *more]), "columns": 4}


def seeds_note(study: StudyView) -> str:
    """Returns how a line figure shows the seeds, and the arms where each has its panel."""
    keys = ["many" if study.seeds_per_arm[1] > 1 else "one"]
    keys += ["apart"] * (len(study.arms) > TOGETHER)
    return " ".join(text_of("seeds", key) for key in keys)


def legend(handles: Sequence, columns: int = 3) -> FigurePanel:
    """Returns a panel with a legend."""

    def draw(axes: Axes) -> None:
        axes.set_axis_off()
        place = {"loc": "upper left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
        axes.legend(handles=list(handles), ncols=columns, **place).set_in_layout(False)

    return FigurePanel(draw, 0.12 + 0.19 * -(-len(handles) // columns))


def colour_bar(low: float, high: float, label: str, show=lambda x: minus(f"{x:g}")) -> FigurePanel:
    """Returns a strip with the colours of a map from `low` to `high`."""

    def draw(axes: Axes) -> None:
        axes.grid(False)
        colours, form = ScalarMappable(Normalize(low, high), style.MAP), lambda x, _: show(x)
        look = {"cax": axes, "orientation": "horizontal", "format": FuncFormatter(form)}
        bar = axes.figure.colorbar(colours, **look)
        bar.outline.set_visible(False)
        bar.set_label(label)

    return FigurePanel(draw, 0.5)


SHARE_BAR = colour_bar(0, 1, "answers right, above chance", lambda x: f"{100 * x:.0f} %")


def lines(axes: Axes, names: Sequence[str], width: int = 18) -> None:
    """Names the lines 0, 1, 2 of a panel, the first on top."""
    axes.set_yticks(range(len(names)), [wrap(name, width) for name in names])
    axes.set_ylim(len(names) - 0.4, -0.6)


def dots(axes: Axes, study: StudyView, rows: Table, arms: Sequence[str]) -> None:
    """Draws one line per arm, the first on top: a mark per seed, a tick at the mean of `value`."""
    for y, arm in enumerate(arms):
        found = rows.where(arm=arm).column("value")
        look = style.line_style(study.colours[arm]) | {"linestyle": "none"}
        axes.plot(found, [y] * len(found), markersize=5, alpha=0.75, **look)
        if found:
            axes.plot([float(np.mean(found))], [y], marker="|", markersize=12, color=INK)
    lines(axes, [study.names[arm] for arm in arms])
    axes.grid(True, axis="y", color=RULE)


def heat(axes: Axes, values: np.ndarray, names: list, columns: list, numbers=True) -> None:
    """Draws shares as coloured cells with their percents, the first line on top."""
    down, across = values.shape
    axes.set_facecolor(style.EMPTY)
    look = {"edgecolors": SURFACE, "linewidth": 0.5, "cmap": style.MAP, "vmin": 0, "vmax": 1}
    edges = np.arange(across + 1), np.arange(down + 1)
    axes.pcolormesh(*edges, np.ma.masked_invalid(values), **look)
    for (line, column), value in np.ndenumerate(values):
        if numbers and not np.isnan(value):
            # Not the page's ink: these stand on colours that do not change with the theme.
            shade = "#fdfdfd" if value < 0.55 else "#111113"
            look = {"color": shade, "fontsize": 0.8 * style.FONT, "va": "center_baseline"}
            text = minus(f"{100 * value:.0f}")
            text = "0" if text == "−0" else text
            axes.text(column + 0.5, line + 0.5, text, ha="center", **look)
    axes.set_ylim(down, 0)
    axes.set_yticks(np.arange(down) + 0.5, [wrap(name, 18) for name in names])
    turned = 90 if sum(map(len, columns)) > 25 else 0
    axes.set_xticks(np.arange(across) + 0.5, columns, rotation=turned)
    frameless(axes)


def frameless(axes: Axes) -> None:
    """Removes the grid and the frame of a map."""
    axes.grid(False)
    axes.spines[:].set_visible(False)


def symlog_axis(axes: Axes, linear: float, ticks: Sequence[float]) -> None:
    """Sets a horizontal axis that is logarithmic beyond `linear` on both sides of zero."""
    axes.set_xscale("symlog", linthresh=linear)
    both = [0, *(sign * tick for tick in ticks for sign in (-1, 1))]
    axes.set_xticks(both, [minus(f"{tick:g}") for tick in both])
    axes.minorticks_off()


def length_axis(
    axes: Axes, study: StudyView, multiples: Sequence[float], every: int = 1, within: float = 1
) -> None:
    """Sets a log2 axis in tokens: ticks at multiples of L, a line at `within` L, where rows end."""
    axes.set_xscale("log", base=2)
    ks = sorted(set(multiples))
    ks = [k for k in ks if round(np.log2(k)) % every == 0] or ks
    ticks = [k * study.train_length for k in ks]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    at = within * study.train_length
    axes.axvline(at, color=INK, linewidth=1)
    note(axes, times(within), (at, 1), (3, -2), "x", color=INK, va="top", weight="bold")


def name_points(axes: Axes, named: Sequence[tuple], others: Sequence[tuple], size: tuple) -> None:
    """Writes (x, y, name, colour) beside their points, clear of `others`; size: panel, inches."""
    to_axes = axes.transScale + axes.transLimits
    point = 1 / (72 * np.array([0.84, 0.82]) * size)  # of one point, in units of the axes
    marks = to_axes.transform([*others, *((x, y) for x, y, _, _ in named)])
    placed: list[np.ndarray] = []  # corners of names: low, high

    def cost(box: np.ndarray, at: np.ndarray, reach: float) -> float:
        outside = np.maximum(0, -box[0]).sum() + np.maximum(0, box[1] - 1).sum()
        over = sum((box[0] < b[1]).all() and (b[0] < box[1]).all() for b in placed)
        inside = (box[0] - 5 * point < marks) & (marks < box[1] + 5 * point) & (marks != at)
        return 0.02 * reach + 20 * outside + 3 * over + inside.all(1).sum()

    for x, y, text, hex_ in named:
        text, at, boxes = wrap(text, 22), to_axes.transform((x, y)), []
        wide, high = max(map(len, text.split("\n"))), text.count("\n") + 1
        span = style.FONT * point * (0.66 * wide, 1.25 * high)
        for reach, dy, dx in itertools.product((9, 16, 26, 38), (0, 0.8, -0.8), (1, -1)):
            low = at + reach * point * (dx, dy) - span * (dx < 0, 0.5)
            box = np.array([low, low + span])
            boxes.append((cost(box, at, reach), len(boxes), dx, box))
        _, _, dx, box = min(boxes)
        placed.append(box)
        place = (box[0 if dx > 0 else 1, 0], box[:, 1].mean())
        arrow = {"arrowstyle": "-", "color": hex_, "linewidth": 0.6, "relpos": (dx < 0, 0.5)}
        look = {"ha": "left" if dx > 0 else "right", "va": "center", "color": hex_, "zorder": 5}
        frame = {"xycoords": "axes fraction", "textcoords": "axes fraction", "weight": "bold"}
        axes.annotate(text, at, place, arrowprops=arrow | {"shrinkA": 0}, **look, **frame)
