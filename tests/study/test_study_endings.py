"""The end of a study on request: children that are stopped or ignore signals, a second Ctrl-C."""

import os
import signal
import subprocess
import sys
import time

import pytest
from posenc_jax.results.schema import INTERRUPTED, STOPPED
from posenc_jax.study import local_executor

from support import toy_study

SAVES = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
open("up", "w").write(str(os.getpid()))
time.sleep(100)
"""
DEAF = SAVES.replace("lambda *_: sys.exit(75)", "signal.SIG_IGN")


@pytest.fixture(autouse=True)
def _takes_ctrl_c():
    """A child inherits that SIGINT is ignored, as it is for what a shell starts in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def begun(folder, trainer, *flags):
    """Starts a study with a trainer that only waits; returns the study and the trainer's process id."""
    toy_study.make(folder)
    (folder / "train.py").write_text(trainer)
    process = toy_study.start(folder, "--run=rope-s9-lr0.001", *flags)
    deadline = time.monotonic() + 300
    while not ((folder / "up").exists() and (folder / "up").read_text()):
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return process, int((folder / "up").read_text())


def alive(pid) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(n, marks=pytest.mark.thorough) for n in (signal.SIGHUP, signal.SIGINT)),
    ],
)
def test_a_study_ends_though_its_run_is_stopped(tmp_path, number):
    process, child = begun(tmp_path, SAVES)
    os.kill(child, signal.SIGSTOP)
    process.send_signal(number)
    out, said = process.communicate(timeout=120)
    assert process.returncode == STOPPED, out + said
    first = "stopping the runs, which save first"
    if number == signal.SIGINT:
        assert said.splitlines()[0] == f"{first}; press again to end at once"
    else:
        assert said.splitlines()[0] == f"{number.name}: {first}"
    assert "run the same command to go on" in said.splitlines()[-1]
    assert not alive(child)


@pytest.mark.thorough
def test_a_second_ctrl_c_ends_a_study_and_its_runs_at_once(tmp_path):
    process, child = begun(tmp_path, DEAF)
    process.send_signal(signal.SIGINT)
    assert "press again" in process.stderr.readline()
    process.send_signal(signal.SIGTERM)  # does not end it
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == INTERRUPTED
    assert said.startswith("ended at once")
    assert not alive(child)


def test_a_run_that_does_not_end_is_killed_in_the_end(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", DEAF], cwd=tmp_path, start_new_session=True)
    while not (tmp_path / "up").exists():
        time.sleep(0.05)
    run = local_executor.RunCommands("x", "x", tmp_path, ((),), "", ())
    job = local_executor._Active(run, None, child, [], tmp_path / "x.log", time.monotonic(), 0.0)
    local_executor._stop([job], seconds=0.5)
    assert child.returncode == -signal.SIGKILL
