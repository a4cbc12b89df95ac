"""Runs a study on this machine: each run is the few plain commands anyone could type."""

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

PARENT = "POSENC_JAX_STUDY"  # tells a child whose child it is; see posenc_jax.cli
ORPHANS = 120.0  # seconds a study waits for the trainers of a killed one to save and end
ONE_CORE = {
    "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
# Transparent huge pages for the allocator: about a tenth off a training step on one core.
HUGE_PAGES = ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")


@dataclasses.dataclass(frozen=True)
class RunCommands:
    """One training run and its evaluation, as commands.

    Attributes:
      name, arm: for logs and the table. workdir: the run's folder. commands: in order, each safe to
        repeat. stamp: changes with whatever the commands depend on. products: files that exist once
        all commands are through; with them there and the same stamp the run is not started again.
    """

    name: str
    arm: str
    workdir: Path
    commands: tuple[tuple[str, ...], ...]
    stamp: str
    products: tuple[Path, ...]


@dataclasses.dataclass(frozen=True)
class ExecutionSummary:
    """Names of the runs that failed, and of those that were stopped and can go on."""

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
      runs: their commands must be safe to repeat; that is what makes a study resumable.
      logs: folder for one log per run, and beside it how its last attempt ended. cores: one worker each, pinned to that core (None: not
        pinned, all of the machine).
      every: seconds between two tables of the status, where there is no terminal.

    Raises:
      KeyboardInterrupt: after every child has been told to stop and has saved.
    """
    logs.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    states = {run.name: "done" if finished(run, logs) else "waiting" for run in runs}
    waiting, active, fresh = [r for r in runs if states[r.name] == "waiting"], [], 0
    begun, free, status = (
        time.time(),
        list(cores),
        Status({run.name: run.arm for run in runs}, every),
    )
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
                states[job.run.name] = _ended(job.run, code, logs)
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
    """Whether all commands of the run, as they are now, have been through and left their files."""
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
    """Returns a child's environment; one that is pinned to a core uses that core alone, unless XLA_FLAGS says otherwise.

    Args:
      compiled: folder where the runs of a study leave compiled programs for each other, seeds of an arm
        have the same ones; the user's own JAX_COMPILATION_CACHE_DIR goes first.
    """
    found = dict(os.environ) | {PARENT: str(os.getpid())}
    found.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled.resolve()))
    found.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
    if core is not None:
        flags = (
            ONE_CORE["XLA_FLAGS"],
            found.get("XLA_FLAGS", ""),
        )  # of two values the later one holds
        found |= ONE_CORE | {"XLA_FLAGS": " ".join(filter(None, flags))}
        if sys.platform == "linux":
            found.setdefault(*HUGE_PAGES)
    return found


def _interrupt(number, frame) -> None:
    raise KeyboardInterrupt


def exit_code(name: str, logs: Path) -> int | None:
    """Returns how the run's last attempt ended; None while there is none, or a kill cut it short."""
    path = logs / f"{name}.json"
    return json.loads(path.read_text())["exit_code"] if path.exists() else None


def _ended(run: RunCommands, code: int, logs: Path) -> str:
    if code >= 0:  # a kill from outside is no verdict on the run
        write_json(logs / f"{run.name}.json", {"exit_code": code, "stamp": run.stamp})
    return "done" if code == DONE else "stopped" if code == STOPPED else "failed"


def _startable(run: RunCommands, begun: float) -> bool:
    """Whether no trainer holds the run's folder: one of a study that was killed may still be saving."""
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
            start_new_session=True,  # a Ctrl-C reaches the study first, which tells the children
        )
    if core is not None and hasattr(os, "sched_setaffinity"):
        with contextlib.suppress(ProcessLookupError):  # it may have ended already
            os.sched_setaffinity(process.pid, {core})
    return _Active(run, core, process, remaining)


def _progress(job: _Active) -> str:
    trains = len(job.remaining) == len(job.run.commands) - 1
    return training_progress(job.run.workdir) if trains else "evaluating"
