"""Counts of seeds for rule 2: seeds that acquire recall, that reach, and that learn offset
lookup.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from posenc_jax.results.schema import ACQUIRED, REACHES
from posenc_jax.study import hypothesis_tests
from posenc_jax.study.decision import NOT_ASSESSABLE
from posenc_jax.study.statements import Outcomes

ASSAY = 10 / 12  # share of pilot seeds in which R, A and H must acquire
LOOKUP = 11 / 12  # share of seeds in which R must learn offset lookup
ACQUIRE, REACH = ("least_id", ACQUIRED), ("Y_R_far", REACHES)

Count = tuple[int, int]  # seeds that pass, seeds that have a value


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counts of seeds in the runs of the assay and of offset lookup.

    Attributes:
      assay: seeds that acquire, by arm. assay_words: which seeds were read.
      lookup: seeds that learn offset lookup, by arm; empty without such runs.
    """

    assay: Mapping[str, Count]
    assay_words: str
    lookup: Mapping[str, Count]


def reaching(outcomes: Outcomes, arm: str, seeds: Sequence[int]) -> Count:
    """Returns in how many seeds Y_R_far at 4L is at least 0.8, of those that have a value."""
    return passing(outcomes, arm, seeds, *REACH)


def acquiring(outcomes: Outcomes, arm: str, seeds: Sequence[int]) -> Count:
    """Returns in how many seeds every task of Y_R is learnt at L, of those that have a value."""
    return passing(outcomes, arm, seeds, *ACQUIRE)


def passing(outcomes: Outcomes, arm: str, seeds: Sequence[int], metric: str, bar: float) -> Count:
    """Returns in how many seeds the metric is at least the bar, of those that have a value."""
    values = [v for s in seeds if (v := outcomes.get((arm, metric), {}).get(s)) is not None]
    values = [v for v in values if math.isfinite(v)]
    return sum(v >= bar for v in values), len(values)


def assay_passes(counts: Mapping[str, Count], arms: Sequence[str]) -> bool | None:
    """Returns whether every arm acquires in at least 10/12 of its pilot seeds; None: not known."""
    if any(counts.get(arm, (0, 0))[1] == 0 for arm in arms):
        return None
    return all(k >= required_count(ASSAY, n) for k, n in (counts[arm] for arm in arms))


def required_count(share: float, n: int) -> int:
    """Returns the share of n seeds as a number of seeds, rounded up."""
    return math.ceil(share * n - 1e-9)


def lookup_state(hybrid: Count, rope: Count) -> tuple[float, float, str]:
    """Returns p, p_refuted and the forced state of "as many seeds learn offset lookup as with
    RoPE".

    It holds where the hybrid's share is not below RoPE's, is refuted where Fisher's test says that
    it is below, and is open otherwise. It is not assessable where RoPE learns it in fewer than 11
    of 12 seeds.
    """
    (k, n), (k_rope, n_rope) = hybrid, rope
    if not n or not n_rope or k_rope < required_count(LOOKUP, n_rope):
        return 1.0, 1.0, NOT_ASSESSABLE
    return float(k * n_rope < k_rope * n), hypothesis_tests.fisher_fewer(k, k_rope, n, n_rope), ""


def contradicted(hybrid: Count, other: Count, alpha: float) -> tuple[bool, bool]:
    """Returns whether Fisher's test contradicts "more seeds of the hybrid pass", and "fewer"."""
    if not hybrid[1] or not other[1]:
        return False, False
    (k, n), (k_other, n_other) = hybrid, other
    fewer = hypothesis_tests.fisher_fewer(k, k_other, n, n_other)
    more = hypothesis_tests.fisher_fewer(k_other, k, n_other, n)
    return fewer <= alpha, more <= alpha
