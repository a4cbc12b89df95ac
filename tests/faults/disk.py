"""Full and read-only disks; both faults need permission to mount a file system."""

import contextlib
import dataclasses
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from posenc_jax.results.schema import DONE, UNWRITABLE, WRONG_INPUT

from faults.kills import await_seen, suspended
from faults.small_run import STEPS, SmallRun, last_logged, outputs, without_progress
from faults.trial import Trial, codes
from faults.workdirs import checkpoints


def full(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """A small disk fills up during the run; after it is enlarged, the same command resumes."""
    for index in range(trials):
        size = rng.randrange(200, 1000)  # kB; a whole run fits into 1,250
        yield _filled(run, f"full-{index}", "disk full", f"size={size}k", "size=64m")


def out_of_inodes(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """A file system that holds a small number of files, until it holds more."""
    for index in range(trials):
        count = rng.randrange(10, 60)
        yield _filled(
            run, f"inodes-{index}", "out of inodes", f"size=64m,nr_inodes={count}", "nr_inodes=9999"
        )


def _filled(run: SmallRun, name: str, fault: str, small: str, large: str) -> Trial:
    """Runs on a file system with small limits, enlarges it, and resumes."""
    disk = run.fresh(name)
    workdir = disk / "run"
    with _mounted(disk, small) as reason:
        if reason:
            return Trial(fault, skipped=reason)
        trial = _failing(fault, small, run.start(workdir), workdir, "No space left on device")
        if trial.exit_codes == str(DONE):
            whole = not run.wrong(workdir) and STEPS in checkpoints(workdir)
            return _skipped(trial, "there was room") if whole else trial
        subprocess.run(["mount", "-o", f"remount,{large}", str(disk)], check=True)
        return _repaired(run, workdir, trial)


def _failing(fault: str, detail: str, process, workdir: Path, cause: str) -> Trial:
    """Waits for the end of a run that cannot write; one line must name the cause."""
    began = time.monotonic()
    out, err = outputs(process, workdir)
    lines = without_progress(err).splitlines()
    named = process.returncode in (UNWRITABLE, WRONG_INPUT) and len(lines) == 1 and cause in err
    return Trial(
        fault,
        detail,
        undetected=not named,
        lost_steps=last_logged(workdir),  # all, until it resumes
        said=" ".join(lines)[:300],
        save_cut=True,
        seconds=time.monotonic() - began,
        exit_codes=codes(process),
        output=f"{err}{out}",
    )


def _skipped(trial: Trial, why: str) -> Trial:
    return Trial(trial.fault, trial.detail, skipped=why, exit_codes=trial.exit_codes)


def _repaired(run: SmallRun, workdir: Path, trial: Trial) -> Trial:
    """Resumes `trial` on a file system that can be written again, to the end."""
    first, code, out, err = run.finish(workdir)
    return dataclasses.replace(
        trial,
        wrong=run.wrong(workdir),
        undetected=trial.undetected or "Traceback" in err,
        lost_steps=trial.lost_steps - first,
        exit_codes=f"{trial.exit_codes} {code}",
        output=f"{trial.output}{err}{out}",
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
            out, err = outputs(process, workdir / "run")
        one = process.returncode == WRONG_INPUT and len(err.strip().splitlines()) == 1
        yield Trial(
            "read-only workdir",
            undetected=not one,
            said=err.strip(),
            exit_codes=codes(process),
            output=f"{err}{out}",
        )


def turned_read_only(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """The kernel makes a file system read-only under a run, as after an error of the disk; later it is
    repaired.
    """
    for index in range(trials):
        folder, step = run.fresh(f"turned-{index}"), rng.randrange(1, STEPS - 2)
        name, workdir = "turns read-only", folder / "run"
        with disk_image(folder) as disk:
            if disk.reason:
                yield Trial(name, skipped=disk.reason)
                return
            process = run.start(workdir)
            await_seen(process, lambda w, step=step: last_logged(w) >= step, workdir, pause=0.001)
            with suspended(process):
                reached = last_logged(workdir)
                disk.turn_read_only()
            trial = _failing(name, f"at step {reached}", process, workdir, "Read-only file system")
            disk.repair()
            if trial.exit_codes == str(DONE) and reached == STEPS:
                yield _skipped(trial, "it ended first")
                continue
            yield _repaired(run, workdir, trial)


class DiskImage:
    """An ext4 file system in a file, mounted at a folder; `reason` says why it is not, or is empty."""

    def __init__(self, folder: Path):
        self._folder, self._image = folder, folder.with_name(f"{folder.name}.img")
        with self._image.open("wb") as file:
            file.truncate(64 * 2**20)
        self.reason = self._did("mkfs.ext4", "-q", "-F", self._image) or self._mount()

    def turn_read_only(self) -> None:
        """Ends all writing, also of open files, as the kernel does after an error of the disk."""
        subprocess.run(["mount", "-o", "remount,abort", str(self._folder)], check=True)

    def repair(self) -> None:
        """Checks the file system and mounts it again."""
        self.close()
        self._did("fsck.ext4", "-p", self._image)
        if reason := self._mount():
            raise RuntimeError(reason)

    def close(self) -> None:
        """Takes the file system away."""
        if not self.reason:
            subprocess.run(["umount", str(self._folder)], check=True)

    def _mount(self) -> str:
        return self._did("mount", "-o", "loop", self._image, self._folder)

    @staticmethod
    def _did(*command) -> str:
        """Runs a command; returns why it failed, or an empty string."""
        try:
            ended = subprocess.run([*map(str, command)], capture_output=True, text=True)
        except FileNotFoundError as error:
            return f"{error.filename} is not installed"
        return "mounting an image is not permitted here" if ended.returncode else ""


@contextlib.contextmanager
def disk_image(folder: Path) -> Iterator[DiskImage]:
    """Mounts a new `DiskImage` at `folder`."""
    folder.mkdir(parents=True)
    disk = DiskImage(folder)
    try:
        yield disk
    finally:
        disk.close()


@contextlib.contextmanager
def _mounted(folder: Path, options: str) -> Iterator[str]:
    """Mounts a file system in memory at `folder`; yields the reason for a failure, or an empty string."""
    folder.mkdir(parents=True)
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)],
        capture_output=True,
        text=True,
    )
    try:
        yield "mounting is not permitted here" if mount.returncode else ""
    finally:
        if not mount.returncode:
            subprocess.run(["umount", str(folder)], check=True)
