"""Checkpoints: the only file that knows orbax. Asynchronous, sharded, verified, restored onto any mesh.

`checkpoints/12/` holds `state/`, written by orbax, and `manifest.json`. Both are made in
`checkpoints/.saving-12/`, which gets its name by one rename once the manifest is on disk, so a folder
with a number is whole or was damaged later. Orbax has a rename of its own, but no place to write
anything before it, and its list of steps counts an empty folder; this one is therefore around it.

Two things are checked, for they see different faults. SHA-256 of every **file** sees whatever happens on
disk, in metadata as in data, and costs one read, with no device and no mesh. Shape, dtype and a sum over the
bits of every **leaf**, taken from the state on its devices before the save begins, sees what happens before
and after: a buffer reused while it was being written, a value cast or laid out wrongly at restoring. The
sum does not depend on how a leaf is laid out (`fingerprint`), so it holds on another mesh.
"""

import errno
import hashlib
import json
import logging
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from posenc_jax.checkpoints import manifest
from posenc_jax.checkpoints.fingerprint import describe, fingerprints
from posenc_jax.checkpoints.manifest import CorruptedCheckpoint
from posenc_jax.checkpoints.store import SAVING, CheckpointStore, checkpoint_steps


class SaveFailed(Exception):
    """A checkpoint could not be written (disk full, folder gone); says which one is safe."""


