"""The tables of the page: every number per arm, by suite, as HTML and as one CSV."""

import dataclasses
import html
from collections.abc import Callable

import numpy as np

from posenc_jax.report import style
from posenc_jax.report.study_view import RunView, StudyView, is_number, task_name, times, where
from posenc_jax.results.chance import passkey_only
from posenc_jax.results.schema import BPB, ID, OTHER_PLACE, SUMMARY_TASKS

Reader = Callable[[RunView], tuple[float, int | None] | None]  # value, n
FIELDS = ("arm", "metric", "seeds", "mean", "min", "max", "n_per_seed")
FOLDED = "Every retrieval task"  # the one table that is wide without end


@dataclasses.dataclass(frozen=True)
class Column:
    """One metric of a table: how to read it from a run and how to print it."""

    title: str
    read: Reader
    show: Callable[[float], str]


def groups(study: StudyView) -> dict[str, list[Column]]:
    """The tables by title, each with the columns that any run measured."""
    found = {
        "Text": _text_columns(study),
        "Use of far context": _context_columns(study),
        "Retrieval": _summary_columns(study),
        FOLDED: _task_columns(study),
        "Relative structure": _structure_columns(study),
        "Long-text classification": _class_columns(study),
    }
    return {title: columns for title, columns in found.items() if columns}


def table(study: StudyView) -> list[dict]:
    """Every number of the tables, per arm and metric: mean, smallest, largest, seeds, n."""
    columns = [column for found in groups(study).values() for column in found]
    return [_record(study, arm, column) for arm in study.arms for column in columns]


def section(study: StudyView) -> str:
    """All tables as HTML, the first with seeds, parameters and minutes."""
    parts = [
        "<p class='caption'>Mean over seeds; below it the smallest and largest seed where there "
        "is more than one, and n, the number of scored tokens or answers per seed. d > L: only "
        "needles further back than L, above chance. A dash: not measured. Wide tables scroll sideways. "
        f"<code>figures/numbers.csv</code></p><p class='caption'>{html.escape(_scale(study))}</p>"
    ]
    for index, (title, columns) in enumerate(groups(study).items()):
        body = _html(study, columns, cost=index == 0)
        if title == FOLDED:
            parts.append(
                f"<details><summary>{title} <span>{len(columns)} columns</span></summary>{body}</details>"
            )
        else:
            parts.append(f"<h3>{title}</h3>{body}")
    return "".join(parts)


def dot(study: StudyView, arm: str) -> str:
    """The arm's colour as HTML."""
    cycle, index = divmod(study.colours[arm], len(style.ARM_COLOURS))
    kind = "dot hollow" if cycle else "dot"
    return f'<span class="{kind}" style="--dot: var(--arm-{index})"></span>'


def _scale(study: StudyView) -> str:
    """What the text and the retrieval columns mean, and what a model of passkeys alone would score."""
    said = "In distribution is bpb_ctx after L/2: its rows end at L. At c = L the targets lie at positions L to 1.5 L."
    if study.main_tasks == SUMMARY_TASKS:
        said += (
            f" Retrieval is above chance without binding; a model that finds passkeys and nothing else has Y_R "
            f"{percent(passkey_only())}."
        )
    return said


def percent(value: float) -> str:
    """A share as whole percent, with a true minus and a space that does not break."""
    return f"{100 * value:.0f}\u00a0%".replace("-", "−")


def _text_columns(study: StudyView) -> list[Column]:
    found = []
    for metric, title in (
        ("bpb_ctx", "bpb_ctx"),
        ("bpb_nonoverlap", "bpb E1"),
        ("bpb_sliding", "bpb E2"),
    ):
        least = ID if metric == BPB else 1
        ks = [k for k in study.multiples(metric) if k >= least]
        found += [Column(f"{title} {where(metric, k)}", row(metric, k), _three) for k in ks]
        far = study.far_multiple(metric)
        if metric == BPB and ID in ks and far:
            title = f"bpb_ctx {times(far)} ÷ {times(ID)}"
            found.append(Column(title, lambda run, k=far: ratio(run, k), _two))
    return found


