"""A disk with space and without inodes: a save fails at once, in words."""

import sys
import time

import jax.numpy as jnp
import pytest
from posenc_jax.checkpoints import manager as manager_module
from posenc_jax.checkpoints.manager import CheckpointManager, SaveFailed

from faults.disk import _mounted


def test_a_save_without_inodes_fails_at_once(tmp_path):
    with _mounted(tmp_path / "disk", "size=4m,nr_inodes=30") as reason:
        if reason:
            pytest.skip(reason)
        manager = CheckpointManager(tmp_path / "disk" / "run", keep=2)
        began = time.monotonic()
        manager.save(1, {"x": jnp.arange(4.0)}, {})
        with pytest.raises(SaveFailed, match=r"No space left on device.*there is none before"):
            manager.wait()
        assert time.monotonic() - began < 60  # orbax alone waits for 300 s


def save_each(manager, state, steps):
    for step in steps:
        manager.save(step, state, {})
        manager.wait()


@pytest.mark.thorough
def test_a_save_that_fails_halfway_is_one_line(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(manager_module, "FILES", 0)  # the disk looks as if it had inodes
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    state = {f"x{i}": jnp.arange(4.0) for i in range(20)}
    with _mounted(tmp_path / "disk", "size=4m,nr_inodes=34") as reason:
        if reason:
            pytest.skip(reason)
        manager = CheckpointManager(tmp_path / "disk" / "run", keep=2)
        with pytest.raises(SaveFailed, match="No space left on device"):
            save_each(manager, state, (1, 2, 3))
    assert capfd.readouterr().err == ""


def test_a_folder_that_is_another_one_by_now_is_refused(tmp_path):
    workdir = tmp_path / "run"
    workdir.mkdir()
    manager = CheckpointManager(workdir, keep=2)
    manager.check_folder()
    workdir.rename(tmp_path / "away")
    for _ in range(2):  # without a folder, and with another one
        with pytest.raises(SaveFailed, match="was renamed, removed or replaced"):
            manager.save(1, {"x": jnp.arange(4.0)}, {})
        workdir.mkdir(exist_ok=True)
    workdir.rmdir()
    (tmp_path / "away").rename(workdir)
    manager.check_folder()
