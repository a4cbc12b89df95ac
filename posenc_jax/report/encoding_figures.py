"""Pictures of single parts, from plain arrays: absolute vectors, temperature, stretches, the plane."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from posenc_jax.report import style
from posenc_jax.report.needle_maps import LINE
from posenc_jax.report.style import MUTED, Layout, Picture


def similarity_picture(grid_G: np.ndarray, cosine_GG: np.ndarray, length: int) -> Picture:
    """How alike the vectors are that are added at two positions, and its course with distance."""

    def draw(layout: Layout) -> Figure:
        figure, (left, right) = style.panels(layout, 1, 2, 3.6)
        left.grid(False)
        image = left.pcolormesh(
            grid_G, grid_G, cosine_GG, cmap="cividis", vmin=min(0.0, cosine_GG.min()), vmax=1.0,
            rasterized=True, shading="nearest",
        )  # fmt: skip
        left.invert_yaxis()
        left.set_aspect("equal")
        left.set_xlabel("position j (tokens)")
        left.set_ylabel("position i (tokens)")
        figure.colorbar(image, ax=left, shrink=0.8).set_label("cosine of a(i) and a(j)")
        for index, row in enumerate(sorted({0, len(grid_G) // 2, len(grid_G) - 1})):
            right.plot(
                grid_G - grid_G[row], cosine_GG[row], color=style.colour(index),
                label=f"i = {grid_G[row]}",
            )  # fmt: skip
        right.axvline(length, color=LINE, linewidth=1.0)
        right.axvline(-length, color=LINE, linewidth=1.0)
        right.set_xlabel("j - i (tokens); red: L")
        right.legend(frameon=False)
        return figure

    records = tuple(
        {"i": int(grid_G[i]), "j": int(grid_G[j]), "cosine": float(cosine_GG[i, j])}
        for i, j in np.ndindex(cosine_GG.shape)
    )
    return Picture("similarity", "Absolute vectors", "", ("i", "j", "cosine"), records, draw)


def temperature_picture(
    at_S: np.ndarray, by_position_NS: np.ndarray, by_distance_NS: np.ndarray, length: int
) -> Picture:  # fmt: skip
    """tau by the query's position, on its farthest key, and by distance, of the last query."""
    panels = (("query position", by_position_NS), ("distance", by_distance_NS))

    def draw(layout: Layout) -> Figure:
        figure, grid = style.panels(layout, 1, 2, 3.2, sharey=True)
        for axes, (what, tau_N) in zip(grid, panels, strict=True):
            kinds = {}
            for n, tau in enumerate(tau_N):
                kinds.setdefault(tuple(np.round(tau, 6)), []).append(n)
            for index, (tau, heads) in enumerate(kinds.items()):
                name = f"head{'s' if len(heads) > 1 else ''} {', '.join(map(str, heads))}"
                axes.plot(at_S + 1, tau, color=style.colour(index), label=name)
            axes.set_xscale("log")
            axes.axvline(length + 1, color=LINE, linewidth=1.0)
            axes.set_xlabel(f"{what} + 1 (tokens); red: L")
        grid[0].set_ylabel("tau, a factor on the content logit")
        grid[0].legend(frameon=False)
        return figure

    records = tuple(
        {"head": n, "by": what, "at": int(x), "tau": float(t)}
        for what, tau_N in panels
        for n, tau in enumerate(tau_N)
        for x, t in zip(at_S, tau, strict=True)
    )
    changes = any((tau_N != 1).any() for _, tau_N in panels)
    return Picture(
        "temperature", "Temperature", "", ("head", "by", "at", "tau"), records, draw if changes else None
    )  # fmt: skip


def stretch_picture(ratios: Mapping[str, np.ndarray]) -> Picture:
    """The frequency of every rotary pair under a stretch, over the one it was trained with."""

    def draw(layout: Layout) -> Figure:
        figure, (axes,) = style.panels(layout, 1, 1, 3.2)
        for index, (name, ratio_h) in enumerate(ratios.items()):
            axes.plot(
                np.arange(len(ratio_h)), ratio_h, color=style.colour(index), marker="o",
                markersize=3, label=name,
            )  # fmt: skip
        axes.set_xlabel("rotary pair, fastest first")
        axes.set_ylabel("frequency / plain frequency")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        return figure

    records = tuple(
        {"stretch": name, "pair": p, "ratio": float(r)}
        for name, ratio_h in ratios.items()
        for p, r in enumerate(ratio_h)
    )
    return Picture(
        "stretch", "Stretched pairs", "", ("stretch", "pair", "ratio"), records, draw if ratios else None
    )  # fmt: skip


def plane_picture(away_R: np.ndarray, bias_NRR: np.ndarray, kernel_NRR: np.ndarray) -> Picture:
    """What a query in the middle of a grid sees around it: bias in nats, mean cosine of the pairs."""
    rows = [
        (what, maps, low, high)
        for what, maps, low, high in (
            ("bias (nats)", bias_NRR, float(bias_NRR.min()), 0.0),
            ("mean cosine", kernel_NRR, -1.0, 1.0),
        )
        if np.ptp(maps) > 0
    ]

    def draw(layout: Layout) -> Figure:
        columns = min(len(bias_NRR), 4)
        lines = sum(-(-len(maps) // columns) for _, maps, _, _ in rows)
        figure, grid = style.panels(layout, lines, columns, 2.5)
        for axes in grid:
            style.blank(axes)
        at = 0
        for what, maps, low, high in rows:
            mine = grid[at : at + len(maps)]
            for head, (axes, map_RR) in enumerate(zip(mine, maps, strict=True)):
                axes.set_axis_on()
                axes.grid(False)
                image = axes.pcolormesh(
                    away_R, away_R, map_RR, cmap="cividis", vmin=low, vmax=high, rasterized=True,
                    shading="nearest",
                )  # fmt: skip
                axes.invert_yaxis()
                axes.set_aspect("equal")
                axes.set_title(f"head {head}", weight="normal", color=MUTED)
            mine[0].set_ylabel("rows down")
            mine[0].set_xlabel("columns right")
            figure.colorbar(image, ax=mine, shrink=0.8).set_label(what)
            at += columns * -(-len(maps) // columns)
        return figure

    records = tuple(
        {"what": what, "head": n, "down": int(away_R[i]), "right": int(away_R[j]), "value": float(maps[n, i, j])}
        for what, maps, _, _ in rows
        for n, i, j in np.ndindex(maps.shape)
    )  # fmt: skip
    names = ("what", "head", "down", "right", "value")
    return Picture("plane", "In the plane", "", names, records, draw if rows else None)
