"""The decision rule, version 2 (EVALUATION.md, section 10): assay, comparisons, guards, reliability.

A statement about bits per byte holds by a one-sided paired t test. One about accuracy holds by the
largest of three p: t, exact sign flip, and the exact binomial one of failing seeds (`evidence.failing`),
and only if Fisher's test on the seeds that acquire or reach does not say the opposite. YES needs all
clauses (intersection-union: its p is the largest; Berger 1982), Holm over the hybrids. Refutation is the
same tests the other way, Holm over a hybrid's tested statements; a failed exact property refutes alone.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from posenc_jax.results.schema import ACQUIRED, REACHES
from posenc_jax.study import evidence, statistics
from posenc_jax.study.decision import (
    ACCURACY,
    BPB,
    Margins,
    Verdict,
    check_plan,
    clause_states,
    tested_states,
    traded,
)
from posenc_jax.study.roles import RETRIEVAL, TEXT, Roles
from posenc_jax.study.statements import (
    Outcomes,
    Statement,
    agreed,
    alone,
    checked,
    compared,
    p_words,
)

RULE = 2
SEEDS = 12  # of a confirmation; YES needs them in every comparison
CLAUSES = ("A0", "C1", "C1b", "C2", "C3", "C4", "C4b", "G1", "G2", "G3")
AXES = {"extrapolation": ("C1", "C1b", "C2"), "retrieval": ("C3", "C4", "C4b")}
ASSAY = 10 / 12  # share of pilot seeds in which R, A and H must acquire
LOOKUP = 11 / 12  # share of seeds in which R must learn offset lookup
RELIABLE = 0.75  # lower limit of the share of seeds that reach
METRICS = ("Y_E", "Y_id", "price", "context_gain", "Y_R", "Y_R_far", "Y_R_8", "Y_R_id", "window_drop", "least_id", "P1", "P4", "P5")  # fmt: skip
REPORTED, NOT_ASSESSABLE, REFUSED, FAILS = "reported", "not assessable", "refused", "fails"
RELIABILITY = "reliability"
ACQUIRE, REACH = ("least_id", ACQUIRED), ("Y_R_far", REACHES)

Count = tuple[int, int]  # seeds that do, of seeds that were read


@dataclasses.dataclass(frozen=True)
class Counts:
    """Counts of seeds from runs of their own.

    Attributes:
      assay: by arm, seeds that acquire, an arm without a value left out; assay_words: which seeds.
      lookup: by arm, seeds that learn offset lookup; empty where no such runs were named.
    """

    assay: Mapping[str, Count]
    assay_words: str
    lookup: Mapping[str, Count]


class Entry(NamedTuple):
    """What the verdict reads of one statement; forced: its state where no test gives one."""

    clause: str
    p: float
    p_refuted: float
    check: bool
    forced: str


def decide(
    outcomes: Outcomes,
    hybrids: Sequence[str],
    *,
    roles: Roles,
    counts: Counts,
    seeds: Sequence[int],
    margins: Margins,
) -> list[Verdict]:
    """Returns the verdict on every hybrid.

    - YES: all clauses hold at the Holm-adjusted level, from 12 seeds, and no planned seed is missing.
    - YES-RELIABLE: YES, and the lower limit of the share of seeds that reach is at least 0.75.
    - TRADE-OFF: all clauses of one axis hold and a clause of the other is refuted.
    - NO: a clause is refuted, and it is no trade-off.
    - INCONCLUSIVE: none of these.

    Raises:
      ValueError: no hybrid or more than three, arms or seeds that repeat.
    """
    parents = dict.fromkeys([roles.rope, *(a for arms in roles.candidates.values() for a in arms), roles.oracle])  # fmt: skip
    check_plan(hybrids, [arm for arm in parents if arm], seeds)
    said = [_Hybrid(outcomes, h, roles, counts, tuple(seeds), margins).statements() for h in hybrids]  # fmt: skip
    entries = [[_entry(s, forced) for s, forced in statements] for statements in said]
    adjusted = statistics.holm([p_of_yes(e) for e in entries])
    return [
        _verdict(h, statements, e, p, reaching(outcomes, h, seeds), margins.alpha)
        for h, statements, e, p in zip(hybrids, said, entries, adjusted, strict=True)
    ]


def p_of_yes(entries: Sequence[Entry]) -> float:
    """Returns the p of "every statement is true": the largest; 1 where one has no test."""
    return max(1.0 if e.forced else e.p for e in entries if e.forced != REPORTED)


def states_of(entries: Sequence[Entry], alpha: float) -> tuple[str, ...]:
    """Returns the state of every statement."""
    free = [e for e in entries if not e.forced]
    tested = iter(tested_states([e.p for e in free], [e.p_refuted for e in free], [e.check for e in free], alpha))  # fmt: skip
    return tuple(e.forced or next(tested) for e in entries)


def answer(
    clauses: Mapping[str, str], p: float, reaches: Count, *, complete: bool, alpha: float
) -> str:
    """Returns the verdict's word.

    Args:
      p: of YES, Holm-adjusted. reaches: seeds of the hybrid that reach. complete: whether every planned
        seed is in every comparison, and there are 12.
    """
    if traded(clauses, AXES):
        return "TRADE-OFF"
    if "refuted" in clauses.values():
        return "NO"
    if p > alpha or not complete or set(clauses.values()) != {"holds"}:
        return "INCONCLUSIVE"
    k, n = reaches
    return "YES-RELIABLE" if n and evidence.at_least(k, n, alpha) >= RELIABLE else "YES"


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
    """Returns whether every arm acquires in 10 of 12 pilot seeds, or that share of them; None: not known."""
    if any(counts.get(arm, (0, 0))[1] == 0 for arm in arms):
        return None
    return all(k >= needed(ASSAY, n) for k, n in (counts[arm] for arm in arms))


def needed(share: float, n: int) -> int:
    """Returns how many of n seeds the share is, rounded up."""
    return math.ceil(share * n - 1e-9)


def lookup_state(hybrid: Count, rope: Count) -> tuple[float, float, str]:
    """Returns p, p_refuted and the forced state of "as many seeds learn offset lookup as with RoPE".

    It holds where the hybrid's share is not below RoPE's, is refuted where Fisher says that it is, and
    is open between; not assessable where RoPE itself learns it in fewer than 11 of 12.
    """
    (k, n), (k_rope, n_rope) = hybrid, rope
    if not n or not n_rope or k_rope < needed(LOOKUP, n_rope):
        return 1.0, 1.0, NOT_ASSESSABLE
    return float(k * n_rope < k_rope * n), evidence.fewer(k, k_rope, n, n_rope), ""


def contradicted(hybrid: Count, other: Count, alpha: float) -> tuple[bool, bool]:
    """Returns whether Fisher's test says that fewer seeds of the hybrid pass than of the other arm, and the reverse."""
    if not hybrid[1] or not other[1]:
        return False, False
    (k, n), (l, m) = hybrid, other  # noqa: E741
    return evidence.fewer(k, l, n, m) <= alpha, evidence.fewer(l, k, m, n) <= alpha


