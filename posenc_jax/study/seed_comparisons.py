"""Comparisons over training seeds for the ledger of claims: one quantity against another, with a
verdict.
"""

from collections.abc import Callable, Mapping, Sequence

from posenc_jax.results.schema import DISTANCE_BUCKETS, FAR_BUCKETS, ID, LEARNT
from posenc_jax.results.study_data import RunData, StudyData
from posenc_jax.study import statistics
from posenc_jax.study.decision import Margins
from posenc_jax.study.evidence import Evidence, Quantity, bpb, by_seed
from posenc_jax.study.ledger import BOUNDED, OPEN, REFUTED, REPRODUCED, Finding, Scale

MARGINS = Margins()
BITS = "bits per byte"
NEAR_BUCKETS = tuple(b for b in DISTANCE_BUCKETS if b not in FAR_BUCKETS)

Measure = Callable[[Evidence], Sequence[Finding]]
Side = tuple[str, Quantity]  # an arm and a quantity of its runs
Sides = Callable[[Mapping[str, str]], tuple[Side, Side]]  # from arm by role


def scale_of(data: StudyData, *arms: str, seeds: int) -> Scale:
    """Returns the scale of the runs of these arms; seeds: those that a finding rests on."""
    runs = [r for r in (*data.runs, *data.elsewhere) if r.arm in arms and not r.why]
    sizes = [run.info["parameters"] for run in runs]
    lengths = {run.info["train_length"] for run in runs}
    corpora = {run.info["corpus"] for run in runs}
    return Scale(
        (min(sizes), max(sizes)), min(lengths), seeds, "/".join(sorted(corpora)), data.split
    )


def decided(values: Sequence[float], threshold: float, above: bool, unit: str) -> tuple[str, str]:
    """Returns (verdict, mean and interval in words) of "the mean over seeds is above (below) the
    threshold".
    """
    if not values:
        return OPEN, "no seed has a value"
    if len(values) < 2:
        return OPEN, f"{signed(values[0])} {unit}, one seed"
    if statistics.identical(values):
        return OPEN, f"{signed(values[0])} {unit} in all {len(values)} seeds"
    test = statistics.against(values, threshold, MARGINS.alpha)
    words = f"{signed(test.mean)} [{signed(test.low)}, {signed(test.high)}] {unit}"
    holds, fails = (test.p_above, test.p_below) if above else (test.p_below, test.p_above)
    verdict = REPRODUCED if holds <= MARGINS.alpha else REFUTED if fails <= MARGINS.alpha else OPEN
    return verdict, words


def signed(value: float) -> str:
    """Returns the value with its sign and three decimals; zero is +0.000."""
    return f"{round(value, 3) + 0.0:+.3f}"


def compared(
    roles: Sequence[str], sides: Sides, threshold: float, *, above: bool, unit: str = BITS
) -> Measure:
    """Returns the measure "first side less second is above (below) the threshold", paired by seed.

    Args:
      roles: of the arms; every published study that has them gives a finding. sides: from arm by
        role.
    """

    def measure(evidence: Evidence) -> list[Finding]:
        findings = []
        for name, data, arms in evidence.with_roles(*roles):
            first, second = sides(arms)
            values = [by_seed(data, *side) for side in (first, second)]
            paired = statistics.pair(*values)
            if not paired.differences:
                continue
            verdict, words = decided(paired.differences, threshold, above, unit)
            scale = scale_of(data, first[0], second[0], seeds=len(paired.differences))
            findings.append(Finding(f"results/{name}", verdict, words, scale))
        return findings

    return measure


def in_every_seed(
    roles: Sequence[str], sides: Sides, threshold: float, *, above: bool, unit: str
) -> Measure:
    """Returns the measure "first side less second passes the threshold in every seed", for
    quantities that may be equal in all seeds: reproduced in all, refuted in none, else bounded.

    Args: as for `compared`.
    """

    def measure(evidence: Evidence) -> list[Finding]:
        findings = []
        for name, data, arms in evidence.with_roles(*roles):
            first, second = sides(arms)
            paired = statistics.pair(by_seed(data, *first), by_seed(data, *second))
            values = paired.differences
            if len(values) < 2:
                continue
            passing = sum((value > threshold) == above for value in values)
            verdict = {len(values): REPRODUCED, 0: REFUTED}.get(passing, BOUNDED)
            words = f"{signed(min(values))} to {signed(max(values))} {unit}, {passing} seeds pass"
            scale = scale_of(data, first[0], second[0], seeds=len(values))
            findings.append(Finding(f"results/{name}", verdict, words, scale))
        return findings

    return measure


def risen(role: str, k: float, threshold: float, *, above: bool) -> Measure:
    """Returns the measure of the rise of a role's loss from within L to k times L."""
    return compared(
        (role,),
        lambda arms: ((arms[role], bpb(k)), (arms[role], bpb(ID))),
        threshold,
        above=above,
        unit=f"{BITS} at {k}L",
    )


def value_of(metric: str, k: float) -> Quantity:
    """Returns the quantity of a metric at kL."""
    return lambda run: run.value(metric, k)


def passkey_far(k: float) -> Quantity:
    """Returns corrected passkey accuracy beyond L in contexts of kL."""

    def value(run: RunData) -> float | None:
        found = run.far("passkey", k)
        return None if found is None else found[0]

    return value


def passkey_near(k: float) -> Quantity:
    """Returns corrected passkey accuracy up to L in contexts of kL."""

    def value(run: RunData) -> float | None:
        rows = [row for b in NEAR_BUCKETS if (row := run.row("passkey_corrected", k, b))]
        measured = [(row.value, row.n) for row in rows if row.value is not None]
        n = sum(count for _, count in measured)
        return sum(value * count for value, count in measured) / n if n else None

    return value


def passkey_loss(k: float) -> Quantity:
    """Returns `passkey_far` less `passkey_near`; None where the near ones are not learnt."""

    def value(run: RunData) -> float | None:
        far, near = passkey_far(k)(run), passkey_near(k)(run)
        return None if far is None or near is None or near < LEARNT else far - near

    return value


def zero_where(quantity: Quantity) -> Quantity:
    """Returns 0 where the quantity has a value: the second side of a test against a number."""
    return lambda run: None if quantity(run) is None else 0.0
