"""Figures of a scheme, of model switches and of a curriculum before training, from plain arrays."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from posenc_jax.report import style
from posenc_jax.report.figure import Figure, FigurePanel, Table, panels_of
from posenc_jax.report.style import AT_L, MUTED, SURFACE

LOWEST = -110.0  # nats; float32 weights are 0 below
DISTANCE = "distance + 1 (tokens); red: L"


def _curves(axes: Axes, lines: Mapping[str, tuple], at_L: float | None, same: int = 1) -> None:
    """A line per name by (x, y, form), a colour for each `same` lines, a legend, red at L."""
    for index, (name, points) in enumerate(lines.items()):
        axes.plot(*points, color=style.colour(index // same), label=name, markersize=3)
    if at_L is not None:
        axes.axvline(at_L, color=AT_L, linewidth=1.0)
        axes.set_xscale("log")
    if len(lines) > 1:
        axes.legend(fontsize="small")


def _bars(axes: Axes, groups: Mapping[str, np.ndarray]) -> None:
    for index, (name, heights) in enumerate(groups.items()):
        x = np.arange(len(heights)) + (index - (len(groups) - 1) / 2) * 0.8 / len(groups)
        axes.bar(x, heights, 0.8 / len(groups), label=name, color=style.colour(index))


def _map(axes: Axes, at: np.ndarray, values: np.ndarray, limits: tuple, label: str) -> None:
    look = {"cmap": style.MAP, "vmin": limits[0], "vmax": limits[1], "rasterized": True}
    image = axes.pcolormesh(at, at, values, shading="nearest", **look)
    axes.grid(False)
    axes.invert_yaxis()
    axes.set_aspect("equal")
    axes.figure.colorbar(image, ax=axes, shrink=0.8).set_label(label)


def similarity_figure(grid_G: np.ndarray, cosine_GG: np.ndarray, length: int) -> Figure:
    """Cosine of the vectors that are added at two positions, as a map and by distance."""

    def draw_map(axes: Axes) -> None:
        _map(axes, grid_G, cosine_GG, (min(0.0, cosine_GG.min()), 1.0), "cosine of a(i) and a(j)")
        axes.set(xlabel="position j (tokens)", ylabel="position i (tokens)")

    def draw_curves(axes: Axes) -> None:
        shown = sorted({0, len(grid_G) // 2, len(grid_G) - 1})
        lines = {f"i = {grid_G[i]}": (grid_G - grid_G[i], cosine_GG[i]) for i in shown}
        _curves(axes, lines, None)
        for at in (-length, length):
            axes.axvline(at, color=AT_L, linewidth=1.0)
        axes.set_xlabel("j - i (tokens); red: L")

    rows = Table.from_arrays({}, {"i": grid_G, "j": grid_G}, cosine=cosine_GG)
    panels = [FigurePanel(draw_map, 3.6), FigurePanel(draw_curves, 3.6)]
    return Figure("similarity", "Absolute vectors", "", rows, panels, 2)


def temperature_figure(
    at_S: np.ndarray, by_position_NS: np.ndarray, by_distance_NS: np.ndarray, length: int
) -> Figure:
    """tau by the query's position, on its farthest key, and by distance, of the last query."""
    sides = {"query position": by_position_NS, "distance": by_distance_NS}
    both = np.stack(list(sides.values()))
    pad = 0.05 * np.ptp(both) or 0.05

    def draw(axes: Axes, what: str, tau_NS: np.ndarray) -> None:
        heads: dict[tuple, list[str]] = {}
        for n, tau_S in enumerate(tau_NS):
            heads.setdefault(tuple(np.round(tau_S, 6)), []).append(str(n))
        lines = {f"head {', '.join(names)}": (at_S + 1, tau) for tau, names in heads.items()}
        _curves(axes, lines, length + 1)
        axes.set(xlabel=f"{what} + 1 (tokens); red: L", ylabel="tau, a factor on the content logit")
        axes.set_ylim(both.min() - pad, both.max() + pad)

    rows = Table.from_arrays({}, {"by": sides, "head": range(both.shape[1]), "at": at_S}, tau=both)
    panels = panels_of(draw, sides.items() if (both != 1).any() else (), 3.2)
    return Figure("temperature", "Temperature", "", rows, panels, 2)


