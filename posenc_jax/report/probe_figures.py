"""Pictures of the probes: attention by distance, decay curves; those of single heads from `head_figures`."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from posenc_jax.report import style
from posenc_jax.report.head_figures import first_probed, head_atlas, margin_budget, of_heads
from posenc_jax.report.needle_maps import LINE
from posenc_jax.report.study_view import RunView, StudyView
from posenc_jax.report.style import INK, MUTED, Layout, Picture


def pictures(study: StudyView) -> list[Picture]:
    """The pictures of suite M; an empty list where no run was probed."""
    if not any(row.suite == "M" for run in study.runs for row in run.rows):
        return []
    return [attention_distance(study), head_atlas(study), margin_budget(study), decay_curves(study)]


def _grid(layout: Layout, count: int, height: float, rows: int = 1):
    columns = 1 if layout.narrow else min(count, 3)
    lines = -(-count // columns) * rows
    figure, grid = style.panels(layout, lines, columns, height)
    for axes in grid[count * rows :]:
        style.blank(axes)
    return figure, grid, columns


def attention_distance(study: StudyView) -> Picture:
    """M1: where the weight of every head lies, by octave of distance, in the longest context."""
    runs, missing = first_probed(study, "M1_distance")
    records = []
    for arm, run in runs.items():
        rows = of_heads(run, "M1_distance")
        longest = max(r["k"] for r in rows)
        for r in rows:
            if r["k"] == longest:
                low = int(r["of"].removeprefix("distance:[").split(",")[0])
                records.append({"arm": arm, "seed": run.seed, "k": longest, "layer": r["layer"],
                                "head": r["head"], "from_distance": low, "mass": r["value"]})  # fmt: skip

    def draw(layout: Layout) -> Figure:
        count = max(len({(r["layer"], r["head"]) for r in records if r["arm"] == a}) for a in runs)
        figure, grid, columns = _grid(layout, len(runs), 1.0 + 0.17 * count)
        top = max(r["mass"] for r in records)
        for index, (axes, arm) in enumerate(zip(grid, runs, strict=False)):
            here = [r for r in records if r["arm"] == arm]
            lows = sorted({r["from_distance"] for r in here})
            heads = sorted({(r["layer"], r["head"]) for r in here})
            mass = np.full((len(heads), len(lows)), np.nan)
            for r in here:
                mass[heads.index((r["layer"], r["head"])), lows.index(r["from_distance"])] = r["mass"]  # fmt: skip
            image = axes.imshow(mass, vmin=0, vmax=top, cmap="Blues", aspect="auto")
            at = np.searchsorted(lows, study.train_length, side="right") - 1  # the octave of L
            within = np.log2(study.train_length / lows[at])
            axes.axvline(at - 0.5 + within, color=LINE, linewidth=1.2)
            axes.grid(False)
            axes.set_xticks(range(0, len(lows), 2), [f"{low}" for low in lows[::2]])
            axes.set_yticks(range(len(heads)), [f"{layer}.{head}" for layer, head in heads])
            axes.set_title(study.names[arm], color=style.colour(study.colours[arm]))
            axes.set_xlabel("distance, octaves from (tokens)")
            if index % columns == 0:
                axes.set_ylabel("layer.head")
        bar = figure.colorbar(image, ax=grid, location="bottom", aspect=50, shrink=0.5)
        bar.set_label("share of a query's attention")
        bar.outline.set_visible(False)
        return figure

    caption = (
        "M1: mean attention weight of each head by octave of distance, over the queries of the second "
        "half of the longest context; one seed an arm. Right of the red line: beyond L."
    )
    columns = ("arm", "seed", "k", "layer", "head", "from_distance", "mass")
    return Picture("attention_distance", "Attention by distance", caption, columns, tuple(records),
                   draw if records else None, tuple(missing))  # fmt: skip


def _longest_probe(run: RunView) -> Mapping[str, np.ndarray] | None:
    """The arrays of the longest context that was probed."""
    ks = sorted({row.k for row in run.rows if row.metric == "M1_distance"})
    return run.arrays(f"probes_{ks[-1]:g}") if ks else None


def decay_curves(study: StudyView) -> Picture:
    """M6, M1: attention and content by distance, with the cosine kernel and RoFormer's bound."""
    records, arms, missing = [], {}, []
    for arm in study.arms:
        found = [(run, arrays) for run in study.of(arm) if (arrays := _longest_probe(run)) is not None]  # fmt: skip
        if not found:
            missing.append(f"{study.names[arm]}: no probes were run, or their arrays are not kept")
            continue
        run, arrays = found[0]
        edge = np.unique(np.round(np.geomspace(1, len(arrays["distance_D"]) + 1, 40)).astype(int)) - 1  # fmt: skip
        arms[arm] = {
            n: np.add.reduceat(arrays[f"{n}_LND"], edge[:-1], axis=-1) / np.diff(edge)
            for n in ("attention", "content", "cosine", "bound")
        }
        at = arms[arm]["distance"] = (edge[:-1] + edge[1:] - 1) / 2
        L, N = arms[arm]["attention"].shape[:2]
        for layer, head in np.ndindex(L, N):
            for i, d in enumerate(at):
                records.append({"arm": arm, "seed": run.seed, "layer": layer, "head": head, "distance": float(d)}
                               | {n: float(arms[arm][n][layer, head, i])
                                  for n in ("attention", "content", "cosine", "bound")})  # fmt: skip

    def draw(layout: Layout) -> Figure:
        columns = 1 if layout.narrow else min(len(arms), 3)
        lines = -(-len(arms) // columns)
        figure, grid = style.panels(layout, 2 * lines, columns, 2.5)
        for axes in grid:
            style.blank(axes)
        for index, (arm, curves) in enumerate(arms.items()):
            line, column = divmod(index, columns)
            hex_, x = style.colour(study.colours[arm]), curves["distance"] + 1
            upper, lower = (grid[(2 * line + half) * columns + column] for half in (0, 1))
            for layer, head in np.ndindex(curves["attention"].shape[:2]):
                look = {"linewidth": 1.0, "linestyle": ("-", "--", ":", "-.")[layer % 4]}
                upper.plot(
                    x,
                    np.where(
                        curves["attention"][layer, head] > 1e-12,
                        curves["attention"][layer, head],
                        np.nan,
                    ),
                    color=hex_,
                    **look,
                )
                content = curves["content"][layer, head]
                lower.plot(
                    x, content / np.nanmax(np.abs(content), initial=1e-9), color=hex_, **look
                )
            rotated = np.argwhere(np.isfinite(curves["cosine"][:, :, 0]))
            if len(rotated):
                layer, head = rotated[0]
                lower.plot(x, curves["cosine"][layer, head], color=INK, label="cosine kernel")
                lower.plot(x, curves["bound"][layer, head], color=MUTED, label="RoFormer bound")
                lower.legend(frameon=False, fontsize="small", loc="lower left")
            upper.set_title(study.names[arm], color=hex_)
            upper.set_yscale("log")
            for axes in (upper, lower):
                axes.set_axis_on()
                axes.set_xscale("log")
                axes.axvline(study.train_length + 1, color=LINE, linewidth=1.0)
            lower.set_xlabel("distance + 1 (tokens); red: L")
            if column == 0:
                upper.set_ylabel("mean attention weight")
                lower.set_ylabel("content logit / its largest")
        return figure

    caption = (
        "Every head of one seed an arm in the longest probed context, solid lines for layer 0, dashed for "
        "layer 1; means over narrow bins of distance. Above: mean attention weight, down to 1e-12. Below: measured kernel, the mean content logit "
        "by distance over its largest value, with the mean cosine and RoFormer's bound of the first rotated "
        "head, both relative to distance 0."
    )
    columns = ("arm", "seed", "layer", "head", "distance", "attention", "content", "cosine", "bound")  # fmt: skip
    return Picture("decay_curves", "Decay curves", caption, columns, tuple(records),
                   draw if records else None, tuple(missing))  # fmt: skip
