"""Hypothesis tests over training seeds, vectorised over studies: t, sign flip, failing seeds,
counts.

The verdict has one study, the simulation thousands; both call these functions. Dims: X studies, P
seeds.
"""

import functools
import math

import numpy as np
from scipy import special

MOST_SEEDS = 20  # of the exact sign flip
ROWS = 1000  # studies at a time: the sorted sums stay exact to TIE
TIE = 1e-9


def student_t(values_XP: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the one-sided p of mean > threshold and of mean < threshold (Student 1908).

    Both are 1 where all values of a study are the same: there is no spread to test against.
    """
    n = values_XP.shape[1]
    mean_X, deviation_X = values_XP.mean(1), values_XP.std(1, ddof=1)
    same_X = identical(values_XP)
    error_X = np.where(same_X, 1.0, deviation_X) / math.sqrt(n)
    t_X = (mean_X - threshold) / error_X
    above_X, below_X = special.stdtr(n - 1, -t_X), special.stdtr(n - 1, t_X)
    return np.where(same_X, 1.0, above_X), np.where(same_X, 1.0, below_X)


def identical(values_XP: np.ndarray) -> np.ndarray:
    """Returns for each study whether all its values are the same, but for rounding."""
    spread_X = values_XP.max(1) - values_XP.min(1)
    return spread_X <= 1e-12 * np.maximum(1.0, np.abs(values_XP).max(1))


def sign_flips(values_XP: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Returns the exact one-sided sign-flip p of mean > threshold and of mean < threshold (Fisher
    1935, sec. 21).

    All 2^P sign patterns are counted, the observed one too. The seeds are split in two halves; the
    sums of each half are sorted and pairs are counted, so 12 seeds cost 2 x 64 sums a study instead
    of 4,096. Sums closer than 1e-9 of the largest possible sum are ties and count as extreme.
    """
    count, n = values_XP.shape
    if n > MOST_SEEDS:
        raise ValueError(f"the exact sign-flip test takes at most {MOST_SEEDS} seeds, not {n}")
    shifted_XP = values_XP - threshold
    largest_X1 = np.abs(shifted_XP).sum(1, keepdims=True)
    shifted_XP = shifted_XP / np.where(largest_X1 > 0, largest_X1, 1.0)
    above_X, below_X = np.empty(count), np.empty(count)
    first_SP, second_SP = _signs(n // 2), _signs(n - n // 2)
    for start in range(0, count, ROWS):
        part_XP = shifted_XP[start : start + ROWS]
        # Sums are between -1 and 1; shifts of 8 separate the sorted sums of the studies in one
        # array.
        apart_X1 = 8.0 * np.arange(len(part_XP))[:, None]
        sums_XS = np.sort(part_XP[:, n // 2 :] @ second_SP.T, 1) + apart_X1
        left_XS = part_XP.sum(1, keepdims=True) - part_XP[:, : n // 2] @ first_SP.T + apart_X1
        ends_X1 = len(second_SP) * (np.arange(len(part_XP))[:, None] + 1)
        at_least_XS = ends_X1 - np.searchsorted(sums_XS.reshape(-1), left_XS - TIE, "left")
        at_most_XS = np.searchsorted(sums_XS.reshape(-1), left_XS + TIE, "right") - (
            ends_X1 - len(second_SP)
        )
        above_X[start : start + ROWS] = at_least_XS.sum(1) / 2**n
        below_X[start : start + ROWS] = at_most_XS.sum(1) / 2**n
    return above_X, below_X


def failing_seeds(values_XP: np.ndarray, ahead_XP: np.ndarray, threshold: float) -> np.ndarray:
    """Returns the p that too few seeds of the arm ahead fail to bring the mean down to the
    threshold.

    Recall has two peaks: a seed learns it or fails. A failure that happens to none of n seeds is in
    no estimate and in no spread, so the t test misses it. A seed fails if it scores less than half
    of the best seed of its arm. The mean of the values falls to the threshold when a further share
    (mean - threshold) / best of the seeds scores 0. The p is exact and binomial, against a failing
    share that high (Clopper and Pearson 1934): it is at most alpha when the upper limit of the
    failing share is below that share.

    Args:
      values_XP: differences, or the values of one arm. ahead_XP: chance-corrected values of the arm
        that the claim puts ahead; a failing seed scores about 0.
    """
    n = values_XP.shape[1]
    best_X = ahead_XP.max(1)
    fails_X = (ahead_XP < best_X[:, None] / 2).sum(1)
    room_X = (values_XP.mean(1) - threshold) / np.where(best_X > 0, best_X, 1.0)
    share_X = np.clip(fails_X / n + room_X, 0.0, 1.0)
    p_X = special.bdtr(fails_X.astype(np.float64), n, share_X)
    return np.where(best_X > 0, p_X, (room_X <= 0).astype(np.float64))  # the arm recalls nothing


def fisher_fewer(first: int, second: int, n_first: int, n_second: int) -> float:
    """Returns Fisher's one-sided p that first/n_first is smaller; ValueError for wrong counts."""
    _check_count(first, n_first)
    _check_count(second, n_second)
    return _fewer(int(first), int(second), int(n_first), int(n_second))


def clopper_pearson_lower(successes: int, n: int, alpha: float) -> float:
    """Returns a share's one-sided lower limit (Clopper and Pearson 1934); ValueError if n < k."""
    _check_count(successes, n)
    return float(special.betaincinv(successes, n - successes + 1, alpha)) if successes else 0.0


def _check_count(successes: int, n: int) -> None:
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} of {n} seeds is no count")


@functools.cache
def _fewer(first: int, second: int, n_first: int, n_second: int) -> float:
    total = first + second
    ways = math.comb(n_first + n_second, total)
    low = max(0, total - n_second)
    return (
        sum(math.comb(n_first, x) * math.comb(n_second, total - x) for x in range(low, first + 1))
        / ways
    )


@functools.cache
def _signs(n: int) -> np.ndarray:
    return 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
