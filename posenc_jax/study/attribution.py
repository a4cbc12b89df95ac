"""Attribution: a hybrid compared with its ablations, without rotation and without bias."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from posenc_jax.study.decision import ACCURACY, BPB, Margins
from posenc_jax.study.statements import Claim, Outcomes, Statement, p_of_all, p_words, tested

FACTORS = ("rotation", "bias")


@dataclasses.dataclass(frozen=True)
class Attribution:
    """Whether one hybrid needs one factor."""

    hybrid: str
    factor: str  # the factor that is removed
    ablation: str  # the arm without it
    finding: str  # needed, dispensable, open
    p: float  # of "needed"
    words: str
    statements: tuple[Statement, ...]


def attribute(
    outcomes: Outcomes,
    hybrid: str,
    ablations: Mapping[str, str],
    *,
    seeds: Sequence[int],
    margins: Margins,
    weigh: Callable[[Statement], Statement] = lambda s: s,
    learnt: Callable[[str], bool] = lambda arm: True,
) -> list[Attribution]:
    """Returns, for every removed factor, whether the hybrid needs it.

    - needed: with the factor, the hybrid is better by the margin on one axis and not worse by the
      margin on the other (two routes, each an intersection-union; the smaller p is doubled).
    - dispensable: without the factor, it is not worse by the margin on either axis
    (intersection-union).
    - open: neither of these, or a planned seed is missing, or neither arm learns recall at L. Two
      arms without recall are alike, with or without the factor.

    Args:
      ablations: the arm without the factor, by factor ("rotation", "bias"). weigh: changes the p of
        a statement about accuracy; the default keeps that of the t test (rule 1). learnt: whether
        an arm learns recall at L; rule 1 has no such condition.

    Raises:
      ValueError: an unknown factor.
    """
    unknown = sorted(set(ablations) - set(FACTORS))
    if unknown:
        raise ValueError(f"a hybrid is ablated of {' or '.join(FACTORS)}, not of {unknown[0]}")
    return [
        _one(outcomes, hybrid, f, a, tuple(seeds), margins, weigh, learnt(hybrid) or learnt(a))
        for f, a in ablations.items()
    ]


def _one(outcomes, hybrid, factor, ablation, seeds, m: Margins, weigh, assessable) -> Attribution:
    def gain(axis: str, threshold: float) -> Statement:
        arms, metric, unit, words = {
            "E": ((ablation, hybrid), "Y_E", BPB, f"Y_E without {factor} less Y_E with it"),
            "R": ((hybrid, ablation), "Y_R", ACCURACY, f"Y_R with {factor} less Y_R without it"),
        }[axis]
        claim = Claim(factor, words, arms, metric, unit, threshold)
        statement = tested(claim, outcomes, seeds, m.alpha)
        return weigh(statement) if unit == ACCURACY else statement

    better = {"E": gain("E", m.bpb), "R": gain("R", m.accuracy)}
    not_worse = {"E": gain("E", -m.bpb), "R": gain("R", -m.accuracy)}
    routes = {"E": [better["E"], not_worse["R"]], "R": [better["R"], not_worse["E"]]}
    p = min(1.0, 2 * min(map(p_of_all, routes.values())))
    # Not worse without the factor: its gain is below the margin on both axes.
    p_without = max(better["E"].p_refuted, better["R"].p_refuted)
    complete = assessable and not (better["E"].problems or better["R"].problems)
    finding = "open"
    if complete and p <= m.alpha:
        finding = "needed"
    elif complete and p_without <= m.alpha:
        finding = "dispensable"
    other = FACTORS[1 - FACTORS.index(factor)]
    words = {
        "needed": f"{factor} is needed: without it one axis is lost, and the other is no better "
        f"for it (p {p_words(p)})",
        "dispensable": f"{other} suffices: without {factor} neither axis is worse by its margin (p "
        f"{p_words(p_without)})",
        "open": f"{factor}: open; neither needed (p {p_words(p)}) nor dispensable (p "
        f"{p_words(p_without)})"
        if assessable
        else f"{factor}: open; neither {hybrid} nor {ablation} learns recall at L",
    }[finding]
    statements = (better["E"], better["R"])
    return Attribution(hybrid, factor, ablation, finding, p, words, statements)
