"""Measures of the claims: from committed results to findings of the ledger."""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from posenc_jax.results.schema import FAR, ID
from posenc_jax.results.study_data import RunData
from posenc_jax.study import seed_counts, statistics
from posenc_jax.study.evidence import Evidence, Quantity, bpb, by_seed
from posenc_jax.study.ledger import BOUNDED, OPEN, REFUTED, REPRODUCED, Finding
from posenc_jax.study.seed_comparisons import (
    BITS,
    MARGINS,
    Measure,
    Sides,
    compared,
    decided,
    in_every_seed,
    passkey_far,
    scale_of,
    value_of,
    zero_where,
)
from posenc_jax.study.worked_examples import decay_of_random_vectors, octave_means_of_decay

FALLS = 0.1  # bits per byte: a loss that rises by more has fallen off
FACTOR = 25  # S5: 4k to 100k
LARGE, MEDIUM = 0.8, 0.5  # rank correlations


# S1, S2


def disjoint_loss(k: float) -> Quantity:
    """Returns E1 over the stretches of E2: E2 and E9 add up to it."""

    def value(run: RunData) -> float | None:
        parts = [run.value(metric, k) for metric in ("bpb_sliding", "early_token_curse")]
        known = [part for part in parts if part is not None]
        return sum(known) if len(known) == len(parts) else None

    return value


def against_twice(quantity: Callable[[float], Quantity], words: str) -> Measure:
    """Returns ALiBi of L read at 2L, less sinusoids trained at 2L."""
    return compared(
        ("alibi", "sinusoidal"),
        lambda arms: ((arms["alibi"], quantity(2)), (f"{arms['sinusoidal']}-2L", quantity(1))),
        MARGINS.bpb,
        above=False,
        unit=f"{BITS}, {words}",
    )


# S4, S5, S6


def after_tuning(rule: str, k: float) -> Measure:
    """Returns the loss at kL of RoPE fine-tuned at 4L by a rule, less that within L before."""
    return compared(
        ("rope", "sinusoidal"),
        lambda arms: ((f"{arms['rope']}-{rule}", bpb(k)), (arms["rope"], bpb(ID))),
        MARGINS.bpb,
        above=False,
        unit=f"{BITS} with {rule}",
    )


def every(measures: Sequence[Measure]) -> Measure:
    """Returns the measure with the findings of all the measures, in their order."""
    return lambda evidence: [finding for measure in measures for finding in measure(evidence)]


def kept_factor(rule: str) -> Measure:
    """Returns how far a stretch keeps the loss within 0.1 of that within L, without training."""

    def measure(evidence: Evidence) -> list[Finding]:
        findings = []
        for name, data, arms in evidence.with_roles("rope", "sinusoidal"):
            arm = f"{arms['rope']}-far"
            within = by_seed(data, arm, bpb(ID))
            kept, last, seeds = 1, "", 0
            for factor in (2, 4, 8, 16, 32, 64):
                read = by_seed(data, f"{arm} {rule}:{factor}", bpb(factor))
                differences = statistics.pair(read, within).differences
                if not differences:
                    break
                seeds = len(differences)
                verdict, last = decided(differences, FALLS, False, BITS)
                if verdict != REPRODUCED:
                    last = f"at {factor}: {last}"
                    break
                kept = factor
            if last:
                verdict = REPRODUCED if kept >= FACTOR else BOUNDED if kept > 1 else REFUTED
                words = f"{rule} holds to a factor of {kept}; {last}"
                scale = scale_of(data, arm, seeds=seeds)
                findings.append(Finding(f"results/{name}", verdict, words, scale))
        return findings

    return measure


def scaled_slopes(factor: int, quantity: Quantity, **rule) -> Measure:
    """Returns the measure of ALiBi read with slopes divided by a factor, less as trained; `rule` as
    for `compared`.
    """
    return compared(("alibi", "sinusoidal"), _slopes_sides(factor, quantity), **rule)


def far_passkeys_under_slopes(factor: int, threshold: float) -> Measure:
    """Returns what dividing the slopes by a factor does for far passkeys, in every seed."""
    return in_every_seed(
        ("alibi", "sinusoidal"),
        _slopes_sides(factor, passkey_far(factor)),
        threshold,
        above=True,
        unit=f"of far passkeys at {factor}L",
    )


def _slopes_sides(factor: int, quantity: Quantity) -> Sides:
    return lambda arms: ((f"{arms['alibi']} slopes:{factor}", quantity), (arms["alibi"], quantity))


# S7, S8


