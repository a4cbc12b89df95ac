"""Statements over seeds: one tested sentence each, checks that hold in every seed or do not, and counts of seeds."""

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
    """One sentence: values by seed (differences where two arms meet) against a threshold."""

    clause: str
    words: str
    unit: str
    threshold: float
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    problems: tuple[str, ...]  # planned seeds left out, each with its reason
    test: statistics.OneSided | None  # None: fewer than two seeds, or a check
    p: float  # that it is true: 1 where it could not be tested
    p_refuted: float
    check: str = ""  # "at most", "equal", "above": each value to the threshold; "count": of seeds
    note: str = ""
    arms: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())  # of the two, where two meet
    names: tuple[str, ...] = ()  # of the one arm or the two
    metric: str = ""
    instances: tuple[
        bootstrap.Sample, ...
    ] = ()  # of each seed; none: the bootstrap draws seeds alone
    unknown: str = ""  # why there are none
    agreed: bool = False  # p and p_refuted are the largest of t, sign flip and failing seeds
    p_failing: float | None = None  # None: not asked for
    contradiction: str = ""  # of counts of seeds, in words: the statement cannot hold
    identical: bool = False  # all seeds have one value: refused
    counts: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)  # arm: k of n
    said: str = ""  # of a count, what was counted

    @property
    def iqm(self) -> float | None:
        """Interquartile mean of the values, None where nothing was tested."""
        return None if self.test is None else statistics.iqm(self.values)

    @property
    def ahead(self) -> float | None:
        """Share of all pairs of runs in which the first arm's value is the higher one; None for one arm."""
        return statistics.probability_of_improvement(*self.arms) if self.arms[0] else None

    def bootstrap(self, alpha: float) -> tuple[float, float] | None:
        """Percentile interval of the mean over the draws; None where nothing was tested.

        Drawn are seeds and, where they are known, the instances within each drawn seed.
        """
        return (
            None
            if self.test is None
            else bootstrap.percentile_interval(self._means_X, 1 - 2 * alpha)
        )

    @functools.cached_property
    def _means_X(self) -> np.ndarray:
        seeds = self.instances or tuple(map(bootstrap.constant_sample, self.values))
        return bootstrap.bootstrap_means(seeds, draws=DRAWS, seed=0)

    @property
    def drawn(self) -> tuple[str, ...]:
        """The levels that the bootstrap draws, none where nothing was tested."""
        if self.test is None:
            return ()
        return ("seeds", "instances") if self.instances else ("seeds",)

    @property
    def sign_flip(self) -> float | None:
        """Exact one-sided sign-flip p, None where nothing was tested."""
        if self.test is None:
            return None
        return statistics.sign_flip(self.values, threshold=self.threshold, two_sided=False)

    def detectable(self, alpha: float) -> float | None:
        """How far past the threshold a true mean must lie to be found in 80 % of studies."""
        if self.test is None:
            return None
        effect = statistics.detectable_effect(self.test.n, alpha=alpha, two_sided=False)
        found = effect * self.test.deviation
        if self.p_failing is None:
            return found
        # With no failing seed the limit of the failing share is 1 - alpha^(1/n); see evidence.failing.
        best = max(self.arms[0] or self.values)
        return max(found, best * (1 - alpha ** (1 / self.test.n)))

    def sentence(self, alpha: float) -> str:
        """Estimate, interval, p, n and detectable effect, in words; of a check, what every seed had."""
        gaps = f"; left out: {'; '.join(self.problems)}" if self.problems else ""
        note = f" ({self.note})" if self.note else ""
        said = f"{self.clause}: {self.words}{note}: "
        if self.check == "count":
            return f"{said}{self.said}{gaps}"
        if self.check and self.values:
            failed = [f"seed {s} has {v:.3g}" for s, v in self.failed()]
            state = f"fails: {', '.join(failed)}" if failed else "passes"
            extreme = "" if failed else f", values {min(self.values):.3g} to {max(self.values):.3g}"
            return (
                f"{said}{state} (checked, not estimated; {len(self.values)} seeds{extreme}){gaps}"
            )
        if self.test is None:
            return f"{said}not tested ({'; '.join(self.problems) or 'no rows'})"
        t = self.test
        p_t = t.p_above if self.agreed else self.p
        few = f", two-sided never below 0.05 under {SIGN_FLIP_SEEDS} seeds" if t.n < SIGN_FLIP_SEEDS else ""  # fmt: skip
        failing = "" if self.p_failing is None else f", {p_words(self.p_failing)} (failing seeds)"
        contradiction = f"; {self.contradiction}" if self.contradiction else ""
        low, high = self.bootstrap(alpha)
        drawn = "seeds and instances" if self.instances else "seeds alone"
        unknown = f"; seeds alone because {self.unknown}" if self.unknown else ""
        ahead = "" if self.ahead is None else f", first arm higher in {100 * self.ahead:.0f} % of pairs of runs"  # fmt: skip
        return (
            f"{said}{t.mean:+.4f} {self.unit}, {100 * (1 - 2 * alpha):.0f} % interval {t.low:+.4f} "
            f"to {t.high:+.4f} (bootstrap over {drawn} {low:+.4f} to {high:+.4f}; IQM {self.iqm:+.4f}{ahead}), against {self.threshold:+.4f}; p {p_words(p_t)} (t), "
            f"{p_words(self.sign_flip)} (sign flip{few}){failing}, n {t.n} seeds, detectable from "
            f"{self.detectable(alpha):.4f} past it{contradiction}{unknown}{gaps}"
        )

    def failed(self) -> list[tuple[int, float]]:
        """Seed and value of every failure of a check."""
        fails = {"at most": operator.gt, "equal": operator.ne, "above": operator.le}[self.check]
        return [(s, v) for s, v in zip(self.seeds, self.values, strict=True) if fails(v, self.threshold)]  # fmt: skip