class CheckpointManager:
    """The checkpoints of one run, under `<workdir>/checkpoints`; use it in `with`.

    Args:
      workdir: of the run. keep: checkpoints kept. clean: remove what a killed save left behind and set
        damaged ones aside; a reader must not, for a trainer may be saving beside it.
    """

    def __init__(self, workdir: Path, keep: int, *, clean: bool = True):
        self._folder = workdir.resolve() / "checkpoints"
        self._keep, self._owner = keep, clean and jax.process_index() == 0
        self._store = CheckpointStore(self._folder, owner=self._owner)
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._saved: int | None = None  # the last step whose save was begun here
        logging.getLogger("absl").addFilter(_not_of_orbax)

    def __enter__(self) -> "CheckpointManager":
        return self

    def __exit__(self, kind, *exc) -> None:
        self._join()
        if kind is None:
            self.check()

    def save(self, step: int, state: dict[str, Any], record: dict) -> None:
        """Starts writing the state of `step` finished steps, after the write before it.

        Args:
          record: what else must be known to go on from here, in JSON's types.

        Raises:
          SaveFailed: the write before it.
        """
        self.wait()
        if step == self._saved or self._store.known(step):
            return
        self._saved = step
        sums = fingerprints(state)  # dispatched before the next step may reuse these buffers
        staging = self._folder / f"{SAVING}{step}"
        try:
            staging.mkdir(parents=True, exist_ok=True)
            written = ocp.save_async(staging / "state", state)
        except Exception as error:  # of orbax and below it: any kind
            self._failure = error
            return
        self._thread = threading.Thread(
            target=self._publish, args=(step, staging, written, sums, describe(state), record)
        )
        self._thread.start()

    def check(self) -> None:
        """Raises SaveFailed when a write has failed; never waits."""
        if self._failure is not None:
            raise self.failed(
                f"{self._folder}: the checkpoint of step {self._saved} could not be written",
                self._failure,
            )

    def failed(self, what: str, error: BaseException) -> SaveFailed:
        """Returns the error that ends a run which cannot write, with the step that is safe."""
        sound = [step for step in self.steps() if step != self._saved or self._failure is None]
        kept = f"the checkpoint of step {sound[-1]} is whole" if sound else "there is none before"
        return SaveFailed(
            f"{what} ({_line(error)}); {kept}; make room and run the same command to go on"
        )

    def wait(self) -> None:
        """Returns once the last save is on disk; raises SaveFailed when it is not."""
        self._join()
        self.check()

    def steps(self) -> list[int]:
        """Returns the steps that have a folder with anything in it, sound or not, ascending."""
        return self._store.steps()

    def latest(self, *, fall_back: bool = True) -> int | None:
        """Returns the step of the last sound checkpoint, or None when the run has none at all.

        Each damaged one after it is named on stderr, and set aside by the run's trainer.

        Args:
          fall_back: False raises for a damaged last one, for readers whom an earlier step would mislead.

        Raises:
          Damaged: every checkpoint is damaged, so going on would mean starting over.
        """
        if jax.process_count() == 1:
            step = self._newest(fall_back)
        else:  # one reader of the shared disk, and one answer
            fault: CorruptedCheckpoint | None = None
            step = -1
            if jax.process_index() == 0:
                try:
                    newest = self._newest(fall_back)
                    step = -1 if newest is None else newest
                except CorruptedCheckpoint as error:
                    fault, step = error, -2
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
            if step == -2:
                raise fault or CorruptedCheckpoint(f"{self._folder}: damaged; process 0 says how")
            step = None if step == -1 else step
        return step

    def chosen(self, which: str) -> int:
        """Returns the step of the checkpoint that is "last", "best" (by dev loss) or of a step by number.

        For one process that reads: nothing is set aside, and none stands in for a damaged one.

        Raises:
          ValueError: another word, no such checkpoint, or a damaged one.
        """
        shelf = self._store
        if which == "last":
            step = shelf.newest(fall_back=False)
        elif which == "best":
            step = shelf.best(fall_back=False)
        elif which.isascii() and which.isdigit():
            step = next((step for step in shelf.steps() if str(step) == which), None)
        else:
            raise ValueError(f"a checkpoint is last, best or the number of a step, not {which!r}")
        if step is None:
            there = ", ".join(map(str, shelf.steps())) or "none"
            why = "has a dev loss (config.train.dev_every)" if which == "best" else f"is {which}"
            raise ValueError(f"no checkpoint in {self._folder} {why}; steps there: {there}")
        try:
            shelf.verified(step)
        except CorruptedCheckpoint as error:
            raise CorruptedCheckpoint(
                f"checkpoint {shelf.path(step)} is damaged: {error}"
            ) from None
        return step

    def record(self, step: int) -> dict:
        """Returns what was stored beside the state of a step."""
        return self._store.verified(step)["record"]

    def digest(self, step: int) -> str:
        """Returns SHA-256 over the sums of every leaf of a step: two checkpoints with one digest are one state."""
        sums = self._store.verified(step)["sums"]
        return hashlib.sha256(json.dumps(sums, sort_keys=True).encode()).hexdigest()

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps, as a run's one trainer may."""
        for later in self.steps():
            if later > step:
                self._store.delete(later)

    def restore(self, step: int, shapes: dict[str, Any]) -> dict[str, Any]:
        """Returns the state of `step`, laid out as `shapes` (ShapeDtypeStructs with shardings).

        Raises:
          Damaged: it holds other leaves, shapes or dtypes than `shapes`, or other bits than were saved.
        """
        contents = self._store.verified(step)
        self._compare(step, contents["leaves"], shapes)
        return self._loaded(step, shapes, contents["sums"])

    def parameters(self, step: int, shapes) -> dict:
        """Returns the parameters of `step` alone, laid out as `shapes`, whatever optimizer they had.

        Raises:
          Damaged: as `restore`.
        """
        self.compare_parameters(step, shapes)
        part = ocp.Context()
        part.pytree.loading.partial_load = True
        with part:
            sums = self._store.verified(step)["sums"]
            return self._loaded(step, {"params": shapes}, sums)["params"]

    def compare_parameters(self, step: int, shapes) -> None:
        """Raises Damaged, naming leaves, unless the parameters of `step` are of these shapes and dtypes."""
        leaves = self._store.verified(step)["leaves"]
        said = {name: leaf for name, leaf in leaves.items() if name.startswith("params/")}
        self._compare(step, said, {"params": shapes})

    def _compare(self, step: int, said: dict[str, str], shapes) -> None:
        found = _differences(said, describe(shapes))
        if found:
            raise CorruptedCheckpoint(
                f"checkpoint {self._store.path(step)} is of another model: {'; '.join(found[:3])}"
                f"{f'; and {len(found) - 3} more' if len(found) > 3 else ''}"
            )

    def _loaded(self, step: int, shapes, said: dict[str, str]):
        where = f"checkpoint {self._store.path(step)}"
        try:
            state = ocp.load(self._store.path(step) / "state", shapes)
        except Exception as error:  # of orbax and below it: any kind
            raise CorruptedCheckpoint(f"{where} cannot be read: {_line(error)}") from error
        sums = {name: x.tobytes().hex() for name, x in jax.device_get(fingerprints(state)).items()}
        wrong = [name for name, sum_ in sums.items() if sum_ != said[name]]
        if wrong:
            raise CorruptedCheckpoint(f"{where}: {', '.join(wrong[:3])} came back with other bits")
        return state

    def _newest(self, fall_back: bool) -> int | None:
        step = self._store.newest(fall_back=fall_back)
        if self._owner:  # a damaged best one is set aside now, while the next best is still kept
            self._store.best(fall_back=True)
        return step

    def _publish(self, step: int, staging: Path, written, sums, leaves: dict, record: dict) -> None:
        """Waits for orbax, seals the folder, names it, and removes what is not kept any more."""
        try:
            written.result()
            contents = {
                "step": step,
                "leaves": leaves,
                "sums": {name: np.asarray(x).tobytes().hex() for name, x in sums.items()},
                "record": record,
            }
            if not self._owner:
                return  # orbax has waited for every process; the first one names the folder
            manifest.seal(staging, contents)
            staging.rename(self._folder / str(step))
            manifest.sync_folder(self._folder)
            self._store.retain(self._keep)
        except BaseException as error:  # a thread has nobody to raise to: `check` says it
            self._failure = error
            shutil.rmtree(staging, ignore_errors=True)  # on a full disk it is what fills it

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run has a checkpoint, sound or not; looks, and creates nothing."""
    return bool(checkpoint_steps(workdir.resolve() / "checkpoints"))


def _differences(saved: dict, wanted: dict) -> list[str]:
    return [
        f"{name} is {saved.get(name, 'absent')} there, {wanted.get(name, 'absent')} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]


def _line(error: BaseException) -> str:
    """Returns the first line of what an error says, short enough for one line of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    full = os.strerror(
        errno.ENOSPC
    )  # tensorstore wraps it in the path of a temporary file, at length
    return full if full in lines[0] else lines[0][:300]


def _not_of_orbax(logged: logging.LogRecord) -> bool:
    """Whether a log record is anything but orbax's traceback of a failure that `check` says in a line."""
    return not (logged.exc_info and "orbax" in logged.pathname)
