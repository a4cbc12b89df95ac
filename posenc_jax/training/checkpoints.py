"""Checkpoints: the only file that knows orbax. Asynchronous, sharded, restored onto any mesh."""

from pathlib import Path

from orbax.checkpoint import v1 as ocp

from posenc_jax.training.step import State


class Checkpoints:
    """The checkpoints of one run, under `<workdir>/checkpoints`; close it, or use it in `with`.

    Args:
      workdir: of the run. keep: checkpoints kept. clean: remove what a killed save left behind; a
        reader must not, for a trainer may be saving beside it.
    """

    def __init__(self, workdir: Path, keep: int, *, clean: bool = True):
        self._folder = workdir.resolve() / "checkpoints"
        self._checkpointer = ocp.training.Checkpointer(
            self._folder,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=clean,
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc) -> None:
        self._checkpointer.close()

    def save(self, step: int, state: State) -> None:
        """Starts writing the state of `step` finished steps; waits for the write before it."""
        self._checkpointer.wait()
        if self.latest() != step:
            self._checkpointer.save_async(step, state, force=True)

    def wait(self) -> None:
        """Returns once the last save is on disk."""
        self._checkpointer.wait()

    def latest(self) -> int | None:
        """Returns the step of the last checkpoint, or None when there is none."""
        latest = self._checkpointer.latest
        return None if latest is None else latest.step

    def steps(self) -> list[int]:
        """Returns the steps of all checkpoints, ascending."""
        return [found.step for found in self._checkpointer.checkpoints]

    def drop_after(self, step: int) -> None:
        """Deletes the checkpoints of later steps."""
        for later in self.steps():
            if later > step:
                self._checkpointer.delete(later)

    def restore(self, step: int, shapes: State) -> State:
        """Returns the state of `step`, laid out as `shapes` (ShapeDtypeStructs with shardings)."""
        return self._checkpointer.load(step, shapes)


def has_checkpoint(workdir: Path) -> bool:
    """Whether a run has a finished checkpoint; looks, and creates nothing."""
    folder = workdir.resolve() / "checkpoints"
    return folder.is_dir() and any(child.name.isdigit() for child in folder.iterdir())
