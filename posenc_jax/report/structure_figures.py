"""Suite P: is RoPE's relative structure kept? Shift error, offset lookup, monotone bias, per arm."""

import re

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from posenc_jax.report import style
from posenc_jax.report.context_figures import dots
from posenc_jax.report.retrieval_overview import heat
from posenc_jax.report.study_view import RunView, StudyView, times
from posenc_jax.report.style import INK, MUTED, SURFACE, Layout, Picture
from posenc_jax.study.decision import Margins

SHIFT_BOUND, LOOKUP_MARGIN = Margins().shift, Margins().lookup
MONOTONE_AT = 16  # P5, in units of L
LOOKUP_AT = (1, 4)
LOWEST = 1e-8  # where a log axis shows an error of zero
_SHIFT = re.compile(r"all shift:(\d+)")
_OFFSET = re.compile(r"distance:(\d+)")


def structure(study: StudyView) -> Picture:
    """P1, P3 and P5 of every arm, with the bounds of the decision rule."""
    records = [record for run in study.runs for record in _of_run(run)]
    have = {(r["arm"], r["metric"]) for r in records}
    measures = ("P1_shift_error", "P3_offset_accuracy", "P5_monotone_share")
    shown = [m for m in measures if any(r["metric"] == m for r in records)]
    missing = [f"{m} was not measured" for m in measures if m not in shown]
    missing += [
        f"{study.names[arm]}: no {m}" for arm in study.arms for m in shown if (arm, m) not in have
    ]

    def draw(layout: Layout) -> Figure:
        return _draw(study, records, shown, layout)

    return Picture(
        "structure",
        "Is the relative structure kept?",
        "P1: the largest change of any logit when the whole row is moved by 1, 7, L or 8L, over the spread of "
        f"the logits; the rule asks for at most {SHIFT_BOUND:g} (line). Hollow: the same where a temperature "
        "takes the moved positions for the number of keys in sight; the rule does not read it. P3: accuracy on the "
        f"token exactly t back, which position alone can find{_guess(study)}, for all t and by t; line: RoPE's mean "
        f"at L less {100 * LOOKUP_MARGIN:g} points, the margin of rule 1. P5: share of heads whose bias never grows with distance up to {MONOTONE_AT}L; the rule asks "
        "for all. An error of exactly zero stands at the left edge. One mark a run, a tick at the mean; maps are means over seeds.",
        ("arm", "seed", "metric", "k", "bucket", "value"),
        tuple(records),
        draw if records else None,
        tuple(missing if records else ["suite P was not measured"]),
    )  # fmt: skip


def _guess(study: StudyView) -> str:
    """What P3 scores without position, where its rows say so."""
    found = [row.chance for run in study.runs for row in run.rows
             if row.metric == "P3_offset_accuracy" and row.chance is not None]  # fmt: skip
    return f" (without it, at most {100 * np.mean(found):.1f} %)" if found else ""


def _of_run(run: RunView) -> list[dict]:
    """The rows of P1, P3 and P5 that are not of single heads; P1 as its largest over shifts too."""
    found = []
    for row in run.rows:
        metric, bucket = row.metric, row.bucket
        wanted = (
            (metric in ("P1_shift_error", "P1_counter_error") and _SHIFT.fullmatch(bucket))
            or (metric == "P3_offset_accuracy" and row.k in LOOKUP_AT)
            or metric == "P5_monotone_share"
        )
        if wanted and row.measured:
            found.append({"arm": run.arm, "seed": run.seed, "metric": metric, "k": row.k,
                          "bucket": bucket, "value": row.value})  # fmt: skip
    for metric in ("P1_shift_error", "P1_counter_error"):
        errors = [r["value"] for r in found if r["metric"] == metric]
        if errors:
            found.append({"arm": run.arm, "seed": run.seed, "metric": metric, "k": 1.0,
                          "bucket": "largest", "value": max(errors)})  # fmt: skip
    return found


