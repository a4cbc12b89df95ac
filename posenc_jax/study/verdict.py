"""The verdict on a study: finished runs in, every clause in words and numbers out."""

import dataclasses
import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import scipy

from posenc_jax.study import nested, prereg
from posenc_jax.study.attribution import attribute
from posenc_jax.study.decision import RULE, Verdict, decide
from posenc_jax.study.outcomes import Reading, read_outcomes
from posenc_jax.study.samples import Samples, confirmed, read_samples
from posenc_jax.study.statements import Statement, p_words, with_instances

ALIKE = ("train_length", "corpus_fingerprint", "tokenizer_fingerprint")
SMOKE = "a smoke run checks the wiring; it is no result"


@dataclasses.dataclass(frozen=True)
class Run:
    """One run as its folder tells it; rows are empty where they may not count, and why says so."""

    name: str
    info: Mapping  # run.json
    settings: str  # of its evaluation
    rows: tuple[Mapping, ...]
    why: str
    arrays: Path  # what the rows were counted from, instance by instance


def read_runs(workdir: Path, split: str) -> list[Run]:
    """Returns every run below workdir, with its rows if they are those of its last step.

    Raises:
      ValueError: workdir is no folder, or holds no run.
    """
    if not workdir.is_dir():
        raise ValueError(f"--workdir={workdir} is no folder; give that of a study")
    folders = sorted(path.parent for path in workdir.glob("**/run.json"))
    if not folders:
        raise ValueError(f"no run below {workdir}: there is no run.json")
    return [_read_run(folder, str(folder.relative_to(workdir)), split) for folder in folders]


def _read_run(folder: Path, name: str, split: str) -> Run:
    info = json.loads((folder / "run.json").read_text())
    evaluation = folder / ("evaluation" if split == "test" else f"evaluation_{split}")
    path, done, arrays = (evaluation / n for n in ("rows.jsonl", "evaluation.json", "arrays"))
    if not info["finished"]:
        return Run(name, info, "", (), "training has not finished", arrays)
    if not path.exists() or not done.exists():
        return Run(name, info, "", (), f"not evaluated to the end on {split}", arrays)
    about = json.loads(done.read_text())
    if about["step"] != info["steps"]:
        why = f"scored at step {about['step']} of {info['steps']}; only the last checkpoint counts"
        return Run(name, info, "", (), why, arrays)
    rows = tuple(json.loads(line) for line in path.read_text().splitlines())
    return Run(name, info, about["settings"], rows, "", arrays)


def judge(
    runs: Sequence[Run],
    plan: prereg.Plan,
    *,
    split: str,
    frozen: prereg.Frozen | None,
    deviations: Sequence[str],
) -> dict:
    """Returns the verdict as one JSON object; `words` turns it into text.

    Args:
      runs: of `read_runs`; those of other arms or seeds are left out. frozen: the plan's record, or
        None for an exploration. deviations: from the plan, in the reader's words.

    Raises:
      ValueError: an arm of the plan without a run, or runs that cannot be compared.
    """
    chosen = [r for r in runs if r.info["arm"] in plan.arms() and r.info["seed"] in plan.seeds]
    _refuse(runs, chosen, plan)
    reading = read_outcomes([row for run in chosen for row in run.rows])
    outcomes = reading.values
    unused = [f"{r.name}: {r.why}; its rows do not count" for r in chosen if r.why]
    there = {(r.info["arm"], r.info["seed"]) for r in chosen}
    unused += [f"{a}, seed {s}: no run" for a in plan.arms() for s in plan.seeds if (a, s) not in there]  # fmt: skip
    tier = chosen[0].info["tier"]
    why = ["no plan was frozen beforehand"] if frozen is None else prereg.objections(
        frozen, {r.name: ({"began": None} | r.info)["began"] for r in chosen}
    )  # fmt: skip
    why += [f"scored on {split}, not on test"] if split != "test" else []
    status = "smoke" if tier == "smoke" else "exploratory" if why else "confirmed"
    said = decide(outcomes, plan.hybrids, rope=plan.rope, alibi=plan.alibi, seeds=plan.seeds, margins=plan.margins)  # fmt: skip
    if status == "smoke":
        said = [dataclasses.replace(v, verdict="INCONCLUSIVE", reasons=(SMOKE, *v.reasons)) for v in said]  # fmt: skip
    alpha, samples = plan.margins.alpha, _samples(chosen, reading)
    found = []
    for v in said:
        ablations = ({v.hybrid: {}} | plan.ablations)[v.hybrid]
        attributed = attribute(outcomes, v.hybrid, ablations, seeds=plan.seeds, margins=plan.margins)  # fmt: skip
        found.append(
            _verdict(v, samples, alpha)
            | {
                "attribution": [
                    {"factor": a.factor, "ablation": a.ablation, "finding": a.finding, "p": a.p, "words": a.words,
                     "statements": [_statement(with_instances(s, samples), "", alpha) for s in a.statements]}
                    for a in attributed
                ]
            }
        )  # fmt: skip
    extra = sorted({(r.info["arm"], r.info["seed"]) for r in runs if r.info["arm"] in plan.arms()} - there)  # fmt: skip
    return {
        "status": status,
        "why": why,
        "tier": tier,
        "split": split,
        "rule": RULE,
        "train_length": chosen[0].info["train_length"],
        **dataclasses.asdict(plan),
        "prereg": frozen and {"sha256": frozen.sha256, "frozen": frozen.at.isoformat()},
        "deviations": [*deviations, *_differences(chosen)],
        "unused": unused,
        "unplanned": [f"{arm}, seed {seed}: not among the planned seeds, not read" for arm, seed in extra],
        "gaps": [gap for gap in reading.gaps if _counts(gap, plan)],
        "verdicts": found,
        "runs": {r.name: fingerprint(r.rows) for r in chosen if not r.why},
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__},
    }  # fmt: skip


