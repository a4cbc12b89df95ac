"""Checkpoints: whatever was changed in one is seen and named, a run resumes from the last undamaged one."""

import errno
import hashlib
import json
import os
import pickle
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from posenc_jax.checkpoints import manager as checkpoints_module
from posenc_jax.checkpoints.manager import CheckpointManager, SaveFailed, has_checkpoint
from posenc_jax.results import manifest
from posenc_jax.results.manifest import Corrupted
from posenc_jax.training.sharding import make_mesh

from support.train_states import state


def shapes(of):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), of)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with checkpoints 4 and 8."""
    workdir = tmp_path_factory.mktemp("saved")
    with CheckpointManager(workdir, 5) as checkpoints:
        for step in (4, 8):
            checkpoints.save(step, state(step), {"at": step})
    return workdir


@pytest.fixture
def workdir(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "run")
    return tmp_path / "run"


def equal(a, b):
    return all(
        x.dtype == y.dtype and np.array_equal(np.asarray(x), np.asarray(y))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


def files(workdir, step=8):
    folder = workdir / "checkpoints" / str(step)
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_what_was_saved_comes_back_with_its_record(workdir):
    with CheckpointManager(workdir, 5) as checkpoints:
        assert checkpoints.latest() == 8
        assert checkpoints.record(8) == {"at": 8}
        for step in (4, 8):
            assert equal(checkpoints.restore(step, shapes(state(step))), state(step))
        assert not equal(checkpoints.restore(4, shapes(state(8))), state(8))


def test_the_manifest_holds_the_digest_of_every_other_file(workdir):
    stored = json.loads((workdir / "checkpoints/8/manifest.json").read_text())["files"]
    folder = workdir / "checkpoints" / "8"
    want = {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files(workdir)
        if p.name != "manifest.json"
    }
    assert {name: file["sha256"] for name, file in stored.items()} == want
    assert len(want) > 5


def test_a_flipped_bit_in_any_file_is_named_and_the_step_before_is_used(workdir, capsys):
    """Ten flips in each file, metadata and the manifest itself included."""
    rng = np.random.default_rng(0)
    flips = 0
    for path in files(workdir):
        whole = path.read_bytes()
        for bit in rng.integers(0, len(whole) * 8, 10 if whole else 0):
            broken = bytearray(whole)
            broken[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(broken)
            with CheckpointManager(workdir, 5, clean=False) as checkpoints:
                assert checkpoints.latest() == 4, f"{path.name}, bit {bit}"
            assert path.name in capsys.readouterr().err
            flips += 1
        path.write_bytes(whole)
    assert flips > 60
    with CheckpointManager(workdir, 5, clean=False) as checkpoints:
        assert checkpoints.latest() == 8


def test_shortened_missing_and_added_files_and_links_are_named(workdir, capsys):
    folder = workdir / "checkpoints" / "8"
    path = max(files(workdir), key=lambda p: p.stat().st_size)

    def shorten():
        path.write_bytes(path.read_bytes()[:-1])

    def link():
        path.rename(workdir / "elsewhere")
        path.symlink_to(workdir / "elsewhere")

    for damage, said in (
        (shorten, "bytes instead of"),
        (path.unlink, "is missing"),
        (link, "is a link"),
        ((folder / "extra.pkl").touch, "extra.pkl does not belong to it"),
        ((folder / "manifest.json").unlink, "no manifest.json"),
    ):
        shutil.rmtree(folder.with_name("copy"), ignore_errors=True)
        shutil.copytree(folder, folder.with_name("copy"))
        damage()
        with CheckpointManager(workdir, 5, clean=False) as checkpoints:
            assert checkpoints.latest() == 4
        assert said in capsys.readouterr().err
        shutil.rmtree(folder)
        folder.with_name("copy").rename(folder)


def test_an_empty_folder_and_a_name_that_is_no_step_never_count_as_the_last_checkpoint(
    workdir, tmp_path
):
    for name in ("30", "040", "9.damaged", ".saving-50", "٣"):
        (workdir / "checkpoints" / name).mkdir()
    (tmp_path / "new" / "checkpoints" / "3").mkdir(parents=True)
    assert not has_checkpoint(tmp_path / "new")
    with CheckpointManager(workdir, 5, clean=False) as checkpoints:
        assert checkpoints.latest() == 8


def test_a_reader_whom_an_earlier_step_would_mislead_is_told_instead(workdir):
    files(workdir)[-1].write_bytes(b"")
    with (
        CheckpointManager(workdir, 5, clean=False) as checkpoints,
        pytest.raises(Corrupted, match=r"8 is damaged: .*run train.py with the same --workdir"),
    ):
        checkpoints.latest(fall_back=False)


def test_when_all_are_damaged_nothing_is_started_over(workdir):
    for step in (4, 8):
        files(workdir, step)[0].write_bytes(b"?")
    before = sorted(p.name for p in (workdir / "checkpoints").iterdir())
    with (
        CheckpointManager(workdir, 5) as checkpoints,
        pytest.raises(
            Corrupted, match=r"every checkpoint .* is damaged .*bring one back"
        ) as caught,
    ):
        checkpoints.latest()
    assert "\n" not in str(caught.value)
    assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == before


def test_a_damaged_checkpoint_is_set_aside_and_its_step_can_be_saved_again(workdir):
    files(workdir)[0].write_bytes(b"?")
    with CheckpointManager(workdir, 5) as checkpoints:
        assert checkpoints.latest() == 4
        checkpoints.save(8, state(8), {"at": 8})
    with CheckpointManager(workdir, 5) as checkpoints:
        assert checkpoints.latest() == 8
        assert equal(checkpoints.restore(8, shapes(state(8))), state(8))
    assert (workdir / "checkpoints" / "8.damaged").is_dir()


def test_a_checkpoint_moves_from_mesh_to_mesh_without_losing_a_bit(tmp_path):
    """8, 4, 2, 1 and 8 devices again; the sums of leaves are those of any mesh."""
    here = state(1, make_mesh(2, 4))
    for step, (data, model) in enumerate([(2, 2), (1, 2), (1, 1), (8, 1)], 1):
        with CheckpointManager(tmp_path, 9) as checkpoints:
            checkpoints.save(step, here, {})
        mesh = make_mesh(data, model)
        with CheckpointManager(tmp_path, 9) as checkpoints:
            here = checkpoints.restore(step, shapes(state(0, mesh)))
        assert here["params"]["up_DF"].sharding.mesh.devices.size == data * model
        assert equal(here, state(1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda s: s["params"].update(up_DF=s["params"]["up_DF"].astype(jnp.bfloat16)),
            r"params/up_DF is float32\[16, 64\] there, bfloat16\[16, 64\] here",
        ),
        (
            lambda s: s["params"].update(up_DF=s["params"]["up_DF"][:8]),
            r"params/up_DF is float32\[16, 64\] there, float32\[8, 64\] here",
        ),
        (
            lambda s: s["params"].update(gate_DF=s["step"]),
            r"params/gate_DF is absent there, int32\[\] here",
        ),
        (lambda s: s.pop("optimizer"), r"optimizer/mu is bfloat16\[16, 64\] there, absent here"),
    ],
)
def test_another_dtype_shape_or_leaf_is_refused_with_the_difference(workdir, change, said):
    wanted = state(8)
    change(wanted)
    with (
        CheckpointManager(workdir, 5, clean=False) as checkpoints,
        pytest.raises(Corrupted, match=said),
    ):
        checkpoints.restore(8, shapes(wanted))


def resealed(workdir, change):
    """The manifest of checkpoint 8 with other contents, and digests to match whatever its files are now."""
    folder = workdir / "checkpoints" / "8"
    contents = json.loads((folder / "manifest.json").read_text())["contents"]
    change(contents)
    (folder / "manifest.json").unlink()
    manifest.seal(folder, contents)


def test_bits_lost_on_the_way_to_or_from_the_disk_are_seen(workdir):
    """As if a buffer had been reused while it was written: sound files of another state."""
    resealed(workdir, lambda c: c["sums"].update({"params/up_DF": "0" * 32}))
    with (
        CheckpointManager(workdir, 5, clean=False) as checkpoints,
        pytest.raises(Corrupted, match="params/up_DF came back with other bits"),
    ):
        checkpoints.restore(checkpoints.latest(), shapes(state(8)))


def test_a_state_is_saved_as_it_was_though_the_next_step_reuses_its_memory(tmp_path):
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    here = state(0)
    with CheckpointManager(tmp_path, 20) as checkpoints:
        for done in range(1, 9):
            here = step(here)
            checkpoints.save(done, here, {})
            here = step(step(here))
        checkpoints.wait()
        for done in range(1, 9):
            checkpoints.restore(done, shapes(here))  # compares the sums


def test_only_the_last_are_kept(tmp_path):
    with CheckpointManager(tmp_path, 2) as checkpoints:
        for done in (2, 10, 9, 11):
            checkpoints.save(done, state(done), {})
        checkpoints.wait()
        assert checkpoints.steps() == [10, 11]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["10", "11"]


def test_what_a_killed_save_left_is_removed_by_a_trainer_and_left_alone_by_a_reader(workdir):
    stale = [workdir / "checkpoints" / name for name in (".saving-12", ".deleting-2")]
    for folder in stale:
        (folder / "state").mkdir(parents=True)
    CheckpointManager(workdir, 5, clean=False)
    assert all(folder.exists() for folder in stale)
    CheckpointManager(workdir, 5)
    assert not any(folder.exists() for folder in stale)


@pytest.mark.parametrize("where", ["orbax", "manifest"])
def test_a_write_that_fails_ends_the_run_and_names_the_step_that_is_safe(
    workdir, monkeypatch, where
):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if where == "orbax":
        monkeypatch.setattr(checkpoints_module.ocp, "save_async", full)
    else:
        monkeypatch.setattr(manifest, "seal", full)
    said = r"step 12 could not be written .*No space left.*step 8 is whole; make room"
    with CheckpointManager(workdir, 5) as checkpoints:
        checkpoints.save(12, state(12), {})
        with pytest.raises(SaveFailed, match=said):
            checkpoints.wait()
        with pytest.raises(SaveFailed, match=said):
            checkpoints.save(16, state(16), {})
        checkpoints._failure = None
    monkeypatch.undo()
    with CheckpointManager(workdir, 5) as checkpoints:
        assert checkpoints.latest() == 8
        assert equal(checkpoints.restore(8, shapes(state(8))), state(8))


class Bomb:
    def __reduce__(self):
        return (os.system, ("touch executed",))


def test_a_hostile_checkpoint_is_refused_and_nothing_in_it_is_run_or_followed(
    workdir, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    folder = workdir / "checkpoints" / "8"
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    digest = {"bytes": 6, "sha256": hashlib.sha256(b"secret").hexdigest()}
    for name, text in (
        ("manifest.json", json.dumps({"contents": {}, "files": {"../../../secret": digest}})),
        ("manifest.json", "[" * 100_000),
        ("manifest.json", '{"contents": 3, "files": []}'),
        ("state/state/_METADATA", pickle.dumps(Bomb())),
    ):
        was = (folder / name).read_bytes()
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        with CheckpointManager(workdir, 5, clean=False) as checkpoints:
            assert checkpoints.latest() == 4
        assert len(capsys.readouterr().err.splitlines()) == 1
        (folder / name).write_bytes(was)

    # With digests to match: what is then read is orbax's JSON and arrays of the shapes asked for.
    metadata = folder / "state" / "state" / "_METADATA"
    was = metadata.read_text()
    for text in (pickle.dumps(Bomb()), was.replace("up_DF", "../../x").encode(), b"{}"):
        assert text != was.encode()
        metadata.write_bytes(text)
        resealed(workdir, lambda contents: None)
        with (
            CheckpointManager(workdir, 5, clean=False) as checkpoints,
            pytest.raises(Corrupted, match=r"cannot be read|other bits") as caught,
        ):
            checkpoints.restore(checkpoints.latest(), shapes(state(8)))
        assert "\n" not in str(caught.value)
    metadata.write_text(was.replace("16", "1000000000000"))
    assert metadata.read_text() != was
    resealed(workdir, lambda contents: None)
    with CheckpointManager(
        workdir, 5, clean=False
    ) as checkpoints:  # the shapes asked for count, no others
        assert equal(checkpoints.restore(checkpoints.latest(), shapes(state(8))), state(8))
    resealed(workdir, lambda contents: contents.pop("leaves"))
    with CheckpointManager(workdir, 5, clean=False) as checkpoints:
        assert checkpoints.latest() == 4
    assert not (tmp_path / "executed").exists()
