"""Faults of one process of two: killed, suspended or preempted; detection time and the resumed run."""

import random
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from posenc_jax.results.schema import DONE, STOPPED
from posenc_jax.training.hosts import REMEDY

from faults.fork_server import Fork
from faults.kills import await_seen
from faults.small_run import STEPS, SmallRun, finished, last_logged, record, resumed
from faults.trial import Trial
from faults.workdirs import checkpoints, lost, saving

NOTICED = 15  # seconds
_DEVICES = 4  # of each process
_WITNESS = 1.0  # seconds that the witness process needs after the end of its trainer


def lost_or_stopped(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """Each process in turn is killed (SIGKILL), suspended (SIGSTOP) or preempted (SIGTERM).

    After the first two, the other process must end within NOTICED seconds, with an exit code other than 0 and
    75 and one line with the remedy. After SIGTERM both must save and end with 75. The same two commands then
    resume, and the results must equal those of two undisturbed processes bit for bit.
    """
    alone = run.fresh("two")
    _ended(_both(run, alone))
    if not finished(alone):
        raise RuntimeError("two processes that are left alone do not finish")
    for index in range(trials):
        for victim in (0, 1):
            for how in (signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM):
                workdir, step = run.fresh(f"worker-{index}"), rng.randint(1, STEPS - 10)
                yield _one(run, workdir, victim, how, step, record(alone))


def _one(run, workdir: Path, victim: int, how: signal.Signals, step: int, want: dict) -> Trial:
    both = _both(run, workdir)
    await_seen(both[0], lambda w: last_logged(w) >= step, workdir, pause=0.001)
    both[victim].send_signal(how)
    began, other = time.monotonic(), both[1 - victim]
    while other.poll() is None:
        time.sleep(0.01)
    seconds = time.monotonic() - began
    if how == signal.SIGTERM:
        codes, said = _ended(both)
        bad = codes != [STOPPED] * 2
    else:
        time.sleep(_WITNESS)
        both[victim].kill()
        codes, said = _ended(both)
        told = [line for line in said[1 - victim].splitlines() if REMEDY in line]
        bad = codes[1 - victim] in (DONE, STOPPED) or len(told) != 1 or seconds > NOTICED
    taken, cut, sound = lost(workdir), saving(workdir), max(checkpoints(workdir), default=0)
    again = _both(run, workdir)
    codes_again, said_again = _ended(again)
    elsewhere = resumed(again[0].communicate()[0]) not in (None, sound)
    bad |= elsewhere or codes_again != [0, 0]
    detail = f"process {victim}, step {step}: the other ends {seconds:.1f} s later, with {codes[1 - victim]}"
    return Trial(
        f"{how.name} to one of two processes",
        detail,
        run.wrong(workdir, want),
        bad,
        taken,
        save_cut=cut,
        exit_codes=" ".join(map(str, (*codes, *codes_again))),
        output="".join((*said, *said_again)),
    )


def _both(run: SmallRun, workdir: Path) -> list[Fork]:
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        port = taken.getsockname()[1]
    several = (f"--coordinator=localhost:{port}", "--processes=2")
    return [run.fork(workdir, *several, f"--process={i}", devices=_DEVICES) for i in range(2)]


def _ended(both: list[Fork]) -> tuple[list[int], list[str]]:
    """Waits for both; returns their exit codes and what they said on stderr."""
    said = [process.communicate()[1] for process in both]
    return [process.returncode for process in both], said
