"""Repeated kills: a run is killed (SIGKILL) at random moments until it ends, then the next run.

Legs are forks (`fork_server`), so that a kill costs about a second. Half of the moments are uniform over a
whole leg. As a leg starts for a second and steps for half a second, most of these precede the first step; the
other kills therefore wait for a step or for a point of a save.
"""

import dataclasses
import random
import time
from collections.abc import Iterator
from pathlib import Path

from faults.kills import POINTS, await_seen
from faults.small_run import STEPS, SmallRun, last_logged, resumed
from faults.trial import Trial, codes
from faults.workdirs import checkpoints, lost, saving

_AFTER_A_STEP = 0.05  # seconds, at most; a step takes some milliseconds


def killed_in_chains(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """Runs with asynchronous saves and runs that wait for saves, in turn."""
    run.fork(run.fresh("leg")).communicate()  # now the imports are done, and all is compiled
    began = time.monotonic()
    run.fork(run.fresh("leg")).communicate()
    whole, index = time.monotonic() - began, 0
    while trials:
        killed = _chain(run, run.fresh(f"chain-{index}"), bool(index % 2), trials, whole, rng)
        yield from killed
        trials, index = trials - len(killed), index + 1


def _chain(run, workdir: Path, waits: bool, most: int, whole: float, rng) -> list[Trial]:
    """Kills one run at most `most` times, then lets it end; returns a trial per kill."""
    trials, faults = [], 0
    while True:
        sound, record = checkpoints(workdir), _stamp(workdir / "run.json")
        process = run.fork(workdir, f"--config.train.wait_for_saves={waits}")
        aimed = "the end"
        if len(trials) < most:
            aimed = _wait(process, workdir, whole, rng)
        else:
            process.communicate()
        ended = process.poll() is not None
        process.kill()
        out, err = process.communicate()
        first = max(sound, default=0)
        faults += "Traceback" in err or resumed(out) not in (None, first)
        if ended:
            break
        phase, taken = _phase(workdir, record, first), 0
        if phase not in (_STARTING, _COMPILING):
            taken = lost(workdir)
        cut = bool(saving(workdir)) and taken > 0 and not waits
        name = f"kill -9 {phase}{', saves waited for' if waits else ''}"
        trials.append(
            Trial(
                name,
                f"{workdir.name}, {aimed}, step {last_logged(workdir)}",
                lost_steps=taken,
                save_cut=cut,
                said=err.strip(),
                exit_codes=codes(process),
                output=f"{err}{out}",
            )
        )
    wrong = run.wrong(workdir)
    return [
        dataclasses.replace(
            trial,
            wrong=wrong,
            undetected=bool(faults),
            exit_codes=f"{trial.exit_codes} {codes(process)}",
            output=f"{trial.output}{err}{out}",
        )
        for trial in trials
    ]


_STARTING, _COMPILING = "as it starts", "as it compiles"


def _phase(workdir: Path, record_before, first: int) -> str:
    """Returns the phase in which a leg was killed, from its files."""
    if _stamp(workdir / "run.json") == record_before:
        return _STARTING
    reached = last_logged(workdir)
    if reached <= first:
        return _COMPILING
    if saving(workdir):
        return "in a save"
    return "between saves" if reached < STEPS else "after the last step"


def _stamp(path: Path):
    """Returns inode and time of a file, which change at every write; None without a file."""
    if not path.exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _wait(process, workdir: Path, whole: float, rng: random.Random) -> str:
    """Waits for a random moment; returns its description."""
    aim = rng.choice(("moment", "moment", "step", "point"))
    if aim == "moment":
        moment = rng.random() * whole
        end = time.monotonic() + moment
        await_seen(process, lambda _: time.monotonic() >= end, workdir, pause=0.002)
        return f"{moment:.3f} s"
    first = max(checkpoints(workdir), default=0)
    step = rng.randint(min(first + 1, STEPS), STEPS)
    await_seen(process, lambda w: last_logged(w) >= step, workdir, pause=0.001)
    if aim == "step":
        time.sleep(rng.random() * _AFTER_A_STEP)
        return f"step {step}"
    point = rng.choice(list(POINTS))
    await_seen(process, POINTS[point], workdir, pause=0.0005)
    return point
