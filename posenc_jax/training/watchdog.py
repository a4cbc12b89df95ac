"""A run that hangs says where: the stacks of all threads, after a while without a finished step."""

import faulthandler
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

FIRST = 10  # times the limit until the first step of a leg has finished: it is compiled before


class Watchdog:
    """Writes the stacks of all threads when no step has finished for `seconds`, once a stall; the run goes on.

    They go to stderr and to the end of `path`. A stall is a collective that waits for a process that is
    gone, a file system that does not answer, a feed that has nothing: the stacks tell which.

    Args:
      path: stalls.log. seconds: without a finished step. who: of several processes. clock: in seconds.
    """

    def __init__(
        self, path: Path, seconds: float, who: str, clock: Callable[[], float] = time.monotonic
    ):
        self._path, self._seconds, self._who, self._clock = path, seconds, who, clock
        self._limit, self._step = FIRST * seconds, "its first step"
        self._since, self._told = clock(), False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        self._ended.set()
        self._thread.join()

    def finished(self, step: int) -> None:
        """Says that a step has finished just now."""
        self._since, self._told = self._clock(), False
        self._limit, self._step = self._seconds, f"step {step + 1}"

    def look(self) -> bool:
        """Writes the stacks if the run stalls and this stall was not told yet; returns whether it did."""
        silent = self._clock() - self._since
        if self._told or silent < self._limit:
            return False
        self._told = True
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            stacks = file.read()
        now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        said = f"{now} {self._who}: {self._step} has not finished for {silent:.0f} s; the stacks of all threads:\n{stacks}"
        print(said, file=sys.stderr, flush=True)
        with self._path.open("a") as log:
            log.write(said + "\n")
        return True

    def _watch(self) -> None:
        while not self._ended.wait(min(self._seconds / 4, 5.0)):
            self.look()
