"""The tables of a report: every number per arm, by suite, as HTML and as one CSV."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from posenc_jax.report import markup, style
from posenc_jax.report.figure import Table
from posenc_jax.report.marks import minus
from posenc_jax.report.study_view import StudyView, is_number, task_name, times, where
from posenc_jax.results.chance import passkey_only
from posenc_jax.results.schema import BPB, ID, OTHER_PLACE, SUMMARY_TASKS
from posenc_jax.results.study_data import RunData

Reader = Callable[[RunData], tuple[float, int | None] | None]  # value, n
FIELDS = ("arm", "metric", "seeds", "mean", "min", "max", "n_per_seed")
SHARES = ("Y_R_id", "Y_R", "Y_R_far", "longtext_corrected")  # shown as percent


def percent(value: float) -> str:
    """Returns a share as whole percent, with a true minus and a space that does not break."""
    return minus(f"{100 * value:.0f}\u00a0%")


def _signed(value: float) -> str:
    text = minus(f"{value:+.3f}")
    return "0.000" if float(text[1:]) == 0 else text


plain, _two, _factor = "{:.3f}".format, "{:.2f}".format, "{:.2f}×".format


@dataclasses.dataclass(frozen=True)
class Column:
    """One metric of a table: how to read it from a run and how to print it."""

    title: str
    read: Reader
    show: Callable[[float], str]


def _row(metric: str, k: float, bucket: str = "all") -> Reader:
    def read(run: RunData) -> tuple[float, int | None] | None:
        found = run.row(metric, k, bucket)
        return None if found is None else (found.value, found.n)

    return read


def _at(study: StudyView, metric: str, title: str, show=plain, bucket: str = "all") -> list[Column]:
    """A column for each multiple of L at which any run has the metric."""
    return [
        Column(title.format(k=times(k), where=where(metric, k)), _row(metric, k, bucket), show)
        for k in study.multiples(metric, bucket)
    ]


def _over_rows(metric: str, fold: Callable, starts: str = "", k: float | None = None) -> Reader:
    """A number over all rows of a metric whose bucket starts so."""

    def read(run: RunData) -> tuple[float, int | None] | None:
        rows = [r for r in run.rows if r.metric == metric and r.bucket.startswith(starts)]
        rows = [r for r in rows if r.measured and k in (None, r.k)]
        return (float(fold([r.value for r in rows])), rows[0].n) if rows else None

    return read


def _ratio(run: RunData, k: float) -> tuple[float, None] | None:
    """Bits per byte after kL over those in distribution."""
    far, near = run.value(BPB, k), run.value(BPB, ID)
    return (far / near, None) if far is not None and near else None


def _measured(study: StudyView, columns: Sequence[Column]) -> list[Column]:
    return [column for column in columns if any(map(column.read, study.runs))]


def groups(study: StudyView) -> dict[str, list[Column]]:
    """Returns the columns that any run measured, by the title of their table."""
    far_context = (
        ("bpb_key", "bpb_key (E5) at {k}", plain),
        ("context_gain", "context_gain (E7) at {k}", _signed),
        ("bpb_window", "bpb_window (E8) at {k}", plain),
        ("window_check", "window_check (E8) at {k}", _signed),
        ("early_token_curse", "early_token_curse (E9) at {k}", _signed),
        ("repeat_gain", "repeat_gain, gap {k}", _signed),
        (OTHER_PLACE, f"{OTHER_PLACE} (confounded), gap {{k}}", _signed),
    )
    summaries = ("Y_R", "Y_R_far", "Y_R_window", "Y_R_id", "least_id")
    retrieval = [(metric, f"{metric} at {{k}}", percent) for metric in summaries]
    for task in study.tasks:
        title = f"EL_0.85 {task_name(task)} (tokens)"
        retrieval.append(("EL_0.85", title, "{:.0f}".format, task))
    found = {
        "Text": _text_columns(study),
        "Use of far context": [column for one in far_context for column in _at(study, *one)],
        "Retrieval": [column for one in retrieval for column in _at(study, *one)],
        "Every retrieval task": [c for task in study.tasks for c in _task_columns(study, task)],
        "Relative structure": _structure_columns(study),
        "Long-text classification": _class_columns(study),
    }
    return {title: columns for title, columns in found.items() if columns}


def _text_columns(study: StudyView) -> list[Column]:
    far, near = study.far_multiple(BPB), [k for k in study.multiples(BPB) if k < ID]
    found = _at(study, BPB, "bpb_ctx {where}")[len(near) :]
    if far and ID in study.multiples(BPB):
        title = f"bpb_ctx {times(far)} ÷ {times(ID)}"
        found.append(Column(title, lambda run: _ratio(run, far), _factor))
    for metric, title in (("bpb_nonoverlap", "bpb E1 {where}"), ("bpb_sliding", "bpb E2 {where}")):
        within = sum(k < 1 for k in study.multiples(metric))
        found += _at(study, metric, title)[within:]
    return found


def _task_columns(study: StudyView, task: str) -> list[Column]:
    found, metric, name = [], f"{task}_corrected", task_name(task)
    for k in study.multiples(metric):
        found.append(Column(f"{name} at {times(k)}", _row(metric, k), percent))
        for kind in ("LAST", "FIRST"):
            title = f"{name}, asked {kind}, at {times(k)}"
            found.append(Column(title, _row(metric, k, f"kind:{kind}"), percent))
    for k in study.multiples(metric):
        title = f"{name} at {times(k)}, d > L"
        found.append(Column(title, lambda run, k=k: run.far(task, k), percent))
    return _measured(study, found)


def _structure_columns(study: StudyView) -> list[Column]:
    exponent, heads = "{:.1e}".format, "P2_relative_structure"
    found = [
        Column("P1, largest", _over_rows("P1_shift_error", max, "all shift:"), exponent),
        Column("P1 counter, largest", _over_rows("P1_counter_error", max, "all shift:"), exponent),
    ]
    for k in sorted({row.k for run in study.runs for row in run.rows if row.metric == heads}):
        title = f"P2 at {times(k)}, mean of heads"
        found.append(Column(title, _over_rows(heads, np.mean, k=k), _two))
    found += _at(study, "P3_offset_accuracy", "P3 at {k}", percent)
    for axis in ("bpb_ctx", "passkey_accuracy", "mqar_accuracy"):
        title = f"P4, rotation off: {axis} at {{k}}"
        found += _at(study, f"P4_{axis}_change", title, _signed, "rotation off")
    found += _at(study, "P5_monotone_share", "P5, monotone to {k}", percent)
    return _measured(study, found)


def _class_columns(study: StudyView) -> list[Column]:
    names = (
        ("accuracy", "accuracy", percent), ("corrected", "above chance", percent),
        ("nll", "nats", _two), ("cut_corrected", "cut at L", percent),
        ("bag_corrected", "bag of ids", percent),
    )  # fmt: skip
    rows = [row for run in study.runs for row in run.rows if row.metric == "longtext_corrected"]
    columns = []
    for bucket, k in {row.bucket: row.k for row in rows}.items():
        for metric, words, show in names:
            title = f"{words}, {bucket.removeprefix('length:')}"
            columns.append(Column(title, _row(f"longtext_{metric}", k, bucket), show))
    return _measured(study, columns)


def records(study: StudyView) -> Table:
    """Returns every number of the tables, per arm and metric: mean, smallest, largest, seeds, n."""
    columns = [column for found in groups(study).values() for column in found]
    return Table(_record(study, arm, column) for arm in study.arms for column in columns)


def _record(study: StudyView, arm: str, column: Column) -> dict:
    cells = [cell for run in study.of(arm) if (cell := column.read(run)) is not None]
    n = sorted({n for _, n in cells if n is not None})
    n_words = "–".join(map(str, sorted({n[0], n[-1]}))) if n else ""
    return {"arm": arm, "metric": column.title} | _spread([v for v, _ in cells], n_words)


def _spread(values: Sequence[float], n: str = "") -> dict:
    ends = {"min": min(values, default=None), "max": max(values, default=None)}
    mean = float(np.mean(values)) if values else None
    return {"seeds": len(values), "mean": mean} | ends | {"n_per_seed": n}


def dot(study: StudyView, arm: str) -> str:
    """Returns the arm's colour and name as HTML."""
    cycle, index = divmod(study.colours[arm], len(style.ARM_COLOURS))
    kind, name = "dot hollow" if cycle else "dot", markup.text(study.names[arm])
    return f'<span class="{kind}" style="--dot: var(--arm-{index})"></span> {name}'


