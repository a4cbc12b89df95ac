"""Preregistration: the analysis plan of a confirmation, frozen in a JSON file with hashes of plan
and rule.
"""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posenc_jax.results.files import read_json
from posenc_jax.results.schema import SPLITS
from posenc_jax.study import rule_1, rule_2
from posenc_jax.study.attribution import FACTORS
from posenc_jax.study.decision import Margins, check_plan

METRICS = {rule_1.RULE: rule_1.METRICS, rule_2.RULE: rule_2.METRICS}
# Modules that decide under rule 2, with its thresholds and lengths; a change of one changes the
# rule.
SOURCES = (
    "results.chance", "results.schema", "results.retrieval_summary", "study.attribution",
    "study.auxiliary_runs", "study.clauses", "study.seed_counts", "study.decision",
    "study.hypothesis_tests", "study.outcomes", "study.roles", "study.rule_2", "study.statements",
    "study.statistics", "study.verdict",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class AnalysisPlan:
    """The arms and seeds that a verdict reads.

    Attributes:
      hybrids: arms that are judged. rope: R. alibi: candidates of A; rule 1 reads the first.
      seeds: of the runs that count. ablations: the arm without a factor, by hybrid and factor.
      stretched: candidates of R+. oracle: RoPE trained at 4L, or "". pilot: seeds of the runs of
        the assay; none: those of the study. lookup: seeds of the runs trained on offset lookup
        alone.
      split: of the rows that are judged.
    """

    hybrids: tuple[str, ...]
    rope: str
    alibi: tuple[str, ...]
    seeds: tuple[int, ...]
    ablations: Mapping[str, Mapping[str, str]]
    stretched: tuple[str, ...] = ()
    oracle: str = ""
    pilot: tuple[int, ...] = ()
    lookup: tuple[int, ...] = ()
    split: str = "test"
    margins: Margins = dataclasses.field(default_factory=Margins)

    def arms(self) -> list[str]:
        """Returns every arm at the training length of the study, each once."""
        ablated = [arm for factors in self.ablations.values() for arm in factors.values()]
        return list(
            dict.fromkeys([self.rope, *self.alibi, *self.stretched, *self.hybrids, *ablated])
        )


@dataclasses.dataclass(frozen=True)
class Preregistration:
    """A frozen plan: its rule, its time, its hash, and the hash of the rule (rule 1: "")."""

    plan: AnalysisPlan
    rule: int
    at: datetime.datetime
    sha256: str
    rule_sha256: str


def freeze(path: Path, plan: AnalysisPlan) -> str:
    """Writes a plan for rule 2, returns its hash; ValueError if the file exists or is refused."""
    _check(plan)
    body = {
        "rule": rule_2.RULE,
        "rule_sha256": rule_digest(),
        "metrics": list(rule_2.METRICS),
        "frozen": datetime.datetime.now(datetime.UTC).isoformat(),
        **dataclasses.asdict(plan),
    }
    body = json.loads(json.dumps(body))
    text = json.dumps({"plan": body, "sha256": digest(body)}, indent=2) + "\n"
    try:
        with path.open("x") as file:
            file.write(text)
    except FileExistsError:
        raise ValueError(f"{path} is frozen already; write a new plan to a new file") from None
    return digest(body)


def digest(body: Mapping) -> str:
    """Returns the SHA-256 of the plan's canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def rule_digest(sources: Sequence[str] = SOURCES) -> str:
    """Returns the SHA-256 of rule 2's source, which shows changes after freezing."""
    package = Path(__file__).parents[1]
    read = [(package / f"{name.replace('.', '/')}.py").read_bytes() for name in sources]
    return hashlib.sha256(b"".join(read)).hexdigest()


def read(path: Path) -> Preregistration:
    """Returns the frozen plan of a file (rule 1 or 2); ValueError if damaged or missing."""
    if not path.is_file():
        raise ValueError(f"--prereg={path} is no file; write it with --freeze")
    return parse(read_json(path), str(path))


def parse(stored: Mapping, path: str) -> Preregistration:
    """Returns the frozen plan of a JSON object; path: for errors, which are those of `read`."""
    try:
        body, sha256 = dict(stored["plan"]), stored["sha256"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no frozen plan: a JSON object of plan and sha256") from None
    if digest(body) != sha256:
        raise ValueError(f"{path} was changed after it was frozen: its hash no longer fits")
    try:
        return _parsed(body, sha256, path)
    except (KeyError, TypeError, AttributeError):
        raise ValueError(
            f"{path} is no plan that --freeze wrote: a field is lacking or of another type"
        ) from None


def _parsed(body: dict, sha256: str, path: str) -> Preregistration:
    rule, metrics, at = body.pop("rule"), body.pop("metrics"), body.pop("frozen")
    if rule not in METRICS or tuple(metrics) != METRICS[rule]:
        known = " and ".join(f"{r} on {', '.join(m)}" for r, m in METRICS.items())
        raise ValueError(
            f"{path} is of rule version {rule} on {', '.join(metrics)}; these are versions {known}"
        )
    rule_sha256 = body.pop("rule_sha256") if rule == rule_2.RULE else ""
    alibi, margins = body.pop("alibi"), Margins(**body.pop("margins"))
    lists: dict[str, Any] = {
        name: tuple(body.pop(name))
        for name in ("hybrids", "seeds", "stretched", "pilot", "lookup")
        if name in body
    }
    plan = AnalysisPlan(
        alibi=(alibi,) if rule == rule_1.RULE else tuple(alibi), margins=margins, **lists, **body
    )
    _check(plan)
    return Preregistration(plan, rule, datetime.datetime.fromisoformat(at), sha256, rule_sha256)


def objections(frozen: Preregistration, rule: int, began: Mapping[str, str | None]) -> list[str]:
    """Returns the reasons why runs do not confirm the plan under a rule.

    Reasons are: the plan is for another rule, the rule has changed since, a run began before the
    plan was frozen, or the start of a run is unknown.

    Args:
      began: start of the training of each run (ISO 8601 with time zone, from run.json).
    """
    reasons = []
    if frozen.rule != rule:
        reasons.append(f"the plan was frozen for rule version {frozen.rule}")
    elif frozen.rule_sha256 and frozen.rule_sha256 != rule_digest():
        reasons.append("the source of the rule has changed since the plan was frozen")
    unknown = sorted(run for run, at in began.items() if at is None)
    older = sorted(
        run for run, at in began.items() if at and datetime.datetime.fromisoformat(at) <= frozen.at
    )
    reasons += [f"{run} began before the plan was frozen" for run in older]
    return reasons + [f"{run}: run.json does not say when it began" for run in unknown]


def _check(plan: AnalysisPlan) -> None:
    parents = [plan.rope, *plan.alibi, *plan.stretched, *([plan.oracle] if plan.oracle else [])]
    check_plan(plan.hybrids, parents, plan.seeds)
    if not plan.alibi:
        raise ValueError("the rule needs an arm of ALiBi")
    if plan.split not in SPLITS:
        raise ValueError(f"split must be {' or '.join(SPLITS)}, not {plan.split!r}")
    for name, seeds in (("pilot", plan.pilot), ("lookup", plan.lookup)):
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{name} seeds must be planned, every one once")
    if set(plan.pilot) & set(plan.seeds):
        raise ValueError(
            "pilot seeds must count nowhere else; choose other seeds for the runs that count"
        )
    for hybrid, factors in plan.ablations.items():
        if hybrid not in plan.hybrids:
            raise ValueError(f"ablations of {hybrid}, which is no hybrid of the plan")
        for factor, arm in factors.items():
            if factor not in FACTORS or arm == hybrid:
                raise ValueError(f"{hybrid} without {factor} cannot be {arm}")
