"""The decision rule, version 2 (docs/statistics.md): assay, comparisons, guards, reliability.

A statement about bits per byte is tested by a one-sided paired t test. A statement about accuracy
takes the largest p of three tests: t, exact sign flip, and failing seeds
(`hypothesis_tests.failing_seeds`). It also needs that Fisher's test on the seeds that acquire or
reach does not say the opposite. YES needs all clauses (intersection-union: its p is the largest;
Berger 1982), with Holm's correction over the hybrids. A statement is refuted by the opposite tests,
with Holm's correction over the tested statements of a hybrid. A failed exact property refutes by
itself.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from posenc_jax.study import hypothesis_tests, statistics
from posenc_jax.study.clauses import Hybrid
from posenc_jax.study.decision import (
    FAILS,
    REPORTED,
    Margins,
    Verdict,
    check_plan,
    clause_states,
    tested_states,
    traded,
)
from posenc_jax.study.roles import Roles
from posenc_jax.study.seed_counts import Count, Counts, reaching
from posenc_jax.study.statements import Outcomes, Statement

RULE = 2
SEEDS = 12  # of a confirmation; YES needs them in every comparison
CLAUSES = ("A0", "C1", "C1b", "C2", "C3", "C4", "C4b", "G1", "G2", "G3")
AXES = {"extrapolation": ("C1", "C1b", "C2"), "retrieval": ("C3", "C4", "C4b")}
RELIABLE = 0.75  # lower limit of the share of seeds that reach
METRICS = (
    "Y_E",
    "Y_id",
    "price",
    "context_gain",
    "Y_R",
    "Y_R_far",
    "Y_R_8",
    "Y_R_id",
    "window_drop",
    "least_id",
    "P1",
    "P4",
    "P5",
)


class Entry(NamedTuple):
    """The part of a statement that decides; forced: its state where no test gives one, else ""."""

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

    - YES: all clauses hold at the Holm-adjusted level; every comparison, the assay and offset
      lookup have 12 seeds, and no planned seed is missing.
    - YES-RELIABLE: YES, and the lower limit of the share of seeds that reach is at least 0.75.
    - TRADE-OFF: all clauses of one axis hold and a clause of the other is refuted.
    - NO: a clause is refuted, and it is no trade-off.
    - INCONCLUSIVE: none of these.

    Raises:
      ValueError: no hybrid or more than three, arms or seeds that repeat.
    """
    parents = dict.fromkeys(
        [roles.rope, *(a for arms in roles.candidates.values() for a in arms), roles.oracle]
    )
    check_plan(hybrids, [arm for arm in parents if arm], seeds)
    of_hybrids = [
        Hybrid(outcomes, h, roles, counts, tuple(seeds), margins).statements() for h in hybrids
    ]
    entries = [[_entry(s, forced) for s, forced in statements] for statements in of_hybrids]
    adjusted = statistics.holm([p_of_yes(e) for e in entries])
    return [
        _verdict(h, statements, e, p, reaching(outcomes, h, seeds), margins.alpha)
        for h, statements, e, p in zip(hybrids, of_hybrids, entries, adjusted, strict=True)
    ]


def p_of_yes(entries: Sequence[Entry]) -> float:
    """Returns the p of all statements together: the largest; 1 where one has no test."""
    return max(1.0 if e.forced else e.p for e in entries if e.forced != REPORTED)


def states_of(entries: Sequence[Entry], alpha: float) -> tuple[str, ...]:
    """Returns the state of every statement."""
    free = [(e.p, e.p_refuted, e.check) for e in entries if not e.forced]
    by_test = iter(tested_states(free, alpha))
    return tuple(e.forced or next(by_test) for e in entries)


def answer(
    clauses: Mapping[str, str], p: float, reaches: Count, *, complete: bool, alpha: float
) -> str:
    """Returns the verdict as a word.

    Args:
      p: of YES, Holm-adjusted. reaches: seeds of the hybrid that reach. complete: whether every
        comparison has all planned seeds, at least 12.
    """
    if traded(clauses, AXES):
        return "TRADE-OFF"
    if "refuted" in clauses.values():
        return "NO"
    if p > alpha or not complete or set(clauses.values()) != {"holds"}:
        return "INCONCLUSIVE"
    k, n = reaches
    reliable = n and hypothesis_tests.clopper_pearson_lower(k, n, alpha) >= RELIABLE
    return "YES-RELIABLE" if reliable else "YES"


def _entry(s: Statement, forced: str) -> Entry:
    exact = bool(s.check) and (s.check != "count" or s.clause == "A0")
    return Entry(s.clause, s.p, s.p_refuted, exact, forced)


def _verdict(hybrid, statements, entries, p, reaches: Count, alpha: float) -> Verdict:
    states = states_of(entries, alpha)
    clauses = clause_states(CLAUSES, [e.clause for e in entries], states)
    counted = [s for s, forced in statements if forced != REPORTED]
    barred = [f"{s.clause}: {'; '.join(s.problems)}" for s in counted if s.problems]
    # The assay and offset lookup count the seeds of every arm, in runs of their own.
    fewest = min(
        min((n for _, n in s.counts.values()), default=SEEDS)
        if s.check == "count"
        else len(s.seeds)
        for s in counted
    )
    if fewest < SEEDS:
        barred.append(f"YES needs {SEEDS} seeds in every comparison; the fewest is {fewest}")
    word = answer(clauses, p, reaches, complete=not barred, alpha=alpha)
    reasons = [
        f"{c} {state}" if state == FAILS else f"{c} is {state}"
        for c, state in clauses.items()
        if state != "holds"
    ]
    if word == "INCONCLUSIVE" and not reasons and p > alpha:
        reasons.append(f"all clauses hold alone, but not after Holm over the hybrids (p {p:.4f})")
    reasons += [s.contradiction for s in counted if s.contradiction]
    return Verdict(
        hybrid,
        word,
        clauses,
        p,
        (*reasons, *dict.fromkeys(barred)),
        tuple(s for s, _ in statements),
        states,
    )
