"""Pareto picture of extrapolation and retrieval, hypervolume, factorial effects."""

import itertools

import numpy as np
from matplotlib.axes import Axes

from posenc_jax.report import marks, style
from posenc_jax.report.figure import Figure, FigurePanel, Table, panels_of
from posenc_jax.report.markup import captioned
from posenc_jax.report.study_view import StudyView, task_name, times
from posenc_jax.report.style import INK, MUTED, RULE, SURFACE
from posenc_jax.results.schema import BPB, FAR, SUMMARY_TASKS
from posenc_jax.results.study_data import RunData
from posenc_jax.study.factorial import Fit, fit
from posenc_jax.study.pareto import front, standings

DRAWS, PARETO_SEED, EFFECTS_SEED, LEVEL = 10_000, 20_260, 20_261, 0.95
LEAST_SEEDS = 3  # below, a share of draws over seeds says nothing
OUTCOMES = (("bpb_ctx", "bits per byte", 1.0), ("retrieval", "retrieval, points", 100.0))


def _outcomes(study: StudyView) -> tuple[Table, list[str]]:
    k_text, tasks = study.far_multiple(BPB), study.main_tasks
    k_task = study.far_multiple(*(f"{task}_corrected" for task in tasks))

    def read(run: RunData) -> list[dict] | str:
        bpb = None if k_text is None else run.value(BPB, k_text)
        score = None if k_task is None else run.retrieval(k_task, tasks)
        lacks = [w for w, v in (("bits per byte", bpb), ("retrieval", score)) if v is None]
        found = {"k_text": k_text, "bpb_ctx": bpb, "k_retrieval": k_task, "retrieval": score}
        return f"no {' and no '.join(lacks)}" if lacks else [found]

    return study.collect(read)


def pareto(study: StudyView) -> Figure:
    """Extrapolation against retrieval, a mark per seed and the mean of each arm."""
    rows, missing = _outcomes(study)
    tasks = study.main_tasks
    named = " and ".join(map(task_name, tasks)) + (": Y_R" if tasks == SUMMARY_TASKS else "")
    text, retrieval = (times(rows[0][k] if rows else FAR) for k in ("k_text", "k_retrieval"))
    close = _close_up(rows)
    limits = [None] + [close] * (close is not None)
    panels = panels_of(_clouds, [(study, rows, x) for x in limits if rows], 3.9)
    more = ("many_seeds" if study.seeds_per_arm[1] > 1 else "one_seed", close and "close_up")
    words = captioned("pareto", *more, text=text, retrieval=retrieval, tasks=named or "no task")
    return Figure(rows=rows, panels=panels, columns=len(limits), missing=missing, **words)


