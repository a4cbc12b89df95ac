"""Pareto fronts and hypervolumes against oracles in plain loops."""

import itertools

import numpy as np
import pytest
from posenc_jax.study.pareto import front, hypervolume, standings


def oracle_front(points):
    """Indices that nobody dominates, by the definition."""
    kept = []
    for i, (x, y) in enumerate(points):
        dominated = False
        for a, b in points:
            if a <= x and b >= y and (a < x or b > y):
                dominated = True
        if not dominated:
            kept.append(i)
    return sorted(kept, key=lambda i: points[i])


def oracle_volume(points, reference):
    """Counts the unit cells that some point dominates; all coordinates are whole numbers."""
    cells = 0
    low = min([x for x, _ in points] + [reference[0]])
    high = max([y for _, y in points] + [reference[1]])
    for x, y in itertools.product(range(low, reference[0]), range(reference[1], high)):
        cells += any(a <= x and b >= y + 1 for a, b in points)
    return cells


def test_the_front_is_what_nobody_dominates():
    random = np.random.default_rng(0)
    for _ in range(50):
        points = [tuple(map(int, p)) for p in random.integers(0, 6, (8, 2))]
        assert front(points) == oracle_front(points)
    assert front([(1, 1), (1, 1), (2, 1)]) == [0, 1]


def test_the_hypervolume_counts_the_dominated_area_once():
    random = np.random.default_rng(1)
    for _ in range(50):
        points = [tuple(map(int, p)) for p in random.integers(0, 12, (6, 2))]
        assert hypervolume(points, (8, 3)) == oracle_volume(points, (8, 3))
    assert hypervolume([], (1.0, 0.0)) == 0.0
    assert hypervolume([(2.0, 0.5)], (1.0, 0.0)) == 0.0  # worse than the reference


def test_an_arm_that_wins_both_axes_at_every_seed_is_always_on_the_front_alone():
    clouds = {
        "a": {0: (2.0, 0.9), 1: (2.1, 0.8)},
        "b": {0: (2.5, 0.5), 1: (2.6, 0.4)},
        "c": {0: (2.3, 0.1), 1: (2.4, 0.2)},
    }
    a, b, c = standings(clouds, (3.0, 0.0), draws=300, seed=0)
    assert (a.on_front, a.front_share, b.on_front, b.front_share) == (True, 1.0, False, 0.0)
    assert a.volume == pytest.approx((3 - 2.05) * 0.85)
    assert a.low == pytest.approx((3 - 2.1) * 0.8)
    assert a.high == pytest.approx((3 - 2.0) * 0.9)
    assert a.contribution == pytest.approx(a.volume - hypervolume([b.mean, c.mean], (3.0, 0.0)))
    assert b.contribution == pytest.approx(0.0)


def test_arms_are_resampled_together_because_seeds_are_paired():
    # b is better than a by a hair at every seed, and seeds differ by far more than that.
    clouds = {
        "a": {s: (float(s), 0.5) for s in range(5)},
        "b": {s: (s - 1e-6, 0.5) for s in range(5)},
    }
    a, b = standings(clouds, (9.0, 0.0), draws=400, seed=0)
    assert (a.front_share, b.front_share) == (0.0, 1.0)


def test_clouds_with_different_seeds_are_refused():
    with pytest.raises(ValueError, match="the same seeds"):
        standings({"a": {0: (1, 1)}, "b": {1: (1, 1)}}, (2, 0), draws=9, seed=0)
    with pytest.raises(ValueError, match="not finite"):
        standings({"a": {0: (1, float("nan"))}}, (2, 0), draws=9, seed=0)
