"""Figures of text loss: by length and context, worth of far context, by position."""

import numpy as np
from matplotlib.axes import Axes

from posenc_jax.report import marks, style
from posenc_jax.report.figure import Figure, Subplot, Table, panels_of
from posenc_jax.report.study_view import StudyView, times
from posenc_jax.report.style import INK, MUTED, SURFACE
from posenc_jax.results.schema import BPB, FAR, ID, OTHER_PLACE
from posenc_jax.results.study_data import RunData
from posenc_jax.study.decision import Margins

SEGMENTS = "bpb_nonoverlap"
MARGIN = Margins().bpb  # the scale of gains is linear up to it
BITS = "bits per byte"
GAINS = (
    ("context_gain", f"E7: {FAR}L of context saves, against L/2", BITS),
    ("window_check", "E8: a window of L costs", BITS),
    ("Y_R_window", "E8: a window of L costs on Y_R", "points of 100"),
    ("repeat_gain", f"E6: a repeat 2L to {FAR}L back saves", BITS),
)
BY_LENGTH = {  # metric: title, horizontal axis, caption
    "repeat_gain": ("A repeated span, by its gap", "gap (tokens)",
        "E6: bits per byte of a 64-byte span after another order of its bytes, less those after "
        "the span itself, by the number of tokens between. At zero the repeat does not help."),
    OTHER_PLACE: ("A repeated span at another place (version 1)", "gap (tokens)",
        "E6 of version 1: bits per byte of a 64-byte span, less those of the same span inserted "
        "again later. Its two places differ, so place and repetition are confounded."),
    "early_token_curse": ("The early-token curse", "segment length (tokens)",
        "E9: bits per byte of disjoint segments of kL (E1) less those of windows of kL that slide "
        "by L/4 (E2, in the CSV too), on the same tokens: the cost of the short context of early "
        "tokens."),
    "bpb_key": ("Tokens that need far context", "context (tokens)",
        "E5: bits per byte of the targets for which a reference run needed context beyond L, by "
        "the context before them. The line at L/2 marks where rows end within L."),
}  # fmt: skip


def text_figures(study: StudyView) -> list[Figure]:
    """Returns the figures of suite E."""
    repeats = [by_length(study, OTHER_PLACE)] if study.multiples(OTHER_PLACE) else []
    return [
        bpb_against_length(study),
        context_curves(study),
        far_context(study),
        by_length(study, "repeat_gain"),
        *repeats,
        by_length(study, "early_token_curse", "bpb_sliding"),
        by_length(study, "bpb_key"),
        nll_by_position(study),
    ]


