"""Several processes as one run: the same numbers, one refusal, one stop, and a lost worker that is noticed.

Every run here is a command of its own: two processes with four CPU devices each, by gloo.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from posenc_jax.training.hosts import connect, launcher, rows_of_process
from posenc_jax.training.sharding import make_mesh

from support import machine, runs

ROOT = Path(__file__).parents[2]
SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "n[1-2]",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
}


def free_port():
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


def start(workdir, data_dir, *settings, processes=2, devices=4):
    """Starts the processes of a run of the smoke configuration."""
    port = free_port()
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": f"{machine.QUICK} --xla_force_host_platform_device_count={devices}",
    }
    several = [f"--coordinator=localhost:{port}", f"--processes={processes}"]
    return [
        subprocess.Popen(
            [
                sys.executable,
                "train.py",
                "--config=configs/smoke.py:rope+alibi",
                f"--workdir={workdir}",
                f"--config.data.data_dir={data_dir}",
                *(several if processes > 1 else []),
                *([f"--process={i}"] if processes > 1 else []),
                *settings,
            ],
            cwd=ROOT,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for i in range(processes)
    ]


def ends(processes, timeout=240):
    """Exit codes and stderr of each."""
    said = [process.communicate(timeout=timeout)[1] for process in processes]
    return [process.returncode for process in processes], said


def steps_in(workdir):
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for(workdir, steps, processes):
    deadline = time.time() + 240
    while steps_in(workdir) < steps:
        assert all(process.poll() is None for process in processes)
        assert time.time() < deadline
        time.sleep(0.02)


def numbers(workdir):
    return [(r["step"], r["loss"], r["grad_norm"]) for r in runs.rows(workdir / "metrics.jsonl")]


FIFTY = ("--config.train.steps=50", "--config.train.log_every=1", "--config.train.save_every=25")
LONG = ("--config.train.steps=20000", "--config.train.log_every=1", "--config.train.save_every=20")


@pytest.mark.thorough
def test_two_processes_with_four_devices_train_as_one_with_eight(tmp_path, data_dir):
    asked = (*FIFTY, "--config.train.dev_every=25", "--config.train.dev_windows=13")
    codes, said = ends(start(tmp_path / "two", data_dir, *asked))
    assert codes == [0, 0], said
    codes, said = ends(start(tmp_path / "one", data_dir, *asked, processes=1, devices=8))
    assert codes == [0], said
    dev = [
        [r["dev_loss"] for r in runs.rows(tmp_path / name / "metrics.jsonl") if "dev_loss" in r]
        for name in ("two", "one")
    ]
    assert len(dev[1]) == 2
    np.testing.assert_allclose(*dev, rtol=1e-5)
    two, one = (np.array(numbers(tmp_path / name)) for name in ("two", "one"))
    assert len(one) == 50
    np.testing.assert_allclose(two, one, rtol=1e-5)
    record = json.loads((tmp_path / "two" / "run.json").read_text())
    assert record["finished"]
    assert record["processes"] == 2


MESHES = [
    {"data": 8}, {"fsdp": 8}, {"model": 4, "data": 2}, {"sequence": 8}, {"data": 2, "sequence": 4},
    {"fsdp": 2, "sequence": 2, "model": 2},
]  # fmt: skip


def on_axes(axes):
    every = {"data": 1, "fsdp": 1, "sequence": 1, "model": 1} | axes
    return [f"--config.train.{axis}_devices={n}" for axis, n in every.items()]


def losses(workdir):
    rows = runs.rows(workdir / "metrics.jsonl")
    return [row["loss"] for row in rows], [row["data_chain"] for row in rows]


@pytest.fixture(scope="module")
def one_device(tmp_path_factory, data_dir):
    folder = tmp_path_factory.mktemp("one")
    codes, said = ends(start(folder, data_dir, *FIFTY, processes=1, devices=1))
    assert codes == [0], said
    return losses(folder)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("axes", MESHES, ids=str)
def test_every_mesh_takes_fifty_steps_of_one_device(
    tmp_path, data_dir, one_device, axes, processes
):
    devices = 8 // processes
    job = start(tmp_path, data_dir, *FIFTY, *on_axes(axes), processes=processes, devices=devices)
    codes, said = ends(job, timeout=900)
    assert codes == [0] * processes, said
    found, read = losses(tmp_path)
    assert len(found) == 50
    assert read == one_device[1]  # the same data in the same order, bit for bit
    np.testing.assert_allclose(found, one_device[0], rtol=1e-5)


@pytest.mark.slow
def test_two_processes_fine_tune_as_one_and_refuse_alike(tmp_path, data_dir):
    small = ("--config.train.steps=4", "--config.train.save_every=2", "--config.train.log_every=1")
    codes, said = ends(start(tmp_path / "source", data_dir, *small, processes=1, devices=8))
    assert codes == [0], said
    tuned = (
        *small,
        f"--config.train.init_from={tmp_path / 'source'}",
        "--config.train.length=64",
        "--config.train.original_length=32",
        "--config.train.dev_every=2",
    )
    codes, said = ends(start(tmp_path / "two", data_dir, *tuned))
    assert codes == [0, 0], said
    codes, said = ends(start(tmp_path / "one", data_dir, *tuned, processes=1, devices=8))
    assert codes == [0], said
    two, one = (np.array(numbers(tmp_path / name)) for name in ("two", "one"))
    assert len(one) == 4
    np.testing.assert_allclose(two, one, rtol=1e-5)
    sources = [
        json.loads((tmp_path / name / "run.json").read_text())["source"] for name in ("two", "one")
    ]
    np.testing.assert_allclose(sources[0].pop("dev_loss"), sources[1].pop("dev_loss"), rtol=1e-5)
    assert sources[0] == sources[1]

    codes, said = ends(start(tmp_path / "no", data_dir, *tuned, "--config.model.num_heads=2"))
    assert codes == [2, 2], said
    assert all("model.num_heads: 2 here, 4 there" in s for s in said)
    assert not (tmp_path / "no").exists()


@pytest.mark.slow
def test_sigterm_to_one_process_stops_all_at_one_step_and_the_run_goes_on_bit_for_bit(
    tmp_path, data_dir
):
    processes = start(tmp_path / "x", data_dir, *LONG)
    wait_for(tmp_path / "x", 6, processes)
    processes[1].send_signal(signal.SIGTERM)
    codes, said = ends(processes)
    assert codes == [75, 75], said
    lines = [[line for line in s.splitlines() if line.startswith("stopped by")] for s in said]
    assert len(lines[0]) == len(lines[1]) == 1
    assert lines[0] == lines[1]
    stopped = steps_in(tmp_path / "x")
    assert f"after step {stopped} of" in lines[0][0]
    again = start(tmp_path / "x", data_dir, *LONG)
    wait_for(tmp_path / "x", stopped + 10, again)
    again[0].send_signal(signal.SIGTERM)
    assert ends(again)[0] == [75, 75]
    whole = start(tmp_path / "y", data_dir, *LONG)
    wait_for(tmp_path / "y", stopped + 10, whole)
    whole[0].send_signal(signal.SIGTERM)
    ends(whole)
    a, b = numbers(tmp_path / "x"), numbers(tmp_path / "y")
    assert a[: stopped + 10] == b[: stopped + 10]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_process_is_noticed_within_fifteen_seconds_and_the_other_says_what_to_do(
    tmp_path, data_dir, victim, how
):
    processes = start(tmp_path / "x", data_dir, *LONG)
    wait_for(tmp_path / "x", 25, processes)
    processes[victim].send_signal(how)
    lost = time.time()
    other = processes[1 - victim]
    _, said = other.communicate(timeout=60)
    seconds = time.time() - lost
    processes[victim].kill()
    processes[victim].communicate()
    assert other.returncode not in (0, 75)
    assert seconds < 15
    told = [line for line in said.splitlines() if "start all processes again" in line]
    assert len(told) == 1, said


@pytest.mark.thorough
def test_what_one_process_refuses_all_refuse(tmp_path, data_dir):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "thesis.tex").write_text("precious")
    codes, said = ends(start(tmp_path / "x", data_dir))
    assert codes == [2, 2], said
    assert "neither empty nor a run's folder" in said[0].splitlines()[-1]
    assert "process 0: " in said[1].splitlines()[-1]


def test_a_launcher_is_seen_only_where_all_of_its_signs_are_and_tasks_are_several():
    assert launcher(SLURM) == "slurm"
    for name in SLURM:
        assert launcher({k: v for k, v in SLURM.items() if k != name}) is None
    assert launcher(SLURM | {"SLURM_NTASKS": "1"}) is None
    mpi = {"OMPI_MCA_orte_hnp_uri": "1.0;tcp://n1:1", "OMPI_COMM_WORLD_SIZE": "4"}
    assert launcher(mpi) == "openmpi"
    assert launcher(mpi | {"OMPI_COMM_WORLD_SIZE": "1"}) is None
    assert launcher({"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "0"}) == "tpu"
    assert launcher({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}) == "tpu"
    assert launcher({"TPU_WORKER_HOSTNAMES": "localhost"}) is None
    assert launcher({}) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("host:1", None, None), "belong together"),
        (("", 2, 0), "belong together"),
        (("auto", 2, 0), "belong together"),
        (("host", 2, 0), "must read host:port"),
        (("host:1", 2, 2), r"--process=2 must lie in \[0, 2\)"),
    ],
)
def test_flags_of_a_rendezvous_that_do_not_fit_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        connect(*flags)


def test_one_process_joins_nobody(monkeypatch):
    for name, value in (SLURM | {"SLURM_NTASKS": "1"}).items():
        monkeypatch.setenv(name, value)
    connect("", None, None)
    connect("localhost:1", 1, 0)
    assert not jax.distributed.is_initialized()


def test_one_process_feeds_all_rows():
    sharding = jax.NamedSharding(make_mesh(4, 2), jax.P(None, "data", None))
    assert rows_of_process(sharding, 8, axis=1, ndim=3) == (0, 1)
