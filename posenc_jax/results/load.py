"""The one reader of results: a run's folder, a study's folder or a published one, to `StudyData`."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from posenc_jax.results.files import read_json, read_json_lines
from posenc_jax.results.migration import migrate_rows
from posenc_jax.results.published_folder import PUBLISHED, lacking, published_runs
from posenc_jax.results.record_schema import EVALUATION, STUDY, TEXTS, TUNED, check
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
    data = load_unmigrated(folder, split)
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
            rows, said = migrate_rows(run.rows, run.config)
            notes |= dict.fromkeys(said)
            groups[-1].append(dataclasses.replace(run, rows=rows))
    return dataclasses.replace(
        data, runs=tuple(groups[0]), elsewhere=tuple(groups[1]), notes=tuple(notes)
    )


def load_unmigrated(folder: Path, split: str | None = None) -> StudyData:
    """Returns what `load` returns, with the rows as they were written; raises as `load`."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give that of a run, of a study or of published results")  # fmt: skip
    if split is not None and split not in SPLITS:
        raise ValueError(f"split must be {' or '.join(SPLITS)}, not {split!r}")
    record = optional_json(folder / "study.json")
    check(record, STUDY, str(folder / "study.json"))
    published = (folder / PUBLISHED).exists()
    split = split or _split(folder, record)
    if published:
        runs = published_runs(folder, split, own=split == _split(folder, record))
    else:
        runs = _run_folders(folder, split)
    if not any(run.rows for run in runs):
        raise ValueError(
            f"no evaluated run below {folder} on {split}; "
            f"run scripts/evaluate.py --workdir=<run> --split={split} first"
        )
    apart = [run for run in runs if run.name.startswith(f"{OTHER_LENGTHS}/")]
    counted = [run for run in runs if not run.name.startswith(f"{OTHER_LENGTHS}/")]
    _refuse_mixtures(counted, folder)
    _refuse_twins(apart, folder)
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
        elsewhere=tuple(apart),
        tuning=tuning,
        texts=tuple(texts["texts"]) if texts else (),
        plan=optional_json(folder / "prereg.json") or None,
        notes=lacking(folder) if published else (),
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
    info = checked_record(read_json(run / "run.json"), str(run / "run.json"))
    evaluation = evaluation_folder(run, split)
    path, ended = evaluation / "rows.jsonl", evaluation / "evaluation.json"
    metrics = _log(run / "metrics.jsonl")
    numbered, cut = read_json_lines(path) if path.exists() else ([], 0)
    found = [(number, checked_row(one, path, number)) for number, one in numbered]
    rows = rows_of_run(found, path, info, name, split)
    about = optional_json(ended)
    if about:
        check(about, EVALUATION, str(ended), ("step",))
    if not info["finished"]:
        logged = max((m["step"] for m in metrics if "step" in m), default=0)
        step = info.get("steps_done", logged)  # older records do not say
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
        config=optional_json(run / "config.json"),
        rows=rows,
        settings=about.get("settings", ""),
        metrics=metrics,
        why=why,
        scheme=optional_json(arrays / "scheme.json"),
        array_names=tuple(sorted(p.stem for p in arrays.glob("*.npz"))),
        arrays=functools.partial(_read_arrays, arrays),
    )


def _log(path: Path) -> tuple[Mapping, ...]:
    return tuple(row for _, row in read_json_lines(path)[0]) if path.exists() else ()


def _read_arrays(arrays: Path, name: str) -> dict[str, np.ndarray]:
    path = arrays / f"{name}.npz"
    if not path.exists():
        raise ValueError(f"no {path.parent.name}/{path.name}")
    return read_npz(path, f"{path.parent.name}/{path.name}")
