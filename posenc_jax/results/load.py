"""Loader of results: the folder of a run or a study, or a published folder, as `StudyData`."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from posenc_jax.results.files import read_json, read_json_lines
from posenc_jax.results.migration import migrate_rows
from posenc_jax.results.published_folder import PUBLISHED, missing_files, published_runs
from posenc_jax.results.record_schema import (
    EVALUATION,
    OBJECT,
    STUDY,
    TEXTS,
    TUNED,
    check,
    check_logged,
)
from posenc_jax.results.schema import DEFINITIONS, SPLITS
from posenc_jax.results.stored_run import (
    checked_record,
    checked_row,
    optional_json,
    read_npz,
    rows_of_run,
)
from posenc_jax.results.study_data import OTHER_LENGTHS, TUNING, RunData, StudyData


def load(folder: Path, split: str | None = None) -> StudyData:
    """Returns the results below a folder; rows from version 1 of the definitions are migrated.

    Args:
      folder: of a run, of a study, or published (with runs.json). split: of the rows; None takes
        that of study.json (test where it names none), or without a study.json dev if a run was
        evaluated on it.

    Raises:
      ValueError: in one line: no evaluated run, a damaged file (its name and line), rows of another
        run than that of their folder, several training lengths or definitions, or an arm and seed
        twice.
    """
    data = load_unmigrated(folder, split)
    versions: dict[int, str] = {}
    for run in (*data.runs, *data.elsewhere):
        for row in run.rows:
            versions.setdefault(row.definitions, run.name)
    if unknown := set(versions) - {1, DEFINITIONS}:
        number = min(unknown)
        raise ValueError(
            f"{versions[number]} has rows of definitions {number}; known are 1 to {DEFINITIONS}"
        )
    if len(versions) > 1:
        raise ValueError(
            f"{versions[1]} was measured under older definitions than {versions[DEFINITIONS]}; "
            "evaluate it again"
        )
    if DEFINITIONS in versions:
        return data
    notes: dict[str, None] = dict.fromkeys(data.notes)
    migrated: dict[str, list[RunData]] = {"runs": [], "elsewhere": []}
    for name, group in migrated.items():
        for run in getattr(data, name):
            rows, remarks = migrate_rows(run.rows, run.config)
            notes |= dict.fromkeys(remarks)
            group.append(dataclasses.replace(run, rows=rows))
    groups: dict[str, Any] = {name: tuple(group) for name, group in migrated.items()}
    return dataclasses.replace(data, **groups, notes=tuple(notes))


def load_unmigrated(folder: Path, split: str | None = None) -> StudyData:
    """Returns `load`'s data with the rows as they were written; raises the same errors."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is no folder; give that of a run, of a study or of published results"
        )
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be {' or '.join(SPLITS)}, not {split!r}")
    record = optional_json(folder / "study.json")
    check(record, STUDY, str(folder / "study.json"))
    published = (folder / PUBLISHED).exists()
    split = split or _split(folder, record)
    if published:
        runs = published_runs(folder, split, own=split == _split(folder, record))
    else:
        runs = _read_runs(folder, split)
    if not any(run.rows for run in runs):
        raise ValueError(
            f"no evaluated run below {folder} on {split}; run scripts/evaluate.py --workdir=<run> "
            f"--split={split} first"
        )
    elsewhere = [run for run in runs if run.name.startswith(f"{OTHER_LENGTHS}/")]
    counted = [run for run in runs if not run.name.startswith(f"{OTHER_LENGTHS}/")]
    check_comparable(counted, str(folder))
    _refuse_duplicates(elsewhere, str(folder))
    listed = folder / "texts.json"
    texts = optional_json(listed)
    if listed.exists():
        check(texts, TEXTS, str(listed), TEXTS)
    tuning = optional_json(folder / "tuning.json")
    if tuning:
        check(tuning, TUNED, str(folder / "tuning.json"), TUNED)
    return StudyData(
        name=str(record.get("name", folder.resolve().name)),
        folder=str(folder),
        record=record,
        split=split,
        runs=tuple(counted),
        elsewhere=tuple(elsewhere),
        tuning=tuning,
        texts=tuple(texts["texts"]) if texts else (),
        plan=optional_json(folder / "prereg.json") or None,
        notes=missing_files(folder) if published else (),
    )


def splits(folder: Path) -> tuple[str, ...]:
    """Returns the splits on which runs below a folder were evaluated."""
    return tuple(
        split
        for split in SPLITS
        if any(evaluation_folder(run, split).exists() for run in _folders_of_runs(folder))
    )


def chosen_folder(workdir: str | None, results: str | None) -> Path:
    """Returns the folder of --workdir (runs) or --results (published); ValueError unless one."""
    if workdir is not None and results is None:
        return Path(workdir)
    if results is None or workdir is not None:
        raise ValueError(
            "give --workdir=FOLDER of a study or a run, or --results=FOLDER that was published, "
            "one of them"
        )
    if not (Path(results) / PUBLISHED).exists():
        raise ValueError(
            f"--results={results} holds no {PUBLISHED}; folders of runs are read by --workdir"
        )
    return Path(results)