def _heads(run: RunData, metric: str, k: float, extra: str = "") -> dict[str, float]:
    """Returns a metric of every head at kL, by head."""
    found = {}
    for row in run.rows:
        head, _, rest = row.bucket.partition(" ")
        if (row.metric, row.k, rest) == (metric, k, extra) and row.value is not None:
            found[head] = row.value
    return found


def predicted_reach(evidence: Evidence) -> list[Finding]:
    """Returns the rank correlation of predicted and measured reach over heads of ALiBi (M10)."""
    findings = []
    for name, data, arms in evidence.with_roles("alibi"):
        pairs, seeds = [], set()
        for run in (r for r in data.runs if r.arm == arms["alibi"] and not r.why):
            predicted, measured = (
                _heads(run, f"M10_{word}_reach", FAR, "passkey")
                for word in ("predicted", "measured")
            )
            pairs += [(predicted[head], measured[head]) for head in predicted.keys() & measured]
            seeds |= {run.seed} if predicted else set()
        if len(pairs) < 3:
            continue
        rank = float(stats.spearmanr(*zip(*sorted(pairs), strict=True)).statistic)
        verdict = REPRODUCED if rank >= LARGE else BOUNDED if rank >= MEDIUM else REFUTED
        words = f"rank correlation {rank:.2f} over {len(pairs)} heads of all seeds"
        if math.isnan(rank):
            verdict, words = OPEN, f"all {len(pairs)} heads have one reach"
        scale = scale_of(data, arms["alibi"], seeds=len(seeds))
        findings.append(Finding(f"results/{name}", verdict, words, scale))
    return findings


def far_alibi(
    first: Quantity, second: Quantity, threshold: float, above: bool, unit: str
) -> Measure:
    """Returns two quantities of the ALiBi arm that is read far, the first less the second."""
    return compared(
        ("alibi", "sinusoidal"),
        lambda arms: ((f"{arms['alibi']}-far", first), (f"{arms['alibi']}-far", second)),
        threshold,
        above=above,
        unit=unit,
    )


# S9 to S14


def long_documents(evidence: Evidence) -> list[Finding]:
    """Returns the corrected accuracy of RoPE on long documents, less that of ALiBi."""
    data = evidence.study("longtext")
    if data is None:
        return []
    values = [by_seed(data, arm, _corrected_classes) for arm in ("rope", "alibi")]
    differences = statistics.pair(*values).differences
    verdict, words = decided(differences, 0.0, True, "corrected accuracy")
    scale = scale_of(data, "rope", "alibi", seeds=len(differences))
    return [Finding("results/longtext", verdict, words, scale)]


def _corrected_classes(run: RunData) -> float | None:
    found = run.multiples("longtext_corrected")
    return run.value("longtext_corrected", found[-1]) if found else None


def equal_vectors(evidence: Evidence) -> list[Finding]:
    """Returns whether the product of equal vectors falls in every octave of distance."""
    means = octave_means_of_decay()
    falls = all(a > b for a, b in itertools.pairwise(means))
    verdict = REPRODUCED if falls else BOUNDED if means[-1] < means[0] else REFUTED
    words = f"bound falls from {means[0]:.2f} to {means[-1]:.2f} over {len(means)} octaves"
    words += ", in every one" if falls else ", not in every one"
    return [
        Finding("python scripts/claims.py", verdict, words, "64 dims, base 10,000, to 1,024 tokens")
    ]


def random_vectors(evidence: Evidence) -> list[Finding]:
    """Returns the rms product of Gaussian vectors at 1,024 tokens over that at 1."""
    near, far, bias, draws = decay_of_random_vectors()
    ratio = far / near
    verdict = REPRODUCED if ratio < 0.5 else BOUNDED if ratio < 0.95 else REFUTED
    words = f"rms at 1,024 tokens {ratio:.3f} of that at 1; largest mean {bias:.1f} standard errors"
    scale = f"64 dims, base 10,000, {draws:,} pairs of vectors"
    return [Finding("python scripts/claims.py", verdict, words, scale)]


