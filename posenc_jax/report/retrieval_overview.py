"""All retrieval tasks at a glance: arms against tasks at every length, needles beyond L apart."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from posenc_jax.report import style
from posenc_jax.report.labels import wrap
from posenc_jax.report.line_axes import whole_percent
from posenc_jax.report.study_view import RunView, StudyView, task_name, times
from posenc_jax.report.style import EMPTY, MUTED, SURFACE, Layout, Picture
from posenc_jax.results.schema import FAR, SUMMARY_TASKS

COLOURS = "cividis"
KINDS = {"LAST": "asked last", "FIRST": "asked first"}  # of latest_first
SUMMARY = "Y_R"
SIDE_BY_SIDE = 7  # columns that four maps on one line have room for


def retrieval_overview(study: StudyView) -> Picture:
    """Accuracy above chance of every arm, task and length, mean over seeds."""
    ks = sorted({k for task in study.tasks for k in study.multiples(f"{task}_corrected")})
    columns = _columns(study)
    records = []
    for k in ks:
        for far in (False, True):
            for arm in study.arms:
                for column in columns:
                    found = [
                        v for run in study.of(arm) if (v := _score(run, column, k, far)) is not None
                    ]
                    if found:
                        records.append(
                            {"arm": arm, "k": k, "needles": "d > L" if far else "all", "task": column}
                            | {"corrected": float(np.mean(found)), "min": min(found), "max": max(found)}
                            | {"seeds": len(found)}
                        )  # fmt: skip
    have = {(r["arm"], r["task"]) for r in records}
    missing = [f"{study.names[arm]}: {_words(task)} was not measured" for arm in study.arms
               for task in columns if (arm, task) not in have]  # fmt: skip

    def draw(layout: Layout) -> Figure:
        return _draw(study, records, columns, ks, layout)

    summary = "Y_R is the mean of passkey, needles 4 and MQAR 16. " if SUMMARY in columns else ""
    return Picture(
        "retrieval_overview",
        "Every retrieval task",
        "Answers right above chance without binding (%; 0 is guessing among what is in sight, 100 perfect), mean over seeds, in contexts of "
        f"{', '.join(times(k) for k in ks)}. Maps named d > L count only needles further back than anything "
        f"seen in training. {summary}An empty cell was not measured. Smallest and largest seed are in the table.",
        ("arm", "k", "needles", "task", "corrected", "min", "max", "seeds"),
        tuple(records),
        draw if records else None,
        tuple(missing),
    )  # fmt: skip


def _columns(study: StudyView) -> list[str]:
    """Tasks, with the kinds of question behind theirs, and the summary first."""
    found = [SUMMARY] if study.main_tasks == SUMMARY_TASKS else []
    for task in study.tasks:
        found.append(task)
        found += [f"{task} kind:{kind}" for kind in KINDS if study.multiples(f"{task}_corrected", f"kind:{kind}")]  # fmt: skip
    return found


def _score(run: RunView, column: str, k: float, far: bool) -> float | None:
    if column == SUMMARY:
        return run.far_mean(k, SUMMARY_TASKS) if far else run.retrieval(k, SUMMARY_TASKS)
    task, _, bucket = column.partition(" ")
    if far:
        found = None if bucket else run.far(task, k)
        return None if found is None else found[0]
    return run.value(f"{task}_corrected", k, bucket or "all")


def _words(column: str) -> str:
    task, _, bucket = column.partition(" ")
    if bucket:
        return KINDS[bucket.removeprefix("kind:")]
    return column if column == SUMMARY else task_name(task)


def _draw(study: StudyView, records: list[dict], columns: list[str], ks: list, layout: Layout) -> Figure:  # fmt: skip
    arms = [arm for arm in study.arms if any(r["arm"] == arm for r in records)]
    measured = {(r["k"], r["needles"]) for r in records}
    if layout.narrow:  # the lengths that decide; the table has them all
        star = FAR if FAR in ks else max(ks)
        across, order = 1, [(min(ks), "all"), (star, "all"), (star, "d > L")]
    elif len(columns) <= SIDE_BY_SIDE and len(ks) <= 4:  # far needles below all of the same length
        across, order = len(ks), [(k, far) for far in ("all", "d > L") for k in ks]
    else:  # beside them
        across, order = 2, [(k, far) for k in ks for far in ("all", "d > L")]
    order = [m if m in measured else None for m in dict.fromkeys(order)]
    if layout.narrow or not any(m and m[1] != "all" for m in order):
        order = [m for m in order if m]
    lines = -(-len(order) // across)
    height = max(
        1.6, 0.55 + (0.23 if not layout.narrow else 0.3) * len(arms)
    )  # room for names above
    longest = max(len(_words(c)) for c in columns)
    figure, grid = style.panels(layout, lines, across, height)
    image = None
    for index, axes in enumerate(grid):
        at = order[index] if index < len(order) else None
        if at is None:
            style.blank(axes)
            if index % across == 0:  # names of the line, where they take no room from the maps
                _names_inside(axes, study, arms)
            continue
        cells = {
            (r["arm"], r["task"]): r["corrected"] for r in records if (r["k"], r["needles"]) == at
        }
        values = np.array([[cells.get((arm, c), np.nan) for c in columns] for arm in arms])
        left = index % across == 0
        image = heat(axes, values, [study.names[a] for a in arms] if left else None, layout)
        for label, arm in zip(axes.get_yticklabels(), arms, strict=left):
            label.set_color(style.colour(study.colours[arm]))
        line = (
            index // across * across
        )  # names above a line where one of its maps has none above it
        top = line == 0 or layout.narrow or None in order[line - across : line]
        axes.xaxis.tick_top()
        names = [_words(c) for c in columns] if top else [""] * len(columns)
        turn = 90 if longest * len(columns) * across > 60 else 0
        axes.set_xticks(np.arange(len(columns)) + 0.5, names, rotation=turn)
        if SUMMARY in columns:
            axes.axvline(1, color=SURFACE, linewidth=3)
        k, far = at
        axes.set_title(times(k) if far == "all" else f"{times(k)}, d > L", pad=8)
    bar = figure.colorbar(image, ax=grid, location="bottom", shrink=0.4, aspect=40, pad=0.02,
                          format=FuncFormatter(lambda x, _: f"{100 * x:.0f} %"))  # fmt: skip
    bar.set_label("answers right, above chance")
    bar.outline.set_visible(False)
    return figure


def _names_inside(axes: Axes, study: StudyView, arms: list[str]) -> None:
    for row, arm in enumerate(arms):
        axes.text(1.0, 1 - (row + 0.5) / len(arms), study.names[arm], transform=axes.transAxes, ha="right",
                  va="center", color=style.colour(study.colours[arm]))  # fmt: skip


def heat(
    axes: Axes, values: np.ndarray, names: Sequence[str] | None, layout: Layout, size: float = 0.78
):
    """Draws shares as percent in coloured cells, rows from the top; names of the rows, or none."""
    rows, columns = values.shape
    axes.set_facecolor(EMPTY)
    image = axes.pcolormesh(
        np.arange(columns + 1), np.arange(rows + 1), np.ma.masked_invalid(values), cmap=COLOURS,
        vmin=0, vmax=1, edgecolors=SURFACE, linewidth=0.6,
    )  # fmt: skip
    for (row, column), value in np.ndenumerate(values):
        if np.isnan(value):
            continue
        # Not the page's ink: these stand on colours that do not change with the theme.
        shade = "#fdfdfd" if value < 0.55 else "#111113"
        axes.text(column + 0.5, row + 0.5, whole_percent(value), ha="center", va="center_baseline",
                  fontsize=size * layout.font, color=shade)  # fmt: skip
    axes.set_ylim(rows, 0)
    names = [wrap(name, 18) if layout.narrow else name for name in names or [""] * rows]
    axes.set_yticks(np.arange(rows) + 0.5, names)
    axes.set_xticks([])
    axes.grid(False)
    axes.tick_params(colors=MUTED)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return image
