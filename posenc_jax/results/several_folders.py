"""Results of several folders as one study, and as one table for pandas."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from posenc_jax.results.load import check_comparable, load
from posenc_jax.results.study_data import RunData, StudyData


def load_together(folders: Sequence[Path], split: str | None = None) -> StudyData:
    """Returns the results below several folders as one study; the name of a run begins with its
    folder.

    Tuning, plan and roles belong to one study each and are left out.

    Raises:
      ValueError: as `load`, for each folder; folders of different splits; an arm and seed, or a
        folder, twice.
    """
    if len(folders) == 1:
        return load(folders[0], split)
    places = [folder.resolve() for folder in folders]
    if len(set(places)) < len(places):
        raise ValueError(f"a folder is given twice: {', '.join(map(str, folders))}")
    studies = [load(folder, split) for folder in folders]
    found = sorted({study.split for study in studies})
    if len(found) > 1:
        raise ValueError(f"the folders hold rows of {' and '.join(found)}; choose one with --split")
    pairs = list(zip(studies, folders, strict=True))
    runs = [run for pair in pairs for run in _named(*pair, "runs")]
    elsewhere = [run for pair in pairs for run in _named(*pair, "elsewhere")]
    check_comparable(runs, " and ".join(map(str, folders)))
    arms = dict.fromkeys(arm for study in studies for arm in study.record.get("arms", ()))
    arms |= dict.fromkeys(run.info["arm"] for run in runs)
    return StudyData(
        name=" and ".join(study.name for study in studies),
        folder=" and ".join(map(str, folders)),
        record={"arms": list(arms), "split": found[0]},
        split=found[0],
        runs=tuple(runs),
        elsewhere=tuple(elsewhere),
        tuning={},
        texts=tuple({text["name"]: text for study in studies for text in study.texts}.values()),
        plan=None,
        notes=tuple(dict.fromkeys(note for study in studies for note in study.notes)),
    )


def load_rows(*folders: Path | str, split: str | None = None) -> list[dict]:
    """Returns all rows below folders of runs, studies or published results, for `pandas.DataFrame`.

    Each row is a dict of every field of `posenc_jax.results.schema.Row` and of `k`, the length in
    units of L.

    Args:
      split: "dev" or "test"; None takes that of each folder.

    Raises:
      ValueError: as `load`, for each folder.
    """
    rows = []
    for folder in map(Path, folders):
        study = load(folder, split)
        for run in (*study.runs, *study.elsewhere):
            rows += [
                dataclasses.asdict(row) | {"k": row.k, "folder": str(folder)} for row in run.rows
            ]
    return rows


def _named(study: StudyData, folder: Path, group: str) -> list[RunData]:
    """Returns the runs of a group under names that begin with the folder as it was given."""
    alone = folder.resolve().name
    return [
        _renamed(run, str(folder) if run.name == alone else f"{folder}/{run.name}")
        for run in getattr(study, group)
    ]


def _renamed(run: RunData, name: str) -> RunData:
    rows = tuple(dataclasses.replace(row, run=name) for row in run.rows)
    return dataclasses.replace(run, name=name, rows=rows)
