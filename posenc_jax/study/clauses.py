"""The statements of rule 2 about one hybrid, clause by clause, and what forces a state on one."""

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
from posenc_jax.study.statements import (
    Outcomes,
    Statement,
    agreed,
    alone,
    checked,
    compared,
    p_words,
)

RELIABILITY = "reliability"


def weighed(s: Statement, *, behind: bool = True) -> Statement:
    """Returns a statement about accuracy with the largest of its p.

    "Not worse by a margin" is spared the failing seeds of the arm ahead: no 12 seeds can say that the
    share that fails is below a margin of 0.05 (59 that all succeed could).
    """
    return agreed(s, ahead=s.threshold >= 0, behind=behind)


@dataclasses.dataclass(frozen=True)
class Hybrid:
    """Writes the statements of one hybrid, each with the state that is forced on it, or ""."""

    outcomes: Outcomes
    name: str
    roles: Roles
    counts: Counts
    seeds: tuple[int, ...]
    margins: Margins

    def statements(self) -> list[tuple[Statement, str]]:
        m, roles = self.margins, self.roles
        assay = self._assay()
        passed = self._passes()
        found = [(assay, "" if passed else NOT_ASSESSABLE if passed is None else FAILS)]
        found += self._text("C1", "RoPE", (roles.rope,), (), "Y_E", m.bpb)
        found += self._text("C1b", "RoPE stretched", *self._of("R+", TEXT), "Y_E", m.bpb)
        found += self._text("C2", "ALiBi", *self._of("A", TEXT), "Y_E", -m.bpb)
        retrieval = [
            *self._recall("C3", "ALiBi", *self._of("A", RETRIEVAL), "Y_R", m.accuracy),
            *self._recall("C3", "ALiBi", *self._of("A", RETRIEVAL), "Y_R_far", 0.0),
            *self._recall("C4", "RoPE", (roles.rope,), (), "Y_R", m.accuracy),
            *self._recall("C4b", "RoPE stretched", *self._of("R+", RETRIEVAL), "Y_R", m.accuracy),
            *self._recall("C4b", "RoPE stretched", *self._of("R+", RETRIEVAL), "Y_R_8", m.accuracy),
            *self._recall("G1", "RoPE", (roles.rope,), (), "Y_R_id", -m.accuracy),
            *self._recall("G1", "ALiBi", *self._of("A", RETRIEVAL), "Y_R_id", -m.accuracy),
        ]
        found += retrieval if passed else [(s, forced or NOT_ASSESSABLE) for s, forced in retrieval]  # fmt: skip
        found += self._text("G1", "RoPE", (roles.rope,), (), "Y_id", -m.bpb)
        found += self._text("G1", "ALiBi", *self._of("A", TEXT), "Y_id", -m.bpb)
        found += [
            (self._check("P1", f"P1, the shift error, is at most {m.shift:g}", "at most", m.shift), ""),
            (self._check("P5", "P5, the share of heads with a monotone bias, is 1", "equal", 1.0), ""),
            (self._check("P4", "P4, what rotation off costs in bits per byte, is above 0", "above", 0.0), ""),
            self._lookup(),
        ]  # fmt: skip
        window = self._own("G3", "fall of Y_R at 4L under a window of L", "window_drop", ACCURACY, m.accuracy)  # fmt: skip
        found += [(weighed(window), ""), *self._gain()]
        found += [(self._own("price", "bpb_ctx(4L) less bpb_id, the price of length", "price", BPB, 0.0), REPORTED)]  # fmt: skip
        found += [(self._reliability(), REPORTED)]
        return [(s, forced or (REFUSED if s.identical else "")) for s, forced in found]

    def _of(self, role: str, axis: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The candidates of a role that are judged on an axis, and those that are reported."""
        judged = {"R+": self.roles.stretched, "A": self.roles.alibi}[role][axis]
        return judged, tuple(a for a in self.roles.candidates[role] if a not in judged)

    def _text(self, clause, who, judged, reported, metric, threshold) -> list[tuple[Statement, str]]:  # fmt: skip
        words = f"{metric} of {who} less {metric} of the hybrid"
        return self._against(clause, who, words, judged, reported, lambda arm: compared(
            self.outcomes, clause, words, (arm, self.name), metric, BPB, threshold, self.seeds, self.margins.alpha
        ))  # fmt: skip

    def _recall(self, clause, who, judged, reported, metric, threshold) -> list[tuple[Statement, str]]:  # fmt: skip
        words = f"{metric} of the hybrid less {metric} of {who}"

        def against(arm: str) -> Statement:
            said = compared(
                self.outcomes, clause, words, (self.name, arm), metric, ACCURACY, threshold, self.seeds, self.margins.alpha
            )  # fmt: skip
            return self._uncontradicted(weighed(said), arm)

        return self._against(clause, who, words, judged, reported, against)

    def _against(self, clause, who, words, judged, reported, state) -> list[tuple[Statement, str]]:
        if not judged:
            problem = f"no arm was named for {who}"
            return [(Statement(clause, words, "", 0.0, (), (), (problem,), None, 1.0, 1.0), "")]
        found = []
        for arm in (*judged, *reported):
            said = state(arm)
            if who != "RoPE":
                said = dataclasses.replace(said, note=f"here {who} is {arm}")
            found.append((said, "" if arm in judged else REPORTED))
        return found

    def _uncontradicted(self, s: Statement, arm: str) -> Statement:
        """The statement, which cannot hold (or be refuted) where the counts of seeds say the opposite."""
        count, does = (acquiring, "acquire") if s.metric == "Y_R_id" else (reaching, "reach")
        mine, theirs = (count(self.outcomes, a, self.seeds) for a in (self.name, arm))
        fewer, more = contradicted(mine, theirs, self.margins.alpha)
        if fewer:
            words = f"its counts contradict it: {mine[0]} of {mine[1]} seeds {does}, of {arm} {theirs[0]} of {theirs[1]}"  # fmt: skip
            return dataclasses.replace(s, p=1.0, contradiction=words)
        return dataclasses.replace(s, p_refuted=1.0) if more else s

    def _own(self, clause, words, metric, unit, threshold) -> Statement:
        return alone(self.outcomes, clause, words, self.name, metric, unit, threshold, self.seeds, self.margins.alpha)  # fmt: skip

    def _check(self, metric, words, kind, bound) -> Statement:
        return checked(self.outcomes, "G2", words, self.name, metric, kind, bound, self.seeds)

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
        fisher = hypothesis_tests.fisher_fewer(*(c[i] for i in (0, 1) for c in (counts[self.name], counts[self.roles.rope])))  # fmt: skip
        listed = ", ".join(f"{arm} {k} of {n}" for arm, (k, n) in counts.items())
        said = f"{listed}; that fewer do, Fisher p {p_words(fisher)}"
        return _counted("G2", words, counts, said, p, refuted), forced

    def _gain(self) -> list[tuple[Statement, str]]:
        """Use of far text, asked of the hybrid where the oracle shows one.

        Where no oracle can say, it is asked for as well, but cannot refute.
        """
        m, oracle = self.margins, self.roles.oracle
        mine = self._own("G3", "context gain", "context_gain", BPB, 0.0)
        unknown = dataclasses.replace(mine, p_refuted=1.0, note="asked for, since no oracle shows whether the text rewards far context")  # fmt: skip
        if not oracle:
            return [(unknown, "")]
        shown = alone(self.outcomes, "G3", "context gain of the oracle, RoPE trained at 4L, within 4L", oracle, "context_gain", BPB, m.bpb, self.seeds, m.alpha)  # fmt: skip
        if shown.test is None:
            return [(shown, REPORTED), (unknown, "")]
        asked = shown.p <= m.alpha
        note = "asked for, since the oracle shows one" if asked else "not asked for: the oracle shows none"  # fmt: skip
        return [(shown, REPORTED), (dataclasses.replace(mine, note=note), "" if asked else REPORTED)]  # fmt: skip

    def _reliability(self) -> Statement:
        arms = dict.fromkeys([self.name, *self.roles.alibi[RETRIEVAL], self.roles.rope])
        counts = {arm: reaching(self.outcomes, arm, self.seeds) for arm in arms}
        parts, (k, n) = [], counts[self.name]
        for arm, (l, m) in counts.items():  # noqa: E741
            fewer = f"; that it is fewer, Fisher p {p_words(hypothesis_tests.fisher_fewer(l, k, m, n))}" if arm != self.name and m and n else ""  # fmt: skip
            limit = f" (at least {hypothesis_tests.clopper_pearson_lower(l, m, self.margins.alpha):.2f}{fewer})" if m else ""  # fmt: skip
            parts.append(f"{arm} {l} of {m}{limit}")
        words = f"seeds that reach (Y_R_far at least {REACHES:g} at 4L)"
        unseen = 1 - self.margins.alpha ** (1 / len(self.seeds))
        parts.append(f"{len(self.seeds)} seeds can miss that up to {unseen:.0%} of all fail")
        return _counted(RELIABILITY, words, counts, "; ".join(parts), 1.0, 1.0)


def _counted(clause, words, counts, said, p, p_refuted) -> Statement:
    return Statement(
        clause, words, "", 0.0, (), (), (), None, p, p_refuted, "count", counts=counts, said=said
    )
