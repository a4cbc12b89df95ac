"""rows.jsonl of one evaluation: one row a line, whole items at a time, each item once."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from posenc_jax.results.files import json_lines, read_json_lines, replace_text
from posenc_jax.results.schema import BPB, DEFINITIONS, FAR, Row, row_from_json
from posenc_jax.results.stored_run import checked_row


class RowFile:
    """rows.jsonl of one evaluation; an item (one measure at one length) is in it wholly or not at all.

    Args:
      path: the file. stamps: by suite, what its rows must agree on (checkpoint step, settings); rows
        with another stamp, or under other definitions of the metrics, are dropped when the file is
        opened.

    Raises:
      ValueError: a line that is no row, in one line that names it.
    """

    def __init__(self, path: Path, stamps: Mapping[str, str]):
        self._path, self._stamps = path, stamps
        numbered, cut = read_json_lines(path) if path.exists() else ([], 0)
        stored = [checked_row(one, path, number) for number, one in numbered]
        # Where the file was cut, rows of its last item may be gone: it is measured again.
        partial = stored[-1].item if cut and stored else None
        self._rows = [row for row in stored if self._current(row) and row.item != partial]
        self.dropped = len(stored) - len(self._rows)

    def _current(self, row: Row) -> bool:
        return (row.definitions, row.stamp) == (DEFINITIONS, self._stamps.get(row.suite))

    def has(self, item: str) -> bool:
        """Whether an item has been measured under these stamps; "E5/64" also as "E5/64@<what with>".

        One of which every row was skipped has not: what it lacked may be there now.
        """
        return any(item in (row.item, _plain(row.item)) and not row.skipped for row in self._rows)

    def row(self, metric: str, length: int, bucket: str = "all") -> Row | None:
        """Returns a measured row, or None where there is none or it was skipped."""
        for row in self._rows:
            if (row.metric, row.length, row.bucket) == (metric, length, bucket):
                return row if row.measured else None
        return None

    def value(self, metric: str, length: int, bucket: str = "all") -> tuple[float, int] | None:
        """Returns the (value, n) of a measured row, or None."""
        row = self.row(metric, length, bucket)
        return None if row is None else (row.value, row.n)

    def add(self, item: str, rows: Sequence[Row]) -> None:
        """Writes an item's rows; the file is replaced in one move, so a kill cannot cut it.

        Rows of the same item measured with something else (after the "@") give way.
        """
        stamps, name = self._stamps, _plain(item)
        new = [dataclasses.replace(row, item=item, stamp=stamps[row.suite]) for row in rows]
        if new == [row for row in self._rows if _plain(row.item) == name]:
            return  # skipped again: rows keep their order
        self._rows = [row for row in self._rows if _plain(row.item) != name] + new
        replace_text(self._path, json_lines(row.to_json() for row in self._rows))


def headline(path: Path) -> str:
    """Returns what a file of rows says about text in one line: E3 within L and past it; "" without E3."""
    rows = [row_from_json(stored) for _, stored in read_json_lines(path)[0]]
    found = {row.length: row for row in rows if row.metric == BPB and row.measured}
    if not found:
        return ""
    L = rows[0].train_length
    places = [("within L (c = L/2)", L // 2), *((f"after {k}L", k * L) for k in (FAR, 2 * FAR))]
    said = [f"{found[length].value:.3f} {where}" for where, length in places if length in found]
    return f"bits per byte of {rows[0].split}: {', '.join(said)}"


def _plain(item: str) -> str:
    return item.partition("@")[0]