def bpb_against_length(study: StudyView) -> Figure:
    """Bits per byte against context (E3) and against segment length (E1)."""
    rows = study.table(BPB, SEGMENTS)
    of = {BPB: rows.where(metric=BPB), SEGMENTS: rows.where(metric=SEGMENTS)}
    missing = [f"{metric} was not measured" for metric in of if not of[metric]]
    if study.unigram is None:
        missing.append("no single unigram level: run.json files hold none, or different ones")
    lowest, highest = (f(rows.column("value"), default=0.0) for f in (min, max))
    top = max(highest, study.unigram or 0.0)

    def draw_arm(axes: Axes, arm: str) -> None:
        marks.band(axes, study, of[BPB], arm, "length", "value")
        means = of[SEGMENTS].where(arm=arm).grouped("length", "value")
        look = {"color": style.colour(study.colours[arm]), "linewidth": 1.1}
        values = [np.mean(found) for found in means.values()]
        axes.plot(list(means), values, linestyle=marks.DOTTED, **look)

    def dress(axes: Axes) -> None:
        pad = 0.06 * (top - lowest) or 0.01
        axes.set_ylim(lowest - pad, top + pad)
        for metric, within in ((BPB, ID), (SEGMENTS, 1)):
            if of[metric]:
                marks.length_axis(axes, study, rows.column("k"), 2, within)
        if study.unigram is not None:
            axes.axhline(study.unigram, color=MUTED, linewidth=0.8, linestyle=marks.DASHED)
            where = {"va": "bottom", "annotation_clip": True}
            marks.note(axes, "unigram", (0, study.unigram), (2, 2), **where)

    made = marks.line_panels(study, of[BPB] or of[SEGMENTS], "length", "value", dress, draw_arm)
    near = [row["value"] for row in of[BPB] if row["k"] <= ID]
    if len(study.arms) <= marks.TOGETHER and near and highest > 2.5 * max(near) - 1.5 * lowest:

        def close_up(axes: Axes) -> None:
            made["panels"][0].draw(axes)
            pad = 0.08 * (max(near) - lowest) or 0.01
            axes.set_ylim(lowest - pad, max(near) + pad)
            axes.set_title("close up, without the lines that break", color=MUTED)

        made |= {"panels": [*made["panels"], Subplot(close_up, 3.2)], "across": 2}
    caption = (
        "E3 (bpb_ctx, thick) scores the same targets for every arm and changes only the context "
        "before them. E1 (bpb_nonoverlap, dotted) cuts the text into disjoint segments, as the "
        "ALiBi paper does. Vertical lines mark where rows end within the training length L = "
        f"{study.train_length}: at L/2 for E3 (at c = L its targets lie at positions L to 1.5 L), "
        f"at L for E1. {marks.seeds_note(study)}"
    )
    labels, title = ("context or segment length (tokens)", BITS), "Bits per byte against length"
    name = "bpb_against_length"
    return Figure(name, title, caption, rows, labels=labels, missing=missing, **made)


def context_curves(study: StudyView) -> Figure:
    """E3 by context, a panel per arm, with E8's loss under a window of L beside it at 4L."""
    rows = study.table(BPB, "bpb_window")
    curves, windowed = rows.where(metric=BPB), rows.where(metric="bpb_window")
    missing = study.without(windowed, "no bpb_window, so no square")
    if not windowed:
        missing = ["bpb_window (E8) was not measured, so no square"]
    low, top = _limits(curves, rows)

    def draw_arm(axes: Axes, arm: str) -> None:
        colour = style.colour(study.colours[arm])
        marks.band(axes, study, curves, arm, "length", "value")
        found = curves.where(arm=arm).grouped("length", "value")
        means = {length: np.mean(values) for length, values in found.items()}
        for length, values in windowed.where(arm=arm).grouped("length", "value").items():
            if means.get(length, np.inf) < top:
                line = [means[length], float(np.mean(values))]
                axes.plot([length] * 2, line, color=colour, linewidth=0.9)
            look = {"marker": "s", "markersize": 6.5, "markerfacecolor": SURFACE, "zorder": 4}
            axes.plot([length], [float(np.mean(values))], color=colour, **look)
        last = list(means.values())[-1]
        place = {"transform": axes.transAxes, "ha": "right"}
        if last > top:
            axes.text(0.98, 0.98, f"to {last:.2f} ↑", color=colour, va="top", **place)
        small = {"fontsize": 0.86 * style.FONT, "color": MUTED}
        axes.text(0.98, 0.04, _gains(study, arm), **small, **place)

    def dress(axes: Axes) -> None:
        marks.length_axis(axes, study, curves.column("k"), 2, ID)
        axes.set_ylim(low, top)

    caption = (
        "E3: the same targets after more and more context; the line at L/2 marks where rows end "
        f"within L. The hollow square at {FAR}L is the loss when attention sees only the last L "
        "tokens (E8). On the line it means that the arm does not use what is further back; above "
        f"the line, that it does. The words give what {FAR}L of context saves against L/2 (E7) "
        f"and what the window costs (E8). {marks.seeds_note(study)} A line that leaves its panel "
        "ends at the value given."
    )
    made = marks.line_panels(study, curves, "length", "value", dress, draw_arm, apart=True)
    labels, rows = (
        ("context before the same targets (tokens)", f"{BITS} (E3)"),
        rows if curves else (),
    )
    title = "Who uses far context"
    return Figure("context_curves", title, caption, rows, labels=labels, missing=missing, **made)


