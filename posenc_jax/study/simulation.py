"""Error rates and power of rule 2, by simulated studies whose true values are known.

Bits per byte are Gaussian over seeds. Recall may have two peaks: a share of the seeds of an arm
fails. A scenario puts one statement on its boundary or past it; all others hold with certainty. The
p of every statement come from `study.hypothesis_tests`, for all studies at once; states and
verdicts come from `study.rule_2`, so the rule itself is simulated.
"""

import dataclasses
import functools
from collections import Counter
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
    """Shares of studies whose clause holds, is refuted, or whose verdict counts; verdicts."""

    holds: float
    refuted: float
    counted: float
    verdicts: Mapping[str, int]


def tally(scenario: Scenario, *, n: int, studies: int, seed: int, margins: Margins) -> Tally:
    """Applies rule 2 to drawn studies of n seeds; draws depend on (seed, name, n) only."""
    words, holds, refuted, counted = Counter(), 0, 0, 0
    for entries, reaches in zip(*draw(scenario, n, studies, seed, margins), strict=True):
        verdicts = judged(entries, reaches, n, margins.alpha)
        word, clauses = verdicts[0]
        if scenario.clause:
            holds += clauses[scenario.clause] == "holds"
            refuted += clauses[scenario.clause] == "refuted"
        counted += any(other in scenario.counted for other, _ in verdicts)
        words[word] += 1
    return Tally(holds / studies, refuted / studies, counted / studies, dict(sorted(words.items())))


def judged(entries, reaches, n: int, alpha: float) -> list[tuple[str, Mapping[str, str]]]:
    """Returns the verdict and the states of the clauses of every hybrid of one study."""
    adjusted = statistics.holm([rule_2.p_of_yes(of_one) for of_one in entries])
    verdicts: list[tuple[str, Mapping[str, str]]] = []
    for of_one, p, reach in zip(entries, adjusted, reaches, strict=True):
        states = rule_2.states_of(of_one, alpha)
        clauses = clause_states(rule_2.CLAUSES, [e.clause for e in of_one], states)
        complete = n >= rule_2.SEEDS
        verdicts.append((rule_2.answer(clauses, p, reach, complete=complete, alpha=alpha), clauses))
    return verdicts


def draw(scenario: Scenario, n: int, studies: int, seed: int, margins: Margins):
    """Returns, by study, the entries of each hybrid, and how many of its n seeds reach."""
    random = np.random.Generator(
        np.random.Philox(np.random.SeedSequence([seed, n, *scenario.name.encode()]))
    )
    parents = {arm: _recall(scenario, arm, n, studies, random) for arm in (ROPE, STRETCHED, ALIBI)}
    noise = {
        arm: {m: BITS * random.standard_normal((studies, n)) for m in ("Y_E", "Y_id")}
        for arm in parents
    }
    rope_lookup = random.binomial(n, scenario.lookup[1], studies)
    pilot = {arm: random.binomial(n, scenario.assay, studies) for arm in (ROPE, ALIBI)}
    hybrids = []
    for _ in range(scenario.hybrids):
        values = {HYBRID: _recall(scenario, HYBRID, n, studies, random)} | parents
        own_noise = {m: BITS * random.standard_normal((studies, n)) for m in ("Y_E", "Y_id")}
        tested = _tested(scenario, values, noise | {HYBRID: own_noise}, margins)
        lookup = random.binomial(n, scenario.lookup[0], studies)
        acquire = pilot | {HYBRID: random.binomial(n, scenario.assay, studies)}
        reach = (values[HYBRID]["Y_R_far"] >= REACHES).sum(1)
        hybrids.append((tested, lookup, acquire, reach))
    entries = zip(*(_entries(*one[:3], rope_lookup, n) for one in hybrids), strict=True)
    return entries, [[(int(reach_X[x]), n) for *_, reach_X in hybrids] for x in range(studies)]


