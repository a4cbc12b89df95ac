"""Figures of a scheme before training, from plain arrays: kernels, horizon and others."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes

from posenc_jax.report import style
from posenc_jax.report.figure import Figure, Subplot, panels_of
from posenc_jax.report.style import AT_L, MUTED

LOWEST = -110.0  # nats; float32 weights are 0 below
DISTANCE = "distance + 1 (tokens); red: L"


def _curves(axes: Axes, lines: Mapping[str, tuple], at_L: float | None, log: bool, **look) -> None:
    """A line per name through (x, y), a legend, and a red line at L."""
    for index, (name, points) in enumerate(lines.items()):
        axes.plot(*points, **{"color": style.colour(index), "label": name} | look)
    if at_L is not None:
        axes.axvline(at_L, color=AT_L, linewidth=1.0)
    axes.set_xscale("log" if log else "linear")
    axes.legend(fontsize="small")


def _map(axes: Axes, at: np.ndarray, values: np.ndarray, limits: tuple, label: str) -> None:
    """A square map of values over positions `at`, with its colour bar."""
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
        _curves(axes, lines, length, log=False)
        axes.axvline(-length, color=AT_L, linewidth=1.0)
        axes.set_xlabel("j - i (tokens); red: L")

    rows = [
        {"i": int(grid_G[i]), "j": int(grid_G[j]), "cosine": float(cosine_GG[i, j])}
        for i, j in np.ndindex(cosine_GG.shape)
    ]
    panels = [Subplot(draw_map, 3.6), Subplot(draw_curves, 3.6)]
    return Figure("similarity", "Absolute vectors", "", rows, panels, 2)


def temperature_figure(
    at_S: np.ndarray, by_position_NS: np.ndarray, by_distance_NS: np.ndarray, length: int
) -> Figure:
    """tau by the query's position, on its farthest key, and by distance, of the last query."""
    sides = (("query position", by_position_NS), ("distance", by_distance_NS))
    both = np.stack([by_position_NS, by_distance_NS])
    pad = 0.05 * np.ptp(both) or 0.05

    def draw(axes: Axes, what: str, tau_NS: np.ndarray) -> None:
        heads: dict[tuple, list[str]] = {}
        for n, tau_S in enumerate(tau_NS):
            heads.setdefault(tuple(np.round(tau_S, 6)), []).append(str(n))
        lines = {f"head {', '.join(names)}": (at_S + 1, tau) for tau, names in heads.items()}
        _curves(axes, lines, length + 1, log=True)
        axes.set(xlabel=f"{what} + 1 (tokens); red: L", ylabel="tau, a factor on the content logit")
        axes.set_ylim(both.min() - pad, both.max() + pad)

    rows = [
        {"head": n, "by": what, "at": int(x), "tau": float(tau)}
        for what, tau_NS in sides
        for n, tau_S in enumerate(tau_NS)
        for x, tau in zip(at_S, tau_S, strict=True)
    ]
    panels = panels_of(draw, sides if (both != 1).any() else (), 3.2)
    return Figure("temperature", "Temperature", "", rows, panels, 2)


def stretch_figure(ratios: Mapping[str, np.ndarray]) -> Figure:
    """Frequency of every rotary pair after length extension, over its trained frequency."""

    def draw(axes: Axes) -> None:
        lines = {name: (np.arange(len(ratio_h)), ratio_h) for name, ratio_h in ratios.items()}
        _curves(axes, lines, None, log=False, marker="o", markersize=3)
        axes.set(xlabel="rotary pair, fastest first", ylabel="frequency / plain frequency")
        axes.set_ylim(bottom=0)

    rows = [
        {"stretch": name, "pair": pair, "ratio": float(ratio)}
        for name, ratio_h in ratios.items()
        for pair, ratio in enumerate(ratio_h)
    ]
    return Figure("stretch", "Stretched pairs", "", rows, [Subplot(draw, 3.2)] if ratios else ())


