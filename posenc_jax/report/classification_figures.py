"""Suite C: long-text classification by the length of the document."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from posenc_jax.report import style
from posenc_jax.report.line_axes import (
    PERCENT,
    TOGETHER,
    apart_note,
    arm_panels,
    backdrop,
    band,
    bands,
    finish,
    seeds_note,
)
from posenc_jax.report.study_view import StudyView
from posenc_jax.report.style import INK, MUTED, Layout, Picture

METRICS = ("longtext_corrected", "longtext_cut_corrected", "longtext_bag_corrected")
BAG = {"color": INK, "linewidth": 1.1, "linestyle": (0, (6, 2, 1, 2)), "zorder": 1.6}
DOTTED = (0, (1, 1.5))


def classification(study: StudyView) -> Picture:
    """Accuracy above chance by length bucket, with the bag of ids and the reading cut at L."""
    buckets = _buckets(study)
    records = [
        {"arm": run.arm, "seed": run.seed, "metric": metric, "bucket": bucket, "k": row.k}
        | {"value": row.value, "n": row.n}
        for run in study.runs
        for metric in METRICS
        for bucket, k in buckets.items()
        if (row := run.row(metric, k, bucket))
    ]
    have = {(r["arm"], r["bucket"]) for r in records if r["metric"] == METRICS[0]}
    missing = [
        f"{study.names[arm]}: nothing for documents of {_words(b)}"
        for arm in study.arms
        for b in buckets
        if records and (arm, b) not in have
    ]

    def draw(layout: Layout) -> Figure:
        return _draw(study, records, list(buckets), layout)

    return Picture(
        "longtext",
        "Long-text classification",
        "Balanced accuracy above chance (0: guessing) by the length of the document, in bins up to L, to 2L and "
        "so on; all: every document. Dash-dotted: naive Bayes on the bag of ids, which knows no order and no "
        "position. Dotted in the arm's colour: the same documents cut at L; an arm that does no better with "
        f"the whole document does not extrapolate. {seeds_note(study)}{apart_note(study)}",
        ("arm", "seed", "metric", "bucket", "k", "value", "n"),
        tuple(records),
        draw if records else None,
        tuple(missing if records else ["suite C was not measured: this study has no classifiers"]),
    )  # fmt: skip


def _buckets(study: StudyView) -> dict[str, float]:
    """Buckets of length that any run has a row for, in order, with the k they are stored under."""
    found = {row.bucket: row.k for run in study.runs for row in run.rows if row.metric in METRICS}
    order = sorted(found, key=lambda b: (b == "all", b.startswith("length:>"), found[b]))
    return {bucket: found[bucket] for bucket in order}


def _words(bucket: str) -> str:
    words = bucket.removeprefix("length:")
    return words.replace("<=", "≤ ").replace(">", "> ").replace("-", "–")


def _draw(study: StudyView, records: list[dict], buckets: list[str], layout: Layout) -> Figure:
    points = [r | {"x": buckets.index(r["bucket"]), "percent": 100 * r["value"]} for r in records]
    whole, cut, bag = ([p for p in points if p["metric"] == m] for m in METRICS)
    arms = [arm for arm in study.arms if any(p["arm"] == arm for p in whole)]
    line = [p for p in whole if p["bucket"] != "all"]

    def dress(axes: Axes) -> None:
        _levels(axes, bag, buckets)
        axes.axvline(0.5, color=INK, linewidth=1)
        axes.set_xticks(range(len(buckets)), [_words(b) for b in buckets],
                        rotation=90 if len(arms) > TOGETHER else 0)  # fmt: skip
        axes.set_xlim(-0.3, len(buckets) - 0.7)
        axes.yaxis.set_major_formatter(PERCENT)

    def extras(axes: Axes, arm: str) -> None:
        thin = {"marker": "", "linewidth": 1.0, "linestyle": DOTTED}
        band(axes, study, [p for p in cut if p["bucket"] != "all"], arm, "x", "percent", **thin)
        band(axes, study, [p for p in whole if p["bucket"] == "all"], arm, "x", "percent")

    if len(arms) > TOGETHER:
        key = Line2D([], [], label="bag of ids", **BAG)
        figure, found = arm_panels(study, arms, layout, height=1.9, more=[key])
        for arm, axes in found.items():
            backdrop(axes, study, line, arm, "x", "percent")
            band(axes, study, line, arm, "x", "percent")
            extras(axes, arm)
            dress(axes)
        figure.supxlabel("length of the document (inputs)", color=MUTED, fontsize=layout.font)
        figure.supylabel("right, above chance", color=MUTED, fontsize=layout.font)
        return figure
    height = 3.4 if layout.narrow else 3.6
    figure, (axes,) = style.panels(layout, 1, 1, height)
    bands(axes, study, line, "x", "percent")
    for arm in arms:
        extras(axes, arm)
    dress(axes)
    for words, height_of in (("bag of ids", _mean(bag, arms[0], buckets)), ("chance", 0.0)):
        if height_of is not None:
            axes.annotate(
                words,
                (len(buckets) - 1, height_of),
                (0, 3),
                textcoords="offset points",
                ha="center",
                color=MUTED,
            )
    axes.set_xlabel("length of the document (inputs)")
    axes.set_ylabel("right, above chance")
    last = [
        (_mean(whole, arm, buckets), study.names[arm], style.colour(study.colours[arm]))
        for arm in arms
    ]
    finish(axes, [end for end in last if end[0] is not None], height)
    return figure


def _levels(axes: Axes, bag: list[dict], buckets: list[str]) -> None:
    """Chance, and the bag of ids, which is the same for every arm: a function of documents alone."""
    axes.axhline(0, color=MUTED, linewidth=0.8)
    means = {}
    for p in bag:
        means.setdefault(p["x"], []).append(p["percent"])
    xs = [x for x in sorted(means) if buckets[x] != "all"]
    axes.plot(xs, [np.mean(means[x]) for x in xs], **BAG)
    for x in set(means) - set(xs):
        axes.plot([x - 0.2, x + 0.2], [np.mean(means[x])] * 2, **BAG)


def _mean(whole: list[dict], arm: str, buckets: list[str]) -> float | None:
    for x in range(len(buckets) - 1, -1, -1):
        found = [p["percent"] for p in whole if p["arm"] == arm and p["x"] == x]
        if found:
            return float(np.mean(found))
    return None
