"""The tables of a report: every number per arm, by suite, as HTML and as one CSV."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from posenc_jax.report import markup, style
from posenc_jax.report.figure import Table
from posenc_jax.report.marks import minus
from posenc_jax.report.markup import text_of
from posenc_jax.report.study_view import StudyView, is_number, task_name, times, where
from posenc_jax.results.chance import passkey_only
from posenc_jax.results.schema import BPB, ID, OTHER_PLACE, SUMMARY_TASKS, Row
from posenc_jax.results.study_data import RunData

FIELDS = ("arm", "metric", "seeds", "mean", "min", "max", "n_per_seed")
FAR_CONTEXT = {
    "bpb_key": "bpb_key (E5) at {k}",
    "context_gain": "context_gain (E7) at {k}",
    "bpb_window": "bpb_window (E8) at {k}",
    "window_check": "window_check (E8) at {k}",
    "early_token_curse": "early_token_curse (E9) at {k}",
    "repeat_gain": "repeat_gain, gap {k}",
    OTHER_PLACE: f"{OTHER_PLACE} (confounded), gap {{k}}",
}


def percent(value: float) -> str:
    """Returns a share as whole percent, with a true minus and a space that does not break."""
    return minus(f"{100 * value:.0f}\u00a0%")


def _signed(value: float) -> str:
    text = minus(f"{value:+.3f}")
    return "0.000" if float(text[1:]) == 0 else text


plain, _two, _factor, _whole = "{:.3f}".format, "{:.2f}".format, "{:.2f}×".format, "{:.0f}".format


@dataclasses.dataclass(frozen=True)
class Column:
    """One metric; `read(run, *args)` returns a row, (value, n), a value alone, or None."""

    title: str
    show: Callable[[float], str]
    read: Callable
    args: tuple = ()

    def cells(self, study: StudyView, arm: str) -> list[tuple]:
        """Returns value and n of every seed that has the metric."""
        found = study.found(arm, self.read, *self.args)
        rows = [(x.value, x.n) if isinstance(x, Row) else x for x in found]
        return [x if isinstance(x, tuple) else (x, None) for x in rows]


def _row(title: str, metric: str, k: float, show=plain, bucket: str = "all") -> Column:
    return Column(title, show, RunData.row, (metric, k, bucket))


def _at(study: StudyView, metric: str, title: str, show=plain, bucket: str = "all") -> list[Column]:
    """A column for each multiple of L at which any run has the metric."""
    return [
        _row(title.format(k=times(k)), metric, k, show, bucket)
        for k in study.multiples(metric, bucket)
    ]


def _folded(run: RunData, metric: str, fold: Callable, start: str, k: float | None = None):
    rows = [r for r in run.rows if r.metric == metric and r.bucket.startswith(start)]
    rows = [r for r in rows if r.measured and k in (None, r.k)]
    return (float(fold([r.value for r in rows])), rows[0].n) if rows else None


def _ratio(run: RunData, k: float) -> float | None:
    far, near = run.value(BPB, k), run.value(BPB, ID)
    return far / near if far is not None and near else None


def _measured(study: StudyView, columns: Sequence[Column]) -> list[Column]:
    return [one for one in columns if any(one.cells(study, arm) for arm in study.arms)]


def groups(study: StudyView) -> dict[str, list[Column]]:
    """Returns the columns that any run measured, by the title of their table."""
    signed = {name: plain if name.startswith("bpb") else _signed for name in FAR_CONTEXT}
    summaries = ("Y_R", "Y_R_far", "Y_R_window", "Y_R_id", "least_id")
    retrieval: list[tuple] = [(metric, f"{metric} at {{k}}", percent) for metric in summaries]
    for task in study.tasks:
        retrieval.append(("EL_0.85", f"EL_0.85 {task_name(task)} (tokens)", _whole, task))
    found = {
        "Text": _text_columns(study),
        "Use of far context": [
            column for m in FAR_CONTEXT for column in _at(study, m, FAR_CONTEXT[m], signed[m])
        ],
        "Retrieval": [column for one in retrieval for column in _at(study, *one)],
        "Every retrieval task": [c for task in study.tasks for c in _task_columns(study, task)],
        "Relative structure": _structure_columns(study),
        "Long-text classification": _class_columns(study),
    }
    measured = {title: _measured(study, columns) for title, columns in found.items()}
    return {title: columns for title, columns in measured.items() if columns}


def _text_columns(study: StudyView) -> list[Column]:
    found, far = [], study.far_multiple(BPB)
    kinds = {BPB: ("bpb_ctx", ID), "bpb_nonoverlap": ("bpb E1", 1), "bpb_sliding": ("bpb E2", 1)}
    for metric, (title, least) in kinds.items():
        ks = [k for k in study.multiples(metric) if k >= least]
        found += [_row(f"{title} {where(metric, k)}", metric, k) for k in ks]
        if metric == BPB and far:
            found.append(Column(f"bpb_ctx {times(far)} ÷ {times(ID)}", _factor, _ratio, (far,)))
    return found


def _task_columns(study: StudyView, task: str) -> list[Column]:
    found, far, metric, name = [], [], f"{task}_corrected", task_name(task)
    for k in study.multiples(metric):
        found.append(_row(f"{name} at {times(k)}", metric, k, percent))
        for kind in ("LAST", "FIRST"):
            title = f"{name}, asked {kind}, at {times(k)}"
            found.append(_row(title, metric, k, percent, f"kind:{kind}"))
        far.append(Column(f"{name} at {times(k)}, d > L", percent, RunData.far, (task, k)))
    return found + far


def _structure_columns(study: StudyView) -> list[Column]:
    exponent, heads = "{:.1e}".format, "P2_relative_structure"
    errors = {"P1": "P1_shift_error", "P1 counter": "P1_counter_error"}
    found = [
        Column(f"{name}, largest", exponent, _folded, (metric, max, "all shift:"))
        for name, metric in errors.items()
    ]
    for k in sorted({row.k for run in study.runs for row in run.rows if row.metric == heads}):
        title = f"P2 at {times(k)}, mean of heads"
        found.append(Column(title, _two, _folded, (heads, np.mean, "", k)))
    found += _at(study, "P3_offset_accuracy", "P3 at {k}", percent)
    for axis in ("bpb_ctx", "passkey_accuracy", "mqar_accuracy"):
        title = f"P4, rotation off: {axis} at {{k}}"
        found += _at(study, f"P4_{axis}_change", title, _signed, "rotation off")
    return found + _at(study, "P5_monotone_share", "P5, monotone to {k}", percent)


def _class_columns(study: StudyView) -> list[Column]:
    names = {
        "accuracy": ("accuracy", percent), "corrected": ("above chance", percent),
        "nll": ("nats", _two), "cut_corrected": ("cut at L", percent),
        "bag_corrected": ("bag of ids", percent),
    }  # fmt: skip
    rows = [row for run in study.runs for row in run.rows if row.metric == "longtext_corrected"]
    return [
        _row(f"{words}, {bucket.removeprefix('length:')}", f"longtext_{metric}", k, show, bucket)
        for bucket, k in {row.bucket: row.k for row in rows}.items()
        for metric, (words, show) in names.items()
    ]


def records(study: StudyView) -> Table:
    """Returns every number of the tables, per arm and metric: mean, smallest, largest, seeds, n."""
    columns = [column for found in groups(study).values() for column in found]
    return Table(_record(study, arm, column) for arm in study.arms for column in columns)


def elsewhere_records(study: StudyView) -> Table:
    """Returns the same of the arms of another training length."""
    found = ((other.train_length, row) for other in study.elsewhere for row in records(other))
    return Table({"train_length": L} | row for L, row in found)


def _record(study: StudyView, arm: str, column: Column) -> dict:
    cells = column.cells(study, arm)
    values, n = [v for v, _ in cells], sorted({n for _, n in cells if n is not None})
    ends = {"min": min(values, default=None), "max": max(values, default=None)}
    mean = float(np.mean(values)) if values else None
    n_words = "–".join(map(str, sorted({n[0], n[-1]}))) if n else ""
    counted = {"seeds": len(values), "mean": mean} | ends | {"n_per_seed": n_words}
    return {"arm": arm, "metric": column.title} | counted


def dot(study: StudyView, arm: str) -> str:
    """Returns the arm's colour and name as HTML."""
    cycle, index = divmod(study.colours[arm], len(style.ARM_COLOURS))
    kind, name = "dot hollow" if cycle else "dot", markup.text(study.names[arm])
    return f'<span class="{kind}" style="--dot: var(--arm-{index})"></span> {name}'


