"""Full and read-only disks; both faults need permission to mount a file system."""

import contextlib
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from posenc_jax.results.schema import DONE, UNWRITABLE, WRONG_INPUT

from faults.kills import await_seen
from faults.small_run import STEPS, SmallRun, last_logged, without_progress
from faults.trial import Trial

_LIMIT = 120.0  # seconds without a step in which a run on a full disk must have ended


def full(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """A small disk fills up during the run; after it is enlarged, the same command resumes."""
    for index in range(trials):
        size = rng.randrange(300, 1700)  # kB; a checkpoint takes about 500, and two are kept
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
    workdir = run.fresh(name)
    with _mounted(workdir, small) as reason:
        if reason:
            return Trial(fault, skipped=reason)
        process, began = run.start(workdir / "run"), time.monotonic()
        _end_stalled(process, workdir / "run")
        _, err = process.communicate()
        seconds, reached = time.monotonic() - began, last_logged(workdir / "run")
        room = process.returncode == DONE
        said = without_progress(err).splitlines()
        named = process.returncode in (UNWRITABLE, WRONG_INPUT) and len(said) == 1
        subprocess.run(["mount", "-o", f"remount,{large}", str(workdir)], check=True)
        first, out, later = run.finish(workdir / "run")
        wrong = run.wrong(workdir / "run")
    bad = not (room or named) or "Traceback" in later
    return Trial(
        fault,
        small,
        wrong,
        bad,
        0 if room else reached - first,
        " ".join(said)[:300],
        save_cut=not room,
        seconds=seconds,
        exit_codes=str(process.returncode),
        output=f"{err}{out}{later}"[-2000:] if bad or wrong else "",
    )


def _end_stalled(process: subprocess.Popen, workdir: Path) -> None:
    """Waits for the end of a run; kills one without a step for _LIMIT seconds, or twice that for its
    first.
    """
    since, seen = time.monotonic(), 0
    while process.poll() is None:
        time.sleep(0.1)
        now, step = time.monotonic(), last_logged(workdir)
        if step != seen:
            since, seen = now, step
        if now - since > _LIMIT * (1 if seen else 2):
            process.kill()


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


def turned_read_only(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """The kernel makes a file system read-only under a run, as after an error of the disk; later it is
    repaired.
    """
    for index in range(trials):
        workdir, step = run.fresh(f"turned-{index}"), rng.randrange(1, STEPS - 2)
        with disk_image(workdir) as disk:
            if disk.reason:
                yield Trial("turns read-only", skipped=disk.reason)
                return
            process = run.start(workdir / "run")
            await_seen(process, lambda w, step=step: last_logged(w) >= step, workdir / "run", 0.001)
            disk.turn_read_only()
            began = time.monotonic()
            _end_stalled(process, workdir / "run")
            _, err = process.communicate()
            seconds, reached = time.monotonic() - began, last_logged(workdir / "run")
            said = without_progress(err).splitlines()
            disk.repair()
            first, out, later = run.finish(workdir / "run")
            wrong = run.wrong(workdir / "run")
        ended = process.returncode == UNWRITABLE and len(said) == 1 and "Read-only" in said[0]
        bad = not ended or "Traceback" in later
        yield Trial(
            "turns read-only",
            f"after step {step}",
            wrong,
            bad,
            reached - first,
            " ".join(said)[:300],
            save_cut=True,
            seconds=seconds,
            exit_codes=str(process.returncode),
            output=f"{err}{out}{later}"[-2000:] if bad or wrong else "",
        )


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
