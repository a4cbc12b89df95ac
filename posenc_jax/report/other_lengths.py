"""Arms of another training length: a table of their own, in their own units."""

import html

import numpy as np

from posenc_jax.report.study_view import RunView, StudyView, where
from posenc_jax.report.tables import percent

FIELDS = ("arm", "seed", "train_length", "metric", "k", "length", "value", "n")
SHARES = ("Y_R_id", "Y_R", "Y_R_far", "longtext_corrected")  # shown as percent


def records(study: StudyView) -> list[dict]:
    """bpb_ctx from L/8 on and the summaries of retrieval, of every such run."""
    return [
        {"arm": run.arm, "seed": run.seed, "train_length": run.train_length, "metric": metric, "k": k}
        | {name: getattr(run.row(metric, k), name) for name in ("length", "value", "n")}
        for run in study.elsewhere
        for metric in ("bpb_ctx", *SHARES)
        for k in run.multiples(metric)
    ]  # fmt: skip


def section(study: StudyView) -> str:
    """The table as HTML; an empty string where the study has no such arm."""
    if not study.elsewhere:
        return ""
    runs: dict[str, list[RunView]] = {}
    for run in study.elsewhere:
        runs.setdefault(run.arm, []).append(run)
    parts = [
        '<section id="other_lengths"><h2>Trained at another length</h2><p class="caption">These arms stand in '
        "no figure, because every figure counts in units of one L. Their own L is the unit here: E3's targets "
        "are the last L/2 tokens of their own L, and d > L means further than they were trained, so these "
        f"numbers are not to be subtracted from those of the other arms (L = {study.train_length}). Mean over "
        "seeds, with the smallest and the largest. <code>figures/other_lengths.csv</code></p>"
    ]
    for arm, found in runs.items():
        L = found[0].train_length
        keys = sorted({(m, k) for run in found for m in ("bpb_ctx", *SHARES) for k in run.multiples(m)},
                      key=lambda key: (("bpb_ctx", *SHARES).index(key[0]), key[1]))  # fmt: skip
        seeds = ", ".join(str(run.seed) for run in found)
        words = (
            f"{arm}: L = {L} ({L / study.train_length:g} times that of the others), seeds {seeds}"
        )
        head = "".join(f"<th scope='col'>{_title(metric, k, L)}</th>" for metric, k in keys)
        body = "".join(_cell(metric, [run.value(metric, k) for run in found]) for metric, k in keys)
        parts.append(
            f"<h3>{html.escape(words)}</h3><div class='scroll'><table><thead><tr>{head}</tr></thead>"
            f"<tbody><tr>{body}</tr></tbody></table></div>"
        )
    return "".join(parts) + "</section>"


def _title(metric: str, k: float, length: int) -> str:
    return html.escape(f"{metric} {where(metric, k)}, {k * length:g} tokens")


def _cell(metric: str, values: list[float | None]) -> str:
    found = [value for value in values if value is not None]
    if not found:
        return "<td>–</td>"
    show = percent if metric in SHARES else "{:.3f}".format
    spread = f"<small>{show(min(found))} to {show(max(found))}</small>" if len(found) > 1 else ""
    return f"<td>{show(float(np.mean(found)))}{spread}</td>"
