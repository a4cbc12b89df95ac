"""The verdict on a study, by both versions of the decision rule, as JSON and as text."""

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
    """Returns the verdict of rule 2 as a JSON object, with that of rule 1 as "rule_1".

    Args:
      data: the study; runs of other arms or seeds are left out. frozen: the frozen plan, or None
        for an exploration. deviations: deviations from the plan, in words.

    Raises:
      ValueError: an arm of the plan without a run, runs that cannot be compared, a copy of a run,
        or pilot or lookup seeds of the plan whose runs are missing or of another tier or length.
    """
    chosen = [r for r in data.runs if r.info["arm"] in plan.arms() and r.info["seed"] in plan.seeds]
    _refuse(data.runs, chosen, plan, beside)
    unused = [f"{r.name}: {r.why}; its rows do not count" for r in chosen if r.why]
    read = {(r.info["arm"], r.info["seed"]) for r in chosen}
    unused += [
        f"{a}, seed {s}: no run" for a in plan.arms() for s in plan.seeds if (a, s) not in read
    ]
    extra = sorted(
        {(r.info["arm"], r.info["seed"]) for r in data.runs if r.info["arm"] in plan.arms()} - read
    )
    noticed = list(data.record.get("deviations", ()))
    noticed += [UNPLANNED] if data.split == "test" and frozen is None else []
    noticed += (
        [f"the assay read test in {beside.pilot.name}"]
        if beside.pilot and beside.pilot.split == "test"
        else []
    )
    noticed += [] if frozen is None else _unforeseen(frozen, beside)
    noticed += _differences(chosen, plan, beside)
    shared = {
        "tier": chosen[0].info["tier"],
        "split": data.split,
        "train_length": chosen[0].info["train_length"],
        **dataclasses.asdict(plan),
        "prereg": frozen
        and {"rule": frozen.rule, "sha256": frozen.sha256, "frozen": frozen.at.isoformat()},
        "deviations": list(dict.fromkeys([*deviations, *noticed])),
        "unused": unused,
        "unplanned": [
            f"{arm}, seed {seed}: not among the planned seeds, not read" for arm, seed in extra
        ],
        "runs": {r.name: fingerprint(r.rows) for r in chosen if not r.why},
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "scipy": scipy.__version__,
        },
    }
    first = _with_status(shared | _by_rule_1(chosen, plan), chosen, frozen)
    second = _with_status(shared | _by_rule_2(data, chosen, plan, beside), chosen, frozen)
    return second | {"rule_1": first}


def _by_rule_1(chosen: Sequence[RunData], plan: preregistration.AnalysisPlan) -> dict:
    table = read_outcomes(rows_of(chosen), rule_1.RULE)
    outcomes, alibi, m = table.values, plan.alibi[0], plan.margins
    decided = rule_1.decide(
        outcomes, plan.hybrids, rope=plan.rope, alibi=alibi, seeds=plan.seeds, margins=m
    )
    verdicts = []
    for v in decided:
        factors = plan.ablations.get(v.hybrid, {})
        attributed = attribute(outcomes, v.hybrid, factors, seeds=plan.seeds, margins=m)
        verdicts.append(
            _verdict(v, attributed, lambda s: dataclasses.replace(s, unknown=OLDER), m.alpha)
        )
    needed = {plan.rope: ("Y", "b", "P3"), alibi: ("Y", "b")}
    return {
        "rule": rule_1.RULE,
        "alibi": alibi,
        "notes": [],
        "gaps": [g for g in table.gaps if _counts(g, plan, needed)],
        "verdicts": verdicts,
    }