def _limits(curves: Table, rows: Table) -> tuple[float, float]:
    """Limits that show the arms that read text within L, with room for words below them."""
    near = Table(row for row in curves if row["k"] <= ID)
    highest = sorted(max(values) for values in near.grouped("arm", "value").values())
    if not highest:
        return 0.0, 1.0
    low = min(rows.column("value"))
    high = min(highest[-1], low + 4 * (highest[len(highest) // 2] - low) or highest[-1])
    return low - 0.4 * (high - low) - 0.01, high + 0.12 * (high - low) + 0.01


def _gains(study: StudyView, arm: str) -> str:
    found = []
    for metric, words in (("context_gain", f"{FAR}L saves"), ("window_check", "window costs")):
        got = [v for run in study.of(arm) if (v := run.value(metric, FAR)) is not None]
        if got:
            found.append(f"{words} {marks.minus(f'{np.mean(got):+.3f}')}")
    return "\n".join(found).replace("+0.000", "0.000").replace("−0.000", "0.000")


def far_context(study: StudyView) -> Figure:
    """E7, E8 on text and on retrieval, and far E6 of every seed, per arm."""
    rows = Table(
        run.key | {"metric": metric, "value": value}
        for run in study.runs
        for metric, *_ in GAINS
        if (value := _gain(run, metric)) is not None
    )
    shown = [gain for gain in GAINS if rows.where(metric=gain[0])]
    missing = [f"{gain[0]} was not measured" for gain in GAINS if rows and gain not in shown]
    arms = study.arms_of(rows)

    def draw(axes: Axes, metric: str, words: str, unit: str) -> None:
        here, scale = rows.where(metric=metric), 1 if unit == BITS else 100
        here = Table(row | {"value": scale * row["value"]} for row in here)
        marks.dots(axes, study, here, arms)
        if metric in ("context_gain", "window_check"):  # broken arms lie far on the left
            top = 2 * max(map(abs, here.column("value")))
            ticks = [sign * t for t in (MARGIN, 0.1, 2.0) if t <= top for sign in (-1, 1)]
            axes.set_xscale("symlog", linthresh=MARGIN)
            axes.set_xticks([0, *ticks], ["0", *(marks.minus(f"{t:g}") for t in ticks)])
            axes.minorticks_off()
        axes.axvline(0, color=INK, linewidth=1)
        axes.set(title=words, xlabel=unit)

    caption = (
        "One mark a run, a tick at the arm's mean. E7: bits per byte after L/2 less those after "
        f"{FAR}L. E8: how much more the targets cost at {FAR}L when attention sees only the last "
        "L tokens, and the points of Y_R lost then. E6: bits per byte saved by a repeat, mean "
        f"over gaps of 2L to {FAR}L. Right of zero the arm uses what is further back than L; on "
        f"zero it does not. Scales with a left side are logarithmic beyond ±{MARGIN:g}."
    )
    panels, title = panels_of(draw, shown, 0.7 + 0.26 * len(arms)), "What far context is worth"
    return Figure("far_context", title, caption, rows, panels, 2, missing=missing)


def _gain(run: RunData, metric: str) -> float | None:
    if metric == "repeat_gain":
        found = [run.value(metric, k) for k in run.multiples(metric) if 2 <= k <= FAR]
        return float(np.mean(found)) if found else None
    value = run.value(metric, FAR)
    if metric != "Y_R_window" or value is None:
        return value
    whole = run.value("Y_R", FAR)
    return None if whole is None else whole - value


def by_length(study: StudyView, metric: str, *beside: str) -> Figure:
    """A metric of BY_LENGTH by length or gap; the rows of `beside` are in the table alone."""
    title, xlabel, caption = BY_LENGTH[metric]
    rows = study.table(metric, *beside)
    here = rows.where(metric=metric)
    missing, ks = study.without(here, f"{metric} was not measured"), here.distinct("k")
    ceiling = 1.15 * max([0.02, *here.column("value")])
    lowest = 1.15 * min([-0.1 * ceiling, *here.column("value")])
    floor, of_gain = max(lowest, -2 * ceiling), metric != "bpb_key"

    def dress(axes: Axes) -> None:
        every = 2 if len(study.arms) > marks.TOGETHER and len(ks) > 4 else 1
        marks.length_axis(axes, study, ks, every, 1 if of_gain else ID)
        if of_gain:
            axes.set_ylim(floor, ceiling)
            axes.axhline(0, color=MUTED, linewidth=1, linestyle=marks.DASHED)

    caption += f" Measured at {', '.join(map(times, ks))}. {marks.seeds_note(study)}"
    if of_gain and floor > lowest:
        caption += " Lines that leave at the bottom are complete in the CSV."
    made, labels = marks.line_panels(study, here, "length", "value", dress), (xlabel, BITS)
    return Figure(metric, title, caption, rows, labels=labels, missing=missing, **made)


def nll_by_position(study: StudyView) -> Figure:
    """Loss by position to 8L, from the evaluation's arrays."""
    rows, missing = Table(), []
    for run in study.runs:
        arrays = run.kept_arrays("nll_pos")
        if arrays is None:
            missing.append(f"{study.label(run)}: losses by position are not kept")
            continue
        means = octave_means(arrays["position_T"], arrays["nll_T"], arrays["count"])
        rows += [run.key | {"tokens_read": int(x), "nll": y} for x, y in means]
    top = max(rows.column("tokens_read"), default=0)
    ks = [2.0**e for e in range(-20, 12) if 1 / 2 <= study.train_length * 2.0**e <= top]

    def draw_arm(axes: Axes, arm: str) -> None:
        marks.band(axes, study, rows, arm, "tokens_read", "nll", marker="")

    def dress(axes: Axes) -> None:
        marks.length_axis(axes, study, ks, every=3)

    caption = (
        "Negative log-likelihood of the next token by the number of tokens read before it; moving "
        "mean over a quarter of an octave. A line that is flat beyond L tolerates the length; one "
        f"that rises breaks. {marks.seeds_note(study)}"
    )
    made = marks.line_panels(study, rows, "tokens_read", "nll", dress, draw_arm)
    labels, name = ("tokens read before the target", "nats per token"), "nll_by_position"
    return Figure(name, "Loss by position", caption, rows, labels=labels, missing=missing, **made)


def octave_means(position_T: np.ndarray, nll_T: np.ndarray, count) -> list[tuple[int, float]]:
    """Returns count-weighted means over windows a quarter of an octave wide, eight per octave."""
    read_T = position_T - position_T[0] + 1
    count_T = np.broadcast_to(np.asarray(count, np.float64), nll_T.shape) * np.isfinite(nll_T)
    total_T = np.concatenate([[0.0], np.cumsum(np.nan_to_num(nll_T, posinf=0.0) * count_T)])
    weight_T = np.concatenate([[0.0], np.cumsum(count_T)])
    means = []
    for centre in np.unique(np.round(2 ** (np.arange(0, np.log2(read_T[-1]) + 1e-9, 1 / 8)))):
        a = np.searchsorted(read_T, centre * 2**-0.125, side="left")
        b = np.searchsorted(read_T, centre * 2**0.125, side="right")
        if weight_T[b] > weight_T[a]:
            mean = (total_T[b] - total_T[a]) / (weight_T[b] - weight_T[a])
            means.append((int(centre), float(mean)))
    return means
