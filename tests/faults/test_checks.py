"""The fault table sees a check that is missing: each is taken away here, and its row must fail."""

import hashlib
import random
import subprocess
import types

import pytest
from posenc_jax.checkpoints import hash_chain, manager
from posenc_jax.results import files, manifest

from faults import checks, disk, kills, readers, small_run
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
    found = rows(fault, folder, 2)
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


def test_a_kill_that_never_landed_is_no_trial_that_held(tmp_path):
    run = Trainer(tmp_path, "exit 0")
    trial = kills._killed(run, tmp_path, "kill -9, in a save", "", started(run))
    assert (trial.skipped, trial.exit_codes) == ("it ended first", "0")
    assert "held" not in table([trial])
    assert "| 1 |" in table([trial, Trial("kill -9, in a save")])  # those that landed are counted


class Trainer(SmallRun):
    """A small run whose trainer is a script of bash; every result of it is right."""

    def __init__(self, folder, script):
        super().__init__(folder)
        self._script = script

    def start(self, workdir, *overrides, devices=1):
        workdir.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            ["bash", "-c", self._script],
            cwd=workdir,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def wrong(self, workdir, want=None):
        return 0


def started(run):
    """A trainer of `run` that has ended."""
    process = run.start(run.folder)
    process.wait()
    return process


AT_26 = """[ ! -e metrics.jsonl ] || exit 0  # the second run
mkdir -p checkpoints/25
echo '{"step": 26}' > metrics.jsonl
sleep 5 > /dev/null 2>&1 & wait"""


@pytest.mark.parametrize(
    ("answer", "script", "verdict"),
    [
        # a second signal must not kill the shell while it ends
        ('trap "" INT; exec bash -c "exit 75"', AT_26, "held"),
        ("exit 0", AT_26, "FAILED"),
        ("", AT_26.replace("5 >", "0.2 >"), "FAILED"),
        ("", AT_26.replace("26", "30").replace("5 >", "0.2 >"), "skipped: it ended first"),
    ],
    ids=["saved", "no save", "ignored", "too late"],
)
def test_a_signal_that_is_ignored_is_a_failed_row(tmp_path, answer, script, verdict):
    run = Trainer(tmp_path, f"trap '{answer}' TERM INT; {script}")
    lines = table(rows(kills.stopped, run, 1)).splitlines()[2:]
    assert [line.endswith(f"| {verdict} |") for line in lines] == [True, True]


@pytest.mark.parametrize("refusal", ["another trainer is at work", ""])
def test_a_second_trainer_that_is_accepted_is_a_failed_row(tmp_path, refusal):
    script = "[ ! -e run.json ] || code=2; echo > run.json; sleep 0.2; exit "
    refuses = f"[ ! -e run.json ] || {{ echo {refusal} >&2; exit 2; }}; {script}"
    (trial,) = rows(kills.doubled, Trainer(tmp_path, refuses if refusal else script), 1)
    assert failed([trial]) == ([] if refusal else [trial])


@pytest.mark.parametrize(
    ("script", "wrong"),
    [
        ("echo x: No space left on device >&2; exit 74", False),
        ("seq 247 >&2; echo x: No space left on device >&2; exit 74", True),
        ("echo x: No space left on device >&2; exit 1", True),
        ("echo x: some error >&2; exit 74", True),
        ("exec sleep 60", True),  # killed at the limit
    ],
)
def test_a_run_on_a_full_disk_ends_in_time_with_one_line(tmp_path, monkeypatch, script, wrong):
    monkeypatch.setattr(small_run, "STALLED", 0.1)
    run = Trainer(tmp_path, script)
    trial = disk._failing("disk full", "", run.start(tmp_path), tmp_path, "No space left on device")
    assert trial.undetected == wrong
    assert trial.seconds < 10


@pytest.mark.parametrize(
    ("code", "said", "page", "verdict"),
    [
        (0, "", "the page", "held"),
        (2, "run.json is damaged", "the page", "held"),
        (0, "", "the page says: run.json is cut off", "held"),
        (0, "", "another page", "FAILED"),
        (0, "run.json is damaged", "another page", "FAILED"),
        (2, "some file is damaged", "the page", "FAILED"),
        (2, "run.json is damaged\nand more", "the page", "FAILED"),
        (1, "Traceback ... run.json", "the page", "FAILED"),
    ],
)
def test_a_reader_that_uses_what_is_damaged_is_a_failed_row(folder, code, said, page, verdict):
    whole = folder.folder / "whole"
    whole.mkdir()
    (whole / "run.json").write_text("{}")
    (whole / "page").write_text("the page")

    def reader(copy):
        (copy / "page").write_text(page)
        return subprocess.CompletedProcess([], code, "", said)

    how = ("report", whole, [whole / "run.json"], reader, whole / "page")
    found = list(readers.damaged(folder, 3, random.Random(0), *how))
    assert len(found) == 3
    assert verdict in table(found)
    assert {trial.exit_codes for trial in found} == {str(code)}


@pytest.mark.thorough
def test_another_config_that_is_accepted_is_a_failed_row(folder, monkeypatch):
    assert failed(rows(checks.other_config, folder, 20)) == []
    for name in ("check_same_config", "check_owner"):
        with monkeypatch.context() as patch:
            patch.setattr(checks, name, lambda *_: None)
            assert len(failed(rows(checks.other_config, folder, 5))) == 5
