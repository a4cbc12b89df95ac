"""Which factor does the work: a hybrid against itself without its rotation, and without its bias."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from posenc_jax.study.decision import ACCURACY, BPB, Margins
from posenc_jax.study.statements import Outcomes, Statement, compared, p_of_all, p_words

FACTORS = ("rotation", "bias")


@dataclasses.dataclass(frozen=True)
class Attribution:
    """What one factor is worth to one hybrid."""

    hybrid: str
    factor: str  # the one taken away
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
    """Returns, for every factor taken away, whether the hybrid needs it.

    - needed: with it, better by the margin on one axis and not worse by the margin on the other (two
      routes, each an intersection-union; the smaller p doubled).
    - dispensable: without it, not worse by the margin on either axis (intersection-union).
    - open: neither, a planned seed is missing, or neither arm learns recall at L: two arms that recall
      nothing are alike whatever the factor is worth.

    Args:
      ablations: factor ("rotation", "bias") to the arm without it. weigh: gives a statement about
        accuracy the p of the rule; as it is, that of the t test alone (rule 1). learnt: whether an arm
        learns recall at L (rule 1 does not ask).

    Raises:
      ValueError: a factor that is neither.
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
        said = compared(outcomes, factor, words, arms, metric, unit, threshold, seeds, m.alpha)
        return weigh(said) if unit == ACCURACY else said

    better = {"E": gain("E", m.bpb), "R": gain("R", m.accuracy)}
    not_worse = {"E": gain("E", -m.bpb), "R": gain("R", -m.accuracy)}
    routes = {"E": [better["E"], not_worse["R"]], "R": [better["R"], not_worse["E"]]}
    p = min(1.0, 2 * min(map(p_of_all, routes.values())))
    # "Without it, not worse": the gain of the factor lies below the margin on both axes.
    p_without = max(better["E"].p_refuted, better["R"].p_refuted)
    complete = assessable and not (better["E"].problems or better["R"].problems)
    finding = "open"
    if complete and p <= m.alpha:
        finding = "needed"
    elif complete and p_without <= m.alpha:
        finding = "dispensable"
    other = FACTORS[1 - FACTORS.index(factor)]
    words = {
        "needed": f"{factor} is needed: without it one axis is lost, and the other is no better for it (p {p_words(p)})",
        "dispensable": f"{other} suffices: without {factor} neither axis is worse by its margin (p {p_words(p_without)})",
        "open": f"{factor}: open; neither needed (p {p_words(p)}) nor dispensable (p {p_words(p_without)})"
        if assessable
        else f"{factor}: open; neither {hybrid} nor {ablation} learns recall at L",
    }[finding]  # fmt: skip
    statements = (better["E"], better["R"])
    return Attribution(hybrid, factor, ablation, finding, p, words, statements)
