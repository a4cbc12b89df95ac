"""Interleaved timing: on a shared machine only candidates of the same round can be compared.

A round runs every candidate once, in an order of its own. The machine's speed drifts by a factor of two
within minutes; the ratio of two candidates within a round drifts far less, so a ratio is taken in every
round, and the median and quartiles are those of the ratios.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

WARM_UPS = 2


def interleaved(
    candidates: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
    warm_ups: int = WARM_UPS,
) -> dict[str, np.ndarray]:
    """Returns seconds_R of every candidate: R rounds, each with every candidate once.

    Some runs of each come first and are not counted, so a `jax.jit` has compiled. A run ends when all
    arrays it returned are there; what it returned is freed outside of the clock.

    Args:
      candidates: functions of nothing, by name. rounds: R. seed: of the order within the rounds.
      clock: returns seconds. warm_ups: how many runs come first; 0 for candidates that ran already.

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
    names = list(candidates)
    seconds = {name: np.zeros(rounds) for name in names}
    for r in range(rounds):
        for i in np.random.default_rng((seed, r)).permutation(len(names)):
            run = candidates[names[i]]
            start = clock()
            out = jax.block_until_ready(run())
            seconds[names[i]][r] = clock() - start
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
