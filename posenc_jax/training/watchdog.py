"""Watchdog of a run: writes the stacks of all threads after a while without a finished step."""

import faulthandler
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

FIRST = 10  # factor on the limit for the first step of a leg, which is compiled


class Watchdog:
    """Writes the stacks of all threads when no step has finished for `seconds`, once per stall.

    They go to stderr and to the end of `path`; the run goes on. The stacks show the cause: a
    collective that waits for a lost process, a file system that does not respond, or an input
    pipeline without data.

    Args:
      path: the file stalls.log. seconds: limit of the time without a finished step. process: name
        of this process in the report. clock: returns seconds.
    """

    def __init__(
        self, path: Path, seconds: float, process: str, clock: Callable[[], float] = time.monotonic
    ):
        self._path, self._seconds, self._process, self._clock = path, seconds, process, clock
        self._limit, self._step = FIRST * seconds, "its first step"
        self._since, self._reported = clock(), False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self._ended.set()
        self._thread.join()

    def finished(self, step: int) -> None:
        """Records that a step has finished now."""
        self._since, self._reported = self._clock(), False
        self._limit, self._step = self._seconds, f"step {step + 1}"

    def check(self) -> bool:
        """Writes the stacks of a new stall; returns whether it wrote any."""
        waited = self._clock() - self._since
        if self._reported or waited < self._limit:
            return False
        self._reported = True
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            stacks = file.read()
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        report = (
            f"{now} {self._process}: {self._step} has not finished for {waited:.0f} s; the stacks "
            f"of all threads:\n{stacks}"
        )
        print(report, file=sys.stderr, flush=True)
        with self._path.open("a") as log:
            log.write(report + "\n")
        return True

    def _watch(self) -> None:
        while not self._ended.wait(min(self._seconds / 4, 5.0)):
            self.check()
