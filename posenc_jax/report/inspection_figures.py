"""Pictures of a scheme before training, from plain arrays: bias, rotation, kernels, horizon."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from posenc_jax.report import style
from posenc_jax.report.needle_maps import LINE
from posenc_jax.report.scheme_figures import FLOOR, draw_bias_map, draw_rings, sees_alike
from posenc_jax.report.style import MUTED, Layout, Picture


def bias_picture(grid_G: np.ndarray, bias_NGG: np.ndarray, length: int) -> Picture:
    """The bias b(i, j) of every head of one layer; nan where the head sees no key."""
    low = max(FLOOR, float(np.nanmin(bias_NGG)))

    def draw(layout: Layout) -> Figure:
        columns = min(len(bias_NGG), 4)
        rows = -(-len(bias_NGG) // columns)
        figure, grid = style.panels(layout, rows, columns, 2.4)
        for axes in grid:
            style.blank(axes)
        for head, (axes, bias_GG) in enumerate(zip(grid, bias_NGG, strict=False)):
            high = max(0.0, float(np.nanmax(bias_NGG)))
            image = draw_bias_map(axes, bias_GG, grid_G, length, low, high)
            axes.set_title(f"head {head}", weight="normal", color=MUTED)
        bar = figure.colorbar(
            image, ax=grid, location="bottom", aspect=40, shrink=0.7, ticks=MaxNLocator(5)
        )
        bar.set_label("bias added to the logit (nats)")
        bar.outline.set_visible(False)
        return figure

    records = tuple(
        {"head": n, "query": int(grid_G[i]), "key": int(grid_G[j]), "bias": float(bias_GG[i, j])}
        for n, bias_GG in enumerate(bias_NGG)
        for i, j in zip(*np.nonzero(np.isfinite(bias_GG)), strict=True)
    )
    caption = f"Query down, key across, to position {grid_G[-1]}; the red line is distance = L = {length}."
    flat = sees_alike(bias_NGG)
    columns = ("head", "query", "key", "bias")
    return Picture("bias", "Bias of each head", caption, columns, records, None if flat else draw)


def rotation_picture(
    rotations: Mapping[str, tuple[float, ...]], length: int, reach: float
) -> Picture:
    """The arc each rotary pair sweeps within L, and the unseen arc up to `reach` times L."""

    def draw(layout: Layout) -> Figure:
        figure, grid = style.panels(layout, 1, len(rotations), 3.6, 3.9 * len(rotations))
        for axes in grid:
            style.blank(axes)
        for index, (axes, (name, waves)) in enumerate(zip(grid, rotations.items(), strict=False)):
            full = draw_rings(axes, waves, length, reach, style.colour(index))
            axes.set_title(name, color=style.colour(index), loc="center")
            words = f"solid: within L = {length:,}; hatched: first met by {reach:g} L\n"
            words += f"{len(waves) - full} of {len(waves)} pairs never complete a turn within L"
            axes.text(0, -1.1, words, ha="center", va="top", color=MUTED)
        return figure

    records = tuple(
        {"heads": name, "pair": pair, "wavelength": wave, "turns_within_L": length / wave,
         "turns_within_reach": reach * length / wave}
        for name, waves in rotations.items()
        for pair, wave in enumerate(waves)
    )  # fmt: skip
    columns = ("heads", "pair", "wavelength", "turns_within_L", "turns_within_reach")
    return Picture(
        "rotation", "Rotation and its unseen arc", "", columns, records, draw if records else None
    )


def kernel_picture(
    distance_S: np.ndarray,
    bias_NS: np.ndarray,
    rotary: Mapping[str, tuple[np.ndarray, np.ndarray]],
    length: int,
) -> Picture:
    """The bias of every head as far as it sees (nan beyond its window), and the rotary kernel with RoFormer's bound, over log distance."""

    def draw(layout: Layout) -> Figure:
        drawn = [draw_bias] * bool(bias_NS.any()) + [draw_rotary] * bool(rotary)
        figure, grid = style.panels(layout, 1, len(drawn), 3.4)
        for axes, panel in zip(grid, drawn, strict=True):
            panel(axes)
            axes.set_xscale("log")
            axes.axvline(length + 1, color=LINE, linewidth=1.0)
            axes.set_xlabel("distance + 1 (tokens); red: L")
        return figure

    def draw_bias(axes: Axes) -> None:
        for head, bias_S in enumerate(bias_NS):
            shown_S = np.where(bias_S > -110, bias_S, np.nan)
            axes.plot(distance_S + 1, shown_S, color=style.colour(head % 8), label=f"head {head}")
        low, high = float(np.nanmin(bias_NS)), float(np.nanmax(bias_NS))
        axes.set_ylim(max(-110, low * 1.05 - 1), max(1.0, high + 1))
        axes.set_title("bias by distance")
        axes.set_ylabel("nats")
        axes.legend(frameon=False, fontsize="small", ncols=2)

    def draw_rotary(axes: Axes) -> None:
        for index, (name, (kernel_S, bound_S)) in enumerate(rotary.items()):
            hex_ = style.colour(index)
            axes.plot(distance_S + 1, kernel_S, color=hex_, label=f"{name}: mean cosine")
            axes.plot(
                distance_S + 1, bound_S / bound_S[0], color=hex_, linestyle="--",
                label=f"{name}: RoFormer bound, relative",
            )  # fmt: skip
        axes.set_title("rotary kernel of constant vectors")
        axes.legend(frameon=False, fontsize="small")

    records = [
        {"what": f"bias of head {n}", "distance": int(d), "value": float(b)}
        for n, bias_S in enumerate(bias_NS)
        for d, b in zip(distance_S, bias_S, strict=True)
        if np.isfinite(b)
    ]
    for name, curves in rotary.items():
        for what, curve in zip(("mean cosine", "RoFormer bound"), curves, strict=True):
            records += [
                {"what": f"{what} of {name}", "distance": int(d), "value": float(v)}
                for d, v in zip(distance_S, curve, strict=True)
            ]
    nothing = not rotary and not bias_NS.any()
    columns = ("what", "distance", "value")
    return Picture("kernels", "Kernels", "", columns, tuple(records), None if nothing else draw)


