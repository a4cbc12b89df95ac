"""Damaged files under the readers of a run or a study: evaluate.py, report.py and study.py."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from posenc_jax.results.schema import DONE, STOPPED, WRONG_INPUT

from faults.fork_server import ROOT
from faults.small_run import SmallRun
from faults.trial import Trial
from support import toy_study
from support.result_folders import row, write_run

_LIMIT = 300.0  # seconds


def evaluated(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """evaluate.py on a run with one damaged file: the same rows as without, or one line that names the
    file.
    """
    run.reference()
    whole = run.fresh("evaluated")
    shutil.copytree(run.folder / "undisturbed", whole)
    flags = ("--suite=E3", "--lengths=1")
    first = _script("scripts/evaluate.py", whole, *flags)
    rows = whole / "evaluation_dev" / "rows.jsonl"
    last = max((whole / "checkpoints").iterdir(), key=lambda path: int(path.name))
    files = [
        whole / "run.json",
        whole / "config.json",
        rows,
        *(p for p in sorted(last.rglob("*")) if p.is_file()),
    ]
    yield from _each(
        run,
        trials,
        rng,
        "evaluate",
        whole,
        files,
        lambda w: _script("scripts/evaluate.py", w, *flags),
        rows,
    )
    if first.returncode != DONE:
        yield _trial("evaluate", "nothing damaged", first, bad=True)


def reported(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """report.py on a study with one damaged file: the same page as without, or one line that names the
    file.
    """
    whole = run.fresh("reported")
    for seed in range(2):
        rows = [row("bpb_ctx", at, 2 + seed / 10 + at / 100) for at in (32, 64, 256)]
        write_run(whole / "runs" / f"rope-s{seed}", rows, seed=seed)
    _script("scripts/report.py", whole)
    files = [p for p in sorted((whole / "runs").rglob("*")) if p.is_file()]
    yield from _each(
        run,
        trials,
        rng,
        "report",
        whole,
        files,
        lambda w: _script("scripts/report.py", w),
        whole / "report.html",
    )


def studied(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """study.py is stopped, one of its records is damaged, and it is started again: the same rows, or one
    line.
    """
    whole = run.fresh("study")
    toy_study.make(whole)
    toy_study.run(whole)
    want = (whole / "out" / "rows.jsonl").read_bytes()
    for index in range(trials):
        folder = run.fresh(f"study-{index}")
        shutil.copytree(whole, folder)
        files = [p for p in sorted((folder / "out").rglob("*.json*")) if p.stat().st_size]
        path = rng.choice(files)
        detail = f"{path.relative_to(folder / 'out')}: {_damage(path, rng)}"
        ended = toy_study.run(folder)
        same = (folder / "out" / "rows.jsonl").read_bytes() == want
        yield _trial(
            "study",
            detail,
            ended,
            bad=not (_is_refusal(ended, path) or (ended.returncode in (DONE, STOPPED) and same)),
        )
        shutil.rmtree(folder)


def _each(
    run: SmallRun,
    trials: int,
    rng: random.Random,
    fault: str,
    whole: Path,
    files: list[Path],
    read: Callable[[Path], subprocess.CompletedProcess],
    product: Path,
) -> Iterator[Trial]:
    """Damages one file of a copy of `whole` at a time; the reader writes `product`."""
    want = product.read_bytes()
    for index in range(trials):
        folder = run.fresh(f"{fault}-{index}")
        shutil.copytree(whole, folder)
        path = folder / rng.choice(files).relative_to(whole)
        detail = f"{path.relative_to(folder)}: {_damage(path, rng)}"
        ended = read(folder)
        made = (folder / product.relative_to(whole)).read_bytes()
        same = ended.returncode == DONE and (made == want or fault == "report")
        yield _trial(fault, detail, ended, bad=not (_is_refusal(ended, path) or same))
        shutil.rmtree(folder)


def _damage(path: Path, rng: random.Random) -> str:
    """Cuts a file, empties it, or adds bytes that are no text."""
    content = path.read_bytes()
    kind = rng.choice(("cut", "emptied", "foreign bytes"))
    cut = content[: rng.randrange(len(content) or 1)]
    path.write_bytes(
        {"cut": cut, "emptied": b"", "foreign bytes": cut + b"\xff\xfe" + content}[kind]
    )
    return kind


def _script(script: str, workdir: Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, script, f"--workdir={workdir}", *flags],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        timeout=_LIMIT,
    )


def _is_refusal(ended: subprocess.CompletedProcess, path: Path) -> bool:
    """Whether the script ended with one line that names the file."""
    lines = ended.stderr.strip().splitlines()
    return ended.returncode == WRONG_INPUT and len(lines) == 1 and path.name in lines[0]


def _trial(fault: str, detail: str, ended: subprocess.CompletedProcess, bad: bool) -> Trial:
    return Trial(
        fault,
        detail,
        undetected=bad,
        said=ended.stderr.strip()[-300:],
        exit_codes=(ended.returncode,),
    )
