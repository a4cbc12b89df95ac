"""The one reader of results: a run's folder, a study's folder or a published one, to `StudyData`."""

import dataclasses
import functools
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from posenc_jax.results.files import read_json, read_json_lines
from posenc_jax.results.older import redefined
from posenc_jax.results.schema import DEFINITIONS, SPLITS, Row, row_from_json
from posenc_jax.results.study_data import OTHER_LENGTHS, TUNING, RunData, StudyData

PUBLISHED = "runs.json"  # a folder that has one was published
# What an entry of runs.json holds beside the run's record and its name, and what it is where it is lacking.
BESIDE = {"config": {}, "settings": "", "why": ""}
RECORDED = ("arm", "seed", "tier", "train_length", "steps", "finished")  # what run.json must say
OWNER = ("arm", "seed", "tier", "train_length")  # what a row and its run.json must agree on


def load(folder: Path, split: str | None = None) -> StudyData:
    """Returns what lies below a folder; rows of older definitions are brought to those of today.

    Args:
      folder: of a run, of a study, or a published one (it holds runs.json). split: whose rows are read;
        None takes that of study.json, which before it named one was test, and without a study.json dev
        where a run was evaluated on it.

    Raises:
      ValueError: in one line: nothing evaluated here, a damaged file (which, and its line), rows of
        another run than their folder's, runs of several training lengths or definitions, or an arm and
        seed twice.
    """
    data = stored(folder, split)
    versions: dict[int, str] = {}
    for run in (*data.runs, *data.elsewhere):
        for row in run.rows:
            versions.setdefault(row.definitions, run.name)
    if unknown := set(versions) - {1, DEFINITIONS}:
        number = min(unknown)
        raise ValueError(f"{versions[number]} has rows of definitions {number}; this reads up to {DEFINITIONS}")  # fmt: skip
    if len(versions) > 1:
        raise ValueError(
            f"{versions[1]} was measured under older definitions than {versions[DEFINITIONS]}; evaluate it again"
        )
    if DEFINITIONS in versions:
        return data
    notes: dict[str, None] = dict.fromkeys(data.notes)
    groups = []
    for runs in (data.runs, data.elsewhere):
        groups.append([])
        for run in runs:
            rows, said = redefined(run.rows, run.config)
            notes |= dict.fromkeys(said)
            groups[-1].append(dataclasses.replace(run, rows=rows))
    return dataclasses.replace(
        data, runs=tuple(groups[0]), elsewhere=tuple(groups[1]), notes=tuple(notes)
    )


def stored(folder: Path, split: str | None = None) -> StudyData:
    """Returns what `load` returns, with the rows as they were written; raises as `load`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give that of a run, of a study or of published results")  # fmt: skip
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be {' or '.join(SPLITS)}, not {split!r}")
    record = _optional(folder / "study.json")
    arms = record.get("arms", [])
    if not isinstance(arms, list) or not all(isinstance(arm, str) for arm in arms):
        raise ValueError(f"{folder / 'study.json'}: arms must be a list of names")
    published = (folder / PUBLISHED).exists()
    split = split or _split(folder, record)
    runs = (_published if published else _run_folders)(folder, split)
    if not any(run.rows for run in runs):
        raise ValueError(
            f"no evaluated run below {folder} on {split}; "
            f"run scripts/evaluate.py --workdir=<run> --split={split} first"
        )
    apart = [run for run in runs if run.name.startswith(f"{OTHER_LENGTHS}/")]
    counted = [run for run in runs if not run.name.startswith(f"{OTHER_LENGTHS}/")]
    _refuse_mixtures(counted, folder)
    _refuse_twins(apart, folder)
    texts = _optional(folder / "texts.json")
    return StudyData(
        name=str(record.get("name", folder.resolve().name)),
        folder=str(folder),
        record=record,
        split=split,
        runs=tuple(counted),
        elsewhere=tuple(apart),
        tuning=_optional(folder / "tuning.json"),
        texts=tuple(texts["texts"]) if texts else (),
        plan=_optional(folder / "prereg.json") or None,
        notes=_lacking(folder) if published else (),
    )


def splits(folder: Path) -> tuple[str, ...]:
    """Returns the splits that runs below a folder, a study's or a run's, were evaluated on."""
    return tuple(
        split
        for split in SPLITS
        if any(evaluation_folder(run, split).exists() for run in _folders_of_runs(folder))
    )


def chosen_folder(workdir: str | None, results: str | None) -> Path:
    """Returns the folder that --workdir (runs) or --results (published) names; ValueError unless it is one of them."""
    if (workdir is None) == (results is None):
        raise ValueError("give --workdir=FOLDER of a study or a run, or --results=FOLDER that was published, one of them")  # fmt: skip
    if results is not None and not (Path(results) / PUBLISHED).exists():
        raise ValueError(f"--results={results} holds no {PUBLISHED}; folders of runs are read by --workdir")  # fmt: skip
    return Path(workdir or results)


def evaluation_folder(run: Path, split: str) -> Path:
    """Returns where the last checkpoint's rows of a split lie."""
    return run / ("evaluation" if split == "test" else f"evaluation_{split}")


