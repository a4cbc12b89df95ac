"""Table of one evaluation: bits per byte and accuracy by length, a few lines for a terminal."""

from collections.abc import Sequence
from pathlib import Path

from posenc_jax.results.files import read_json_lines
from posenc_jax.results.schema import BPB, Row, row_from_json

COLUMNS = (0.5, 1, 2, 4, 8)  # in units of L
LINES, WIDEST = 10, 8
_ACCURACY = "_accuracy"


def run_table(path: Path) -> list[str]:
    """Returns at most LINES lines about a file of rows.

    The first line names the columns: the context c of bits per byte (c = L/2 is in distribution)
    and the length of a retrieval instance, in units of L. Other lengths than L/2, L, 2, 4 and 8 L
    have a column where they were measured, up to WIDEST columns. "-" was not measured.
    """
    rows = [row_from_json(stored) for _, stored in read_json_lines(path)[0]]
    measured = [row for row in rows if row.bucket == "all" and row.measured]
    if not measured:
        return []
    tasks = dict.fromkeys(
        r.metric for r in measured if r.suite in "RC" and r.metric.endswith(_ACCURACY)
    )
    metrics = [name for name in (BPB, "bpb_nonoverlap") if any(r.metric == name for r in measured)]
    metrics += tasks
    first = rows[0]
    titles = [f"{first.arm}, seed {first.seed}, {first.split} (L = {first.train_length})"]
    titles += [_title(name) for name in metrics]
    asked = {r.k for r in measured if r.metric in metrics and (r.metric != BPB or r.k > 0.5)}
    columns = sorted({*COLUMNS, *sorted(asked - {*COLUMNS})[: WIDEST - len(COLUMNS)]})
    shown = [[_column(k) for k in columns], *(_cells(measured, n, columns) for n in metrics)]
    width = max(map(len, titles))
    lines = [
        title.ljust(width) + "".join(cell.rjust(8) for cell in cells)
        for title, cells in zip(titles, shown, strict=True)
    ]
    if len(lines) <= LINES:
        return lines
    return [*lines[: LINES - 1], f"and {len(lines) - LINES + 1} more tasks in {path.name}"]


def _title(metric: str) -> str:
    if metric == BPB:
        return "bits per byte, after c tokens"
    if metric == "bpb_nonoverlap":
        return "bits per byte, whole length"
    return f"accuracy, {metric.removesuffix(_ACCURACY)}"


def _column(k: float) -> str:
    return f"L/{round(1 / k)}" if k < 1 and (1 / k).is_integer() else f"{k:g} L"


def _cells(rows: Sequence[Row], metric: str, columns: Sequence[float]) -> list[str]:
    found = {row.k: row.value for row in rows if row.metric == metric}
    return [f"{found[k]:.3f}" if k in found else "-" for k in columns]
