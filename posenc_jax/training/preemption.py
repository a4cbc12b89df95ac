"""SIGTERM and Ctrl-C as a request to stop: at once for one process, at an agreed step for several.

Several processes agree through the preemption service of JAX's coordinator: whoever is told first makes
all of them stop at the first step that none has passed. It costs a look at a local flag per step; a
flag in every step's all-reduce would cost a collective. Under the service SIGTERM does nothing by
itself, so the loop must ask at every step, and does.
"""

import os
import signal

import jax
from jax.experimental import multihost_utils


class PreemptionRequest:
    """Hears SIGTERM and the first Ctrl-C while the `with` block runs; a second Ctrl-C ends the process."""

    def __enter__(self) -> "PreemptionRequest":
        self._told = ""
        self._several = jax.process_count() > 1
        # Of several processes JAX's service hears SIGTERM, by a handler of its own.
        heard = (signal.SIGINT,) if self._several else (signal.SIGTERM, signal.SIGINT)
        self._before = {s: signal.signal(s, self._hear) for s in heard}
        return self

    def at(self, step: int) -> str:
        """Returns what asked to stop after `step` finished steps; empty to go on."""
        if self._several and multihost_utils.reached_preemption_sync_point(step):
            return "SIGTERM to one of the processes"
        return "" if self._several else self._told

    def _hear(self, number, frame) -> None:
        if self._told and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._told = signal.Signals(number).name
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, *exc) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