def _context_columns(study: StudyView) -> list[Column]:
    found = []
    for metric, title, show in (
        ("bpb_key", "bpb_key (E5)", _three),
        ("context_gain", "context_gain (E7)", _signed),
        ("bpb_window", "bpb_window (E8)", _three),
        ("window_check", "window_check (E8)", _signed),
        ("early_token_curse", "early_token_curse (E9)", _signed),
        ("repeat_gain", "repeat_gain, gap", _signed),
        (OTHER_PLACE, f"{OTHER_PLACE} (confounded), gap", _signed),
    ):
        found += [Column(f"{title} {times(k)}" if "gap" in title else f"{title} at {times(k)}", row(metric, k), show)
                  for k in study.multiples(metric)]  # fmt: skip
    return found


def _summary_columns(study: StudyView) -> list[Column]:
    found = [
        Column(f"{metric} at {times(k)}", row(metric, k), percent)
        for metric in ("Y_R", "Y_R_far", "Y_R_window", "Y_R_id", "least_id")
        for k in study.multiples(metric)
    ]
    for task in study.tasks:
        found += [
            Column(f"EL_0.85 {task_name(task)} (tokens)", row("EL_0.85", k, task), "{:.0f}".format)
            for k in study.multiples("EL_0.85", task)
        ]
    return found


def _task_columns(study: StudyView) -> list[Column]:
    found = []
    for task in study.tasks:
        metric, name = f"{task}_corrected", task_name(task)
        for k in study.multiples(metric):
            found.append(Column(f"{name} at {times(k)}", row(metric, k), percent))
            found += [
                Column(
                    f"{name}, asked {kind}, at {times(k)}", row(metric, k, f"kind:{kind}"), percent
                )
                for kind in ("LAST", "FIRST")
                if any(run.row(metric, k, f"kind:{kind}") for run in study.runs)
            ]
        for k in study.multiples(metric):
            if any(run.far(task, k) is not None for run in study.runs):
                found.append(Column(f"{name} at {times(k)}, d > L", _far_reader(task, k), percent))
    return found


def _structure_columns(study: StudyView) -> list[Column]:
    found = []
    for metric, title in (
        ("P1_shift_error", "P1, largest"),
        ("P1_counter_error", "P1 counter, largest"),
    ):
        column = Column(title, _largest_reader(metric), "{:.1e}".format)
        found += [column] if any(column.read(run) for run in study.runs) else []
    ks = sorted(
        {one.k for run in study.runs for one in run.rows if one.metric == "P2_relative_structure"}
    )
    found += [
        Column(
            f"P2 at {times(k)}, mean of heads",
            _heads_reader("P2_relative_structure", k),
            _two_plain,
        )
        for k in ks
    ]
    found += [
        Column(f"P3 at {times(k)}", row("P3_offset_accuracy", k), percent)
        for k in study.multiples("P3_offset_accuracy")
    ]
    for axis in ("bpb_ctx", "passkey_accuracy", "mqar_accuracy"):
        metric = f"P4_{axis}_change"
        found += [
            Column(
                f"P4, rotation off: {axis} at {times(k)}", row(metric, k, "rotation off"), _signed
            )
            for k in study.multiples(metric, "rotation off")
        ]
    found += [
        Column(f"P5, monotone to {times(k)}", row("P5_monotone_share", k), percent)
        for k in study.multiples("P5_monotone_share")
    ]
    return found  # fmt: skip


def _class_columns(study: StudyView) -> list[Column]:
    names = (("longtext_accuracy", "accuracy"), ("longtext_corrected", "above chance"), ("longtext_nll", "nats"),
             ("longtext_cut_corrected", "cut at L"), ("longtext_bag_corrected", "bag of ids"))  # fmt: skip
    buckets = {
        one.bucket: one.k
        for run in study.runs
        for one in run.rows
        if one.metric == "longtext_corrected"
    }
    return [
        Column(f"{words}, {bucket.removeprefix('length:')}", row(metric, k, bucket), _two_plain if words == "nats" else percent)
        for bucket, k in buckets.items()
        for metric, words in names
        if any(run.row(metric, k, bucket) for run in study.runs)
    ]  # fmt: skip