def _close_up(rows: Table) -> tuple[float, float] | None:
    """Limits of x without the arms that break, if those leave the other arms no room."""
    means = sorted(rows.means("arm", "bpb_ctx").values())
    kept = [x for x in means if x <= means[0] + 4 * (means[len(means) // 2] - means[0])]
    if len(means) < 4 or len(kept) < 3 or means[-1] - means[0] < 3 * (kept[-1] - kept[0]):
        return None
    pad = 0.15 * (kept[-1] - kept[0]) or 0.01
    return kept[0] - pad, kept[-1] + pad


def _clouds(axes: Axes, study: StudyView, rows: Table, limits: tuple[float, float] | None) -> None:
    names, points = [], []
    for arm in study.arms_of(rows):
        here = [(row["bpb_ctx"], 100 * row["retrieval"]) for row in rows.where(arm=arm)]
        x, y = np.mean(here, axis=0)
        if limits is None or limits[0] <= x <= limits[1]:
            look = style.line_style(study.colours[arm]) | {"linestyle": "none"}
            if len(here) > 1:
                for a, b in here:
                    axes.plot([x, a], [y, b], color=look["color"], linewidth=0.7, alpha=0.45)
                axes.plot(*zip(*here, strict=True), markersize=4, alpha=0.65, **look)
            axes.plot(x, y, markersize=10, markeredgecolor=SURFACE, zorder=4, **look)
            names.append((x, y, study.names[arm], look["color"]))
            points += here
    best = [names[i][:2] for i in front([name[:2] for name in names])]
    # Steps: a point on the front dominates what lies to its right and below.
    steps = [best[0], *(p for a, b in itertools.pairwise(best) for p in ((b[0], a[1]), b))]
    axes.plot(*zip(*steps, strict=True), color=MUTED, linewidth=1, zorder=1)
    axes.axhline(0, color=RULE, linewidth=1)
    axes.margins(x=0.16)
    axes.set_ylim(min(0.0, *(100 * share for share in rows.column("retrieval"))) - 6, 108)
    axes.yaxis.set_major_formatter(marks.PERCENT)
    axes.set_title("close up" if limits else "↖ better on both", color=MUTED, weight="normal")
    axes.autoscale_view()
    marks.name_points(axes, names, points, (5.0, 3.9))


def hypervolumes(study: StudyView) -> list[Figure]:
    """The area each arm dominates, where two arms have both outcomes for LEAST_SEEDS seeds."""
    outcomes, seeds = _outcomes(study)[0], {run.seed for run in study.runs}
    clouds = {
        arm: {row["seed"]: (row["bpb_ctx"], row["retrieval"]) for row in outcomes.where(arm=arm)}
        for arm in study.arms
    }
    lacking = [arm for arm in clouds if set(clouds[arm]) != seeds]
    missing = [
        f"{study.names[arm]}: not on every seed of the study, so left out" for arm in lacking
    ]
    clouds = {arm: cloud for arm, cloud in clouds.items() if arm not in lacking}
    if len(clouds) < 2 or len(seeds) < LEAST_SEEDS:
        return []
    worst, level = study.unigram, "a unigram model"
    if worst is None:
        worst = max(x for cloud in clouds.values() for x, _ in cloud.values())
        level = "the worst run; no single unigram level is known"
    found = standings(clouds, (worst, 0.0), draws=DRAWS, seed=PARETO_SEED)
    rows = [
        {"arm": s.arm, "seeds": s.seeds, "bpb_ctx": s.mean[0], "retrieval": s.mean[1]}
        | {"on_front": s.on_front, "front_share": s.front_share, "hypervolume": s.volume}
        | {"low": s.low, "high": s.high, "contribution": s.contribution}
        | {"reference_bpb": worst, "reference_retrieval": 0.0}
        for s in found
    ]
    order = sorted(found, key=lambda s: -s.volume)

    def draw(axes: Axes) -> None:
        for y, s in enumerate(order):
            look = style.line_style(study.colours[s.arm])
            axes.plot([s.low, s.high], [y, y], color=look["color"], linewidth=2.5, alpha=0.5)
            axes.plot([s.volume], [y], markersize=7, markeredgecolor=SURFACE, **look)
            marks.note(axes, f"{100 * s.front_share:.0f} %", (1, y), (4, 0))
        marks.lines(axes, [study.names[s.arm] for s in order])
        axes.set_xlim(left=0)
        axes.set_title("right: share of draws on the front", color=MUTED, weight="normal")
        axes.set_xlabel("hypervolume (bits per byte x share)")

    panels = [FigurePanel(draw, 0.9 + 0.26 * len(order))]
    words = captioned("tradeoff", worst=worst, level=level, draws=DRAWS)
    return [Figure(rows=rows, panels=panels, missing=missing, **words)]


def factorial_effects(study: StudyView) -> list[Figure]:
    """Main effects and interactions, where the study names factors with measured cells."""
    outcomes, missing, cells = _outcomes(study)[0], [], {}
    named = study.data.record.get("factors", {})
    levels = {arm: chosen for arm, chosen in named.items() if arm in study.arms}
    factors = list(dict.fromkeys(name for chosen in levels.values() for name in chosen))
    seeds = {run.seed for run in study.runs if run.arm in levels}
    for arm, chosen in levels.items():
        cell = tuple(chosen.get(factor, "") for factor in factors)
        why = ""
        if "" in cell:
            why = f"names no level of {factors[cell.index('')]}"
        elif set(outcomes.where(arm=arm).column("seed")) != seeds:
            why = "not on every seed of the study, so its cell is left out"
        elif cell in cells:
            why = f"the same cell as {study.names[cells[cell]]}, so it is left out"
        else:
            cells[cell] = arm
        missing += [f"{study.names[arm]}: {why}"] * bool(why)
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
    count = max((len(found.effects) for found in fits.values()), default=0)
    panels = panels_of(_effects, fits.items(), 0.9 + 0.3 * count)
    listed = ", ".join(study.names[arm] for arm in cells.values())
    at = {"text": text, "retrieval": retrieval, "level": f"{100 * LEVEL:.0f}"}
    said = captioned("effects", cells=listed, **at)
    return [Figure(rows=rows, panels=panels, columns=2, missing=missing, **said)]


def _effects(axes: Axes, words: str, found: Fit) -> None:
    for y, effect in enumerate(found.effects):
        colour = style.colour(len(effect.term) - 1)
        if effect.low is not None:
            axes.plot([effect.low, effect.high], [y, y], color=colour, linewidth=2, alpha=0.55)
        marker = "o" if len(effect.term) == 1 else "D"
        axes.plot([effect.estimate], [y], marker=marker, color=colour)
    axes.axvline(0, color=INK, linewidth=1)
    marks.lines(axes, [f"{' x '.join(e.term)}: {', '.join(e.levels)}" for e in found.effects], 26)
    axes.set(title=words, xlabel=f"from the grand mean of {marks.minus(f'{found.mean:.2f}')}")
