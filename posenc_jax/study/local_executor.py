"""Local executor of a study: starts the commands of its runs, one run per core, and waits for
them.
"""

import contextlib
import dataclasses
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from posenc_jax.results.files import read_json, write_json
from posenc_jax.results.locks import is_locked
from posenc_jax.results.schema import DONE, STOPPED
from posenc_jax.study.status import (
    Status,
    evaluation_progress,
    steps_seconds,
    time_left,
    training_progress,
)
from posenc_jax.training.interrupts import RaiseOnce, SignalNotice

PARENT = "POSENC_JAX_STUDY"  # process id of the study, for its children; see posenc_jax.cli
ORPHANS = 120.0  # seconds to wait for trainers of a killed study to save and end
EVERY = 60.0  # seconds between two lines of progress without a terminal
ENDING = 300.0  # seconds in which a stopped run must end before it is killed
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
      name, arm: for logs and the table. workdir: folder of the run. commands: in order; each is
        safe to repeat. stamp: a hash of everything the commands depend on. products: files that
        exist after all commands; a run that has them, under the same stamp, is not started again.
    """

    name: str
    arm: str
    workdir: Path
    commands: tuple[tuple[str, ...], ...]
    stamp: str
    products: tuple[Path, ...]

    def of_process(self, index: int, logs: Path) -> "RunCommands":
        """Returns the command of a further process of the run: it trains, with its own log."""
        never = (logs / "never",)  # the first process alone says that the run is finished
        return RunCommands(f"{self.name}.{index}", self.arm, logs, self.commands[:1], "", never)


@dataclasses.dataclass(frozen=True)
class ExecutionSummary:
    """Names of the runs that failed, and of those that were stopped and can be resumed."""

    failed: tuple[str, ...]
    stopped: tuple[str, ...]


@dataclasses.dataclass
class _Active:
    """A run under way: its current command, started at `begun`, and the seconds of those before."""

    run: RunCommands
    core: int | None
    process: subprocess.Popen
    remaining: list[tuple[str, ...]]
    log: Path
    begun: float
    spent: float

    @property
    def trains(self) -> bool:
        """Whether the first command is under way."""
        return len(self.remaining) == len(self.run.commands) - 1

    def elapsed(self) -> float:
        """Returns the seconds since the start of the run."""
        return self.spent + time.monotonic() - self.begun

    def measured(self) -> float:
        """Returns the seconds up to now, of training without compilation where the log has them."""
        seconds = steps_seconds(self.run.workdir) if self.trains else None
        return self.elapsed() if seconds is None else self.spent + seconds

    def progress(self) -> str:
        """Returns the line of the run in the table."""
        trained = training_progress(self.run.workdir)
        return f"{self.run.name} {trained if self.trains else evaluation_progress(self.log)}"


def run_all(
    runs: Sequence[RunCommands], logs: Path, *, cores: Sequence[int | None]
) -> ExecutionSummary:
    """Runs every run to its end, one per core at a time.

    Args:
      runs: their commands must be safe to repeat, so that a study can be resumed.
      logs: folder of the log and the last exit code of every run. cores: one worker for each,
        pinned to that core (None: not pinned).

    Raises:
      KeyboardInterrupt: a signal arrived; all children have been stopped and have saved.
    """
    logs.mkdir(parents=True, exist_ok=True)
    interrupt = RaiseOnce(KeyboardInterrupt)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # as SIGHUP is under nohup
            signal.signal(number, interrupt)
    states = {run.name: "done" if finished(run, logs) else "waiting" for run in runs}
    active: list[_Active] = []
    with SignalNotice("stopping the runs, which save first", lambda: _kill(active)):
        try:
            _work(runs, active, states, logs, list(cores))
        except BaseException:
            _stop(active)
            raise
    by_state = {
        s: tuple(r.name for r in runs if states[r.name] == s) for s in ("failed", "stopped")
    }
    return ExecutionSummary(**by_state)


def _work(
    runs: Sequence[RunCommands],
    active: list[_Active],
    states: dict[str, str],
    logs: Path,
    free: list[int | None],
) -> None:
    """Starts waiting runs on free cores until all have ended; keeps `active` and `states` true."""
    waiting = [run for run in runs if states[run.name] == "waiting"]
    begun, workers = time.monotonic(), len(free)
    durations: list[float] = []  # of the runs that ended
    status = Status({run.name: run.arm for run in runs}, EVERY)
    while waiting or active:
        while free and (run := next((r for r in waiting if _startable(r, begun)), None)):
            waiting.remove(run)
            active.append(_start(run, free.pop(0), list(run.commands), logs))
            states[run.name] = "running"
        time.sleep(0.2)
        for job in [job for job in active if job.process.poll() is not None]:
            active.remove(job)
            code, spent = job.process.returncode, job.measured()
            if code == DONE and job.remaining:
                active.append(_start(job.run, job.core, job.remaining, logs, spent))
                continue
            free.append(job.core)
            durations.append(spent)
            states[job.run.name] = _end_state(job.run, code, logs)
            if states[job.run.name] == "failed":
                status.say(f"{job.run.name} failed with exit code {code}; see {job.log}")
        left = time_left(durations, [job.elapsed() for job in active], len(waiting), workers)
        status.show(states, [job.progress() for job in active], left)
    status.show(states, [], None, last=True)


def finished(run: RunCommands, logs: Path) -> bool:
    """Whether the commands of the run, as they are now, have all succeeded and left their files."""
    whole = all(_record(path) is not None for path in run.products)
    return whole and _record(logs / f"{run.name}.json") == {"exit_code": 0, "stamp": run.stamp}


def usable_cores() -> list[int]:
    """Returns the processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def environment(core: int | None, compiled: Path) -> dict[str, str]:
    """Returns the environment of a child; a pinned one uses a single thread unless XLA_FLAGS says
    otherwise.

    Args:
      compiled: cache of compiled programs, which the runs of a study share.
        JAX_COMPILATION_CACHE_DIR takes precedence.
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


def _stop(active: Sequence[_Active], seconds: float = ENDING) -> None:
    """Asks the children to save and end, and waits; kills those that run after `seconds`."""
    for job in active:
        job.process.send_signal(signal.SIGTERM)
        _signal_group(job.process, signal.SIGCONT)  # a stopped process takes no other signal
    deadline = time.monotonic() + seconds
    for job in active:
        with contextlib.suppress(subprocess.TimeoutExpired):
            job.process.wait(max(deadline - time.monotonic(), 0))
    _kill(active)


def _kill(active: Sequence[_Active]) -> None:
    for job in list(active):
        if job.process.poll() is None:
            _signal_group(job.process, signal.SIGKILL)
            job.process.wait()


def _signal_group(child: subprocess.Popen, number: int) -> None:
    """Sends a signal to a child, the leader of its session, and to what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, number)


