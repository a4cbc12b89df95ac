"""Auxiliary runs of rule 2: dev rows, pilot runs, offset lookup, the oracle."""

import dataclasses
from collections.abc import Iterable

from posenc_jax.results.schema import ACQUIRED, FAR, Row
from posenc_jax.results.study_data import RunData, StudyData
from posenc_jax.study.outcomes import lookup_score, oracle_gain, read_outcomes
from posenc_jax.study.preregistration import AnalysisPlan
from posenc_jax.study.seed_counts import ASSAY, Count, acquiring, required_count
from posenc_jax.study.statements import Outcomes


@dataclasses.dataclass(frozen=True)
class AuxiliaryRuns:
    """Studies that rule 2 reads beside the runs that count; None where there is none.

    Attributes:
      dev: the same study on dev, which chooses A and R+. pilot: runs of the assay. lookup: runs
        that were trained on offset lookup alone.
    """

    dev: StudyData | None = None
    pilot: StudyData | None = None
    lookup: StudyData | None = None


def rows_of(runs: Iterable[RunData]) -> list[Row]:
    """Returns the rows of all runs that may count."""
    return [row for run in runs if not run.why for row in run.rows]


def oracle_gains(data: StudyData, plan: AnalysisPlan) -> dict[int, float | None]:
    """Returns RoPE's gain from far text at 4L, by seed; ValueError for another length."""
    length = data.runs[0].info["train_length"]
    gains = {}
    for run in data.elsewhere:
        if run.info["arm"] == plan.oracle and run.info["seed"] in plan.seeds and not run.why:
            if run.info["train_length"] != FAR * length:
                raise ValueError(
                    f"{run.name} is no oracle: it was trained at {run.info['train_length']}, not "
                    f"at {FAR} x {length}"
                )
            gains[run.info["seed"]] = oracle_gain(run.rows, length)
    return gains


def assay(
    pilot: StudyData | None, outcomes: Outcomes, plan: AnalysisPlan
) -> tuple[dict[str, Count], str]:
    """Returns the seeds that acquire, by arm, and in words which seeds were read."""
    arms = [plan.rope, *plan.alibi, *plan.hybrids]
    if pilot is None:
        n = len(plan.seeds)
        words = (
            f"no pilot was named: the study's own {n} seeds, {required_count(ASSAY, n)} of which "
            "are asked for"
        )
        values, seeds = outcomes, plan.seeds
    else:
        seeds = plan.pilot or tuple(sorted({r.info["seed"] for r in pilot.runs}))
        chosen = [r for r in pilot.runs if r.info["arm"] in arms and r.info["seed"] in seeds]
        values = read_outcomes(rows_of(chosen)).values
        words = f"{len(seeds)} pilot seeds of {pilot.name} on {pilot.split}"
    return {arm: acquiring(values, arm, seeds) for arm in arms}, words


def lookup(data: StudyData | None, plan: AnalysisPlan) -> dict[str, Count]:
    """Returns the seeds that learn offset lookup in runs trained on it alone, by arm."""
    if data is None:
        return {}
    learnt: dict[str, list[bool]] = {}
    for run in data.runs:
        if run.why or (plan.lookup and run.info["seed"] not in plan.lookup):
            continue
        score = lookup_score(run.rows)
        if score is not None:
            learnt.setdefault(run.info["arm"], []).append(score >= ACQUIRED)
    return {arm: (sum(passed), len(passed)) for arm, passed in learnt.items()}
