"""Preemption: SIGTERM, SIGHUP and Ctrl-C ask a run to stop after a step.

One process stops after the step under way. Several processes agree on a step through the preemption
service of JAX's coordinator: the first process that gets the signal makes all stop at the first
step that none has passed. Each step reads one local flag; a flag in an all-reduce would cost a
collective. With the service SIGTERM does not end a process, so the loop must call `at` after every
step.
"""

import os
import signal

import jax
from jax.experimental import multihost_utils

from posenc_jax.training.hosts import release_witness
from posenc_jax.training.interrupts import SignalNotice


class PreemptionRequest:
    """Catches SIGTERM, SIGHUP and Ctrl-C during a `with` block; a second Ctrl-C ends the process.

    A SIGHUP that is ignored, as under nohup, stays ignored.
    """

    def __enter__(self) -> "PreemptionRequest":
        self._received = ""
        self._several = jax.process_count() > 1
        # For several processes JAX's service has its own handler of SIGTERM.
        signals = {signal.SIGINT, signal.SIGHUP} | (set() if self._several else {signal.SIGTERM})
        if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
            signals.remove(signal.SIGHUP)
        self._before = {s: signal.signal(s, self._catch) for s in signals}
        self._notice = SignalNotice("saving", release_witness).__enter__()
        return self

    def at(self, step: int) -> str:
        """Returns the reason to stop after `step` finished steps; empty to go on."""
        if self._several and multihost_utils.reached_preemption_sync_point(step):
            return "SIGTERM to one of the processes"
        return "" if self._several else self._received

    def _catch(self, number, frame) -> None:
        self._received = self._received or signal.Signals(number).name
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, *exc) -> None:
        self._notice.__exit__(*exc)
        for number, handler in self._before.items():
            signal.signal(number, handler)
