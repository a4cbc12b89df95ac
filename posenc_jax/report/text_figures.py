"""Figures of loss: by length and context, by position, worth of far context, in training."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from posenc_jax.report import marks, style
from posenc_jax.report.figure import Figure, Table, panels_of
from posenc_jax.report.markup import captioned
from posenc_jax.report.study_view import StudyView, is_number, times, where
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


def text_figures(study: StudyView) -> list[Figure]:
    """Returns the figures of suite E."""
    repeats = ["repeat_gain"] + [OTHER_PLACE] * bool(study.multiples(OTHER_PLACE))
    figures = [bpb_against_length(study), context_curves(study), far_context(study)]
    figures += [by_length(study, metric) for metric in repeats]
    curse = by_length(study, "early_token_curse", "bpb_sliding")
    return [*figures, curse, by_length(study, "bpb_key"), nll_by_position(study)]


def bpb_against_length(study: StudyView) -> Figure:
    """Bits per byte against context (E3) and against segment length (E1)."""
    rows = study.table(BPB, SEGMENTS)
    of = {BPB: rows.where(metric=BPB), SEGMENTS: rows.where(metric=SEGMENTS)}
    missing = [f"{metric} was not measured" for metric in of if not of[metric]]
    if study.unigram is None:
        missing.append("no single unigram level: run.json files hold none, or different ones")
    lowest = min(rows.column("value"), default=0.0)
    top = max([study.unigram or 0.0, *rows.column("value")])

    def draw_arm(axes: Axes, arm: str) -> None:
        marks.band(axes, study, of[BPB], arm, "length", "value")
        means = of[SEGMENTS].where(arm=arm).means("length", "value")
        look = {"color": style.colour(study.colours[arm]), "linewidth": 1.1}
        axes.plot(list(means), list(means.values()), linestyle=marks.DOTTED, **look)

    def dress(axes: Axes) -> None:
        pad = 0.06 * (top - lowest) or 0.01
        axes.set_ylim(lowest - pad, top + pad)
        for metric, within in ((BPB, ID), (SEGMENTS, 1)):
            if of[metric]:
                marks.length_axis(axes, study, rows.column("k"), 2, within)
        if study.unigram is not None:
            axes.axhline(study.unigram, color=MUTED, linewidth=0.8, linestyle=marks.DASHED)
            where: dict = {"va": "bottom", "annotation_clip": True}
            marks.note(axes, "unigram", (0, study.unigram), (2, 2), **where)

    made = marks.line_panels(study, of[BPB] or of[SEGMENTS], "length", "value", dress, draw_arm)
    at = {"L": study.train_length, "seeds": marks.seeds_note(study)}
    words = captioned("bpb_against_length", **at)
    return Figure(rows=rows, missing=missing, **words, **made)


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
        means = curves.where(arm=arm).means("length", "value")
        for length, loss in windowed.where(arm=arm).means("length", "value").items():
            if means.get(length, np.inf) < top:
                axes.plot([length] * 2, [means[length], loss], color=colour, linewidth=0.9)
            look = {"marker": "s", "markersize": 6.5, "markerfacecolor": SURFACE, "zorder": 4}
            axes.plot([length], [loss], color=colour, **look)
        last = list(means.values())[-1]
        place = {"transform": axes.transAxes, "ha": "right"}
        if last > top:
            axes.text(0.98, 0.98, f"to {last:.2f} ↑", color=colour, va="top", **place)
        small = {"fontsize": 0.86 * style.FONT, "color": MUTED}
        axes.text(0.98, 0.04, _gains(study, arm), **small, **place)

    def dress(axes: Axes) -> None:
        marks.length_axis(axes, study, curves.column("k"), 2, ID)
        axes.set_ylim(low, top)

    made = marks.line_panels(study, curves, "length", "value", dress, draw_arm, apart=True)
    words = captioned("context_curves", seeds=marks.seeds_note(study))
    return Figure(rows=rows if curves else (), missing=missing, **words, **made)


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
        if got := study.found(arm, RunData.value, metric, FAR):
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
            marks.symlog_axis(axes, MARGIN, [t for t in (MARGIN, 0.1, 2.0) if t <= top])
        axes.axvline(0, color=INK, linewidth=1)
        axes.set(title=words, xlabel=unit)

    panels = panels_of(draw, shown, 0.7 + 0.26 * len(arms))
    words = captioned("far_context", margin=MARGIN)
    return Figure(rows=rows, panels=panels, columns=2, missing=missing, **words)


def _gain(run: RunData, metric: str) -> float | None:
    if metric == "repeat_gain":
        values = [run.value(metric, k) for k in run.multiples(metric) if 2 <= k <= FAR]
        found = [value for value in values if value is not None]
        return float(np.mean(found)) if found else None
    value = run.value(metric, FAR)
    if metric != "Y_R_window" or value is None:
        return value
    whole = run.value("Y_R", FAR)
    return None if whole is None else whole - value


def by_length(study: StudyView, metric: str, *beside: str) -> Figure:
    """A metric by length or gap; the rows of `beside` are in the table alone."""
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

    made = marks.line_panels(study, here, "length", "value", dress)
    cut = "cut" if of_gain and floor > lowest else None
    measured = ", ".join(map(times, ks))
    words = captioned(metric, cut, ks=measured, seeds=marks.seeds_note(study))
    return Figure(rows=rows, missing=missing, **words, **made)


def nll_by_position(study: StudyView) -> Figure:
    """Loss by position to 8L, from the evaluation's arrays."""

    def read(run: RunData) -> list[dict] | str:
        arrays = run.kept_arrays("nll_pos")
        if arrays is None:
            return "losses by position are not kept"
        means = octave_means(arrays["position_T"], arrays["nll_T"], arrays["count"])
        return [{"tokens_read": x, "nll": y} for x, y in means]

    rows, missing = study.collect(read)
    top = max(rows.column("tokens_read"), default=0)
    ks = [2.0**e for e in range(-20, 12) if 1 / 2 <= study.train_length * 2.0**e <= top]

    made = marks.line_panels(
        study,
        rows,
        "tokens_read",
        "nll",
        lambda axes: marks.length_axis(axes, study, ks, every=3),
        lambda axes, arm: marks.band(axes, study, rows, arm, "tokens_read", "nll", marker=""),
    )
    words = captioned("nll_by_position", seeds=marks.seeds_note(study))
    return Figure(rows=rows, missing=missing, **words, **made)


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


