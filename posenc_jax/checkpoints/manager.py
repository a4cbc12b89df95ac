"""Checkpoint manager: asynchronous sharded saves with orbax, verified restores onto any mesh.

`checkpoints/12/` holds `state/`, written by orbax, and `manifest.json`. Both are written in
`checkpoints/.saving-12/`; one rename follows once the manifest is on disk, so a folder with a
number is whole or was damaged later. Orbax's own rename is not enough: it allows no manifest before
the rename, and orbax counts an empty folder as a step.

Two checks detect different faults. SHA-256 of every **file** detects changes on disk, in metadata
and data, with one read and no device. Shape, dtype and fingerprint of every **leaf**, computed on
the devices before a save, detect faults outside the disk: a buffer that was reused during the
write, or a wrong cast or layout at the restore. A fingerprint does not depend on the layout
(`fingerprint`), so it holds on another mesh.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from posenc_jax.checkpoints.fingerprint import describe, fingerprints
from posenc_jax.checkpoints.store import SAVING, CheckpointStore, checkpoint_steps
from posenc_jax.results import manifest
from posenc_jax.results.files import sync_folder
from posenc_jax.results.manifest import Corrupted

_REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EROFS: "make the file system writable",
    errno.EIO: "check the disk",
    errno.EACCES: "make the folder writable",
}

FILES = 40  # upper bound on the files that one process writes for a checkpoint


class SaveFailed(Exception):
    """A checkpoint could not be written (disk full, folder gone); names the last whole one."""


class CheckpointManager:
    """The checkpoints of one run, under `<workdir>/checkpoints`; a context manager.

    Args:
      workdir: of the run. keep: number of checkpoints kept. clean: whether to remove the remains of
        killed saves and to rename damaged checkpoints. Only the run's trainer may set it, because
        the remains may be a save in progress.
    """

    def __init__(self, workdir: Path, keep: int, *, clean: bool = True):
        self._workdir = workdir.resolve()
        self._folder = self._workdir / "checkpoints"
        self._keep, self._owner = keep, clean and jax.process_index() == 0
        self._store = CheckpointStore(self._folder, owner=self._owner)  # makes the folder
        self._inode = _inode(self._workdir)
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._saved: int | None = None  # the last step whose save started here
        logging.getLogger("absl").addFilter(_not_of_orbax)
        sys.excepthook = _report  # tensorstore calls it for callbacks of a save that has failed

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, kind, *exc) -> None:
        self._join()
        if kind is None:
            self.check()

    def save(self, step: int, state: dict[str, Any], record: dict) -> None:
        """Starts to save the state of `step` finished steps, after the previous save has ended.

        Args:
          record: other values that a resume needs, of JSON's types.

        Raises:
          SaveFailed: the previous save failed, or the run's folder is gone (`check_folder`).
        """
        self.wait()
        if step == self._saved or self._store.is_verified(step):
            return
        self.check_folder()
        self._saved = step
        sums = fingerprints(state)  # dispatched before the next step may reuse these buffers
        staging = self._folder / f"{SAVING}{step}"
        try:
            staging.mkdir(parents=True, exist_ok=True)
            _check_inodes(staging)
            written = ocp.save_async(staging / "state", state)
        except Exception as error:  # orbax and its libraries raise any kind
            self._failure = error
            return
        self._thread = threading.Thread(
            target=self._publish, args=(step, staging, written, sums, describe(state), record)
        )
        self._thread.start()

    def check(self) -> None:
        """Raises SaveFailed if a save has failed; never waits."""
        if self._failure is not None:
            raise self.failed(
                f"{self._folder}: the checkpoint of step {self._saved} could not be written",
                self._failure,
            )

    def check_folder(self) -> None:
        """Raises SaveFailed if the run's folder was renamed, removed or replaced meanwhile."""
        if _inode(self._workdir) != self._inode:
            raise SaveFailed(
                f"{self._workdir} was renamed, removed or replaced during the run, and what was "
                "written is no longer below it; rename it back and run the same command to go on"
            )

    def failed(self, message: str, error: BaseException) -> SaveFailed:
        """Returns the error of a run that cannot write, with the last whole checkpoint."""
        whole = [step for step in self.steps() if step != self._saved or self._failure is None]
        kept = f"the checkpoint of step {whole[-1]} is whole" if whole else "there is none before"
        return SaveFailed(
            f"{message} ({_line(error)}); {kept}; {_remedy(error)} and run the same command to go "
            "on"
        )

    def wait(self) -> None:
        """Waits until the last save is on disk; raises SaveFailed if it failed."""
        self._join()
        self.check()

    def steps(self) -> list[int]:
        """Returns the steps with a folder that is not empty, damaged or not, ascending."""
        return self._store.steps()

    def latest(self, *, fall_back: bool = True) -> int | None:
        """Returns the step of the last undamaged checkpoint, or None for a run without checkpoints.

        Reports each later, damaged checkpoint on stderr; the run's trainer also renames it.

        Args:
          fall_back: if False, raise when the last checkpoint is damaged, instead of taking an
            earlier one.

        Raises:
          Corrupted: every checkpoint is damaged, and a new start would lose the run.
        """
        if jax.process_count() == 1:
            step = self._newest(fall_back)
        else:  # process 0 reads the shared disk for all
            fault: Corrupted | None = None
            step = -1
            if jax.process_index() == 0:
                try:
                    newest = self._newest(fall_back)
                    step = -1 if newest is None else newest
                except Corrupted as error:
                    fault, step = error, -2
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
            if step == -2:
                raise fault or Corrupted(f"{self._folder}: damaged; process 0 says how")
            step = None if step == -1 else step
        return step

    def chosen(self, which: str) -> int:
        """Returns the step of the checkpoint "last", "best" (by dev loss), or of a step given as
        text.

        For a single process that only reads: a damaged checkpoint is an error, and is not renamed.

        Raises:
          ValueError: another word, no such checkpoint, or a damaged one.
        """
        store = self._store
        if which == "last":
            step = store.newest(fall_back=False)
        elif which == "best":
            step = store.best(fall_back=False)
        elif which.isascii() and which.isdigit():
            step = next((step for step in store.steps() if str(step) == which), None)
        else:
            raise ValueError(f"a checkpoint is last, best or the number of a step, not {which!r}")
        if step is None:
            there = ", ".join(map(str, store.steps())) or "none"
            why = "has a dev loss (config.train.dev_every)" if which == "best" else f"is {which}"
            raise ValueError(f"no checkpoint in {self._folder} {why}; steps there: {there}")
        try:
            store.verified(step)
        except Corrupted as error:
            raise Corrupted(f"checkpoint {store.path(step)} is damaged: {error}") from None
        return step

    def record(self, step: int) -> dict:
        """Returns the record that was saved with the state of a step."""
        return self._store.record(step)

    def digest(self, step: int) -> str:
        """Returns SHA-256 over the fingerprints of all leaves: equal digests mean equal states."""
        sums = self._store.verified(step)["sums"]
        return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps; only the run's trainer may."""
        for later in self.steps():
            if later > step:
                self._store.delete(later)

    def restore(self, step: int, shapes: dict[str, Any]) -> dict[str, Any]:
        """Returns the state of `step`, laid out as `shapes` (ShapeDtypeStructs with shardings).

        Raises:
          Corrupted: other leaves, shapes or dtypes than `shapes`, or other bits than were saved.
        """
        contents = self._store.verified(step)
        self._compare(step, contents["leaves"], shapes)
        return self._loaded(step, shapes, contents["sums"])

    def parameters(self, step: int, shapes) -> dict:
        """Returns the parameters of `step`, laid out as `shapes`; Corrupted as in `restore`."""
        self.compare_parameters(step, shapes)
        part = ocp.Context()
        part.pytree.loading.partial_load = True
        with part:
            sums = self._store.verified(step)["sums"]
            return self._loaded(step, {"params": shapes}, sums)["params"]

    def compare_parameters(self, step: int, shapes) -> None:
        """Raises Corrupted, naming leaves, unless the parameters have these shapes and dtypes."""
        leaves = self._store.verified(step)["leaves"]
        saved = {name: leaf for name, leaf in leaves.items() if name.startswith("params/")}
        self._compare(step, saved, {"params": shapes})

    def _compare(self, step: int, saved: dict[str, str], shapes) -> None:
        wanted = describe(shapes)
        differing = [
            f"{name} is {saved.get(name, 'absent')} there, {wanted.get(name, 'absent')} here"
            for name in sorted(saved.keys() | wanted.keys())
            if saved.get(name) != wanted.get(name)
        ]
        if differing:
            more = f"; and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise Corrupted(
                f"checkpoint {self._store.path(step)} is of another model: "
                f"{'; '.join(differing[:3])}{more}"
            )

    def _loaded(self, step: int, shapes, saved: dict[str, str]):
        where = f"checkpoint {self._store.path(step)}"
        try:
            state = ocp.load(self._store.path(step) / "state", shapes)
        except Exception as error:  # orbax and its libraries raise any kind
            raise Corrupted(f"{where} cannot be read: {_line(error)}") from error
        sums = {name: x.tobytes().hex() for name, x in jax.device_get(fingerprints(state)).items()}
        wrong = [name for name, sum_ in sums.items() if sum_ != saved[name]]
        if wrong:
            raise Corrupted(f"{where}: {', '.join(wrong[:3])} came back with other bits")
        return state

    def _newest(self, fall_back: bool) -> int | None:
        step = self._store.newest(fall_back=fall_back)
        if self._owner:  # renames a damaged best one while the next best still exists
            self._store.best(fall_back=True)
        return step

    def _publish(self, step: int, staging: Path, written, sums, leaves: dict, record: dict) -> None:
        """Waits for orbax, writes the manifest, renames the folder, and deletes old checkpoints."""
        try:
            written.result()
            contents = {
                "step": step,
                "leaves": leaves,
                "sums": {name: np.asarray(x).tobytes().hex() for name, x in sums.items()},
                "record": record,
            }
            if not self._owner:
                return  # orbax has waited for every process; process 0 renames the folder
            manifest.seal(staging, contents)
            staging.rename(self._folder / str(step))
            sync_folder(self._folder)
            self._store.retain(self._keep)
        except BaseException as error:  # `check` raises it in the main thread
            self._failure = error
            shutil.rmtree(staging, ignore_errors=True)  # frees space on a full disk

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run has a checkpoint, damaged or not; creates nothing."""
    return bool(checkpoint_steps(workdir.resolve() / "checkpoints"))


def _check_inodes(folder: Path) -> None:
    """Raises OSError if a checkpoint needs more inodes than are free; orbax would wait five minutes
    for them.
    """
    disk = os.statvfs(folder)
    if disk.f_files and disk.f_favail < FILES:  # some file systems count none
        raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}: {disk.f_favail} free inodes")


def _inode(folder: Path) -> tuple[int, int] | None:
    """Returns what identifies a folder under any name, None if there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _line(error: BaseException) -> str:
    """Returns the first line of an error's message, shortened."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    full = os.strerror(errno.ENOSPC)  # tensorstore adds the long path of a temporary file
    return full if full in lines[0] else lines[0][:300]


def _remedy(error: BaseException) -> str:
    """Returns the remedy of an error of writing; libraries wrap the system's words."""
    for number, words in _REMEDIES.items():
        if getattr(error, "errno", None) == number or os.strerror(number) in str(error):
            return words
    return "find out why"


def _not_of_orbax(logged: logging.LogRecord) -> bool:
    """Whether a log record is not orbax's traceback of a failure that `check` reports."""
    return not (logged.exc_info and "orbax" in logged.pathname)


def _report(kind: type[BaseException], error: BaseException, trace) -> None:
    """Prints an uncaught error, unless it follows from a failure that `check` reports."""
    if not (kind is RuntimeError and str(error) == "Event loop is closed"):
        sys.__excepthook__(kind, error, trace)