def weighed(s: Statement, *, behind: bool = True) -> Statement:
    """Returns a statement about accuracy with the largest of its p.

    "Not worse by a margin" is spared the failing seeds of the arm ahead: no 12 seeds can say that the
    share that fails is below a margin of 0.05 (59 that all succeed could).
    """
    return agreed(s, ahead=s.threshold >= 0, behind=behind)


@dataclasses.dataclass(frozen=True)
class _Hybrid:
    """Writes the statements of one hybrid, each with the state that is forced on it, or ""."""

    outcomes: Outcomes
    name: str
    roles: Roles
    counts: Counts
    seeds: tuple[int, ...]
    margins: Margins

    def statements(self) -> list[tuple[Statement, str]]:
        m, roles = self.margins, self.roles
        assay = self._assay()
        passed = self._passes()
        found = [(assay, "" if passed else NOT_ASSESSABLE if passed is None else FAILS)]
        found += self._text("C1", "RoPE", (roles.rope,), (), "Y_E", m.bpb)
        found += self._text("C1b", "RoPE stretched", *self._of("R+", TEXT), "Y_E", m.bpb)
        found += self._text("C2", "ALiBi", *self._of("A", TEXT), "Y_E", -m.bpb)
        retrieval = [
            *self._recall("C3", "ALiBi", *self._of("A", RETRIEVAL), "Y_R", m.accuracy),
            *self._recall("C3", "ALiBi", *self._of("A", RETRIEVAL), "Y_R_far", 0.0),
            *self._recall("C4", "RoPE", (roles.rope,), (), "Y_R", m.accuracy),
            *self._recall("C4b", "RoPE stretched", *self._of("R+", RETRIEVAL), "Y_R", m.accuracy),
            *self._recall("C4b", "RoPE stretched", *self._of("R+", RETRIEVAL), "Y_R_8", m.accuracy),
            *self._recall("G1", "RoPE", (roles.rope,), (), "Y_R_id", -m.accuracy),
            *self._recall("G1", "ALiBi", *self._of("A", RETRIEVAL), "Y_R_id", -m.accuracy),
        ]
        found += retrieval if passed else [(s, forced or NOT_ASSESSABLE) for s, forced in retrieval]  # fmt: skip
        found += self._text("G1", "RoPE", (roles.rope,), (), "Y_id", -m.bpb)
        found += self._text("G1", "ALiBi", *self._of("A", TEXT), "Y_id", -m.bpb)
        found += [
            (self._check("P1", f"P1, the shift error, is at most {m.shift:g}", "at most", m.shift), ""),
            (self._check("P5", "P5, the share of heads with a monotone bias, is 1", "equal", 1.0), ""),
            (self._check("P4", "P4, what rotation off costs in bits per byte, is above 0", "above", 0.0), ""),
            self._lookup(),
        ]  # fmt: skip
        window = self._own("G3", "fall of Y_R at 4L under a window of L", "window_drop", ACCURACY, m.accuracy)  # fmt: skip
        found += [(weighed(window), ""), *self._gain()]
        found += [(self._own("price", "bpb_ctx(4L) less bpb_id, the price of length", "price", BPB, 0.0), REPORTED)]  # fmt: skip
        found += [(self._reliability(), REPORTED)]
        return [(s, forced or (REFUSED if s.identical else "")) for s, forced in found]

    def _of(self, role: str, axis: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The candidates of a role that are judged on an axis, and those that are reported."""
        judged = {"R+": self.roles.stretched, "A": self.roles.alibi}[role][axis]
        return judged, tuple(a for a in self.roles.candidates[role] if a not in judged)

    def _text(self, clause, who, judged, reported, metric, threshold) -> list[tuple[Statement, str]]:  # fmt: skip
        words = f"{metric} of {who} less {metric} of the hybrid"
        return self._against(clause, who, words, judged, reported, lambda arm: compared(
            self.outcomes, clause, words, (arm, self.name), metric, BPB, threshold, self.seeds, self.margins.alpha
        ))  # fmt: skip

    def _recall(self, clause, who, judged, reported, metric, threshold) -> list[tuple[Statement, str]]:  # fmt: skip
        words = f"{metric} of the hybrid less {metric} of {who}"

        def against(arm: str) -> Statement:
            said = compared(
                self.outcomes, clause, words, (self.name, arm), metric, ACCURACY, threshold, self.seeds, self.margins.alpha
            )  # fmt: skip
            return self._uncontradicted(weighed(said), arm)

        return self._against(clause, who, words, judged, reported, against)

    def _against(self, clause, who, words, judged, reported, state) -> list[tuple[Statement, str]]:
        if not judged:
            problem = f"no arm was named for {who}"
            return [(Statement(clause, words, "", 0.0, (), (), (problem,), None, 1.0, 1.0), "")]
        found = []
        for arm in (*judged, *reported):
            said = state(arm)
            if who != "RoPE":
                said = dataclasses.replace(said, note=f"here {who} is {arm}")
            found.append((said, "" if arm in judged else REPORTED))
        return found

    def _uncontradicted(self, s: Statement, arm: str) -> Statement:
        """The statement, which cannot hold (or be refuted) where the counts of seeds say the opposite."""
        count, does = (acquiring, "acquire") if s.metric == "Y_R_id" else (reaching, "reach")
        mine, theirs = (count(self.outcomes, a, self.seeds) for a in (self.name, arm))
        fewer, more = contradicted(mine, theirs, self.margins.alpha)
        if fewer:
            words = f"its counts contradict it: {mine[0]} of {mine[1]} seeds {does}, of {arm} {theirs[0]} of {theirs[1]}"  # fmt: skip
            return dataclasses.replace(s, p=1.0, contradiction=words)
        return dataclasses.replace(s, p_refuted=1.0) if more else s

    def _own(self, clause, words, metric, unit, threshold) -> Statement:
        return alone(self.outcomes, clause, words, self.name, metric, unit, threshold, self.seeds, self.margins.alpha)  # fmt: skip

    def _check(self, metric, words, kind, bound) -> Statement:
        return checked(self.outcomes, "G2", words, self.name, metric, kind, bound, self.seeds)

    def _arms_of_assay(self) -> list[str]:
        return [self.roles.rope, *self.roles.alibi[RETRIEVAL], self.name]

    def _passes(self) -> bool | None:
        return assay_passes(self.counts.assay, self._arms_of_assay())

    def _assay(self) -> Statement:
        arms = self._arms_of_assay()
        counts = {arm: self.counts.assay.get(arm, (0, 0)) for arm in arms}
        listed = ", ".join(f"{arm} {k} of {n}" for arm, (k, n) in counts.items())
        passed = self._passes()
        state = "passes" if passed else "not known" if passed is None else "fails"
        said = f"{state} ({listed}; {self.counts.assay_words})"
        words = "every parent and the hybrid learn recall at L in 10 of 12 seeds"
        return _counted("A0", words, counts, said, float(not passed), 1.0)

    def _lookup(self) -> tuple[Statement, str]:
        words = "as many seeds learn offset lookup (P3, runs of its own) as with RoPE"
        arms = [self.name, self.roles.rope, *self.roles.alibi[RETRIEVAL]]
        counts = {arm: self.counts.lookup[arm] for arm in arms if arm in self.counts.lookup}
        if not all(counts.get(arm, (0, 0))[1] for arm in arms[:2]):
            said = "no such runs were read; name them with --lookup"
            return _counted("G2", words, counts, said, 1.0, 1.0), NOT_ASSESSABLE
        p, refuted, forced = lookup_state(counts[self.name], counts[self.roles.rope])
        fisher = evidence.fewer(*(c[i] for i in (0, 1) for c in (counts[self.name], counts[self.roles.rope])))  # fmt: skip
        listed = ", ".join(f"{arm} {k} of {n}" for arm, (k, n) in counts.items())
        said = f"{listed}; that fewer do, Fisher p {p_words(fisher)}"
        return _counted("G2", words, counts, said, p, refuted), forced

    def _gain(self) -> list[tuple[Statement, str]]:
        """Use of far text: asked of the hybrid where the oracle shows one, or where no oracle was named."""
        m, oracle = self.margins, self.roles.oracle
        mine = self._own("G3", "context gain", "context_gain", BPB, 0.0)
        if not oracle:
            note = "asked for, since no oracle shows whether the text rewards far context"
            return [(dataclasses.replace(mine, note=note), "")]
        shown = alone(self.outcomes, "G3", "context gain of the oracle, RoPE trained at 4L", oracle, "context_gain", BPB, m.bpb, self.seeds, m.alpha)  # fmt: skip
        asked = shown.test is None or shown.p <= m.alpha
        note = "asked for, since the oracle does not lack one" if asked else "not asked for: the oracle shows none"  # fmt: skip
        return [(shown, REPORTED), (dataclasses.replace(mine, note=note), "" if asked else REPORTED)]  # fmt: skip

    def _reliability(self) -> Statement:
        arms = dict.fromkeys([self.name, *self.roles.alibi[RETRIEVAL], self.roles.rope])
        counts = {arm: reaching(self.outcomes, arm, self.seeds) for arm in arms}
        parts, (k, n) = [], counts[self.name]
        for arm, (l, m) in counts.items():  # noqa: E741
            fewer = f"; that it is fewer, Fisher p {p_words(evidence.fewer(l, k, m, n))}" if arm != self.name and m and n else ""  # fmt: skip
            limit = f" (at least {evidence.at_least(l, m, self.margins.alpha):.2f}{fewer})" if m else ""  # fmt: skip
            parts.append(f"{arm} {l} of {m}{limit}")
        words = f"seeds that reach (Y_R_far at least {REACHES:g} at 4L)"
        return _counted(RELIABILITY, words, counts, "; ".join(parts), 1.0, 1.0)


def _counted(clause, words, counts, said, p, p_refuted) -> Statement:
    return Statement(
        clause, words, "", 0.0, (), (), (), None, p, p_refuted, "count", counts=counts, said=said
    )


def _entry(s: Statement, forced: str) -> Entry:
    exact = bool(s.check) and (s.check != "count" or s.clause == "A0")
    return Entry(s.clause, s.p, s.p_refuted, exact, forced)


def _verdict(hybrid, statements, entries, p, reaches: Count, alpha: float) -> Verdict:
    states = states_of(entries, alpha)
    clauses = clause_states(CLAUSES, [e.clause for e in entries], states)
    said = [s for s, _ in statements]
    counted = [s for s, forced in statements if forced != REPORTED]
    barred = [f"{s.clause}: {'; '.join(s.problems)}" for s in counted if s.problems]
    fewest = min(len(s.seeds) for s in counted if s.check != "count")
    if fewest < SEEDS:
        barred.append(f"YES needs {SEEDS} seeds in every comparison; the fewest is {fewest}")
    word = answer(clauses, p, reaches, complete=not barred, alpha=alpha)
    reasons = [f"{c} {state}" if state == FAILS else f"{c} is {state}" for c, state in clauses.items() if state != "holds"]  # fmt: skip
    if word == "INCONCLUSIVE" and not reasons and p > alpha:
        reasons.append(f"all clauses hold alone, but not after Holm over the hybrids (p {p:.4f})")
    reasons += [s.contradiction for s in counted if s.contradiction]
    return Verdict(hybrid, word, clauses, p, (*reasons, *dict.fromkeys(barred)), tuple(said), states)  # fmt: skip
