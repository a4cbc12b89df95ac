"""Reader of a published folder: runs.json, rows.jsonl.gz (or rows.jsonl), arrays.npz, logs,
schemes.
"""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from posenc_jax.results.files import read_json, read_json_lines
from posenc_jax.results.record_schema import OBJECT, RUN, TEXT, check, check_logged
from posenc_jax.results.schema import Row
from posenc_jax.results.stored_run import (
    checked_record,
    checked_row,
    optional_json,
    read_npz,
    rows_of_run,
)
from posenc_jax.results.study_data import RunData

PUBLISHED = "runs.json"  # a folder that has one was published
# Fields of an entry of runs.json beside the record and the name of the run, with their defaults.
BESIDE = {"config": {}, "settings": "", "why": ""}


def missing_files(folder: Path) -> tuple[str, ...]:
    """Returns a sentence for every optional file that is missing."""
    consequences = {
        "arrays.npz": "No arrays were published: a bootstrap draws seeds alone, and figures of "
        "arrays are left out.",
        "metrics.jsonl.gz": "No training logs were published: training curves are left out.",
        "texts.json": "The texts are listed nowhere.",
    }
    return tuple(words for name, words in consequences.items() if not (folder / name).exists())


def published_runs(folder: Path, split: str, own: bool) -> list[RunData]:
    """Returns the runs of a published folder on one split.

    Args:
      own: whether it is the split of the study; of the other split only rows were published.

    Raises:
      ValueError: a damaged file, a record or rows of another run, or rows without a run.
    """
    path = next(
        (folder / n for n in ("rows.jsonl.gz", "rows.jsonl") if (folder / n).exists()), None
    )
    if path is None:
        raise ValueError(f"{folder} has runs.json and neither rows.jsonl.gz nor rows.jsonl")
    numbered, cut = read_json_lines(path)
    if cut:
        raise ValueError(f"{path}, line {cut} is cut off")
    lines: dict[str, list[tuple[int, Row]]] = {}
    for number, one in numbered:
        row = checked_row(one, path, number)
        if row.split == split:
            lines.setdefault(row.run, []).append((number, row))
    logs: dict[str, list[dict]] = {}
    if (folder / "metrics.jsonl.gz").exists():
        for number, one in read_json_lines(folder / "metrics.jsonl.gz")[0]:
            where = f"{folder / 'metrics.jsonl.gz'}, line {number}"
            check(one, {"run": TEXT}, where, ("run",))
            logged = {k: v for k, v in one.items() if k != "run"}
            check_logged(logged, where)
            logs.setdefault(one["run"], []).append(logged)
    archive = _Archive(folder / "arrays.npz", own)
    portraits = optional_json(folder / "portraits.json.gz")
    check(portraits, dict.fromkeys(portraits, OBJECT), str(folder / "portraits.json.gz"))
    runs = []
    for name, entry in _entries(folder, lines).items():
        about = {**BESIDE, **entry}
        record = {k: v for k, v in entry.items() if k != "name" and k not in BESIDE}
        info = checked_record(record, f"{folder / PUBLISHED}, {name}")
        rows = rows_of_run(lines.get(name, ()), path, info, name, split)
        runs.append(
            RunData(
                name=name,
                info=info,
                config=about["config"],
                rows=rows,
                settings=about["settings"],
                metrics=tuple(logs.get(name, ())),
                why=(about["why"] if own else "")
                or ("" if rows else f"no row of {split} was published"),
                scheme=portraits.get(name, {}),
                array_names=archive.names(name),
                arrays=functools.partial(archive.arrays, name),
            )
        )
    return runs


def _entries(folder: Path, lines: Mapping[str, Sequence[tuple[int, Row]]]) -> dict[str, Mapping]:
    """Returns the entries of runs.json by the name of the run.

    Older entries have no name: it is taken from the rows. A stretched evaluation had no entry; its
    record is that of its run.
    """
    listed, path = read_json(folder / PUBLISHED, list), folder / PUBLISHED
    if not all(isinstance(entry, Mapping) for entry in listed):
        raise ValueError(f"{path} must list objects, the records of runs")
    for number, entry in enumerate(listed, 1):
        check(entry, RUN, f"{path}, entry {number}", ("arm", "seed"))
    if all("name" in entry for entry in listed):
        by_name = {entry["name"]: entry for entry in listed}
        if len(by_name) < len(listed):
            raise ValueError(f"{path} names a run twice")
        if strangers := sorted(lines.keys() - by_name.keys()):
            raise ValueError(f"{path} has no run {strangers[0]!r}, of which there are rows")
        return by_name
    by_seed = {(entry["arm"], entry["seed"]): entry for entry in listed}
    owners = {name: (rows[0][1].arm, rows[0][1].seed) for name, rows in lines.items()}
    by_name = {}
    for name, owner in sorted(owners.items()):
        read = name.partition("/stretched/")[0]
        entry = by_seed.get(owner) or (by_seed.get(owners[read]) if read in owners else None)
        if entry is None:
            raise ValueError(f"{path} has no run of arm {owner[0]!r}, seed {owner[1]}")
        by_name[name] = entry if owner in by_seed else entry | {"arm": owner[0]}
    return by_name


class _Archive:
    """arrays.npz of a published folder: <run name>/<array name>/<field>."""

    def __init__(self, path: Path, own: bool):
        self._path, self._own = path, own

    @functools.cached_property
    def _runs(self) -> dict[str, dict[str, dict[str, np.ndarray]]]:
        by_run: dict[str, dict[str, dict[str, np.ndarray]]] = {}
        if self._own and self._path.exists():
            for key, array in read_npz(self._path, str(self._path)).items():
                run, name, field = key.rsplit("/", 2)
                by_run.setdefault(run, {}).setdefault(name, {})[field] = array
        return by_run

    def names(self, run: str) -> tuple[str, ...]:
        return tuple(sorted(self._runs[run])) if run in self._runs else ()

    def arrays(self, run: str, name: str) -> dict[str, np.ndarray]:
        if name not in self.names(run):
            raise ValueError(f"{name} was not published")
        return self._runs[run][name]
