"""Pictures of the probes: attention by distance, head atlas, margin budget, decay curves."""

import json
import re

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from posenc_jax.report import style
from posenc_jax.report.maps import LINE
from posenc_jax.report.rows import Run, Study, task_name
from posenc_jax.report.style import INK, MUTED, Layout, Picture

_HEAD = re.compile(r"head:(\d+)\.(\d+)(?: (.*))?$")
NONE = 0.5  # where a log axis in tokens shows "no distance at all"
FLAT = 2.0**-12  # where a log axis of slopes shows a head without one


def pictures(study: Study) -> list[Picture]:
    """The pictures of suite M; an empty list where no run was probed."""
    if not any(row.get("suite") == "M" for run in study.runs for row in run.rows):
        return []
    return [attention_distance(study), head_atlas(study), margin_budget(study), decay_curves(study)]


def _of_heads(run: Run, metric: str) -> list[dict]:
    """The metric's rows of single heads: layer, head, rest of the bucket, k, value."""
    found = []
    for row in run.rows:
        at = _HEAD.match(row["bucket"]) if row["metric"] == metric else None
        if at and row["value"] is not None:
            found.append({"layer": int(at[1]), "head": int(at[2]), "of": at[3] or "",
                          "k": row["k"], "value": row["value"]})  # fmt: skip
    return found


def _first_probed(study: Study, metric: str) -> tuple[dict[str, Run], list[str]]:
    """By arm its first run with such rows; sentences about arms without."""
    runs, missing = {}, []
    for arm in study.arms:
        probed = [run for run in study.of(arm) if _of_heads(run, metric)]
        if probed:
            runs[arm] = probed[0]
        else:
            missing.append(f"{study.names[arm]}: {metric} was not measured")
    return runs, missing