def _html(study: StudyView, columns: Sequence[Column]) -> str:
    rows = [
        [dot(study, arm), *(_cell(_record(study, arm, column), column.show) for column in columns)]
        for arm in study.arms
    ]
    return markup.table(["arm", *(column.title for column in columns)], rows)


def _cell(record: dict, show: Callable[[float], str]) -> str:
    if record["mean"] is None:
        return "–"
    low, mean, high = (minus(show(record[name])) for name in ("min", "mean", "max"))
    low = low.rstrip("\u00a0%×")
    notes = [f"{low} to {high}"] if record["min"] != record["max"] else []
    notes += [f"n {record['n_per_seed']}"] if record["n_per_seed"] else []
    return mean + "".join(f"<small>{markup.text(note)}</small>" for note in notes)


def _fact(run: RunData, field: str, unit: float) -> float | None:
    value = run.info.get(field)
    return value / unit if value is not None and is_number(value) else None


def overview(study: StudyView) -> str:
    """Returns the table at the top of the page: text and retrieval within L and beyond."""
    far, tasks, said = study.far_multiple(BPB), study.main_tasks, [text_of("page", "overview")]
    k = study.far_multiple(*(f"{task}_corrected" for task in tasks))
    columns = [_row(f"bits per byte {where(BPB, ID)}", BPB, ID)]
    if far:
        columns.append(_row(f"bits per byte at {times(far)}", BPB, far))
        columns.append(Column(f"{times(far)} ÷ {times(ID)}", _factor, _ratio, (far,)))
    columns.append(Column("retrieval at L", percent, RunData.retrieval, (1, tasks)))
    if k:
        title = f"retrieval at {times(k)}"
        columns.append(Column(title, percent, RunData.retrieval, (k, tasks)))
        columns.append(Column(f"{title}, d > L", percent, RunData.far_mean, (k, tasks)))
    for whole in study.multiples("longtext_corrected")[-1:]:
        title = "class of a long text, above chance"
        columns.append(_row(title, "longtext_corrected", whole, percent))
    columns.append(Column("parameters", "{:,.0f}".format, _fact, ("parameters", 1)))
    columns.append(Column("minutes", "{:.1f}".format, _fact, ("wall_seconds", 60)))
    if tasks:
        named = ", ".join(map(task_name, tasks))
        said.append(text_of("page", "retrieval", tasks=named))
    if tasks == SUMMARY_TASKS:
        said.append(text_of("page", "passkey_only", share=percent(passkey_only())))
    shown = _html(study, _measured(study, columns))
    return f"{shown}<p class='caption'>{markup.text(' '.join(said))}</p>"


def section(study: StudyView) -> str:
    """Returns all tables as HTML, each folded."""
    return "".join(
        markup.fold(title, _html(study, columns), f"{len(columns)} columns")
        for title, columns in groups(study).items()
    )


def elsewhere_section(study: StudyView) -> str:
    """Returns the tables of each arm of another training length; "" where there is none."""
    return "".join(
        f"<h3>{markup.text(f'{other.arms[0]}: L = {other.train_length}')} "
        f"({other.train_length / study.train_length:g} times that of the others), seeds "
        f"{', '.join(str(run.seed) for run in other.runs)}</h3>{section(other)}"
        for other in study.elsewhere
    )
