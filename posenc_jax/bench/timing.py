"""Interleaved timing: on a shared machine only candidates of the same round can be compared.

A round runs every candidate once, in an order of its own. The speed of a shared machine drifts; the ratio of
two candidates within a round drifts far less, so a ratio is taken in every round, and the median and
quartiles are those of the ratios.

An accelerator works while the next program is handed to it, and to wait for one that takes microseconds
costs more than it does. So there a candidate runs many times in a row before it is waited for.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

WARM_UPS = 2
BURST = 0.05  # seconds that a burst is to take
LONGEST_BURST = 200  # runs


def interleaved(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
    warm_ups: int = WARM_UPS,
    burst: float | None = None,
) -> dict[str, np.ndarray]:
    """Returns seconds_R of every candidate, of one run: R rounds, each with a burst of every candidate.

    Some runs of each come first and are not counted, so a `jax.jit` has compiled. One more tells how many
    make a burst: as many as take `burst` seconds, 1 to `LONGEST_BURST`. A burst ends when all arrays that
    its last run returned are there, since a device takes programs in order; what earlier runs returned is
    dropped at once, what the last one returned is freed outside of the clock.

    Args:
      candidates: functions of nothing, by name. rounds: R. seed: of the order within the rounds.
      clock: returns seconds. warm_ups: how many runs come first; 0 for candidates that ran already.
      burst: seconds; 0: every burst is one run. None: 0 on CPU, `BURST` elsewhere.

    Raises:
      ValueError: no candidate, or fewer rounds than one.
    """
    if not candidates or rounds < 1:
        raise ValueError(
            f"timing needs a candidate and a round, not {len(candidates)} and {rounds}"
        )
    for run in candidates.values():
        for _ in range(warm_ups):
            jax.block_until_ready(run())
    if burst is None:
        burst = 0.0 if jax.default_backend() == "cpu" else BURST
    counts = dict.fromkeys(candidates, 1)
    if burst:
        for name, run in candidates.items():
            once = _seconds(run, 1, clock)
            counts[name] = int(np.clip(round(burst / max(once, 1e-9)), 1, LONGEST_BURST))
    names = list(candidates)
    seconds = {name: np.zeros(rounds) for name in names}
    for r in range(rounds):
        for i in np.random.default_rng((seed, r)).permutation(len(names)):
            seconds[names[i]][r] = _seconds(candidates[names[i]], counts[names[i]], clock)
    return seconds


def _seconds(run: Callable[[], Any], count: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(count - 1):
        run()
    out = jax.block_until_ready(run())
    seconds = (clock() - start) / count
    del out
    return seconds


def spread(seconds_R: np.ndarray, baseline_R: np.ndarray) -> dict[str, float]:
    """Returns one row's times in ms and its ratio to the baseline, taken round by round.

    Keys: min_ms, q1_ms, median_ms, q3_ms; ratio_q1, ratio (the median), ratio_q3.
    """
    ratio_R = seconds_R / baseline_R
    times = zip(
        ("q1_ms", "median_ms", "q3_ms"), np.quantile(1e3 * seconds_R, (0.25, 0.5, 0.75)), strict=True
    )  # fmt: skip
    ratios = zip(
        ("ratio_q1", "ratio", "ratio_q3"), np.quantile(ratio_R, (0.25, 0.5, 0.75)), strict=True
    )  # fmt: skip
    return (
        {"min_ms": float(1e3 * seconds_R.min())}
        | {name: float(value) for name, value in times}
        | {name: float(value) for name, value in ratios}
    )


class Pace:
    """How a candidate's time grew with length, and which one is not worth waiting for."""

    def __init__(self, patience: float):
        self._patience, self._seen = patience, {}

    def saw(self, name: str, length: int, seconds: float) -> None:
        """Notes what a run took at a length, in ascending order of lengths."""
        self._seen.setdefault(name, []).append((length, seconds))

    def left_out(self, length: int, names: Iterable[str]) -> dict[str, str]:
        """Returns why, by name, for those whose next run would take longer than patience."""
        reasons = {}
        for name in names:
            if name not in self._seen:
                continue
            *before, (last, seconds) = self._seen[name]
            power = 2.0
            if before:
                power = np.log(seconds / before[-1][1]) / np.log(last / before[-1][0])
            expected = seconds * (length / last) ** power
            if expected > self._patience:
                reasons[name] = (
                    f"about {expected:.0f} s a run, longer than patience={self._patience}"
                )
        return reasons
