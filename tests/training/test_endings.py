"""How a run ends: signals at any moment, lost output, a folder that moves, devices that are not there."""

import errno
import os
import signal
import subprocess
import sys

import pytest
from posenc_jax import cli
from posenc_jax.checkpoints.manager import SaveFailed
from posenc_jax.results.schema import DONE, INTERRUPTED, STOPPED, UNWRITABLE, WRONG_INPUT
from posenc_jax.training.loop import train
from posenc_jax.training.multi_seed import train_seeds
from posenc_jax.training.progress import MetricLog

from faults.kills import await_seen
from faults.small_run import SmallRun, finished, last_logged, without_progress
from support import runs
from support.entries import ROOT, typed

# A call that lasts for minutes and never returns to the interpreter, as one of the compiler.
COMPILING = """
import hashlib, signal, sys
from posenc_jax.training.interrupts import SignalNotice
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, lambda *_: None)
with SignalNotice("saving"):
    print("up", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def line_of(process, stream) -> str:
    """The next line of a stream; the process is killed if none comes."""
    alarm = subprocess.Popen(
        ["sh", "-c", f"sleep 60; kill -9 {process.pid}"], stderr=subprocess.DEVNULL
    )
    try:
        return stream.readline()
    finally:
        alarm.kill()
        alarm.wait()


def test_a_signal_is_acknowledged_during_a_compilation_and_a_second_ctrl_c_ends_the_process():
    process = subprocess.Popen(
        [sys.executable, "-c", COMPILING],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert process.stdout.readline() == "up\n"
    process.send_signal(signal.SIGINT)
    assert line_of(process, process.stderr) == "saving; press again to end at once\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == INTERRUPTED
    assert said == "ended at once; run the same command to go on from what is saved\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with SmallRun(tmp_path_factory.mktemp("endings")) as small:
        small.reference()
        yield small


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_the_last_step_and_ends_with_75(run, number):
    for attempt in range(5):  # on a busy machine the short run may end before the signal arrives
        workdir = run.fresh(f"signal-{number}-{attempt}")
        process = run.fork(workdir, "--config.train.save_every=1000")
        await_seen(process, lambda w: last_logged(w) >= 3, workdir, pause=0.001)
        process.send_signal(number)
        _, said = process.communicate()
        if process.returncode != 0:
            break
    assert process.returncode == STOPPED, said
    first, *_, last = without_progress(said).splitlines()
    saving = "saving; press again to end at once"
    assert first == (saving if number == signal.SIGINT else f"{number.name}: saving")
    assert last.startswith(f"stopped by {number.name} after step")
    saved = [int(p.name) for p in (workdir / "checkpoints").iterdir()]
    assert saved == [last_logged(workdir)]
    run.finish(workdir)
    assert run.wrong(workdir) == 0


@pytest.mark.thorough
def test_a_sighup_that_is_ignored_stays_ignored(run):
    workdir = run.fresh("nohup")
    process = subprocess.Popen(
        ["nohup", sys.executable, "train.py", *run._arguments(workdir, ())],
        cwd=ROOT,
        env=run._environment(1),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    await_seen(process, lambda w: last_logged(w) >= 1, workdir, pause=0.001)
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate()
    assert process.returncode == DONE, said
    assert run.wrong(workdir) == 0


@pytest.mark.thorough
@pytest.mark.parametrize("shell", ["2>&-", "2>/dev/full", ">&- 2>&-", ">/dev/full"])
def test_a_run_outlives_its_output(run, shell):
    workdir = run.fresh("silent")
    typed_line = subprocess.list2cmdline(
        ["exec", sys.executable, "train.py", *run._arguments(workdir, ())]
    )
    done = subprocess.run(
        ["bash", "-c", f"{typed_line} {shell}"],
        cwd=ROOT,
        env=run._environment(1),
        capture_output=True,
        text=True,
    )
    assert finished(workdir)
    assert run.wrong(workdir) == 0
    if shell == ">/dev/full":
        assert done.returncode == UNWRITABLE
        assert done.stderr.splitlines()[-1].startswith("stdout could not be written (No space left")
    else:
        assert done.returncode == DONE
    for path in workdir.rglob("*"):  # a file may have had the number of the closed stream
        if path.is_file() and path.suffix in (".json", ".jsonl"):
            assert path.read_text().lstrip().startswith("{"), path


@pytest.mark.thorough
def test_a_folder_that_is_renamed_under_a_run_ends_it(run):
    workdir = run.fresh("named")
    away = run.fresh("renamed")
    process = run.fork(workdir, "--config.train.steps=20000", "--config.train.save_every=50")
    await_seen(process, lambda w: last_logged(w) >= 3, workdir, pause=0.001)
    workdir.rename(away)
    _, said = process.communicate()
    assert process.returncode == UNWRITABLE, said
    said = without_progress(said).splitlines()
    assert len([line for line in said if "/20000  loss" not in line]) == 1
    assert "was renamed, removed or replaced during the run" in said[-1]
    assert not workdir.exists()


@pytest.mark.default_cases(1, thorough=2)
@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (("train.py", "--config=configs/smoke.py:rope"), {"JAX_PLATFORMS": "cuda"}, "cuda"),
        (("train.py", "--config=configs/smoke.py:rope"), {"JAX_PLATFORMS": "nosuch"}, "nosuch"),
        (("scripts/study.py", "--study={broken}"), {}, "line 2: "),
        (("scripts/study.py", "--study={raising}"), {}, "line 3: ZeroDivisionError"),
        (("train.py", "--config={broken}"), {}, "line 2"),
        (("train.py", "--config={raising}"), {}, "ZeroDivisionError"),
    ],
)  # fmt: skip
def test_what_the_surroundings_lack_is_one_line(tmp_path, arguments, environment, words):
    files = {"broken": "x = 1\ndef\n", "raising": "def f():\n    return 1\nf() / 0\n"}
    places = {name: tmp_path / f"{name}.py" for name in files}
    for name, path in places.items():
        path.write_text(files[name])
    workdir = tmp_path / "workdir"
    ended = typed(*(a.format(**places) for a in arguments), f"--workdir={workdir}", **environment)
    assert ended.returncode == WRONG_INPUT, ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert words in ended.stderr
    assert not workdir.exists()


@pytest.mark.thorough
def test_an_unknown_flag_of_the_compiler_is_one_line(tmp_path):
    workdir = f"--workdir={tmp_path / 'w'}"
    ended = typed("train.py", "--config=configs/smoke.py:rope", workdir, XLA_FLAGS="--xla_nosuch=1")
    assert ended.returncode > 0  # the compiler's own, and no crash
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert "Unknown flag in XLA_FLAGS: --xla_nosuch" in ended.stderr


@pytest.mark.parametrize(
    "script", ["train.py", *(f"scripts/{p.name}" for p in sorted(ROOT.glob("scripts/*.py")))]
)
def test_a_python_without_the_packages_is_one_line(script):
    ended = subprocess.run(
        [sys.executable, "-S", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": os.environ["PATH"]},
    )
    assert ended.returncode == WRONG_INPUT
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "source .venv/bin/activate" in ended.stderr


def test_lost_output_is_remembered_and_nothing_else_is_hidden():
    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

        def flush(self):
            raise TypeError("not of the disk")

        def isatty(self):
            return True

    stream = cli._BestEffort(Full())
    print("x", file=stream)
    assert stream.lost.errno == errno.ENOSPC
    assert stream.isatty()
    with pytest.raises(TypeError):
        stream.flush()


@pytest.mark.thorough
def test_compiled_programs_that_a_kill_cut_off_are_compiled_again(run):
    kept = [path for path in (run.folder / "compiled").iterdir() if path.is_file()]
    assert len(kept) > 3
    for number, path in enumerate(kept):
        path.write_bytes(path.read_bytes()[: (0, 40, path.stat().st_size // 2)[number % 3]])
    workdir = run.fresh("recompiled")
    run.finish(workdir)
    assert run.wrong(workdir) == 0


@pytest.mark.thorough
@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("together", [False, True])
def test_an_error_of_the_disk_in_the_log_names_the_last_checkpoint(
    tmp_path, data_dir, monkeypatch, together, number
):
    """A run alone, and seeds in one program: the log fails at step 8, after the checkpoint of step 6."""
    write = MetricLog.write

    def fails(log, row):
        if row["step"] == 8:
            raise OSError(number, os.strerror(number))
        write(log, row)

    monkeypatch.setattr(MetricLog, "write", fails)
    config = runs.config(data_dir, train={"data_devices": 1})
    words = (
        f"{os.strerror(number)}.*; the checkpoint of step 6 is whole; .* and run the same command"
    )
    folders = {seed: tmp_path / f"x{seed}" for seed in (0, 1)}
    run = (
        (lambda: train_seeds(config, folders, ""))
        if together
        else (lambda: train(config, folders[0], ""))
    )
    with pytest.raises(SaveFailed, match=f"x0 cannot be written .*{words}"):
        run()
