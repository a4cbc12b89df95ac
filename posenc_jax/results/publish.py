"""Publication of a study: a folder to commit, from which report and verdict can be made without its
runs.
"""

import dataclasses
import gzip
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posenc_jax.results.files import json_lines, read_json, replace_bytes
from posenc_jax.results.load import check_comparable, load_unmigrated, tuning_runs
from posenc_jax.results.published_folder import PUBLISHED
from posenc_jax.results.study_data import RunData, StudyData

# All but the last part of an absolute path inside a recorded value: folders of a machine stay
# private.
_FOLDERS = re.compile(r"(^|[=\s'\"])/(?:[^/\s'\"]+/)+")


def publish(
    data: StudyData, out: Path, texts: Sequence[Mapping], beside: StudyData | None = None
) -> dict[str, int]:
    """Writes a published folder and returns the bytes of each of its files.

    It has rows, logs, arrays (exact, in the smallest type) and records of every run, the rows of
    the learning-rate search, the plan, and the list of texts. The same study gives the same bytes.

    Args:
      data: of `load_unmigrated`. out: the folder; figures and pages in it are kept. texts: of the
        corpus (`list_texts`). beside: the same study on the other split, whose rows are published
        too.

    Raises:
      ValueError: a published study, runs of several corpora, damaged arrays, or an `out` with
        another study.
    """
    folder, runs = Path(data.folder), (*data.runs, *data.elsewhere)
    other = [] if beside is None else [r for r in (*beside.runs, *beside.elsewhere) if not r.why]
    if (folder / PUBLISHED).exists():
        raise ValueError(f"{folder} is published already; give the folder of a study")
    _refuse_other_study(data, out)
    out.mkdir(parents=True, exist_ok=True)
    files = {
        "study.json": _json({**data.record, "name": data.name, "split": data.split}),
        "texts.json": _json(
            {
                "corpus": _only("corpus", runs),
                "corpus_fingerprint": corpus_fingerprint(data),
                "texts": texts,
            }
        ),
        "rows.jsonl.gz": _packed(json_lines(_rows([*runs, *other]))),
        "metrics.jsonl.gz": _packed(
            json_lines({"run": run.name, **m} for run in runs for m in run.metrics)
        ),
        "portraits.json.gz": _packed(
            json.dumps({run.name: run.scheme for run in runs if run.scheme})
        ),
        "arrays.npz": _arrays(runs),
    }
    if data.tuning:
        files["tuning.json"] = _json(data.tuning)
        files["tuning.jsonl.gz"] = _packed(json_lines(_rows(tuning_runs(folder))))
    if data.plan is not None:
        files["prereg.json"] = (folder / "prereg.json").read_bytes()
    files[PUBLISHED] = _json([_record(run) for run in runs])
    for name, content in files.items():
        replace_bytes(out / name, content)
    for name in ("rows.jsonl", "tuning.json", "tuning.jsonl.gz", "prereg.json"):
        if name not in files:  # of an earlier publication
            (out / name).unlink(missing_ok=True)
    return {name: len(content) for name, content in files.items()}


def joined(data: StudyData, out: Path) -> StudyData:
    """Returns a study with the runs that were published in `out` before and that it lacks.

    Args:
      data: of `load_unmigrated`. out: a published folder, or none yet.

    Raises:
      ValueError: `out` has another study, split or frozen plan, or runs that are not comparable.
    """
    _refuse_other_study(data, out)
    if not (out / PUBLISHED).exists():
        return data
    earlier = load_unmigrated(out, data.split)
    for field in ("plan", "tuning"):
        if getattr(data, field) != getattr(earlier, field):
            raise ValueError(f"{out} and {data.folder} differ in {field}; not joined")
    groups: dict[str, Any] = {}
    for group in ("runs", "elsewhere"):
        runs = {run.name: run for run in (*getattr(earlier, group), *getattr(data, group))}
        groups[group] = tuple(runs[name] for name in sorted(runs))
    check_comparable(groups["runs"], str(out))
    return dataclasses.replace(data, **groups)


def corpus_fingerprint(data: StudyData) -> str:
    """Returns the fingerprint of the corpus of all runs; ValueError if they have several."""
    return _only("corpus_fingerprint", (*data.runs, *data.elsewhere))


def _only(field: str, runs: Sequence[RunData]) -> str:
    by_value = {run.info[field]: run.name for run in runs}
    if len(by_value) > 1:
        first, second = list(by_value.values())[:2]
        raise ValueError(f"{first} and {second} differ in {field}; publish them apart")
    return next(iter(by_value))


def _refuse_other_study(data: StudyData, out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    record = out / "study.json"
    published = read_json(record).get("name") if record.exists() else None
    if published != data.name:
        what = (
            f"holds the study {published!r}"
            if published
            else "is neither empty nor a published study"
        )
        raise ValueError(f"{out} {what}; choose another --out for {data.name!r}")


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _packed(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)


def _rows(runs: Iterable[RunData]) -> Iterable[dict]:
    """Yields the rows as JSON objects, without item and stamp, by which an evaluation resumes."""
    for run in runs:
        for row in run.rows:
            yield dataclasses.replace(row, item="", stamp="").to_json()


def _record(run: RunData) -> dict:
    record = {
        "name": run.name,
        **run.info,
        "settings": run.settings,
        "why": run.why,
        "config": run.config,
    }
    return without_folders(record)


def without_folders(value):
    """Returns a JSON value with every absolute path cut to its last part."""
    if isinstance(value, str):
        return _FOLDERS.sub(r"\1", value)
    if isinstance(value, Mapping):
        return {name: without_folders(one) for name, one in value.items()}
    return [without_folders(one) for one in value] if isinstance(value, list | tuple) else value


def _arrays(runs: Sequence[RunData]) -> bytes:
    arrays: dict[str, Any] = {
        f"{run.name}/{name}/{field}": smallest(array)
        for run in runs
        for name in run.array_names
        for field, array in run.arrays(name).items()
    }
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


def smallest(array: np.ndarray) -> np.ndarray:
    """Returns the array in a type of 4 bytes if that is exact."""
    narrow = {"f8": np.float32, "i8": np.int32, "u8": np.uint32}.get(array.dtype.str[1:])
    if narrow is None:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        small = array.astype(narrow)
    same = np.array_equal(small.astype(array.dtype), array, equal_nan=array.dtype.kind == "f")
    return small if same else array
