"""Nested bootstrap: training seeds and, within each drawn seed, the instances it was scored on."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

CHUNK = 2_000_000  # instances drawn at a time; bounds the memory
FEW = (
    8  # up to so many distinct values of a stratum, their counts are drawn instead of the instances
)


@dataclasses.dataclass(frozen=True, eq=False)
class Stratum:
    """Instances that are resampled together; their value is sum(total) / sum(weight).

    For a mean accuracy, total and weight are right answers and answers of each instance; for bits
    per byte, bits and bytes of each stretch.
    """

    total_I: np.ndarray
    weight_I: np.ndarray

    @property
    def value(self) -> float:
        """Returns sum(total) / sum(weight)."""
        return float(self.total_I.sum() / self.weight_I.sum())


Sample = tuple[Stratum, ...]  # of one seed; its value is the mean over the strata


def sample_value(sample: Sample) -> float:
    """Returns the mean over the strata, with equal weights."""
    return math.fsum(stratum.value for stratum in sample) / len(sample)


def paired_difference(a: Sample, b: Sample) -> Sample | None:
    """Returns a - b instance by instance, so resampled alike; None if instances differ."""
    if len(a) != len(b) or not all(
        np.array_equal(x.weight_I, y.weight_I) for x, y in zip(a, b, strict=True)
    ):
        return None
    return tuple(Stratum(x.total_I - y.total_I, x.weight_I) for x, y in zip(a, b, strict=True))


def constant_sample(number: float) -> Sample:
    """Returns the sample of a seed whose value is known, but not its instances."""
    return (Stratum(np.array([number], np.float64), np.ones(1)),)


def bootstrap_means(seeds: Sequence[Sample], *, draws: int, seed: int) -> np.ndarray:
    """Returns, for each draw, the mean over seeds drawn with replacement, instances drawn within
    each.

    Davison and Hinkley 1997, sec. 3.8. A seed that is drawn twice draws its instances twice;
    every stratum is resampled by itself. Draws are a function of `seed` alone (a Philox counter).

    Raises:
      ValueError: fewer than two seeds, a stratum whose weights are not all positive, or a number
        that is not finite.
    """
    if len(seeds) < 2:
        raise ValueError(f"a bootstrap over seeds needs at least 2 seeds, not {len(seeds)}")
    random = np.random.Generator(np.random.Philox(seed))
    chosen_XP = random.integers(len(seeds), size=(draws, len(seeds)))
    values_XP = np.empty(chosen_XP.shape)
    for index, sample in enumerate(seeds):
        here_XP = chosen_XP == index
        parts = [_drawn(stratum, int(here_XP.sum()), random) for stratum in sample]
        values_XP[here_XP] = np.mean(parts, axis=0)
    return values_XP.mean(1)


def percentile_interval(means_X: np.ndarray, level: float) -> tuple[float, float]:
    """Returns the percentile interval of the draws with coverage `level`."""
    low, high = np.quantile(means_X, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _drawn(stratum: Stratum, count: int, random: np.random.Generator) -> np.ndarray:
    """Returns the values of `count` resamples of the instances of a stratum."""
    total_I, weight_I = stratum.total_I, stratum.weight_I
    if not (len(weight_I) and (weight_I > 0).all() and np.isfinite(total_I).all()):
        raise ValueError("a bootstrap needs instances with a finite total and a weight above 0")
    size, alike = len(total_I), bool((weight_I == weight_I[0]).all())
    if size == 1:
        return np.full(count, total_I[0] / weight_I[0])
    distinct_K, times_K = np.unique(total_I, return_counts=True)
    if alike and len(distinct_K) <= FEW:  # how often each value is drawn is a multinomial count
        return (
            random.multinomial(size, times_K / size, size=count) @ distinct_K / (size * weight_I[0])
        )
    kind = np.uint16 if size <= 2**16 else np.uint64  # uint16 is drawn in half the time
    values_X = np.empty(count)
    step = max(1, CHUNK // size)
    for start in range(0, count, step):
        rows = min(step, count - start)
        picked_XI = random.integers(size, size=(rows, size), dtype=kind)
        weights = size * weight_I[0] if alike else weight_I[picked_XI].sum(1)
        values_X[start : start + rows] = total_I[picked_XI].sum(1) / weights
    return values_X