def better_parent(k: float, threshold: float, above: bool) -> Measure:
    """Returns the sum against the parent with the lower mean loss at kL."""

    def measure(evidence: Evidence) -> list[Finding]:
        findings = []
        for name, data, arms in evidence.with_roles("rope", "alibi", "sum"):
            losses = {role: by_seed(data, arms[role], bpb(k)) for role in ("rope", "alibi")}
            known = {r: [x for x in v.values() if x is not None] for r, v in losses.items()}
            if not all(known.values()):
                continue
            means = {role: np.mean(values) for role, values in known.items()}
            best = min(means, key=lambda role: means[role])
            own = by_seed(data, arms["sum"], bpb(k))
            differences = statistics.pair(own, losses[best]).differences
            place = "within L" if k == ID else f"at {k}L"
            unit = f"{BITS} against {arms[best]} {place}"
            verdict, words = decided(differences, threshold, above, unit)
            scale = scale_of(data, arms["sum"], arms[best], seeds=len(differences))
            findings.append(Finding(f"results/{name}", verdict, words, scale))
        return findings

    return measure


def recall_of_sum(evidence: Evidence) -> list[Finding]:
    """Returns Y_R at 4L of the sum against ALiBi's, where RoPE, ALiBi and sum acquire recall."""
    findings = []
    for name, data, arms in evidence.with_roles("rope", "alibi", "sum"):
        outcomes = {
            (arm, "least_id"): by_seed(data, arm, value_of("least_id", 1)) for arm in arms.values()
        }
        counts = {
            arms[role]: seed_counts.acquiring(
                outcomes, arms[role], sorted({r.seed for r in data.runs})
            )
            for role in ("rope", "alibi", "sum")
        }
        passes = seed_counts.assay_passes(counts, list(counts))
        if passes is None:
            continue
        scale = scale_of(data, *counts, seeds=max(n for _, n in counts.values()))
        if not passes:
            words = ", ".join(f"{arm} {k} of {n}" for arm, (k, n) in counts.items())
            words = f"seeds that acquire recall: {words}"
            findings.append(Finding(f"results/{name}", OPEN, words, scale))
            continue
        sides = [by_seed(data, arms[role], value_of("Y_R", FAR)) for role in ("sum", "alibi")]
        differences = statistics.pair(*sides).differences
        verdict, words = decided(differences, MARGINS.accuracy, False, "Y_R at 4L")
        findings.append(Finding(f"results/{name}", verdict, words, scale))
    return findings


def _slope_of_heads(run: RunData) -> dict[str, float]:
    heads = run.heads or []
    return {f"head:{h['layer']}.{h['head']}": h["slope"] for h in heads if h.get("slope")}


def distance_follows_slope(run: RunData) -> float | None:
    """Returns the rank correlation of slope and mean distance over the heads of a run."""
    slopes, distance = _slope_of_heads(run), _heads(run, "M1_mean_distance", 1)
    heads = sorted(slopes.keys() & distance)
    if len(heads) < 3:
        return None
    pair = ([slopes[h] for h in heads], [distance[h] for h in heads])
    return float(stats.spearmanr(*pair).statistic)


def spread_by_training(run: RunData) -> float | None:
    """Returns log2 of trained over untrained mean distance: shallow half of the heads less steep
    half.
    """
    slopes = _slope_of_heads(run)
    after, added = _heads(run, "M1_mean_distance", 1), _heads(run, "M13_distance_change", 1)
    heads = sorted(slopes.keys() & after & added.keys(), key=lambda head: (slopes[head], head))
    if len(heads) < 2:
        return None
    grown = [math.log2(after[head] / (after[head] - added[head])) for head in heads]
    half = len(heads) // 2
    return float(np.mean(grown[:half]) - np.mean(grown[-half:]))


def of_alibi(quantity: Quantity, threshold: float, above: bool, unit: str) -> Measure:
    """Returns the test of a quantity of ALiBi's runs against a number."""
    return compared(("alibi",), _against_zero("", quantity), threshold, above=above, unit=unit)


def of_every_alibi(quantity: Quantity, threshold: float, above: bool, unit: str) -> Measure:
    """Returns whether a quantity of ALiBi's runs passes a number in every seed."""
    return in_every_seed(("alibi",), _against_zero("", quantity), threshold, above=above, unit=unit)


def _against_zero(suffix: str, quantity: Quantity) -> Sides:
    """Returns the sides of a test against a number, for the arm of ALiBi with this suffix."""
    return lambda arms: (
        (f"{arms['alibi']}{suffix}", quantity),
        (f"{arms['alibi']}{suffix}", zero_where(quantity)),
    )


def far_passkeys(k: int, threshold: float) -> Measure:
    """Returns far passkeys at kL of the ALiBi arm that is read far, in every seed."""
    return in_every_seed(
        ("alibi", "sinusoidal"),
        _against_zero("-far", passkey_far(k)),
        threshold,
        above=True,
        unit=f"of far passkeys at {k:,} L",
    )