def stretch_figure(ratios: Mapping[str, np.ndarray]) -> Figure:
    """Frequency of every rotary pair after length extension, over its trained frequency."""

    def draw(axes: Axes) -> None:
        lines = {name: (np.arange(len(ratio_h)), ratio_h, "o-") for name, ratio_h in ratios.items()}
        _curves(axes, lines, None)
        axes.set(xlabel="rotary pair, fastest first", ylabel="frequency / plain frequency")
        axes.set_ylim(bottom=0)

    rows = Table()
    for name, ratio_h in ratios.items():
        rows += Table.from_arrays({"stretch": name}, {"pair": range(len(ratio_h))}, ratio=ratio_h)
    panels = [FigurePanel(draw, 3.2)] if ratios else ()
    return Figure("stretch", "Stretched pairs", "", rows, panels)


def plane_figure(away_R: np.ndarray, bias_NRR: np.ndarray, kernel_NRR: np.ndarray) -> Figure:
    """Bias and mean cosine of the rotary pairs around a query in the middle of a grid, per head."""
    limits = (float(bias_NRR.min()), 0.0), (-1.0, 1.0)
    sides = zip(("bias (nats)", "mean cosine"), (bias_NRR, kernel_NRR), limits, strict=True)
    drawn, rows = [side for side in sides if np.ptp(side[1]) > 0], Table()
    for what, map_NRR, _ in drawn:
        axes = {"head": range(len(map_NRR)), "down": away_R, "right": away_R}
        rows += Table.from_arrays({"what": what}, axes, value=map_NRR)

    def draw(axes: Axes, what: str, head: int, map_RR: np.ndarray, limit: tuple) -> None:
        _map(axes, away_R, map_RR, limit, what)
        axes.set_title(f"head {head}", weight="normal", color=MUTED)

    items = [(what, n, map_NRR[n], x) for what, map_NRR, x in drawn for n in range(len(map_NRR))]
    panels, labels = panels_of(draw, items, 2.2), ("columns right", "rows down")
    return Figure("plane", "In the plane", "", rows, panels, 4, labels=labels)


def kernel_figure(
    distance_S: np.ndarray, bias_NS: np.ndarray, rotary: Mapping[str, tuple], length: int
) -> Figure:
    """Bias of each head by distance, nan past its window; cosine and bound of rotary groups."""
    x = distance_S + 1

    def biases(axes: Axes) -> None:
        shown_NS = np.where(bias_NS > LOWEST, bias_NS, np.nan)
        lines = {f"head {n}": (x, shown_S) for n, shown_S in enumerate(shown_NS)}
        _curves(axes, lines, length + 1)
        low, high = float(np.nanmin(bias_NS)), float(np.nanmax(bias_NS))
        axes.set_ylim(max(LOWEST, low * 1.05 - 1), max(1.0, high + 1))
        axes.set(title="bias by distance", ylabel="nats", xlabel=DISTANCE)

    def kernels(axes: Axes) -> None:
        lines: dict[str, tuple] = {}
        for name, (kernel_S, bound_S) in rotary.items():
            lines[f"{name}: mean cosine"] = (x, kernel_S)
            lines[f"{name}: RoFormer bound, relative"] = (x, bound_S / bound_S[0], "--")
        _curves(axes, lines, length + 1, 2)
        axes.set(title="rotary kernel of constant vectors", xlabel=DISTANCE)

    named = {f"bias of head {n}": bias_S for n, bias_S in enumerate(bias_NS)}
    for name, (kernel_S, bound_S) in rotary.items():
        named |= {f"mean cosine of {name}": kernel_S, f"RoFormer bound of {name}": bound_S}
    values = np.array(list(named.values())).reshape(len(named), len(distance_S))
    rows = Table.from_arrays({}, {"what": named, "distance": distance_S}, value=values)
    drawn = [biases] * bool(bias_NS.any()) + [kernels] * bool(rotary)
    panels = [FigurePanel(draw, 3.4) for draw in drawn]
    return Figure("kernels", "Kernels", "", rows, panels, 2)


def horizon_figure(horizons: Sequence[Mapping], length: int, train_length: int) -> Figure:
    """Largest distance at which each head holds a needle, by content margin."""

    def draw(axes: Axes) -> None:
        reach = {m: [-1 if h[m] is None else h[m] for h in horizons] for m in horizons[0]}
        _bars(axes, {f"margin {m:g} nats": np.maximum(np.add(reach[m], 1), 0.8) for m in reach})
        axes.axhline(train_length, color=AT_L, linewidth=1.0)
        axes.axhline(length, color=MUTED, linewidth=0.8, linestyle="--")
        axes.set(yscale="log", ylim=(0.8, length * 1.6))
        axes.set_ylabel("farthest needle at weight 1/2 (tokens)")
        axes.set_xticks(range(len(horizons)), [f"head {n}" for n in range(len(horizons))])
        said = f"red: L = {train_length:,}; dashed: {length:,} keys in sight"
        axes.set_title(said, weight="normal")
        axes.legend(ncols=len(horizons[0]), loc="upper center", bbox_to_anchor=(0.5, -0.1))

    rows = [
        {"head": n, "margin": m, "horizon": d} for n, h in enumerate(horizons) for m, d in h.items()
    ]
    return Figure("horizon", "Retrieval horizon", "", rows, [FigurePanel(draw, 3.2)])


