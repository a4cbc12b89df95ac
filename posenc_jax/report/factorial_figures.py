"""Factorial effects and interactions on extrapolation and on retrieval, with intervals over seeds."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from posenc_jax.report import style
from posenc_jax.report.retrieval_figures import pareto
from posenc_jax.report.study_view import StudyView, times
from posenc_jax.report.style import INK, MUTED, Layout, Picture
from posenc_jax.study.factorial import Fit, fit

DRAWS, SEED, LEVEL = 10_000, 20_261, 0.95
OUTCOMES = (("bpb_ctx", "bits per byte", 1.0), ("retrieval", "retrieval, points", 100.0))


def pictures(study: StudyView) -> list[Picture]:
    """The effects, where the study names factors and their cells have been measured."""
    factors = study.record.get("factors", {})
    levels = {arm: chosen for arm, chosen in factors.items() if arm in study.arms}
    records, missing = pareto(study).records, []
    factors = list(dict.fromkeys(name for chosen in levels.values() for name in chosen))
    seeds = {run.seed for run in study.runs if run.arm in levels}
    cells: dict[tuple[str, ...], str] = {}
    for arm, chosen in levels.items():
        here = {r["seed"] for r in records if r["arm"] == arm}
        cell = tuple(chosen.get(name, "") for name in factors)
        if "" in cell:
            missing.append(f"{study.names[arm]}: names no level of {factors[cell.index('')]}")
        elif here != seeds:
            missing.append(f"{study.names[arm]}: not on every seed of the study, so its cell is left out")  # fmt: skip
        elif cell in cells:
            missing.append(f"{study.names[arm]}: the same cell as {study.names[cells[cell]]}, so it is left out")  # fmt: skip
        else:
            cells[cell] = arm
    if len(cells) < 3:
        return []
    fits = {}
    for outcome, words, scale in OUTCOMES:
        values = {
            cell: {r["seed"]: scale * r[outcome] for r in records if r["arm"] == arm}
            for cell, arm in cells.items()
        }
        try:
            fits[words] = fit(values, factors, draws=DRAWS, seed=SEED, level=LEVEL)
        except ValueError as error:  # the cells that are left may not tell the factors apart
            missing.append(f"{words}: {error}")
    left_out = sorted({term for found in fits.values() for term in found.left_out})
    missing += [f"{term}: these cells cannot tell it, so it is not in the model" for term in left_out]  # fmt: skip
    arms = ", ".join(study.names[arm] for arm in cells.values())
    return [_picture(fits, arms, records[0], tuple(missing))]


def _picture(fits: dict[str, Fit], arms: str, record: dict, missing: tuple[str, ...]) -> Picture:
    rows = tuple(
        {"outcome": words, "term": " x ".join(e.term), "levels": ", ".join(e.levels),
         "effect": e.estimate, "low": e.low, "high": e.high, "grand_mean": found.mean, "seeds": len(found.seeds)}
        for words, found in fits.items()
        for e in found.effects
    )  # fmt: skip

    def draw(layout: Layout) -> Figure:
        count = max(len(found.effects) for found in fits.values())
        shape = (len(fits), 1) if layout.narrow else (1, len(fits))
        figure, grid = style.panels(layout, *shape, 1.0 + 0.27 * count)
        for axes, (words, found) in zip(grid, fits.items(), strict=True):
            _forest(axes, words, found, named=axes is grid[0] or layout.narrow)
        return figure

    return Picture(
        "effects",
        "Factorial effects",
        "How far each level, and each pair of levels, lies from what the rest of the design predicts: main "
        f"effects and two-way interactions by least squares on per-seed outcomes (bits per byte with "
        f"{times(record['k_text'])} of context: left is better; retrieval at {times(record['k_retrieval'])}: "
        "right is better), each summing to zero over its levels. Lines: "
        f"{100 * LEVEL:.0f} % bootstrap intervals over seeds. Cells: {arms}. A temperature that some of "
        "these heads carry goes with its arm: it is no factor here unless the table names it.",
        ("outcome", "term", "levels", "effect", "low", "high", "grand_mean", "seeds"),
        rows,
        draw if rows else None,
        missing,
    )


def _forest(axes: Axes, words: str, found: Fit, named: bool) -> None:
    shown = list(found.effects)[::-1]
    for y, effect in enumerate(shown):
        colour = style.colour(len(effect.term) - 1)
        if effect.low is not None:
            axes.plot([effect.low, effect.high], [y, y], color=colour, linewidth=2, alpha=0.55)
        axes.plot(
            [effect.estimate], [y], marker="o" if len(effect.term) == 1 else "D", color=colour
        )
    axes.axvline(0, color=INK, linewidth=1)
    labels = [f"{' x '.join(e.term)}: {', '.join(e.levels)}" for e in shown]
    axes.set_yticks(range(len(shown)), labels if named else [""] * len(shown))
    axes.set_ylim(-0.7, len(shown) - 0.3)
    axes.set_title(words)
    mean = f"{found.mean:.2f}".replace("-", "−")
    axes.set_xlabel(f"from the grand mean of {mean}", color=MUTED)
