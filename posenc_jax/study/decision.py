"""Parts shared by both versions of the decision rule: margins, verdict, states of statements and
clauses.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from posenc_jax.study import statistics
from posenc_jax.study.statements import Statement

MOST_HYBRIDS = 3
BPB, ACCURACY = "bits per byte", "accuracy"
# States that no test gives: shown, but no part of the verdict; the assay failed; all seeds have one
# value; of the assay itself.
REPORTED, NOT_ASSESSABLE, REFUSED, FAILS = "reported", "not assessable", "refused", "fails"


@dataclasses.dataclass(frozen=True)
class Margins:
    """Smallest differences that count, the bound on P1 (relative), and alpha of every test."""

    bpb: float = 0.005
    accuracy: float = 0.05
    lookup: float = 0.02  # P3, accuracy; rule 1 alone
    shift: float = 1e-4  # P1
    alpha: float = 0.05


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on one hybrid, and why."""

    hybrid: str
    verdict: str
    clauses: Mapping[str, str]
    p: float  # of YES, Holm-adjusted over the hybrids
    reasons: tuple[str, ...]
    statements: tuple[Statement, ...]
    states: tuple[str, ...]  # of each statement


def check_plan(hybrids: Sequence[str], parents: Sequence[str], seeds: Sequence[int]) -> None:
    """Raises ValueError unless 1 to 3 hybrids are given, all arms differ, and seeds differ."""
    if not 1 <= len(hybrids) <= MOST_HYBRIDS:
        raise ValueError(f"the rule takes 1 to {MOST_HYBRIDS} hybrids, not {len(hybrids)}")
    arms = [*hybrids, *parents]
    if len(set(arms)) != len(arms):
        raise ValueError(f"hybrids and parents must all differ: {', '.join(arms)}")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError("seeds must be planned, every one once")


def tested_states(statements: Sequence[tuple[float, float, bool]], alpha: float) -> list[str]:
    """Returns the state of each statement: "holds", "refuted" or "open".

    Refutations of the tested ones share one Holm correction, since one refuted statement is enough
    for NO.

    Args:
      statements: of each, its p, the p of its opposite, and whether it is checked instead of
        tested.
    """
    adjusted = iter(
        statistics.holm([opposite for _, opposite, checked in statements if not checked])
    )
    states = []
    for p, opposite, checked in statements:
        refuted = (opposite if checked else next(adjusted)) <= alpha
        states.append("refuted" if refuted else "holds" if p <= alpha else "open")
    return states


def clause_states(
    names: Sequence[str], clauses: Sequence[str], states: Sequence[str]
) -> dict[str, str]:
    """Returns the state of each named clause: the worst of its statements, "open" where it has
    none.

    Args:
      clauses, states: of each statement. Statements that are only reported do not count.
    """
    worst_first = ("refuted", REFUSED, FAILS, NOT_ASSESSABLE, "open", "holds")
    worst = {}
    for name in names:
        present = {state for clause, state in zip(clauses, states, strict=True) if clause == name}
        worst[name] = next((state for state in worst_first if state in present), "open")
    return worst


def traded(clauses: Mapping[str, str], axes: Mapping[str, Sequence[str]]) -> bool:
    """Returns whether all clauses of one axis hold and one of the other is refuted."""
    won = [all(clauses[c] == "holds" for c in names) for names in axes.values()]
    lost = [any(clauses[c] == "refuted" for c in names) for names in axes.values()]
    return any(a and b for a, b in zip(won, reversed(lost), strict=True))
