"""Which checkpoints a workdir holds."""

from posenc_jax.checkpoints.manager import CheckpointManager


def steps(workdir):
    with CheckpointManager(workdir, 1, clean=False) as checkpoints:
        return checkpoints.steps()


def chosen(workdir, which):
    with CheckpointManager(workdir, 1, clean=False) as checkpoints:
        return checkpoints.chosen(which)
