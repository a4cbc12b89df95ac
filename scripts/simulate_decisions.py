"""Measures the error rates of the decision rule: python scripts/simulate_decisions.py
--out=results/decision

Simulates studies of every scenario of posenc_jax/study/scenarios.py with 12 seeds (a confirmation),
8 and 5 (explorations), applies rule 2 to each, and writes rows.jsonl and table.md. For a scenario
on a boundary these have the shares of studies in which the clause holds, is refuted, and in which
the verdict is wrong; each must be at most 5 % plus two standard errors. For a scenario with power
they have the share of right verdicts. One share in 40 lies beyond two standard errors of a rate of
exactly 5 %; such a scenario is drawn once more, with ten times as many new studies, and both rows
are kept. `--rule=1` does the same for rule 1 (posenc_jax/study/simulation_rule_1.py, 5 and 8 seeds,
rule_1_rows.jsonl). Minutes on one core. Exit codes: 0 within the bounds, 1 not (after the second
draw), 2 wrong input.
"""

import platform
from pathlib import Path

import installed  # noqa: F401
import numpy as np
import scipy
from absl import flags

from posenc_jax import cli

_OUT = flags.DEFINE_string("out", None, "Folder for the rows and the table", required=True)
_RULE = flags.DEFINE_enum("rule", "2", ["1", "2"], "Version of the decision rule")
_STUDIES = flags.DEFINE_integer("studies", 2000, "Studies of a scenario", lower_bound=1)
_ONLY = flags.DEFINE_string("only", "", "Scenarios whose name contains this; empty: all")
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the draws", lower_bound=0)
AGAIN = 10  # factor of studies where a share lies outside its bound
POINTS = 0.03  # tolerance of power, rule 1
SEEDS = {"1": (5, 8), "2": (12, 8, 5)}


def main() -> int:
    """Simulates all scenarios and writes the rows."""
    from posenc_jax.results.files import json_lines, replace_text
    from posenc_jax.study import scenarios, simulation_rule_1

    rule = _RULE.value
    chosen = {"1": simulation_rule_1.scenarios_rule_1, "2": scenarios.scenarios}[rule]()
    chosen = [scenario for scenario in chosen if _ONLY.value in scenario.name]
    draw = {"1": _row_of_rule_1, "2": _row_of_rule_2}[rule]
    rows, wrong = [], []
    for n in SEEDS[rule]:
        for scenario in chosen:
            rows.append(draw(scenario, n, _STUDIES.value, _SEED.value))
            if not rows[-1]["within"]:
                rows.append(draw(scenario, n, AGAIN * _STUDIES.value, _SEED.value + 1))
                wrong += [] if rows[-1]["within"] else [f"{scenario.name}, n {n}"]
    out, prefix = Path(_OUT.value), {"1": "rule_1_", "2": ""}[rule]
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / f"{prefix}rows.jsonl", json_lines(rows))
    replace_text(
        out / f"{prefix}table.md", {"1": _table_of_rule_1, "2": _table_of_rule_2}[rule](rows)
    )
    print(f"{len(rows)} rows in {out}; outside their bounds: {', '.join(wrong) or 'none'}")
    return int(bool(wrong))


def _row_of_rule_2(scenario, n: int, studies: int, seed: int) -> dict:
    from posenc_jax.study.decision import Margins
    from posenc_jax.study.simulation import tally

    shares = tally(scenario, n=n, studies=studies, seed=seed, margins=Margins())
    wrong = max(shares.holds, shares.refuted, shares.counted)
    error = (scenario.bound * (1 - scenario.bound) / studies) ** 0.5
    within = scenario.kind != "error" or wrong <= scenario.bound + 2 * error
    row = {
        "rule": 2,
        "truth": scenario.name,
        "kind": scenario.kind,
        "n": n,
        "clause": scenario.clause,
        "holds": shares.holds,
        "refuted": shares.refuted,
        "counted": list(scenario.counted),
        "share": shares.counted,
        "bound": scenario.bound,
        "within": within,
        "studies": studies,
        "seed": seed,
        "verdicts": shares.verdicts,
        "versions": _versions(),
    }
    print(
        f"n {n:2}  {scenario.kind:5} {scenario.name:84} holds {shares.holds:.4f} refuted "
        f"{shares.refuted:.4f} verdict {shares.counted:.4f}  {'ok' if within else 'OUTSIDE'}",
        flush=True,
    )
    return row


def _table_of_rule_2(rows: list[dict]) -> str:
    lines = [
        "| truth | kind | n | studies | clause holds | clause refuted | counted verdicts | share | "
        "within |",
        "|" + "---|" * 9,
    ]
    for r in rows:
        clause = [f"{100 * r[k]:.2f} %" if r["clause"] else "" for k in ("holds", "refuted")]
        within = {"error": "yes" if r["within"] else "no"}
        lines.append(
            f"| {r['truth']} | {r['kind']} | {r['n']} | {r['studies']:,} | {' | '.join(clause)} | "
            f"{', '.join(r['counted'])} | {100 * r['share']:.2f} % | "
            f"{({r['kind']: ''} | within)[r['kind']]} |"
        )
    return "\n".join(lines) + "\n"


def _row_of_rule_1(scenario, n: int, studies: int, seed: int) -> dict:
    from posenc_jax.study.decision import Margins
    from posenc_jax.study.simulation_rule_1 import tally

    hits, answers = tally(scenario, n=n, studies=studies, seed=seed, margins=Margins())
    share, theory = hits / studies, scenario.expected(n)
    error = (theory * (1 - theory) / studies) ** 0.5
    within = (
        share <= theory + 2 * error if scenario.kind == "at most" else abs(share - theory) <= POINTS
    )
    row = {
        "truth": scenario.name,
        "n": n,
        "counted": list(scenario.counted),
        "share": share,
        "kind": scenario.kind,
        "theory": round(theory, 4),
        "standard_error": round(error, 4),
        "within": within,
        "studies": studies,
        "seed": seed,
        "first_hybrid": dict(sorted(answers.items())),
        "versions": _versions(),
    }
    print(
        f"n {n}  {scenario.name:44} {share:.4f}  {scenario.kind} {theory:.4f}  "
        f"{'ok' if within else 'OUTSIDE'}",
        flush=True,
    )
    return row


def _table_of_rule_1(rows: list[dict]) -> str:
    lines = [
        "| truth | counted | n | studies | share | theory | standard error | within |",
        "|" + "---|" * 8,
    ]
    for r in rows:
        bound = "at most " if r["kind"] == "at most" else ""
        lines.append(
            f"| {r['truth']} | {', '.join(r['counted'])} | {r['n']} | {r['studies']:,} | "
            f"{100 * r['share']:.2f} % | {bound}{100 * r['theory']:.1f} % | "
            f"{100 * r['standard_error']:.2f} % | {'yes' if r['within'] else 'no'} |"
        )
    return "\n".join(lines) + "\n"


def _versions() -> dict:
    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


if __name__ == "__main__":
    cli.run_main(main)
