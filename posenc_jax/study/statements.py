"""Claims about outcomes, and the statements that tests over training seeds make of them."""

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence

import numpy as np

from posenc_jax.study import bootstrap, hypothesis_tests, statistics

DRAWS = 10_000  # of the bootstrap
SIGN_FLIP_SEEDS = 6  # fewer cannot reach 0.05 by a two-sided sign flip

Outcomes = Mapping[tuple[str, str], Mapping[int, float | None]]  # (arm, metric) -> seed -> value


@dataclasses.dataclass(frozen=True)
class Statement:
    """A claim with its values by seed (differences for two arms), its test and its p."""

    clause: str
    words: str
    unit: str
    threshold: float
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    problems: tuple[str, ...]  # planned seeds left out, each with its reason
    test: statistics.OneSided | None  # None: fewer than two seeds, or a check
    p: float  # of the claim; 1 where it could not be tested
    p_refuted: float  # of its opposite
    check: str = ""  # as in a claim, or "count": of seeds
    note: str = ""
    arms: tuple[tuple[float, ...], ...] = ((), ())  # values of two arms; empty for one
    names: tuple[str, ...] = ()  # of its arms
    metric: str = ""
    instances: tuple[bootstrap.Sample, ...] = ()  # by seed; (): the bootstrap draws seeds alone
    unknown: str = ""  # why there are no instances
    agreed: bool = False  # p and p_refuted are the largest of t, sign flip and failing seeds
    p_failing: float | None = None  # of failing seeds; None: not asked for
    contradiction: str = ""  # counts of seeds that contradict the claim, in words; it cannot hold
    identical: bool = False  # all seeds have one value: the test is refused
    counts: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)  # arm: k of n
    said: str = ""  # the counts in words

    @property
    def iqm(self) -> float | None:
        """Interquartile mean of the values; None without a test."""
        return None if self.test is None else statistics.iqm(self.values)

    @property
    def ahead(self) -> float | None:
        """Share of pairs of runs in which the first arm has the higher value; None for one arm."""
        return statistics.probability_of_improvement(*self.arms) if self.arms[0] else None

    def bootstrap(self, alpha: float) -> tuple[float, float] | None:
        """Percentile interval of the mean over seeds and known instances; None without a test."""
        if self.test is None:
            return None
        return bootstrap.percentile_interval(self._means_X, 1 - 2 * alpha)

    @functools.cached_property
    def _means_X(self) -> np.ndarray:
        seeds = self.instances or tuple(map(bootstrap.constant_sample, self.values))
        return bootstrap.bootstrap_means(seeds, draws=DRAWS, seed=0)

    @property
    def drawn(self) -> tuple[str, ...]:
        """The levels that the bootstrap resamples; none without a test."""
        if self.test is None:
            return ()
        return ("seeds", "instances") if self.instances else ("seeds",)

    @property
    def sign_flip(self) -> float | None:
        """Exact one-sided sign-flip p; None without a test."""
        if self.test is None:
            return None
        return statistics.sign_flip(self.values, threshold=self.threshold, two_sided=False)

    def detectable(self, alpha: float) -> float | None:
        """Distance of a true mean from the threshold for a power of 80 %; None without a test."""
        if self.test is None:
            return None
        effect = statistics.detectable_effect(self.test.n, alpha=alpha, two_sided=False)
        by_spread = effect * self.test.deviation
        if self.p_failing is None:
            return by_spread
        # With no failing seed the limit of the failing share is 1 - alpha^(1/n); see
        # hypothesis_tests.failing_seeds.
        best = max(self.arms[0] or self.values)
        return max(by_spread, best * (1 - alpha ** (1 / self.test.n)))

    def sentence(self, alpha: float) -> str:
        """Estimate, interval, p, n and detectable effect in words; for a check, the values."""
        gaps = f"; left out: {'; '.join(self.problems)}" if self.problems else ""
        note = f" ({self.note})" if self.note else ""
        said = f"{self.clause}: {self.words}{note}: "
        if self.check == "count":
            return f"{said}{self.said}{gaps}"
        if self.check and self.values:
            failed = [
                f"seed {s} has {v:.3g}"
                for s, v in _failures(self.check, self.threshold, self.seeds, self.values)
            ]
            state = f"fails: {', '.join(failed)}" if failed else "passes"
            extreme = "" if failed else f", values {min(self.values):.3g} to {max(self.values):.3g}"
            return (
                f"{said}{state} (checked, not estimated; {len(self.values)} seeds{extreme}){gaps}"
            )
        if self.test is None:
            return f"{said}not tested ({'; '.join(self.problems) or 'no rows'})"
        t = self.test
        p_t = t.p_above if self.agreed else self.p
        few = (
            f", two-sided never below 0.05 under {SIGN_FLIP_SEEDS} seeds"
            if t.n < SIGN_FLIP_SEEDS
            else ""
        )
        failing = "" if self.p_failing is None else f", {p_words(self.p_failing)} (failing seeds)"
        contradiction = f"; {self.contradiction}" if self.contradiction else ""
        low, high = self.bootstrap(alpha) or (float("nan"), float("nan"))
        drawn = "seeds and instances" if self.instances else "seeds alone"
        unknown = f"; seeds alone because {self.unknown}" if self.unknown else ""
        ahead = (
            ""
            if self.ahead is None
            else f", first arm higher in {100 * self.ahead:.0f} % of pairs of runs"
        )
        return (
            f"{said}{t.mean:+.4f} {self.unit}, {100 * (1 - 2 * alpha):.0f} % interval {t.low:+.4f} "
            f"to {t.high:+.4f} (bootstrap over {drawn} {low:+.4f} to {high:+.4f}; IQM "
            f"{self.iqm:+.4f}{ahead}), against {self.threshold:+.4f}; p {p_words(p_t)} (t), "
            f"{p_words(self.sign_flip)} (sign flip{few}){failing}, n {t.n} seeds, detectable from "
            f"{self.detectable(alpha):.4f} past it{contradiction}{unknown}{gaps}"
        )


