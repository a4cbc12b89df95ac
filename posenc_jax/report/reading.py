"""From the folders of a study to its `Study`; what is unfinished or mixed is said in words."""

import json
import pathlib

from posenc_jax.report.rows import Run, Study, is_number, short_name

TUNING, OTHER_LENGTHS = "tuning", "other_lengths"  # folders of posenc_jax.study.grid


def read_study(workdir: pathlib.Path) -> Study:
    """Everything evaluated below workdir; raises ValueError (one line) if nothing can be told."""
    workdir = pathlib.Path(workdir)
    if not workdir.is_dir():
        raise ValueError(f"--workdir={workdir} is not a folder; give a run or a study folder")
    plan = _json(workdir / "study.json") if (workdir / "study.json").exists() else {}
    unfinished: list[str] = []
    runs = _runs(_run_folders(workdir), workdir, unfinished)
    apart = workdir / OTHER_LENGTHS
    elsewhere = _runs(_marked(apart), workdir, unfinished) if apart.is_dir() else []
    if not runs:
        raise ValueError(
            f"no evaluated run below {workdir}: evaluation/rows.jsonl is missing or empty; "
            "run scripts/evaluate.py --workdir=<run> first"
        )
    _refuse_mixtures(runs, workdir)
    named = plan.get("arms", [])
    if not all(isinstance(arm, str) for arm in named):
        raise ValueError(f"{workdir / 'study.json'}: arms must be a list of names")
    present = {run.arm for run in runs}
    arms = [arm for arm in named if arm in present]
    arms += sorted(present - set(arms))
    found = {(run.arm, run.seed) for run in runs}
    found |= {(run.arm, run.seed) for run in elsewhere}
    for arm in named:
        missing = [str(seed) for seed in plan.get("seeds", []) if (arm, seed) not in found]
        if missing:
            unfinished.append(f"{short_name(arm)}: no evaluated run for seed {', '.join(missing)}")
    runs.sort(key=lambda run: (arms.index(run.arm), run.seed))
    name = str(plan.get("name", workdir.resolve().name))
    roles = {role: arm for role, arm in plan.get("roles", {}).items() if isinstance(arm, str)}
    return Study(
        workdir, name, tuple(runs), tuple(arms), runs[0].train_length, tuple(unfinished), roles,
        tuple(elsewhere),
    )  # fmt: skip


def _marked(workdir: pathlib.Path) -> set[pathlib.Path]:
    marks = ("evaluation/rows.jsonl", "config.json", "run.json")
    found = {path for mark in marks for path in workdir.glob(f"**/{mark}")}
    return {p.parent.parent if p.name == "rows.jsonl" else p.parent for p in found}


def _run_folders(workdir: pathlib.Path) -> set[pathlib.Path]:
    apart = (workdir / TUNING, workdir / OTHER_LENGTHS)
    return {p for p in _marked(workdir) if not any(p.is_relative_to(a) for a in apart)}


def _runs(folders: set[pathlib.Path], workdir: pathlib.Path, unfinished: list[str]) -> list[Run]:
    found = [_read_run(folder, workdir, unfinished) for folder in sorted(folders)]
    return [run for run in found if run is not None]


def _read_run(folder: pathlib.Path, workdir: pathlib.Path, unfinished: list[str]) -> Run | None:
    label = str(folder.relative_to(workdir)) if folder != workdir else folder.resolve().name
    info = _json(folder / "run.json") if (folder / "run.json").exists() else {}
    config = _json(folder / "config.json") if (folder / "config.json").exists() else {}
    rows, cut = _lines(folder / "evaluation" / "rows.jsonl")
    metrics, _ = _lines(folder / "metrics.jsonl")
    steps = config.get("train", {}).get("steps")
    done = max((m["step"] for m in metrics if "step" in m), default=None)
    # A log line every few steps: the last one may lie a little before the end.
    if info.get("finished") is False:
        unfinished.append(f"{label}: training has not finished, last logged step {done}")
    elif is_number(steps) and done is not None and done < 0.95 * steps:
        unfinished.append(f"{label}: the training log ends at step {done} of {steps}")
    if not rows:
        unfinished.append(f"{label}: not evaluated")
        return None
    if cut:
        unfinished.append(f"{label}: the last row of rows.jsonl is cut off, evaluation not done")
    elif not (folder / "evaluation" / "evaluation.json").exists():
        unfinished.append(f"{label}: evaluation has not finished (it writes evaluation.json last)")
    if not info:
        unfinished.append(f"{label}: no run.json, so nothing is known about how it was trained")
    first = rows[0]
    try:
        return Run(
            folder=folder,
            arm=str(info.get("arm", first.get("arm", label))),
            seed=int(info["seed"] if "seed" in info else first["seed"]),
            tier=str(info["tier"] if "tier" in info else first["tier"]),
            train_length=int(first["train_length"]),
            info=info,
            config=config,
            rows=tuple(row for row in rows if "metric" in row),
            metrics=tuple(metrics),
        )
    except KeyError as error:
        raise ValueError(f"{folder / 'evaluation/rows.jsonl'}: first row has no {error}") from None


def _refuse_mixtures(runs: list[Run], workdir: pathlib.Path) -> None:
    lengths = sorted({run.train_length for run in runs})
    if len(lengths) > 1:
        raise ValueError(
            f"runs below {workdir} were trained at different lengths {lengths}; "
            "a page compares one training length, give a narrower folder"
        )
    seen = {}
    for run in runs:
        other = seen.setdefault((run.arm, run.seed), run)
        if other is not run:
            raise ValueError(
                f"{other.folder} and {run.folder} both hold arm {run.arm}, seed {run.seed}; "
                "give a narrower folder"
            )


def _json(path: pathlib.Path) -> dict:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None


def _lines(path: pathlib.Path) -> tuple[list[dict], bool]:
    """The objects of a JSONL file, and whether its last line was cut off by a kill."""
    if not path.exists():
        return [], False
    text = path.read_text(encoding="utf-8", errors="replace")
    lines, parsed = text.split("\n"), []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            parsed.append(json.loads(line))
        except ValueError:
            if number == len(lines):
                return parsed, True
            raise ValueError(f"{path}, line {number} is not JSON") from None
    return parsed, False
