"""Figures about learning: each arm's learning-rate curve, and which runs learned to retrieve at L."""

import matplotlib.ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from posenc_jax.report import style
from posenc_jax.report.context_figures import dots
from posenc_jax.report.line_axes import PERCENT, TOGETHER, apart_note, arm_panels, backdrop, finish
from posenc_jax.report.study_view import StudyView, task_name, where
from posenc_jax.report.style import INK, MUTED, SURFACE, Layout, Picture
from posenc_jax.results.schema import ACQUIRED, BPB, FAR, REACHES, SUMMARY_TASKS


def pictures(study: StudyView) -> list[Picture]:
    """The figures that this study has: curves if it tuned, acquisition if it measured retrieval at L."""
    found = []
    if study.data.tuning:
        found.append(learning_rates(study))
    if any(run.least(1, study.main_tasks) is not None for run in study.runs):
        found.append(acquisition(study))
    return found


def learning_rates(study: StudyView) -> Picture:
    """Dev bits per byte by learning rate, with the choice marked."""
    plan = study.data.tuning
    context = where(BPB, plan.get("k", 1))
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
        height, labels = 3.8 if layout.narrow else 4.2, ("learning rate", "bits per byte, dev")
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
        f"How each arm's learning rate was chosen: bits per byte of dev text {context} after {plan['steps']:,} "
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


def acquisition(study: StudyView) -> Picture:
    """The worst task at L of every run, its far retrieval, and how many seeds of an arm acquire and reach."""
    tasks = study.main_tasks
    records, missing = [], []
    for run in study.runs:
        least = run.least(1, tasks)
        if least is None:
            missing.append(f"{study.names[run.arm]}, seed {run.seed}: no retrieval at L")
            continue
        far = run.far_mean(FAR, tasks)
        records.append({"arm": run.arm, "seed": run.seed, "least_at_L": least, "acquired": least >= ACQUIRED,
                        "far_at_4L": far, "reaches": None if far is None else far >= REACHES})  # fmt: skip
    arms = [arm for arm in study.arms if any(r["arm"] == arm for r in records)]
    sides = [("least_at_L", "acquired", ACQUIRED, "worst task at L, above chance")]
    if any(r["reaches"] is not None for r in records):
        sides.append(("far_at_4L", "reaches", REACHES, "needles beyond L at 4L, above chance"))

    def draw(layout: Layout) -> Figure:
        shape = (len(sides), 1) if layout.narrow else (1, len(sides))
        figure, grid = style.panels(layout, *shape, 0.9 + 0.3 * len(arms))
        for axes, (value, verdict, bound, words) in zip(grid, sides, strict=True):
            there = [r | {"value": 100 * r[value]} for r in records if r[value] is not None]
            dots(axes, study, there, arms, named=axes is grid[0] or layout.narrow)
            for y, arm in enumerate(arms):
                here = [r[verdict] for r in there if r["arm"] == arm]
                axes.annotate(f"{sum(here)} of {len(here)}", (1.0, y), (6, 0),
                              xycoords=axes.get_yaxis_transform(), textcoords="offset points",
                              va="center", color=MUTED)  # fmt: skip
            axes.axvline(100 * bound, color=INK, linewidth=1)
            axes.set_xlim(min(-4, *(r["value"] - 4 for r in there)), 104)
            axes.xaxis.set_major_formatter(PERCENT)
            axes.set_title(f"{verdict}: seeds at {100 * bound:.0f} % and more")
            axes.set_xlabel(words)
        return figure

    named = ", ".join(task_name(task) for task in tasks)
    index = " (Y_R_far)" if tasks == SUMMARY_TASKS else ""
    return Picture(
        "acquisition",
        "Which runs learned to retrieve, and how far",
        f"One mark a run, a tick at the mean, the number of seeds at the right. Acquired: the worst of {named} in "
        f"contexts of L, above chance without binding, is at least {100 * ACQUIRED:.0f} %. Reaches: their mean over "
        f"needles beyond L in contexts of {FAR}L{index} is at least {100 * REACHES:.0f} %. What is scored further out "
        "is unconditional: runs left of a line stay in every mean.",
        ("arm", "seed", "least_at_L", "acquired", "far_at_4L", "reaches"),
        tuple(records),
        draw if records else None,
        tuple(missing),
    )
