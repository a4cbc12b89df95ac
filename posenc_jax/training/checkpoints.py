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

import shutil
import sys
import threading
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from posenc_jax.training import manifest
from posenc_jax.training.fingerprint import describe, fingerprints
from posenc_jax.training.manifest import Damaged
from posenc_jax.training.step import State

_SAVING, _DELETING = ".saving-", ".deleting-"
_CONTENTS = {"step", "leaves", "sums", "record"}


class SaveFailed(Exception):
    """A checkpoint could not be written (disk full, folder gone); says which one is safe."""


class Checkpoints:
    """The checkpoints of one run, under `<workdir>/checkpoints`; use it in `with`.

    Args:
      workdir: of the run. keep: checkpoints kept. clean: remove what a killed save left behind and set
        damaged ones aside; a reader must not, for a trainer may be saving beside it.
    """

    def __init__(self, workdir: Path, keep: int, *, clean: bool = True):
        self._folder = workdir.resolve() / "checkpoints"
        self._keep, self._owner = keep, clean and jax.process_index() == 0
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._saved: int | None = None  # the last step whose save was begun here
        self._contents: dict[int, dict] = {}
        if self._owner:
            self._folder.mkdir(parents=True, exist_ok=True)
            for stale in (*self._folder.glob(f"{_SAVING}*"), *self._folder.glob(f"{_DELETING}*")):
                shutil.rmtree(stale)

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *exc) -> None:
        self._join()
        if kind is None:
            self.check()

    def save(self, step: int, state: State, record: dict) -> None:
        """Starts writing the state of `step` finished steps, after the write before it.

        Args:
          record: what else must be known to go on from here, in JSON's types.

        Raises:
          SaveFailed: the write before it.
        """
        self.wait()
        if step == self._saved or step in self._contents:
            return
        self._saved = step
        sums = fingerprints(state)  # dispatched before the next step may reuse these buffers
        staging = self._folder / f"{_SAVING}{step}"
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
        return _steps(self._folder)

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
            fault: Damaged | None = None
            step = -1
            if jax.process_index() == 0:
                try:
                    newest = self._newest(fall_back)
                    step = -1 if newest is None else newest
                except Damaged as error:
                    fault, step = error, -2
            step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
            if step == -2:
                raise fault or Damaged(f"{self._folder}: damaged; process 0 says how")
            step = None if step == -1 else step
        return step

    def record(self, step: int) -> dict:
        """Returns what was stored beside the state of a step."""
        return self._verified(step)["record"]

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps, as a run's one trainer may."""
        for later in self.steps():
            if later > step:
                self._delete(later)

    def restore(self, step: int, shapes: State) -> State:
        """Returns the state of `step`, laid out as `shapes` (ShapeDtypeStructs with shardings).

        Raises:
          Damaged: it holds other leaves, shapes or dtypes than `shapes`, or other bits than were saved.
        """
        contents = self._verified(step)
        where = f"checkpoint {self._folder / str(step)}"
        found = _differences(contents["leaves"], describe(shapes))
        if found:
            raise Damaged(
                f"{where} is of another model: {'; '.join(found[:3])}"
                f"{f'; and {len(found) - 3} more' if len(found) > 3 else ''}"
            )
        try:
            state = ocp.load(self._folder / str(step) / "state", shapes)
        except Exception as error:  # of orbax and below it: any kind
            raise Damaged(f"{where} cannot be read: {_line(error)}") from error
        sums = {name: x.tobytes().hex() for name, x in jax.device_get(fingerprints(state)).items()}
        wrong = [name for name, sum_ in sums.items() if sum_ != contents["sums"][name]]
        if wrong:
            raise Damaged(f"{where}: {', '.join(wrong[:3])} came back with other bits")
        return state

    def _newest(self, fall_back: bool) -> int | None:
        """Returns the last step that verifies."""
        faults: dict[int, Damaged] = {}
        for step in reversed(self.steps()):
            try:
                self._verified(step)
                break
            except Damaged as error:
                faults[step] = error
                if not fall_back:
                    raise Damaged(
                        f"checkpoint {self._folder / str(step)} is damaged: {error}; run train.py with the "
                        "same --workdir, which goes on from the last sound one"
                    ) from None
        else:
            if faults:
                said = "; ".join(f"{step}: {error}" for step, error in faults.items())
                raise Damaged(
                    f"every checkpoint in {self._folder} is damaged ({said}); bring one back from a copy, "
                    "or remove that folder to start over"
                )
            return None
        for bad, error in faults.items():
            aside = f"; it is now {bad}.damaged" if self._owner else ""
            print(f"checkpoint {self._folder / str(bad)} is damaged: {error}{aside}; step {step} is the last sound one", file=sys.stderr)  # fmt: skip
            if self._owner:
                shutil.rmtree(self._folder / f"{bad}.damaged", ignore_errors=True)
                (self._folder / str(bad)).rename(self._folder / f"{bad}.damaged")
        return step

    def _verified(self, step: int) -> dict:
        if step not in self._contents:
            contents = manifest.verify(self._folder / str(step))
            if set(contents) != _CONTENTS:
                raise Damaged(f"{manifest.NAME} is not one of ours")
            if contents["step"] != step:
                raise Damaged(f"it is the checkpoint of step {contents['step']}")
            self._contents[step] = contents
        return self._contents[step]

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
            for old in self.steps()[: -self._keep]:
                self._delete(old)
        except BaseException as error:  # a thread has nobody to raise to: `check` says it
            self._failure = error
            shutil.rmtree(staging, ignore_errors=True)  # on a full disk it is what fills it

    def _delete(self, step: int) -> None:
        """Takes the number away first: a kill leaves no half of a checkpoint under it."""
        going = self._folder / f"{_DELETING}{step}"
        (self._folder / str(step)).rename(going)
        shutil.rmtree(going)
        self._contents.pop(step, None)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run has a checkpoint, sound or not; looks, and creates nothing."""
    return bool(_steps(workdir.resolve() / "checkpoints"))


def _steps(folder: Path) -> list[int]:
    if not folder.is_dir():
        return []
    named = (child for child in folder.iterdir() if child.name.isascii() and child.name.isdigit())
    return sorted(
        int(child.name)
        for child in named
        if str(int(child.name)) == child.name and child.is_dir() and any(child.iterdir())
    )


def _differences(saved: dict, wanted: dict) -> list[str]:
    return [
        f"{name} is {saved.get(name, 'absent')} there, {wanted.get(name, 'absent')} here"
        for name in sorted(saved.keys() | wanted.keys())
        if saved.get(name) != wanted.get(name)
    ]


def _line(error: BaseException) -> str:
    """Returns the first line of what an error says, short enough for one line of ours."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:300]