def _split(folder: Path, record: Mapping) -> str:
    if record:
        return record.get("split", "test")
    return "dev" if "dev" in splits(folder) else "test"


def _optional(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def _refuse_mixtures(runs: Sequence[RunData], folder: Path) -> None:
    lengths = sorted({run.info["train_length"] for run in runs})
    if len(lengths) > 1:
        raise ValueError(
            f"runs below {folder} were trained at different lengths {lengths}; "
            "a study compares one training length, give a narrower folder"
        )
    _refuse_twins(runs, folder)


def _refuse_twins(runs: Sequence[RunData], folder: Path) -> None:
    seen: dict[tuple[str, int], str] = {}
    for run in runs:
        key = run.info["arm"], run.info["seed"]
        other = seen.setdefault(key, run.name)
        if other != run.name:
            raise ValueError(
                f"{other} and {run.name} below {folder} both hold arm {key[0]}, seed {key[1]}; "
                "give a narrower folder"
            )


def _folders_of_runs(folder: Path) -> list[Path]:
    found = sorted(path.parent for path in folder.glob("**/run.json"))
    return [run for run in found if not run.is_relative_to(folder / TUNING)]


def _run_folders(folder: Path, split: str) -> list[RunData]:
    found = _folders_of_runs(folder)
    if not found:
        raise ValueError(f"no run below {folder}: there is no run.json")
    return [_read_run(run, folder, split) for run in found]


def tuning_runs(folder: Path) -> list[RunData]:
    """Returns the runs of a study that chose its learning rates, with their rows of dev."""
    return [_read_run(path.parent, folder, "dev") for path in sorted(folder.glob(f"{TUNING}/*/run.json"))]  # fmt: skip


def _read_run(run: Path, folder: Path, split: str) -> RunData:
    name = run.relative_to(folder).as_posix() if run != folder else run.resolve().name
    info = _record(read_json(run / "run.json"), str(run / "run.json"))
    evaluation = evaluation_folder(run, split)
    path, ended = evaluation / "rows.jsonl", evaluation / "evaluation.json"
    metrics = _log(run / "metrics.jsonl")
    numbered, cut = read_json_lines(path) if path.exists() else ([], 0)
    found = [(number, _row(one, path, number)) for number, one in numbered]
    rows = _of_run(found, path, info, name, split)
    about = _optional(ended)
    if not info["finished"]:
        step = max((m["step"] for m in metrics if "step" in m), default=0)
        why = f"training has not finished: step {step} of {info['steps']}"
    elif cut:
        why = f"{path.name}, line {cut} is cut off; evaluate it again"
    elif not rows or not about:
        why = f"not evaluated to the end on {split}"
    elif about["step"] != info["steps"]:
        why = f"scored at step {about['step']} of {info['steps']}; only the last checkpoint counts"
    else:
        why = ""
    arrays = evaluation / "arrays"
    return RunData(
        name=name,
        info=info,
        config=_optional(run / "config.json"),
        rows=rows,
        settings=about.get("settings", ""),
        metrics=metrics,
        why=why,
        scheme=_optional(arrays / "scheme.json"),
        array_names=tuple(sorted(p.stem for p in arrays.glob("*.npz"))),
        arrays=functools.partial(_read_arrays, arrays),
    )


def _record(info: Mapping, where: str) -> Mapping:
    lacking = [name for name in RECORDED if name not in info]
    if lacking:
        raise ValueError(f"{where} does not say {lacking[0]!r}; it is no record of a run")
    return info


def _log(path: Path) -> tuple[Mapping, ...]:
    return tuple(row for _, row in read_json_lines(path)[0]) if path.exists() else ()


def _row(one: Mapping, path: Path, number: int) -> Row:
    """The row of a line; a value that is not finite, as older rows have, becomes None in words."""
    value = one.get("value")
    if isinstance(value, float) and not math.isfinite(value):
        one = {**one, "value": None, "skipped": f"not finite ({value})"}
    try:
        return row_from_json(one)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: {error}") from None


def _of_run(
    numbered: Sequence[tuple[int, Row]], path: Path, info: Mapping, name: str, split: str
) -> tuple[Row, ...]:
    """Returns the rows of one run, each measurement once; raises for rows that are not its own."""
    found: dict[tuple, tuple[int, Row]] = {}
    for number, row in numbered:
        where = f"{path}, line {number}"
        for field in OWNER:
            if getattr(row, field) != info[field]:
                raise ValueError(
                    f"{where} is of {field} {getattr(row, field)!r}, its run {name} of {info[field]!r}; "
                    "evaluate the run again"
                )
        if row.split != split or row.checkpoint != "last":
            raise ValueError(
                f"{where} is of split {row.split}, checkpoint {row.checkpoint}, not of {split} and the last"
            )
        place = row.metric, row.length, row.bucket
        first, other = found.setdefault(place, (number, row))
        if first != number and _measured(other) != _measured(row):
            raise ValueError(f"{where} and line {first} both give {row.metric} at {row.length}, {row.bucket}")  # fmt: skip
    rows = (row for _, row in found.values())
    return tuple(row if row.run == name else dataclasses.replace(row, run=name) for row in rows)


def _measured(row: Row) -> Row:
    return dataclasses.replace(row, item="", stamp="")


def _read_arrays(arrays: Path, name: str) -> dict[str, np.ndarray]:
    path = arrays / f"{name}.npz"
    if not path.exists():
        raise ValueError(f"no {path.parent.name}/{path.name}")
    return _fields(path, f"{path.parent.name}/{path.name}")


def _fields(path: Path, what: str) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            return dict(found)
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        raise ValueError(f"{what} is damaged") from None


def _lacking(folder: Path) -> tuple[str, ...]:
    """Sentences about what was not published beside the rows."""
    said = {
        "arrays.npz": "No arrays were published: a bootstrap draws seeds alone, and figures of arrays are left out.",
        "metrics.jsonl.gz": "No training logs were published: training curves are left out.",
        "texts.json": "The texts are listed nowhere.",
    }
    return tuple(words for name, words in said.items() if not (folder / name).exists())


def _published(folder: Path, split: str) -> list[RunData]:
    """The runs of a published folder: runs.json, rows.jsonl.gz (or rows.jsonl), arrays.npz.

    Of another split than the study's own it holds rows alone.
    """
    own = split == _split(folder, _optional(folder / "study.json"))
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
        row = _row(one, path, number)
        if row.split == split:
            lines.setdefault(row.run, []).append((number, row))
    logs: dict[str, list[dict]] = {}
    if (folder / "metrics.jsonl.gz").exists():
        for _, one in read_json_lines(folder / "metrics.jsonl.gz")[0]:
            logs.setdefault(one["run"], []).append({k: v for k, v in one.items() if k != "run"})
    kept = _Archive(folder / "arrays.npz", own)
    portraits = _optional(folder / "portraits.json.gz")
    found = []
    for name, entry in _entries(folder, lines).items():
        about = BESIDE | entry
        info = {k: v for k, v in entry.items() if k != "name" and k not in BESIDE}
        info = _record(info, f"{folder / PUBLISHED}, {name}")
        rows = _of_run(lines.get(name, ()), path, info, name, split)
        found.append(
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
                array_names=kept.names(name),
                arrays=functools.partial(kept.arrays, name),
            )
        )
    return found


