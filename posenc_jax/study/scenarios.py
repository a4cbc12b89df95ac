"""Scenarios of simulated studies for rule 2: true differences, and shares of seeds that fail."""

import dataclasses
from collections.abc import Iterator, Mapping

from posenc_jax.study.decision import Margins

ROPE, STRETCHED, ALIBI, HYBRID = "rope", "stretched", "alibi", "hybrid"
RECALL = ("Y_R", "Y_R_far", "Y_R_8", "Y_R_id")
BITS = 0.0002  # SD of bits per byte between seeds of an arm
SURE = 0.4  # distance of a certain difference of bits from its threshold
SHARES = (0.05, 0.1, 0.2, 0.3, 0.5)  # of seeds that fail
# Statement: clause, first arm less second arm ("": one arm alone), metric, threshold.
STATEMENTS = {
    "C1": ("C1", ROPE, HYBRID, "Y_E", "bpb"),
    "C1b": ("C1b", STRETCHED, HYBRID, "Y_E", "bpb"),
    "C2": ("C2", ALIBI, HYBRID, "Y_E", "-bpb"),
    "C3": ("C3", HYBRID, ALIBI, "Y_R", "accuracy"),
    "C3 far": ("C3", HYBRID, ALIBI, "Y_R_far", "0"),
    "C4": ("C4", HYBRID, ROPE, "Y_R", "accuracy"),
    "C4b": ("C4b", HYBRID, STRETCHED, "Y_R", "accuracy"),
    "C4b 8L": ("C4b", HYBRID, STRETCHED, "Y_R_8", "accuracy"),
    "G1 recall, RoPE": ("G1", HYBRID, ROPE, "Y_R_id", "-accuracy"),
    "G1 recall, ALiBi": ("G1", HYBRID, ALIBI, "Y_R_id", "-accuracy"),
    "G1 text, RoPE": ("G1", ROPE, HYBRID, "Y_id", "-bpb"),
    "G1 text, ALiBi": ("G1", ALIBI, HYBRID, "Y_id", "-bpb"),
    "G3": ("G3", HYBRID, "", "window_drop", "accuracy"),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Peaks:
    """Distribution of the recall of one arm over seeds, with two peaks.

    Attributes:
      level: chance-corrected accuracy of a seed that recalls, by metric. fails: share of the seeds
        that do not recall beyond L. unlearnt: share that does not recall at L either. failed: level
        of both.
      spread: SD between seeds of one peak.
    """

    level: Mapping[str, float]
    fails: float = 0.0
    unlearnt: float = 0.0
    failed: float = 0.0
    spread: float = 0.015


LEVELS = {
    HYBRID: {"Y_R": 0.97, "Y_R_far": 0.96, "Y_R_8": 0.95, "Y_R_id": 0.98},
    ALIBI: {"Y_R": 0.30, "Y_R_far": 0.15, "Y_R_8": 0.10, "Y_R_id": 0.98},
    ROPE: {"Y_R": 0.20, "Y_R_far": 0.02, "Y_R_8": 0.10, "Y_R_id": 0.98},
    STRETCHED: {"Y_R": 0.25, "Y_R_far": 0.10, "Y_R_8": 0.10, "Y_R_id": 0.98},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scenario:
    """True values of all simulated studies of a scenario, and the verdicts whose rate is measured.

    Attributes:
      clause: the clause whose boundary is simulated, "" for one about the verdict. kind: "error",
        of a rate of at most `bound`; "power", of a rate without a bound; "limit", of an error that
        no rule can hold below 5 % with so few seeds. counted: the verdicts whose rate is measured.
      recall: arms that differ from `LEVELS`. bits: statements about bits per byte, in SDs of a
        difference past their threshold; others are certain. drop: mean fall of Y_R under the
        window; None: certain.
      lookup: shares of seeds that learn offset lookup, of the hybrid and of RoPE. assay: share of
        pilot seeds in which each arm acquires. hybrids: number of equal hybrids with the same
        parents.
    """

    name: str
    clause: str
    kind: str
    counted: tuple[str, ...]
    recall: Mapping[str, Peaks] = dataclasses.field(default_factory=dict)
    bits: Mapping[str, float] = dataclasses.field(default_factory=dict)
    drop: float | None = None
    lookup: tuple[float, float] = (1.0, 1.0)
    assay: float = 1.0
    hybrids: int = 1
    bound: float = 0.05


YES = ("YES", "YES-RELIABLE")
NO = ("NO", "TRADE-OFF")


def scenarios() -> list[Scenario]:
    """Returns all scenarios: errors on the boundaries, then limits, then power."""
    return [*_boundaries(), *_limits(), *_powers()]


def _boundaries() -> Iterator[Scenario]:
    for name, (clause, _, second, metric, threshold) in STATEMENTS.items():
        if metric in ("Y_E", "Y_id"):
            yield Scenario(f"{name}: on its boundary", clause, "error", YES, bits={name: 0.0})
        elif second and metric != "Y_R_id":
            margin = margin_of(threshold, Margins())
            yield Scenario(
                f"{name}: on its boundary, one peak",
                clause,
                "error",
                YES,
                _moved(second, metric, margin, (0, 0), 0.04),
            )
            for share in SHARES:
                for where, fails in (
                    ("the hybrid", (share, 0)),
                    ("the other arm", (0, share)),
                    ("both arms", (share, share)),
                ):
                    words = f"{name}: on its boundary, {share:.0%} of the seeds of {where} fail"
                    peaks = _moved(second, metric, margin, fails)
                    yield Scenario(words, clause, "error", YES, peaks)
            words = f"{name}: on its boundary, 20% of the hybrid's seeds fall to 0.5"
            peaks = _moved(second, metric, margin, (0.2, 0), failed=0.5)
            yield Scenario(words, clause, "error", YES, peaks)
        elif second:
            level = LEVELS[HYBRID] | {"Y_R_id": LEVELS[second]["Y_R_id"] - 0.05}
            peaks = {HYBRID: Peaks(level, spread=0.04)}
            yield Scenario(f"{name}: on its boundary, one peak", clause, "error", YES, peaks)
    yield Scenario("G3: on its boundary, one peak", "G3", "error", YES, drop=0.05)
    for share in SHARES:
        peaks = {HYBRID: _of(HYBRID, fails=share)}
        words = f"G3: on its boundary, {share:.0%} of the hybrid's seeds fail"
        yield Scenario(words, "G3", "error", YES, peaks, drop=0.05)
    everything = {name: 0.0 for name, s in STATEMENTS.items() if s[3] in ("Y_E", "Y_id")}
    words = "all statements on text on their boundaries"
    yield Scenario(words, "", "error", YES + NO, bits=everything)
    lower = Peaks(LEVELS[ALIBI] | {"Y_R": 0.97 * 0.8 - 0.05})
    both = {HYBRID: _of(HYBRID, fails=0.2), ALIBI: lower}
    for name, kind in (("C3", {}), ("C1", {"C1": 0.0})):
        words = f"{name}: on its boundary for three hybrids"
        yield Scenario(words, name, "error", YES, {} if kind else both, bits=kind, hybrids=3)
    words = "G2: offset lookup, both learn it in 95% of seeds, refuted"
    yield Scenario(words, "", "error", NO, lookup=(0.95, 0.95))
    words = "A0: RoPE, ALiBi and the hybrid acquire in half of the seeds"
    yield Scenario(words, "A0", "error", YES, assay=0.5)
    words = "reliability: three quarters of the seeds reach"
    yield Scenario(words, "", "error", ("YES-RELIABLE",), {HYBRID: _of(HYBRID, fails=0.25)})


def _limits() -> Iterator[Scenario]:
    for share in SHARES:
        peaks = {HYBRID: _of(HYBRID, unlearnt=share)}
        words = f"G1 recall: {share:.0%} of the hybrid's seeds do not learn it at L"
        yield Scenario(words, "G1", "limit", YES, peaks)
    for share in SHARES:
        words = (
            f"G2: offset lookup, the hybrid does not learn it in {share:.0%} of seeds, RoPE always"
        )
        yield Scenario(words, "G2", "limit", YES, lookup=(1 - share, 1.0))


def _powers() -> Iterator[Scenario]:
    yield Scenario("everything true, no seed fails", "C3", "power", ("YES-RELIABLE",))
    for gap in (0.1, 0.2, 0.3, 0.4, 0.5):
        peaks = {ALIBI: Peaks(LEVELS[ALIBI] | {"Y_R": 0.97 - gap, "Y_R_far": 0.96 - gap})}
        yield Scenario(f"C3: the hybrid is ahead by {gap}", "C3", "power", YES, peaks)
    for share in SHARES:
        peaks = {HYBRID: _of(HYBRID, fails=share)}
        words = f"{share:.0%} of the hybrid's seeds fail beyond L, ahead by far"
        yield Scenario(words, "C3", "power", YES, peaks)
        peaks = {a: _of(a, fails=share) for a in (HYBRID, ALIBI)}
        words = f"{share:.0%} of the seeds of the hybrid and of ALiBi fail beyond L"
        yield Scenario(words, "C3", "power", YES, peaks)
    yield Scenario("C1: 1.0 SD past its threshold", "C1", "power", YES, bits={"C1": 1.0})
    words = "G1 text, RoPE: 1.0 SD past its threshold"
    yield Scenario(words, "G1", "power", YES, bits={"G1 text, RoPE": 1.0})
    yield Scenario("C1: false by 2 SD", "C1", "power", NO, bits={"C1": -2.0})
    for gap in (0.2, 0.3, 0.4):
        level = LEVELS[HYBRID] | {"Y_R": 0.97 - gap, "Y_R_far": 0.96 - gap}
        peaks = {HYBRID: Peaks(level), ALIBI: Peaks(LEVELS[HYBRID])}
        yield Scenario(f"C3: false, ALiBi is ahead by {gap}", "C3", "power", NO, peaks)
    peaks = {a: Peaks(LEVELS[HYBRID]) for a in (ALIBI, ROPE)}
    words = "C4: false, ALiBi and RoPE carry recall as the hybrid does"
    yield Scenario(words, "C4", "power", NO, peaks)
    for share in (0.8, 0.9, 0.95):
        words = f"A0: each arm acquires in {share:.0%} of the pilot seeds"
        yield Scenario(words, "A0", "power", YES, assay=share)
    words = "G2: offset lookup, both learn it in 97% of seeds"
    yield Scenario(words, "G2", "power", YES, lookup=(0.97, 0.97))


def _of(arm: str, **fields) -> Peaks:
    return Peaks(LEVELS[arm], **fields)


def _moved(
    second: str,
    metric: str,
    margin: float,
    fails: tuple[float, float],
    spread: float = 0.015,
    failed: float = 0.0,
) -> dict[str, Peaks]:
    """Returns the recall of the hybrid and of the second arm, whose means differ by exactly the
    margin.

    fails: shares of failing seeds, of the hybrid and of the second arm.
    """
    share, share_2 = fails
    level = top = LEVELS[HYBRID][metric]
    level_2 = (top * (1 - share) + failed * share - margin) / (1 - share_2)
    if level_2 > top:  # the second arm never exceeds the usual level of the hybrid
        level_2, level = top, (top * (1 - share_2) + margin - failed * share) / (1 - share)
    return {
        HYBRID: Peaks(LEVELS[HYBRID] | {metric: level}, fails=share, spread=spread, failed=failed),
        second: Peaks(LEVELS[second] | {metric: level_2}, fails=share_2, spread=spread),
    }


def margin_of(name: str, margins: Margins) -> float:
    """Returns a threshold by name: "0", a field of `Margins`, or "-field" for its negative."""
    if name == "0":
        return 0.0
    return -getattr(margins, name[1:]) if name.startswith("-") else getattr(margins, name)