def evaluation_folder(run: Path, split: str) -> Path:
    """Returns the folder of the rows of the last checkpoint on a split."""
    return run / ("evaluation" if split == "test" else f"evaluation_{split}")


def _split(folder: Path, record: Mapping) -> str:
    if record:
        return record.get("split", "test")
    return "dev" if "dev" in splits(folder) else "test"


def check_comparable(runs: Sequence[RunData], folder: str) -> None:
    """Raises ValueError for runs of several training lengths, or an arm and seed twice."""
    lengths = sorted({run.info["train_length"] for run in runs})
    if len(lengths) > 1:
        raise ValueError(
            f"runs below {folder} were trained at different lengths {lengths}; a study compares "
            "one training length, give a narrower folder"
        )
    _refuse_duplicates(runs, folder)


def _refuse_duplicates(runs: Sequence[RunData], folder: str) -> None:
    seen: dict[tuple[str, int], str] = {}
    for run in runs:
        arm, seed = run.info["arm"], run.info["seed"]
        first = seen.setdefault((arm, seed), run.name)
        if first != run.name:
            raise ValueError(
                f"{first} and {run.name} below {folder} both hold arm {arm}, seed {seed}; give a "
                "narrower folder"
            )


def _folders_of_runs(folder: Path) -> list[Path]:
    runs = sorted(path.parent for path in folder.glob("**/run.json"))
    return [run for run in runs if not run.is_relative_to(folder / TUNING)]


def _read_runs(folder: Path, split: str) -> list[RunData]:
    runs = _folders_of_runs(folder)
    if not runs:
        raise ValueError(f"no run below {folder}: there is no run.json")
    return [_read_run(run, folder, split) for run in runs]


def tuning_runs(folder: Path) -> list[RunData]:
    """Returns the runs of the learning-rate search of a study, with their rows of dev."""
    return [
        _read_run(path.parent, folder, "dev")
        for path in sorted(folder.glob(f"{TUNING}/*/run.json"))
    ]


def _read_run(run: Path, folder: Path, split: str) -> RunData:
    name = run.relative_to(folder).as_posix() if run != folder else run.resolve().name
    info = checked_record(read_json(run / "run.json"), str(run / "run.json"))
    evaluation = evaluation_folder(run, split)
    path, ended = evaluation / "rows.jsonl", evaluation / "evaluation.json"
    metrics = _log(run / "metrics.jsonl", info)
    numbered, cut = read_json_lines(path) if path.exists() else ([], 0)
    checked = [(number, checked_row(stored, path, number)) for number, stored in numbered]
    rows = rows_of_run(checked, path, info, name, split)
    record = optional_json(ended)
    if record:
        check(record, EVALUATION, str(ended), ("step",))
    if not info["finished"]:
        logged = max((m["step"] for m in metrics if "step" in m), default=0)
        step = info.get("steps_done", logged)  # older records lack it
        why = f"training has not finished: step {step} of {info['steps']}"
    elif cut:
        why = f"{path.name}, line {cut} is cut off; evaluate it again"
    elif not rows or not record:
        why = f"not evaluated to the end on {split}"
    elif record["step"] != info["steps"]:
        why = f"scored at step {record['step']} of {info['steps']}; only the last checkpoint counts"
    else:
        why = ""
    arrays = evaluation / "arrays"
    return RunData(
        name=name,
        info=info,
        config=_config(run / "config.json"),
        rows=rows,
        settings=record.get("settings", ""),
        metrics=metrics,
        why=why,
        scheme=optional_json(arrays / "scheme.json"),
        array_names=tuple(sorted(p.stem for p in arrays.glob("*.npz"))),
        arrays=functools.partial(_read_arrays, arrays),
    )


def _log(path: Path, info: Mapping) -> tuple[Mapping, ...]:
    if not path.exists():
        return ()
    numbered = read_json_lines(path)[0]
    for number, row in numbered:
        check_logged(row, f"{path}, line {number}")
    last = max((row["step"] for _, row in numbered), default=0)
    if info["finished"] and last < info["steps"]:
        raise ValueError(
            f"{path} ends at step {last} of {info['steps']}, though the run has finished; restore "
            "it, or remove it to leave out its curves"
        )
    return tuple(row for _, row in numbered)


def _config(path: Path) -> dict:
    config = optional_json(path)
    check(config, dict.fromkeys(config, OBJECT), str(path))
    return config


def _read_arrays(arrays: Path, name: str) -> dict[str, np.ndarray]:
    path = arrays / f"{name}.npz"
    if not path.exists():
        raise ValueError(f"no {path.parent.name}/{path.name}")
    return read_npz(path, f"{path.parent.name}/{path.name}")
