"""What each arm's encoding looks like: bias maps per head, and rings of rotary pairs."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Wedge
from matplotlib.ticker import MaxNLocator

from posenc_jax.report import style
from posenc_jax.report.labels import wrap
from posenc_jax.report.needle_maps import LINE
from posenc_jax.report.study_view import RunView, StudyView, times
from posenc_jax.report.style import EMPTY, MUTED, RULE, Layout, Picture

FLOOR = -16.0  # nats; a weight of e^-16 = 1e-7 next to the newest key
PAIRED_FROM = 5  # maps from which two arms share a line
GRID = 48  # cells per side drawn, thinned from the evaluation's grid


def bias_maps(study: StudyView) -> Picture:
    """The bias b(i, j) of every head that has one, on one colour scale."""
    records, missing, maps = [], [], []
    for arm in study.arms:
        run = _described(study, arm)
        arrays = run and run.arrays("scheme")
        if not arrays or "grid_bias_LNGG" not in arrays:
            missing.append(f"{study.names[arm]}: the grid of its bias is not kept")
            continue
        bias_LNGG, grid_G = arrays["grid_bias_LNGG"], arrays["grid_G"]
        step = -(-len(grid_G) // GRID)
        bias_LNGG, grid_G = bias_LNGG[:, :, ::step, ::step], grid_G[::step]
        if sees_alike(bias_LNGG):
            missing.append(f"{study.names[arm]} has no bias: zero for every head and distance")
            continue
        for layer, layers in _distinct(bias_LNGG):
            maps.append(
                (arm, layers, bias_LNGG[layer], grid_G, _labels(run.heads, layer, bias_LNGG[layer]))
            )
            records += [
                {"arm": arm, "seed": run.seed, "layer": layer, "head": head}
                | {"query": int(grid_G[i]), "key": int(grid_G[j]), "bias": float(bias_GG[i, j])}
                for head, bias_GG in enumerate(bias_LNGG[layer])
                for i, j in zip(*np.nonzero(np.isfinite(bias_GG)), strict=True)
            ]
    far = max((r["query"] for r in records), default=0)
    lowest = min((r["bias"] for r in records), default=0.0)
    highest = max((r["bias"] for r in records), default=0.0)

    def draw(layout: Layout) -> Figure:
        size = style.matplotlib.rcParams["font.size"] * 0.9
        heads = max(bias_NGG.shape[0] for _, _, bias_NGG, _, _ in maps)
        paired = not layout.narrow and heads <= 4 and len(maps) > PAIRED_FROM  # two arms on a line
        columns = 2 * heads if paired else min(heads, 4 if layout.narrow else 8)
        slots = [heads if paired else columns * -(-len(m[2]) // columns) for m in maps]
        lines = -(-sum(slots) // columns)
        height = 1.55 if layout.narrow or paired else 2.3
        width = layout.width if layout.narrow else min(layout.width, 1.4 + 1.9 * columns)
        figure, grid = style.panels(layout, lines, columns, height, width)
        for axes in grid:
            style.blank(axes)
        at, low, high = 0, max(FLOOR, lowest), max(0.0, highest)
        for slot, (arm, layers, bias_NGG, grid_G, labels) in zip(slots, maps, strict=True):
            for head, bias_GG in enumerate(bias_NGG):
                axes = grid[at + head]
                image = draw_bias_map(axes, bias_GG, grid_G, study.train_length, low, high)
                title = (
                    labels[head].replace(", ", "\n") if layout.narrow or paired else labels[head]
                )
                axes.set_title(title, weight="normal", color=MUTED, pad=2, fontsize=size)
                if head == 0:
                    name = wrap(study.names[arm], 18)
                    axes.set_ylabel(
                        f"{name}\n{layers}",
                        color=style.colour(study.colours[arm]),
                        weight="bold",
                        fontsize=size,
                    )
            at += slot
        bar = figure.colorbar(
            image, ax=grid, location="bottom", aspect=40, shrink=0.7, pad=0.03,
            ticks=MaxNLocator(5, integer=True),
            extend="min" if lowest < FLOOR else "neither",
        )  # fmt: skip
        bar.set_label("bias added to the logit (nats)")
        bar.outline.set_visible(False)
        return figure

    floor = " −16 nats and less share the darkest colour: a weight below 1 in 10⁷ next to the newest key."
    return Picture(
        "bias_maps",
        "Bias of each head",
        "What is added to the logit of a query (down) for a key (across), both from the first "
        f"position to {far} (L = {study.train_length}). One flat colour: the head sees every "
        f"distance alike; blank below the diagonal: out of its window. The red line is distance = L.{floor if lowest < FLOOR else ''}",
        ("arm", "seed", "layer", "head", "query", "key", "bias"),
        tuple(records),
        draw if records else None,
        tuple(missing),
    )


def rotation_rings(study: StudyView) -> Picture:
    """Each rotary pair as a ring: the arc swept within L, and the arc first met beyond it."""
    length = study.train_length
    reach = max([k for m in ("bpb_ctx", "bpb_nonoverlap") for k in study.multiples(m)] + [1])
    reach = reach if reach > 1 else 8
    records, missing, rings = [], [], []
    for arm in study.arms:
        run = _described(study, arm)
        if run is None:
            missing.append(f"{study.names[arm]}: its rotary pairs are not kept")
            continue
        groups = {}
        for head in run.heads:
            if head.get("wavelengths"):
                groups.setdefault(tuple(head["wavelengths"]), []).append(head)
        if not groups:
            turns = any(head.get("rotates") for head in run.heads)
            why = "turns by rows and columns: no ring" if turns else "rotates no head"
            missing.append(f"{study.names[arm]} {why}")
        for waves, heads in groups.items():
            share = f"{len(heads)} of {len(run.heads)} heads"
            rings.append((arm, share, waves))
            records += [
                {"arm": arm, "heads": share, "pair": pair, "wavelength": wave}
                | {"turns_within_L": length / wave, "turns_within_reach": reach * length / wave}
                for pair, wave in enumerate(waves)
            ]

    def draw(layout: Layout) -> Figure:
        columns = min(len(rings), 2 if layout.narrow else 4)
        lines = -(-len(rings) // columns)
        panel = 2.45 if layout.narrow else 2.6
        height = 1.33 * panel + 0.3
        figure, grid = style.panels(layout, lines, columns, height, columns * panel)
        for axes in grid[len(rings) :]:
            style.blank(axes)
        for axes, (arm, share, waves) in zip(grid, rings, strict=False):
            hex_ = style.colour(study.colours[arm])
            full = draw_rings(axes, waves, length, reach, hex_)
            name = wrap(study.names[arm], 22)
            axes.set_title(name, color=hex_, loc="center", pad=2)
            words = f"{share}\nwavelengths {min(waves):.3g} to {max(waves):,.0f}"
            words += f"\nfull within L: {full} of {len(waves)} pairs"
            axes.text(0, -1.1, words, fontsize=0.9 * style.matplotlib.rcParams["font.size"],
                      ha="center", va="top", color=MUTED)  # fmt: skip
        figure.legend(
            handles=[
                Patch(facecolor=MUTED, label="turned within L"),
                Patch(facecolor="none", edgecolor=MUTED, hatch="//////",
                      label=f"unseen arc: only between L and {times(reach)}"),
                Patch(facecolor=EMPTY, label=f"not reached by {times(reach)}"),
            ],
            loc="outside lower center", ncols=1 if layout.narrow or columns < 3 else 3, frameon=False,
            columnspacing=4.0,
        )  # fmt: skip
        return figure

    return Picture(
        "rotation_rings",
        "Rotation and its unseen arc",
        "Each ring is one rotary pair, fastest outside; its angle grows clockwise with distance. "
        f"Solid: angles met in training (distance up to L = {length}). Hatched: angles first met "
        f"when evaluating up to {times(reach)}. A pair whose wavelength is at most L has seen its "
        "whole circle; the others are where rotation meets something new.",
        ("arm", "heads", "pair", "wavelength", "turns_within_L", "turns_within_reach"),
        tuple(records),
        draw if records else None,
        tuple(missing),
    )


def _described(study: StudyView, arm: str) -> RunView | None:
    """The first seed of the arm whose scheme's arrays are kept."""
    return next((run for run in study.of(arm) if run.heads is not None), None)


