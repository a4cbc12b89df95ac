"""Faults on purpose: the table fails when a check is missing, and small runs survive the rest.

By default no run is started: what is read is refused by name. Ten kills of forked trainers and one of
a real one are thorough; ten of every fault are slow.
"""

import json
import random
import shutil

import pytest
from posenc_jax.results import manifest

from faults import bad_inputs, corrupted_checkpoints, disk, kills, readers, repeated_kills
from faults.small_run import STEPS, SmallRun, record
from faults.suite import FAULTS
from faults.trial import failed, table


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One undisturbed run of 30 steps, which all the others are compared with."""
    with SmallRun(tmp_path_factory.mktemp("faults")) as small:
        small.reference()
        yield small


def injected(fault, run, trials, seed=0):
    done = list(fault(run, trials, random.Random(seed)))
    if all(trial.skipped for trial in done):
        pytest.skip(done[0].skipped)
    assert failed(done) == []
    return done


@pytest.mark.thorough
@pytest.mark.parametrize(
    "fault",
    [
        corrupted_checkpoints.flipped,
        corrupted_checkpoints.truncated,
        corrupted_checkpoints.deleted,
        corrupted_checkpoints.hostile,
    ],
)
def test_damage_of_every_kind_to_every_file_is_seen(run, fault):
    done = injected(fault, run, 40)
    assert len(done) == 40
    assert len({trial.detail.split(":")[0] for trial in done}) > 7  # files by their names


@pytest.mark.thorough
def test_the_table_fails_when_the_digests_are_not_compared(run, monkeypatch):
    monkeypatch.setattr(manifest, "_compare", lambda *args: None)
    done = list(corrupted_checkpoints.flipped(run, 40, random.Random(0)))
    assert len(failed(done)) > 20
    assert "FAILED" in table(done)


@pytest.mark.thorough
def test_a_run_is_unlike_the_undisturbed_one_when_a_single_leaf_is(run, tmp_path):
    shutil.copytree(run.folder / "undisturbed", tmp_path / "x")
    assert run.wrong(tmp_path / "x") == 0
    changed = record(tmp_path / "x")
    changed["state_sha256"]["step"] = "0" * 64
    (tmp_path / "x" / "run.json").write_text(json.dumps(changed))
    assert run.wrong(tmp_path / "x") == 1
    (tmp_path / "x" / "run.json").unlink()
    assert run.wrong(tmp_path / "x") > 10


@pytest.mark.thorough
def test_ten_kills_at_any_moment_leave_the_bits_of_the_undisturbed_run(run):
    done = injected(repeated_kills.killed_in_chains, run, 10)
    assert len(done) == 10
    assert len({trial.fault for trial in done}) > 2  # moments of several kinds


@pytest.mark.thorough
def test_a_real_trainer_that_is_killed_ends_bit_for_bit_as_one_that_was_left_alone(run):
    workdir = run.fresh("killed")
    process = run.start(workdir)
    kills.await_seen(process, lambda w: kills.last_logged(w) >= 12, workdir, 0.001)
    trial = kills._killed(run, workdir, "kill", "", process)
    assert (trial.wrong, trial.undetected) == (0, False)
    assert failed([trial]) == []


@pytest.mark.slow
def test_a_forked_trainer_is_the_run_that_a_started_one_is(run):
    workdir = run.fresh("forked")
    out, err = run.fork(workdir).communicate()
    assert run.wrong(workdir) == 0
    assert "attention over 32 tokens" in out
    assert "Traceback" not in err


@pytest.mark.thorough
def test_with_its_last_checkpoint_damaged_a_run_goes_on_from_the_one_before(run):
    (trial,) = injected(corrupted_checkpoints.gone_on, run, 1)
    assert trial.lost_steps == 5
    assert f"checkpoints/{STEPS} is damaged" in trial.said


@pytest.mark.thorough
def test_with_all_damaged_a_trainer_stops_with_the_remedy(run):
    (trial,) = injected(corrupted_checkpoints.all_damaged, run, 1)
    assert "bring one back from a copy" in trial.said


@pytest.mark.thorough
def test_a_folder_that_may_not_be_written_is_one_line(run):
    (trial,) = injected(disk.read_only, run, 1)
    assert "Read-only file system" in trial.said


@pytest.mark.default_cases(0, thorough=1)
@pytest.mark.parametrize("fault", [readers.reported, readers.studied])
def test_a_damaged_file_is_named_or_changes_nothing_that_is_read(tmp_path, fault):
    with SmallRun(tmp_path) as small:
        assert len(injected(fault, small, 2)) == 2


@pytest.mark.thorough
def test_typed_settings_of_random_value_are_refused_by_real_trainers_in_seconds(run):
    done = injected(bad_inputs.settings_typed, run, 15)
    refused = [trial for trial in done if trial.said]
    assert len(refused) > 7
    assert max(trial.seconds for trial in refused) < 5  # of the CPU, imports left out


def test_500_configs_of_random_values_are_read_or_refused_by_name(tmp_path):
    with SmallRun(tmp_path) as never_started:
        done = injected(bad_inputs.settings, never_started, 500)
    assert 300 < sum(bool(trial.said) for trial in done) < 500  # most are nonsense, some are not


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAULTS if name not in ("settings", "flip")])
def test_ten_of_every_fault(run, name):
    injected(FAULTS[name], run, 1 if name == "workers" else 10, seed=1)  # six in one, minutes each
