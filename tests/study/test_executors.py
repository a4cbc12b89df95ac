"""However a study's runs are carried out, its rows are the same: locally, as an array, seeds in one
program.

Thorough: whole studies are carried out; test_local_executor.py runs by default.
"""

import os
import subprocess
import sys

import pytest

from support import machine, toy_study
from support.toy_study import results, stand_in

pytestmark = pytest.mark.thorough

SMALL = """
STUDY = Study(
    tier="smoke", arms=(Arm("rope", "rope", readings=("yarn:4",)), Arm("sum", "rope+alibi")),
    seeds=(0, 1), together=False,
)
"""
ROWS = ("rows.jsonl", "study.json")


def make(folder, together=False):
    """The toy study without a tuning."""
    toy_study.make(folder)
    before, rest = toy_study.STUDY.split("STUDY = Study(")
    after = rest[rest.index("def get_config") :]
    small = SMALL.replace("together=False", f"together={together}")
    (folder / "study_file.py").write_text(f"{before}{small}\n\n{after}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The study carried out on this machine, every run alone: what it leaves, and what was trained."""
    folder = tmp_path_factory.mktemp("alone")
    make(folder)
    done = toy_study.run(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return results(folder, ROWS), toy_study.trained(folder)


def test_seeds_in_one_program_end_in_the_rows_of_seeds_alone(whole, tmp_path):
    make(tmp_path, together=True)
    done = toy_study.run(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 programs of several seeds" in done.stdout
    assert results(tmp_path, ROWS) == whole[0]
    assert sorted(whole[1]) == ["rope-s0", "rope-s1", "sum-s0", "sum-s1"]
    assert sorted(toy_study.trained(tmp_path)) == ["rope-s{0,1}", "sum-s{0,1}"]
    assert toy_study.run(tmp_path).returncode == 0
    assert len(toy_study.trained(tmp_path)) == 2


@pytest.mark.slow
def test_a_seed_that_is_lost_in_its_program_is_named_and_the_others_count(whole, tmp_path):
    make(tmp_path, together=True)
    done = toy_study.run(tmp_path, TOY_LOSES="sum-s1")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "2 runs failed or have not ended: sum-s0+1, sum-s1"
    lines = whole[0]["rows.jsonl"].splitlines()
    left = [line for line in lines if b'"run": "runs/sum-s1' not in line]
    assert 0 < len(left) < len(lines)
    assert results(tmp_path, ROWS)["rows.jsonl"].splitlines() == left


def task(folder, stage, number):
    """Runs a task of an array as Slurm would."""
    numbers = {"SLURM_ARRAY_TASK_ID": str(number), "SLURM_ARRAY_JOB_ID": "77"}
    clean = {**machine.ONE_DEVICE, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(toy_study.ROOT)}
    environment = {**os.environ, **clean, **numbers, "TOY_JOURNAL": str(folder / "journal")}
    script = folder / "out" / "slurm" / f"out-{stage}.sh"
    return subprocess.run(
        ["bash", script], env=environment, cwd=folder, capture_output=True, text=True
    )


@pytest.mark.parametrize("together", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_tasks_of_an_array_and_its_collection_end_in_the_same_rows(
    whole, tmp_path, monkeypatch, together
):
    """The tasks in a foreign order; a collection that comes too early says what is lacking."""
    make(tmp_path, together)
    (tmp_path / "bin").mkdir()
    stand_in(tmp_path / "bin", "sbatch", "echo $RANDOM")
    stand_in(tmp_path / "bin", "srun", 'while [[ "$1" == --* ]]; do shift; done; exec "$@"')
    stand_in(tmp_path / "bin", "python", f'exec {sys.executable} "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    done = toy_study.run(tmp_path, "--launch=slurm")
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["out-runs", "out-report"]
    tasks = (tmp_path / "out" / "slurm" / "out-runs.tasks").read_text().splitlines()
    names = [line.split("--run=")[1] for line in tasks]
    assert names == (
        ["rope-s0+1", "sum-s0+1"] if together else ["rope-s0", "sum-s0", "rope-s1", "sum-s1"]
    )
    last, *others = range(len(tasks), 0, -1)
    assert [task(tmp_path, "runs", number).returncode for number in others] == [0] * len(others)
    early = task(tmp_path, "report", 1)
    assert early.returncode == 1
    lacking = ["sum-s0", "sum-s1"] if together else ["sum-s1"]
    assert (
        early.stderr.strip().splitlines()[-1]
        == f"{len(lacking)} runs failed or have not ended: {', '.join(lacking)}"
    )
    assert task(tmp_path, "runs", last).returncode == 0
    assert task(tmp_path, "report", 1).returncode == 0
    assert results(tmp_path, ROWS) == whole[0]
    assert (tmp_path / "out" / "report.html").exists()
