"""How often the decision rule errs: python scripts/simulate_decisions.py --out=results/decision

Draws studies of every truth of posenc_jax/study/scenarios.py at 12 seeds (a confirmation), 8 and 5
(explorations), asks rule 2 of each, and writes rows.jsonl and table.md: how often the clause whose boundary
the truth lies on holds, how often it is refuted, and how often the verdict is a wrong one, each at most
5 % plus two standard errors; of truths with power, how often it is right. One share in 40 lies beyond two
standard errors of a rate of exactly 5 %: such a truth is drawn again, once, with ten times as many new studies,
and both rows are written down. `--rule=1` does the same for rule 1 (posenc_jax/study/simulation_rule_1.py, 5 and
8 seeds, rule_1_rows.jsonl). Minutes on one core.
Exit codes: 0 within the bounds, 1 not (after the second draw), 2 wrong input.
"""

import platform
from pathlib import Path

import numpy as np
import scipy
from absl import flags

from posenc_jax import cli

_OUT = flags.DEFINE_string("out", None, "Folder for the rows and the table", required=True)
_RULE = flags.DEFINE_enum("rule", "2", ["1", "2"], "Version of the decision rule")
_STUDIES = flags.DEFINE_integer("studies", 2000, "Studies a truth", lower_bound=1)
_ONLY = flags.DEFINE_string("only", "", "Truths whose name holds this; empty: all")
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws", lower_bound=0)
AGAIN = 10  # times as many studies where a share lies outside
POINTS = 0.03  # of power, rule 1
SEEDS = {"1": (5, 8), "2": (12, 8, 5)}


def main() -> int:
    """Truths to rows."""
    from posenc_jax.results.files import json_lines, replace_text
    from posenc_jax.study import scenarios, simulation_rule_1

    rule = _RULE.value
    asked = {"1": simulation_rule_1.scenarios_rule_1, "2": scenarios.scenarios}[rule]()
    asked = [truth for truth in asked if _ONLY.value in truth.name]
    draw = {"1": _row_of_rule_1, "2": _row_of_rule_2}[rule]
    rows, wrong = [], []
    for n in SEEDS[rule]:
        for truth in asked:
            rows.append(draw(truth, n, _STUDIES.value, _SEED.value))
            if not rows[-1]["within"]:
                rows.append(draw(truth, n, AGAIN * _STUDIES.value, _SEED.value + 1))
                wrong += [] if rows[-1]["within"] else [f"{truth.name}, n {n}"]
    out, prefix = Path(_OUT.value), {"1": "rule_1_", "2": ""}[rule]
    out.mkdir(parents=True, exist_ok=True)
    replace_text(out / f"{prefix}rows.jsonl", json_lines(rows))
    replace_text(out / f"{prefix}table.md", {"1": _table_of_rule_1, "2": _table_of_rule_2}[rule](rows))  # fmt: skip
    print(f"{len(rows)} rows in {out}; outside their bounds: {', '.join(wrong) or 'none'}")
    return int(bool(wrong))


def _row_of_rule_2(truth, n: int, studies: int, seed: int) -> dict:
    from posenc_jax.study.decision import Margins
    from posenc_jax.study.simulation import tally

    found = tally(truth, n=n, studies=studies, seed=seed, margins=Margins())
    wrong = max(found.holds, found.refuted, found.counted)
    error = (truth.bound * (1 - truth.bound) / studies) ** 0.5
    within = truth.kind != "error" or wrong <= truth.bound + 2 * error
    row = {"rule": 2, "truth": truth.name, "kind": truth.kind, "n": n, "clause": truth.clause, "holds": found.holds,
           "refuted": found.refuted, "counted": list(truth.counted), "share": found.counted, "bound": truth.bound,
           "within": within, "studies": studies, "seed": seed, "verdicts": found.verdicts, "versions": _versions()}  # fmt: skip
    print(f"n {n:2}  {truth.kind:5} {truth.name:84} holds {found.holds:.4f} refuted {found.refuted:.4f} verdict {found.counted:.4f}  {'ok' if within else 'OUTSIDE'}", flush=True)  # fmt: skip
    return row


def _table_of_rule_2(rows: list[dict]) -> str:
    lines = ["| truth | kind | n | studies | clause holds | clause refuted | counted verdicts | share | within |", "|" + "---|" * 9]  # fmt: skip
    for r in rows:
        clause = [f"{100 * r[k]:.2f} %" if r["clause"] else "" for k in ("holds", "refuted")]
        within = {"error": "yes" if r["within"] else "no"}
        lines.append(
            f"| {r['truth']} | {r['kind']} | {r['n']} | {r['studies']:,} | {' | '.join(clause)} | "
            f"{', '.join(r['counted'])} | {100 * r['share']:.2f} % | {({r['kind']: ''} | within)[r['kind']]} |"
        )
    return "\n".join(lines) + "\n"


def _row_of_rule_1(truth, n: int, studies: int, seed: int) -> dict:
    from posenc_jax.study.decision import Margins
    from posenc_jax.study.simulation_rule_1 import tally

    hits, answers = tally(truth, n=n, studies=studies, seed=seed, margins=Margins())
    share, theory = hits / studies, truth.expected(n)
    error = (theory * (1 - theory) / studies) ** 0.5
    within = share <= theory + 2 * error if truth.kind == "at most" else abs(share - theory) <= POINTS  # fmt: skip
    row = {"truth": truth.name, "n": n, "counted": list(truth.counted), "share": share, "kind": truth.kind,
           "theory": round(theory, 4), "standard_error": round(error, 4), "within": within, "studies": studies,
           "seed": seed, "first_hybrid": dict(sorted(answers.items())), "versions": _versions()}  # fmt: skip
    print(f"n {n}  {truth.name:44} {share:.4f}  {truth.kind} {theory:.4f}  {'ok' if within else 'OUTSIDE'}", flush=True)  # fmt: skip
    return row


def _table_of_rule_1(rows: list[dict]) -> str:
    lines = ["| truth | counted | n | studies | share | theory | standard error | within |", "|" + "---|" * 8]  # fmt: skip
    for r in rows:
        bound = "at most " if r["kind"] == "at most" else ""
        lines.append(
            f"| {r['truth']} | {', '.join(r['counted'])} | {r['n']} | {r['studies']:,} | {100 * r['share']:.2f} % | "
            f"{bound}{100 * r['theory']:.1f} % | {100 * r['standard_error']:.2f} % | {'yes' if r['within'] else 'no'} |"
        )  # fmt: skip
    return "\n".join(lines) + "\n"


def _versions() -> dict:
    return {"python": platform.python_version(), "numpy": np.__version__, "scipy": scipy.__version__}  # fmt: skip


if __name__ == "__main__":
    cli.run_main(main)