def _grid(layout: Layout, count: int, height: float, rows: int = 1):
    columns = 1 if layout.narrow else min(count, 3)
    lines = -(-count // columns) * rows
    figure, grid = style.panels(layout, lines, columns, height)
    for axes in grid[count * rows :]:
        style.blank(axes)
    return figure, grid, columns


def attention_distance(study: Study) -> Picture:
    """M1: where the weight of every head lies, by octave of distance, in the longest context."""
    runs, missing = _first_probed(study, "M1_distance")
    records = []
    for arm, run in runs.items():
        rows = _of_heads(run, "M1_distance")
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


def head_atlas(study: Study) -> Picture:
    """M9 against slope and rotation: which heads hold needles."""
    runs, missing = _first_probed(study, "M9_mass")
    records = []
    for arm in runs:
        for run in study.of(arm):
            path = run.folder / "evaluation" / "arrays" / "scheme.json"
            rows = _of_heads(run, "M9_mass")
            if not rows or not path.exists():
                missing.append(f"{study.names[arm]}, seed {run.seed}: no M9 rows or no scheme.json")
                continue
            parts = {(h["layer"], h["head"]): h for h in json.loads(path.read_text())["heads"]}
            longest = max(r["k"] for r in rows)
            for r in rows:
                if r["k"] == longest:
                    part = parts[r["layer"], r["head"]]
                    records.append({"arm": arm, "seed": run.seed, "k": longest, "task": r["of"],
                                    "layer": r["layer"], "head": r["head"], "slope": part["slope"] or 0.0,
                                    "rotates": part["rotates"], "mass": r["value"]})  # fmt: skip

    def draw(layout: Layout) -> Figure:
        tasks = sorted({r["task"] for r in records})
        figure, grid, _ = _grid(layout, len(tasks), 3.6)
        top = max(r["mass"] for r in records)
        lowest = min([FLAT, *(r["slope"] / 4 for r in records if r["slope"] > 0)])
        for axes, task in zip(grid, tasks, strict=False):
            for r in records:
                if r["task"] == task:
                    # Heads of one slope stand beside each other, by arm, and not on each other.
                    order = study.arms.index(r["arm"]) - (len(study.arms) - 1) / 2
                    hex_ = style.colour(study.colours[r["arm"]])
                    x = max(r["slope"], lowest) * 1.07**order
                    axes.plot(x, r["mass"], "o" if r["rotates"] else "s", color=hex_, markersize=6,
                              markerfacecolor=hex_ if r["rotates"] else "none", alpha=0.85)  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(
                FuncFormatter(lambda x, _: "flat" if x <= lowest * 1.01 else f"{x:.3g}")
            )
            axes.set_xticks([lowest, *(2.0**-e for e in (8, 6, 4, 2, 0) if 2.0**-e > lowest * 2)])
            axes.set_ylim(-0.03 * top, 1.06 * top)
            axes.set_title(task_name(task))
            axes.set_xlabel("slope: nats lost over the first token")
            axes.set_ylabel("weight on the needle's token")
        key = [Line2D([], [], marker="o", linestyle="", color=style.colour(study.colours[a]),
                      label=study.names[a]) for a in runs]  # fmt: skip
        key += [
            Line2D([], [], marker="o", linestyle="", color=INK, label="rotates"),
            Line2D([], [], marker="s", linestyle="", color=INK, markerfacecolor="none", label="does not"),
        ]  # fmt: skip
        figure.legend(handles=key, loc="outside lower center", ncols=3 if layout.narrow else 7, frameon=False)  # fmt: skip
        return figure

    caption = (
        "M9: each mark is one head of one seed; mean weight that the position predicting an answer "
        "token puts on that token in the needle, in the longest context with needles."
    )
    columns = ("arm", "seed", "k", "task", "layer", "head", "slope", "rotates", "mass")
    return Picture("head_atlas", "Head atlas: slope, rotation, retrieval", caption, columns,
                   tuple(records), draw if records else None, tuple(missing))  # fmt: skip


def margin_budget(study: Study) -> Picture:
    """M10: predicted against measured reach of every head."""
    runs, missing = _first_probed(study, "M10_predicted_reach")
    records = []
    for arm in runs:
        for run in study.of(arm):
            by = {
                name: {(r["layer"], r["head"], r["of"], r["k"]): r["value"] for r in _of_heads(run, f"M10_{name}")}
                for name in ("predicted_reach", "measured_reach", "margin", "agreement")
            }  # fmt: skip
            longest = max((at[3] for at in by["margin"]), default=None)
            for at in by["margin"]:
                if at[3] == longest:
                    records.append({"arm": arm, "seed": run.seed, "k": at[3], "task": at[2],
                                    "layer": at[0], "head": at[1]} | {n: by[n][at] for n in by})  # fmt: skip

    def draw(layout: Layout) -> Figure:
        tasks = sorted({r["task"] for r in records})
        figure, grid, _ = _grid(layout, len(tasks), 3.8)
        top = max(max(r["k"] for r in records) * study.train_length, study.train_length) * 1.5
        for axes, task in zip(grid, tasks, strict=False):
            axes.plot([NONE, top], [NONE, top], color=MUTED, linewidth=0.8, linestyle="--")
            axes.axvline(study.train_length, color=LINE, linewidth=0.8)
            axes.axhline(study.train_length, color=LINE, linewidth=0.8)
            for r in records:
                if r["task"] == task:
                    hex_ = style.colour(study.colours[r["arm"]])
                    x, y = (max(r[n], NONE) for n in ("predicted_reach", "measured_reach"))
                    axes.plot(x, y, "o", color=hex_, markersize=5, alpha=0.7)
            for which in ("x", "y"):
                getattr(axes, f"set_{which}scale")("log", base=2)
                getattr(axes, f"set_{which}lim")(NONE / 1.4, top)
                getattr(axes, f"{which}axis").set_major_formatter(
                    FuncFormatter(lambda x, _: "none" if x <= NONE else f"{x:g}")
                )
            axes.set_title(task_name(task))
            axes.set_xlabel("predicted d*: bias and content margin (tokens)")
            axes.set_ylabel("farthest needle at weight 1/2 (tokens)")
        key = [Line2D([], [], marker="o", linestyle="", color=style.colour(study.colours[a]),
                      label=study.names[a]) for a in runs]  # fmt: skip
        figure.legend(handles=key, loc="outside lower center", ncols=2 if layout.narrow else 6, frameon=False)  # fmt: skip
        return figure

    caption = (
        "M10: each mark is one head of one seed. d* is the median over needles of the largest distance "
        "at which a key of that content margin keeps weight 1/2 under the head's own bias; dashed: equal; "
        f"red: L = {study.train_length}. Marks at 'none' hold no needle."
    )
    columns = ("arm", "seed", "k", "task", "layer", "head", "predicted_reach", "measured_reach", "margin", "agreement")  # fmt: skip
    return Picture("margin_budget", "Margin budget", caption, columns, tuple(records),
                   draw if records else None, tuple(missing))  # fmt: skip


def decay_curves(study: Study) -> Picture:
    """M6, M1: attention and content by distance, with the cosine kernel and RoFormer's bound."""
    records, arms, missing = [], {}, []
    for arm in study.arms:
        found = [(p, run) for run in study.of(arm) for p in
                 sorted((run.folder / "evaluation" / "arrays").glob("probes_*.npz"),
                        key=lambda p: int(p.stem.split("_")[1]))[-1:]]  # fmt: skip
        if not found:
            missing.append(f"{study.names[arm]}: no probes were run")
            continue
        path, run = found[0]
        with np.load(path, allow_pickle=False) as arrays:
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