def _html(study: StudyView, columns: Sequence[Column], costs: bool = False) -> str:
    head = ["arm", *(column.title for column in columns)]
    rows = []
    for arm in study.arms:
        cells = [_cell(_record(study, arm, column), column.show) for column in columns]
        rows.append([dot(study, arm), *cells, *(_costs(study, arm) if costs else ())])
    return markup.table(head + ["seeds", "parameters", "minutes"] * costs, rows)


def _cell(record: dict, show: Callable[[float], str]) -> str:
    """The mean as HTML; in small letters the smallest and the largest seed, and n."""
    if record["mean"] is None:
        return "–"
    low, mean, high = (minus(show(record[name])) for name in ("min", "mean", "max"))
    low = low.rstrip("\u00a0%×")
    notes = [f"{low} to {high}"] if record["seeds"] > 1 else []
    notes += [f"n {record['n_per_seed']}"] if record["n_per_seed"] else []
    return mean + "".join(f"<small>{markup.text(note)}</small>" for note in notes)


def _costs(study: StudyView, arm: str) -> list[str]:
    cells = [", ".join(str(run.seed) for run in study.of(arm))]
    for field, form, unit in (("parameters", "{:,.0f}", 1), ("wall_seconds", "{:.1f}", 60)):
        values = [v for run in study.of(arm) if is_number(v := run.info.get(field))]
        cells.append(form.format(sum(values) / len(values) / unit) if values else "–")
    return cells


