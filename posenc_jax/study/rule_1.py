"""The decision rule, version 1: which clauses hold for a hybrid against tuned RoPE and ALiBi.

A clause holds when every one of its statements does, by a one-sided paired t test at alpha; YES needs
all clauses (intersection-union: its p is the largest of theirs; Berger 1982), corrected by Holm over
the hybrids. Refutation is the same tests the other way, corrected by Holm over a hybrid's tested
statements, because one refuted statement is enough for NO; a failed check refutes by itself.

It is kept as it was defined, with its older outcomes (`outcomes.RULE_1`), so that verdicts on old data
stay what they were; version 2 stands beside it.
"""

from collections.abc import Sequence

from posenc_jax.study import statistics
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
from posenc_jax.study.statements import (
    Outcomes,
    Statement,
    alone,
    checked,
    compared,
    either,
    p_of_all,
)

RULE = 1
LEAST_SEEDS = 5
CLAUSES = ("C1", "C2", "C3", "C4", "G1", "G2", "G3")
AXES = {"extrapolation": ("C1", "C2"), "retrieval": ("C3", "C4")}
STRONGER = "strong"  # the clause of YES-STRONG
METRICS = ("Y_E", "Y_R", "Y_R_far", "Y_R_id", "bpb_id", "P1", "P3", "P5", "context_gain", "repeat_gain", "window_check")  # fmt: skip


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
    check_plan(hybrids, (rope, alibi), seeds)
    said = [_statements(outcomes, h, rope, alibi, tuple(seeds), margins) for h in hybrids]
    stronger = [
        compared(outcomes, STRONGER, "Y_E of ALiBi less Y_E of the hybrid", (alibi, h), "Y_E", BPB, margins.bpb, seeds, margins.alpha)
        for h in hybrids
    ]  # fmt: skip
    p_yes = [p_of_all(statements) for statements in said]
    p_strong = [max(p, s.p) for p, s in zip(p_yes, stronger, strict=True)]
    found = zip(hybrids, said, stronger, statistics.holm(p_yes), statistics.holm(p_strong), strict=True)  # fmt: skip
    return [_verdict(*parts, margins.alpha) for parts in found]


def _verdict(hybrid, statements, stronger, p, p_strong, alpha) -> Verdict:
    said = (*statements, stronger)
    states = _states(statements, alpha) + _states([stronger], alpha)
    clauses = clause_states(CLAUSES, [s.clause for s in said], states)
    reasons = [f"{c} is {state}" for c, state in clauses.items() if state != "holds"]
    barred = [f"{s.clause}: {problem}" for s in statements for problem in s.problems]
    fewest = min(len(s.seeds) for s in statements)
    if fewest < LEAST_SEEDS:
        barred.append(f"YES needs {LEAST_SEEDS} seeds in every comparison; the fewest is {fewest}")
    if traded(clauses, AXES):
        verdict = "TRADE-OFF"
    elif "refuted" in clauses.values():
        verdict = "NO"
    elif p <= alpha and not barred:
        verdict = "YES-STRONG" if p_strong <= alpha and not stronger.problems else "YES"
    else:
        verdict = "INCONCLUSIVE"
        if not reasons and p > alpha:
            reasons.append(f"all clauses hold alone, but not after Holm over the hybrids (p {p:.4f})")  # fmt: skip
    reasons = (*reasons, *dict.fromkeys(barred))
    return Verdict(hybrid, verdict, clauses, p, reasons, said, states)


def _states(statements: Sequence[Statement], alpha: float) -> tuple[str, ...]:
    checks = [bool(s.check) for s in statements]
    return tuple(tested_states([s.p for s in statements], [s.p_refuted for s in statements], checks, alpha))  # fmt: skip


def _statements(outcomes, h, rope, alibi, seeds, m: Margins) -> list[Statement]:
    def less(clause, words, a, b, metric, unit, threshold):
        return compared(outcomes, clause, words, (a, b), metric, unit, threshold, seeds, m.alpha)

    def own(clause, words, metric, unit, threshold):
        return alone(outcomes, clause, words, h, metric, unit, threshold, seeds, m.alpha)

    def check(words, metric, kind, bound):
        return checked(outcomes, "G2", words, h, metric, kind, bound, seeds)

    return [
        less("C1", "Y_E of RoPE less Y_E of the hybrid", rope, h, "Y_E", BPB, m.bpb),
        less("C2", "Y_E of ALiBi less Y_E of the hybrid", alibi, h, "Y_E", BPB, -m.bpb),
        less("C3", "Y_R of the hybrid less Y_R of ALiBi", h, alibi, "Y_R", ACCURACY, m.accuracy),
        less("C3", "Y_R_far of the hybrid less Y_R_far of ALiBi", h, alibi, "Y_R_far", ACCURACY, 0.0),
        less("C4", "Y_R of the hybrid less Y_R of RoPE", h, rope, "Y_R", ACCURACY, 0.0),
        less("C4", "Y_R_id of the hybrid less Y_R_id of RoPE", h, rope, "Y_R_id", ACCURACY, -m.accuracy),
        less("C4", "Y_R_id of the hybrid less Y_R_id of ALiBi", h, alibi, "Y_R_id", ACCURACY, -m.accuracy),
        less("G1", "bpb at c = L of RoPE less that of the hybrid", rope, h, "bpb_id", BPB, -m.bpb),
        less("G1", "bpb at c = L of ALiBi less that of the hybrid", alibi, h, "bpb_id", BPB, -m.bpb),
        check(f"P1, the shift error, is at most {m.shift:g}", "P1", "at most", m.shift),
        check("P5, the share of heads with a monotone bias, is 1", "P5", "equal", 1.0),
        less("G2", "P3 of the hybrid less P3 of RoPE", h, rope, "P3", ACCURACY, -m.lookup),
        either(own("G3", "context gain", "context_gain", BPB, 0.0),
               own("G3", "repeat gain", "repeat_gain", BPB, 0.0)),
        own("G3", "rise of the loss at 4L under a window of L", "window_check", BPB, 0.0),
    ]  # fmt: skip
