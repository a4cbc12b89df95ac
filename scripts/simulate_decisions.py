"""How often the decision engine errs: python scripts/simulate_decisions.py --out=results/decision

Draws 2,000 studies for every truth of posenc_jax/study/simulation.py at 5 and at 8 seeds, asks the
engine of each, and writes rows.jsonl and table.md: the share of YES where a statement stands on its boundary
(at most 5 %, plus two standard errors of the estimate) and past it (within 3 points of the noncentral t). One share in
40 lies beyond two standard errors of a rate of exactly 5 %: such a truth is drawn again, once, with
ten times as many new studies, and both shares are written down. Minutes on one core.
Exit codes: 0 within the bounds, 1 not (after the second draw), 2 wrong input.
"""

import json
import platform
from pathlib import Path

import numpy as np
import scipy
from absl import flags

from posenc_jax import door

_OUT = flags.DEFINE_string("out", None, "Folder for rows.jsonl and table.md", required=True)
_STUDIES = flags.DEFINE_integer("studies", 2000, "Studies a truth", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws", lower_bound=0)
AGAIN = 10  # times as many studies where a share lies outside
POINTS = 0.03  # of power


def main() -> int:
    """Truths to rows."""
    from posenc_jax.study.simulation import truths

    rows, wrong = [], []
    for n in (5, 8):
        for truth in truths():
            row = _row(truth, n, _STUDIES.value, _SEED.value)
            rows.append(row)
            if not row["within"]:
                row = _row(truth, n, AGAIN * _STUDIES.value, _SEED.value + 1)
                rows.append(row)
                wrong += [] if row["within"] else [f"{truth.name}, n {n}"]
    out = Path(_OUT.value)
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (out / "table.md").write_text(_table(rows))
    print(f"{len(rows)} rows in {out}; outside their bounds: {', '.join(wrong) or 'none'}")
    return int(bool(wrong))


def _row(truth, n: int, studies: int, seed: int) -> dict:
    from posenc_jax.study.decision import Margins
    from posenc_jax.study.simulation import tally

    hits, answers = tally(truth, n=n, studies=studies, seed=seed, margins=Margins())
    share, theory = hits / studies, truth.expected(n)
    error = (theory * (1 - theory) / studies) ** 0.5
    within = share <= theory + 2 * error if truth.kind == "at most" else abs(share - theory) <= POINTS  # fmt: skip
    row = {"truth": truth.name, "n": n, "counted": list(truth.counted), "share": share, "kind": truth.kind,
           "theory": round(theory, 4), "standard_error": round(error, 4), "within": within, "studies": studies,
           "seed": seed, "first_hybrid": dict(sorted(answers.items())), "versions": _versions()}  # fmt: skip
    print(f"n {n}  {truth.name:44} {share:.4f}  {truth.kind} {theory:.4f}  {'ok' if within else 'OUTSIDE'}", flush=True)  # fmt: skip
    return row


def _table(rows: list[dict]) -> str:
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
    door.enter(main)
