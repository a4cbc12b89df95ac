"""Figures about learning: each arm's learning-rate curve, and which runs learned to retrieve at L."""

import json

import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from posenc_jax.report import style
from posenc_jax.report.axes import PERCENT, TOGETHER, apart_note, arm_panels, backdrop, finish
from posenc_jax.report.rows import Run, Study
from posenc_jax.report.style import INK, MUTED, SURFACE, Layout, Picture

ACQUIRED = 0.9  # in-distribution accuracy from which a run has learned to retrieve


def pictures(study: Study) -> list[Picture]:
    """The figures that this study has: curves if it tuned, acquisition if it measured retrieval at L."""
    found = []
    if (study.workdir / "tuning.json").exists():
        found.append(learning_rates(study))
    if any(in_distribution(study, run) is not None for run in study.runs):
        found.append(acquisition(study))
    return found


def learning_rates(study: Study) -> Picture:
    """Dev bits per byte by learning rate, with the choice marked."""
    plan = json.loads((study.workdir / "tuning.json").read_text(encoding="utf-8"))
    records, missing = [], []
    for arm, choice in plan["arms"].items():
        for point in choice["curve"]:
            if point["bpb_ctx"] is None:
                missing.append(f"{arm}: no dev loss at learning rate {point['rate']:g} (the run failed)")  # fmt: skip
                continue
            chosen = point["rate"] == choice["rate"]
            records.append({"arm": arm, "learning_rate": point["rate"], "dev_bpb_ctx": point["bpb_ctx"],
                            "chosen": chosen, "edge_of_grid": chosen and choice["edge"]})  # fmt: skip
        if choice["rate"] is None:
            missing.append(f"{arm}: no learning rate could be chosen")
    edges = [r["arm"] for r in records if r["edge_of_grid"]]
    warning = (
        f"At the edge of the grid, so that a rate outside it may be better: {', '.join(edges)}. "
        if edges
        else "No choice lies at the edge of the grid. "
    )

    arms = [arm for arm in plan["arms"] if any(r["arm"] == arm for r in records)]
    if len(arms) > TOGETHER:
        missing += [f"{arm}: in the table and not drawn" for arm in arms if arm not in study.arms]

    def draw(layout: Layout) -> Figure:
        height, labels = 3.8 if layout.narrow else 4.2, ("learning rate", "bits per byte at L, dev")
        rates = sorted({r["learning_rate"] for r in records})
        if len(arms) > TOGETHER:
            figure, found = arm_panels(study, [a for a in study.arms if a in arms], layout)
            for arm, axes in found.items():
                backdrop(axes, study, records, arm, "learning_rate", "dev_bpb_ctx")
                _curve(axes, records, arm, style.line_style(study.colours[arm]))
                _rate_axis(axes, rates, short=True)
            figure.supxlabel(labels[0], color=MUTED, fontsize=layout.font)
            figure.supylabel(labels[1], color=MUTED, fontsize=layout.font)
            return figure
        figure, (axes,) = style.panels(layout, 1, 1, height)
        ends = []
        for index, arm in enumerate(arms):
            look = style.line_style(study.colours.get(arm, index))
            last = _curve(axes, records, arm, look)
            ends.append((last, study.names.get(arm, arm), look["color"]))
        _rate_axis(axes, rates, short=False)
        axes.set_xlabel(labels[0])
        axes.set_ylabel(labels[1])
        finish(axes, ends, height)
        return figure

    return Picture(
        "learning_rates",
        "Learning rates",
        f"How each arm's learning rate was chosen: bits per byte of dev text at L after {plan['steps']:,} "
        f"steps, seed {plan['seed']}, which counts nowhere else. Rings: the choice; heavy ring: at the edge "
        f"of the grid. {warning}{apart_note(study)}",
        ("arm", "learning_rate", "dev_bpb_ctx", "chosen", "edge_of_grid"),
        tuple(records),
        draw if records else None,
        tuple(missing),
    )


def _curve(axes: Axes, records: list[dict], arm: str, look: dict) -> float:
    """Draws one arm's curve with a ring at its choice; returns the last value."""
    here = [r for r in records if r["arm"] == arm]
    x, y = [r["learning_rate"] for r in here], [r["dev_bpb_ctx"] for r in here]
    axes.plot(x, y, markeredgecolor=SURFACE, markeredgewidth=0.5, **look)
    for r in here:
        if r["chosen"]:
            axes.plot(
                r["learning_rate"], r["dev_bpb_ctx"], marker="o", markersize=11, fillstyle="none",
                color=look["color"], linestyle="none", markeredgewidth=2.2 if r["edge_of_grid"] else 1.0,
            )  # fmt: skip
    return y[-1]


def _rate_axis(axes: Axes, rates: list[float], short: bool) -> None:
    axes.set_xscale("log")
    axes.set_xticks(rates, [f"{r:.0e}".replace("e-0", "e-") if short else f"{r:g}" for r in rates])
    axes.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    axes.margins(x=0.1, y=0.15)


def acquisition(study: Study) -> Picture:
    """Retrieval accuracy at L of every run, and how many reach ACQUIRED."""
    records, missing = [], []
    for run in study.runs:
        value = in_distribution(study, run)
        if value is None:
            missing.append(f"{study.names[run.arm]}, seed {run.seed}: no retrieval at L")
        else:
            records.append({"arm": run.arm, "seed": run.seed, "accuracy_at_L": value, "acquired": value >= ACQUIRED})  # fmt: skip
    rates = {}
    for arm in study.arms:
        here = [r["acquired"] for r in records if r["arm"] == arm]
        if here:
            rates[arm] = f"{sum(here)} of {len(here)}"

    def draw(layout: Layout) -> Figure:
        height = 0.9 + 0.34 * len(rates)
        figure, (axes,) = style.panels(layout, 1, 1, height)
        shown = list(rates)[::-1]
        for y, arm in enumerate(shown):
            values = [100 * r["accuracy_at_L"] for r in records if r["arm"] == arm]
            look = style.line_style(study.colours[arm]) | {"linestyle": "none"}
            axes.plot(values, [y] * len(values), markersize=7, alpha=0.8, **look)
            axes.plot([float(np.mean(values))], [y], marker="|", markersize=14, color=INK)
            axes.annotate(rates[arm], (1.0, y), (6, 0), xycoords=axes.get_yaxis_transform(),
                          textcoords="offset points", va="center", color=MUTED)  # fmt: skip
        axes.axvline(100 * ACQUIRED, color=INK, linewidth=1)
        axes.set_yticks(range(len(shown)), [study.names[arm] for arm in shown])
        axes.set_ylim(-0.6, len(shown) - 0.4)
        axes.set_xlim(-4, 104)
        axes.xaxis.set_major_formatter(PERCENT)
        axes.set_xlabel("retrieval at L, above chance; right: runs that learned it")
        return figure

    return Picture(
        "acquisition",
        "Which runs learned to retrieve",
        "Retrieval in contexts of the training length, one mark a run, a tick at the mean. Line: "
        f"{100 * ACQUIRED:.0f} %, from which a run counts as having learned the task. What is scored "
        "further out is unconditional: runs below the line stay in every mean.",
        ("arm", "seed", "accuracy_at_L", "acquired"),
        tuple(records),
        draw if records else None,
        tuple(missing),
    )


def in_distribution(study: Study, run: Run) -> float | None:
    """Y_R_id where the rows have it, else the mean over the study's tasks at L, above chance."""
    summary = run.value("Y_R_id", 1)
    return run.retrieval(1, study.main_tasks) if summary is None else summary