def training_figures(study: StudyView) -> list[Figure]:
    """Returns the training curves, and the learning rates where the study tuned them."""
    return [training_curves(study)] + ([learning_rates(study)] if study.data.tuning else [])


def training_curves(study: StudyView) -> Figure:
    """Training loss by step, one line per run."""

    def read(run: RunData) -> list[dict] | str:
        points = [(m["step"], m["loss"]) for m in run.metrics if is_number(m.get("loss"))]
        sums = np.cumsum([0.0, *(loss for _, loss in points)])
        end = np.arange(1, len(sums))
        start = np.maximum(0, end - max(1, len(points) // 40))
        means = (sums[end] - sums[start]) / (end - start)
        rows = [
            {"step": step, "loss": loss, "moving_mean": float(mean)}
            for (step, loss), mean in zip(points, means, strict=True)
        ]
        return rows or "the training log is not kept"

    rows, missing = study.collect(read)

    def draw_arm(axes: Axes, arm: str) -> None:
        look = style.line_style(study.colours[arm]) | {"marker": "", "linewidth": 1.1}
        for run in study.of(arm):
            here = rows.where(**run.key)
            axes.plot(here.column("step"), here.column("moving_mean"), **look)

    made = marks.line_panels(
        study, rows, "step", "moving_mean", lambda axes: axes.margins(x=0.01), draw_arm
    )
    return Figure(rows=rows, missing=missing, **captioned("training_curves"), **made)


def _other_rates(study: StudyView, choices: dict) -> str:
    """Returns "arm rate, ..." of the arms whose runs had another rate than the chosen one."""
    taken = {
        run.arm: run.config["optimizer"]["learning_rate"] for run in study.data.runs if run.config
    }
    return ", ".join(
        f"{arm} {taken[arm]:g}"
        for arm, choice in choices.items()
        if arm in taken and taken[arm] != choice["rate"]
    )


def learning_rates(study: StudyView) -> Figure:
    """Dev bits per byte by learning rate, with the choice marked."""
    plan = study.data.tuning
    rows, missing = Table(), []
    for arm, choice in plan["arms"].items():
        for point in choice["curve"]:
            rate, loss = point["rate"], point["bpb_ctx"]
            if loss is None:
                missing.append(f"{arm}: no dev loss at learning rate {rate:g} (the run failed)")
                continue
            chosen = {"chosen": rate == choice["rate"]}
            chosen["edge_of_grid"] = chosen["chosen"] and choice["edge"]
            rows.append({"arm": arm, "learning_rate": rate, "dev_bpb_ctx": loss} | chosen)
        if choice["rate"] is None:
            missing.append(f"{arm}: no learning rate could be chosen")
    others = [arm for arm in rows.distinct("arm") if arm not in study.arms]
    missing += [f"{arm}: in the CSV and not drawn" for arm in others]
    rates = rows.distinct("learning_rate")

    def draw_arm(axes: Axes, arm: str) -> None:
        here, look = rows.where(arm=arm), style.line_style(study.colours[arm])
        axes.plot(here.column("learning_rate"), here.column("dev_bpb_ctx"), **look)
        ring = {"marker": "o", "markersize": 11, "fillstyle": "none", "color": look["color"]}
        for row in here.where(chosen=True):
            heavy = 2.2 if row["edge_of_grid"] else 1.0
            axes.plot(row["learning_rate"], row["dev_bpb_ctx"], markeredgewidth=heavy, **ring)

    def dress(axes: Axes) -> None:
        axes.set_xscale("log")
        axes.set_xticks(rates, [f"{rate:.2g}" for rate in rates])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.1)

    edges = ", ".join(rows.where(edge_of_grid=True).column("arm"))
    asked = {"where": where(BPB, plan.get("k", 1)), "steps": plan["steps"], "seed": plan["seed"]}
    used = _other_rates(study, plan["arms"])
    notes = ["edge" if edges else "inside", *(["other_rates"] if used else [])]
    words = captioned("learning_rates", *notes, edges=edges, rates=used, **asked)
    made = marks.line_panels(study, rows, "learning_rate", "dev_bpb_ctx", dress, draw_arm)
    return Figure(rows=rows, missing=missing, **words, **made)
