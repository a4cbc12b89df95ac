"""Figures of encodings: bias of every head, rotary pairs as rings."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Wedge

from posenc_jax.report import marks, style
from posenc_jax.report.figure import Figure, Subplot, Table, panels_of
from posenc_jax.report.study_view import StudyView, times
from posenc_jax.report.style import AT_L, EMPTY, MUTED, RULE
from posenc_jax.results.study_data import RunData

FLOOR = -16.0  # nats; a weight of e^-16 = 1e-7 next to the newest key
GRID = 48  # cells per side drawn, thinned from the evaluation's grid


def bias_maps(study: StudyView) -> Figure:
    """The bias b(i, j) of every head that has one, on one colour scale."""
    rows, missing, maps = Table(), [], []
    for arm in study.arms:
        run = _described(study, arm)
        arrays = run and run.kept_arrays("scheme")
        if not arrays or "grid_bias_LNGG" not in arrays:
            missing.append(f"{study.names[arm]}: the grid of its bias is not kept")
            continue
        step = -(-len(arrays["grid_G"]) // GRID)
        bias_LNGG = arrays["grid_bias_LNGG"][:, :, ::step, ::step]
        grid_G = arrays["grid_G"][::step]
        if sees_alike(bias_LNGG):
            missing.append(f"{study.names[arm]} has no bias: zero for every head and distance")
            continue
        for layer, words in _distinct(bias_LNGG).items():
            for head, bias_GG in enumerate(bias_LNGG[layer]):
                known = [h for h in run.heads if (h["layer"], h["head"]) == (layer, head)]
                label = f"{words}\n{_label(head, bias_GG, (known or [{}])[0])}"
                maps.append((bias_GG, grid_G, arm, label))
            rows += _bias_rows(bias_LNGG[layer], grid_G, run.key | {"layer": layer})

    def title(axes: Axes, arm: str, words: str) -> None:
        marks.arm_title(axes, study, arm, words, 20)

    made = _bias_panels(maps, title, study.train_length, rows)
    caption = (
        "The bias added to the logit of a query (down) for a key (across), both from position 0 "
        f"to {max(rows.column('query'), default=0)} (L = {study.train_length}). One flat colour: "
        "the head sees every distance alike. Blank below the diagonal: outside the head's window. "
        "On the red line the distance is L. Layers with the same maps share one. Biases of −16 "
        "nats and less share the darkest colour: a weight below 1 in 10⁷."
    )
    return Figure("bias_maps", "Bias of each head", caption, rows, missing=missing, **made)


def bias_figure(grid_G: np.ndarray, bias_NGG: np.ndarray, length: int) -> Figure:
    """The bias b(i, j) of every head of one layer before training; nan where a head sees no key."""
    rows = _bias_rows(bias_NGG, grid_G, {})
    heads = [] if sees_alike(bias_NGG) else bias_NGG
    maps = [(bias_GG, grid_G, f"head {head}") for head, bias_GG in enumerate(heads)]
    made = _bias_panels(maps, lambda axes, words: axes.set_title(words), length, rows)
    caption = f"Query down, key across, to position {grid_G[-1]}; red: distance = L = {length}."
    return Figure("bias", "Bias of each head", caption, rows, **made)


def _bias_rows(bias_NGG: np.ndarray, grid_G: np.ndarray, where: dict) -> Table:
    """A row for every finite bias b(query, key) of every head."""
    return Table(
        where
        | {"head": n, "query": int(grid_G[i]), "key": int(grid_G[j]), "bias": float(bias_GG[i, j])}
        for n, bias_GG in enumerate(bias_NGG)
        for i, j in zip(*np.nonzero(np.isfinite(bias_GG)), strict=True)
    )


def _bias_panels(maps: Sequence[tuple], title, length: int, rows: Table) -> dict:
    """A map per head, with a line where the distance is `length`; title(axes, *words)."""
    low = max(FLOOR, min(rows.column("bias"), default=0.0))
    high = max(0.0, *rows.column("bias"), 0.0)

    def draw(axes: Axes, bias_GG: np.ndarray, grid_G: np.ndarray, *words: str) -> None:
        index, look = np.arange(len(grid_G)), {"vmin": low, "vmax": high, "rasterized": True}
        shown = np.ma.masked_invalid(bias_GG)
        axes.pcolormesh(index, index, shown, shading="nearest", cmap=style.MAP, **look)
        query_G = np.interp(grid_G + length, grid_G, index, right=np.nan)  # in cells
        axes.plot(index, query_G, color=AT_L, linewidth=1.2)
        span = (-0.5, len(grid_G) - 0.5)
        axes.set(xticks=[], yticks=[], aspect="equal", xlim=span, ylim=span[::-1])
        marks.frameless(axes)
        title(axes, *words)

    key = marks.colour_bar(low, high, "bias added to the logit (nats)")
    return {"panels": panels_of(draw, maps, 2.7), "across": 4, "key": key}


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


def _label(head: int, bias_GG: np.ndarray, known: dict) -> str:
    slope, window, words = known.get("slope"), known.get("window"), [f"head {head}"]
    if not np.any(np.nan_to_num(bias_GG)):
        words.append("no bias")
    elif slope:
        inverse = round(1 / slope)
        whole = abs(1 / slope - inverse) < 1e-3 and inverse >= 2
        words.append(f"slope 1/{inverse}" if whole else f"slope {slope:.3g}")
    return ", ".join(words + [f"window {window}"] * (window is not None))


def _described(study: StudyView, arm: str) -> RunData | None:
    """The first seed of the arm whose scheme's arrays are kept."""
    return next((run for run in study.of(arm) if run.heads is not None), None)


def rotation_rings(study: StudyView) -> Figure:
    """Each rotary pair as a ring: the arc swept within L, and the arc first met beyond it."""
    measured = [k for m in ("bpb_ctx", "bpb_nonoverlap") for k in study.multiples(m)]
    reach = max([k for k in measured if k > 1], default=8)
    groups, missing = [], []
    for arm in study.arms:
        run = _described(study, arm)
        if run is None:
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
    caption = (
        "Each ring is one rotary pair, the fastest outside; its angle grows clockwise with "
        f"distance. Solid: angles met in training (distance up to L = {study.train_length}). "
        f"Hatched: angles first met between L and {times(reach)}. A pair whose wavelength is at "
        "most L has seen its whole circle."
    )
    title = "Rotation and its unseen arc"
    return Figure("rotation_rings", title, caption, missing=missing, **made)


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
    """Rows, panels and key of rings: groups of (columns, wavelengths, colour, title)."""
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
            # Angle 90 is twelve o'clock; clockwise is negative.
            arcs = [(0, 360, {"facecolor": EMPTY, "linewidth": 0})]
            if later > seen:
                hatched = {"facecolor": "none", "edgecolor": colour, "hatch": "///////"}
                arcs.append((90 - later, 90 - seen, {"linewidth": 0.5, **hatched}))
            arcs.append((90 - seen, 90, {"facecolor": colour, "linewidth": 0}))
            for start, end, look in arcs:
                axes.add_patch(Wedge((0, 0), outer, start, end, width=width, **look))
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
    key: Subplot = marks.legend(handles, 2)
    return {"rows": rows, "panels": panels_of(draw, groups, 3.3), "across": 4, "key": key}
