"""Damaged files under the readers of a run or a study: evaluate.py, report.py and study.py."""

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from posenc_jax.results.schema import DONE, WRONG_INPUT

from faults.fork_server import ROOT
from faults.small_run import SmallRun
from faults.trial import Trial, codes
from support import toy_study
from support.result_folders import row, write_run

_LIMIT = 300.0  # seconds


def evaluated(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """evaluate.py on a run with one damaged file."""
    run.reference()
    whole = run.fresh("evaluated")
    shutil.copytree(run.folder / "undisturbed", whole)
    rows = whole / "evaluation_dev" / "rows.jsonl"

    def read(workdir: Path) -> subprocess.CompletedProcess:
        return _script("scripts/evaluate.py", workdir, "--suite=E3", "--lengths=1")

    read(whole).check_returncode()
    last = max((whole / "checkpoints").iterdir(), key=lambda path: int(path.name))
    files = [whole / "run.json", whole / "config.json", rows, *last.rglob("*")]
    yield from damaged(run, trials, rng, "evaluate", whole, files, read, rows)


def reported(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """report.py on a study with one damaged file."""
    whole = run.fresh("reported")
    for seed in range(2):
        rows = [row("bpb_ctx", at, 2 + seed / 10 + at / 100) for at in (32, 64, 256)]
        write_run(whole / "runs" / f"rope-s{seed}", rows, seed=seed)

    def read(workdir: Path) -> subprocess.CompletedProcess:
        return _script("scripts/report.py", workdir)

    read(whole).check_returncode()
    files = list((whole / "runs").rglob("*"))
    yield from damaged(run, trials, rng, "report", whole, files, read, whole / "report.html")


def studied(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """study.py started again on a study that has ended and has one damaged record."""
    whole = run.fresh("study")
    toy_study.make(whole)
    toy_study.run(whole).check_returncode()
    files = list((whole / "out").rglob("*.json*"))
    rows = whole / "out" / "rows.jsonl"
    yield from damaged(run, trials, rng, "study", whole, files, toy_study.run, rows)


def damaged(
    run: SmallRun,
    trials: int,
    rng: random.Random,
    fault: str,
    whole: Path,
    files: list[Path],
    reader: Callable[[Path], subprocess.CompletedProcess],
    product: Path,
) -> Iterator[Trial]:
    """Damages one file of a copy of `whole` at a time, and calls `reader`, which writes `product`.

    It must write the same bytes as without the damage, name the file in what it writes, or refuse in one line
    that names it.
    """
    want = product.read_bytes()
    files = sorted(path for path in files if path.is_file() and path.stat().st_size)
    for index in range(trials):
        folder = run.fresh(f"{fault}-{index}") / whole.name  # a page shows the name of its folder
        shutil.copytree(whole, folder)
        path = folder / rng.choice(files).relative_to(whole)
        detail = f"{path.relative_to(folder)}: {_damage(path, rng)}"
        ended = reader(folder)
        made = (folder / product.relative_to(whole)).read_bytes()
        one_line = len(ended.stderr.splitlines()) == 1 and path.name in ended.stderr
        refused = ended.returncode == WRONG_INPUT and one_line
        named = made.count(path.name.encode()) > want.count(path.name.encode())
        read = ended.returncode == DONE and (made == want or named)
        yield Trial(
            fault,
            detail,
            undetected=not (refused or read) or "Traceback" in ended.stderr,
            said=ended.stderr.strip()[:300],
            exit_codes=codes(ended),
            output=f"{ended.stderr}{ended.stdout}",
        )
        shutil.rmtree(folder)


def _damage(path: Path, rng: random.Random) -> str:
    """Cuts a file, empties it, or adds bytes that are no text."""
    content = path.read_bytes()
    kind = rng.choice(("cut", "emptied", "foreign bytes"))
    cut = content[: rng.randrange(len(content))]
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
