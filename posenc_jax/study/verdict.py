"""The verdict on a study by both versions of the rule: finished runs in, every clause in words and numbers out."""

import dataclasses
import datetime
import functools
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence

import numpy as np
import scipy

from posenc_jax.results.schema import Row
from posenc_jax.results.study_data import RunData, StudyData
from posenc_jax.study import bootstrap, preregistration, roles, rule_1, rule_2
from posenc_jax.study.attribution import Attribution, attribute
from posenc_jax.study.auxiliary_runs import AuxiliaryRuns, assay, lookup, oracle_gains, rows_of
from posenc_jax.study.clauses import weighed
from posenc_jax.study.decision import Verdict
from posenc_jax.study.grid import UNPLANNED
from posenc_jax.study.outcome_instances import InstanceSamples, matching_sample, read_instances
from posenc_jax.study.outcomes import OutcomeTable, read_outcomes
from posenc_jax.study.seed_counts import Counts, acquiring, assay_passes
from posenc_jax.study.statements import Statement, p_words, with_instances

ALIKE = ("train_length", "corpus_fingerprint", "tokenizer_fingerprint")
SMOKE = "a smoke run checks the wiring; it is no result"
OLDER = "rule 1 reads older outcomes than the arrays hold"


def judge(
    data: StudyData,
    plan: preregistration.AnalysisPlan,
    *,
    beside: AuxiliaryRuns,
    frozen: preregistration.Preregistration | None,
    deviations: Sequence[str],
) -> dict:
    """Returns the verdict as one JSON object: rule 2's, with rule 1's as "rule_1"; `verdict_text` turns it into text.

    Args:
      data: of `results.load`; runs of other arms or seeds are left out. frozen: the plan's record, or
        None for an exploration. deviations: from the plan, in the reader's words.

    Raises:
      ValueError: an arm of the plan without a run, runs that cannot be compared, a copy of a run, or
        pilot or lookup seeds of the plan whose runs were not given or are of another tier or length.
    """
    chosen = [r for r in data.runs if r.info["arm"] in plan.arms() and r.info["seed"] in plan.seeds]
    _refuse(data.runs, chosen, plan, beside)
    unused = [f"{r.name}: {r.why}; its rows do not count" for r in chosen if r.why]
    there = {(r.info["arm"], r.info["seed"]) for r in chosen}
    unused += [f"{a}, seed {s}: no run" for a in plan.arms() for s in plan.seeds if (a, s) not in there]  # fmt: skip
    extra = sorted({(r.info["arm"], r.info["seed"]) for r in data.runs if r.info["arm"] in plan.arms()} - there)  # fmt: skip
    looked = [UNPLANNED] if data.split == "test" and frozen is None else []
    looked += [f"the assay read test in {beside.pilot.name}"] if beside.pilot and beside.pilot.split == "test" else []  # fmt: skip
    looked += [] if frozen is None else _unforeseen(frozen, beside)
    kept = list(data.record["deviations"]) if "deviations" in data.record else []
    shared = {
        "tier": chosen[0].info["tier"],
        "split": data.split,
        "train_length": chosen[0].info["train_length"],
        **dataclasses.asdict(plan),
        "prereg": frozen and {"rule": frozen.rule, "sha256": frozen.sha256, "frozen": frozen.at.isoformat()},
        "deviations": list(dict.fromkeys([*deviations, *kept, *looked, *_differences(chosen, plan, beside)])),
        "unused": unused,
        "unplanned": [f"{arm}, seed {seed}: not among the planned seeds, not read" for arm, seed in extra],
        "runs": {r.name: fingerprint(r.rows) for r in chosen if not r.why},
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
    }  # fmt: skip
    first, second = (rule(data, chosen, plan, beside) for rule in (_by_rule_1, _by_rule_2))
    return _stood(shared | second, chosen, frozen) | {
        "rule_1": _stood(shared | first, chosen, frozen)
    }


def _by_rule_1(data: StudyData, chosen: Sequence[RunData], plan: preregistration.AnalysisPlan, beside: AuxiliaryRuns) -> dict:  # fmt: skip
    table = read_outcomes(rows_of(chosen), rule_1.RULE)
    outcomes, alibi, m = table.values, plan.alibi[0], plan.margins
    said = rule_1.decide(outcomes, plan.hybrids, rope=plan.rope, alibi=alibi, seeds=plan.seeds, margins=m)  # fmt: skip
    found = []
    for v in said:
        factors = ({v.hybrid: {}} | plan.ablations)[v.hybrid]
        attributed = attribute(outcomes, v.hybrid, factors, seeds=plan.seeds, margins=m)
        found.append(_verdict(v, attributed, lambda s: dataclasses.replace(s, unknown=OLDER), m.alpha))  # fmt: skip
    needed = {plan.rope: ("Y", "b", "P3"), alibi: ("Y", "b")}
    return {
        "rule": rule_1.RULE,
        "alibi": alibi,
        "notes": [],
        "gaps": [g for g in table.gaps if _counts(g, plan, needed)],
        "verdicts": found,
    }