def switches_figure(
    keys_S: np.ndarray,
    sink_S: Mapping[str, np.ndarray],
    seg_T: np.ndarray,
    shifted_T: Mapping[str, np.ndarray],
    tokens: tuple[int, ...],
) -> Figure:
    """A sink's share of a row's weight by keys in sight, and where a token shift puts some keys.

    sink_S: by the name of a head. seg_T: documents. shifted_T: by weights, what each slot holds of
    the keys of `tokens`.
    """

    def shares(axes: Axes) -> None:
        forms = ("--", "-") * len(sink_S)
        lines = {name: (keys_S, sink_S[name], forms[i]) for i, name in enumerate(sink_S)}
        _curves(axes, lines, None, 2)
        axes.set(xscale="log", ylim=(0, 1), xlabel="keys in sight (tokens)")
        axes.set_title("the sink's share of the weight, keys alike")

    def shifts(axes: Axes) -> None:
        _bars(axes, shifted_T)
        for border in np.flatnonzero(np.diff(seg_T)) + 0.5:
            axes.axvline(border, color=MUTED, linewidth=0.8, linestyle="--")
        axes.set(ylim=(0, 1.35), yticks=[0, 0.25, 0.5, 0.75, 1], xticks=np.arange(len(seg_T)))
        axes.set_xlabel("slot; dashed: a document's border")
        axes.set_title(f"where the keys of tokens {' and '.join(map(str, tokens))} stand")
        axes.legend(fontsize="small", ncols=2, loc="upper right")

    sinks, held = np.stack(list(sink_S.values())), np.stack(list(shifted_T.values()))
    rows = Table.from_arrays(
        {}, {"what": [f"sink: {name}" for name in sink_S], "at": keys_S}, share=sinks
    )
    what = [f"token shift: {name}" for name in shifted_T]
    rows += Table.from_arrays({}, {"what": what, "at": range(held.shape[1])}, share=held)
    panels = [FigurePanel(shares, 3.0), FigurePanel(shifts, 3.0)]
    return Figure("sink_and_shift", "Sink logit and token shift", "", rows, panels, 2)


def curriculum_figure(
    progress_S: np.ndarray,
    longest_S: np.ndarray,
    pairs_S: Mapping[str, np.ndarray],
    shares_S: Mapping[str, np.ndarray],
) -> Figure:
    """Longest document, maximum number of MQAR pairs and shares of tasks, by share of training."""

    def steps(axes: Axes, title: str, lines: Mapping[str, np.ndarray]) -> None:
        _curves(axes, {name: (progress_S, at_S) for name, at_S in lines.items()}, None)
        for line in axes.lines:
            line.set_drawstyle("steps-post")
        axes.set(title=title, xlim=(0, 1))
        axes.set_ylim(bottom=0)

    def mixture(axes: Axes) -> None:
        colours = [style.colour(index) for index in range(len(shares_S))]
        axes.stackplot(progress_S, *shares_S.values(), colors=colours, step="post")
        top, look = 0.0, {"color": SURFACE, "weight": "bold", "ha": "right", "va": "center"}
        for name, share_S in shares_S.items():
            axes.text(0.97, top + share_S[-1] / 2, name, **look)
            top += share_S[-1]
        axes.set(title="shares of the documents", xlim=(0, 1), ylim=(0, 1))

    most = {f"most_pairs: {name}": most_S for name, most_S in pairs_S.items()}
    columns = {"progress": progress_S.round(6), "longest": longest_S, **most, **shares_S}
    rows = [
        dict(zip(columns, row, strict=True))
        for row in zip(*(column.tolist() for column in columns.values()), strict=True)
    ]
    sides = (("longest document (tokens)", {"": longest_S}), ("most pairs of mqar", pairs_S))
    panels = [*panels_of(steps, sides, 2.8), FigurePanel(mixture, 2.8)]
    labels = ("share of the training", "")
    return Figure("curriculum", "A curriculum", "", rows, panels, 3, labels=labels)