def _distinct(bias_LNGG: np.ndarray) -> list[tuple[int, str]]:
    """The first of each set of equal layers, and the set in words."""
    sets = []
    for layer in range(len(bias_LNGG)):
        for same in sets:
            if np.array_equal(bias_LNGG[same[0]], bias_LNGG[layer], equal_nan=True):
                same.append(layer)
                break
        else:
            sets.append([layer])
    if len(sets) == 1:
        return [(0, "every layer")]
    return [(same[0], "layer " + ", ".join(map(str, same))) for same in sets]


def _labels(heads: list[dict], layer: int, bias_NGG: np.ndarray) -> list[str]:
    known = {h["head"]: h for h in heads if h["layer"] == layer}
    labels = []
    for head, bias_GG in enumerate(bias_NGG):
        slope, window = (known.get(head, {}).get(name) for name in ("slope", "window"))
        words = [f"head {head}"]
        if not np.any(np.nan_to_num(bias_GG)):
            words += ["no bias"]
        elif slope:
            words += [f"slope {_fraction(slope)}"]
        labels.append(", ".join(words + [f"window {window}"] * (window is not None)))
    return labels


def sees_alike(bias_xGG: np.ndarray) -> bool:
    """Whether heads have neither a bias nor a window: zero for every key up to the query."""
    upto_GG = np.tril(np.ones(bias_xGG.shape[-2:], bool))
    return not np.any(np.nan_to_num(bias_xGG, nan=1.0)[..., upto_GG])


