"""Loss figures: bits per byte by length, loss by position, training curves."""

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
    bands,
    finish,
    length_axis,
    lines,
    seeds_note,
)
from posenc_jax.report.study_view import StudyView, is_number
from posenc_jax.report.style import MUTED, Layout, Picture
from posenc_jax.results.schema import ID

WITHIN = {"bpb_ctx": ID, "bpb_nonoverlap": 1}  # where rows end within L, in units of L
TITLES = {"bpb_ctx": "E3, bpb_ctx", "bpb_nonoverlap": "E1, bpb_nonoverlap"}


def bpb_against_length(study: StudyView) -> Picture:
    """Bits per byte against context (E3) and against segment length (E1)."""
    wanted = (("bpb_ctx", "context before the same targets"), ("bpb_nonoverlap", "segment length"))
    records = [
        {"arm": run.arm, "seed": run.seed, "metric": metric, "k": k}
        | {"length": run.row(metric, k).length, "value": run.value(metric, k)}
        for metric, _ in wanted
        for run in study.runs
        for k in run.multiples(metric)
    ]
    shown = [(m, words) for m, words in wanted if any(r["metric"] == m for r in records)]
    close = _close_up([r for r in records if r["metric"] == "bpb_ctx"])
    level = study.unigram
    missing = [f"{m} was not measured" for m, _ in wanted if m not in dict(shown)]
    if level is None:
        missing.append("no single unigram level: run.json files hold none, or different ones")

    def draw(layout: Layout) -> Figure:
        if len(study.arms) > TOGETHER:
            return _by_arm(study, records, level, layout)
        height = 3.2 if layout.narrow else 3.6
        plots = [(metric, words, None) for metric, words in shown]
        if close is not None:
            plots.insert(1, (*shown[0], close))
        rows, columns = (len(plots), 1) if layout.narrow else (1, len(plots))
        figure, grid = style.panels(layout, rows, columns, height)
        for axes, (metric, words, limits) in zip(grid, plots, strict=True):
            here = [r for r in records if r["metric"] == metric]
            ends = bands(axes, study, here, "length", "value")
            ks = [r["k"] for r in here]
            length_axis(
                axes,
                study,
                ks,
                every=2 if len(plots) == 3 and not layout.narrow and len(set(ks)) > 5 else 1,
                within=WITHIN[metric],
            )
            axes.set_title(TITLES[metric] + (", close up" if limits else ""))
            axes.set_xlabel(f"{words} (tokens)")
            if axes is grid[0] or layout.narrow:
                axes.set_ylabel("bits per byte")
            if limits:
                axes.set_ylim(*limits)
            elif level is not None:
                axes.axhline(level, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
                axes.annotate(
                    "unigram", (study.train_length, level), (6, 3) if min(ks) == 1 else (-6, 3),
                    textcoords="offset points", color=MUTED,
                    ha="left" if min(ks) == 1 else "right",
                )  # fmt: skip
            if axes is grid[-1] or layout.narrow:
                axes.autoscale_view()
                inside = [end for end in ends if not limits or end[0] <= limits[1]]
                finish(axes, inside, height)
        return figure

    look = "" if len(study.arms) <= TOGETHER else " Thick: E3; thin and dotted: E1."
    closer = "" if close is None or look else "Close up: the same lines, without those that break. "
    return Picture(
        "bpb_against_length",
        "Bits per byte against length",
        "E3 gives every arm the same targets and only changes how much text stands before them. "
        "E1 cuts the text into disjoint segments, as in the ALiBi paper. Vertical lines: where rows end within "
        f"the training length L = {study.train_length}, after a context of L/2 (E3; at c = L the targets lie at "
        "positions L to 1.5 L) and in segments of L (E1). "
        f"{closer}{seeds_note(study)}{apart_note(study)}{look}",
        ("arm", "seed", "metric", "k", "length", "value"),
        tuple(records),
        draw if records else None,
        tuple(missing),
    )


def _by_arm(study: StudyView, records: list[dict], level: float | None, layout: Layout) -> Figure:
    arms = [arm for arm in study.arms if any(r["arm"] == arm for r in records)]
    figure, found = arm_panels(study, arms, layout)
    by = {metric: [r for r in records if r["metric"] == metric] for metric in TITLES}
    behind = "bpb_ctx" if by["bpb_ctx"] else "bpb_nonoverlap"
    for arm, axes in found.items():
        backdrop(axes, study, by[behind], arm, "length", "value")
        band(axes, study, by["bpb_ctx"], arm, "length", "value")
        thin = {"marker": "", "linewidth": 1.1, "linestyle": (0, (1, 1))}
        band(axes, study, by["bpb_nonoverlap"], arm, "length", "value", **thin)
        if level is not None:
            axes.axhline(level, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
            axes.annotate("unigram", (0, level), (2, 2), xycoords=axes.get_yaxis_transform(),
                          textcoords="offset points", color=MUTED)  # fmt: skip
        for metric in by:
            if by[metric]:
                length_axis(axes, study, [r["k"] for r in records], 2, WITHIN[metric])
    figure.supxlabel("context, or segment length (tokens)", color=MUTED, fontsize=layout.font)
    figure.supylabel("bits per byte", color=MUTED, fontsize=layout.font)
    return figure


def _close_up(records: list[dict]) -> tuple[float, float] | None:
    """Limits that hold every value within L and the best beyond, if some arm leaves them far."""
    near = [r["value"] for r in records if r["k"] <= ID]
    if not near:
        return None
    low, high = min(r["value"] for r in records), max(near)
    pad = 0.08 * (high - low) or 0.01
    broken = max(r["value"] for r in records) > high + 1.5 * (high - low)
    return (low - pad, high + pad) if broken else None


def nll_by_position(study: StudyView) -> Picture:
    """Loss by position to 8L, from the evaluation's arrays."""
    records, missing = [], []
    for run in study.runs:
        arrays = run.arrays("nll_pos")
        if arrays is None:
            missing.append(
                f"{study.names[run.arm]}, seed {run.seed}: losses by position are not kept"
            )
            continue
        means = octave_means(arrays["position_T"], arrays["nll_T"], arrays["count"])
        records += [
            {"arm": run.arm, "seed": run.seed, "tokens_read": int(x), "nll": y} for x, y in means
        ]

    def draw(layout: Layout) -> Figure:
        top = max(r["tokens_read"] for r in records)
        ks = [2.0**e for e in range(-20, 12) if 1 / 2 <= study.train_length * 2.0**e <= top]
        every = 2 if layout.narrow or len(study.arms) > TOGETHER else 1

        def dress(axes):
            length_axis(axes, study, ks, every)

        labels = ("tokens read before the target", "nats per token")
        return lines(study, records, "tokens_read", "nll", layout, dress, labels, marks=False)

    return Picture(
        "nll_by_position",
        "Loss by position",
        "Negative log-likelihood of the next token by how much was read before it; moving mean "
        "over a quarter of an octave. An arm that only tolerates length stays flat beyond L; one "
        f"that breaks rises. {seeds_note(study)}{apart_note(study)}",
        ("arm", "seed", "tokens_read", "nll"),
        tuple(records),
        draw if records else None,
        tuple(missing),
    )


def octave_means(position_T: np.ndarray, nll_T: np.ndarray, count) -> list[tuple[int, float]]:
    """Count-weighted means over windows a quarter of an octave wide, eight per octave."""
    read_T = position_T - position_T[0] + 1
    count_T = np.broadcast_to(np.asarray(count, np.float64), nll_T.shape) * np.isfinite(nll_T)
    total_T = np.concatenate([[0.0], np.cumsum(np.nan_to_num(nll_T, posinf=0.0) * count_T)])
    weight_T = np.concatenate([[0.0], np.cumsum(count_T)])
    centres = np.unique(np.round(2 ** (np.arange(0, np.log2(read_T[-1]) + 1e-9, 1 / 8))))
    means = []
    for centre in centres:
        a = np.searchsorted(read_T, centre * 2**-0.125, side="left")
        b = np.searchsorted(read_T, centre * 2**0.125, side="right")
        if weight_T[b] > weight_T[a]:
            mean = (total_T[b] - total_T[a]) / (weight_T[b] - weight_T[a])
            means.append((int(centre), float(mean)))
    return means


def training_curves(study: StudyView) -> Picture:
    """Training loss by step, one line per run."""
    records, missing = [], []
    for run in study.runs:
        points = [(m["step"], m["loss"]) for m in run.data.metrics if is_number(m.get("loss"))]
        if not points:
            missing.append(f"{study.names[run.arm]}, seed {run.seed}: the training log is not kept")
            continue
        width = max(1, len(points) // 40)
        losses = np.array([loss for _, loss in points], np.float64)
        sums = np.concatenate([[0.0], np.cumsum(losses)])
        for i, (step, loss) in enumerate(points):
            a = max(0, i + 1 - width)
            mean = float((sums[i + 1] - sums[a]) / (i + 1 - a))
            records.append(
                {"arm": run.arm, "seed": run.seed, "step": step, "loss": loss, "moving_mean": mean}
            )

    def draw(layout: Layout) -> Figure:
        height, labels = 3.4 if layout.narrow else 3.6, ("step", "training loss (nats)")
        arms = [arm for arm in study.arms if any(r["arm"] == arm for r in records)]
        if len(arms) > TOGETHER:
            figure, found = arm_panels(study, arms, layout, height=1.5)
            for arm, axes in found.items():
                backdrop(axes, study, records, arm, "step", "moving_mean")
                _runs(axes, study, records, arm)
            figure.supxlabel(labels[0], color=MUTED, fontsize=layout.font)
            figure.supylabel(labels[1], color=MUTED, fontsize=layout.font)
            return figure
        figure, (axes,) = style.panels(layout, 1, 1, height)
        ends = [end for arm in arms for end in _runs(axes, study, records, arm)]
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        axes.margins(x=0.01)
        finish(axes, ends, height)
        return figure

    return Picture(
        "training_curves",
        "Training curves",
        "Loss on the training mixture (text and retrieval documents), one line per run, trailing "
        f"mean over a fortieth of the log.{apart_note(study)}",
        ("arm", "seed", "step", "loss", "moving_mean"),
        tuple(records),
        draw if records else None,
        tuple(missing),
    )


def _runs(
    axes: Axes, study: StudyView, records: list[dict], arm: str
) -> list[tuple[float, str, str]]:
    """One line per run of an arm, and the end label of them all."""
    look, last = style.line_style(study.colours[arm]) | {"marker": ""}, []
    for run in study.of(arm):
        here = [r for r in records if (r["arm"], r["seed"]) == (arm, run.seed)]
        if here:
            x, y = [r["step"] for r in here], [r["moving_mean"] for r in here]
            axes.plot(x, y, linewidth=1.1, alpha=0.9, **look)
            last.append(y[-1])
    return [(float(np.mean(last)), study.names[arm], look["color"])] if last else []
