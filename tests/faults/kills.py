"""Kills, signals, a second trainer, and changes of the mesh, at random and at critical moments."""

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from posenc_jax.results.schema import DONE, INTERRUPTED, STOPPED, WRONG_INPUT

from faults.small_run import (
    SAVE_EVERY,
    STEPS,
    SmallRun,
    finished,
    last_logged,
    outputs,
    record,
    resumed,
)
from faults.trial import Trial, codes
from faults.workdirs import checkpoints, lost, names, saving

_UNDER_WAY = 3  # the last steps of a run, in which a signal comes too late to stop it


def _in_saving(test: Callable[[list[str]], bool]) -> Callable[[Path], bool]:
    def seen(workdir: Path) -> bool:
        folder = workdir / "checkpoints"
        return any(
            test(names(folder / name)) for name in names(folder) if name.startswith(".saving-")
        )

    return seen


# Points of a save, by the names on disk. The later ones last a millisecond or less; a kill may come just
# after them, which is as good a fault.
POINTS: dict[str, Callable[[Path], bool]] = {
    "as a save begins": _in_saving(lambda found: True),
    "as arrays are written": _in_saving(lambda found: any("tmp" in name for name in found)),
    "before the manifest": _in_saving(lambda found: "state" in found),
    "between manifest and rename": _in_saving(lambda found: "manifest.json" in found),
    "after the rename": lambda w: any(name.isdigit() for name in names(w / "checkpoints")),
    "as an old one is removed": lambda w: any(
        name.startswith(".deleting") for name in names(w / "checkpoints")
    ),
}


def killed_at_any_moment(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """SIGKILL after a random step; two kills in one trial of three."""
    for index in range(trials):
        workdir = run.fresh(f"kill-{index}")
        at = []
        for _ in range(rng.choice((1, 1, 2))):
            step = rng.randrange(last_logged(workdir), STEPS)
            at.append(step)
            process = run.start(workdir)
            await_seen(process, lambda w, step=step: last_logged(w) >= step, workdir, pause=0.001)
            time.sleep(rng.random() * 0.05)
            process.kill()
            process.wait()
        yield _killed(run, workdir, "kill -9, any moment", f"after steps {at}", process)


def killed_in_a_save(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """SIGKILL at the named points of a save."""
    for index in range(trials):
        for point, there in POINTS.items():
            workdir = run.fresh(f"save-{index}")
            process = run.start(workdir)
            skip = rng.randrange(STEPS - 2 * SAVE_EVERY)  # not always in the first save
            await_seen(process, lambda w, skip=skip: last_logged(w) >= skip, workdir, pause=0.001)
            await_seen(process, there, workdir, pause=0)
            yield _killed(run, workdir, f"kill -9, {point}", f"after step {skip}", process)


def stopped(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """SIGTERM once, and SIGINT twice."""
    for index in range(trials):
        for fault, signals in (
            ("SIGTERM", [signal.SIGTERM]),
            ("SIGINT twice", [signal.SIGINT] * 2),
        ):
            workdir, step = run.fresh(f"stop-{index}"), rng.randrange(1, STEPS - 2)
            process = run.start(workdir)
            await_seen(process, lambda w, step=step: last_logged(w) >= step, workdir, pause=0.001)
            with suspended(process):
                reached = last_logged(workdir)
                process.send_signal(signals[0])
            for number in signals[1:]:
                time.sleep(0.005)
                process.send_signal(number)
            out, err = outputs(process, workdir)
            detail = f"at step {reached}"
            if process.returncode == DONE and reached >= STEPS - _UNDER_WAY:
                yield Trial(fault, detail, skipped="it ended first", exit_codes=codes(process))
                continue
            expected = (STOPPED,) if fault == "SIGTERM" else (STOPPED, INTERRUPTED)
            bad = process.returncode not in expected or "Traceback" in err
            yield _resumed(run, workdir, fault, detail, process, bad, (out, err))


def doubled(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """Two trainers on one workdir: the second one must refuse while the first one is suspended."""
    for index in range(trials):
        workdir = run.fresh(f"two-{index}")
        first = run.start(workdir)
        await_seen(first, lambda w: (w / "run.json").exists(), workdir, pause=0.01)
        with suspended(first):
            second = run.start(workdir)
            out, err = outputs(second, workdir)
        out += "".join(outputs(first, workdir))
        refused = second.returncode == WRONG_INPUT and "another trainer is at work" in err
        yield Trial(
            "two trainers",
            "",
            run.wrong(workdir),
            not refused or first.returncode != DONE,
            said=err.strip(),
            exit_codes=codes(second, first),
            output=f"{err}{out}",
        )


def moved(run: SmallRun, trials: int, rng: random.Random) -> Iterator[Trial]:
    """One run on 8, 4, 2, 1 and 8 devices in turn; its data must equal those of one device."""
    for index in range(trials):
        workdir, legs, output = run.fresh(f"moved-{index}"), [], ""
        for devices in (8, 4, 2, 1):
            process = run.start(workdir, devices=devices)
            goal = last_logged(workdir) + 4
            await_seen(process, lambda w, goal=goal: last_logged(w) >= goal, workdir, pause=0.001)
            process.terminate()
            output += "".join(outputs(process, workdir))
            legs.append(process)
        if any(leg.returncode == DONE for leg in legs):
            ended = "it ended before it was moved"
            yield Trial("devices 8-4-2-1-8", skipped=ended, exit_codes=codes(*legs))
            continue
        _, code, out, err = run.finish(workdir, devices=8)
        want = run.reference()["data_chain"]
        wrong = 0 if finished(workdir) and record(workdir)["data_chain"] == want else 1
        yield Trial(
            "devices 8-4-2-1-8",
            "",
            wrong,
            exit_codes=f"{codes(*legs)} {code}",
            output=f"{output}{out}{err}",
        )


def await_seen(process, there: Callable[[Path], bool], workdir: Path, pause: float) -> None:
    """Waits until `there(workdir)` or the end of the process; polls every `pause` seconds."""
    while process.poll() is None and not there(workdir):
        if pause:
            time.sleep(pause)


@contextlib.contextmanager
def suspended(process) -> Iterator[None]:
    """Suspends a process during a `with` block, so that it takes no step meanwhile."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def _resumed(run, workdir, fault, detail, process, undetected=False, said=("", "")) -> Trial:
    """Resumes after a fault to the end, and compares with the undisturbed run.

    Args:
      process: the one with the fault. undetected: it did not end as it should. said: its outputs.
    """
    taken, cut, sound = lost(workdir), saving(workdir), max(checkpoints(workdir), default=0)
    again = run.start(workdir)
    out, err = outputs(again, workdir)
    elsewhere = resumed(out) not in (None, sound)
    return Trial(
        fault,
        detail,
        run.wrong(workdir),
        undetected or elsewhere or "Traceback" in err,
        taken,
        said[1].strip(),
        save_cut=cut,
        exit_codes=codes(process, again),
        output="".join((*said, out, err)),
    )


def _killed(run, workdir, fault, detail, process) -> Trial:
    """Kills a process and resumes; one that ended by itself before is no trial."""
    process.kill()
    process.communicate()
    if process.returncode != -signal.SIGKILL:
        return Trial(fault, detail, skipped="it ended first", exit_codes=codes(process))
    return _resumed(run, workdir, fault, detail, process)
