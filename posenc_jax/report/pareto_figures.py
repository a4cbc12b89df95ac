"""The Pareto front over extrapolation and retrieval, and what each arm's seeds say about its place."""

import itertools

from matplotlib.figure import Figure

from posenc_jax.report import style
from posenc_jax.report.labels import label_points
from posenc_jax.report.line_axes import PERCENT
from posenc_jax.report.retrieval_figures import pareto
from posenc_jax.report.study_view import StudyView, times
from posenc_jax.report.style import MUTED, RULE, SURFACE, Layout, Picture
from posenc_jax.study.pareto import front, standings

DRAWS, SEED = 10_000, 20_260
LEAST_SEEDS = 3  # below, a share of draws over seeds says nothing


def pictures(study: StudyView) -> list[Picture]:
    """The front, where two arms have both outcomes for LEAST_SEEDS seeds."""
    records = pareto(study).records
    seeds = {run.seed for run in study.runs}
    clouds, missing = {}, []
    for arm in study.arms:
        cloud = {r["seed"]: (r["bpb_ctx"], r["retrieval"]) for r in records if r["arm"] == arm}
        if set(cloud) == seeds:
            clouds[arm] = cloud
        else:
            missing.append(f"{study.names[arm]}: not on every seed of the study, so it is left out")
    if len(clouds) < 2 or len(seeds) < LEAST_SEEDS:
        return []
    return [_picture(study, records, clouds, tuple(missing))]


def _picture(study: StudyView, records, clouds, missing) -> Picture:
    reference, words = _reference(study, clouds)
    found = standings(clouds, reference, draws=DRAWS, seed=SEED)
    k_text, k_task = records[0]["k_text"], records[0]["k_retrieval"]
    rows = tuple(
        {"arm": s.arm, "seeds": s.seeds, "bpb_ctx": s.mean[0], "retrieval": s.mean[1],
         "on_front": s.on_front, "front_share": s.front_share, "hypervolume": s.volume,
         "low": s.low, "high": s.high, "contribution": s.contribution,
         "reference_bpb": reference[0], "reference_retrieval": reference[1]}
        for s in found
    )  # fmt: skip

    def draw(layout: Layout) -> Figure:
        height = 4.0 if layout.narrow else 4.4
        shape = (2, 1) if layout.narrow else (1, 2)
        figure, (left, right) = style.panels(layout, *shape, height)
        _front(left, study, clouds, found)
        left.set_xlabel(f"bits per byte with {times(k_text)} of context  (fewer is better ←)")
        left.set_ylabel(f"retrieval at {times(k_task)}, above chance  (more is better ↑)")
        marks = [(x, 100 * y) for cloud in clouds.values() for x, y in cloud.values()]
        colours = {s.arm: style.colour(study.colours[s.arm]) for s in found}
        means = [(s.mean[0], 100 * s.mean[1], study.names[s.arm], colours[s.arm]) for s in found]
        width = layout.width if layout.narrow else layout.width / 2
        label_points(left, means, marks, (width, height))
        order = sorted(found, key=lambda s: s.volume)
        for y, s in enumerate(order):
            right.plot([s.low, s.high], [y, y], color=colours[s.arm], linewidth=2.5, alpha=0.5)
            right.plot([s.volume], [y], markersize=7, markeredgecolor=SURFACE, **style.line_style(study.colours[s.arm]))  # fmt: skip
            right.annotate(f"{100 * s.front_share:.0f} %", (1.0, y), (4, 0), xycoords=right.get_yaxis_transform(),
                           textcoords="offset points", va="center", color=MUTED)  # fmt: skip
        right.set_yticks(range(len(order)), [study.names[s.arm] for s in order])
        right.set_ylim(-0.6, len(order) - 0.4)
        right.set_xlim(left=0)
        right.set_xlabel("hypervolume (bits per byte x share); right: draws on the front")
        return figure

    return Picture(
        "tradeoff",
        "The front",
        "Left: the line joins the arms that no other beats on both axes (means over seeds; small marks are "
        "seeds). Right: the area that an arm alone dominates, up to the reference of "
        f"{reference[0]:.2f} bits per byte ({words}) and no retrieval, with its 95 % bootstrap interval over "
        f"seeds, and the share of {DRAWS:,} draws in which the arm is on the front.",
        tuple(rows[0]),
        rows,
        draw,
        missing,
    )


def _front(axes, study: StudyView, clouds, found) -> None:
    means = [s.mean for s in found]
    best = [means[i] for i in front(means)]
    # Steps: what a point on the front dominates lies to its right and below.
    x = [best[0][0]] + [v for a, b in itertools.pairwise(best) for v in (b[0], b[0])]
    y = [best[0][1]] + [v for a, b in itertools.pairwise(best) for v in (a[1], b[1])]
    axes.plot(x, [100 * v for v in y], color=MUTED, linewidth=1.2, zorder=1)
    for s in found:
        look = style.line_style(study.colours[s.arm]) | {"linestyle": "none"}
        cloud = list(clouds[s.arm].values())
        axes.plot(
            [p[0] for p in cloud], [100 * p[1] for p in cloud], markersize=4, alpha=0.6, **look
        )
        axes.plot([s.mean[0]], [100 * s.mean[1]], markersize=10, markeredgecolor=SURFACE, zorder=4, **look)  # fmt: skip
    axes.axhline(0, color=RULE, linewidth=1)
    low = min(y for cloud in clouds.values() for _, y in cloud.values())
    axes.set_ylim(min(-2, 100 * low) - 6, 108)
    axes.margins(x=0.16)
    axes.yaxis.set_major_formatter(PERCENT)
    axes.autoscale_view()


def _reference(study: StudyView, clouds) -> tuple[tuple[float, float], str]:
    if study.unigram is not None:
        return (study.unigram, 0.0), "a unigram model"
    worst = max(x for cloud in clouds.values() for x, _ in cloud.values())
    return (worst, 0.0), "the worst run; no single unigram level is known"
