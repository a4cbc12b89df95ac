"""The decision rule, version 1: which clauses hold for a hybrid against tuned RoPE and ALiBi.

A clause holds when every one of its statements does, by a one-sided paired t test at alpha; YES needs
all clauses (intersection-union: its p is the largest of theirs; Berger 1982), corrected by Holm over
the hybrids. Refutation is the same tests the other way, corrected by Holm over a hybrid's statements,
because one refuted statement is enough for NO.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from posenc_jax.study import statistics

RULE = 1
LEAST_SEEDS, SIGN_FLIP_SEEDS, MOST_HYBRIDS = 5, 6, 3
CLAUSES = ("C1", "C2", "C3", "C4", "G1", "G2", "G3")
AXES = {"extrapolation": ("C1", "C2"), "retrieval": ("C3", "C4")}

Outcomes = Mapping[tuple[str, str], Mapping[int, float | None]]  # (arm, metric) -> seed -> value


@dataclasses.dataclass(frozen=True)
class Margins:
    """What counts: bits per byte, accuracy; the bound on P1 (relative); alpha of every test."""

    bpb: float = 0.005
    accuracy: float = 0.05
    lookup: float = 0.02  # P3, accuracy
    shift: float = 1e-4  # P1
    alpha: float = 0.05


@dataclasses.dataclass(frozen=True)
class Statement:
    """One tested sentence: values by seed (differences where two arms meet) against a threshold."""

    clause: str
    words: str
    threshold: float
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    problems: tuple[str, ...]
    test: statistics.OneSided | None  # None: fewer than two seeds
    p: float  # that it is true: 1 where it could not be tested
    p_refuted: float

    def sentence(self, alpha: float) -> str:
        """Estimate, interval, p, n and detectable effect, in words."""
        if self.test is None:
            return (
                f"{self.clause}: {self.words}: not tested ({'; '.join(self.problems) or 'no rows'})"
            )
        t = self.test
        least = statistics.detectable_effect(t.n, alpha=alpha, two_sided=False) * t.deviation
        flip = statistics.sign_flip(self.values, threshold=self.threshold, two_sided=False)
        few = (
            f"; below {SIGN_FLIP_SEEDS} seeds a two-sided sign flip cannot reach 0.05"
            if t.n < SIGN_FLIP_SEEDS
            else ""
        )
        gaps = f"; left out: {'; '.join(self.problems)}" if self.problems else ""
        return (
            f"{self.clause}: {self.words}: {t.mean:+.4f}, {100 * (1 - 2 * alpha):.0f} % interval "
            f"{t.low:+.4f} to {t.high:+.4f}, against {self.threshold:+.4f}; p {self.p:.4f} (t), "
            f"{flip:.4f} (sign flip), n {t.n} seeds, detectable from {least:.4f} past it{few}{gaps}"
        )


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the rule says of one hybrid, and why."""

    hybrid: str
    verdict: str
    clauses: Mapping[str, str]  # holds, refuted, open
    p: float  # of YES, Holm-adjusted over the hybrids
    reasons: tuple[str, ...]
    statements: tuple[Statement, ...]


def decide(
    outcomes: Outcomes,
    hybrids: Sequence[str],
    *,
    rope: str,
    alibi: str,
    seeds: Sequence[int],
    margins: Margins,
) -> list[Verdict]:
    """Returns the verdict on every hybrid.

    - YES: all clauses hold at the Holm-adjusted level, and no planned seed is missing anywhere.
    - YES-STRONG: YES, and better than ALiBi on Y_E by the margin as well, at the same level.
    - TRADE-OFF: all clauses of one axis hold and a clause of the other is refuted.
    - NO: a clause is refuted, and it is no trade-off.
    - INCONCLUSIVE: none of these. YES from fewer than 5 seeds becomes this.

    Args:
      outcomes: last-checkpoint values by arm, metric and seed. seeds: those planned; one without a
        finite value stays out of the estimate, is named, and bars YES.

    Raises:
      ValueError: no hybrid or more than three, one twice, one that is also a parent, or seeds twice.
    """
    if not 1 <= len(hybrids) <= MOST_HYBRIDS:
        raise ValueError(f"the rule takes 1 to {MOST_HYBRIDS} hybrids, not {len(hybrids)}")
    if len({*hybrids, rope, alibi}) != len(hybrids) + 2:
        raise ValueError(f"hybrids and parents must all differ: {', '.join([*hybrids, rope, alibi])}")  # fmt: skip
    if len(set(seeds)) != len(seeds):
        raise ValueError("a seed is planned twice; name every seed once")
    said = [_statements(outcomes, h, rope, alibi, tuple(seeds), margins) for h in hybrids]
    stronger = [
        _compared(outcomes, "strong", "Y_E of ALiBi less Y_E of the hybrid", (alibi, h), "Y_E", margins.bpb, seeds, margins)
        for h in hybrids
    ]  # fmt: skip
    p_yes = [_p_of_all(statements) for statements in said]
    p_strong = [max(p, s.p) for p, s in zip(p_yes, stronger, strict=True)]
    found = zip(hybrids, said, stronger, statistics.holm(p_yes), statistics.holm(p_strong), strict=True)  # fmt: skip
    return [_verdict(*parts, margins.alpha) for parts in found]


