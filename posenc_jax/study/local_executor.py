"""Local executor of a study: starts the commands of its runs, one run per core, and waits for them."""

import contextlib
import dataclasses
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from posenc_jax.results.files import write_json
from posenc_jax.results.schema import DONE, STOPPED
from posenc_jax.study.status import Status, training_progress

PARENT = "POSENC_JAX_STUDY"  # process id of the study, for its children; see posenc_jax.cli
ORPHANS = 120.0  # seconds to wait for trainers of a killed study to save and end
ONE_CORE = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# Transparent huge pages for the allocator: a training step on one core takes about 10 % less time.
HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")


@dataclasses.dataclass(frozen=True)
class RunCommands:
    """The commands of one run: training and evaluation.

    Attributes:
      name, arm: for logs and the table. workdir: folder of the run. commands: in order; each is safe to
        repeat. stamp: a hash of everything the commands depend on. products: files that exist after all
        commands; a run that has them, under the same stamp, is not started again.
    """

    name: str
    arm: str
    workdir: Path
    commands: tuple[tuple[str, ...], ...]
    stamp: str
    products: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class ExecutionSummary:
    """Names of the runs that failed, and of those that were stopped and can be resumed."""

    failed: tuple[str, ...]
    stopped: tuple[str, ...]


@dataclasses.dataclass
class _Active:
    run: RunCommands
    core: int | None
    process: subprocess.Popen
    remaining: list[tuple[str, ...]]


def run_all(
    runs: Sequence[RunCommands], logs: Path, *, cores: Sequence[int | None], every: float = 20.0
) -> ExecutionSummary:
    """Runs every run to its end, one per core at a time.

    Args:
      runs: their commands must be safe to repeat, so that a study can be resumed.
      logs: folder of the log and the last exit code of every run. cores: one worker for each, pinned to that
        core (None: not pinned).
      every: seconds between two progress tables without a terminal.

    Raises:
      KeyboardInterrupt: a signal arrived; all children have been stopped and have saved.
    """
    logs.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    states = {run.name: "done" if finished(run, logs) else "waiting" for run in runs}
    waiting, active, fresh = [r for r in runs if states[r.name] == "waiting"], [], 0
    begun, free = time.time(), list(cores)
    status = Status({run.name: run.arm for run in runs}, every)
    try:
        while waiting or active:
            while free and (run := next((r for r in waiting if _startable(r, begun)), None)):
                waiting.remove(run)
                core = free.pop(0)
                active.append(_start(run, core, list(run.commands), logs))
                states[run.name] = "running"
            time.sleep(0.2)
            for job in list(active):
                code = job.process.poll()
                if code is None:
                    continue
                active.remove(job)
                if code == 0 and job.remaining:
                    active.append(_start(job.run, job.core, job.remaining, logs))
                    continue
                free.append(job.core)
                states[job.run.name] = _end_state(job.run, code, logs)
                if states[job.run.name] == "failed":
                    log = logs / f"{job.run.name}.log"
                    status.say(f"{job.run.name} failed with exit code {code}; see {log}")
                fresh += 1
            status.show(states, [f"{j.run.name}  {_progress(j)}" for j in active], fresh)
    except BaseException:
        for job in active:
            job.process.send_signal(signal.SIGTERM)
        for job in active:
            job.process.wait()
        raise
    status.show(states, [], fresh, last=True)
    by_state = {
        s: tuple(r.name for r in runs if states[r.name] == s) for s in ("failed", "stopped")
    }
    return ExecutionSummary(**by_state)


def finished(run: RunCommands, logs: Path) -> bool:
    """Whether the commands of the run, as they are now, have all succeeded and left their files."""
    path = logs / f"{run.name}.json"
    if not path.exists() or not all(p.exists() for p in run.products):
        return False
    return json.loads(path.read_text()) == {"exit_code": 0, "stamp": run.stamp}


def usable_cores() -> list[int]:
    """Returns the processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def environment(core: int | None, compiled: Path) -> dict[str, str]:
    """Returns the environment of a child; a pinned one uses a single thread unless XLA_FLAGS says otherwise.

    Args:
      compiled: cache of compiled programs, which the runs of a study share. JAX_COMPILATION_CACHE_DIR takes
        precedence.
    """
    variables = dict(os.environ) | {PARENT: str(os.getpid())}
    variables.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled.resolve()))
    variables.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    if core is not None:
        given = variables.get("XLA_FLAGS", "")  # last: of two values XLA takes the later one
        variables |= ONE_CORE | {"XLA_FLAGS": f"{ONE_CORE['XLA_FLAGS']} {given}".strip()}
        if sys.platform == "linux":
            variables.setdefault(*HUGE_PAGES)
    return variables


def _interrupt(number, frame) -> None:
    raise KeyboardInterrupt


def exit_code(name: str, logs: Path) -> int | None:
    """Returns the exit code of the last attempt; None without one, or if a signal killed it."""
    path = logs / f"{name}.json"
    return json.loads(path.read_text())["exit_code"] if path.exists() else None


def _end_state(run: RunCommands, code: int, logs: Path) -> str:
    if code >= 0:  # a killed run has no exit code of its own
        write_json(logs / f"{run.name}.json", {"exit_code": code, "stamp": run.stamp})
    return "done" if code == DONE else "stopped" if code == STOPPED else "failed"


def _startable(run: RunCommands, begun: float) -> bool:
    """Whether no trainer holds the lock of the folder; one of a killed study may still be saving."""
    lock = run.workdir / ".lock"  # posenc_jax.training.workdir.lock_workdir
    if time.time() - begun > ORPHANS or not lock.exists():
        return True
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def _start(
    run: RunCommands, core: int | None, commands: list[tuple[str, ...]], logs: Path
) -> _Active:
    command, remaining = commands[0], commands[1:]
    (logs / f"{run.name}.json").unlink(missing_ok=True)
    with (logs / f"{run.name}.log").open("a") as log:
        log.write(f"$ {shlex.join(command)}\n")
        log.flush()
        process = subprocess.Popen(
            [sys.executable, *command[1:]] if command[0] == "python" else command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment(core, logs.parent / "compiled"),
            start_new_session=True,  # Ctrl-C reaches the study alone, which then stops its children
        )
    if core is not None and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(ProcessLookupError):  # the process has ended
            os.sched_setaffinity(process.pid, {core})
    return _Active(run, core, process, remaining)


def _progress(job: _Active) -> str:
    trains = len(job.remaining) == len(job.run.commands) - 1
    return training_progress(job.run.workdir) if trains else "evaluating"
