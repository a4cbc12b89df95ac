"""Entries of a checkpoint folder that are no checkpoint, errors of the disk, and records that are none of a
run.
"""

import errno
import os
import shutil

import jax
import numpy as np
import pytest
from posenc_jax.checkpoints import manager as manager_module
from posenc_jax.checkpoints.hash_chain import HashChain
from posenc_jax.checkpoints.manager import CheckpointManager, SaveFailed, has_checkpoint
from posenc_jax.results import manifest
from posenc_jax.results.manifest import Corrupted
from posenc_jax.training.workdir import lock_workdir, saved_record


def state(step):
    return {"params": {"up_DF": jax.numpy.full((4, 4), float(step))}}


def shapes():
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(0)
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    with CheckpointManager(workdir, 5) as checkpoints:
        for step in (4, 8):
            checkpoints.save(step, state(step), {})
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def linked(folder):
    """Moves checkpoint 8 away and leaves a link in its place."""
    (folder / "8").rename(folder.parent / "elsewhere")
    (folder / "8").symlink_to(folder.parent / "elsewhere")


NO_CHECKPOINT = {
    "a link to a checkpoint": linked,
    "a stale link": lambda folder: (shutil.rmtree(folder / "8"), (folder / "8").symlink_to("x")),
    "a link to itself": lambda folder: (
        shutil.rmtree(folder / "8"),
        (folder / "8").symlink_to("8"),
    ),
    "a file": lambda folder: (shutil.rmtree(folder / "8"), (folder / "8").write_text("x")),
}


@pytest.mark.parametrize("kind", NO_CHECKPOINT)
def test_a_step_that_is_no_folder_is_named_set_aside_and_saved_again(workdir, capsys, kind):
    folder = workdir / "checkpoints"
    NO_CHECKPOINT[kind](folder)
    (folder / "8.damaged").symlink_to("nowhere")
    with (
        CheckpointManager(workdir, 5, clean=False) as checkpoints,
        pytest.raises(Corrupted, match="8 is damaged: it is a link or no folder"),
    ):
        checkpoints.chosen("last")
    with CheckpointManager(workdir, 5) as checkpoints:
        assert checkpoints.latest() == 4
        checkpoints.save(8, state(8), {})
    assert len(capsys.readouterr().err.splitlines()) == 1
    with CheckpointManager(workdir, 1) as checkpoints:
        assert checkpoints.latest() == 8
        np.testing.assert_array_equal(checkpoints.restore(8, shapes())["params"]["up_DF"], 8.0)
    assert kind != "a link to a checkpoint" or (workdir / "elsewhere" / "manifest.json").exists()


def test_links_among_old_and_unfinished_checkpoints_are_removed_and_not_followed(workdir):
    folder, kept = workdir / "checkpoints", workdir / "kept"
    (folder / "4").rename(kept)
    (folder / "4").symlink_to(kept)
    (folder / ".saving-12").symlink_to(kept)
    (folder / ".deleting-4").symlink_to("nowhere")
    with CheckpointManager(workdir, 1) as checkpoints:
        checkpoints.save(12, state(12), {})
    assert sorted(p.name for p in folder.iterdir()) == ["12"]
    assert manifest.verify(kept)["step"] == 4


def test_a_step_of_many_digits_is_no_step(tmp_path):
    (tmp_path / "checkpoints" / ("9" * 200) / "state").mkdir(parents=True)
    assert not has_checkpoint(tmp_path)


def test_a_disk_that_cannot_read_the_last_checkpoint_leaves_the_sound_one_before(
    workdir, monkeypatch, capsys
):
    read = manifest.hashlib.file_digest

    def fails(file, kind):
        if "/8/" in file.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), file.name)
        return read(file, kind)

    monkeypatch.setattr(manifest.hashlib, "file_digest", fails)
    with CheckpointManager(workdir, 5) as checkpoints:
        assert checkpoints.latest() == 4
        np.testing.assert_array_equal(checkpoints.restore(4, shapes())["params"]["up_DF"], 4.0)
    assert "cannot be read: Input/output error; it is now 8.damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.EIO, "check the disk"),
        (errno.ENOSPC, "make room"),
        (errno.EROFS, "make the file system writable"),
    ],
)
def test_a_failed_save_says_what_failed_and_what_to_do(workdir, monkeypatch, number, remedy):
    def fails(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(manager_module.manifest, "seal", fails)
    with CheckpointManager(workdir, 5) as checkpoints:
        checkpoints.save(12, state(12), {})
        with pytest.raises(SaveFailed, match=f"{os.strerror(number)}.*8 is whole; {remedy} and"):
            checkpoints.wait()
        checkpoints._failure = None


LINKS = HashChain(None).through(0)
OWNER = {"config": {"train": {}}, "corpus_fingerprint": "a", "tokenizer_fingerprint": "b"}


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ({}, "does not say 'owner'"),
        ({"owner": [], "links": LINKS}, "owner must be an object"),
        ({"owner": OWNER | {"config": {"train": 3}}, "links": LINKS}, "config must be an object of objects"),
        ({"owner": OWNER | {"corpus_fingerprint": None}, "links": LINKS}, "corpus_fingerprint must be"),
        ({"owner": {"config": {}}, "links": LINKS}, "does not say 'corpus_fingerprint'"),
        ({"owner": OWNER, "links": {"chain": "00"}}, "links must be"),
        ({"owner": OWNER, "links": LINKS | {"chain": "x" * 64}}, "links must be"),
    ],
)  # fmt: skip
def test_a_record_that_is_none_of_a_run_is_refused_by_field(tmp_path, record, words):
    with CheckpointManager(tmp_path, 5) as checkpoints:
        checkpoints.save(1, state(1), record)
    with (
        CheckpointManager(tmp_path, 5) as checkpoints,
        pytest.raises(Corrupted, match=f"record of checkpoint 1.*{words}"),
    ):
        saved_record(checkpoints, 1)


@pytest.mark.parametrize("name", ["x[1]", "x*", "x?"])
def test_a_folder_whose_name_orbax_takes_for_a_pattern_is_refused(tmp_path, name):
    """Orbax would save without an error, and what it saved could not be restored."""
    with pytest.raises(ValueError, match="for a pattern"), lock_workdir(tmp_path / name):
        pass
    assert not (tmp_path / name).exists()


def test_a_second_trainer_is_refused_though_the_lock_file_was_removed(tmp_path):
    with lock_workdir(tmp_path):
        (tmp_path / ".lock").unlink()
        with pytest.raises(ValueError, match="another trainer is at work"), lock_workdir(tmp_path):
            pass
    with lock_workdir(tmp_path):
        pass