def row(metric: str, k: float, bucket: str = "all") -> Reader:
    """Reads one row."""

    def read(run: RunView) -> tuple[float, int | None] | None:
        found = run.row(metric, k, bucket)
        return None if found is None else (found.value, found.n)

    return read


def _far_reader(task: str, k: float) -> Reader:
    return lambda run: run.far(task, k)


def ratio(run: RunView, k: float) -> tuple[float, None] | None:
    """Bits per byte after kL over those in distribution."""
    far, near = run.value(BPB, k), run.value(BPB, ID)
    return (far / near, None) if far is not None and near else None


def _largest_reader(metric: str) -> Reader:
    """The largest over shifts."""

    def read(run: RunView) -> tuple[float, int | None] | None:
        rows = [r for r in run.rows if r.metric == metric and r.bucket.startswith("all shift:")]
        rows = [r for r in rows if r.measured]
        return (max(r.value for r in rows), rows[0].n) if rows else None

    return read


def _heads_reader(metric: str, k: float) -> Reader:
    def read(run: RunView) -> tuple[float, int | None] | None:
        rows = [r for r in run.rows if r.metric == metric and r.k == k and r.measured]
        return (float(np.mean([r.value for r in rows])), rows[0].n) if rows else None

    return read


def _record(study: StudyView, arm: str, column: Column) -> dict:
    cells = [cell for run in study.of(arm) if (cell := column.read(run)) is not None]
    values, n = [value for value, _ in cells], sorted({n for _, n in cells if n is not None})
    return (
        {"arm": arm, "metric": column.title, "seeds": len(values)}
        | {"mean": float(np.mean(values)) if values else None}
        | {"min": min(values, default=None), "max": max(values, default=None)}
        | {"n_per_seed": "–".join(map(str, sorted({n[0], n[-1]}))) if n else ""}
    )


def _html(study: StudyView, columns: list[Column], cost: bool) -> str:
    head = "".join(f"<th scope='col'>{html.escape(column.title)}</th>" for column in columns)
    if cost:
        head += (
            "<th scope='col'>seeds</th><th scope='col'>parameters</th><th scope='col'>minutes</th>"
        )
    body = []
    for arm in study.arms:
        name = html.escape(study.names[arm])
        cells = [_cell(_record(study, arm, column), column) for column in columns]
        cells += [_cost(study, arm)] if cost else []
        body.append(f"<tr><th scope='row'>{dot(study, arm)} {name}</th>{''.join(cells)}</tr>")
    return (
        f"<div class='scroll'><table><thead><tr><th scope='col'>arm</th>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _cell(record: dict, column: Column) -> str:
    if record["mean"] is None:
        return "<td>–</td>"
    notes = []
    if record["seeds"] > 1:
        low = column.show(record["min"]).rstrip("\u00a0%×")
        notes.append(f"{low} to {column.show(record['max'])}")
    if record["n_per_seed"]:
        notes.append(f"n {record['n_per_seed']}")
    small = "".join(f"<small>{html.escape(note)}</small>" for note in notes)
    return f"<td>{html.escape(column.show(record['mean']))}{small}</td>"


def _cost(study: StudyView, arm: str) -> str:
    cells = [f"<td>{', '.join(str(run.seed) for run in study.of(arm))}</td>"]
    for field, show in (
        ("parameters", lambda x: f"{x:,.0f}"),
        ("wall_seconds", lambda x: f"{x / 60:.1f}"),
    ):
        infos = [run.data.info for run in study.of(arm)]
        values = [info[field] for info in infos if is_number(info.get(field))]
        cells.append(f"<td>{show(sum(values) / len(values)) if values else '–'}</td>")
    return "".join(cells)


def _two(value: float) -> str:
    return f"{value:.2f}×"


def _two_plain(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _three(value: float) -> str:
    return f"{value:.3f}"


def _signed(value: float) -> str:
    text = f"{value:+.3f}".replace("-", "−")
    return "0.000" if float(text[1:]) == 0 else text
