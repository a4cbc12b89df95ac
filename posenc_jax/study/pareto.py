"""Pareto front of two outcomes and its hypervolume; x is better when lower, y when higher.

Here x is bits per byte beyond the training length (Y_E), y retrieval accuracy (Y_R).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

Point = tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Standing:
    """The place of one arm on the front.

    Attributes:
      mean: over seeds. on_front: whether the mean of no other arm dominates it. front_share: share
        of bootstrap draws over seeds in which it is on the front. volume: hypervolume of its mean
        alone.
        low, high: 95 % interval of `volume`. contribution: hypervolume of all means less that of
        the other means.
    """

    arm: str
    mean: Point
    seeds: int
    on_front: bool
    front_share: float
    volume: float
    low: float
    high: float
    contribution: float


def front(points: Sequence[Point]) -> list[int]:
    """Returns the indices of the points that no other dominates, in order of x.

    A point dominates another if it is no worse on both and better on one; equal points both stay.
    """
    return sorted(
        (i for i, on in enumerate(_on_front(_array(points))) if on), key=lambda i: points[i]
    )


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Returns the area that the points dominate, up to the reference (Zitzler and Thiele 1998).

    Args:
      points: (x, y). reference: largest x and smallest y that count; a point beyond it adds
        nothing.
    """
    area, best = 0.0, reference[1]
    for x, y in sorted(map(tuple, _array(points)), key=lambda p: (p[0], -p[1])):
        if x < reference[0] and y > best:
            area += (reference[0] - x) * (y - best)
            best = y
    return area


def standings(
    clouds: Mapping[str, Mapping[int, Point]], reference: Point, *, draws: int, seed: int
) -> list[Standing]:
    """Returns the standing of every arm; arms are paired by training seed.

    Each draw resamples the seeds once for all arms, as a function of `seed` alone.

    Args:
      clouds: (x, y) by arm and training seed.

    Raises:
      ValueError: no arm, arms with different seeds, or a value that is not finite.
    """
    seeds = {tuple(sorted(cloud)) for cloud in clouds.values()}
    if len(seeds) != 1 or not next(iter(seeds)):
        raise ValueError("a front over seeds needs the same seeds, at least one, for every arm")
    order = next(iter(seeds))
    cloud_APX = np.stack([_array([cloud[s] for s in order]) for cloud in clouds.values()])
    means = [(float(x), float(y)) for x, y in cloud_APX.mean(1)]
    drawn = np.random.Generator(np.random.Philox(seed)).integers(
        len(order), size=(draws, len(order))
    )
    mean_RAX = cloud_APX[:, drawn].mean(2).transpose(1, 0, 2)
    on_RA = np.stack([_on_front(mean_AX) for mean_AX in mean_RAX])
    volume_RA = np.maximum(reference[0] - mean_RAX[..., 0], 0) * np.maximum(
        mean_RAX[..., 1] - reference[1], 0
    )
    low_A, high_A = np.quantile(volume_RA, (0.025, 0.975), axis=0)
    whole, best = hypervolume(means, reference), front(means)
    return [
        Standing(
            arm,
            means[i],
            len(order),
            i in best,
            float(on_RA[:, i].mean()),
            hypervolume([means[i]], reference),
            float(low_A[i]),
            float(high_A[i]),
            whole - hypervolume(means[:i] + means[i + 1 :], reference),
        )
        for i, arm in enumerate(clouds)
    ]


def _on_front(point_AX: np.ndarray) -> np.ndarray:
    x_A, y_A = point_AX[:, 0], point_AX[:, 1]
    no_worse_AB = (x_A[:, None] <= x_A) & (y_A[:, None] >= y_A)
    better_AB = (x_A[:, None] < x_A) | (y_A[:, None] > y_A)
    return np.logical_not((no_worse_AB & better_AB).any(0))


def _array(points: Sequence[Point]) -> np.ndarray:
    point_PX = np.asarray(points, np.float64).reshape(-1, 2)
    if not np.isfinite(point_PX).all():
        raise ValueError("a Pareto front got a value that is not finite")
    return point_PX
