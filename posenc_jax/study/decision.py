"""What every version of the decision rule shares: margins, a verdict, what may be asked, refutations, Holm."""

import dataclasses
from collections.abc import Mapping, Sequence

from posenc_jax.study import statistics
from posenc_jax.study.statements import Statement

MOST_HYBRIDS = 3
BPB, ACCURACY = "bits per byte", "accuracy"
# States that no test gives: printed without a part in the verdict; the assay failed; all seeds have one
# value; the assay itself.
REPORTED, NOT_ASSESSABLE, REFUSED, FAILS = "reported", "not assessable", "refused", "fails"


@dataclasses.dataclass(frozen=True)
class Margins:
    """What counts: bits per byte, accuracy; the bound on P1 (relative); alpha of every test."""

    bpb: float = 0.005
    accuracy: float = 0.05
    lookup: float = 0.02  # P3, accuracy; rule 1 alone
    shift: float = 1e-4  # P1
    alpha: float = 0.05


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the rule says of one hybrid, and why."""

    hybrid: str
    verdict: str
    clauses: Mapping[str, str]
    p: float  # of YES, Holm-adjusted over the hybrids
    reasons: tuple[str, ...]
    statements: tuple[Statement, ...]
    states: tuple[str, ...]  # of each statement


def check_plan(hybrids: Sequence[str], parents: Sequence[str], seeds: Sequence[int]) -> None:
    """Raises ValueError for no hybrid or more than three, arms or seeds that repeat, or no seed."""
    if not 1 <= len(hybrids) <= MOST_HYBRIDS:
        raise ValueError(f"the rule takes 1 to {MOST_HYBRIDS} hybrids, not {len(hybrids)}")
    arms = [*hybrids, *parents]
    if len(set(arms)) != len(arms):
        raise ValueError(f"hybrids and parents must all differ: {', '.join(arms)}")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError("seeds must be planned, every one once")


def tested_states(p: Sequence[float], refuted: Sequence[float], checks: Sequence[bool], alpha: float) -> list[str]:  # fmt: skip
    """Returns of each statement whether it holds, is refuted or is open.

    Refutations of the tested ones share one Holm correction, since one false statement is enough for NO.

    Args:
      p: that it is true. refuted: the p of its opposite. checks: those that are checked, not tested.
    """
    adjusted = list(refuted)
    tested = [i for i, check in enumerate(checks) if not check]
    for i, q in zip(tested, statistics.holm([refuted[i] for i in tested]), strict=True):
        adjusted[i] = q
    return [
        "refuted" if q <= alpha else "holds" if x <= alpha else "open"
        for x, q in zip(p, adjusted, strict=True)
    ]


def clause_states(names: Sequence[str], of: Sequence[str], states: Sequence[str]) -> dict[str, str]:
    """Returns the state of each clause: the worst of its statements, "open" where it has none.

    Args:
      of: the clause of each statement. states: of each; those that are reported have no part in it.
    """
    found = {}
    for clause in names:
        here = {state for c, state in zip(of, states, strict=True) if c == clause} - {REPORTED}
        worst = next((s for s in ("refuted", REFUSED, FAILS, NOT_ASSESSABLE, "open") if s in here), "holds")  # fmt: skip
        found[clause] = worst if here else "open"
    return found


def traded(clauses: Mapping[str, str], axes: Mapping[str, Sequence[str]]) -> bool:
    """Returns whether all clauses of one axis hold and one of the other is refuted."""
    won = [all(clauses[c] == "holds" for c in names) for names in axes.values()]
    lost = [any(clauses[c] == "refuted" for c in names) for names in axes.values()]
    return any(a and b for a, b in zip(won, reversed(lost), strict=True))
