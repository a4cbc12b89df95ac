"""Pareto picture of extrapolation and retrieval, hypervolume, factorial effects."""

import itertools

import numpy as np
from matplotlib.axes import Axes

from posenc_jax.report import marks, style
from posenc_jax.report.figure import Figure, Subplot, Table, panels_of
from posenc_jax.report.study_view import StudyView, task_name, times
from posenc_jax.report.style import INK, MUTED, RULE, SURFACE
from posenc_jax.results.schema import BPB, FAR, SUMMARY_TASKS
from posenc_jax.study.factorial import Fit, fit
from posenc_jax.study.pareto import front, standings

DRAWS, PARETO_SEED, EFFECTS_SEED, LEVEL = 10_000, 20_260, 20_261, 0.95
LEAST_SEEDS = 3  # below, a share of draws over seeds says nothing
OUTCOMES = (("bpb_ctx", "bits per byte", 1.0), ("retrieval", "retrieval, points", 100.0))


def pareto_figures(study: StudyView) -> list[Figure]:
    """Returns the picture, and what seeds and factors allow to say about it."""
    return [pareto(study), *hypervolumes(study), *factorial_effects(study)]


def pareto(study: StudyView) -> Figure:
    """Extrapolation against retrieval, a mark per seed and the mean of each arm."""
    k_text, tasks = study.far_multiple(BPB), study.main_tasks
    ks = [k for task in tasks if (k := study.far_multiple(f"{task}_corrected")) is not None]
    k_task = min(ks, default=None)
    rows, missing = Table(), []
    for run in study.runs:
        bpb = None if k_text is None else run.value(BPB, k_text)
        score = None if k_task is None else run.retrieval(k_task, tasks)
        lacks = [w for w, v in (("bits per byte", bpb), ("retrieval", score)) if v is None]
        if lacks:
            missing.append(f"{study.label(run)}: no {' and no '.join(lacks)}")
            continue
        text = {"k_text": k_text, "bpb_ctx": bpb}
        rows.append(run.key | text | {"k_retrieval": k_task, "retrieval": score})
    words = " and ".join(map(task_name, tasks)) + (": Y_R" if tasks == SUMMARY_TASKS else "")
    text, retrieval = times(k_text or FAR), times(k_task or FAR)
    seeds = "One seed per arm: a mark has no error bar and may move with another seed."
    if study.seeds_per_arm[1] > 1:
        seeds = "Small marks are seeds, the large mark is their mean."
    caption = (
        f"Across: bits per byte on the same held-out targets with {text} of context; fewer is "
        f"better. Up: answers right in contexts of {retrieval} ({words or 'no task'}), above "
        "chance; 0 % is guessing among the values in sight. The grey line joins the arms that no "
        f"other arm beats on both axes. {seeds}"
    )
    close = _close_up(rows)
    if close is not None:
        caption += " The second panel is a close-up without the arms that break."
    sides = [(study, rows, None)] + [(study, rows, close)] * (close is not None)
    panels = panels_of(_clouds, sides, 3.9) if rows else ()
    labels = (
        f"bits per byte with {text} of context  (fewer is better ←)",
        f"retrieval at {retrieval}, above chance  (more is better ↑)",
    )
    title, across = "Extrapolation against retrieval", max(1, len(panels))
    return Figure("pareto", title, caption, rows, panels, across, None, labels, missing)