def _fraction(slope: float) -> str:
    inverse = 1 / slope
    whole = abs(inverse - round(inverse)) < 1e-3
    return f"1/{round(inverse)}" if whole and inverse >= 2 else f"{slope:.3g}"


def draw_bias_map(
    axes: Axes, bias_GG: np.ndarray, grid_G: np.ndarray, length: int, low: float, high: float
):
    """Draws b(i, j) of one head with the line of distance = length, and returns the image."""
    axes.set_axis_on()
    axes.grid(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal")
    index = np.arange(len(grid_G))
    image = axes.pcolormesh(
        index, index, np.ma.masked_invalid(bias_GG), cmap="cividis", vmin=low, vmax=high,
        rasterized=True, shading="nearest",
    )  # fmt: skip
    # Where the key stands L behind the query, in cells.
    query_G = np.interp(grid_G + length, grid_G, index, right=np.nan)
    axes.plot(index, query_G, color=LINE, linewidth=1.2)
    axes.set_ylim(len(grid_G) - 0.5, -0.5)
    axes.set_xlim(-0.5, len(grid_G) - 0.5)
    return image


def draw_rings(axes: Axes, waves: tuple, length: int, reach: float, hex_: str) -> int:
    """Draws one ring per rotary pair and returns how many are full within `length`."""
    style.blank(axes)
    axes.set_aspect("equal")
    axes.set_xlim(-1.04, 1.04)
    axes.set_ylim(-1.72, 1.04)
    thickness = 0.78 / len(waves)
    full = 0
    for pair, wave in enumerate(waves):
        outer, width = 1.0 - pair * thickness, 0.72 * thickness
        seen = min(360.0, 360.0 * length / wave)
        later = min(360.0, 360.0 * reach * length / wave)
        full += seen >= 360.0
        # Angle 90 is twelve o'clock; clockwise is negative.
        axes.add_patch(Wedge((0, 0), outer, 0, 360, width=width, facecolor=EMPTY, linewidth=0))
        if later > seen:
            axes.add_patch(Wedge((0, 0), outer, 90 - later, 90 - seen, width=width, hatch="///////",
                                 facecolor="none", edgecolor=hex_, linewidth=0.5))  # fmt: skip
        axes.add_patch(Wedge((0, 0), outer, 90 - seen, 90, width=width, facecolor=hex_,
                             linewidth=0))  # fmt: skip
    axes.plot([0, 0], [0.2, 1.02], color=RULE, linewidth=0.8)
    return full