def horizon_picture(
    horizons: Sequence[Mapping[float, int]], length: int, train_length: int
) -> Picture:
    """How far each head holds a needle, by content margin."""
    margins = list(horizons[0])

    def draw(layout: Layout) -> Figure:
        figure, (axes,) = style.panels(layout, 1, 1, 3.2)
        width = 0.8 / len(margins)
        for index, margin in enumerate(margins):
            reach = [0.8 if h[margin] is None else max(h[margin] + 1, 0.8) for h in horizons]
            place = np.arange(len(horizons)) + (index - (len(margins) - 1) / 2) * width
            axes.bar(
                place, reach, width, color=style.colour(index), label=f"margin {margin:g} nats"
            )
        axes.set_yscale("log")
        axes.set_ylim(0.8, length * 1.6)
        axes.axhline(train_length, color=LINE, linewidth=1.0)
        axes.axhline(length, color=MUTED, linewidth=0.8, linestyle="--")
        axes.set_xticks(range(len(horizons)), [f"head {n}" for n in range(len(horizons))])
        axes.set_ylabel("farthest needle at weight 1/2 (tokens)")
        axes.set_title(
            f"red: L = {train_length:,}; dashed: {length:,} keys in sight", weight="normal"
        )
        axes.legend(
            frameon=False, ncols=len(margins), loc="upper center", bbox_to_anchor=(0.5, -0.1)
        )
        return figure

    records = tuple(
        {"head": n, "margin": m, "horizon": d} for n, h in enumerate(horizons) for m, d in h.items()
    )
    return Picture("horizon", "Retrieval horizon", "", ("head", "margin", "horizon"), records, draw)