def overview(study: StudyView) -> str:
    """Returns the table at the top of the page: text and retrieval within L and beyond."""
    k, tasks = study.far_multiple(BPB), study.main_tasks
    ks = [found for task in tasks if (found := study.far_multiple(f"{task}_corrected"))]

    def mean(name: str, at: float, title: str) -> Column:
        def read(run: RunData) -> tuple[float, None] | None:
            value = getattr(run, name)(at, tasks)
            return None if value is None else (value, None)

        return Column(title, read, percent)

    columns = [Column(f"bits per byte {where(BPB, ID)}", _row(BPB, ID), plain)]
    if k:
        columns.append(Column(f"bits per byte at {times(k)}", _row(BPB, k), plain))
        columns.append(Column(f"{times(k)} ÷ {times(ID)}", lambda run: _ratio(run, k), _factor))
    columns.append(mean("retrieval", 1, "retrieval at L"))
    if ks:
        far = f"retrieval at {times(min(ks))}"
        columns.append(mean("retrieval", min(ks), far))
        columns.append(mean("far_mean", min(ks), f"{far}, d > L"))
    for whole in study.multiples("longtext_corrected")[-1:]:
        read = _row("longtext_corrected", whole)
        columns.append(Column("class of a long text, above chance", read, percent))
    said = (
        "Mean over seeds; in small letters the smallest and the largest seed, and n, the number "
        "of scored tokens or answers per seed. A dash was not measured."
    )
    if tasks:
        said += (
            f" Retrieval is the mean of {', '.join(map(task_name, tasks))}, above chance without "
            "binding; d > L counts only needles further back than L."
        )
    if tasks == SUMMARY_TASKS:
        only = percent(passkey_only())
        said += f" A model that finds passkeys and nothing else has Y_R {only}."
    shown = _html(study, _measured(study, columns), costs=True)
    return f"{shown}<p class='caption'>{markup.text(said)}</p>"


def section(study: StudyView) -> str:
    """Returns all tables as HTML, each folded."""
    return "".join(
        markup.fold(title, _html(study, columns), f"{len(columns)} columns")
        for title, columns in groups(study).items()
    )


def elsewhere_records(study: StudyView) -> Table:
    """Returns bpb_ctx and the summaries of retrieval of runs of another training length."""
    return Table(
        run.key
        | {"train_length": row.train_length, "metric": metric, "k": k}
        | {"length": row.length, "value": row.value, "n": row.n}
        for run in study.elsewhere
        for metric in (BPB, *SHARES)
        for k in run.multiples(metric)
        if (row := run.row(metric, k))
    )


def elsewhere_section(study: StudyView) -> str:
    """Returns a table per arm of another training length; "" where the study has no such arm."""
    parts, rows = [], elsewhere_records(study)
    for arm in dict.fromkeys(rows.column("arm")):
        head, cells, here = ["arm"], [markup.text(arm)], rows.where(arm=arm)
        for metric in (BPB, *SHARES):
            for k, values in here.where(metric=metric).grouped("k", "value").items():
                length = here.where(metric=metric, k=k)[0]["length"]
                head.append(f"{metric} {where(metric, k)}, {length} tokens")
                cells.append(_cell(_spread(values), percent if metric in SHARES else plain))
        L, seeds = here[0]["train_length"], ", ".join(map(str, here.distinct("seed")))
        longer = f"{L / study.train_length:g} times that of the others"
        words = markup.text(f"{arm}: L = {L} ({longer}), seeds {seeds}")
        parts.append(f"<h3>{words}</h3>{markup.table(head, [cells])}")
    return "".join(parts)