def _by_rule_2(
    data: StudyData,
    chosen: Sequence[RunData],
    plan: preregistration.AnalysisPlan,
    beside: AuxiliaryRuns,
) -> dict:
    table = read_outcomes(rows_of(chosen))
    outcomes, m = dict(table.values), plan.margins
    if plan.oracle:
        outcomes[plan.oracle, "context_gain"] = oracle_gains(data, plan)
    dev = data if data.split == "dev" else beside.dev
    on_dev = None
    if dev is not None:
        on_dev = read_outcomes(rows_of(r for r in dev.runs if r.info["arm"] in plan.arms())).values
    parents, notes = roles.choose_parents(
        plan.rope, plan.stretched, plan.alibi, plan.oracle, on_dev
    )
    counts = Counts(*assay(beside.pilot, outcomes, plan), lookup(beside.lookup, plan))
    decided = rule_2.decide(
        outcomes, plan.hybrids, roles=parents, counts=counts, seeds=plan.seeds, margins=m
    )
    samples, verdicts = _instances(chosen, table), []
    weigh = functools.partial(weighed, behind=False)

    def learnt(arm: str) -> bool:
        return assay_passes({arm: acquiring(outcomes, arm, plan.seeds)}, [arm]) is True

    for v in decided:
        factors = plan.ablations.get(v.hybrid, {})
        attributed = attribute(
            outcomes, v.hybrid, factors, seeds=plan.seeds, margins=m, weigh=weigh, learnt=learnt
        )
        verdicts.append(_verdict(v, attributed, lambda s: with_instances(s, samples), m.alpha))
    parent = ("Y_E", "Y_id", "Y_R", "Y_R_far", "Y_R_id", "least_id")
    needed: dict[str, tuple[str, ...]] = {plan.rope: parent, **dict.fromkeys(plan.alibi, parent)}
    needed |= dict.fromkeys(plan.stretched, ("Y_E", "Y_R", "Y_R_8"))
    return {
        "rule": rule_2.RULE,
        "roles": parents.judged(),
        "notes": [*data.notes, *notes, f"assay: {counts.assay_words}"],
        "gaps": [g for g in table.gaps if _counts(g, plan, needed)],
        "verdicts": verdicts,
    }


def _with_status(
    verdict: dict, chosen: Sequence[RunData], frozen: preregistration.Preregistration | None
) -> dict:
    """Returns the verdict with its status: smoke, exploratory (and why) or confirmed."""
    why = ["no plan was frozen beforehand"]
    if frozen is not None:
        began = {r.name: r.info.get("began") for r in chosen}
        why = preregistration.objections(frozen, verdict["rule"], began)
    why += [f"scored on {verdict['split']}, not on test"] if verdict["split"] != "test" else []
    status = "smoke" if verdict["tier"] == "smoke" else "exploratory" if why else "confirmed"
    if status == "smoke":
        for v in verdict["verdicts"]:
            v["verdict"], v["reasons"] = "INCONCLUSIVE", [SMOKE, *v["reasons"]]
    return {"status": status, "why": why} | verdict


