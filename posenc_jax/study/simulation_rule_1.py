"""Error rates and power of rule 1, by simulated studies whose true values are known.

A scenario gives the number of standard deviations by which the true mean of a statement exceeds its
threshold. A statement that it does not name exceeds it by so much that it holds in every study.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping

import numpy as np

from posenc_jax.study.decision import Margins
from posenc_jax.study.rule_1 import STRONGER, decide
from posenc_jax.study.scenarios import margin_of
from posenc_jax.study.statistics import power

# SD of a value between seeds of an arm; a difference of two arms has sqrt(2) times as much. It is
# small for Y_E: C2 must hold with certainty where YES-STRONG, 0.01 bits further, is on its
# boundary.
SPREAD = {
    "Y_E": 0.0002,
    "bpb_id": 0.004,
    "Y_R": 0.04,
    "Y_R_far": 0.04,
    "Y_R_id": 0.04,
    "P3": 0.02,
    "context_gain": 0.01,
    "repeat_gain": 0.01,
    "window_check": 0.01,
}
SURE = 20.0
# Statement -> (arm, metric, sign of the change of its value that makes the statement truer,
# threshold).
STATEMENTS = {
    "C1": ("rope", "Y_E", 1, "bpb"), "C2": ("alibi", "Y_E", 1, "-bpb"),
    "C3": ("alibi", "Y_R", -1, "accuracy"), "C3 far": ("alibi", "Y_R_far", -1, "0"),
    "C4": ("rope", "Y_R", -1, "0"), "C4 at L, RoPE": ("rope", "Y_R_id", -1, "-accuracy"),
    "C4 at L, ALiBi": ("alibi", "Y_R_id", -1, "-accuracy"),
    "G1 RoPE": ("rope", "bpb_id", 1, "-bpb"), "G1 ALiBi": ("alibi", "bpb_id", 1, "-bpb"),
    "G2 P3": ("rope", "P3", -1, "-lookup"),
    "G3 context": ("", "context_gain", 1, "0"), "G3 repeat": ("", "repeat_gain", 1, "0"),
    "G3 window": ("", "window_check", 1, "0"),
    STRONGER: ("alibi", "Y_E", 1, "bpb"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ScenarioRule1:
    """True values of the statements, the verdicts whose share is measured, and the share by theory.

    Attributes:
      effects: SDs past the threshold of every statement that is not certain, by hybrid (`C1` 0.0:
        on its boundary). counted: verdicts that count. hybrids: a study counts if one of these has
        such a verdict.
      theory: (effect, alpha) of every independent statement whose power multiplies.
    """

    name: str
    effects: tuple[Mapping[str, float], ...]
    counted: tuple[str, ...]
    theory: tuple = ()
    hybrids: tuple[int, ...] = (0,)
    bound: float = 0.05

    @property
    def kind(self) -> str:
        """The share is "at most" `bound`, or "equal" to `expected` within 3 points."""
        return "equal" if self.theory else "at most"

    def expected(self, n: int) -> float:
        """Returns the share by theory: `bound`, or a product of powers of one-sided t tests."""
        if self.kind == "at most":
            return self.bound
        return math.prod(power(n, e, alpha=a, two_sided=False) for e, a in self.theory)


YES, NO, STRONG = ("YES", "YES-STRONG"), ("NO", "TRADE-OFF"), ("YES-STRONG",)


def scenarios_rule_1(alpha: float = 0.05) -> list[ScenarioRule1]:
    """Returns all scenarios: errors on the boundaries, then power."""
    gain = {"G3 context", "G3 repeat"}
    single = [s for s in STATEMENTS if s != STRONGER and s not in gain]
    both = {"G3 context": 0.0, "G3 repeat": 0.0}
    one = {"G3 context": 1.3, "G3 repeat": -SURE}
    everything = {s: 0.0 for s in STATEMENTS if s != STRONGER}
    c1, p3, far, window = {"C1": 0.0}, {"G2 P3": 0.0}, {"C3 far": 0.0}, {"G3 window": 0.0}
    near = {"C3 far": 2.0, "G1 RoPE": 2.0}
    # In Holm's family of refutations: not "strong", one of the two gains.
    tested = len(STATEMENTS) - 2
    three = (0, 1, 2)
    scenarios = [ScenarioRule1(f"{s} on its boundary", ({s: 0.0},), YES) for s in single]
    scenarios += [
        ScenarioRule1("G3: both gains on the boundary", (both,), YES),
        ScenarioRule1("all statements on their boundaries", (everything,), YES),
        ScenarioRule1("C1 on its boundary, two others near", (c1 | near,), YES),
        ScenarioRule1("YES-STRONG on its boundary", ({STRONGER: 0.0},), STRONG),
        ScenarioRule1("all on their boundaries: refuted", (everything,), NO),
        ScenarioRule1("three hybrids, all on C1's boundary", (c1, c1, c1), YES, hybrids=three),
        ScenarioRule1("three hybrids on three boundaries", (p3, far, window), YES, hybrids=three),
        ScenarioRule1("one sure hybrid, two on boundaries", ({}, far, p3), YES, hybrids=(1, 2)),
    ]
    scenarios += [
        ScenarioRule1(f"{s} past its threshold", ({s: 1.3},), YES, ((1.3, alpha),)) for s in single
    ]
    past = ({"G2 P3": 1.8}, {"C3 far": -SURE}, {"G2 P3": -SURE})
    refuted = ((2.5, alpha / tested),)
    scenarios += [
        ScenarioRule1("G3: one of the gains", (one,), YES, ((1.3, alpha / 2),)),
        ScenarioRule1("YES-STRONG past its threshold", ({STRONGER: 1.3},), STRONG, ((1.3, alpha),)),
        ScenarioRule1(
            "whole rule, three axes apart", (near | {"C1": 2.0},), YES, ((2.0, alpha),) * 3
        ),
        ScenarioRule1("one hybrid of three past P3", past, YES, ((1.8, alpha / 3),)),
        ScenarioRule1("C1 refuted beside won retrieval", ({"C1": -2.5},), ("TRADE-OFF",), refuted),
        ScenarioRule1("G1 refuted", ({"G1 RoPE": -2.5},), ("NO",), refuted),
    ]
    return scenarios


def tally(
    scenario: ScenarioRule1, *, n: int, studies: int, seed: int, margins: Margins
) -> tuple[int, Counter]:
    """Draws studies of n seeds and applies rule 1 to each; draws are a function of (seed, name, n).

    Returns the number of studies in which a hybrid has a counted verdict, and all verdicts of the
    first one.
    """
    hybrids = [f"hybrid{i}" for i in range(len(scenario.effects))]
    arms = ("rope", "alibi", *hybrids)
    key = [seed, n, *scenario.name.encode()]
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))
    means = _means(scenario.effects, hybrids, margins)
    drawn = {
        (arm, metric): means.get((arm, metric), 0.0)
        + SPREAD[metric] * random.standard_normal((studies, n))
        for metric in SPREAD
        for arm in arms
    }
    exact = {
        (h, metric): dict.fromkeys(range(n), value)
        for h in hybrids
        for metric, value in (("P1", 0.0), ("P5", 1.0))
    }
    rows = {key: values_XP.tolist() for key, values_XP in drawn.items()}
    hits, answers = 0, Counter()
    for study in range(studies):
        outcomes = exact | {key: dict(enumerate(values[study])) for key, values in rows.items()}
        verdicts = decide(
            outcomes, hybrids, rope="rope", alibi="alibi", seeds=range(n), margins=margins
        )
        hits += any(verdicts[i].verdict in scenario.counted for i in scenario.hybrids)
        answers[verdicts[0].verdict] += 1
    return hits, answers


def _means(effects, hybrids, margins: Margins) -> dict[tuple[str, str], float]:
    """Returns the mean of every arm and metric: the parent of a statement is moved, the hybrids
    stay at 0.

    Hybrids with different effects share their parents, so their own values are moved instead.

    Raises:
      ValueError: hybrids that differ in a statement whose metric is compared with both parents.
    """
    means: dict[tuple[str, str], float] = {}
    for statement, (arm, metric, way, threshold) in STATEMENTS.items():
        own = not arm
        sd, far = SPREAD[metric] * (1 if own else 2**0.5), margin_of(threshold, margins)
        moved = [e.get(statement, SURE) for e in effects]
        alike = len(set(moved)) == 1
        if own:
            means |= {(h, metric): far + sds * sd for h, sds in zip(hybrids, moved, strict=True)}
        elif statement == STRONGER and not any(statement in e for e in effects):
            continue  # C2 has set ALiBi's Y_E
        elif alike:
            means[arm, metric] = way * (far + moved[0] * sd)
        elif [m for _, m, _, _ in STATEMENTS.values()].count(metric) > 1:
            raise ValueError(f"hybrids cannot differ in {statement}: both parents share {metric}")
        else:
            means[arm, metric] = way * (far + SURE * sd)
            means |= {
                (h, metric): way * (SURE - sds) * sd for h, sds in zip(hybrids, moved, strict=True)
            }
    return means
