"""Figures of encodings: bias of every head, rotary pairs as rings."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Wedge

from posenc_jax.report import marks, style
from posenc_jax.report.figure import Figure, Table, panels_of
from posenc_jax.report.markup import captioned
from posenc_jax.report.study_view import StudyView, times
from posenc_jax.report.style import AT_L, EMPTY, INK, MUTED, RULE
from posenc_jax.results.study_data import RunData

FLOOR = -16.0  # nats; a weight of e^-16 = 1e-7 next to the newest key
GRID = 48  # cells per side drawn, thinned from the evaluation's grid


def bias_maps(study: StudyView) -> Figure:
    """The bias b(i, j) of every head that has one, on one colour scale."""
    rows, missing, maps = Table(), [], []
    for arm in study.arms:
        run = _first_kept(study, arm)
        arrays = run.kept_arrays("scheme") if run else None
        if run is None or not arrays or "grid_bias_LNGG" not in arrays:
            missing.append(f"{study.names[arm]}: the grid of its bias is not kept")
            continue
        step = -(-len(arrays["grid_G"]) // GRID)
        bias_LNGG = arrays["grid_bias_LNGG"][:, :, ::step, ::step]
        grid_G = arrays["grid_G"][::step]
        if sees_alike(bias_LNGG):
            missing.append(f"{study.names[arm]} has no bias: zero for every head and distance")
            continue
        described = run.heads or []
        for layer, words in _distinct(bias_LNGG).items():
            for head, bias_GG in enumerate(bias_LNGG[layer]):
                known = [h for h in described if (h["layer"], h["head"]) == (layer, head)]
                title = (marks.wrap(study.names[arm], 20), words, _label(head, bias_GG, known))
                colour = style.colour(study.colours[arm])
                maps.append((bias_GG, grid_G, "\n".join(title), colour))
            rows += _bias_rows(bias_LNGG[layer], grid_G, run.key | {"layer": layer})

    made = _bias_panels(maps, study.train_length, rows)
    last = max(rows.column("query"), default=0)
    said = captioned("bias_maps", last=last, L=study.train_length)
    return Figure(rows=rows, missing=missing, **said, **made)


def bias_figure(grid_G: np.ndarray, bias_NGG: np.ndarray, length: int) -> Figure:
    """The bias b(i, j) of every head of one layer before training; nan where a head sees no key."""
    rows = _bias_rows(bias_NGG, grid_G, {})
    heads = [] if sees_alike(bias_NGG) else bias_NGG
    maps = [(bias_GG, grid_G, f"head {head}", INK) for head, bias_GG in enumerate(heads)]
    made = _bias_panels(maps, length, rows)
    caption = f"Query down, key across, to position {grid_G[-1]}; red: distance = L = {length}."
    return Figure("bias", "Bias of each head", caption, rows, **made)


def _bias_rows(bias_NGG: np.ndarray, grid_G: np.ndarray, where: dict) -> Table:
    axes = {"head": range(len(bias_NGG)), "query": grid_G, "key": grid_G}
    return Table.from_arrays(where, axes, bias=bias_NGG)


def _bias_panels(maps: Sequence[tuple], length: int, rows: Table) -> dict:
    low = max(FLOOR, min(rows.column("bias"), default=0.0))
    high = max(0.0, *rows.column("bias"), 0.0)

    def draw(axes: Axes, bias_GG: np.ndarray, grid_G: np.ndarray, title: str, colour: str) -> None:
        index, look = np.arange(len(grid_G)), {"vmin": low, "vmax": high, "rasterized": True}
        shown = np.ma.masked_invalid(bias_GG)
        axes.pcolormesh(index, index, shown, shading="nearest", cmap=style.MAP, **look)
        query_G = np.interp(grid_G + length, grid_G, index, right=np.nan)  # in cells
        axes.plot(index, query_G, color=AT_L, linewidth=1.2)
        span = (-0.5, len(grid_G) - 0.5)
        axes.set(xticks=[], yticks=[], aspect="equal", xlim=span, ylim=span[::-1])
        marks.frameless(axes)
        axes.set_title(title, color=colour)

    legend = marks.colour_bar(low, high, "bias added to the logit (nats)")
    return {"panels": panels_of(draw, maps, 2.7), "columns": 4, "legend": legend}


def sees_alike(bias_xGG: np.ndarray) -> bool:
    """Returns whether heads have neither bias nor window: zero for every key up to the query."""
    upto_GG = np.tril(np.ones(bias_xGG.shape[-2:], bool))
    return not np.any(np.nan_to_num(bias_xGG, nan=1.0)[..., upto_GG])


def _distinct(bias_LNGG: np.ndarray) -> dict[int, str]:
    """The first of each set of equal layers, and the set in words."""
    sets: dict[bytes, list[int]] = {}
    for layer, bias_NGG in enumerate(bias_LNGG):
        sets.setdefault((bias_NGG + 0.0).tobytes(), []).append(layer)
    if len(sets) == 1:
        return {0: "every layer"}
    return {same[0]: f"layer {', '.join(map(str, same))}" for same in sets.values()}


def _label(head: int, bias_GG: np.ndarray, known: Sequence[dict]) -> str:
    slope, window = (known[0].get(name) if known else None for name in ("slope", "window"))
    words = [f"head {head}"]
    if not np.any(np.nan_to_num(bias_GG)):
        words.append("no bias")
    elif slope:
        inverse = round(1 / slope)
        whole = abs(1 / slope - inverse) < 1e-3 and inverse >= 2
        words.append(f"slope 1/{inverse}" if whole else f"slope {slope:.3g}")
    return ", ".join(words + [f"window {window}"] * (window is not None))


def _first_kept(study: StudyView, arm: str) -> RunData | None:
    return next((run for run in study.of(arm) if run.heads is not None), None)


def rotation_rings(study: StudyView) -> Figure:
    """Each rotary pair as a ring: the arc swept within L, and the arc first met beyond it."""
    measured = [k for m in ("bpb_ctx", "bpb_nonoverlap") for k in study.multiples(m)]
    reach = max([k for k in measured if k > 1], default=8)
    groups, missing = [], []
    for arm in study.arms:
        run = _first_kept(study, arm)
        if run is None or run.heads is None:
            missing.append(f"{study.names[arm]}: its rotary pairs are not kept")
            continue
        waves = [tuple(head["wavelengths"]) for head in run.heads if head.get("wavelengths")]
        colour = style.colour(study.colours[arm])
        for one in dict.fromkeys(waves):
            share = f"{waves.count(one)} of {len(run.heads)} heads"
            groups.append(({"arm": arm, "heads": share}, one, colour, study.names[arm]))
        if not waves:
            turns = any(head.get("rotates") for head in run.heads)
            why = "turns by rows and columns: no ring" if turns else "rotates no head"
            missing.append(f"{study.names[arm]} {why}")
    made = _ring_panels(groups, study.train_length, reach, times(reach))
    words = captioned("rotation_rings", L=study.train_length, reach=times(reach))
    return Figure(missing=missing, **words, **made)


def rotation_figure(rotations: dict[str, tuple[float, ...]], length: int, reach: float) -> Figure:
    """The rings of a layer before training, a panel per group of heads."""
    groups = [
        ({"heads": name}, waves, style.colour(index), "")
        for index, (name, waves) in enumerate(rotations.items())
    ]
    made = _ring_panels(groups, length, reach, f"{reach:g} L")
    caption = f"Solid: angles within L = {length:,}. Hatched: first met between L and {reach:g} L."
    return Figure("rotation", "Rotation and its unseen arc", caption, **made)


def _ring_panels(groups: Sequence[tuple], length: int, reach: float, words: str) -> dict:
    """Rows, panels and legend of rings: groups of (columns, wavelengths, colour, title)."""
    rows = Table(
        where
        | {"pair": pair, "wavelength": wave, "turns_within_L": length / wave}
        | {"turns_within_reach": reach * length / wave}
        for where, waves, *_ in groups
        for pair, wave in enumerate(waves)
    )

    def draw(axes: Axes, where: dict, waves: Sequence[float], colour: str, title: str) -> None:
        axes.set_axis_off()
        axes.set(aspect="equal", xlim=(-1.04, 1.04), ylim=(-1.72, 1.04))
        axes.set_title(marks.wrap(title, 22), color=colour)
        thickness = 0.78 / len(waves)
        for pair, wave in enumerate(waves):
            outer, width = 1.0 - pair * thickness, 0.72 * thickness
            seen, later = (min(360.0, 360.0 * far / wave) for far in (length, reach * length))
            unseen = {"facecolor": "none", "edgecolor": colour, "hatch": "///////"}
            for near, far, look in (
                (0, 360, {"facecolor": EMPTY, "linewidth": 0}),
                (seen, later, {"linewidth": 0.5, **unseen}),
                (0, seen, {"facecolor": colour, "linewidth": 0}),
            ):
                if far > near:  # angle 90 is twelve o'clock; clockwise is negative
                    axes.add_patch(Wedge((0, 0), outer, 90 - far, 90 - near, width=width, **look))
        axes.plot([0, 0], [0.2, 1.02], color=RULE, linewidth=0.8)
        full = sum(wave <= length for wave in waves)
        said = f"{where['heads']}\nwavelengths {min(waves):.3g} to {max(waves):,.0f}\n"
        said += f"full within L: {full} of {len(waves)} pairs"
        axes.text(0, -1.1, said, fontsize=0.9 * style.FONT, ha="center", va="top", color=MUTED)

    hatched = {"facecolor": "none", "edgecolor": MUTED, "hatch": "//////"}
    handles = [
        Patch(facecolor=MUTED, label="turned within L"),
        Patch(label=f"first met between L and {words}", **hatched),
        Patch(facecolor=EMPTY, label=f"not reached by {words}"),
    ]
    panels = panels_of(draw, groups, 3.3)
    return {"rows": rows, "panels": panels, "columns": 4, "legend": marks.legend(handles, 2)}