def exit_code(name: str, logs: Path) -> int | None:
    """Returns the exit code of the last attempt; None without one, or if a signal killed it."""
    record = _record(logs / f"{name}.json") or {}
    code = record.get("exit_code")
    return code if type(code) is int else None


def _record(path: Path) -> dict | None:
    """Returns a JSON object; None for a missing or torn one, whose run is repeated."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return None


def _end_state(run: RunCommands, code: int, logs: Path) -> str:
    if code >= 0:  # a killed run has no exit code of its own
        write_json(logs / f"{run.name}.json", {"exit_code": code, "stamp": run.stamp})
    return "done" if code == DONE else "stopped" if code == STOPPED else "failed"


def _startable(run: RunCommands, begun: float) -> bool:
    """Whether no trainer holds the folder's lock; a killed study's trainer may still save."""
    return time.monotonic() - begun > ORPHANS or not is_locked(run.workdir)


def _start(
    run: RunCommands,
    core: int | None,
    commands: list[tuple[str, ...]],
    logs: Path,
    spent: float = 0.0,
) -> _Active:
    command, remaining = commands[0], commands[1:]
    (logs / f"{run.name}.json").unlink(missing_ok=True)
    path = logs / f"{run.name}.log"
    with path.open("a") as log:
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
    return _Active(run, core, process, remaining, path, time.monotonic(), spent)
