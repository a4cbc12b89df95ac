"""Interleaved timing: every round runs all candidates in a random order, and ratios are taken
within a round.

The speed of a shared machine drifts; the ratio of two candidates within a round drifts far less.
Medians and quartiles are taken over the ratios.

An accelerator runs asynchronously, and waiting for a program of microseconds takes longer than the
program. There, a candidate runs many times (a burst) before the host waits for it.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar

import jax
import numpy as np

WARM_UPS = 2
BURST = 0.05  # seconds of a burst
LONGEST_BURST = 200  # runs of a burst


Name = TypeVar("Name", bound=Hashable)


def interleaved(
    candidates: Mapping[Name, Callable[[], Any]],
    *,
    rounds: int,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
    warm_ups: int = WARM_UPS,
    burst: float | None = None,
) -> dict[Name, np.ndarray]:
    """Returns the seconds of one run of every candidate in each of R rounds, seconds_R by name.

    Warm-up runs come first and are not counted, so that `jax.jit` has compiled. One more run sets
    the number of runs of a burst so that it takes `burst` seconds, 1 to `LONGEST_BURST`. A burst
    ends when the results of its last run are ready, since a device runs programs in order. Results
    of earlier runs are dropped at once; those of the last run are freed after the time is taken.

    Args:
      candidates: functions without arguments, by name. rounds: R. seed: of the order within the
        rounds.
      clock: returns seconds. warm_ups: number of warm-up runs; 0 for candidates that have run.
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
    """Returns the times of a row in ms and its ratios to the baseline, taken round by round.

    Keys: min_ms, q1_ms, median_ms, q3_ms; ratio_q1, ratio (the median), ratio_q3.
    """
    ratio_R = seconds_R / baseline_R
    names = ("q1_ms", "median_ms", "q3_ms", "ratio_q1", "ratio", "ratio_q3")
    values = np.quantile([1e3 * seconds_R, ratio_R], (0.25, 0.5, 0.75), axis=1).T.ravel().tolist()
    return {"min_ms": float(1e3 * seconds_R.min())} | dict(zip(names, values, strict=True))


class Pace:
    """Extrapolates the time of candidates with length, to leave out the slow ones."""

    def __init__(self, patience: float):
        self._patience, self._seen = patience, {}

    def record(self, name: str, length: int, seconds: float) -> None:
        """Records the time of a run at a length; lengths must ascend."""
        self._seen.setdefault(name, []).append((length, seconds))

    def left_out(self, length: int, names: Iterable[str]) -> dict[str, str]:
        """Returns, by name, why candidates whose next run exceeds `patience` are left out."""
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
