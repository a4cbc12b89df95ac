"""Figure of relative structure (suite P): shift error, offset lookup, monotone bias."""

import re

import numpy as np
from matplotlib.axes import Axes

from posenc_jax.report import marks, style
from posenc_jax.report.figure import Figure, Table, panels_of
from posenc_jax.report.study_view import StudyView, times
from posenc_jax.report.style import INK, SURFACE
from posenc_jax.results.study_data import RunData
from posenc_jax.study.decision import Margins

SHIFT_BOUND, LOOKUP_MARGIN = Margins().shift, 100 * Margins().lookup
MONOTONE_AT, LOOKUP_AT = 16, (1, 4)  # in units of L
LOWEST = 1e-8  # where a log axis shows an error of zero
SHIFT, COUNTER = "P1_shift_error", "P1_counter_error"
LOOKUP, MONOTONE = "P3_offset_accuracy", "P5_monotone_share"


def structure(study: StudyView) -> Figure:
    """P1, P3 and P5 of every arm, with the bounds of the decision rule."""
    rows = Table(row for run in study.runs for row in _of_run(run))
    missing = [] if rows else ["suite P was not measured"]
    for metric in (SHIFT, LOOKUP, MONOTONE):
        missing += study.without(rows.where(metric=metric), f"no {metric}") if rows else []
    arms = study.arms_of(rows)
    percents = Table(row | {"value": 100 * row["value"]} for row in rows)

    def shift_errors(axes: Axes) -> None:
        largest = Table(
            row | {"value": max(row["value"], LOWEST)} for row in rows.where(bucket="largest")
        )
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
        found = {
            b: m[1] for b in here.distinct("bucket") if (m := re.fullmatch(r"distance:(\d+)", b))
        }
        found = dict(sorted(found.items(), key=lambda item: int(item[1])))
        names = [study.names[arm] for arm in arms]
        marks.heat(
            axes, here.matrix("arm", arms, "bucket", found, "value"), names, [""] * len(found)
        )
        axes.set_xticks(np.arange(len(found)) + 0.5, list(found.values()), rotation=90)
        axes.set(title=f"P3 at {times(k)}, %", xlabel="t, tokens back")

    def monotone(axes: Axes) -> None:
        found = percents.where(metric=MONOTONE)
        share(axes, found, 100, "P5, monotone", "% of heads; line 100")

    draws = [(shift_errors,)] * bool(rows.where(metric=SHIFT))
    if ks := rows.where(metric=LOOKUP).distinct("k"):
        draws += [(lookup,), *((lookup_map, k) for k in ks)]
    draws += [(monotone,)] * bool(rows.where(metric=MONOTONE))
    chances = [row.chance for run in study.runs for row in run.rows if row.metric == LOOKUP]
    known = [chance for chance in chances if chance is not None]
    guess = f" (without position: at most {100 * np.mean(known):.1f} %)" if known else ""
    caption = (
        "P1: the largest change of any logit when the whole row moves by 1, 7, L or 8L, over the "
        f"spread of the logits; the rule asks for at most {SHIFT_BOUND:g} (line); an error of "
        "zero stands at the left edge. Hollow: an arm whose temperature counts the keys in sight; "
        "the rule does not read it. P3: accuracy on the token exactly t back, which needs "
        f"position{guess}, for all t and by t; the line is RoPE's mean at L less "
        f"{LOOKUP_MARGIN:g} points, the margin of rule 1. P5: share of heads whose bias never "
        f"grows with distance up to {MONOTONE_AT}L; the rule asks for all. One mark a run, a tick "
        "at the mean; maps are means over seeds."
    )
    panels = panels_of(lambda axes, draw, *k: draw(axes, *k), draws, 0.9 + 0.26 * len(arms))
    title = "Is the relative structure kept?"
    return Figure("structure", title, caption, rows, panels, 3, missing=missing)


def _of_run(run: RunData) -> list[dict]:
    """The rows of P1, P3 and P5 that are not of single heads, and the largest error over shifts."""
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