def _verdict(hybrid, statements, stronger, p, p_strong, alpha) -> Verdict:
    adjusted = statistics.holm([s.p_refuted for s in statements])
    refuted = {s.clause for s, q in zip(statements, adjusted, strict=True) if q <= alpha}
    clauses = {}
    for clause in CLAUSES:
        holds = _p_of_all([s for s in statements if s.clause == clause]) <= alpha
        clauses[clause] = "refuted" if clause in refuted else "holds" if holds else "open"
    won = {axis: all(clauses[c] == "holds" for c in names) for axis, names in AXES.items()}
    lost = {axis: any(clauses[c] == "refuted" for c in names) for axis, names in AXES.items()}
    reasons = [f"{c} is {state}" for c, state in clauses.items() if state != "holds"]
    barred = [f"{s.clause}: {problem}" for s in statements for problem in s.problems]
    fewest = min(len(s.seeds) for s in statements)
    if fewest < LEAST_SEEDS:
        barred.append(f"YES needs {LEAST_SEEDS} seeds in every comparison; the fewest is {fewest}")
    if any(won[a] and lost[b] for a, b in (tuple(AXES), tuple(AXES)[::-1])):
        verdict = "TRADE-OFF"
    elif refuted:
        verdict = "NO"
    elif p <= alpha and not barred:
        verdict = "YES-STRONG" if p_strong <= alpha and not stronger.problems else "YES"
    else:
        verdict = "INCONCLUSIVE"
        if not reasons and p > alpha:
            reasons.append(f"all clauses hold alone, but not after Holm over the hybrids (p {p:.4f})")  # fmt: skip
    return Verdict(hybrid, verdict, clauses, p, (*reasons, *dict.fromkeys(barred)), (*statements, stronger))  # fmt: skip


def _statements(outcomes, h, rope, alibi, seeds, m: Margins) -> list[Statement]:
    def less(clause, words, a, b, metric, threshold):
        return _compared(outcomes, clause, words, (a, b), metric, threshold, seeds, m)

    def alone(clause, words, metric, threshold):
        return _alone(outcomes, clause, words, h, metric, threshold, seeds, m)

    return [
        less("C1", "Y_E of RoPE less Y_E of the hybrid", rope, h, "Y_E", m.bpb),
        less("C2", "Y_E of ALiBi less Y_E of the hybrid", alibi, h, "Y_E", -m.bpb),
        less("C3", "Y_R of the hybrid less Y_R of ALiBi", h, alibi, "Y_R", m.accuracy),
        less("C3", "Y_R_far of the hybrid less Y_R_far of ALiBi", h, alibi, "Y_R_far", 0.0),
        less("C4", "Y_R of the hybrid less Y_R of RoPE", h, rope, "Y_R", 0.0),
        less("C4", "Y_R_id of the hybrid less Y_R_id of RoPE", h, rope, "Y_R_id", -m.accuracy),
        less("C4", "Y_R_id of the hybrid less Y_R_id of ALiBi", h, alibi, "Y_R_id", -m.accuracy),
        less("G1", "bpb at L of RoPE less that of the hybrid", rope, h, "bpb_id", -m.bpb),
        less("G1", "bpb at L of ALiBi less that of the hybrid", alibi, h, "bpb_id", -m.bpb),
        _exact(outcomes, "P1 of every seed at most the bound", h, "P1", m.shift, seeds, below=True),
        _exact(outcomes, "P5 of every seed is 1", h, "P5", 1.0, seeds, below=False),
        less("G2", "P3 of the hybrid less P3 of RoPE", h, rope, "P3", -m.lookup),
        _either(alone("G3", "context gain", "context_gain", 0.0),
                alone("G3", "repeat gain", "repeat_gain", 0.0)),
        alone("G3", "rise of the loss at 4L under a window of L", "window_check", 0.0),
    ]  # fmt: skip


def _compared(outcomes, clause, words, arms, metric, threshold, seeds, m) -> Statement:
    a, b = ({s: outcomes.get((arm, metric), {}).get(s) for s in seeds} for arm in arms)
    paired = statistics.pair(a, b)
    problems = tuple(f"{metric} of {arms[0]} and {arms[1]}, {line}" for line in paired.excluded)
    return _tested(clause, words, threshold, paired.seeds, paired.differences, problems, m.alpha)


def _alone(outcomes, clause, words, arm, metric, threshold, seeds, m) -> Statement:
    values = {s: outcomes.get((arm, metric), {}).get(s) for s in seeds}
    paired = statistics.pair(values, dict.fromkeys(seeds, 0.0))
    problems = tuple(f"{metric} of {arm}, {line.split(':')[0]}: no finite value" for line in paired.excluded)  # fmt: skip
    return _tested(clause, words, threshold, paired.seeds, paired.differences, problems, m.alpha)


def _tested(clause, words, threshold, seeds, values, problems, alpha) -> Statement:
    if len(values) < 2:
        problems = (*problems, f"{words}: fewer than two seeds")
        return Statement(clause, words, threshold, seeds, values, problems, None, 1.0, 1.0)
    test = statistics.against(values, threshold, alpha)
    return Statement(clause, words, threshold, seeds, values, problems, test, test.p_above, test.p_below)  # fmt: skip


def _exact(outcomes, words, arm, metric, bound, seeds, *, below: bool) -> Statement:
    """A property that must be there in every seed: no test, true or false."""
    s = _alone(outcomes, "G2", words, arm, metric, bound, seeds, Margins())
    good = [value <= bound if below else value == bound for value in s.values]
    p = 0.0 if good and all(good) else 1.0
    return dataclasses.replace(s, p=p, p_refuted=float(all(good)))


def _either(a: Statement, b: Statement) -> Statement:
    """The clearer of two statements, of which one suffices: its p doubled (Bonferroni)."""
    clearer = a if a.p <= b.p else b
    problems = () if not a.problems or not b.problems else (*a.problems, *b.problems)
    return dataclasses.replace(
        clearer,
        words=f"{a.words} or {b.words} (here {clearer.words}, p doubled)",
        problems=problems,
        p=min(1.0, 2 * clearer.p),
        p_refuted=max(a.p_refuted, b.p_refuted),
    )


def _p_of_all(statements: Sequence[Statement]) -> float:
    return max(s.p for s in statements)
