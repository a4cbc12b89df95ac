"""What far context is worth: curves with the windowed loss, its gains per arm, repeats, sliding windows."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from posenc_jax.report import style
from posenc_jax.report.line_axes import (
    TOGETHER,
    apart_note,
    arm_panels,
    backdrop,
    band,
    length_axis,
    lines,
    mark_off_scale,
    means_of,
    seeds_note,
)
from posenc_jax.report.study_view import RunView, StudyView, times
from posenc_jax.report.style import INK, MUTED, RULE, SURFACE, Layout, Picture
from posenc_jax.results.schema import FAR, ID, OTHER_PLACE
from posenc_jax.study.decision import Margins

MARGIN = Margins().bpb  # the scale is linear up to it
GAINS = (
    ("context_gain", "E7: 4L of context, not L/2, saves", "bits per byte"),
    ("window_check", "E8: sight of the last L alone costs", "bits per byte"),
    ("Y_R_window", "E8 on Y_R: sight of the last L alone costs", "points of 100"),
    ("repeat_gain", "E6: a repeat 2L to 4L back saves", "bits per byte"),
)


def pictures(study: StudyView) -> list[Picture]:
    """Context curves, what far context saves, repeats by gap, sliding windows, hard tokens."""
    return [
        context_curves(study),
        far_context(study),
        repeat_gain(study),
        *([confounded_repeats(study)] if study.multiples(OTHER_PLACE) else []),
        sliding_windows(study),
        key_tokens(study),
    ]


def values(study: StudyView, *metrics: str) -> tuple[dict, ...]:
    """All finite values of the metrics by run and k, bucket "all"."""
    return tuple(
        {"arm": run.arm, "seed": run.seed, "metric": metric, "k": k}
        | {"length": run.row(metric, k).length, "value": run.value(metric, k)}
        for metric in metrics
        for run in study.runs
        for k in run.multiples(metric)
    )


COLUMNS = ("arm", "seed", "metric", "k", "length", "value")


def context_curves(study: StudyView) -> Picture:
    """E3 by context, a panel per arm, with E8's loss under a window of L beside it at 4L."""
    records = values(study, "bpb_ctx", "bpb_window")
    curves = [r for r in records if r["metric"] == "bpb_ctx"]
    windowed = [r for r in records if r["metric"] == "bpb_window"]
    low, top = _limits(curves, records)
    have = {r["arm"] for r in windowed}
    missing = [
        f"{study.names[a]}: no bpb_window, so no square" for a in study.arms if a not in have
    ]
    if not have:
        missing = ["bpb_window (E8) was not measured, so no square"]

    def draw(layout: Layout) -> Figure:
        arms = [arm for arm in study.arms if any(r["arm"] == arm for r in curves)]
        figure, found = arm_panels(study, arms, layout, height=2.0, columns=4)
        size = 0.86 * layout.font
        for arm, axes in found.items():
            backdrop(axes, study, curves, arm, "length", "value")
            band(axes, study, curves, arm, "length", "value")
            means = {
                x: float(np.mean(v)) for x, v in means_of(curves, arm, "length", "value").items()
            }
            _window_mark(axes, study, windowed, arm, means, top)
            length_axis(axes, study, [r["k"] for r in curves], every=2, within=ID)
            axes.set_ylim(low, top)
            mark_off_scale(axes, means, top, style.colour(study.colours[arm]))
            axes.text(0.98, 0.04, _gains(study, arm), transform=axes.transAxes, fontsize=size,
                      color=MUTED, ha="right")  # fmt: skip
        figure.supxlabel(
            "tokens of context before the same targets", color=MUTED, fontsize=layout.font
        )
        figure.supylabel("bits per byte (E3)", color=MUTED, fontsize=layout.font)
        return figure

    return Picture(
        "context_curves",
        "Who uses far context",
        "E3: the same L/2 targets after more and more context; the line at L/2 is where rows end within L. The hollow square at 4L is the same model when "
        "attention is cut to the last L tokens (E8): an arm whose square lies on its line reads a window, "
        f"whatever its length; one whose square lies above it uses what is further back. In words: what {FAR}L "
        f"of context saves against L/2 (E7), and what the window costs. {seeds_note(study)} Behind in grey the "
        "other arms, the parents dashed. Lines that leave the panel end at the value given.",
        COLUMNS,
        records,
        draw if curves else None,
        tuple(missing),
    )  # fmt: skip


