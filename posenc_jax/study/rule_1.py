"""The decision rule, version 1: which clauses hold for a hybrid against tuned RoPE and ALiBi.

A clause holds when all its statements hold, each by a one-sided paired t test at alpha. YES needs
all clauses (intersection-union: its p is the largest of theirs; Berger 1982), with Holm's
correction over the hybrids. A statement is refuted by the opposite test, with Holm's correction
over the tested statements of a hybrid, because one refuted statement is enough for NO. A failed
check refutes by itself.

The rule and its older outcomes (`outcomes.RULE_1`) are kept as they were defined, so that verdicts
on old data do not change.
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
from posenc_jax.study.statements import Claim, Outcomes, Statement, either, p_of_all, tested

RULE = 1
LEAST_SEEDS = 5
CLAUSES = ("C1", "C2", "C3", "C4", "G1", "G2", "G3")
AXES = {"extrapolation": ("C1", "C2"), "retrieval": ("C3", "C4")}
STRONGER = "strong"  # the clause of YES-STRONG
METRICS = (
    "Y_E",
    "Y_R",
    "Y_R_far",
    "Y_R_id",
    "bpb_id",
    "P1",
    "P3",
    "P5",
    "context_gain",
    "repeat_gain",
    "window_check",
)


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
      outcomes: last-checkpoint values by arm, metric and seed. seeds: the planned ones. A seed
        without a finite value is left out of the estimate, is named, and bars YES.

    Raises:
      ValueError: no hybrid or more than three, one twice, one that is also a parent, or seeds
        twice.
    """
    check_plan(hybrids, (rope, alibi), seeds)
    statements = [_statements(outcomes, h, rope, alibi, tuple(seeds), margins) for h in hybrids]
    words = "Y_E of ALiBi less Y_E of the hybrid"
    claims = [Claim(STRONGER, words, (alibi, h), "Y_E", BPB, margins.bpb) for h in hybrids]
    stronger = [tested(claim, outcomes, seeds, margins.alpha) for claim in claims]
    p_yes = [p_of_all(of_one) for of_one in statements]
    p_strong = [max(p, s.p) for p, s in zip(p_yes, stronger, strict=True)]
    columns = (hybrids, statements, stronger, statistics.holm(p_yes), statistics.holm(p_strong))
    return [_verdict(*row, margins.alpha) for row in zip(*columns, strict=True)]


def _verdict(hybrid, statements, stronger, p, p_strong, alpha) -> Verdict:
    everything = (*statements, stronger)
    states = _states(statements, alpha) + _states([stronger], alpha)
    clauses = clause_states(CLAUSES, [s.clause for s in everything], states)
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
            reasons.append(
                f"all clauses hold alone, but not after Holm over the hybrids (p {p:.4f})"
            )
    why = (*reasons, *dict.fromkeys(barred))
    return Verdict(hybrid, verdict, clauses, p, why, everything, states)


def _states(statements: Sequence[Statement], alpha: float) -> tuple[str, ...]:
    return tuple(tested_states([(s.p, s.p_refuted, bool(s.check)) for s in statements], alpha))


def _statements(
    outcomes: Outcomes, hybrid: str, rope: str, alibi: str, seeds: tuple[int, ...], m: Margins
) -> list[Statement]:
    h, over_rope, over_alibi = (hybrid,), (hybrid, rope), (hybrid, alibi)
    gains = [
        ("C3", "Y_R", "ALiBi", over_alibi, m.accuracy),
        ("C3", "Y_R_far", "ALiBi", over_alibi, 0.0),
        ("C4", "Y_R", "RoPE", over_rope, 0.0),
        ("C4", "Y_R_id", "RoPE", over_rope, -m.accuracy),
        ("C4", "Y_R_id", "ALiBi", over_alibi, -m.accuracy),
    ]
    within = "bpb at c = L of {} less that of the hybrid"
    rise = "rise of the loss at 4L under a window of L"
    claims = [
        Claim("C1", "Y_E of RoPE less Y_E of the hybrid", (rope, hybrid), "Y_E", BPB, m.bpb),
        Claim("C2", "Y_E of ALiBi less Y_E of the hybrid", (alibi, hybrid), "Y_E", BPB, -m.bpb),
        *(
            Claim(clause, f"{y} of the hybrid less {y} of {parent}", arms, y, ACCURACY, least)
            for clause, y, parent, arms, least in gains
        ),
        Claim("G1", within.format("RoPE"), (rope, hybrid), "bpb_id", BPB, -m.bpb),
        Claim("G1", within.format("ALiBi"), (alibi, hybrid), "bpb_id", BPB, -m.bpb),
        Claim(
            "G2", f"P1, the shift error, is at most {m.shift:g}", h, "P1", "", m.shift, "at most"
        ),
        Claim("G2", "P5, the share of heads with a monotone bias, is 1", h, "P5", "", 1.0, "equal"),
        Claim("G2", "P3 of the hybrid less P3 of RoPE", over_rope, "P3", ACCURACY, -m.lookup),
        Claim("G3", "context gain", h, "context_gain", BPB, 0.0),
        Claim("G3", "repeat gain", h, "repeat_gain", BPB, 0.0),
        Claim("G3", rise, h, "window_check", BPB, 0.0),
    ]
    *others, context, repeat, window = (tested(c, outcomes, seeds, m.alpha) for c in claims)
    return [*others, either(context, repeat), window]