def _by_rule_2(data: StudyData, chosen: Sequence[RunData], plan: preregistration.AnalysisPlan, beside: AuxiliaryRuns) -> dict:  # fmt: skip
    table = read_outcomes(rows_of(chosen))
    outcomes, m = dict(table.values), plan.margins
    if plan.oracle:
        outcomes[plan.oracle, "context_gain"] = oracle_gains(data, plan)
    dev = data if data.split == "dev" else beside.dev
    on_dev = dev and read_outcomes(rows_of(r for r in dev.runs if r.info["arm"] in plan.arms())).values  # fmt: skip
    parents, notes = roles.choose_parents(
        plan.rope, plan.stretched, plan.alibi, plan.oracle, on_dev
    )
    counts = Counts(*assay(beside.pilot, outcomes, plan), lookup(beside.lookup, plan))
    said = rule_2.decide(outcomes, plan.hybrids, roles=parents, counts=counts, seeds=plan.seeds, margins=m)  # fmt: skip
    samples, found = _instances(chosen, table), []
    weigh = functools.partial(weighed, behind=False)

    def learnt(arm: str) -> bool:
        return assay_passes({arm: acquiring(outcomes, arm, plan.seeds)}, [arm]) is True

    for v in said:
        factors = ({v.hybrid: {}} | plan.ablations)[v.hybrid]
        attributed = attribute(outcomes, v.hybrid, factors, seeds=plan.seeds, margins=m, weigh=weigh, learnt=learnt)  # fmt: skip
        found.append(_verdict(v, attributed, lambda s: with_instances(s, samples), m.alpha))
    parent = ("Y_E", "Y_id", "Y_R", "Y_R_far", "Y_R_id", "least_id")
    needed = {plan.rope: parent, **dict.fromkeys(plan.alibi, parent)}
    needed |= dict.fromkeys(plan.stretched, ("Y_E", "Y_R", "Y_R_8"))
    return {
        "rule": rule_2.RULE,
        "roles": parents.judged(),
        "notes": [*data.notes, *notes, f"assay: {counts.assay_words}"],
        "gaps": [g for g in table.gaps if _counts(g, plan, needed)],
        "verdicts": found,
    }


def _stood(
    verdict: dict, chosen: Sequence[RunData], frozen: preregistration.Preregistration | None
) -> dict:
    """The verdict with its standing: smoke, exploratory (and why) or confirmed."""
    why = ["no plan was frozen beforehand"] if frozen is None else preregistration.objections(
        frozen, verdict["rule"], {r.name: ({"began": None} | r.info)["began"] for r in chosen}
    )  # fmt: skip
    why += [f"scored on {verdict['split']}, not on test"] if verdict["split"] != "test" else []
    status = "smoke" if verdict["tier"] == "smoke" else "exploratory" if why else "confirmed"
    if status == "smoke":
        for v in verdict["verdicts"]:
            v["verdict"], v["reasons"] = "INCONCLUSIVE", [SMOKE, *v["reasons"]]
    return {"status": status, "why": why} | verdict