def _limits(curves: list[dict], records: tuple[dict, ...]) -> tuple[float, float]:
    """Limits that show the arms that read text within L, with room for words below; those that break leave."""
    near: dict[str, float] = {}
    for r in curves:
        if r["k"] <= ID:
            near[r["arm"]] = max(r["value"], near.get(r["arm"], r["value"]))
    if not near:
        return 0.0, 1.0
    low, highest = min(r["value"] for r in records), sorted(near.values())
    high = min(highest[-1], low + 4 * (highest[len(highest) // 2] - low) or highest[-1])
    return low - 0.4 * (high - low) - 0.01, high + 0.12 * (high - low) + 0.01


def _window_mark(
    axes: Axes, study: StudyView, windowed: list[dict], arm: str, means: dict, top: float
) -> None:
    colour = style.colour(study.colours[arm])
    for length, found in means_of(windowed, arm, "length", "value").items():
        value = float(np.mean(found))
        if means.get(length, np.inf) < top:
            axes.plot([length] * 2, [means[length], value], color=colour, linewidth=0.9, zorder=3)
        axes.plot([length], [value], marker="s", markersize=6.5, markerfacecolor=SURFACE,
                  markeredgecolor=colour, markeredgewidth=1.4, linestyle="none", zorder=4)  # fmt: skip


def _gains(study: StudyView, arm: str) -> str:
    found = []
    for metric, words in (("context_gain", f"{FAR}L saves"), ("window_check", "window costs")):
        got = [v for run in study.of(arm) if (v := run.value(metric, FAR)) is not None]
        if got:
            found.append(f"{words} {np.mean(got):+.3f}".replace("-", "−"))
    return "\n".join(found).replace("+0.000", "0.000").replace("−0.000", "0.000")


def far_context(study: StudyView) -> Picture:
    """E7, E8 on text and on retrieval, and far E6 of every seed, per arm: what tells use from toleration."""
    records = [
        {"arm": run.arm, "seed": run.seed, "metric": metric, "value": value}
        for run in study.runs
        for metric, *_ in GAINS
        if (value := _gain(run, metric)) is not None
    ]
    shown = [gain for gain in GAINS if any(r["metric"] == gain[0] for r in records)]
    missing = [f"{g[0]} was not measured" for g in GAINS if records and g not in shown]

    def draw(layout: Layout) -> Figure:
        arms = [arm for arm in study.arms if any(r["arm"] == arm for r in records)]
        across = 1 if layout.narrow else min(2, len(shown)) if len(shown) != 3 else 3
        shape = (-(-len(shown) // across), across)
        figure, grid = style.panels(
            layout, *shape, 1.15 + (0.2 if layout.narrow else 0.26) * len(arms)
        )
        for index, (axes, (metric, words, unit)) in enumerate(zip(grid, shown, strict=True)):
            here = [r for r in records if r["metric"] == metric]
            if unit == "points of 100":
                here = [r | {"value": 100 * r["value"]} for r in here]
            dots(axes, study, here, arms, named=index % across == 0)
            if metric in ("context_gain", "window_check"):
                _both_sides(axes, max(abs(r["value"]) for r in here))
            axes.axvline(0, color=INK, linewidth=1)
            axes.set_title(words, weight="normal", color=MUTED)
            axes.set_xlabel(unit)
        return figure

    return Picture(
        "far_context",
        "What far context is worth",
        "One mark a run, a tick at the mean of the arm. E7: bits per byte after L/2 less those after 4L. E8: "
        "how much more the targets cost at 4L when attention is cut to the last L tokens, and how many points "
        "of Y_R at 4L that cut takes away. E6: bits per byte of a span after another order of the same bytes "
        "less after the span itself, mean over gaps of 2L to 4L. Right of zero, the arm "
        f"uses what is further back than L; on zero it only tolerates it. Scales with a left side are logarithmic beyond ±{MARGIN:g}.",
        ("arm", "seed", "metric", "value"),
        tuple(records),
        draw if records else None,
        tuple(missing),
    )


def _gain(run: RunView, metric: str) -> float | None:
    if metric == "repeat_gain":
        found = [run.value(metric, k) for k in run.multiples(metric) if 2 <= k <= FAR]
        return float(np.mean(found)) if found else None
    value = run.value(metric, FAR)
    if metric != "Y_R_window" or value is None:
        return value
    whole = run.value("Y_R", FAR)
    return None if whole is None else whole - value


def _both_sides(axes: Axes, top: float) -> None:
    """Linear up to the margin, logarithmic beyond it on both sides: broken arms are far on the left."""
    axes.set_xscale("symlog", linthresh=MARGIN)
    ticks = [sign * t for t in (MARGIN, 0.1, 2.0) if t <= 2 * top for sign in (-1, 1)]
    axes.set_xticks([0, *ticks], ["0", *(f"{t:g}".replace("-", "−") for t in ticks)])
    axes.minorticks_off()


def dots(axes: Axes, study: StudyView, records: list[dict], arms: list[str], named: bool) -> None:
    """One row per arm, the first on top: a mark per seed, a tick at the mean."""
    for y, arm in enumerate(arms):
        found = [r["value"] for r in records if r["arm"] == arm]
        look = style.line_style(study.colours[arm]) | {"linestyle": "none"}
        axes.plot(found, [y] * len(found), markersize=5, alpha=0.75, **look)
        if found:
            axes.plot([float(np.mean(found))], [y], marker="|", markersize=12, color=INK)
    axes.set_yticks(range(len(arms)), [study.names[arm] if named else "" for arm in arms])
    axes.set_ylim(len(arms) - 0.4, -0.6)
    axes.grid(True, axis="y", color=RULE)


def repeat_gain(study: StudyView) -> Picture:
    """E6 by gap."""
    records = values(study, "repeat_gain")
    caption = (
        "E6: bits per byte of a 64-byte span after another order of the same bytes, less after the span itself, "
        "this many tokens back. Zero: the repeat helps no more."
    )
    return _by_length(study, "repeat_gain", "A repeated span, by its gap", caption, records, "gap (tokens)",
                      "bits per byte saved", zero=True)  # fmt: skip


def confounded_repeats(study: StudyView) -> Picture:
    """E6 of version 1, by gap."""
    records = values(study, OTHER_PLACE)
    caption = (
        "E6 as version 1 of the definitions had it: bits per byte of a span of 64 bytes, less those of the same "
        "span inserted again this many tokens later. The second place is not the first, so place and repetition "
        "are confounded: this tells nothing about the use of the repeat alone."
    )
    return _by_length(study, OTHER_PLACE, "A repeated span at another place (version 1)", caption, records,
                      "gap (tokens)", "bits per byte", zero=True)  # fmt: skip


def sliding_windows(study: StudyView) -> Picture:
    """E9, with E2 in the table: how much of E1 is the price of early tokens."""
    records = values(study, "early_token_curse", "bpb_sliding")
    caption = (
        "E9: bits per byte of disjoint segments of kL (E1) less those of windows of kL that slide by L/4 (E2), "
        "on the same tokens: what the missing context of a segment's first tokens costs. The table holds E2 too."
    )
    return _by_length(study, "early_token_curse", "The early-token curse", caption, records,
                      "segment length (tokens)", "bits per byte", zero=True)  # fmt: skip


def key_tokens(study: StudyView) -> Picture:
    """E5 by context."""
    records = values(study, "bpb_key")
    caption = (
        "E5: bits per byte of those targets that a reference run found to need context further back than L, "
        "by the context before them; the line at L/2 is where rows end within L."
    )
    return _by_length(study, "bpb_key", "Tokens that need far context", caption, records,
                      "tokens of context", "bits per byte (E5)", zero=False)  # fmt: skip


def _by_length(study, metric, title, caption, records, xlabel, ylabel, zero) -> Picture:
    here = [r for r in records if r["metric"] == metric]
    have = {r["arm"] for r in here}
    missing = [f"{study.names[arm]}: {metric} was not measured" for arm in study.arms if have and arm not in have]  # fmt: skip
    ks = sorted({r["k"] for r in here})

    ceiling = 1.15 * max([r["value"] for r in here] + [0.02])
    lowest = 1.15 * min([r["value"] for r in here] + [-0.1 * ceiling])
    floor = max(lowest, -2 * ceiling) if zero else lowest
    gone = " Lines that leave at the bottom are in the table whole." if floor > lowest else ""

    def draw(layout: Layout) -> Figure:
        def dress(axes):
            length_axis(
                axes, study, ks, every=2 if len(study.arms) > TOGETHER and len(ks) > 4 else 1,
                within=ID if metric == "bpb_key" else 1,
            )  # fmt: skip
            if zero:
                axes.set_ylim(floor, ceiling)
                axes.axhline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))

        return lines(study, here, "length", "value", layout, dress, (xlabel, ylabel))

    notes = f" At {', '.join(times(k) for k in ks)}. {seeds_note(study)}{apart_note(study)}{gone}"
    return Picture(metric, title, caption + notes, COLUMNS, records, draw if here else None, tuple(missing))  # fmt: skip
