"""Checkpoint store: lists, verifies, selects, renames and deletes the checkpoint folders of a run.

It never loads arrays (`manager` does): it reads names, manifests and, to verify, hashes of files.
"""

import math
import shutil
import sys
from pathlib import Path

from posenc_jax.results import manifest
from posenc_jax.results.manifest import Corrupted
from posenc_jax.results.record_schema import CHECKPOINT

SAVING, _DELETING = ".saving-", ".deleting-"


class CheckpointStore:
    """Numbered checkpoints under one folder.

    Args:
      folder: `<workdir>/checkpoints`. owner: True in the run's trainer; it may rename damaged
        checkpoints and delete old ones, and the constructor then removes unfinished saves.
    """

    def __init__(self, folder: Path, *, owner: bool):
        self.folder, self._owner = folder, owner
        self._contents: dict[int, dict] = {}
        self._losses: dict[int, float] = {}
        if owner:
            folder.mkdir(parents=True, exist_ok=True)
            for stale in (*folder.glob(f"{SAVING}*"), *folder.glob(f"{_DELETING}*")):
                _remove(stale)

    def steps(self) -> list[int]:
        """Returns all steps whose folder is not empty, including damaged ones, ascending."""
        return checkpoint_steps(self.folder)

    def path(self, step: int) -> Path:
        """Returns the folder of a step's checkpoint."""
        return self.folder / str(step)

    def is_verified(self, step: int) -> bool:
        """Whether this store has verified a step's checkpoint."""
        return step in self._contents

    def verified(self, step: int) -> dict:
        """Returns the contents of a step's manifest; raises Corrupted if any byte has changed."""
        if step not in self._contents:
            contents = manifest.checked(manifest.verify(self.path(step)), CHECKPOINT, manifest.NAME)
            if contents["step"] != step:
                raise Corrupted(f"it is the checkpoint of step {contents['step']}")
            if contents["leaves"].keys() != contents["sums"].keys():
                raise Corrupted(f"{manifest.NAME} lacks the fingerprint of a leaf")
            self._contents[step] = contents
        return self._contents[step]

    def record(self, step: int) -> dict:
        """Returns the record that was saved with the state of a step."""
        return self.verified(step)["record"]

    def newest(self, *, fall_back: bool) -> int | None:
        """Returns the last step whose checkpoint verifies, or None if there are no checkpoints.

        Reports later, damaged checkpoints on stderr; the owner also renames them.

        Args:
          fall_back: if False, raise Corrupted when the last checkpoint is damaged.

        Raises:
          Corrupted: every checkpoint is damaged, or without `fall_back` the last one is.
        """
        faults: dict[int, Corrupted] = {}
        for step in reversed(self.steps()):
            fault = self._fault(step, fall_back, "resumes from the last undamaged checkpoint")
            if fault is None:
                break
            faults[step] = fault
        else:
            if faults:
                reasons = "; ".join(f"{step}: {error}" for step, error in faults.items())
                raise Corrupted(
                    f"every checkpoint in {self.folder} is damaged ({reasons}); bring one back "
                    "from a copy, or remove that folder to start over"
                )
            return None
        self._report_and_set_aside(faults, f"step {step} is the last undamaged one")
        return step

    def best(self, *, fall_back: bool) -> int | None:
        """Returns the undamaged step of lowest dev loss, or None; `fall_back` as in `newest`."""
        faults: dict[int, Corrupted] = {}
        best = None
        for step in self._by_loss():
            fault = self._fault(step, fall_back, "sets it aside and keeps the next best")
            if fault is None:
                best = step
                break
            faults[step] = fault
        self._report_and_set_aside(
            faults,
            "there is no other with a dev loss"
            if best is None
            else f"step {best} is the best undamaged one",
        )
        return best

    def retain(self, keep: int) -> None:
        """Deletes all but the last `keep` checkpoints and the one of the lowest dev loss."""
        kept = {*self.steps()[-keep:], *self._by_loss()[:1]}
        for old in set(self.steps()) - kept:
            self.delete(old)

    def delete(self, step: int) -> None:
        """Deletes a checkpoint; renames it first, so that a kill leaves no partial folder."""
        going = self.folder / f"{_DELETING}{step}"
        _remove(going)
        self.path(step).rename(going)
        _remove(going)
        self._forget(step)

    def _by_loss(self) -> list[int]:
        """Returns the steps with a dev loss, lowest loss first, earlier steps first if equal."""
        losses = {step: self._loss(step) for step in self.steps()}
        return sorted((s for s in losses if losses[s] < math.inf), key=lambda s: (losses[s], s))

    def _loss(self, step: int) -> float:
        """Returns the dev loss in a step's manifest; infinite without one."""
        if step not in self._losses:
            try:
                loss = manifest.read(self.path(step))["contents"]["record"].get("dev_loss")
            except (Corrupted, KeyError, AttributeError):
                loss = None
            finite = isinstance(loss, float) and math.isfinite(loss)
            self._losses[step] = loss if finite else math.inf
        return self._losses[step]

    def _fault(self, step: int, fall_back: bool, remedy: str) -> Corrupted | None:
        try:
            self.verified(step)
        except Corrupted as error:
            if fall_back:
                return error
            raise Corrupted(
                f"checkpoint {self.path(step)} is damaged: {error}; run train.py with the same "
                f"--workdir: it {remedy}"
            ) from None
        return None

    def _report_and_set_aside(self, faults: dict[int, Corrupted], instead: str) -> None:
        for bad, error in faults.items():
            aside = f"; it is now {bad}.damaged" if self._owner else ""
            print(
                f"checkpoint {self.path(bad)} is damaged: {error}{aside}; {instead}",
                file=sys.stderr,
            )
            if self._owner:
                _remove(self.folder / f"{bad}.damaged")
                self.path(bad).rename(self.folder / f"{bad}.damaged")
                self._forget(bad)

    def _forget(self, step: int) -> None:
        self._contents.pop(step, None)
        self._losses.pop(step, None)


def checkpoint_steps(folder: Path) -> list[int]:
    """Returns the numbered steps, ascending, without empty folders.

    Links and files with such names are listed too; `CheckpointStore.verified` rejects them.
    """
    if not folder.is_dir():
        return []
    named = (child for child in folder.iterdir() if child.name.isascii() and child.name.isdigit())
    return sorted(
        int(child.name)
        for child in named
        if len(child.name) < 19  # a step fits int64
        and str(int(child.name)) == child.name
        and not _empty(child)
    )


def _empty(path: Path) -> bool:
    return not path.is_symlink() and path.is_dir() and not any(path.iterdir())


def _remove(path: Path) -> None:
    """Removes a folder, a file or a link, not what a link leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
