"""Tidy rows on disk: one JSON object a line, whole items at a time, each item once."""

import json
from collections.abc import Mapping
from pathlib import Path


class RowFile:
    """rows.jsonl of one evaluation; an item (one measure at one length) is in it wholly or not at all.

    Args:
      path: the file. stamps: by suite, what its rows must agree on (checkpoint step, settings); rows
        with another stamp are dropped when the file is opened.
    """

    def __init__(self, path: Path, stamps: Mapping[str, str]):
        self._path, self._stamps = path, stamps
        self._rows = []
        if path.exists():
            found = [json.loads(line) for line in path.read_text().splitlines()]
            self._rows = [row for row in found if row["stamp"] == stamps[row["suite"]]]
        self.dropped = len(found) - len(self._rows) if path.exists() else 0

    def has(self, item: str) -> bool:
        """Whether an item has been measured under these stamps; "E5/64" also as "E5/64@<what with>"."""
        return any(item in (row["item"], _plain(row["item"])) for row in self._rows)

    def value(self, metric: str, length: int, bucket: str = "all") -> tuple[float, int] | None:
        """Returns the measured (value, n) of a row, or None where there is none or it was skipped."""
        for row in self._rows:
            if (row["metric"], row["length"], row["bucket"]) == (metric, length, bucket):
                return None if row["value"] is None else (row["value"], row["n"])
        return None

    def add(self, item: str, rows: list[dict]) -> None:
        """Writes an item's rows; the file is replaced in one move, so a kill cannot cut it.

        Rows of the same item measured with something else (after the "@") give way.
        """
        self._rows = [row for row in self._rows if _plain(row["item"]) != _plain(item)]
        self._rows += [{**row, "item": item, "stamp": self._stamps[row["suite"]]} for row in rows]
        partial = self._path.with_name(self._path.name + ".partial")
        partial.write_text("".join(json.dumps(row) + "\n" for row in self._rows))
        partial.rename(self._path)


def _plain(item: str) -> str:
    return item.partition("@")[0]