def _entries(tested, lookup_X, acquire, rope_lookup_X, n: int) -> Iterator[list[rule_2.Entry]]:
    """Yields the entries of one hybrid, study by study."""
    names = [(clause, comparison) for clause, comparison, *_ in tested]
    p_XS, refuted_XS = (np.stack([t[i] for t in tested], 1).tolist() for i in (2, 3))
    acquire_XA = np.stack(list(acquire.values()), 1).tolist()
    counted = zip(acquire_XA, lookup_X.tolist(), rope_lookup_X.tolist(), strict=True)
    for p_S, refuted_S, (acquire_A, lookup, rope) in zip(p_XS, refuted_XS, counted, strict=True):
        passes = seed_counts.assay_passes(
            {str(a): (k, n) for a, k in enumerate(acquire_A)}, list(map(str, range(len(acquire_A))))
        )
        entries = [rule_2.Entry("A0", float(not passes), 1.0, True, "" if passes else FAILS)]
        for (clause, comparison), p, refuted in zip(names, p_S, refuted_S, strict=True):
            forced = NOT_ASSESSABLE if comparison and not passes else ""
            entries.append(rule_2.Entry(clause, p, refuted, False, forced))
        p, refuted, forced = seed_counts.lookup_state((lookup, n), (rope, n))
        yield [*entries, rule_2.Entry("G2", p, refuted, False, forced)]


def _tested(scenario: Scenario, values, noise, margins: Margins):
    """Returns (clause, compares recall, p, p_refuted) of every statement, for all studies."""
    tested = []
    for name, (clause, first, second, metric, threshold) in STATEMENTS.items():
        limit = margin_of(threshold, margins)
        if metric in ("Y_E", "Y_id"):
            past = scenario.bits[name] * BITS * 2**0.5 if name in scenario.bits else SURE
            differences_XP = limit + past + noise[first][metric] - noise[second][metric]
            tested.append((clause, False, *hypothesis_tests.student_t(differences_XP, limit)))
            continue
        first_XP = values[first][metric]
        differences_XP = first_XP - values[second][metric] if second else first_XP
        t, flips = (
            hypothesis_tests.student_t(differences_XP, limit),
            hypothesis_tests.sign_flips(differences_XP, limit),
        )
        p_X, refuted_X = np.maximum(t[0], flips[0]), np.maximum(t[1], flips[1])
        if limit >= 0:
            p_X = np.maximum(p_X, hypothesis_tests.failing_seeds(differences_XP, first_XP, limit))
        if second:
            lost_X = hypothesis_tests.failing_seeds(-differences_XP, values[second][metric], -limit)
            p_X, refuted_X = _uncontradicted(
                values, second, metric, p_X, np.maximum(refuted_X, lost_X), margins.alpha
            )
        tested.append((clause, bool(second), p_X, refuted_X))
    return tested


def _uncontradicted(values, second: str, metric: str, p_X, refuted_X, alpha: float):
    """Returns both p, set to 1 where Fisher's test on counts of seeds contradicts."""
    own, bar = ("least_id", ACQUIRED) if metric == "Y_R_id" else ("Y_R_far", REACHES)
    count_X, second_X = ((values[arm][own] >= bar).sum(1) for arm in (HYBRID, second))
    fewer_KK = _fewer(values[second][own].shape[1], alpha)
    fewer_X, more_X = fewer_KK[count_X, second_X], fewer_KK[second_X, count_X]
    return np.where(fewer_X, 1.0, p_X), np.where(more_X, 1.0, refuted_X)


@functools.cache
def _fewer(n: int, alpha: float) -> np.ndarray:
    """Returns for each pair of counts out of n whether Fisher's test calls the first smaller."""
    pairs = [
        [seed_counts.contradicted((k, n), (j, n), alpha)[0] for j in range(n + 1)]
        for k in range(n + 1)
    ]
    return np.array(pairs)


def _recall(scenario: Scenario, arm: str, n: int, studies: int, random) -> dict[str, np.ndarray]:
    """Returns the recall of one arm by metric, one column a seed."""
    peaks = scenario.recall[arm] if arm in scenario.recall else Peaks(LEVELS[arm])
    unlearnt_XP = random.random((studies, n)) < peaks.unlearnt
    fails_XP = (random.random((studies, n)) < peaks.fails) | unlearnt_XP
    values = {}
    for metric in RECALL:
        lost_XP = unlearnt_XP if metric == "Y_R_id" else fails_XP
        values[metric] = np.where(lost_XP, peaks.failed, peaks.level[metric])
        values[metric] = values[metric] + peaks.spread * random.standard_normal((studies, n))
    # The worst of three tasks: a little below their mean.
    values["least_id"] = values["Y_R_id"] - 0.03
    drop = 0.6 if scenario.drop is None else scenario.drop / (1 - peaks.fails)
    values["window_drop"] = np.where(fails_XP, 0.0, drop) + peaks.spread * random.standard_normal(
        (studies, n)
    )
    return values