def fingerprint(rows: Sequence[Row]) -> str:
    """Returns the SHA-256 of a run's rows: whether a verdict was made from them."""
    text = json.dumps([row.to_json() for row in rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _counts(
    gap: str, plan: preregistration.AnalysisPlan, needed: Mapping[str, Sequence[str]]
) -> bool:
    """Whether the rule reads a missing outcome; needed: prefixes of outcomes, by parent."""
    arm, _, rest = gap.rpartition(", seed ")
    metric = rest.split(": no ")[1].split(":")[0]
    if arm in plan.hybrids:
        return True
    return metric.startswith(tuple(needed[arm])) if arm in needed else metric in ("Y_E", "Y_R")


def _refuse(
    runs: Sequence[RunData],
    chosen: Sequence[RunData],
    plan: preregistration.AnalysisPlan,
    beside: AuxiliaryRuns,
) -> None:
    present = {r.info["arm"] for r in chosen}
    missing = [arm for arm in plan.arms() if arm not in present]
    if missing:
        known = ", ".join(sorted({r.info["arm"] for r in runs}))
        raise ValueError(f"no run of {missing[0]!r} with a planned seed; arms here: {known}")
    for name in ("pilot", "lookup"):
        if getattr(plan, name) and getattr(beside, name) is None:
            raise ValueError(
                f"the plan names {name} seeds; give the folder of their runs with --{name}"
            )
    for run in (*_beside(beside.pilot, plan), *_beside(beside.lookup, plan)):
        for field in ("tier", "train_length"):
            if run.info[field] != chosen[0].info[field]:
                raise ValueError(
                    f"{run.name} has {field} {run.info[field]}, {chosen[0].name} has "
                    f"{chosen[0].info[field]}; its recall cannot be compared with this study"
                )
    for field in ("settings", *ALIKE):
        by_value = {}
        for run in chosen:
            value = run.settings if field == "settings" else run.info[field]
            if value != "":
                by_value.setdefault(value, run.name)
        if len(by_value) > 1:
            first, second = list(by_value.values())[:2]
            name = "evaluation settings" if field == "settings" else field
            raise ValueError(f"{first} and {second} differ in {name}; they cannot be compared")
    copies: dict[tuple, str] = {}
    for run in chosen:
        values = tuple((r.metric, r.length, r.bucket, r.value) for r in run.rows)
        if values and copies.setdefault((run.info["arm"], values), run.name) != run.name:
            raise ValueError(
                f"{copies[run.info['arm'], values]} and {run.name} have the same values in every "
                "row: one is a copy, and seeds that agree are no evidence"
            )


def _beside(data: StudyData | None, plan: preregistration.AnalysisPlan) -> list[RunData]:
    """Returns the runs of the arms of the plan, in the study of the assay or of offset lookup."""
    return [r for r in data.runs if r.info["arm"] in plan.arms()] if data else []


def _unforeseen(frozen: preregistration.Preregistration, beside: AuxiliaryRuns) -> list[str]:
    """Returns deviations from the frozen plan in the assay and in offset lookup."""
    plan, lines = frozen.plan, []
    for name, data, seeds in (
        ("pilot", beside.pilot, plan.pilot),
        ("lookup", beside.lookup, plan.lookup),
    ):
        if data and not seeds:
            lines.append(f"the plan names no {name} seeds; those of {data.name} were read")
    began = {r.name: r.info["began"] for r in _beside(beside.lookup, plan) if "began" in r.info}
    older = [run for run, at in began.items() if datetime.datetime.fromisoformat(at) <= frozen.at]
    if older:
        lines.append(
            f"offset lookup: {older[0]} and {len(older) - 1} others began before the plan was "
            "frozen"
        )
    return lines


def _differences(
    chosen: Sequence[RunData], plan: preregistration.AnalysisPlan, beside: AuxiliaryRuns
) -> list[str]:
    """Returns a deviation for everything a fair comparison keeps equal, where these runs differ."""
    pilot, lookups = _beside(beside.pilot, plan), _beside(beside.lookup, plan)
    compared = [("the runs", field, chosen) for field in ("tokens", "versions", "hardware")]
    compared += [("the runs and those of the assay", "tokens", [*chosen, *pilot])] if pilot else []
    compared.append(("the runs of offset lookup", "tokens", lookups))
    lines = []
    for who, field, runs in compared:
        values = sorted({json.dumps(r.info[field], sort_keys=True) for r in runs})
        if len(values) > 1:
            words = "training tokens" if field == "tokens" else field
            lines.append(f"{who} differ in {words}: {' and '.join(values)}")
    return lines


def _instances(chosen: Sequence[RunData], table: OutcomeTable) -> InstanceSamples:
    """Returns the instances behind each value of the table."""
    samples: dict[tuple[str, str], dict[int, bootstrap.Sample | str]] = {}
    for run in chosen:
        arm, seed = run.info["arm"], run.info["seed"]
        for metric, sample in read_instances(run).items():
            value = table.values.get((arm, metric), {}).get(seed)
            if value is not None:
                samples.setdefault((arm, metric), {})[seed] = matching_sample(sample, value)
    return samples


def _verdict(v: Verdict, attributed: Sequence[Attribution], complete, alpha: float) -> dict:
    """Returns the JSON object of one hybrid; complete: adds the instances to a statement."""
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
            {
                "factor": a.factor,
                "ablation": a.ablation,
                "finding": a.finding,
                "p": a.p,
                "words": a.words,
                "statements": [_statement(complete(s), "", alpha) for s in a.statements],
            }
            for a in attributed
        ],
    }


