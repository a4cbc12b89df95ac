"""What a confirmation commits to before it runs: one JSON file with its own hash."""

import dataclasses
import datetime
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from posenc_jax.study.attribution import FACTORS
from posenc_jax.study.decision import METRICS, RULE, Margins, check_plan


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which arms and seeds a verdict reads; ablations by hybrid and factor taken away."""

    hybrids: tuple[str, ...]
    rope: str
    alibi: str
    seeds: tuple[int, ...]
    ablations: Mapping[str, Mapping[str, str]]
    margins: Margins = dataclasses.field(default_factory=Margins)

    def arms(self) -> list[str]:
        """Every arm that is read, each once."""
        ablated = [arm for factors in self.ablations.values() for arm in factors.values()]
        return list(dict.fromkeys([self.rope, self.alibi, *self.hybrids, *ablated]))


@dataclasses.dataclass(frozen=True)
class Frozen:
    """A plan as it was written down, when, and its hash."""

    plan: Plan
    at: datetime.datetime
    sha256: str


def freeze(path: Path, plan: Plan) -> str:
    """Writes the plan under rule version 1 and returns its hash.

    Raises:
      ValueError: the file exists (a plan is frozen once), or the rule does not take the plan.
    """
    _check(plan)
    body = {
        "rule": RULE,
        "metrics": list(METRICS),
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


def read(path: Path) -> Frozen:
    """Returns the frozen plan.

    Raises:
      ValueError: no such file or no plan, a hash that is not the plan's, or a plan of another rule.
    """
    if not path.is_file():
        raise ValueError(f"--prereg={path} is no file; write it with --freeze")
    try:
        stored = json.loads(path.read_text())
        body, sha256 = dict(stored["plan"]), stored["sha256"]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is no frozen plan: a JSON object of plan and sha256") from None
    if digest(body) != sha256:
        raise ValueError(f"{path} was changed after it was frozen: its hash no longer fits")
    rule, metrics, at = body.pop("rule"), body.pop("metrics"), body.pop("frozen")
    if rule != RULE or tuple(metrics) != METRICS:
        raise ValueError(f"{path} is of rule version {rule} on {metrics}; this is version {RULE} on {METRICS}")  # fmt: skip
    plan = Plan(
        hybrids=tuple(body.pop("hybrids")),
        seeds=tuple(body.pop("seeds")),
        margins=Margins(**body.pop("margins")),
        **body,
    )
    _check(plan)
    return Frozen(plan, datetime.datetime.fromisoformat(at), sha256)


def objections(frozen: Frozen, began: Mapping[str, str | None]) -> list[str]:
    """Returns why runs do not confirm the plan: those that began before it, or nobody knows when.

    Args:
      began: by run, when its training began (ISO 8601 with time zone, from run.json).
    """
    unknown = sorted(run for run, at in began.items() if at is None)
    older = sorted(run for run, at in began.items() if at and datetime.datetime.fromisoformat(at) <= frozen.at)  # fmt: skip
    found = [f"{run} began before the plan was frozen" for run in older]
    return found + [f"{run}: run.json does not say when it began" for run in unknown]


def _check(plan: Plan) -> None:
    check_plan(plan.hybrids, plan.rope, plan.alibi, plan.seeds)
    for hybrid, factors in plan.ablations.items():
        if hybrid not in plan.hybrids:
            raise ValueError(f"ablations of {hybrid}, which is no hybrid of the plan")
        for factor, arm in factors.items():
            if factor not in FACTORS or arm == hybrid:
                raise ValueError(f"{hybrid} without {factor} cannot be {arm}")
