"""Figures of relative structure (suite P) and of long-text classification (suite C)."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from posenc_jax.report import marks, style
from posenc_jax.report.figure import Figure, Table, panels_of
from posenc_jax.report.markup import captioned
from posenc_jax.report.study_view import StudyView, times
from posenc_jax.report.style import INK, MUTED, SURFACE
from posenc_jax.results.study_data import RunData
from posenc_jax.study.decision import Margins

SHIFT_BOUND, LOOKUP_MARGIN = Margins().shift, 100 * Margins().lookup
MONOTONE_AT, LOOKUP_AT = 16, (1, 4)  # in units of L
LOWEST = 1e-8  # where a log axis shows an error of zero
SHIFT, COUNTER = "P1_shift_error", "P1_counter_error"
LOOKUP, MONOTONE = "P3_offset_accuracy", "P5_monotone_share"
LONGTEXT = ("longtext_corrected", "longtext_cut_corrected", "longtext_bag_corrected")
BAG = {"color": INK, "linewidth": 1.1, "linestyle": (0, (6, 2, 1, 2)), "zorder": 1.6}


def structure(study: StudyView) -> Figure:
    """P1, P3 and P5 of every arm, with the bounds of the decision rule."""
    rows = Table(row for run in study.runs for row in _of_run(run))
    missing = [] if rows else ["suite P was not measured"]
    for metric in (SHIFT, LOOKUP, MONOTONE):
        missing += study.without(rows.where(metric=metric), f"no {metric}") if rows else []
    arms = study.arms_of(rows)
    percents = Table(row | {"value": 100 * row["value"]} for row in rows)

    def shift_errors(axes: Axes) -> None:
        here = rows.where(bucket="largest")
        largest = Table(row | {"value": max(row["value"], LOWEST)} for row in here)
        marks.dots(axes, study, largest.where(metric=SHIFT), arms)
        for row in largest.where(metric=COUNTER):
            look = style.line_style(study.colours[row["arm"]]) | {"linestyle": "none"}
            at = row["value"], arms.index(row["arm"])
            axes.plot(*at, markersize=5, markerfacecolor=SURFACE, **look)
        axes.axvline(SHIFT_BOUND, color=INK, linewidth=1)
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, SHIFT_BOUND / 100), max(high, SHIFT_BOUND * 10))
        axes.set(title="P1, shift error", xlabel=f"largest; line {SHIFT_BOUND:g}")

    def share(axes: Axes, found: Table, bound: float | None, title: str, xlabel: str) -> None:
        marks.dots(axes, study, found, arms)
        if bound is not None:
            axes.axvline(bound, color=INK, linewidth=1, zorder=0)
        axes.set(xlim=(-4, 104), xticks=[0, 50, 100], title=title, xlabel=xlabel)

    def lookup(axes: Axes) -> None:
        found = percents.where(metric=LOOKUP, bucket="all", k=1)
        rope = found.where(arm=study.roles.get("rope", "rope")).column("value")
        bound = float(np.mean(rope)) - LOOKUP_MARGIN if rope else None
        words = f"%; line RoPE − {LOOKUP_MARGIN:g}" if rope else "%"
        share(axes, found, bound, "P3 at L, all t", words)

    def lookup_map(axes: Axes, k: float) -> None:
        here = rows.where(metric=LOOKUP, k=k)
        buckets = {int(b.partition(":")[2]): b for b in here.distinct("bucket") if ":" in b}
        shown, names = sorted(buckets), [study.names[arm] for arm in arms]
        values = here.matrix("arm", arms, "bucket", [buckets[t] for t in shown], "value")
        marks.heat(axes, values, names, [""] * len(shown))
        axes.set_xticks(np.arange(len(shown)) + 0.5, shown, rotation=90)
        axes.set(title=f"P3 at {times(k)}, %", xlabel="t, tokens back")

    draws: list[tuple] = [(shift_errors,)] * bool(rows.where(metric=SHIFT))
    if ks := rows.where(metric=LOOKUP).distinct("k"):
        draws += [(lookup,), *[(lookup_map, k) for k in ks]]
    if monotone := percents.where(metric=MONOTONE):
        draws += [(share, monotone, 100, "P5, monotone", "% of heads; line 100")]
    lookups = [row for run in study.runs for row in run.rows if row.metric == LOOKUP]
    known = [row.chance for row in lookups if row.chance is not None]
    guess = f" (without position: at most {100 * np.mean(known):.1f} %)" if known else ""
    panels = panels_of(lambda axes, draw, *k: draw(axes, *k), draws, 0.9 + 0.26 * len(arms))
    bounds = {"shift": SHIFT_BOUND, "lookup": LOOKUP_MARGIN, "monotone": MONOTONE_AT}
    words = captioned("structure", guess=guess, **bounds)
    return Figure(rows=rows, panels=panels, columns=3, missing=missing, **words)


def _of_run(run: RunData) -> list[dict]:
    found = Table()
    for row in run.rows:
        shifted = row.metric in (SHIFT, COUNTER) and row.bucket.startswith("all shift:")
        looked_up = row.metric == LOOKUP and row.k in LOOKUP_AT
        if row.measured and (shifted or looked_up or row.metric == MONOTONE):
            where = {"metric": row.metric, "k": row.k, "bucket": row.bucket}
            found.append(run.key | where | {"value": row.value})
    for metric in (SHIFT, COUNTER):
        if errors := found.where(metric=metric).column("value"):
            where = {"metric": metric, "k": 1.0, "bucket": "largest"}
            found.append(run.key | where | {"value": max(errors)})
    return found


def classification(study: StudyView) -> Figure:
    """Accuracy above chance by length of the document, beside a bag of ids."""
    stored = {row.bucket: row.k for run in study.runs for row in run.rows if row.metric in LONGTEXT}
    buckets = sorted(stored, key=lambda b: (b == "all", b.startswith("length:>"), stored[b]))
    ticks = [b.removeprefix("length:").replace("<=", "≤ ").replace(">", "> ") for b in buckets]
    ticks = [tick.replace("-", "–") for tick in ticks]
    rows = Table(
        run.key | {"metric": metric, "bucket": b, "k": row.k, "value": row.value, "n": row.n}
        for run in study.runs
        for metric in LONGTEXT
        for b in buckets
        if (row := run.row(metric, stored[b], b))
    )
    missing = [] if rows else ["suite C was not measured: this study has no classifiers"]
    for b, tick in zip(buckets, ticks, strict=True):
        have = rows.where(metric=LONGTEXT[0], bucket=b)
        missing += study.without(have, f"nothing for documents of {tick}")
    points = Table(r | {"x": buckets.index(r["bucket"]), "y": 100 * r["value"]} for r in rows)
    whole, cut, bag = (points.where(metric=metric) for metric in LONGTEXT)
    lines, short = (Table(r for r in part if r["bucket"] != "all") for part in (whole, cut))

    def draw_arm(axes: Axes, arm: str) -> None:
        thin = {"marker": "", "linewidth": 1.0, "linestyle": marks.DOTTED}
        marks.band(axes, study, lines, arm, "x", "y")
        marks.band(axes, study, short, arm, "x", "y", **thin)
        marks.band(axes, study, whole.where(bucket="all"), arm, "x", "y")

    def dress(axes: Axes) -> None:
        # The bag of ids is the same for every arm: it depends on the documents alone.
        levels = {x: np.mean(found) for x, found in bag.grouped("x", "y").items()}
        xs = [x for x in levels if buckets[x] != "all"]
        axes.plot(xs, [levels[x] for x in xs], **BAG)
        for x in set(levels) - set(xs):
            axes.plot([x - 0.2, x + 0.2], [levels[x]] * 2, **BAG)
        axes.axhline(0, color=MUTED, linewidth=0.8)
        turned = 90 if len(study.arms) > marks.TOGETHER else 0
        axes.set_xticks(range(len(buckets)), ticks, rotation=turned)
        axes.set_xlim(-0.3, len(buckets) - 0.7)
        axes.set_ylim(min(0, *points.column("y")) - 4, max(points.column("y")) + 4)
        axes.yaxis.set_major_formatter(marks.PERCENT)

    more = [Line2D([], [], label="bag of ids", **BAG)]
    made = marks.line_panels(study, lines, "x", "y", dress, draw_arm, more)
    words = captioned("longtext", seeds=marks.seeds_note(study))
    return Figure(rows=rows, missing=missing, **words, **made)
