"""A published folder: what of a study is committed, so that anyone can redraw and rejudge it without its runs."""

import dataclasses
import gzip
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from posenc_jax.results.files import json_lines, read_json, replace_bytes
from posenc_jax.results.load import tuning_runs
from posenc_jax.results.published_folder import PUBLISHED
from posenc_jax.results.study_data import RunData, StudyData

# An absolute path inside a recorded value, but for its last part: a machine's folders are nobody's business.
_FOLDERS = re.compile(r"(^|[=\s'\"])/(?:[^/\s'\"]+/)+")


def publish(
    data: StudyData, out: Path, texts: Sequence[Mapping], beside: StudyData | None = None
) -> dict[str, int]:
    """Writes a published folder and returns the bytes of each of its files.

    Rows, logs, arrays (exactly, in the smallest types that hold them) and records of every run, the rows
    of the learning-rate search, the plan, and the list of texts. The same study gives the same bytes.

    Args:
      data: of `results.load.stored`. out: where it goes; figures and pages in it stay. texts: of the
        corpus (`data.texts.listed`). beside: the same study on the other split; of its runs that count
        the rows are published too.

    Raises:
      ValueError: a study that is published already, runs of several corpora, damaged arrays, or an `out`
        that holds another study.
    """
    folder, runs = Path(data.folder), (*data.runs, *data.elsewhere)
    other = [] if beside is None else [r for r in (*beside.runs, *beside.elsewhere) if not r.why]
    if (folder / PUBLISHED).exists():
        raise ValueError(f"{folder} is published already; give the folder of a study")
    _refuse_other_study(data, out)
    out.mkdir(parents=True, exist_ok=True)
    files = {
        "study.json": _json({**data.record, "name": data.name, "split": data.split}),
        "texts.json": _json({"corpus": _only("corpus", runs), "corpus_fingerprint": corpus_fingerprint(data), "texts": texts}),
        "rows.jsonl.gz": _packed(json_lines(_rows([*runs, *other]))),
        "metrics.jsonl.gz": _packed(json_lines({"run": run.name, **m} for run in runs for m in run.metrics)),
        "portraits.json.gz": _packed(json.dumps({run.name: run.scheme for run in runs if run.scheme})),
        "arrays.npz": _arrays(runs),
    }  # fmt: skip
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


def corpus_fingerprint(data: StudyData) -> str:
    """Returns the fingerprint of the corpus of all runs; ValueError if they have several."""
    return _only("corpus_fingerprint", (*data.runs, *data.elsewhere))


def _only(field: str, runs: Sequence[RunData]) -> str:
    found = {run.info[field]: run.name for run in runs}
    if len(found) > 1:
        first, second = list(found.values())[:2]
        raise ValueError(f"{first} and {second} differ in {field}; publish them apart")
    return next(iter(found))


def _refuse_other_study(data: StudyData, out: Path) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    record = out / "study.json"
    there = read_json(record).get("name") if record.exists() else None
    if there != data.name:
        what = f"holds the study {there!r}" if there else "is neither empty nor a published study"
        raise ValueError(f"{out} {what}; choose another --out for {data.name!r}")


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()


def _packed(text: str) -> bytes:
    return gzip.compress(text.encode(), mtime=0)


def _rows(runs: Iterable[RunData]) -> Iterable[dict]:
    """Rows as they were measured; how an evaluation resumes (item, stamp) is left behind."""
    for run in runs:
        for row in run.rows:
            yield dataclasses.replace(row, item="", stamp="").to_json()


def _record(run: RunData) -> dict:
    record = {"name": run.name, **run.info, "settings": run.settings, "why": run.why, "config": run.config}  # fmt: skip
    return without_folders(record)


def without_folders(value):
    """Returns a JSON value whose absolute paths are cut to their last part."""
    if isinstance(value, str):
        return _FOLDERS.sub(r"\1", value)
    if isinstance(value, Mapping):
        return {name: without_folders(one) for name, one in value.items()}
    return [without_folders(one) for one in value] if isinstance(value, list | tuple) else value


def _arrays(runs: Sequence[RunData]) -> bytes:
    kept = {
        f"{run.name}/{name}/{field}": smallest(array)
        for run in runs
        for name in run.array_names
        for field, array in run.arrays(name).items()
    }
    file = io.BytesIO()
    np.savez_compressed(file, **kept)
    return file.getvalue()


def smallest(array: np.ndarray) -> np.ndarray:
    """Returns the same numbers in 4 bytes each where those hold them exactly."""
    narrow = {"f8": np.float32, "i8": np.int32, "u8": np.uint32}.get(array.dtype.str[1:])
    if narrow is None:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        small = array.astype(narrow)
    same = np.array_equal(small.astype(array.dtype), array, equal_nan=array.dtype.kind == "f")
    return small if same else array
