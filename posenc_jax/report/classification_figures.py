"""Figure of suite C: long-text classification by the length of the document."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from posenc_jax.report import marks
from posenc_jax.report.figure import Figure, Table
from posenc_jax.report.study_view import StudyView
from posenc_jax.report.style import INK, MUTED

METRICS = ("longtext_corrected", "longtext_cut_corrected", "longtext_bag_corrected")
BAG = {"color": INK, "linewidth": 1.1, "linestyle": (0, (6, 2, 1, 2)), "zorder": 1.6}


def classification(study: StudyView) -> Figure:
    """Accuracy above chance by length of the document, beside a bag of ids."""
    stored = {row.bucket: row.k for run in study.runs for row in run.rows if row.metric in METRICS}
    buckets = sorted(stored, key=lambda b: (b == "all", b.startswith("length:>"), stored[b]))
    words = [b.removeprefix("length:").replace("<=", "≤ ").replace(">", "> ") for b in buckets]
    words = [word.replace("-", "–") for word in words]
    rows = Table(
        run.key | {"metric": metric, "bucket": b, "k": row.k, "value": row.value, "n": row.n}
        for run in study.runs
        for metric in METRICS
        for b in buckets
        if (row := run.row(metric, stored[b], b))
    )
    missing = [] if rows else ["suite C was not measured: this study has no classifiers"]
    for b, word in zip(buckets, words, strict=True):
        have = rows.where(metric=METRICS[0], bucket=b)
        missing += study.without(have, f"nothing for documents of {word}")
    points = Table(r | {"x": buckets.index(r["bucket"]), "y": 100 * r["value"]} for r in rows)
    whole, cut, bag = (points.where(metric=metric) for metric in METRICS)
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
        axes.set_xticks(range(len(buckets)), words, rotation=turned)
        axes.set_xlim(-0.3, len(buckets) - 0.7)
        axes.set_ylim(min(0, *points.column("y")) - 4, max(points.column("y")) + 4)
        axes.yaxis.set_major_formatter(marks.PERCENT)

    caption = (
        "Balanced accuracy above chance (0 is guessing) by the length of the document, in bins up "
        "to L, to 2L and so on; all: every document. Dash-dotted: naive Bayes on the bag of ids, "
        "which knows no order. Dotted in the arm's colour: the same documents cut at L. An arm "
        "that is no better with the whole document than with its first L inputs does not "
        f"extrapolate. {marks.seeds_note(study)}"
    )
    key, title = [Line2D([], [], label="bag of ids", **BAG)], "Long-text classification"
    made = marks.line_panels(study, lines, "x", "y", dress, draw_arm, key)
    labels = ("length of the document (inputs)", "right, above chance")
    return Figure("longtext", title, caption, rows, labels=labels, missing=missing, **made)
