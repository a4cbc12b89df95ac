"""All statements of rule 2 about one hybrid, clause by clause."""

import dataclasses

from posenc_jax.results.schema import REACHES
from posenc_jax.study import hypothesis_tests
from posenc_jax.study.decision import (
    ACCURACY,
    BPB,
    FAILS,
    NOT_ASSESSABLE,
    REFUSED,
    REPORTED,
    Margins,
)
from posenc_jax.study.roles import RETRIEVAL, TEXT, Roles
from posenc_jax.study.seed_counts import (
    Counts,
    acquiring,
    assay_passes,
    contradicted,
    lookup_state,
    reaching,
)
from posenc_jax.study.statements import Claim, Outcomes, Statement, agreed, p_words, tested

RELIABILITY = "reliability"


def weighed(s: Statement, *, behind: bool = True) -> Statement:
    """Returns a statement about accuracy with the largest of its p.

    "Not worse by a margin" leaves out the failing seeds of the first arm: no 12 seeds can show that
    the share that fails is below a margin of 0.05 (59 that all succeed could).
    """
    return agreed(s, ahead=s.threshold >= 0, behind=behind)


@dataclasses.dataclass(frozen=True)
class Hybrid:
    """Tests all statements of rule 2 about one hybrid."""

    outcomes: Outcomes
    name: str
    roles: Roles
    counts: Counts
    seeds: tuple[int, ...]
    margins: Margins

    def statements(self) -> list[tuple[Statement, str]]:
        """Returns every statement with its forced state, "" where its test decides."""
        m, passed = self.margins, self._passes()
        statements = [
            (self._assay(), "" if passed else NOT_ASSESSABLE if passed is None else FAILS)
        ]
        statements += self._text("C1", "RoPE", "Y_E", m.bpb)
        statements += self._text("C1b", "RoPE stretched", "Y_E", m.bpb)
        statements += self._text("C2", "ALiBi", "Y_E", -m.bpb)
        for recall in (
            ("C3", "ALiBi", "Y_R", m.accuracy),
            ("C3", "ALiBi", "Y_R_far", 0.0),
            ("C4", "RoPE", "Y_R", m.accuracy),
            ("C4b", "RoPE stretched", "Y_R", m.accuracy),
            ("C4b", "RoPE stretched", "Y_R_8", m.accuracy),
            ("G1", "RoPE", "Y_R_id", -m.accuracy),
            ("G1", "ALiBi", "Y_R_id", -m.accuracy),
        ):
            statements += [
                (s, forced or ("" if passed else NOT_ASSESSABLE))
                for s, forced in self._recall(*recall)
            ]
        statements += self._text("G1", "RoPE", "Y_id", -m.bpb)
        statements += self._text("G1", "ALiBi", "Y_id", -m.bpb)
        statements += [
            (self._own(*check), "")
            for check in (
                (
                    "G2",
                    f"P1, the shift error, is at most {m.shift:g}",
                    "P1",
                    "",
                    m.shift,
                    "at most",
                ),
                ("G2", "P5, the share of heads with a monotone bias, is 1", "P5", "", 1.0, "equal"),
                (
                    "G2",
                    "P4, what rotation off costs in bits per byte, is above 0",
                    "P4",
                    "",
                    0.0,
                    "above",
                ),
            )
        ]
        window = self._own(
            "G3", "fall of Y_R at 4L under a window of L", "window_drop", ACCURACY, m.accuracy
        )
        price = self._own(
            "price", "bpb_ctx(4L) less bpb_id, the price of length", "price", BPB, 0.0
        )
        statements += [self._lookup(), (weighed(window), ""), *self._gain(), (price, REPORTED)]
        statements += [(self._reliability(), REPORTED)]
        return [(s, forced or (REFUSED if s.identical else "")) for s, forced in statements]

    def _candidates(self, parent: str, axis: str) -> list[tuple[str, str]]:
        """Returns the arms of a parent with their forced states: judged ones first."""
        if parent == "RoPE":
            return [(self.roles.rope, "")]
        role, by_axis = {
            "ALiBi": ("A", self.roles.alibi),
            "RoPE stretched": ("R+", self.roles.stretched),
        }[parent]
        judged = by_axis[axis]
        others = (arm for arm in self.roles.candidates[role] if arm not in judged)
        return [*((arm, "") for arm in judged), *((arm, REPORTED) for arm in others)]

    def _text(
        self, clause: str, parent: str, metric: str, threshold: float
    ) -> list[tuple[Statement, str]]:
        claim = Claim(
            clause, f"{metric} of {parent} less {metric} of the hybrid", (), metric, BPB, threshold
        )
        return self._against(claim, parent, TEXT)

    def _recall(
        self, clause: str, parent: str, metric: str, threshold: float
    ) -> list[tuple[Statement, str]]:
        claim = Claim(
            clause,
            f"{metric} of the hybrid less {metric} of {parent}",
            (),
            metric,
            ACCURACY,
            threshold,
        )
        return self._against(claim, parent, RETRIEVAL)

    def _against(self, claim: Claim, parent: str, axis: str) -> list[tuple[Statement, str]]:
        """Returns the claim tested against every arm of a parent."""
        candidates = self._candidates(parent, axis)
        if not candidates:
            problem = f"no arm was named for {parent}"
            none = Statement(claim.clause, claim.words, "", 0.0, (), (), (problem,), None, 1.0, 1.0)
            return [(none, "")]
        tested_arms = []
        for arm, forced in candidates:
            arms = (arm, self.name) if axis == TEXT else (self.name, arm)
            s = self._tested(dataclasses.replace(claim, arms=arms))
            s = s if axis == TEXT else self._uncontradicted(weighed(s), arm)
            note = "" if parent == "RoPE" else f"here {parent} is {arm}"
            tested_arms.append((dataclasses.replace(s, note=note), forced))
        return tested_arms

    def _uncontradicted(self, s: Statement, arm: str) -> Statement:
        """Returns the statement, barred from a state that the counts of seeds contradict."""
        count, does = (acquiring, "acquire") if s.metric == "Y_R_id" else (reaching, "reach")
        own, other = (count(self.outcomes, a, self.seeds) for a in (self.name, arm))
        fewer, more = contradicted(own, other, self.margins.alpha)
        if fewer:
            words = (
                f"its counts contradict it: {own[0]} of {own[1]} seeds {does}, of {arm} {other[0]} "
                f"of {other[1]}"
            )
            return dataclasses.replace(s, p=1.0, contradiction=words)
        return dataclasses.replace(s, p_refuted=1.0) if more else s

    def _tested(self, claim: Claim) -> Statement:
        return tested(claim, self.outcomes, self.seeds, self.margins.alpha)

    def _own(self, clause: str, words: str, *rest) -> Statement:
        """Returns a statement about the hybrid alone; rest: fields of `Claim` from `metric` on."""
        return self._tested(Claim(clause, words, (self.name,), *rest))

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
        fisher = hypothesis_tests.fisher_fewer(
            *(c[i] for i in (0, 1) for c in (counts[self.name], counts[self.roles.rope]))
        )
        listed = ", ".join(f"{arm} {k} of {n}" for arm, (k, n) in counts.items())
        said = f"{listed}; that fewer do, Fisher p {p_words(fisher)}"
        return _counted("G2", words, counts, said, p, refuted), forced

    def _gain(self) -> list[tuple[Statement, str]]:
        """Returns the gain of the hybrid from far text, and that of the oracle.

        It is required where the oracle has one. Without an oracle it is required too, but cannot
        refute.
        """
        m, oracle = self.margins, self.roles.oracle
        own = self._own("G3", "context gain", "context_gain", BPB, 0.0)
        unknown = dataclasses.replace(
            own,
            p_refuted=1.0,
            note="asked for, since no oracle shows whether the text rewards far context",
        )
        if not oracle:
            return [(unknown, "")]
        words = "context gain of the oracle, RoPE trained at 4L, within 4L"
        shown = self._tested(Claim("G3", words, (oracle,), "context_gain", BPB, m.bpb))
        if shown.test is None:
            return [(shown, REPORTED), (unknown, "")]
        required = shown.p <= m.alpha
        note = (
            "asked for, since the oracle shows one"
            if required
            else "not asked for: the oracle shows none"
        )
        return [
            (shown, REPORTED),
            (dataclasses.replace(own, note=note), "" if required else REPORTED),
        ]

    def _reliability(self) -> Statement:
        arms = dict.fromkeys([self.name, *self.roles.alibi[RETRIEVAL], self.roles.rope])
        counts = {arm: reaching(self.outcomes, arm, self.seeds) for arm in arms}
        parts, (k, n) = [], counts[self.name]
        for arm, (l, m) in counts.items():  # noqa: E741
            fewer = (
                f"; that it is fewer, Fisher p {p_words(hypothesis_tests.fisher_fewer(l, k, m, n))}"
                if arm != self.name and m and n
                else ""
            )
            limit = (
                " (at least "
                f"{hypothesis_tests.clopper_pearson_lower(l, m, self.margins.alpha):.2f}{fewer})"
                if m
                else ""
            )
            parts.append(f"{arm} {l} of {m}{limit}")
        words = f"seeds that reach (Y_R_far at least {REACHES:g} at 4L)"
        unseen = 1 - self.margins.alpha ** (1 / len(self.seeds))
        parts.append(f"{len(self.seeds)} seeds can miss that up to {unseen:.0%} of all fail")
        return _counted(RELIABILITY, words, counts, "; ".join(parts), 1.0, 1.0)


def _counted(clause, words, counts, said, p, p_refuted) -> Statement:
    return Statement(
        clause, words, "", 0.0, (), (), (), None, p, p_refuted, "count", counts=counts, said=said
    )
