"""Main effects and two-way interactions of a factorial study, by least squares on per-seed
outcomes.

Every effect is a deviation from the grand mean (sum-to-zero coding): the effects of a factor add up
to zero, with missing cells too. Source: Scheffe 1959, ch. 4.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import numpy as np

Levels = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Effect:
    """The estimate of one combination of levels, with a percentile interval over bootstrap draws of
    seeds.

    Attributes:
      term: ("bias",) or ("rotation", "bias"). levels: one per factor of the term.
      low, high: None with a single seed.
    """

    term: tuple[str, ...]
    levels: Levels
    estimate: float
    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True)
class Fit:
    """All effects; mean: over the cells. left_out: names of terms that are not identifiable."""

    mean: float
    effects: tuple[Effect, ...]
    left_out: tuple[str, ...]
    seeds: tuple[int, ...]


def fit(
    outcomes: Mapping[Levels, Mapping[int, float]],
    factors: Sequence[str],
    *,
    draws: int,
    seed: int,
    level: float,
) -> Fit:
    """Returns the least-squares fit of mean + main effects + two-way interactions.

    A two-way interaction that is not identifiable (a combination was never run) is left out and
    named. Seeds are resampled once for all cells: they are paired across arms.

    Args:
      outcomes: by cell (a level of every factor) and training seed. factors: names, in the order of
        the levels; a factor with a single level is left out of the model.
      draws: number of bootstrap draws, a function of `seed` alone. level: coverage of the
        intervals.

    Raises:
      ValueError: cells with different seeds, a value that is not finite, a cell with another number
        of levels than factors, no factor with two levels, or main effects that are not
        identifiable.
    """
    cells = sorted(outcomes)
    if any(len(cell) != len(factors) for cell in cells):
        raise ValueError(f"every cell needs one level for each of {', '.join(factors)}")
    seeds = {tuple(sorted(outcomes[cell])) for cell in cells}
    if len(seeds) != 1 or not next(iter(seeds)):
        raise ValueError("a factorial needs the same seeds, at least one, in every cell")
    order = next(iter(seeds))
    value_CP = np.array([[outcomes[cell][s] for s in order] for cell in cells], np.float64)
    if not np.isfinite(value_CP).all():
        raise ValueError("a factorial got a value that is not finite")
    known = {f: sorted({cell[i] for cell in cells}) for i, f in enumerate(factors)}
    varied = [f for f in factors if len(known[f]) > 1]
    if not varied:
        raise ValueError(f"no factor has two levels: {known}")

    terms, left_out, design_CX = [], [], np.ones((len(cells), 1))
    candidates = [(f,) for f in varied] + list(itertools.combinations(varied, 2))
    for term in candidates:
        column_CX = _columns(cells, factors, known, term)
        wider_CX = np.concatenate([design_CX, column_CX], 1)
        if np.linalg.matrix_rank(wider_CX) < wider_CX.shape[1]:
            if len(term) == 1:
                raise ValueError(
                    f"these cells cannot tell {term[0]} from "
                    f"{', '.join(f for f in varied if f != term[0])}"
                )
            left_out.append(" x ".join(term))
            continue
        terms.append((term, slice(design_CX.shape[1], wider_CX.shape[1])))
        design_CX = wider_CX

    solve_XC = np.linalg.pinv(design_CX)
    coefficient_X = solve_XC @ value_CP.mean(1)
    random = np.random.Generator(np.random.Philox(seed))
    drawn_RP = random.integers(len(order), size=(draws, len(order)))
    coefficient_XR = solve_XC @ value_CP[:, drawn_RP].mean(2)
    effects = []
    for term, where in terms:
        combinations = list(itertools.product(*(known[f] for f in term)))
        weight_EX = _coded(combinations, [known[f] for f in term])
        estimate_E = weight_EX @ coefficient_X[where]
        ends = ((1 - level) / 2, (1 + level) / 2)
        low_E, high_E = np.quantile(weight_EX @ coefficient_XR[where], ends, axis=1)
        for e, levels in enumerate(combinations):
            limits = (float(low_E[e]), float(high_E[e])) if len(order) > 1 else (None, None)
            effects.append(Effect(term, levels, float(estimate_E[e]), *limits))
    return Fit(float(coefficient_X[0]), tuple(effects), tuple(left_out), order)


def _columns(cells, factors, known, term) -> np.ndarray:
    chosen = [tuple(cell[factors.index(f)] for f in term) for cell in cells]
    return _coded(chosen, [known[f] for f in term])


def _coded(combinations: Sequence[Levels], known: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns the sum-to-zero columns of a term, a row per combination of levels."""
    rows = []
    for levels in combinations:
        row_X = np.ones(1)
        for level, all_levels in zip(levels, known, strict=True):
            last = len(all_levels) - 1
            at = all_levels.index(level)
            row_X = np.kron(row_X, np.eye(last)[at] if at < last else -np.ones(last))
        rows.append(row_X)
    return np.stack(rows)