def _draw(study: StudyView, records: list[dict], shown: list[str], layout: Layout) -> Figure:
    arms = [arm for arm in study.arms if any(r["arm"] == arm for r in records)]
    panels = [_shift_errors] if "P1_shift_error" in shown else []
    at = sorted({r["k"] for r in records if r["metric"] == "P3_offset_accuracy"})
    if at:
        panels.append(_lookup_dots)
        panels += [lambda *a, k=k: _lookup_map(*a, k) for k in at]
    panels += [_monotone] if "P5_monotone_share" in shown else []
    shape = (len(panels), 1) if layout.narrow else (1, len(panels))
    each = 0.2 if layout.narrow else 0.26
    figure, grid = style.panels(layout, *shape, 1.25 + each * len(arms))
    for axes, panel in zip(grid, panels, strict=True):
        panel(axes, study, records, arms, layout, axes is grid[0] or layout.narrow)
    return figure


def _shift_errors(axes: Axes, study: StudyView, records, arms, layout, named) -> None:
    def largest(metric):
        return [r | {"value": max(r["value"], LOWEST)} for r in records
                if r["metric"] == metric and r["bucket"] == "largest"]  # fmt: skip

    dots(axes, study, largest("P1_shift_error"), arms, named)
    for record in largest("P1_counter_error"):
        look = style.line_style(study.colours[record["arm"]]) | {"linestyle": "none"}
        axes.plot(
            record["value"],
            arms.index(record["arm"]),
            markersize=5,
            markerfacecolor=SURFACE,
            **look,
        )
    axes.axvline(SHIFT_BOUND, color=INK, linewidth=1)
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, SHIFT_BOUND / 100), max(high, SHIFT_BOUND * 10))
    axes.set_title("P1, shift error")
    axes.set_xlabel(f"largest; line {SHIFT_BOUND:g}")


def _lookup_dots(axes: Axes, study: StudyView, records, arms, layout, named) -> None:
    here = [r | {"value": 100 * r["value"]} for r in records
            if r["metric"] == "P3_offset_accuracy" and r["bucket"] == "all" and r["k"] == 1]  # fmt: skip
    dots(axes, study, here, arms, named)
    rope = (
        study.parents[0]
        if study.parents and study.parents[0] == study.roles.get("rope", "rope")
        else None
    )
    reference = [r["value"] for r in here if r["arm"] == rope]
    if reference:
        axes.axvline(float(np.mean(reference)) - 100 * LOOKUP_MARGIN, color=INK, linewidth=1)
    axes.set_xlim(-4, 104)
    axes.set_xticks([0, 50, 100])
    axes.set_title("P3 at L, all t")
    axes.set_xlabel(f"%; line RoPE − {100 * LOOKUP_MARGIN:g}" if reference else "%")


def _lookup_map(axes: Axes, study: StudyView, records, arms, layout, named, k) -> None:
    here = [r for r in records if r["metric"] == "P3_offset_accuracy" and r["k"] == k]
    offsets = sorted({int(m[1]) for r in here if (m := _OFFSET.fullmatch(r["bucket"]))})
    cells: dict[tuple[str, int], list[float]] = {}
    for r in here:
        if match := _OFFSET.fullmatch(r["bucket"]):
            cells.setdefault((r["arm"], int(match[1])), []).append(r["value"])
    values = np.array([[np.mean(cells.get((arm, t), [np.nan])) for t in offsets] for arm in arms])
    heat(
        axes,
        values.reshape(len(arms), -1),
        [study.names[a] for a in arms] if named else None,
        layout,
        0.7,
    )
    axes.set_xticks(np.arange(len(offsets)) + 0.5, [str(t) for t in offsets], rotation=90)
    axes.set_title(f"P3 at {times(k)}, %")
    axes.set_xlabel("t, tokens back")


def _monotone(axes: Axes, study: StudyView, records, arms, layout, named) -> None:
    here = [r | {"value": 100 * r["value"]} for r in records if r["metric"] == "P5_monotone_share"]
    dots(axes, study, here, arms, named)
    axes.set_xlim(-4, 104)
    axes.set_xticks([0, 50, 100])
    axes.axvline(100, color=INK, linewidth=1, zorder=0)
    axes.set_title("P5, monotone")
    axes.set_xlabel("% of heads; line 100")
    axes.xaxis.label.set_color(MUTED)
