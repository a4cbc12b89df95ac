"""Simulated studies with a known truth: how often rule 2 is wrong, and how often right.

Bits per byte are Gaussian over seeds. Recall may have two peaks: a share of an arm's seeds fails
outright. A truth puts one thing on its boundary, or past it, and lets everything else hold for sure.
The p of every statement come from `study.evidence` for all studies at once, states and answers from
`study.rule_2`: what is simulated is the rule itself.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping

import numpy as np

from posenc_jax.results.schema import ACQUIRED, REACHES
from posenc_jax.study import hypothesis_tests, rule_2, seed_counts, statistics
from posenc_jax.study.decision import FAILS, NOT_ASSESSABLE, Margins, clause_states
from posenc_jax.study.scenarios import (
    ALIBI,
    BITS,
    HYBRID,
    LEVELS,
    RECALL,
    ROPE,
    STATEMENTS,
    STRETCHED,
    SURE,
    Peaks,
    Scenario,
    margin_of,
)


@dataclasses.dataclass(frozen=True)
class Tally:
    """Shares of studies: the clause holds, is refuted; the verdict is a counted one; every verdict."""

    holds: float
    refuted: float
    counted: float
    verdicts: Mapping[str, int]


def tally(truth: Scenario, *, n: int, studies: int, seed: int, margins: Margins) -> Tally:
    """Draws studies of n seeds and asks rule 2 of each; draws are a function of (seed, name, n)."""
    found: dict[str, int] = {}
    holds = refuted = counted = 0
    for entries, reaches in zip(*draw(truth, n=n, studies=studies, seed=seed, margins=margins), strict=True):  # fmt: skip
        said = judged(entries, reaches, n, margins.alpha)
        first = said[0]
        if truth.clause:
            holds += first[1][truth.clause] == "holds"
            refuted += first[1][truth.clause] == "refuted"
        counted += any(word in truth.counted for word, _ in said)
        found[first[0]] = found.get(first[0], 0) + 1
    return Tally(holds / studies, refuted / studies, counted / studies, dict(sorted(found.items())))


def judged(entries, reaches, n: int, alpha: float) -> list[tuple[str, Mapping[str, str]]]:
    """Returns word and clauses of every hybrid of one study."""
    adjusted = statistics.holm([rule_2.p_of_yes(of_one) for of_one in entries])
    found = []
    for of_one, p, reach in zip(entries, adjusted, reaches, strict=True):
        states = rule_2.states_of(of_one, alpha)
        clauses = clause_states(rule_2.CLAUSES, [e.clause for e in of_one], states)
        complete = n >= rule_2.SEEDS
        found.append((rule_2.answer(clauses, p, reach, complete=complete, alpha=alpha), clauses))
    return found


def draw(truth: Scenario, *, n: int, studies: int, seed: int, margins: Margins):
    """Returns for every study the entries of each hybrid, and in how many of n seeds each reaches."""
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, n, *truth.name.encode()])))  # fmt: skip
    parents = {arm: _recall(truth, arm, n, studies, random) for arm in (ROPE, STRETCHED, ALIBI)}
    noise = {arm: {m: BITS * random.standard_normal((studies, n)) for m in ("Y_E", "Y_id")} for arm in parents}  # fmt: skip
    rope_lookup = random.binomial(n, truth.lookup[1], studies)
    pilot = {arm: random.binomial(n, truth.assay, studies) for arm in (ROPE, ALIBI)}
    hybrids = []
    for _ in range(truth.hybrids):
        values = {HYBRID: _recall(truth, HYBRID, n, studies, random)} | parents
        mine = {m: BITS * random.standard_normal((studies, n)) for m in ("Y_E", "Y_id")}
        tested = _tested(truth, values, noise | {HYBRID: mine}, margins)
        lookup = random.binomial(n, truth.lookup[0], studies)
        acquire = pilot | {HYBRID: random.binomial(n, truth.assay, studies)}
        reach = (values[HYBRID]["Y_R_far"] >= REACHES).sum(1)
        hybrids.append((tested, lookup, acquire, reach))
    entries = zip(*(_entries(*one[:3], rope_lookup, n) for one in hybrids), strict=True)
    return entries, [[(int(reach_X[x]), n) for *_, reach_X in hybrids] for x in range(studies)]


def _entries(tested, lookup_X, acquire, rope_lookup_X, n: int) -> Iterator[list[rule_2.Entry]]:
    """The entries of one hybrid, study by study."""
    names = [(clause, comparison) for clause, comparison, *_ in tested]
    p_XS, refuted_XS = (np.stack([t[i] for t in tested], 1).tolist() for i in (2, 3))
    acquire_XA = np.stack(list(acquire.values()), 1).tolist()
    counted = zip(acquire_XA, lookup_X.tolist(), rope_lookup_X.tolist(), strict=True)
    for p_S, refuted_S, (acquire_A, lookup, rope) in zip(p_XS, refuted_XS, counted, strict=True):
        passes = seed_counts.assay_passes({a: (k, n) for a, k in enumerate(acquire_A)}, range(len(acquire_A)))  # fmt: skip
        found = [rule_2.Entry("A0", float(not passes), 1.0, True, "" if passes else FAILS)]
        for (clause, comparison), p, refuted in zip(names, p_S, refuted_S, strict=True):
            forced = NOT_ASSESSABLE if comparison and not passes else ""
            found.append(rule_2.Entry(clause, p, refuted, False, forced))
        p, refuted, forced = seed_counts.lookup_state((lookup, n), (rope, n))
        yield [*found, rule_2.Entry("G2", p, refuted, False, forced)]


def _tested(truth: Scenario, values, noise, margins: Margins):
    """Clause, whether it compares recall, and both p of every statement, for all studies at once."""
    found = []
    for name, (clause, first, second, metric, threshold) in STATEMENTS.items():
        limit = margin_of(threshold, margins)
        if metric in ("Y_E", "Y_id"):
            past = truth.bits[name] * BITS * 2**0.5 if name in truth.bits else SURE
            differences_XP = limit + past + noise[first][metric] - noise[second][metric]
            found.append((clause, False, *hypothesis_tests.student_t(differences_XP, limit)))
            continue
        first_XP = values[first][metric]
        differences_XP = first_XP - values[second][metric] if second else first_XP
        t, flips = hypothesis_tests.student_t(differences_XP, limit), hypothesis_tests.sign_flips(differences_XP, limit)  # fmt: skip
        p_X, refuted_X = np.maximum(t[0], flips[0]), np.maximum(t[1], flips[1])
        if limit >= 0:
            p_X = np.maximum(p_X, hypothesis_tests.failing_seeds(differences_XP, first_XP, limit))
        if second:
            lost_X = hypothesis_tests.failing_seeds(-differences_XP, values[second][metric], -limit)
            p_X, refuted_X = _uncontradicted(values, second, metric, p_X, np.maximum(refuted_X, lost_X), margins.alpha)  # fmt: skip
        found.append((clause, bool(second), p_X, refuted_X))
    return found


def _uncontradicted(values, second: str, metric: str, p_X, refuted_X, alpha: float):
    """Both p, 1 where Fisher's test on the seeds that acquire or reach says the opposite."""
    own, bar = ("least_id", ACQUIRED) if metric == "Y_R_id" else ("Y_R_far", REACHES)
    mine_X, theirs_X = ((values[arm][own] >= bar).sum(1) for arm in (HYBRID, second))
    n = values[second][own].shape[1]
    fewer_KK = _fewer(n, alpha)
    fewer_X, more_X = fewer_KK[mine_X, theirs_X], fewer_KK[theirs_X, mine_X]
    return np.where(fewer_X, 1.0, p_X), np.where(more_X, 1.0, refuted_X)