def p_words(p: float | None) -> str:
    """Returns a p value with four digits, never as zero; None: not tested."""
    if p is None:
        return "not tested"
    return f"{p:.4f}" if p >= 0.0001 else "below 0.0001"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A statement before it is tested: the mean of a metric over seeds exceeds a threshold.

    Attributes:
      arms: one arm, or two whose difference (first less second) is meant. unit: "" for a check.
      check: "at most", "equal" or "above" compares the value of every seed with the threshold; no
        mean is tested then. "": the mean is tested.
    """

    clause: str
    words: str
    arms: tuple[str, ...]
    metric: str
    unit: str
    threshold: float
    check: str = ""


def tested(claim: Claim, outcomes: Outcomes, seeds: Sequence[int], alpha: float) -> Statement:
    """Returns the statement of a claim, from planned seeds in which all arms have a value."""
    values = [
        {s: outcomes.get((arm, claim.metric), {}).get(s) for s in seeds} for arm in claim.arms
    ]
    of = f"{claim.metric} of {' and '.join(claim.arms)}"
    arms: tuple[tuple[float, ...], ...] = ((), ())
    if len(values) == 2:
        paired = statistics.pair(*values)
        problems = [f"{of}, {line}" for line in paired.excluded]
        arms = tuple(tuple(x for s in paired.seeds if (x := v[s]) is not None) for v in values)
    else:
        paired = statistics.pair(values[0], dict.fromkeys(seeds, 0.0))
        problems = [f"{of}, {line.split(':')[0]}: no finite value" for line in paired.excluded]
    differences, test, identical = paired.differences, None, False
    p = p_refuted = 1.0
    if claim.check:
        failed = bool(_failures(claim.check, claim.threshold, paired.seeds, differences))
        p, p_refuted = float(failed or not differences), float(not failed)
    elif len(differences) < 2:
        problems.append(f"{claim.words}: fewer than two seeds")
    elif identical := statistics.identical(differences):
        problems.append(
            f"{claim.words}: refused, all {len(differences)} seeds have the same value "
            f"{differences[0]:g}"
        )
    else:
        test = statistics.against(differences, claim.threshold, alpha)
        p, p_refuted = test.p_above, test.p_below
    return Statement(
        claim.clause,
        claim.words,
        claim.unit,
        claim.threshold,
        paired.seeds,
        differences,
        tuple(problems),
        test,
        p,
        p_refuted,
        claim.check,
        arms=arms,
        names=claim.arms,
        metric=claim.metric,
        identical=identical,
    )


def agreed(s: Statement, *, ahead: bool, behind: bool) -> Statement:
    """Returns the statement with the largest p of three tests: t, exact sign flip and failing
    seeds.

    Args:
      ahead: whether p includes the test of failing seeds of the first arm.
      behind: whether p_refuted includes that of the second arm, where there is one.
    """
    if s.test is None:
        return s
    values_1P, first_1P = np.array([s.values]), np.array([s.arms[0] or s.values])
    flips = [float(p_1[0]) for p_1 in hypothesis_tests.sign_flips(values_1P, s.threshold)]
    true, false = [s.test.p_above, flips[0]], [s.test.p_below, flips[1]]
    if ahead:
        true.append(float(hypothesis_tests.failing_seeds(values_1P, first_1P, s.threshold)[0]))
    if behind and s.arms[0]:
        second_1P = np.array([s.arms[1]])
        false.append(float(hypothesis_tests.failing_seeds(-values_1P, second_1P, -s.threshold)[0]))
    return dataclasses.replace(
        s, p=max(true), p_refuted=max(false), p_failing=true[2] if ahead else None, agreed=True
    )


def either(a: Statement, b: Statement) -> Statement:
    """Returns the statement with the smaller p of two, of which one suffices; p is doubled
    (Bonferroni).

    A statement with every planned seed is preferred to one without. It is refuted only if both are.
    """
    chosen, other = sorted((a, b), key=lambda s: (len(s.problems) > 0, s.p))
    lacks = f"; {other.words} left out: {'; '.join(other.problems)}" if other.problems else ""
    return dataclasses.replace(
        chosen,
        words=f"{a.words} or {b.words}",
        note=f"here {chosen.words}, its p doubled{lacks}",
        p=min(1.0, 2 * chosen.p),
        p_refuted=max(a.p_refuted, b.p_refuted),
    )


def with_instances(
    s: Statement, samples: Mapping[tuple[str, str], Mapping[int, bootstrap.Sample | str]]
) -> Statement:
    """Returns the statement with the instances of every seed, paired over its arms, or the reason
    why not.

    Args:
      samples: by arm and metric, by seed: the instances, or why they are unknown.
    """
    if s.test is None:
        return s
    instances = []
    for name in s.names:
        if (name, s.metric) not in samples:
            return dataclasses.replace(s, unknown=f"no arrays of {name} are read")
    for seed in s.seeds:
        parts: list[bootstrap.Sample] = []
        for name in s.names:
            part = samples[name, s.metric][seed]
            if isinstance(part, str):
                return dataclasses.replace(s, unknown=f"of {name}, seed {seed}, {part}")
            parts.append(part)
        sample = parts[0] if len(parts) == 1 else bootstrap.paired_difference(*parts)
        if sample is None:
            return dataclasses.replace(
                s, unknown=f"seed {seed} of {' and '.join(s.names)} was scored on other instances"
            )
        instances.append(sample)
    return dataclasses.replace(s, instances=tuple(instances))


def p_of_all(statements: Sequence[Statement]) -> float:
    """Returns the p of all statements together: the largest (intersection-union, Berger 1982)."""
    return max(s.p for s in statements)


def _failures(
    check: str, threshold: float, seeds: Sequence[int], values: Sequence[float]
) -> list[tuple[int, float]]:
    """Seed and value of every failure of a check."""
    fails = {"at most": operator.gt, "equal": operator.ne, "above": operator.le}[check]
    return [(s, v) for s, v in zip(seeds, values, strict=True) if fails(v, threshold)]
