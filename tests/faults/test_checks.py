"""The fault table sees a check that is missing: each is taken away here, and its row must fail."""

import hashlib
import random
import types

import pytest
from posenc_jax.checkpoints import hash_chain, manager
from posenc_jax.results import files, manifest

from faults import checks, kills
from faults.small_run import SmallRun
from faults.trial import Trial, failed, table


@pytest.fixture
def folder(tmp_path):
    """A small run that no fault here trains: only its folder is used."""
    with SmallRun(tmp_path) as run:
        yield run


def rows(fault, run, trials=6):
    return list(fault(run, trials, random.Random(0)))


@pytest.mark.parametrize("fault", [checks.power_loss, checks.other_bits, checks.other_steps])
def test_a_row_holds_where_its_check_is_there(folder, fault):
    found = rows(fault, folder)
    assert failed(found) == []
    assert "| held |" in table(found)
    assert not any(trial.skipped for trial in found)


def without(module, name, what):
    """A module's `os` or other library in which one function does nothing."""
    library = getattr(module, name)
    names = {key: getattr(library, key) for key in dir(library) if not key.startswith("__")}
    return types.SimpleNamespace(**(names | {what: lambda *_: None}))


def test_a_missing_fsync_of_a_checkpoint_is_a_failed_row(folder, monkeypatch):
    monkeypatch.setattr(manifest, "os", without(manifest, "os", "fsync"))
    (trial,) = rows(checks.power_loss, folder, 1)
    assert failed([trial]) == [trial]
    assert "was named before" in trial.said


@pytest.mark.parametrize("module", [files, manager])
def test_a_name_that_is_not_forced_to_disk_is_a_failed_row(folder, monkeypatch, module):
    monkeypatch.setattr(module, "sync_folder", lambda path: None)
    (trial,) = rows(checks.power_loss, folder, 1)
    assert failed([trial]) == [trial]
    assert "names in" in trial.said


def test_sums_of_leaves_that_are_not_compared_are_a_failed_row(folder, monkeypatch):
    def unchecked(self, step, shapes, saved):
        return manager.ocp.load(self._store.path(step) / "state", shapes)

    monkeypatch.setattr(manager.CheckpointManager, "_loaded", unchecked)
    assert len(failed(rows(checks.other_bits, folder, 3))) == 3


@pytest.mark.parametrize("covered", [(), (0,), (1, 2)])
def test_links_that_cover_less_than_the_step_are_failed_rows(folder, monkeypatch, covered):
    def link(before, *values):
        kept = [values[i].tobytes() for i in covered if i < len(values)]
        return hashlib.sha256(b"".join([before.encode(), *kept])).hexdigest()

    monkeypatch.setattr(hash_chain, "_link", link)
    assert failed(rows(checks.other_steps, folder, 12))


def test_a_kill_that_never_landed_is_no_trial_that_held():
    ended = types.SimpleNamespace(returncode=0)
    trial = kills._resumed(None, None, "kill -9, in a save", "", killed=ended)
    assert trial.skipped == "it ended first, with 0"
    assert "held" not in table([trial])
    assert "| 1 |" in table([trial, Trial("kill -9, in a save")])  # those that landed are counted


@pytest.mark.thorough
def test_another_config_that_is_accepted_is_a_failed_row(folder, monkeypatch):
    assert failed(rows(checks.other_config, folder, 20)) == []
    for name in ("check_same_config", "check_owner"):
        with monkeypatch.context() as patch:
            patch.setattr(checks, name, lambda *_: None)
            assert len(failed(rows(checks.other_config, folder, 5))) == 5