def p_words(p: float) -> str:
    """A p value to four digits, never as zero."""
    return f"{p:.4f}" if p >= 0.0001 else "below 0.0001"


def compared(
    outcomes: Outcomes,
    clause: str,
    words: str,
    arms: tuple[str, str],
    metric: str,
    unit: str,
    threshold: float,
    seeds: Sequence[int],
    alpha: float,
) -> Statement:
    """The statement that (first arm less second arm), seed by seed, has a mean above the threshold."""
    a, b = ({s: outcomes.get((arm, metric), {}).get(s) for s in seeds} for arm in arms)
    paired = statistics.pair(a, b)
    problems = tuple(f"{metric} of {arms[0]} and {arms[1]}, {line}" for line in paired.excluded)
    said = _tested(clause, words, unit, threshold, paired.seeds, paired.differences, problems, alpha)  # fmt: skip
    both = tuple(tuple(v[s] for s in paired.seeds) for v in (a, b))
    return dataclasses.replace(said, arms=both, names=tuple(arms), metric=metric)


def alone(
    outcomes: Outcomes,
    clause: str,
    words: str,
    arm: str,
    metric: str,
    unit: str,
    threshold: float,
    seeds: Sequence[int],
    alpha: float,
) -> Statement:
    """The statement that one arm's values have a mean above the threshold."""
    paired, problems = _of_one_arm(outcomes, arm, metric, seeds)
    said = _tested(clause, words, unit, threshold, paired.seeds, paired.differences, problems, alpha)  # fmt: skip
    return dataclasses.replace(said, names=(arm,), metric=metric)


def checked(
    outcomes: Outcomes,
    clause: str,
    words: str,
    arm: str,
    metric: str,
    check: str,
    bound: float,
    seeds: Sequence[int],
) -> Statement:
    """A property of every seed: values "at most" the bound, "equal" to it or "above" it."""
    paired, problems = _of_one_arm(outcomes, arm, metric, seeds)
    s = Statement(clause, words, "", bound, paired.seeds, paired.differences, problems, None, 1.0, 1.0, check)  # fmt: skip
    failed = bool(s.failed())
    holds = bool(s.values) and not failed
    return dataclasses.replace(s, p=float(not holds), p_refuted=float(not failed))


def agreed(s: Statement, *, ahead: bool, behind: bool) -> Statement:
    """The statement by the largest of its p: t over seeds, exact sign flip and, if asked, failing seeds.

    Args:
      ahead: whether "true" asks for the failing seeds of the arm that is then ahead, the first one.
      behind: whether "false" asks for those of the second one; there is none where one arm stands alone.
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
    """The clearer of two statements, of which one suffices: its p doubled (Bonferroni).

    One with every planned seed goes before one that lacks some. Refuted only if both are.
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
    """The statement with the instances of every seed, paired over its arms, or why it has none.

    Args:
      samples: by arm and metric, by seed: the instances, or the reason why they are not known.
    """
    if s.test is None:
        return s
    found = []
    for name in s.names:
        if (name, s.metric) not in samples:
            return dataclasses.replace(s, unknown=f"no arrays of {name} are read")
    for seed in s.seeds:
        parts = [samples[name, s.metric][seed] for name in s.names]
        for name, part in zip(s.names, parts, strict=True):
            if isinstance(part, str):
                return dataclasses.replace(s, unknown=f"of {name}, seed {seed}, {part}")
        sample = parts[0] if len(parts) == 1 else bootstrap.paired_difference(*parts)
        if sample is None:
            return dataclasses.replace(s, unknown=f"seed {seed} of {' and '.join(s.names)} was scored on other instances")  # fmt: skip
        found.append(sample)
    return dataclasses.replace(s, instances=tuple(found))


def p_of_all(statements: Sequence[Statement]) -> float:
    """The p of "every one of them": the largest (intersection-union, Berger 1982)."""
    return max(s.p for s in statements)


def _of_one_arm(outcomes, arm, metric, seeds):
    values = {s: outcomes.get((arm, metric), {}).get(s) for s in seeds}
    paired = statistics.pair(values, dict.fromkeys(seeds, 0.0))
    problems = tuple(f"{metric} of {arm}, {line.split(':')[0]}: no finite value" for line in paired.excluded)  # fmt: skip
    return paired, problems


def _tested(clause, words, unit, threshold, seeds, values, problems, alpha) -> Statement:
    if len(values) < 2:
        problems = (*problems, f"{words}: fewer than two seeds")
        return Statement(clause, words, unit, threshold, seeds, values, problems, None, 1.0, 1.0)
    if statistics.identical(values):
        problems = (*problems, f"{words}: refused, all {len(values)} seeds have the same value {values[0]:g}")  # fmt: skip
        return Statement(clause, words, unit, threshold, seeds, values, problems, None, 1.0, 1.0, identical=True)  # fmt: skip
    t = statistics.against(values, threshold, alpha)
    return Statement(clause, words, unit, threshold, seeds, values, problems, t, t.p_above, t.p_below)  # fmt: skip