def fingerprint(rows: Sequence[Mapping]) -> str:
    """SHA-256 of a run's rows, by which a reader sees whether a verdict is theirs."""
    text = json.dumps(list(rows), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _counts(gap: str, plan: prereg.Plan) -> bool:
    """Whether a missing outcome is one that the rule reads of that arm."""
    arm, _, rest = gap.rpartition(", seed ")
    metric = rest.split(": no ")[1].split(":")[0]
    if arm in plan.hybrids:
        return True
    if arm in (plan.rope, plan.alibi):
        return metric[0] in "Yb" or (metric == "P3" and arm == plan.rope)
    return metric in ("Y_E", "Y_R")


def _refuse(runs: Sequence[Run], chosen: Sequence[Run], plan: prereg.Plan) -> None:
    present = {r.info["arm"] for r in chosen}
    lacking = [arm for arm in plan.arms() if arm not in present]
    if lacking:
        here = ", ".join(sorted({r.info["arm"] for r in runs}))
        raise ValueError(f"no run of {lacking[0]!r} with a planned seed; arms here: {here}")
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


def _differences(chosen: Sequence[Run]) -> list[str]:
    """What a fair comparison holds equal and these runs do not: a deviation that nobody has to type."""
    lines = []
    for field, words in (("tokens", "training tokens"), ("versions", "versions"), ("hardware", "hardware")):  # fmt: skip
        found = sorted({json.dumps(r.info[field], sort_keys=True) for r in chosen})
        if len(found) > 1:
            lines.append(f"the runs differ in {words}: {' and '.join(found)}")
    return lines


def _samples(chosen: Sequence[Run], reading: Reading) -> Samples:
    """The instances behind each value that the rows have."""
    found: dict[tuple[str, str], dict[int, nested.Sample | str]] = {}
    for run in chosen:
        arm, seed = run.info["arm"], run.info["seed"]
        for metric, sample in read_samples(run.arrays, run.rows).items():
            value = ({seed: None} | reading.values.get((arm, metric), {}))[seed]
            if value is not None:
                found.setdefault((arm, metric), {})[seed] = confirmed(sample, value)
    return found


def _verdict(v: Verdict, samples: Samples, alpha: float) -> dict:
    return {
        "hybrid": v.hybrid,
        "verdict": v.verdict,
        "p": v.p,
        "clauses": dict(v.clauses),
        "reasons": list(v.reasons),
        "statements": [
            _statement(with_instances(s, samples), state, alpha)
            for s, state in zip(v.statements, v.states, strict=True)
        ],
    }


def _statement(s: Statement, state: str, alpha: float) -> dict:
    t = s.test
    return {
        "clause": s.clause, "words": s.words, "note": s.note, "unit": s.unit, "check": s.check,
        "state": state, "threshold": s.threshold, "estimate": t and t.mean, "low": t and t.low,
        "high": t and t.high, "deviation": t and t.deviation, "n": len(s.values), "p": None if s.check else s.p,
        "p_refuted": None if s.check else s.p_refuted, "sign_flip": s.sign_flip,
        "bootstrap": s.bootstrap(alpha), "bootstrap_over": s.drawn, "bootstrap_why": s.unknown, "iqm": s.iqm, "ahead": s.ahead,
        "detectable": s.detectable(alpha), "seeds": list(s.seeds), "values": list(s.values),
        "problems": list(s.problems), "sentence": s.sentence(alpha),
    }  # fmt: skip


def words(verdict: Mapping) -> str:
    """The verdict as plain text: status first, then every hybrid, clause by clause."""
    lines = [banner(verdict)]
    for title, key in (("Not confirmed because", "why"), ("Deviations", "deviations"), ("Missing runs", "unused"),
                       ("Not read", "unplanned"), ("Missing outcomes", "gaps")):  # fmt: skip
        if verdict[key]:
            lines += ["", f"{title}:", *(f"  - {line}" for line in verdict[key])]
    for v in verdict["verdicts"]:
        lines += ["", f"{v['hybrid']}: {v['verdict']} ({verdict['status']}; p of all clauses {p_words(v['p'])}, Holm over {len(verdict['verdicts'])})"]  # fmt: skip
        lines += [f"  because {reason}" for reason in v["reasons"]]
        lines += [f"  [{s['state']}] {s['sentence']}" for s in v["statements"]]
        lines += [f"  {a['words']}" for a in v["attribution"]] or ["  attribution: no ablation was named"]  # fmt: skip
    return "\n".join(lines) + "\n"


def banner(verdict: Mapping) -> str:
    """Status, tier, seeds, plan, in one sentence."""
    seeds = verdict["seeds"]
    plan = verdict["prereg"]
    frozen = f"plan {plan['sha256'][:12]} frozen {plan['frozen']}" if plan else "no frozen plan"
    head = {"smoke": f"SMOKE ({SMOKE})", "exploratory": "EXPLORATORY", "confirmed": "CONFIRMED"}
    return (
        f"{head[verdict['status']]}: tier {verdict['tier']}, {len(seeds)} seeds planned "
        f"({', '.join(map(str, seeds))}), split {verdict['split']}, L = {verdict['train_length']}, rule version "
        f"{verdict['rule']}, {frozen}"
    )
