"""Figures of training: loss by step, and how each arm's learning rate was chosen."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter

from posenc_jax.report import marks, style
from posenc_jax.report.figure import Figure, Table
from posenc_jax.report.study_view import StudyView, is_number, where
from posenc_jax.results.schema import BPB


def training_figures(study: StudyView) -> list[Figure]:
    """Returns the training curves, and the learning rates where the study tuned them."""
    return [training_curves(study)] + ([learning_rates(study)] if study.data.tuning else [])


def training_curves(study: StudyView) -> Figure:
    """Training loss by step, one line per run."""
    rows, missing = Table(), []
    for run in study.runs:
        points = [(m["step"], m["loss"]) for m in run.metrics if is_number(m.get("loss"))]
        if not points:
            missing.append(f"{study.label(run)}: the training log is not kept")
            continue
        width = max(1, len(points) // 40)
        sums = np.concatenate([[0.0], np.cumsum([loss for _, loss in points], dtype=np.float64)])
        for i, (step, loss) in enumerate(points):
            a = max(0, i + 1 - width)
            mean = float((sums[i + 1] - sums[a]) / (i + 1 - a))
            rows.append(run.key | {"step": step, "loss": loss, "moving_mean": mean})

    def draw_arm(axes: Axes, arm: str) -> None:
        look = style.line_style(study.colours[arm]) | {"marker": "", "linewidth": 1.1}
        for run in study.of(arm):
            here = rows.where(**run.key)
            axes.plot(here.column("step"), here.column("moving_mean"), **look)

    caption = (
        "Loss on the training mixture (text and retrieval documents), one line per run; trailing "
        "mean over a fortieth of the log."
    )
    dress, labels = lambda axes: axes.margins(x=0.01), ("step", "training loss (nats)")
    made = marks.line_panels(study, rows, "step", "moving_mean", dress, draw_arm)
    name, title = "training_curves", "Training curves"
    return Figure(name, title, caption, rows, labels=labels, missing=missing, **made)


def learning_rates(study: StudyView) -> Figure:
    """Dev bits per byte by learning rate, with the choice marked."""
    plan = study.data.tuning
    rows, missing = Table(), []
    for arm, choice in plan["arms"].items():
        for point in choice["curve"]:
            if point["bpb_ctx"] is None:
                rate = f"{point['rate']:g}"
                missing.append(f"{arm}: no dev loss at learning rate {rate} (the run failed)")
                continue
            chosen = point["rate"] == choice["rate"]
            measured = {"learning_rate": point["rate"], "dev_bpb_ctx": point["bpb_ctx"]}
            edge = chosen and choice["edge"]
            rows.append({"arm": arm} | measured | {"chosen": chosen, "edge_of_grid": edge})
        if choice["rate"] is None:
            missing.append(f"{arm}: no learning rate could be chosen")
    others = [arm for arm in rows.distinct("arm") if arm not in study.arms]
    missing += [f"{arm}: in the CSV and not drawn" for arm in others]
    edges = ", ".join(rows.where(edge_of_grid=True).column("arm"))
    warning = "No choice lies at the edge of the grid."
    if edges:
        warning = f"At the edge of the grid, so that a rate outside it may be better: {edges}."
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

    caption = (
        f"Bits per byte of dev text {where(BPB, plan.get('k', 1))} after {plan['steps']:,} steps, "
        f"seed {plan['seed']}, which counts nowhere else. A ring marks the chosen rate, a heavy "
        f"ring a choice at the edge of the grid. {warning}"
    )
    made = marks.line_panels(study, rows, "learning_rate", "dev_bpb_ctx", dress, draw_arm)
    labels, title = ("learning rate", "bits per byte, dev"), "Learning rates"
    return Figure("learning_rates", title, caption, rows, labels=labels, missing=missing, **made)
