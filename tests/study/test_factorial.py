"""Factorial effects against constrained least squares in plain loops."""

import itertools

import numpy as np
import pytest
from posenc_jax.study.factorial import fit

FACTORS = ("rotation", "bias", "temperature")


LEVELS = (("none", "full"), ("none", "linear", "part"), ("1", "logn"))


def oracle_effects(outcomes, names):
    """Effects by a least-squares problem with explicit sum-to-zero constraints (Lagrange).

    One unknown for the mean, one for every level and every pair of levels; float64.
    """
    cells = sorted(outcomes)
    levels = [sorted({c[i] for c in cells}) for i in range(len(names))]
    terms = [(i,) for i in range(len(names))] + list(itertools.combinations(range(len(names)), 2))
    unknowns = [((), ())]
    for term in terms:
        unknowns += [(term, chosen) for chosen in itertools.product(*(levels[i] for i in term))]
    at = {u: n for n, u in enumerate(unknowns)}
    rows, values = [], []
    for cell in cells:
        for value in outcomes[cell].values():
            row = [0.0] * len(unknowns)
            row[0] = 1.0
            for term in terms:
                row[at[term, tuple(cell[i] for i in term)]] = 1.0
            rows.append(row)
            values.append(value)
    bounds = []
    for term in terms:
        for summed in range(len(term)):
            others = [levels[i] for n, i in enumerate(term) if n != summed]
            for fixed in itertools.product(*others):
                row = [0.0] * len(unknowns)
                for level in levels[term[summed]]:
                    chosen = list(fixed)
                    chosen.insert(summed, level)
                    row[at[term, tuple(chosen)]] = 1.0
                bounds.append(row)
    a, c = np.array(rows), np.array(bounds)
    top = np.concatenate([2 * a.T @ a, c.T], 1)
    bottom = np.concatenate([c, np.zeros((len(c), len(c)))], 1)
    right = np.concatenate([2 * a.T @ np.array(values), np.zeros(len(c))])
    solution = np.linalg.lstsq(np.concatenate([top, bottom]), right, rcond=None)[0]
    return {u: solution[n] for u, n in at.items()}


def design(seeds=(0, 1, 2), drop=()):
    random = np.random.default_rng(5)
    return {
        cell: {s: float(random.normal()) for s in seeds}
        for cell in itertools.product(*LEVELS)
        if cell not in drop
    }


def fitted(outcomes, names=FACTORS, draws=200):
    return fit(outcomes, names, draws=draws, seed=1, level=0.95)


@pytest.mark.parametrize(
    "drop", [(), (("none", "part", "1"),), (("full", "linear", "logn"), ("none", "none", "1"))]
)
def test_effects_are_those_of_constrained_least_squares_also_with_missing_cells(drop):
    outcomes = design(drop=drop)
    found, wanted = fitted(outcomes), oracle_effects(outcomes, FACTORS)
    assert found.left_out == ()
    assert found.mean == pytest.approx(wanted[(), ()], abs=1e-9)
    assert len(found.effects) == 2 + 3 + 2 + 6 + 4 + 6
    for effect in found.effects:
        term = tuple(FACTORS.index(f) for f in effect.term)
        assert effect.estimate == pytest.approx(wanted[term, effect.levels], abs=1e-9)


def test_a_planted_interaction_is_found_and_nothing_else():
    outcomes = {
        (r, b, t): dict.fromkeys(
            range(4), 1.0 + 0.5 * (r == "full") + 0.8 * (r == "full" and b == "part")
        )
        for r, b, t in itertools.product(*LEVELS)
    }
    effects = {(e.term, e.levels): e for e in fitted(outcomes).effects}
    part = effects[("rotation", "bias"), ("full", "part")]
    assert part.estimate == pytest.approx(0.8 * (1 - 1 / 2) * (1 - 1 / 3))
    assert part.low == pytest.approx(part.high) == pytest.approx(part.estimate)
    for (term, _), effect in effects.items():
        if "temperature" in term:
            assert effect.estimate == pytest.approx(0.0, abs=1e-12)


def test_intervals_resample_seeds_for_all_cells_together():
    # The seeds shift every cell alike: the effects do not move, the mean does.
    outcomes = {c: {s: 10.0 * s + (c[0] == "full") for s in range(6)} for c in design()}
    for effect in fitted(outcomes).effects:
        assert effect.high - effect.low == pytest.approx(0.0, abs=1e-9)


def test_the_interval_is_that_of_a_loop_over_the_same_draws():
    outcomes = {
        (r,): {s: float(v) for s, v in enumerate(values)}
        for r, values in (("none", (1, 2, 4)), ("full", (3, 3, 9)))
    }
    found = {e.levels: e for e in fitted(outcomes, ("rotation",), draws=50).effects}
    drawn = np.random.Generator(np.random.Philox(1)).integers(3, size=(50, 3))
    halves = []
    for draw in drawn:
        none, full = ([outcomes[r,][int(s)] for s in draw] for r in ("none", "full"))
        halves.append((sum(full) - sum(none)) / 3 / 2)
    low, high = np.quantile(halves, [0.025, 0.975])
    assert (found["full",].low, found["full",].high) == pytest.approx((low, high))


def test_what_the_cells_cannot_tell_is_left_out_by_name_or_refused():
    cells = [
        ("none", "none", "1"),
        ("full", "none", "1"),
        ("none", "linear", "1"),
        ("full", "linear", "1"),
        ("none", "none", "logn"),
    ]
    found = fitted({c: {0: 1.0, 1: 2.0} for c in cells})
    assert found.left_out == ("rotation x temperature", "bias x temperature")
    tied = {("none", "none", "1"): {0: 1.0}, ("full", "linear", "1"): {0: 2.0}}
    with pytest.raises(ValueError, match="cannot tell bias from rotation"):
        fitted(tied)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o: o["none", "none", "1"].pop(0), "the same seeds"),
        (lambda o: o["none", "none", "1"].update({0: float("nan")}), "not finite"),
        (lambda o: o.update({("full", "none"): {0: 1.0, 1: 1.0, 2: 1.0}}), "one level for each"),
    ],
)
def test_a_gap_in_the_outcomes_is_refused_not_dropped(change, words):
    outcomes = design()
    change(outcomes)
    with pytest.raises(ValueError, match=words):
        fitted(outcomes)


def test_one_seed_has_no_interval():
    assert {(e.low, e.high) for e in fitted(design(seeds=(0,))).effects} == {(None, None)}