def plane_figure(away_R: np.ndarray, bias_NRR: np.ndarray, kernel_NRR: np.ndarray) -> Figure:
    """Bias and mean cosine of the rotary pairs around a query in the middle of a grid, per head."""
    limits = (float(bias_NRR.min()), 0.0), (-1.0, 1.0)
    sides = zip(("bias (nats)", "mean cosine"), (bias_NRR, kernel_NRR), limits, strict=True)
    items = [
        (what, n, maps[n], limit)
        for what, maps, limit in sides
        if np.ptp(maps) > 0
        for n in range(len(maps))
    ]

    def draw(axes: Axes, what: str, head: int, map_RR: np.ndarray, limit: tuple) -> None:
        _map(axes, away_R, map_RR, limit, what)
        axes.set_title(f"head {head}", weight="normal", color=MUTED)

    rows = [
        {"what": what, "head": n, "down": int(away_R[i]), "right": int(away_R[j])}
        | {"value": float(map_RR[i, j])}
        for what, n, map_RR, _ in items
        for i, j in np.ndindex(map_RR.shape)
    ]
    panels, labels = panels_of(draw, items, 2.2), ("columns right", "rows down")
    return Figure("plane", "In the plane", "", rows, panels, 4, labels=labels)


def kernel_figure(
    distance_S: np.ndarray,
    bias_NS: np.ndarray,
    rotary: Mapping[str, tuple[np.ndarray, np.ndarray]],
    length: int,
) -> Figure:
    """Bias of every head by distance (nan beyond its window), and the rotary kernel."""
    x = distance_S + 1

    def biases(axes: Axes) -> None:
        shown_NS = np.where(bias_NS > LOWEST, bias_NS, np.nan)
        lines = {f"head {n}": (x, shown_S) for n, shown_S in enumerate(shown_NS)}
        _curves(axes, lines, length + 1, log=True)
        low, high = float(np.nanmin(bias_NS)), float(np.nanmax(bias_NS))
        axes.set_ylim(max(LOWEST, low * 1.05 - 1), max(1.0, high + 1))
        axes.set(title="bias by distance", ylabel="nats", xlabel=DISTANCE)

    def kernels(axes: Axes) -> None:
        for index, (name, (_, bound_S)) in enumerate(rotary.items()):
            look = {"linestyle": "--", "label": f"{name}: RoFormer bound, relative"}
            axes.plot(x, bound_S / bound_S[0], color=style.colour(index), **look)
        lines = {f"{name}: mean cosine": (x, kernel_S) for name, (kernel_S, _) in rotary.items()}
        _curves(axes, lines, length + 1, log=True)
        axes.set(title="rotary kernel of constant vectors", xlabel=DISTANCE)

    named = {f"bias of head {n}": bias_S for n, bias_S in enumerate(bias_NS)}
    for name, (kernel_S, bound_S) in rotary.items():
        named |= {f"mean cosine of {name}": kernel_S, f"RoFormer bound of {name}": bound_S}
    rows = [
        {"what": what, "distance": int(d), "value": float(value)}
        for what, values in named.items()
        for d, value in zip(distance_S, values, strict=True)
        if np.isfinite(value)
    ]
    panels = [Subplot(biases, 3.4)] * bool(bias_NS.any()) + [Subplot(kernels, 3.4)] * bool(rotary)
    return Figure("kernels", "Kernels", "", rows, panels, 2)


def horizon_figure(
    horizons: Sequence[Mapping[float, int]], length: int, train_length: int
) -> Figure:
    """Largest distance at which each head holds a needle, by content margin."""
    margins, heads = list(horizons[0]), np.arange(len(horizons))

    def draw(axes: Axes) -> None:
        width = 0.8 / len(margins)
        for index, margin in enumerate(margins):
            reach = [0.8 if h[margin] is None else max(h[margin] + 1, 0.8) for h in horizons]
            place = heads + (index - (len(margins) - 1) / 2) * width
            look = {"color": style.colour(index), "label": f"margin {margin:g} nats"}
            axes.bar(place, reach, width, **look)
        axes.axhline(train_length, color=AT_L, linewidth=1.0)
        axes.axhline(length, color=MUTED, linewidth=0.8, linestyle="--")
        axes.set(yscale="log", ylim=(0.8, length * 1.6))
        axes.set_ylabel("farthest needle at weight 1/2 (tokens)")
        axes.set_xticks(heads, [f"head {n}" for n in heads])
        said = f"red: L = {train_length:,}; dashed: {length:,} keys in sight"
        axes.set_title(said, weight="normal")
        axes.legend(ncols=len(margins), loc="upper center", bbox_to_anchor=(0.5, -0.1))

    rows = [
        {"head": n, "margin": m, "horizon": d} for n, h in enumerate(horizons) for m, d in h.items()
    ]
    return Figure("horizon", "Retrieval horizon", "", rows, [Subplot(draw, 3.2)])