def _statement(s: Statement, state: str, alpha: float) -> dict:
    t = s.test
    return {
        "clause": s.clause,
        "words": s.words,
        "note": s.note,
        "unit": s.unit,
        "check": s.check,
        "state": state,
        "threshold": s.threshold,
        "estimate": t and t.mean,
        "low": t and t.low,
        "high": t and t.high,
        "deviation": t and t.deviation,
        "n": len(s.values),
        "p": None if s.check else s.p,
        "p_t": t and t.p_above,
        "p_failing": s.p_failing,
        "contradiction": s.contradiction,
        "p_refuted": None if s.check else s.p_refuted,
        "sign_flip": s.sign_flip,
        "bootstrap": s.bootstrap(alpha),
        "bootstrap_over": s.drawn,
        "bootstrap_why": s.unknown,
        "iqm": s.iqm,
        "ahead": s.ahead,
        "detectable": s.detectable(alpha),
        "seeds": list(s.seeds),
        "values": list(s.values),
        "counts": {arm: list(count) for arm, count in s.counts.items()},
        "said": s.said,
        "problems": list(s.problems),
        "sentence": s.sentence(alpha),
    }


def verdict_text(verdict: Mapping) -> str:
    """Returns both verdicts as text: status and deviations, the two verdicts, then every clause."""
    older = verdict["rule_1"]
    lines = [
        banner(verdict),
        *_listed(verdict, "Deviations", "deviations"),
        "",
        "Rule 2 and rule 1, side by side:",
    ]
    for new, old in zip(verdict["verdicts"], older["verdicts"], strict=True):
        lines.append(
            f"  {new['hybrid']}: {new['verdict']} ({verdict['status']}) by rule 2, "
            f"{old['verdict']} ({older['status']}) by rule 1"
        )
    lines += [
        *_listed(verdict, "Missing runs", "unused"),
        *_listed(verdict, "Not read", "unplanned"),
    ]
    for one in (verdict, older):
        lines += ["", "", f"RULE {one['rule']}. {banner(one)}"]
        lines += [*_listed(one, "Not confirmed because", "why"), *_listed(one, "Notes", "notes")]
        lines += _listed({"gaps": _over_seeds(one["gaps"])}, "Missing outcomes", "gaps")
        for v in one["verdicts"]:
            lines += [
                "",
                f"{v['hybrid']}: {v['verdict']} ({one['status']}; p of all clauses "
                f"{p_words(v['p'])}, Holm over {len(one['verdicts'])})",
            ]
            lines += [f"  because {reason}" for reason in v["reasons"]]
            lines += [f"  [{s['state']}] {s['sentence']}" for s in v["statements"]]
            lines += [f"  {a['words']}" for a in v["attribution"]] or [
                "  attribution: no ablation was named"
            ]
    return "\n".join(lines) + "\n"


def _listed(verdict: Mapping, title: str, key: str) -> list[str]:
    return ["", f"{title}:", *(f"  - {line}" for line in verdict[key])] if verdict[key] else []


def _over_seeds(gaps: Sequence[str]) -> list[str]:
    """Returns missing outcomes, one line for all seeds with the same arm and reason."""
    seeds_of: dict[tuple[str, str], list[str]] = {}
    for gap in gaps:
        arm, _, rest = gap.rpartition(", seed ")
        seed, _, why = rest.partition(": ")
        seeds_of.setdefault((arm, why), []).append(seed)
    return [f"{arm}, seed {', '.join(seeds)}: {why}" for (arm, why), seeds in seeds_of.items()]


def banner(verdict: Mapping) -> str:
    """Returns status, tier, seeds and plan in one sentence."""
    seeds = verdict["seeds"]
    plan = verdict["prereg"]
    frozen = (
        f"plan {plan['sha256'][:12]} frozen {plan['frozen']} for rule {plan['rule']}"
        if plan
        else "no frozen plan"
    )
    head = {"smoke": f"SMOKE ({SMOKE})", "exploratory": "EXPLORATORY", "confirmed": "CONFIRMED"}
    return (
        f"{head[verdict['status']]}: tier {verdict['tier']}, {len(seeds)} seeds planned "
        f"({', '.join(map(str, seeds))}), split {verdict['split']}, L = {verdict['train_length']}, "
        f"rule version {verdict['rule']}, {frozen}"
    )
