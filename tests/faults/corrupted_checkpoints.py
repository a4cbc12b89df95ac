"""Corrupted checkpoints: each damage must be detected and named, and the previous checkpoint used."""

import contextlib
import io
import json
import pickle
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from posenc_jax.checkpoints.manager import CheckpointManager
from posenc_jax.results import manifest
from posenc_jax.results.manifest import Corrupted
from posenc_jax.results.schema import DONE, WRONG_INPUT

from faults.small_run import SmallRun, last_logged, outputs
from faults.trial import Trial, codes


def flipped(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """A random flipped bit in each file in turn, metadata and manifest included."""

    def flip(path: Path) -> str:
        whole = bytearray(path.read_bytes())
        if not whole:
            return ""
        bit = rng.randrange(8 * len(whole))
        whole[bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole)
        return f"bit {bit}"

    yield from _each(run, trials, "a flipped bit", flip)


def truncated(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """A truncated file."""

    def cut(path: Path) -> str:
        size = path.stat().st_size
        if not size:
            return ""
        kept = rng.randrange(size)
        with path.open("r+b") as file:
            file.truncate(kept)
        return f"{kept} of {size} bytes"

    yield from _each(run, trials, "a truncated file", cut)


def deleted(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """A deleted file."""

    def remove(path: Path) -> str:
        path.unlink()
        return "removed"

    yield from _each(run, trials, "a deleted file", remove)


def hostile(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """Pickles instead of files, and a manifest with a path outside its folder."""
    trap = run.folder / "executed"

    def poison(path: Path) -> str:
        if path.name == manifest.NAME:
            body = json.loads(path.read_text())
            body["files"]["../../../../etc/passwd"] = {"bytes": 1, "sha256": "0" * 64}
            path.write_text(json.dumps(body))
            return "a name outside"
        path.write_bytes(pickle.dumps(_Trap(str(trap))))
        return "a pickle"

    for trial in _each(run, trials, "a hostile checkpoint", poison):
        yield Trial(
            trial.fault,
            trial.detail,
            trial.wrong,
            trial.undetected or trap.exists(),
            said=trial.said,
        )


def all_damaged(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """All checkpoints damaged: a real trainer stops with the remedy and does not start over."""
    for index in range(trials):
        workdir = _copy(run, f"all-{index}")
        for folder in (workdir / "checkpoints").iterdir():
            path = rng.choice(_files(folder))
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        before = last_logged(workdir)
        process = run.start(workdir)
        out, err = outputs(process, workdir)
        refused = process.returncode == WRONG_INPUT and "every checkpoint in" in err
        kept = len(err.strip().splitlines()) == 1 and last_logged(workdir) == before
        yield Trial(
            "all checkpoints damaged",
            undetected=not (refused and kept),
            said=err.strip(),
            exit_codes=codes(process),
            output=f"{err}{out}",
        )


def gone_on(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """The last checkpoint damaged: a real trainer names it, resumes from the previous one, ends alike."""
    for index in range(trials):
        workdir = _copy(run, f"last-{index}")
        last = max((workdir / "checkpoints").iterdir(), key=lambda p: int(p.name))
        path = rng.choice([p for p in _files(last) if p.stat().st_size])
        path.write_bytes(path.read_bytes()[:-1])
        first, code, out, err = run.finish(workdir)
        named = path.name in err and "Traceback" not in err
        yield Trial(
            "the last checkpoint damaged",
            path.name,
            run.wrong(workdir),
            not named,
            int(last.name) - first,
            err.strip(),
            exit_codes=str(code),
            output=f"{err}{out}",
        )


def stale(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """Remains of killed saves, and an empty numbered folder, among sound checkpoints."""
    for index in range(trials):
        workdir = _copy(run, f"stale-{index}")
        for name in (".saving-99/state.orbax-checkpoint-tmp", ".deleting-1/state", "3000"):
            (workdir / "checkpoints" / name).mkdir(parents=True)
        process = run.start(workdir)
        out, err = outputs(process, workdir)
        left = [p.name for p in (workdir / "checkpoints").glob(".*")]
        yield Trial(
            "stale folders",
            "",
            run.wrong(workdir),
            bool(left) or process.returncode != DONE,
            said=err.strip(),
            exit_codes=codes(process),
            output=f"{err}{out}",
        )


class _Trap:
    """Creates a file when unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def _each(run: SmallRun, trials: int, fault: str, damage) -> Iterator[Trial]:
    """Damages one file of the last checkpoint at a time and loads the checkpoint, in this process.

    A fault is detected if the message names the file and the previous checkpoint is used.
    """
    workdir = _copy(run, "damaged")
    steps = CheckpointManager(workdir, 9, clean=False).steps()
    files = _files(workdir / "checkpoints" / str(steps[-1]))
    done = 0
    while done < trials:
        path = files[done % len(files)]
        whole = path.read_bytes()
        detail = damage(path)
        if not detail:
            files.remove(path)  # an empty file cannot be damaged
            continue
        said = io.StringIO()
        with (
            contextlib.redirect_stderr(said),
            CheckpointManager(workdir, 9, clean=False) as checkpoints,
        ):
            try:
                used = checkpoints.latest()
            except Corrupted:  # the other one as well, which nobody touched
                used = None
        seen = used == steps[-2] and path.name in said.getvalue()
        yield Trial(
            fault, f"{path.name}: {detail}", undetected=not seen, said=said.getvalue().strip()
        )
        path.write_bytes(whole)
        done += 1


def _copy(run: SmallRun, name: str) -> Path:
    run.reference()
    workdir = run.fresh(name)
    shutil.copytree(run.folder / "undisturbed", workdir)
    return workdir


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())