@functools.cache
def _fewer(n: int, alpha: float) -> np.ndarray:
    """Whether Fisher's test says "fewer" of each pair of counts out of n."""
    pairs = [[seed_counts.contradicted((k, n), (j, n), alpha)[0] for j in range(n + 1)] for k in range(n + 1)]  # fmt: skip
    return np.array(pairs)


def _recall(truth: Scenario, arm: str, n: int, studies: int, random) -> dict[str, np.ndarray]:
    """Values of recall of one arm, by metric, one column a seed."""
    peaks = truth.recall[arm] if arm in truth.recall else Peaks(LEVELS[arm])
    unlearnt_XP = random.random((studies, n)) < peaks.unlearnt
    fails_XP = (random.random((studies, n)) < peaks.fails) | unlearnt_XP
    found = {}
    for metric in RECALL:
        lost_XP = unlearnt_XP if metric == "Y_R_id" else fails_XP
        found[metric] = np.where(lost_XP, peaks.failed, peaks.level[metric])
        found[metric] = found[metric] + peaks.spread * random.standard_normal((studies, n))
    # The worst of three tasks: a little below their mean.
    found["least_id"] = found["Y_R_id"] - 0.03
    drop = 0.6 if truth.drop is None else truth.drop / (1 - peaks.fails)
    found["window_drop"] = np.where(fails_XP, 0.0, drop) + peaks.spread * random.standard_normal((studies, n))  # fmt: skip
    return found
