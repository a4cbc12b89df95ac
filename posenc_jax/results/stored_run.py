"""Readers of the files of a run: record, rows and arrays, each checked."""

import dataclasses
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from posenc_jax.results.files import read_json
from posenc_jax.results.migration import migrate_record
from posenc_jax.results.record_schema import RUN, check
from posenc_jax.results.schema import Row, row_from_json

# Required fields of run.json.
RECORDED = (
    "arm",
    "seed",
    "tier",
    "train_length",
    "steps",
    "finished",
    "tokens",
    "corpus_fingerprint",
    "tokenizer_fingerprint",
    "versions",
    "hardware",
)
OWNER = ("arm", "seed", "tier", "train_length")  # fields in which a row and its run.json must agree


def optional_json(path: Path) -> dict:
    """Returns the JSON object of a file, {} where there is no file."""
    return read_json(path) if path.exists() else {}


def checked_record(info: Mapping, where: str) -> Mapping:
    """Returns run.json, migrated; ValueError, from `where` on, if incomplete or of wrong type."""
    check(info, RUN, where, RECORDED)
    return migrate_record(info)


def checked_row(one: Mapping, path: Path, number: int) -> Row:
    """Returns the row of a line; an older value that is not finite becomes None, with a reason."""
    value = one.get("value")
    if isinstance(value, float) and not math.isfinite(value):
        one = {**one, "value": None, "skipped": f"not finite ({value})"}
    try:
        return row_from_json(one)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: {error}") from None


def rows_of_run(
    numbered: Sequence[tuple[int, Row]], path: Path, info: Mapping, name: str, split: str
) -> tuple[Row, ...]:
    """Returns the rows of one run without duplicates.

    Args:
      numbered: rows with their line numbers in `path`. info: record of the run. name: of the run.

    Raises:
      ValueError: a row of another run, split or checkpoint, or two values of a measurement.
    """
    first: dict[tuple, tuple[int, Row]] = {}
    for number, row in numbered:
        where = f"{path}, line {number}"
        for field in OWNER:
            if getattr(row, field) != info[field]:
                raise ValueError(
                    f"{where} is of {field} {getattr(row, field)!r}, its run {name} of "
                    f"{info[field]!r}; evaluate the run again"
                )
        if row.split != split or row.checkpoint != "last":
            raise ValueError(
                f"{where} is of split {row.split}, checkpoint {row.checkpoint}, not of {split} and "
                "the last"
            )
        key = row.metric, row.length, row.bucket
        line, earlier = first.setdefault(key, (number, row))
        if line != number and _measured(earlier) != _measured(row):
            raise ValueError(
                f"{where} and line {line} both give {row.metric} at {row.length}, {row.bucket}"
            )
    rows = (row for _, row in first.values())
    return tuple(row if row.run == name else dataclasses.replace(row, run=name) for row in rows)


def _measured(row: Row) -> Row:
    return dataclasses.replace(row, item="", stamp="")


def read_npz(path: Path, what: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a file; ValueError with the name `what` if it is damaged."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"{what} is damaged") from None
