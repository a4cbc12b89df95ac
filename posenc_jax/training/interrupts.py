"""Signals: prints a line at the first one, and ends the process at a second Ctrl-C.

Python runs a signal handler between two instructions of the main thread, and one call of the
compiler is one instruction. The C part of the handler writes the number of the signal to a pipe,
which a thread reads.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable

from posenc_jax.results.schema import INTERRUPTED

AT_ONCE = "ended at once; run the same command to go on from what is saved"


class RaiseOnce:
    """A signal handler that raises an error at the first signal and does nothing at later ones.

    Args:
      error: returns the error for the name of the signal.
    """

    def __init__(self, error: Callable[[str], BaseException]):
        self._error, self._raised = error, False

    def __call__(self, number: int, frame) -> None:
        if not self._raised:
            self._raised = True
            raise self._error(signal.Signals(number).name)


class SignalNotice:
    """Prints a line when a signal arrives in a `with` block; a Ctrl-C after another signal ends the
    process.

    The block must be in the main thread, and the signals need handlers of Python.

    Args:
      doing: what follows the first signal, such as "saving". before_end: called before the process
        ends at once, with exit code INTERRUPTED and without any other cleanup.
    """

    def __init__(self, doing: str, before_end: Callable[[], None] = lambda: None):
        self._doing, self._before_end = doing, before_end

    def __enter__(self) -> "SignalNotice":
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._outer = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc) -> None:
        signal.set_wakeup_fd(self._outer, warn_on_full_buffer=False)
        os.close(self._writing)
        self._thread.join()
        os.close(self._reading)

    def _listen(self) -> None:
        several = False
        while number := os.read(self._reading, 1):
            name = signal.Signals(number[0])
            if name not in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                continue
            if several and name == signal.SIGINT:
                with contextlib.suppress(Exception):
                    self._before_end()
                print(AT_ONCE, file=sys.stderr, flush=True)
                os._exit(INTERRUPTED)
            if not several:
                again = "; press again to end at once" if name == signal.SIGINT else ""
                cause = "" if name == signal.SIGINT else f"{name.name}: "
                print(f"{cause}{self._doing}{again}", file=sys.stderr, flush=True)
            several = True
