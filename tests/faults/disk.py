"""Full and read-only disks; both faults need permission to mount a file system."""

import contextlib
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

from faults.small_run import SmallRun, last_logged, without_progress
from faults.trial import Trial
from posenc_jax.results.schema import UNWRITABLE, WRONG_INPUT


def full(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """A small disk fills up during the run; after it is enlarged, the same command resumes."""
    for index in range(trials):
        workdir = run.fresh(f"full-{index}")
        size = rng.randrange(300, 1700)  # kB; a checkpoint takes about 500, and two are kept
        with _mounted(workdir, f"size={size}k") as reason:
            if reason:
                yield Trial("disk full", skipped=reason)
                return
            process = run.start(workdir / "run")
            _, err = process.communicate()
            reached = last_logged(workdir / "run")
            room = process.returncode == 0
            said = without_progress(err).splitlines()
            named = process.returncode == UNWRITABLE and len(said) == 1
            subprocess.run(["mount", "-o", "remount,size=64m", str(workdir)], check=True)
            first, _, later = run.finish(workdir / "run")
            wrong = run.wrong(workdir / "run")
        detail = f"{size} kB, exit {process.returncode}"
        bad = not (room or named) or "Traceback" in later
        yield Trial(
            "disk full",
            detail,
            wrong,
            bad,
            0 if room else reached - first,
            " ".join(said),
            save_cut=not room,
        )


def read_only(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """A workdir on a file system that is mounted read-only: one line, exit code 2."""
    for index in range(trials):
        workdir = run.fresh(f"readonly-{index}")
        with _mounted(workdir, "ro") as reason:
            if reason:
                yield Trial("read-only workdir", skipped=reason)
                return
            process = run.start(workdir / "run")
            _, err = process.communicate()
        one = process.returncode == WRONG_INPUT and len(err.strip().splitlines()) == 1
        yield Trial("read-only workdir", "", undetected=not one, said=err.strip())


@contextlib.contextmanager
def _mounted(folder: Path, options: str) -> Iterator[str]:
    """Mounts a file system in memory at `folder`; yields the reason for a failure, or an empty string."""
    folder.mkdir(parents=True)
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, text=True)  # fmt: skip
    try:
        yield "mounting is not permitted here" if mount.returncode else ""
    finally:
        if not mount.returncode:
            subprocess.run(["umount", str(folder)], check=True)
