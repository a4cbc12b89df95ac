"""Statistics over training seeds: t test, power, Holm, interquartile mean, probability of
improvement.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, special

from posenc_jax.study import hypothesis_tests


@dataclasses.dataclass(frozen=True)
class Paired:
    """Differences a - b seed by seed, and a sentence for every seed that could not be paired."""

    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    excluded: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class OneSided:
    """A mean tested against a threshold: p_above is of mean > threshold, p_below of mean <
    threshold.

    low and high are the one-sided limits at alpha; together they are a (1 - 2 alpha) interval.
    """

    mean: float
    deviation: float
    n: int
    low: float
    high: float
    p_above: float
    p_below: float


def pair(a: Mapping[int, float | None], b: Mapping[int, float | None]) -> Paired:
    """Pairs two arms by seed; a seed enters only if both arms have a finite value for it."""
    seeds, differences, excluded = [], [], []
    for seed in sorted({*a, *b}):
        first, second = a.get(seed), b.get(seed)
        missing = [side for side, v in (("first", first), ("second", second)) if not _finite(v)]
        if missing or first is None or second is None:
            excluded.append(f"seed {seed}: no finite value in the {' and the '.join(missing)} arm")
        else:
            seeds.append(seed)
            differences.append(float(first) - float(second))
    return Paired(tuple(seeds), tuple(differences), tuple(excluded))


def against(values: Sequence[float], threshold: float, alpha: float) -> OneSided:
    """Tests a mean against a threshold by Student's t (paired t where values are differences).

    Raises:
      ValueError: fewer than two values, one that is not finite, or values that are all the same:
        they have no spread to test against, and seeds that agree in every digit are likely copies.
    """
    n = len(values)
    if n < 2:
        raise ValueError(f"a test over seeds needs at least 2 values, not {n}")
    if not all(map(math.isfinite, values)):
        raise ValueError("a test got a value that is not finite; pair the seeds first")
    mean = math.fsum(values) / n  # plain floats: an array this short costs ten times as much
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in values) / (n - 1))
    if identical(values):
        raise ValueError(
            f"all {n} seeds have the same value, {mean:g}; a test needs seeds that differ"
        )
    error = deviation / math.sqrt(n)
    t = (mean - threshold) / error
    half = _t_limit(n - 1, alpha) * error
    p_above, p_below = float(special.stdtr(n - 1, -t)), float(special.stdtr(n - 1, t))
    return OneSided(mean, deviation, n, mean - half, mean + half, p_above, p_below)


def identical(values: Sequence[float]) -> bool:
    """Returns whether all values are the same, but for rounding."""
    return max(values) - min(values) <= 1e-12 * max(1.0, *map(abs, values))


def sign_flip(differences: Sequence[float], *, threshold: float = 0.0, two_sided: bool) -> float:
    """Returns the exact sign-flip p of mean > threshold (or, two-sided, != threshold).

    All 2^n sign patterns count, the observed one among them, so p >= 2^-n (2^(1-n) two-sided): with
    fewer than 6 seeds the two-sided p cannot reach 0.05. Source: Fisher 1935, sec. 21.

    Raises:
      ValueError: no value, one that is not finite, or more than 20 values (2^20 patterns).
    """
    above_1, below_1 = hypothesis_tests.sign_flips(_checked(differences)[None], threshold)
    # Patterns come in pairs of opposite sums.
    return min(1.0, 2 * float(min(above_1[0], below_1[0]))) if two_sided else float(above_1[0])


def iqm(values: Sequence[float]) -> float:
    """Returns the interquartile mean: a quarter of the values trimmed from each end.

    floor(n/4) values go from each end, as scipy.stats.trim_mean and rliable do (Agarwal et al.
    2021).
    """
    values_P = np.sort(_checked(values))
    cut = len(values_P) // 4
    return float(values_P[cut : len(values_P) - cut].mean())


def probability_of_improvement(a: Sequence[float], b: Sequence[float]) -> float:
    """Returns P(A > B) + P(A = B) / 2 over all pairs of runs (Agarwal et al. 2021, sec. 4.3)."""
    a_P, b_Q = _checked(a), _checked(b)
    return float((0.5 * (np.sign(a_P[:, None] - b_Q[None]) + 1)).mean())


def power(n: int, effect: float, *, alpha: float, two_sided: bool) -> float:
    """Returns the power of a paired t test, effect in SDs of seed differences (noncentral t).

    P(T > t) = E[Phi(shift - t sqrt(V / (n - 1)))], V chi-squared: integrated over V's quantiles,
    because scipy.special.nctdtr is nan where the shift is large.
    """
    deviation_X, weights_X = _deviations(n)
    shift, limit = effect * math.sqrt(n), _t_limit(n - 1, alpha / (1 + two_sided))
    upper = float(special.ndtr(shift - limit * deviation_X) @ weights_X) / 2
    lower = float(special.ndtr(-limit * deviation_X - shift) @ weights_X) / 2
    return upper + lower if two_sided else upper


WANTED_POWER = 0.8  # of a detectable effect


@functools.cache
def detectable_effect(n: int, *, alpha: float = 0.05, two_sided: bool = True) -> float:
    """Returns the smallest effect, in SDs, with a power of 80 %; ValueError for n < 2."""
    if n < 2:
        raise ValueError(f"a detectable effect needs at least 2 seeds, not {n}")

    def beyond(effect: float) -> float:
        return power(n, effect, alpha=alpha, two_sided=two_sided) - WANTED_POWER

    return float(optimize.brentq(beyond, 0.0, 100.0))


def holm(p: Sequence[float]) -> list[float]:
    """Returns Holm's adjusted p values, in the order given (Holm 1979)."""
    adjusted, running = [0.0] * len(p), 0.0
    for rank, index in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        running = max(running, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = running
    return adjusted


@functools.cache
def _t_limit(freedom: int, alpha: float) -> float:
    return -float(special.stdtrit(freedom, alpha))


@functools.cache
def _deviations(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of the sample deviation of n standard normals, and their weights."""
    nodes_X, weights_X = np.polynomial.legendre.leggauss(400)
    return np.sqrt(special.gammaincinv((n - 1) / 2, (nodes_X + 1) / 2) * 2 / (n - 1)), weights_X


def _finite(value: Any) -> bool:
    number = isinstance(value, int | float | np.integer | np.floating)
    return number and not isinstance(value, bool) and math.isfinite(value)


def _checked(values: Sequence[float]) -> np.ndarray:
    values_P = np.asarray(values, np.float64)
    if values_P.ndim != 1 or not len(values_P):
        raise ValueError(f"a statistic over seeds needs at least 1 value, not {values_P.size}")
    if not np.isfinite(values_P).all():
        raise ValueError("a statistic got a value that is not finite; pair the seeds first")
    return values_P