def _entries(folder: Path, lines: Mapping[str, Sequence[tuple[int, Row]]]) -> dict[str, Mapping]:
    """Entries of runs.json by the run's name.

    Before names were published, a run was named by its rows alone, and a reading of it under a stretch
    had no entry: its record is that of the run it reads.
    """
    listed = read_json(folder / PUBLISHED, list)
    if all("name" in entry for entry in listed):
        return {entry["name"]: entry for entry in listed}
    by_seed = {(entry["arm"], entry["seed"]): entry for entry in listed}
    owners = {name: (rows[0][1].arm, rows[0][1].seed) for name, rows in lines.items()}
    found = {}
    for name, owner in sorted(owners.items()):
        read = name.partition("/stretched/")[0]
        entry = by_seed.get(owner) or (by_seed.get(owners[read]) if read in owners else None)
        if entry is None:
            raise ValueError(f"{folder / PUBLISHED} has no run of arm {owner[0]!r}, seed {owner[1]}")  # fmt: skip
        found[name] = entry if owner in by_seed else entry | {"arm": owner[0]}
    return found


class _Archive:
    """arrays.npz of a published folder: <run name>/<array name>/<field>."""

    def __init__(self, path: Path, own: bool):
        self._path, self._own = path, own

    @functools.cached_property
    def _runs(self) -> dict[str, dict[str, dict[str, np.ndarray]]]:
        found: dict[str, dict[str, dict[str, np.ndarray]]] = {}
        if self._own and self._path.exists():
            for key, array in _fields(self._path, str(self._path)).items():
                run, name, field = key.rsplit("/", 2)
                found.setdefault(run, {}).setdefault(name, {})[field] = array
        return found

    def names(self, run: str) -> tuple[str, ...]:
        return tuple(sorted(self._runs[run])) if run in self._runs else ()

    def arrays(self, run: str, name: str) -> dict[str, np.ndarray]:
        if name not in self.names(run):
            raise ValueError(f"{name} was not published")
        return self._runs[run][name]
