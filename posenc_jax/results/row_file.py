"""Row file of an evaluation (rows.jsonl), written item by item so that an evaluation can resume."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from posenc_jax.results.files import json_lines, read_json_lines, replace_text
from posenc_jax.results.schema import DEFINITIONS, Row
from posenc_jax.results.stored_run import checked_row

COUNTED = "+"  # in a stamp, before a number of instances or stretches


class RowFile:
    """rows.jsonl of one evaluation; it has all rows of an item (one measure at one length) or none.

    Args:
      path: the file. stamps: a stamp of checkpoint step and settings, by suite. Rows with another
        stamp or other definitions are dropped when the file is opened. After COUNTED a stamp says
        how many instances or stretches were measured: rows of other counts stay, until their item
        is measured with these.

    Raises:
      ValueError: a line that is no row, in one line that names it.
    """

    def __init__(self, path: Path, stamps: Mapping[str, str]):
        self._path, self._stamps = path, stamps
        numbered, cut = read_json_lines(path) if path.exists() else ([], 0)
        stored = [checked_row(one, path, number) for number, one in numbered]
        # In a cut-off file the last item may lack rows: it is measured again.
        partial = stored[-1].item if cut and stored else None
        self._rows = [row for row in stored if self._current(row) and row.item != partial]
        self.dropped = len(stored) - len(self._rows)

    def _current(self, row: Row) -> bool:
        if row.suite not in self._stamps or row.definitions != DEFINITIONS:
            return False
        return row.stamp.partition(COUNTED)[0] == self._stamps[row.suite].partition(COUNTED)[0]

    def _counted(self) -> list[Row]:
        return [row for row in self._rows if row.stamp == self._stamps[row.suite]]

    def has(self, item: str) -> bool:
        """Whether an item is measured under these stamps; "E5/64" also matches "E5/64@<details>".

        An item whose rows were all skipped is not: it may be possible now.
        """
        return any(
            item in (row.item, _plain(row.item)) and not row.skipped for row in self._counted()
        )

    def row(self, metric: str, length: int, bucket: str = "all") -> Row | None:
        """Returns a measured row, or None where there is none or it was skipped."""
        for row in self._counted():
            if (row.metric, row.length, row.bucket) == (metric, length, bucket):
                return row if row.measured else None
        return None

    def value(self, metric: str, length: int, bucket: str = "all") -> tuple[float, int] | None:
        """Returns the (value, n) of a measured row, or None."""
        row = self.row(metric, length, bucket)
        return None if row is None else (row.number, row.n)

    def add(self, item: str, rows: Sequence[Row]) -> None:
        """Adds the rows of an item and replaces the file atomically.

        They replace rows of the same item with other details (after the "@").
        """
        stamps, name = self._stamps, _plain(item)
        new = [dataclasses.replace(row, item=item, stamp=stamps[row.suite]) for row in rows]
        if new == [row for row in self._rows if _plain(row.item) == name]:
            return  # skipped again: rows keep their order
        self._rows = [row for row in self._rows if _plain(row.item) != name] + new
        replace_text(self._path, json_lines(row.to_json() for row in self._rows))


def _plain(item: str) -> str:
    return item.partition("@")[0]