def _close_up(rows: Table) -> tuple[float, float] | None:
    """Limits of x without the arms that break, if those leave the other arms no room."""
    means = sorted(map(np.mean, rows.grouped("arm", "bpb_ctx").values()))
    if len(means) < 4:
        return None
    kept = [x for x in means if x <= means[0] + 4 * (means[len(means) // 2] - means[0])]
    if len(kept) < 3 or means[-1] - means[0] < 3 * (kept[-1] - kept[0]):
        return None
    pad = 0.15 * (kept[-1] - kept[0]) or 0.01
    return kept[0] - pad, kept[-1] + pad


def _clouds(axes: Axes, study: StudyView, rows: Table, limits: tuple[float, float] | None) -> None:
    """Seeds, means, names and the front, of the arms inside the limits."""
    points, means = {}, {}
    for arm in study.arms_of(rows):
        here = [(row["bpb_ctx"], 100 * row["retrieval"]) for row in rows.where(arm=arm)]
        x, y = np.mean(here, axis=0)
        if limits is None or limits[0] <= x <= limits[1]:
            points[arm], means[arm] = here, (x, y)
    for arm, (x, y) in means.items():
        look = style.line_style(study.colours[arm]) | {"linestyle": "none"}
        if len(points[arm]) > 1:
            for a, b in points[arm]:
                axes.plot([x, a], [y, b], color=look["color"], linewidth=0.7, alpha=0.45)
            axes.plot(*zip(*points[arm], strict=True), markersize=4, alpha=0.65, **look)
        axes.plot(x, y, markersize=10, markeredgecolor=SURFACE, zorder=4, **look)
    best = [list(means.values())[i] for i in front(list(means.values()))]
    # Steps: a point on the front dominates what lies to its right and below.
    steps = [best[0], *(p for a, b in itertools.pairwise(best) for p in ((b[0], a[1]), b))]
    axes.plot(*zip(*steps, strict=True), color=MUTED, linewidth=1, zorder=1)
    axes.axhline(0, color=RULE, linewidth=1)
    axes.margins(x=0.16)
    axes.set_ylim(min(0.0, *(100 * share for share in rows.column("retrieval"))) - 6, 108)
    axes.yaxis.set_major_formatter(marks.PERCENT)
    axes.set_title("close up" if limits else "↖ better on both", color=MUTED, weight="normal")
    axes.autoscale_view()
    names = [(*means[a], study.names[a], style.colour(study.colours[a])) for a in means]
    marks.name_points(axes, names, [p for found in points.values() for p in found], (5.0, 3.9))


def hypervolumes(study: StudyView) -> list[Figure]:
    """The area each arm dominates, where two arms have both outcomes for LEAST_SEEDS seeds."""
    outcomes, seeds = pareto(study).rows, {run.seed for run in study.runs}
    clouds, missing = {}, []
    for arm in study.arms:
        here = outcomes.where(arm=arm)
        if set(here.column("seed")) == seeds:
            clouds[arm] = {row["seed"]: (row["bpb_ctx"], row["retrieval"]) for row in here}
        else:
            missing.append(f"{study.names[arm]}: not on every seed of the study, so it is left out")
    if len(clouds) < 2 or len(seeds) < LEAST_SEEDS:
        return []
    worst, words = study.unigram, "a unigram model"
    if worst is None:
        worst = max(x for cloud in clouds.values() for x, _ in cloud.values())
        words = "the worst run; no single unigram level is known"
    found = standings(clouds, (worst, 0.0), draws=DRAWS, seed=PARETO_SEED)
    rows = [
        {"arm": s.arm, "seeds": s.seeds, "bpb_ctx": s.mean[0], "retrieval": s.mean[1]}
        | {"on_front": s.on_front, "front_share": s.front_share, "hypervolume": s.volume}
        | {"low": s.low, "high": s.high, "contribution": s.contribution}
        | {"reference_bpb": worst, "reference_retrieval": 0.0}
        for s in found
    ]
    order = sorted(found, key=lambda s: s.volume)

    def draw(axes: Axes) -> None:
        for y, s in enumerate(order):
            look = style.line_style(study.colours[s.arm])
            axes.plot([s.low, s.high], [y, y], color=look["color"], linewidth=2.5, alpha=0.5)
            axes.plot([s.volume], [y], markersize=7, markeredgecolor=SURFACE, **look)
            marks.note(axes, f"{100 * s.front_share:.0f} %", (1, y), (4, 0))
        axes.set_yticks(range(len(order)), [marks.wrap(study.names[s.arm], 18) for s in order])
        axes.set_ylim(-0.6, len(order) - 0.4)
        axes.set_xlim(left=0)
        axes.set_title("right: share of draws on the front", color=MUTED, weight="normal")
        axes.set_xlabel("hypervolume (bits per byte x share)")

    caption = (
        "Hypervolume: the area that an arm alone dominates in the picture above, up to the "
        f"reference of {worst:.2f} bits per byte ({words}) and no retrieval, with its 95 % "
        f"bootstrap interval over seeds. Percent: the share of {DRAWS:,} draws in which no other "
        "arm beats this one on both axes."
    )
    panels, title = [Subplot(draw, 0.9 + 0.26 * len(order))], "Hypervolume over seeds"
    return [Figure("tradeoff", title, caption, rows, panels, missing=missing)]


def factorial_effects(study: StudyView) -> list[Figure]:
    """Main effects and interactions, where the study names factors with measured cells."""
    named = study.record.get("factors", {})
    levels = {arm: chosen for arm, chosen in named.items() if arm in study.arms}
    outcomes, missing = pareto(study).rows, []
    factors = list(dict.fromkeys(name for chosen in levels.values() for name in chosen))
    seeds = {run.seed for run in study.runs if run.arm in levels}
    cells: dict[tuple[str, ...], str] = {}
    for arm, chosen in levels.items():
        name, cell = study.names[arm], tuple(chosen.get(factor, "") for factor in factors)
        if "" in cell:
            missing.append(f"{name}: names no level of {factors[cell.index('')]}")
        elif set(outcomes.where(arm=arm).column("seed")) != seeds:
            missing.append(f"{name}: not on every seed of the study, so its cell is left out")
        elif cell in cells:
            missing.append(
                f"{name}: the same cell as {study.names[cells[cell]]}, so it is left out"
            )
        else:
            cells[cell] = arm
    if len(cells) < 3:
        return []
    fits: dict[str, Fit] = {}
    for outcome, words, scale in OUTCOMES:
        values = {
            cell: {row["seed"]: scale * row[outcome] for row in outcomes.where(arm=arm)}
            for cell, arm in cells.items()
        }
        try:
            fits[words] = fit(values, factors, draws=DRAWS, seed=EFFECTS_SEED, level=LEVEL)
        except ValueError as error:  # the cells that are left may not tell the factors apart
            missing.append(f"{words}: {error}")
    for term in sorted({term for found in fits.values() for term in found.left_out}):
        missing.append(f"{term}: these cells cannot tell it, so it is not in the model")
    rows = [
        {"outcome": words, "term": " x ".join(e.term), "levels": ", ".join(e.levels)}
        | {"effect": e.estimate, "low": e.low, "high": e.high}
        | {"grand_mean": found.mean, "seeds": len(found.seeds)}
        for words, found in fits.items()
        for e in found.effects
    ]
    text, retrieval = (times(outcomes[0][name]) for name in ("k_text", "k_retrieval"))
    caption = (
        "How far each level, and each pair of levels, lies from what the rest of the design "
        "predicts: main effects and two-way interactions by least squares on the outcomes of each "
        f"seed, each summing to zero over its levels. Bits per byte: with {text} of context, left "
        f"is better. Retrieval: at {retrieval}, right is better. Lines: {100 * LEVEL:.0f} % "
        "bootstrap intervals over seeds. Cells: "
        f"{', '.join(study.names[arm] for arm in cells.values())}. A temperature on some heads of "
        "an arm is no factor here unless the table names it."
    )
    count = max((len(found.effects) for found in fits.values()), default=0)
    panels = panels_of(_effects, fits.items(), 0.9 + 0.3 * count)
    return [Figure("effects", "Factorial effects", caption, rows, panels, 2, missing=missing)]


def _effects(axes: Axes, words: str, found: Fit) -> None:
    shown = found.effects[::-1]
    for y, effect in enumerate(shown):
        colour = style.colour(len(effect.term) - 1)
        if effect.low is not None:
            axes.plot([effect.low, effect.high], [y, y], color=colour, linewidth=2, alpha=0.55)
        marker = "o" if len(effect.term) == 1 else "D"
        axes.plot([effect.estimate], [y], marker=marker, color=colour)
    axes.axvline(0, color=INK, linewidth=1)
    labels = [f"{' x '.join(e.term)}: {', '.join(e.levels)}" for e in shown]
    axes.set_yticks(range(len(shown)), [marks.wrap(label, 26) for label in labels])
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set(title=words, xlabel=f"from the grand mean of {marks.minus(f'{found.mean:.2f}')}")