def fingerprint(rows: Sequence[Row]) -> str:
    """SHA-256 of a run's rows, by which a reader sees whether a verdict is theirs."""
    text = json.dumps([row.to_json() for row in rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _counts(
    gap: str, plan: preregistration.AnalysisPlan, needed: Mapping[str, Sequence[str]]
) -> bool:
    """Whether a missing outcome is one that the rule reads of that arm.

    Args:
      needed: of each parent, the beginnings of the outcomes that are read; of a hybrid all are.
    """
    arm, _, rest = gap.rpartition(", seed ")
    metric = rest.split(": no ")[1].split(":")[0]
    if arm in plan.hybrids:
        return True
    return metric.startswith(tuple(needed[arm])) if arm in needed else metric in ("Y_E", "Y_R")


def _refuse(runs: Sequence[RunData], chosen: Sequence[RunData], plan: preregistration.AnalysisPlan, beside: AuxiliaryRuns) -> None:  # fmt: skip
    present = {r.info["arm"] for r in chosen}
    lacking = [arm for arm in plan.arms() if arm not in present]
    if lacking:
        here = ", ".join(sorted({r.info["arm"] for r in runs}))
        raise ValueError(f"no run of {lacking[0]!r} with a planned seed; arms here: {here}")
    for name in ("pilot", "lookup"):
        if getattr(plan, name) and getattr(beside, name) is None:
            raise ValueError(f"the plan names {name} seeds; give the folder of their runs with --{name}")  # fmt: skip
    for run in (*_beside(beside.pilot, plan), *_beside(beside.lookup, plan)):
        for field in ("tier", "train_length"):
            if run.info[field] != chosen[0].info[field]:
                raise ValueError(f"{run.name} has {field} {run.info[field]}, {chosen[0].name} has {chosen[0].info[field]}; its recall says nothing of this study")  # fmt: skip
    for field in ("settings", *ALIKE):
        found = {}
        for run in chosen:
            value = run.settings if field == "settings" else run.info[field]
            if value != "":
                found.setdefault(value, run.name)
        if len(found) > 1:
            first, second = list(found.values())[:2]
            name = "evaluation settings" if field == "settings" else field
            raise ValueError(f"{first} and {second} differ in {name}; they cannot be compared")
    copies: dict[tuple, str] = {}
    for run in chosen:
        values = tuple((r.metric, r.length, r.bucket, r.value) for r in run.rows)
        if values and copies.setdefault((run.info["arm"], values), run.name) != run.name:
            raise ValueError(f"{copies[run.info['arm'], values]} and {run.name} have the same values in every row: one is a copy, and seeds that agree are no evidence")  # fmt: skip


def _beside(data: StudyData | None, plan: preregistration.AnalysisPlan) -> list[RunData]:
    """The runs of the plan's arms in the folder of the assay or of offset lookup."""
    return [r for r in data.runs if r.info["arm"] in plan.arms()] if data else []


def _unforeseen(frozen: preregistration.Preregistration, beside: AuxiliaryRuns) -> list[str]:
    """What the frozen plan did not foresee of the assay and of offset lookup."""
    plan, lines = frozen.plan, []
    for name, data, seeds in (("pilot", beside.pilot, plan.pilot), ("lookup", beside.lookup, plan.lookup)):  # fmt: skip
        if data and not seeds:
            lines.append(f"the plan names no {name} seeds; those of {data.name} were read")
    began = {r.name: r.info["began"] for r in _beside(beside.lookup, plan) if "began" in r.info}
    older = [run for run, at in began.items() if datetime.datetime.fromisoformat(at) <= frozen.at]
    if older:
        lines.append(f"offset lookup: {older[0]} and {len(older) - 1} others began before the plan was frozen")  # fmt: skip
    return lines


def _differences(
    chosen: Sequence[RunData], plan: preregistration.AnalysisPlan, beside: AuxiliaryRuns
) -> list[str]:
    """What a fair comparison holds equal and these runs do not: a deviation that nobody has to type."""
    pilot, lookups = _beside(beside.pilot, plan), _beside(beside.lookup, plan)
    compared = [("the runs", field, chosen) for field in ("tokens", "versions", "hardware")]
    compared += [("the runs and those of the assay", "tokens", [*chosen, *pilot])] if pilot else []
    compared.append(("the runs of offset lookup", "tokens", lookups))
    lines = []
    for who, field, runs in compared:
        found = sorted({json.dumps(r.info[field], sort_keys=True) for r in runs})
        if len(found) > 1:
            words = "training tokens" if field == "tokens" else field
            lines.append(f"{who} differ in {words}: {' and '.join(found)}")
    return lines


def _instances(chosen: Sequence[RunData], table: OutcomeTable) -> InstanceSamples:
    """The instances behind each value that the rows have."""
    found: dict[tuple[str, str], dict[int, bootstrap.Sample | str]] = {}
    for run in chosen:
        arm, seed = run.info["arm"], run.info["seed"]
        for metric, sample in read_instances(run).items():
            value = ({seed: None} | table.values.get((arm, metric), {}))[seed]
            if value is not None:
                found.setdefault((arm, metric), {})[seed] = matching_sample(sample, value)
    return found


def _verdict(v: Verdict, attributed: Sequence[Attribution], complete, alpha: float) -> dict:
    """One hybrid's part; complete: adds the instances to a statement."""
    return {
        "hybrid": v.hybrid,
        "verdict": v.verdict,
        "p": v.p,
        "clauses": dict(v.clauses),
        "reasons": list(v.reasons),
        "statements": [
            _statement(complete(s), state, alpha)
            for s, state in zip(v.statements, v.states, strict=True)
        ],
        "attribution": [
            {"factor": a.factor, "ablation": a.ablation, "finding": a.finding, "p": a.p, "words": a.words,
             "statements": [_statement(complete(s), "", alpha) for s in a.statements]}
            for a in attributed
        ],
    }  # fmt: skip


def _statement(s: Statement, state: str, alpha: float) -> dict:
    t = s.test
    return {
        "clause": s.clause, "words": s.words, "note": s.note, "unit": s.unit, "check": s.check,
        "state": state, "threshold": s.threshold, "estimate": t and t.mean, "low": t and t.low,
        "high": t and t.high, "deviation": t and t.deviation, "n": len(s.values), "p": None if s.check else s.p,
        "p_t": t and t.p_above, "p_failing": s.p_failing, "contradiction": s.contradiction,
        "p_refuted": None if s.check else s.p_refuted, "sign_flip": s.sign_flip,
        "bootstrap": s.bootstrap(alpha), "bootstrap_over": s.drawn, "bootstrap_why": s.unknown, "iqm": s.iqm, "ahead": s.ahead,
        "detectable": s.detectable(alpha), "seeds": list(s.seeds), "values": list(s.values),
        "counts": {arm: list(count) for arm, count in s.counts.items()}, "said": s.said,
        "problems": list(s.problems), "sentence": s.sentence(alpha),
    }  # fmt: skip


def verdict_text(verdict: Mapping) -> str:
    """Both verdicts as plain text: status and deviations first, the two side by side, then clause by clause."""
    older = verdict["rule_1"]
    lines = [banner(verdict), *_listed(verdict, "Deviations", "deviations"), "", "Rule 2 and rule 1, side by side:"]  # fmt: skip
    for new, old in zip(verdict["verdicts"], older["verdicts"], strict=True):
        lines.append(f"  {new['hybrid']}: {new['verdict']} ({verdict['status']}) by rule 2, {old['verdict']} ({older['status']}) by rule 1")  # fmt: skip
    lines += [*_listed(verdict, "Missing runs", "unused"), *_listed(verdict, "Not read", "unplanned")]  # fmt: skip
    for said in (verdict, older):
        lines += ["", "", f"RULE {said['rule']}. {banner(said)}"]
        lines += [*_listed(said, "Not confirmed because", "why"), *_listed(said, "Notes", "notes")]
        lines += _listed({"gaps": _over_seeds(said["gaps"])}, "Missing outcomes", "gaps")
        for v in said["verdicts"]:
            lines += ["", f"{v['hybrid']}: {v['verdict']} ({said['status']}; p of all clauses {p_words(v['p'])}, Holm over {len(said['verdicts'])})"]  # fmt: skip
            lines += [f"  because {reason}" for reason in v["reasons"]]
            lines += [f"  [{s['state']}] {s['sentence']}" for s in v["statements"]]
            lines += [f"  {a['words']}" for a in v["attribution"]] or ["  attribution: no ablation was named"]  # fmt: skip
    return "\n".join(lines) + "\n"


def _listed(verdict: Mapping, title: str, key: str) -> list[str]:
    return ["", f"{title}:", *(f"  - {line}" for line in verdict[key])] if verdict[key] else []


def _over_seeds(gaps: Sequence[str]) -> list[str]:
    """Missing outcomes with the seeds of one arm and reason in one line."""
    found: dict[tuple[str, str], list[str]] = {}
    for gap in gaps:
        arm, _, rest = gap.rpartition(", seed ")
        seed, _, why = rest.partition(": ")
        found.setdefault((arm, why), []).append(seed)
    return [f"{arm}, seed {', '.join(seeds)}: {why}" for (arm, why), seeds in found.items()]


def banner(verdict: Mapping) -> str:
    """Status, tier, seeds, plan, in one sentence."""
    seeds = verdict["seeds"]
    plan = verdict["prereg"]
    frozen = f"plan {plan['sha256'][:12]} frozen {plan['frozen']} for rule {plan['rule']}" if plan else "no frozen plan"  # fmt: skip
    head = {"smoke": f"SMOKE ({SMOKE})", "exploratory": "EXPLORATORY", "confirmed": "CONFIRMED"}
    return (
        f"{head[verdict['status']]}: tier {verdict['tier']}, {len(seeds)} seeds planned "
        f"({', '.join(map(str, seeds))}), split {verdict['split']}, L = {verdict['train_length']}, rule version "
        f"{verdict['rule']}, {frozen}"
    )
